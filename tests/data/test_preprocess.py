from __future__ import annotations

import numpy as np
import pytest
from phantoms import ball

from medseg.core.errors import GridMismatchError
from medseg.core.grid import Grid
from medseg.core.resample import resample
from medseg.core.volume import Volume
from medseg.data.normalise import CaseNormalisation
from medseg.data.preprocess import Preprocessing, preprocess, resample_classes


def scan() -> Volume:
    shape = (20, 18, 10)
    array = np.random.default_rng(0).normal(0, 1, (1, *shape)).astype(np.float32)
    return Volume(array, Grid(shape, np.diag([-1.0, -1.0, 2.0, 1.0])))


def test_a_flipped_scan_gives_the_same_picture_as_the_unflipped():
    flipped = scan()
    upright = Volume(flipped.array[:, ::-1, ::-1].copy(), Grid(flipped.grid.shape, flipped.grid.canonical().affine))
    rules = Preprocessing(physical=True, spacing=(1, 1, 2), normalisation=[CaseNormalisation()])
    a, b = preprocess(flipped, rules), preprocess(upright, rules)
    np.testing.assert_array_equal(a.array, b.array)
    assert a.grid == b.grid


def test_respacing_keeps_the_field_of_view_and_comes_back():
    rules = Preprocessing(physical=True, spacing=(1.5, 1.5, 1.5), normalisation=[CaseNormalisation()])
    volume = scan()
    prepared = preprocess(volume, rules)
    assert prepared.grid.spacing == pytest.approx((1.5, 1.5, 1.5))
    extent = np.array(prepared.grid.shape) * 1.5
    assert np.abs(extent - np.array(volume.grid.shape) * volume.grid.spacing).max() <= 0.75
    assert resample(prepared.array, prepared.grid, volume.grid, 1).shape == volume.array.shape


def test_pixels_keep_their_own_grid():
    volume = Volume(np.random.default_rng(0).random((3, 30, 20, 1), np.float32), Grid.pixels((30, 20)))
    prepared = preprocess(volume, Preprocessing(physical=False, spacing=None, normalisation=[CaseNormalisation(joint=True)] * 3))
    assert prepared.grid == volume.grid


def test_millimetres_and_pixels_do_not_mix():
    rules = Preprocessing(physical=False, spacing=None, normalisation=[CaseNormalisation()])
    with pytest.raises(GridMismatchError, match="p7 states a physical size and the plan was made for none"):
        preprocess(scan(), rules, "p7")


def test_the_nonzero_box_is_cut_out_where_it_lies():
    volume = scan()
    volume.array[:] = 0
    volume.array[0, 3:8, 4:9, 2:5] = 1 + np.random.default_rng(0).random((5, 5, 3))
    prepared = preprocess(
        volume, Preprocessing(physical=True, spacing=None, crop_nonzero=True, normalisation=[CaseNormalisation()])
    )
    assert prepared.grid.shape == (5, 5, 3)
    back = resample(prepared.array, prepared.grid, volume.grid, 0, fill=np.nan)
    assert np.isfinite(back[0, 3:8, 4:9, 2:5]).all() and np.isfinite(back).sum() == 75


def test_a_ball_keeps_its_volume_on_another_grid():
    grid = Grid((30, 30, 15), np.diag([1.0, 1.0, 2.0, 1.0]))
    classes = (2 * ball(grid.shape, (15, 15, 7), 10, (1, 1, 2))).astype(np.uint8)
    finer = grid.respaced((0.7, 0.7, 0.7))
    moved = resample_classes(classes, grid, finer)
    assert set(np.unique(moved)) == {0, 2}
    assert (moved > 0).sum() * finer.voxel_volume == pytest.approx((classes > 0).sum() * grid.voxel_volume, rel=0.03)
