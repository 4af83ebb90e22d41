"""From the prepared grid back to the scan's own voxels."""

from __future__ import annotations

import numpy as np
import pytest

from medseg.core.grid import Grid
from medseg.core.labels import LabelScheme, Region, Structure
from medseg.core.resample import resample
from medseg.core.volume import Volume
from medseg.data.normalise import CaseNormalisation
from medseg.data.preprocess import Preprocessing, preprocess
from medseg.inference.restore import restore

ONE = LabelScheme(structures=[Structure(name="a", id=1)])
TWO = LabelScheme(structures=[Structure(name="a", id=1), Structure(name="b", id=2)])
NESTED = LabelScheme(
    structures=[Structure(name="oedema", id=2), Structure(name="core", id=1), Structure(name="cyst", id=7)],
    regions=[
        Region(name="core", structures=["core"]),
        Region(name="whole", structures=["core", "oedema"]),
        Region(name="cyst", structures=["cyst"]),
    ],
)


def flipped_grid(shape: tuple[int, int, int], spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> Grid:
    """Axes stored as S, L, P: another order and two flips."""
    affine = np.zeros((4, 4))
    affine[2, 0], affine[0, 1], affine[1, 2], affine[3, 3] = spacing[0], -spacing[1], -spacing[2], 1
    affine[:3, 3] = 40, -7, 12
    return Grid(shape, affine)


def logits_of(classes: np.ndarray, n: int) -> np.ndarray:
    return np.stack([np.where(classes == k, 6.0, -3.0) for k in range(n)]).astype(np.float32)


def centre_distance(grid: Grid) -> np.ndarray:
    """Distance in mm of every voxel from the middle of the field of view."""
    index = np.indices(grid.shape).reshape(3, -1)
    world = grid.affine[:3, :3] @ index + grid.affine[:3, 3:]
    centre = grid.affine[:3, :3] @ ((np.asarray(grid.shape) - 1)[:, None] / 2) + grid.affine[:3, 3:]
    return np.linalg.norm(world - centre, axis=0).reshape(grid.shape)


def test_flips_and_axis_orders_come_back_exactly() -> None:
    scan = flipped_grid((7, 5, 6))
    classes = np.random.default_rng(0).integers(0, 3, scan.shape).astype(np.uint8)
    prepared = scan.canonical()
    restored = restore(logits_of(resample(classes, scan, prepared, 0), 3), prepared, scan, TWO)
    np.testing.assert_array_equal(restored.array, classes)
    assert restored.array.dtype == np.uint8
    assert restored.grid is scan


def test_outside_the_crop_is_background() -> None:
    scan = Grid((10, 10, 10), np.eye(4))
    prepared = scan.cropped((2, 3, 4), (5, 5, 5))
    restored = restore(logits_of(np.ones((5, 5, 5)), 2), prepared, scan, ONE).array
    expected = np.zeros((10, 10, 10))
    expected[2:7, 3:8, 4:9] = 1
    np.testing.assert_array_equal(restored, expected)


def test_outside_a_respaced_crop_is_background() -> None:
    scan = Grid((20, 20, 20), np.eye(4))
    prepared = scan.cropped((4, 4, 4), (10, 10, 10)).respaced((2.0, 2.0, 2.0))
    restored = restore(logits_of(np.ones(prepared.shape), 2), prepared, scan, ONE).array
    expected = np.zeros((20, 20, 20))
    expected[4:14, 4:14, 4:14] = 1
    np.testing.assert_array_equal(restored, expected)


@pytest.mark.parametrize("spacing", [(0.7, 0.7, 3.0), (1.5, 1.3, 1.1), (2.2, 2.2, 2.2)])
def test_a_ball_keeps_its_volume_and_place_through_another_spacing(spacing: tuple[float, float, float]) -> None:
    scan = flipped_grid((22, 40, 40), (2.0, 1.0, 0.9))
    prepared = scan.canonical().respaced(spacing)
    truth = centre_distance(scan) <= 12
    certainty = (12 - centre_distance(prepared)).astype(np.float32)  # falls off over a voxel or two, as a network's does
    restored = restore(np.stack([-certainty, certainty]), prepared, scan, ONE).array.astype(bool)
    dice = 2 * (restored & truth).sum() / (restored.sum() + truth.sum())
    assert dice > 0.98
    assert abs(restored.sum() / truth.sum() - 1) < 0.02
    shift = np.array(np.nonzero(restored)).mean(1) - np.array(np.nonzero(truth)).mean(1)
    assert np.abs(shift).max() < 0.25


@pytest.mark.parametrize("shape", [(9, 10, 11), (5, 6, 7), (13, 3, 1)])
def test_the_scan_edge_is_not_lost_to_rounding(shape: tuple[int, int, int]) -> None:
    scan = Grid(shape, np.diag([0.5, 0.5, 0.5, 1]))
    prepared = scan.respaced((1.9, 1.7, 2.3))
    restored = restore(logits_of(np.ones(prepared.shape), 2), prepared, scan, ONE).array
    assert restored.all()


def test_the_border_comes_back_between_two_voxels() -> None:
    scan = Grid((40, 1, 1), np.eye(4))
    prepared = scan.respaced((10.0, 1.0, 1.0))  # centres at 4.5, 14.5, 24.5, 34.5
    certainty = (17 - np.array([4.5, 14.5, 24.5, 34.5], np.float32)).reshape(4, 1, 1)
    logits = np.stack([np.full_like(certainty, 3), 3 + certainty, np.full_like(certainty, -9)])
    np.testing.assert_array_equal(restore(logits, prepared, scan, TWO).array[:, 0, 0], np.arange(40) < 17)


def test_huge_logits_do_not_overflow() -> None:
    scan = Grid((8, 8, 8), np.eye(4))
    prepared = scan.respaced((2.0, 2.0, 2.0))
    assert restore(logits_of(np.ones(prepared.shape), 2) * 1e6, prepared, scan, ONE).array.all()


def test_undoes_preprocess() -> None:
    scan = flipped_grid((12, 18, 16), (2.0, 1.0, 1.0))
    array = np.zeros((1, *scan.shape), np.float32)
    array[0, 3:9, 4:14, 5:12] = 100
    array[0, 5, 5, 5] = 90
    rule = [CaseNormalisation()]
    settings = Preprocessing(physical=True, spacing=(1.0, 1.0, 1.0), crop_nonzero=True, normalisation=rule, order=1)
    prepared = preprocess(Volume(array, scan), settings)
    bright = (prepared.array[0] > prepared.array[0].mean() - 1).astype(int)
    restored = restore(logits_of(bright, 2), prepared.grid, scan, ONE).array
    np.testing.assert_array_equal(restored, array[0] > 0)


def answers_of(classes: np.ndarray, labels: LabelScheme) -> np.ndarray:
    """Logits of the regions that are right everywhere."""
    assert labels.membership is not None
    return np.where(labels.membership[:, classes], 5.0, -5.0).astype(np.float32)


def test_regions_come_back_exactly_through_flips_and_crops() -> None:
    scan = flipped_grid((7, 5, 6))
    classes = np.random.default_rng(0).integers(0, 4, scan.shape).astype(np.uint8)
    prepared = scan.canonical().cropped((1, 1, 1), (4, 5, 3))
    inside = resample(classes, scan, prepared, 0)
    restored = restore(answers_of(inside, NESTED), prepared, scan, NESTED).array
    np.testing.assert_array_equal(restored, resample(inside, prepared, scan, 0))
    assert set(np.unique(restored)) == {0, 1, 2, 3}


def test_regions_come_back_at_their_places_through_another_spacing() -> None:
    scan = Grid((40, 1, 1), np.eye(4))
    prepared = scan.respaced((10.0, 1.0, 1.0))  # centres at 4.5, 14.5, 24.5, 34.5
    x = np.array([4.5, 14.5, 24.5, 34.5], np.float32)
    core, whole, cyst = 12.5 - x, 27.5 - x, x - 33.5
    restored = restore(np.stack([core, whole, cyst])[:, :, None, None], prepared, scan, NESTED).array[:, 0, 0]
    place = np.arange(40)
    np.testing.assert_array_equal(restored, np.select([place < 12.5, place < 27.5, place > 33.5], [2, 1, 3], 0))


def test_outside_a_respaced_crop_no_region_is_found() -> None:
    scan = Grid((20, 20, 20), np.eye(4))
    prepared = scan.cropped((4, 4, 4), (10, 10, 10)).respaced((2.0, 2.0, 2.0))
    restored = restore(np.full((3, *prepared.shape), 9, np.float32), prepared, scan, NESTED).array
    assert (restored[4:14, 4:14, 4:14] > 0).all()
    assert (restored > 0).sum() == 1000


def test_restoring_to_the_same_grid_is_deciding() -> None:
    scores = np.random.default_rng(2).normal(size=(3, 5, 6, 7)).astype(np.float32)
    grid = Grid((5, 6, 7), np.eye(4))
    for labels in (TWO, NESTED):
        np.testing.assert_array_equal(restore(scores, grid, grid, labels).array, labels.decide(scores))
