"""Boundary weights against the formula computed pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from medseg.losses.boundary import BoundaryConfig, BoundaryWeightd, boundary_term, two_nearest
from medseg.losses.registry import LOSSES


def by_brute_force(classes: np.ndarray, objects: str, w0: float, sigma: float) -> np.ndarray:
    """Every voxel against every border voxel of every object."""
    places = np.stack(np.indices(classes.shape), -1).reshape(-1, 3)
    borders = []
    for k in [0] if objects == "background" else sorted({*np.unique(classes)} - {0, 255}):
        pieces, count = ndimage.label(classes == k)
        for number in range(1, count + 1):
            piece = {tuple(p) for p in np.argwhere(pieces == number)}
            inside_picture = {tuple(p) for p in places}
            steps = np.vstack([np.eye(3, dtype=int), -np.eye(3, dtype=int)])
            border = [p for p in piece if any((q := tuple(np.add(p, s))) in inside_picture and q not in piece for s in steps)]
            if border:
                borders.append(np.linalg.norm(places[:, None] - np.array(border)[None], axis=-1).min(1))
    if len(borders) < 2:
        return np.zeros(classes.shape)
    d = np.sort(borders, 0)
    return (w0 * np.exp(-((d[0] + d[1]) ** 2) / (2 * sigma**2))).reshape(classes.shape)


@pytest.mark.parametrize("objects", ["structures", "background"])
@pytest.mark.parametrize("shape", [(14, 12, 1), (1, 13, 12), (7, 8, 6)])
def test_it_is_the_formula_of_the_paper(shape: tuple[int, int, int], objects: str) -> None:
    rng = np.random.default_rng(1)
    noise = ndimage.gaussian_filter(rng.standard_normal(shape), [1.2 if n > 1 else 0 for n in shape])
    classes = np.select([noise > np.quantile(noise, 0.65), noise < np.quantile(noise, 0.35)], [1, 2], 0).astype(np.uint8)
    classes[..., :2, :] = 255
    config = BoundaryConfig(objects=objects, sigma=2.0)  # 3 sigma is less than the picture: something is cut off
    term = boundary_term(classes, config)
    expected = by_brute_force(classes, objects, 10.0, 2.0)
    assert term.dtype == np.float32 and term.shape == shape
    assert expected.max() > 3
    np.testing.assert_allclose(term, expected, atol=0.012 * 10)
    near = expected > 10 * np.exp(-4.5)  # d1 + d2 is below 3 sigma
    np.testing.assert_allclose(term[near], expected[near], rtol=1e-5)


@pytest.mark.parametrize("shape", [(40,), (30, 25), (9, 14, 11)])
def test_the_two_nearest_of_many_objects(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(len(shape))
    objects = np.zeros(shape, np.int64)
    places = rng.choice(objects.size, 9, replace=False)
    objects.ravel()[places] = [1, 2, 3, 4, 5, 5, 5, 6, 7]  # one voxel each, one object in three pieces
    distances = np.stack([ndimage.distance_transform_edt(objects != k) for k in range(1, 8)])
    nearest, second = two_nearest(objects, reach=8)
    expected = np.sort(distances, 0)[:2]
    expected[expected > 8] = np.inf
    np.testing.assert_allclose(nearest, expected[0], rtol=1e-6)
    np.testing.assert_allclose(second, expected[1], rtol=1e-6)


def test_many_objects_and_a_far_reach_do_not_overflow() -> None:
    objects = np.zeros((300, 300), np.int64)
    objects[::2, ::2] = np.arange(150 * 150).reshape(150, 150) + 1
    nearest, second = two_nearest(objects, reach=250)
    assert nearest.max() == pytest.approx(2**0.5)
    assert second[0, 0] == 2 and second[0, 1] == 1


def test_the_weight_peaks_in_the_gap_between_two_cells() -> None:
    classes = np.zeros((40, 41, 1), np.uint8)
    classes[10:30, 4:20] = 1
    classes[10:30, 21:37] = 1  # one column of background between the cells
    term = boundary_term(classes, BoundaryConfig())
    assert term[12:28, 20].min() == term.max() == pytest.approx(10 * np.exp(-(2**2) / 50))
    assert term[20, 12] < 0.1  # the middle of a cell
    assert term[:2].max() < term.max() / 5
    wider = classes.copy()
    wider[:, 21:24] = 0
    assert boundary_term(wider, BoundaryConfig())[20, 20] < term[20, 20]


def test_membranes_separate_background_objects() -> None:
    classes = np.zeros((20, 21, 1), np.uint8)
    classes[:, 10] = 1
    assert boundary_term(classes, BoundaryConfig()).max() == 0  # one membrane: nothing that it must be kept apart from
    term = boundary_term(classes, BoundaryConfig(objects="background"))
    assert (term[:, 10] == term.max()).all() and term.max() > 9


def test_different_structures_that_touch_are_two_objects() -> None:
    classes = np.ones((10, 10, 1), np.uint8)
    classes[:, 5:] = 2
    term = boundary_term(classes, BoundaryConfig())
    np.testing.assert_allclose(term[:, 4:6], 10 * np.exp(-1 / 50), rtol=1e-6)


@pytest.mark.parametrize("fill", [0, 1, 255])
@pytest.mark.parametrize("shape", [(1, 1, 1), (6, 1, 1), (5, 4, 3)])
def test_without_two_objects_nothing_is_added(fill: int, shape: tuple[int, int, int]) -> None:
    for objects in ("structures", "background"):
        term = boundary_term(np.full(shape, fill, np.uint8), BoundaryConfig(objects=objects))
        assert term.shape == shape and (term == 0).all()


def test_a_sample_gets_its_map_and_keeps_the_rest() -> None:
    row = LOSSES["boundary_ce"]
    assert row.weight_map is not None
    transform = row.weight_map(BoundaryConfig(w0=5))
    assert isinstance(transform, BoundaryWeightd)
    classes = torch.zeros(8, 9, 1, dtype=torch.uint8)
    classes[:, 2:4], classes[:, 5:7] = 1, 1
    sample = {"classes": classes, "image": torch.zeros(1, 8, 9, 1)}
    done = transform(sample)
    assert done["image"] is sample["image"] and "weight" not in sample
    np.testing.assert_array_equal(done["weight"], boundary_term(classes.numpy(), BoundaryConfig(w0=5)))
    assert 4 < done["weight"].max() <= 5
