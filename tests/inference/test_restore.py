"""From the prepared grid back to the scan's own voxels."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from scipy import ndimage

from medseg.core.grid import Grid
from medseg.core.labels import LabelScheme, Region, Structure
from medseg.core.resample import resample
from medseg.core.volume import Volume
from medseg.data.normalise import CaseNormalisation
from medseg.data.preprocess import Preprocessing, preprocess
from medseg.inference import restore as module
from medseg.inference.restore import Restorer, restore
from medseg.inference.window import Slab

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


MERGED = LabelScheme(  # two regions that are written as one structure
    structures=[Structure(name="core", id=1), Structure(name="oedema", id=2), Structure(name="cyst", id=7)],
    regions=[
        Region(name="whole", structures=["core", "oedema"], written_as="core"),
        Region(name="oedema", structures=["oedema"]),
        Region(name="inner", structures=["core"]),
        Region(name="cyst", structures=["cyst"]),
    ],
)
SCHEMES = {"one": ONE, "two": TWO, "nested": NESTED, "merged": MERGED}


def oblique(shape: tuple[int, int, int], spacing: tuple[float, float, float], flips: Sequence[int] = ()) -> Grid:
    """Turned by 25 degrees around the third axis, stored in the order Z, X, Y, some axes backwards."""
    c, s = np.cos(np.radians(25)), np.sin(np.radians(25))
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]])[:, [2, 0, 1]]
    turn[:, list(flips)] *= -1
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn * spacing, (12.5, -3.25, 70.0)
    return Grid(shape, affine)


ROADS = {
    "finer": lambda scan: scan.canonical().respaced((0.7, 0.8, 1.1)),
    "coarser": lambda scan: scan.canonical().respaced((2.3, 1.9, 2.6)),
    "one axis": lambda scan: scan.canonical().respaced((scan.canonical().spacing[0], 2.2, scan.canonical().spacing[2])),
    "cropped": lambda scan: scan.canonical().cropped((2, 1, 3), (8, 9, 6)).respaced((1.6, 1.3, 1.9)),
    "flipped": lambda scan: scan.canonical(),
    "cropped voxels": lambda scan: scan.canonical().cropped((2, 1, 3), (8, 9, 6)),
    "padded": lambda scan: scan.canonical().cropped((-1, -2, 0), (16, 17, 15)).respaced((1.7, 1.4, 1.2)),
}
SCANS = {
    "upright": Grid((14, 13, 11), np.diag([1.0, 1.2, 1.5, 1.0])),
    "turned": flipped_grid((14, 13, 11), (1.5, 1.0, 1.2)),
    "oblique": oblique((11, 14, 13), (1.5, 1.0, 1.2), flips=[0, 2]),
}


def plainly(logits: np.ndarray, prepared: Grid, scan: Grid, labels: LabelScheme) -> tuple[np.ndarray, np.ndarray]:
    """The classes, after every output was interpolated everywhere, and how far each voxel is from another decision."""
    index = np.indices(scan.shape).reshape(3, -1).astype(np.float64)
    mapping = np.linalg.solve(prepared.affine, scan.affine)
    place = mapping[:3, :3] @ index + mapping[:3, 3:]
    scores = np.stack([ndimage.map_coordinates(one.astype(np.float64), place, order=1, mode="nearest") for one in logits])
    outside = np.zeros(place.shape[1], bool)
    for position, size in zip(place, prepared.shape, strict=True):
        low, high = -0.5 - 1e-4, size - 0.5 + 1e-4
        low -= 0.25 if 0 < -0.5 - position.min() <= 0.25 else 0  # the field of view was rounded to whole voxels
        high += 0.25 if 0 < position.max() - (size - 0.5) <= 0.25 else 0
        outside |= (position < low) | (position > high)
    margin = np.abs(scores).min(0) if labels.regions else np.diff(np.sort(scores, 0)[-2:], axis=0)[0]
    classes = np.where(outside, 0, labels.decide(scores.astype(np.float32)[:, :, None, None])[:, 0, 0])
    return classes.reshape(scan.shape), np.where(outside, np.inf, margin).reshape(scan.shape)


def smooth_logits(shape: tuple[int, int, int], n: int, seed: int) -> np.ndarray:
    """Fields with borders everywhere, and regions in which all neighbours agree."""
    noise = np.random.default_rng(seed).normal(size=(n, *shape))
    return (8 * np.stack([ndimage.gaussian_filter(one, 1.5) for one in noise]) + 0.2 * noise).astype(np.float32)


def fed(logits: np.ndarray, prepared: Grid, scan: Grid, labels: LabelScheme, axis: int, cuts: Sequence[int]) -> np.ndarray:
    restorer = Restorer(prepared, scan, labels)
    for start, stop in itertools.pairwise([0, *cuts, prepared.shape[axis]]):
        part = torch.from_numpy(logits).narrow(axis + 1, start, stop - start).clone()
        restorer.add(Slab(axis, start, part))
        part.fill_(torch.nan)  # the band goes on to hold something else
    return restorer.finish().array


@pytest.mark.parametrize("labels", SCHEMES.values(), ids=SCHEMES)
@pytest.mark.parametrize("road", ROADS)
@pytest.mark.parametrize("scan", SCANS.values(), ids=SCANS)
def test_restoring_in_one_piece_or_in_slabs_is_interpolating_all_and_deciding(
    scan: Grid, road: str, labels: LabelScheme, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared, rng = ROADS[road](scan), np.random.default_rng(len(road))
    logits = smooth_logits(prepared.shape, labels.n_outputs, seed=len(road))
    expected, margin = plainly(logits, prepared, scan, labels)
    whole = restore(logits, prepared, scan, labels).array
    sure = margin > 1e-4
    np.testing.assert_array_equal(whole[sure], expected[sure])
    assert sure.mean() > 0.99 and len(np.unique(whole)) >= min(3, labels.n_classes)
    monkeypatch.setattr(module, "MOST_VOXELS", 300)  # in many parts
    np.testing.assert_array_equal(restore(logits, prepared, scan, labels).array, whole)
    for axis, size in enumerate(prepared.shape):
        some = sorted(rng.choice(np.arange(1, size), 2, replace=False).tolist())
        for cuts in (range(1, size), some, [1], [size - 1]):
            np.testing.assert_array_equal(fed(logits, prepared, scan, labels, axis, cuts), whole, err_msg=f"{axis} {cuts}")


def test_a_region_in_a_region_that_is_written_as_the_same_structure() -> None:
    """Between a voxel where only the outer region is found and one where only the inner is, there may be neither."""
    scan = Grid((9, 1, 1), np.diag([1.0, 1.0, 1.0, 1.0]))
    prepared = Grid((2, 1, 1), np.array([[8.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]))
    outer, inner = np.array([5.0, -9.0]), np.array([-9.0, 5.0])
    none = np.full(2, -9.0)
    logits = np.stack([outer, none, inner, none]).astype(np.float32)[:, :, None, None]
    restored = restore(logits, prepared, scan, MERGED).array[:, 0, 0]
    place = np.arange(9) / 8
    found = (5 - 14 * place > 0) | (-9 + 14 * place > 0)
    np.testing.assert_array_equal(restored, np.where(found, 1, 0))
    assert (~found).any() and found[0] and found[-1]


def test_of_the_answer_one_slab_is_held() -> None:
    scan = Grid((60, 9, 9), np.diag([1.0, 1.0, 1.0, 1.0]))
    prepared = scan.respaced((1.5, 1.4, 1.4))
    logits = torch.from_numpy(smooth_logits(prepared.shape, 3, 0))
    restorer = Restorer(prepared, scan, TWO)
    for start in range(0, prepared.shape[0], 4):
        restorer.add(Slab(0, start, logits[:, start : start + 4]))
        assert restorer.rows.held is not None and restorer.rows.held.shape[1] == 1
        assert restorer.rows.held.untyped_storage().nbytes() == restorer.rows.held.numel() * 4  # no view of the slab
    np.testing.assert_array_equal(restorer.finish().array, restore(logits.numpy(), prepared, scan, TWO).array)
