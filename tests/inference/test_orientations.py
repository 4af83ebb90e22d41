"""All 48 ways to store a scan's axes, upright and oblique, from a file through a model and back into a file."""

from __future__ import annotations

import itertools
from functools import cache
from pathlib import Path

import nibabel
import nrrd
import numpy as np
import pytest
import SimpleITK
import torch
from tiny_models import SCHEME, tiny_bundle

from medseg.core.grid import Grid
from medseg.core.resample import resample
from medseg.core.volume import LabelMap
from medseg.inference.config import SegmentConfig
from medseg.inference.masks import mask_name, write_mask
from medseg.inference.predict import LoadedModel, predict_case
from medseg.inference.runtime import Arithmetic
from medseg.io.formats import read_grid, read_labels, read_volume

CPU = torch.device("cpu")
SHAPE, SPACING = (23, 18, 13), (1.0, 1.5, 2.0)
LIVER, TUMOUR = 3, 300
TURNS = [(order, signs) for order in itertools.permutations(range(3)) for signs in itertools.product((1, -1), repeat=3)]
NAMES = ["".join(f"{'-' if s < 0 else '+'}{'xyz'[a]}" for a, s in zip(order, signs, strict=True)) for order, signs in TURNS]
LAS = {"straight": (0.0, 0.0, 0.0), "oblique": (14.0, -9.0, 21.0)}  # degrees around R, A, S
FORMATS = (".nii.gz", ".nrrd", ".mha")


class Bright(torch.nn.Module):
    """Says `liver` where the normalised scan is above 1, and `tumour` where it is above 4.6."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.zeros_like(x), 10 * (x - 1), 30 * (x - 3.4)], 1)


@cache
def truth() -> np.ndarray:
    """(X, Y, Z) class indices without any symmetry: a bar along each axis, and a corner of another structure."""
    classes = np.zeros(SHAPE, np.uint8)
    classes[2:19, 3:6, 2:5] = 1
    classes[2:5, 3:14, 2:5] = 1
    classes[2:5, 3:6, 2:11] = 1
    classes[14:18, 11:16, 6:10] = 2
    return classes


def base_affine(around: tuple[float, float, float]) -> np.ndarray:
    """In numbers that float32 holds, as NIfTI stores them."""
    x, y, z = np.radians(around)
    turn = np.array([[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]])
    turn = turn @ np.array([[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]])
    turn = turn @ np.array([[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn * SPACING
    affine[:3, 3] = -31.25, 17.5, 8.75
    return affine.astype(np.float32).astype(np.float64)


def turned(grid: Grid, order: tuple[int, ...], signs: tuple[int, ...]) -> Grid:
    """The same voxels with the axes in another order, some of them backwards."""
    matrix = np.zeros((4, 4))
    matrix[3, 3] = 1
    for new, (old, sign) in enumerate(zip(order, signs, strict=True)):
        matrix[old, new] = sign
        matrix[old, 3] = 0 if sign > 0 else grid.shape[old] - 1
    return Grid(tuple(grid.shape[a] for a in order), grid.affine @ matrix)  # type: ignore[arg-type]


def turned_array(array: np.ndarray, order: tuple[int, ...], signs: tuple[int, ...]) -> np.ndarray:
    return array.transpose(order)[tuple(slice(None, None, sign) for sign in signs)]


def scan_of(classes: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, 4, classes.shape)
    return (100 + 60 * (classes == 1) + 160 * (classes == 2) + noise).astype(np.float32)


def write_scan(path: Path, array: np.ndarray, grid: Grid) -> Path:
    """By other libraries than the one that reads it."""
    if path.name.endswith(".nii.gz"):
        nibabel.save(nibabel.Nifti1Image(array, grid.affine), path)
    elif path.suffix == ".nrrd":
        columns = (grid.affine[:3, :3].T).tolist()
        header = {"space": "right-anterior-superior", "space directions": columns, "space origin": grid.affine[:3, 3]}
        nrrd.write(str(path), array, header)
    else:
        lps = np.diag([-1.0, -1.0, 1.0])
        image = SimpleITK.GetImageFromArray(array.T)
        image.SetSpacing(grid.spacing)
        image.SetDirection((lps @ grid.directions).ravel().tolist())
        image.SetOrigin((lps @ grid.affine[:3, 3]).tolist())
        SimpleITK.WriteImage(image, str(path))
    return path


def model_with(spacing: tuple[float, float, float] | None, crop: bool = False) -> LoadedModel:
    bundle = tiny_bundle(spacing=spacing, crop_nonzero=crop, patch_voxels=(16, 16, 8))
    return LoadedModel(bundle, Bright().eval(), CPU, Arithmetic("torch", "float32", ""))


def segmented(model: LoadedModel, scan: Path, folder: Path) -> tuple[LabelMap, Path]:
    """The mask as it is read back from its file."""
    classes = predict_case(model, [scan], SegmentConfig(device="cpu", skip_air=False))
    path = folder / mask_name("mask", scan, "same")
    write_mask(path, LabelMap(SCHEME.decode(classes.array), classes.grid), scan, "same", SCHEME, model.bundle)
    return read_labels(path), path


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("around", LAS.values(), ids=LAS)
def test_without_another_spacing_each_voxel_of_each_orientation_is_what_it_should_be(
    tmp_path: Path, around: tuple[float, float, float], suffix: str
) -> None:
    straight, model = Grid(SHAPE, base_affine(around)), model_with(None)
    ids = SCHEME.decode(truth())
    for (order, signs), name in zip(TURNS, NAMES, strict=True):
        grid = turned(straight, order, signs)
        scan = write_scan(tmp_path / f"{name}{suffix}", turned_array(scan_of(truth()), order, signs).copy(), grid)
        read = read_volume(scan)
        assert read.grid == grid, name
        mask, path = segmented(model, scan, tmp_path)
        np.testing.assert_array_equal(mask.array, turned_array(ids, order, signs), err_msg=name)
        np.testing.assert_array_equal(read_grid(path).affine, read.grid.affine, err_msg=name)  # bit for bit
        if suffix == ".nii.gz":  # as another reader sees it
            other = nibabel.load(path)
            np.testing.assert_array_equal(other.affine, nibabel.load(scan).affine, err_msg=name)
            np.testing.assert_array_equal(np.asarray(other.dataobj), turned_array(ids, order, signs), err_msg=name)


def test_a_place_in_the_patient_has_one_answer_in_every_orientation(tmp_path: Path) -> None:
    """The grids are what is turned here, and the world is what is asked."""
    straight, model = Grid(SHAPE, base_affine(LAS["oblique"])), model_with(None, crop=True)
    places = np.argwhere(truth() == 2)
    world = places @ straight.affine[:3, :3].T + straight.affine[:3, 3]
    for (order, signs), name in list(zip(TURNS, NAMES, strict=True))[::5]:
        grid = turned(straight, order, signs)
        scan = write_scan(tmp_path / f"{name}.nii.gz", turned_array(scan_of(truth()), order, signs).copy(), grid)
        mask, _ = segmented(model, scan, tmp_path)
        index = (world - mask.grid.affine[:3, 3]) @ np.linalg.inv(mask.grid.affine[:3, :3]).T
        assert (mask.array[tuple(np.round(index).astype(int).T)] == TUMOUR).all(), name
        assert (mask.array == TUMOUR).sum() == len(places), name


@pytest.mark.parametrize("spacing", [(1.7, 1.2, 1.3), (0.8, 2.1, 2.9)])
@pytest.mark.parametrize("around", LAS.values(), ids=LAS)
def test_through_another_spacing_a_turned_scan_gives_the_turned_mask(
    tmp_path: Path, around: tuple[float, float, float], spacing: tuple[float, float, float]
) -> None:
    straight, model = Grid(SHAPE, base_affine(around)), model_with(spacing)
    first, _ = segmented(model, write_scan(tmp_path / "scan.nii.gz", scan_of(truth()), straight), tmp_path)
    assert {0, LIVER, TUMOUR} == set(np.unique(first.array))
    agreement = (first.array == SCHEME.decode(truth())).mean()
    assert 0.97 < agreement < 1  # it was interpolated indeed
    differing = {}
    for (order, signs), name in zip(TURNS, NAMES, strict=True):
        grid = turned(straight, order, signs)
        scan = write_scan(tmp_path / f"{name}.nii.gz", turned_array(scan_of(truth()), order, signs).copy(), grid)
        mask, path = segmented(model, scan, tmp_path)
        np.testing.assert_array_equal(read_grid(path).affine, read_grid(scan).affine, err_msg=name)
        differing[name] = int((mask.array != turned_array(first.array, order, signs)).sum())
    assert max(differing.values()) == 0, differing


def test_the_48_orientations_are_all_there_and_are_met_by_one_prepared_grid() -> None:
    straight = Grid(SHAPE, base_affine(LAS["oblique"]))
    grids = [turned(straight, order, signs) for order, signs in TURNS]
    assert len(grids) == len(set(NAMES)) == len({grid.directions.round(6).tobytes() for grid in grids}) == 48
    for grid, (order, signs) in zip(grids, TURNS, strict=True):
        canonical = grid.canonical()
        assert canonical == straight.canonical() and canonical.shape == SHAPE
        np.testing.assert_allclose(canonical.affine, straight.affine, atol=1e-10)
        array = turned_array(truth(), order, signs)
        np.testing.assert_array_equal(resample(array, grid, canonical, 0), truth())
