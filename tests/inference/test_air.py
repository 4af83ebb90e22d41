"""Windows that hold nothing but air: told by blocks of the scan, never where something bright reaches into them."""

from __future__ import annotations

import itertools
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from phantoms import LPS_AFFINE, volume_case
from tiny_models import SCHEME, tiny_bundle

from medseg.core.grid import Grid
from medseg.core.labels import LabelScheme, Region
from medseg.core.resample import resample
from medseg.core.volume import Volume
from medseg.inference.air import BLOCK, Air
from medseg.inference.config import EngineConfig
from medseg.inference.predict import LoadedModel, ask_network, read_scan
from medseg.inference.runtime import Arithmetic
from medseg.inference.window import count_windows

CPU = torch.device("cpu")
SHAPE = (70, 41, 35)


def turned_grid() -> Grid:
    """Axes stored as A, S, R with one backwards, turned by 20 degrees."""
    c, s = np.cos(np.radians(20)), np.sin(np.radians(20))
    turn = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])[:, [1, 2, 0]] * [1, -1, 1]
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn * (0.8, 1.1, 1.4), (5, -8, 13)
    return Grid(SHAPE, affine)


def bright_spots(n: int, seed: int = 0) -> np.ndarray:
    """(X, Y, Z) float32 air of 0, with single voxels of 100."""
    rng = np.random.default_rng(seed)
    array = np.zeros(SHAPE, np.float32)
    array[tuple(rng.integers(0, SHAPE, (n, 3)).T)] = 100
    return array


ROADS = {
    "as it is": lambda grid: grid,
    "flipped": lambda grid: grid.canonical(),
    "finer": lambda grid: grid.canonical().respaced((0.6, 0.7, 0.9)),
    "coarser": lambda grid: grid.canonical().respaced((2.1, 1.7, 1.9)),
    "cropped": lambda grid: grid.canonical().cropped((3, 5, 7), (25, 40, 20)).respaced((1.3, 1.0, 1.2)),
}


@pytest.mark.parametrize("order", [0, 1, 3])
@pytest.mark.parametrize("road", ROADS)
def test_what_is_called_air_holds_no_bright_voxel_however_the_scan_was_prepared(road: str, order: int) -> None:
    grid, array = turned_grid(), bright_spots(4)
    prepared = ROADS[road](grid)
    seen = resample(array, grid, prepared, order)
    empty = Air(Volume(array[None], grid), [50.0]).empty(prepared, SCHEME)
    told = 0
    for size in ((8, 8, 8), (20, 12, 6), (1, 1, 1)):
        for first in itertools.product(*(range(0, n, max(2, p // 2)) for n, p in zip(prepared.shape, size, strict=True))):
            last = tuple(min(n, f + p) for f, p, n in zip(first, size, prepared.shape, strict=True))
            if empty.test(first, last):
                told += 1
                assert seen[tuple(map(slice, first, last))].max() < 50, (first, last)
    assert told > 100  # most of it is air, and is told


def test_a_window_whose_interpolation_reaches_a_bright_voxel_is_looked_at() -> None:
    array = np.zeros((64, 16, 16), np.float32)
    array[32, 8, 8] = 100
    empty = Air(Volume(array[None], Grid(array.shape, np.eye(4))), [50.0]).empty(Grid(array.shape, np.eye(4)), SCHEME)
    assert empty.test((0, 0, 0), (30, 16, 16)) and empty.test((50, 0, 0), (64, 16, 16))
    assert not empty.test((0, 0, 0), (31, 16, 16))  # two voxels before the block of the bright one
    assert not empty.test((49, 0, 0), (64, 16, 16)) and 32 + BLOCK + 1 == 49


def test_all_channels_must_be_dark_each_below_its_own_limit() -> None:
    grid = Grid((20, 20, 20), np.eye(4))
    box = (0, 0, 0), (20, 20, 20)
    scan = Volume(np.stack([np.full(grid.shape, value, np.float32) for value in (5.0, -900.0)]), grid)
    for limits, expected in (([6, -800], True), ([5, -800], False), ([6, -900], False), ([-np.inf, -800], False)):
        assert Air(scan, limits).empty(grid, SCHEME).test(*box) is expected


def test_where_nothing_is_asked_the_answer_is_background() -> None:
    grid = Grid((4, 4, 4), np.eye(4))
    regions = LabelScheme(
        structures=SCHEME.structures,
        regions=[Region(name="both", structures=["liver", "tumour"]), Region(name="tumour", structures=["tumour"])],
    )
    for labels in (SCHEME, regions):
        empty = Air(Volume(np.zeros((1, 4, 4, 4), np.float32), grid), [1.0]).empty(grid, labels)
        logits = np.array(empty.logits, np.float32).reshape(-1, 1, 1, 1)
        assert len(logits) == labels.n_outputs and labels.decide(logits).item() == 0
        certainty = 1 / (1 + np.exp(logits)) if labels.regions else np.exp(logits[:1]) / np.exp(logits).sum(0)
        assert certainty.min() > 0.999


class Bright(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.zeros_like(x), 10 * (x - 1.5), torch.full_like(x, -50)], 1)


@pytest.mark.parametrize("spacing", [None, (1.3, 1.2, 1.6)])
def test_the_mask_is_the_same_with_and_without_the_windows_of_air(
    tmp_path: Path, spacing: tuple[float, float, float] | None
) -> None:
    array = np.zeros((96, 60, 48), np.float32)
    array[8:32, 30:50, 20:36] = volume_case(0)[0]
    nibabel.save(nibabel.Nifti1Image(array, LPS_AFFINE), tmp_path / "scan.nii.gz")
    bundle = tiny_bundle(spacing=spacing, patch_voxels=(16, 16, 8))
    bundle.description.fingerprint["air_below"] = [40.0]
    model = LoadedModel(bundle, Bright(), CPU, Arithmetic("torch", "float32", ""))
    answers = {}
    for skip in (True, False):
        settings = EngineConfig(device="cpu", skip_air=skip)
        scan = read_scan(bundle, [tmp_path / "scan.nii.gz"], settings, None, "scan")
        answers[skip] = ask_network(model, scan, settings)
        windows = count_windows(scan.grid.shape, bundle.plan.patch_voxels, 0.5)
        assert answers[skip].windows == windows
    assert 0.5 * windows < answers[True].skipped < windows and answers[False].skipped == 0
    np.testing.assert_array_equal(answers[True].classes.array, answers[False].classes.array)
    assert (answers[True].classes.array == 1).sum() > 200
    bundle.description.fingerprint.pop("air_below")  # a model whose training cases prove nothing
    scan = read_scan(bundle, [tmp_path / "scan.nii.gz"], EngineConfig(device="cpu"), None, "scan")
    assert scan.empty is None
