"""Outlines against rasterisers of several conventions: a voxel is in where its centre is, exactly."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.path import Path as Polygon
from skimage.draw import polygon2mask
from skimage.measure import label

from medseg.io.outline import INSET, outline

SHAPES = {
    "one voxel": ["#"],
    "one voxel in a corner": ["#..", "...", "..."],
    "diagonal": ["#..", ".#.", "..#"],
    "anti-diagonal": [".#", "#."],
    "ring": ["###", "#.#", "###"],
    "ring of corners": [".#.", "#.#", ".#."],
    "holes that touch at a corner": ["####", "#.##", "##.#", "####"],
    "hole that touches the outside at a corner": ["###.", "#.##", "####"],
    "piece in a hole": ["#####", "#...#", "#.#.#", "#...#", "#####"],
    "ring in a hole": ["#######", "#.....#", "#.###.#", "#.#.#.#", "#.###.#", "#.....#", "#######"],
    "holes in a row": ["#######", "#.#.#.#", "#######"],
    "whole slice": ["###", "###"],
}


def drawn(rows: list[str]) -> np.ndarray:
    """(X, Y) bool of rows of text."""
    return np.array([[c == "#" for c in row] for row in rows]).T


def by_xor(polygons: list[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    mask = np.zeros(shape, bool)
    for polygon in polygons:
        mask ^= polygon2mask(shape, polygon)
    return mask


def by_union(polygons: list[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    centres = np.indices(shape).reshape(2, -1).T
    return np.any([Polygon(p).contains_points(centres) for p in polygons], axis=0).reshape(shape)


def by_winding(polygons: list[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """Inside where the lines run round a centre: the angles that they are seen under do not add up to zero."""
    turns = np.zeros(shape)
    for polygon in polygons:
        rays = polygon[:, :, None, None] - np.indices(shape)
        after = np.roll(rays, -1, axis=0)
        cross = rays[:, 0] * after[:, 1] - rays[:, 1] * after[:, 0]
        turns += np.arctan2(cross, (rays * after).sum(1)).sum(0) / (2 * np.pi)
    return np.abs(turns) > 0.5


READERS = [by_xor, by_union, by_winding]


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("reader", READERS)
def test_shapes_are_read_back_exactly(name: str, reader) -> None:
    mask = drawn(SHAPES[name])
    np.testing.assert_array_equal(reader(outline(mask), mask.shape), mask)


@pytest.mark.parametrize("reader", READERS)
def test_noise_is_read_back_exactly(reader) -> None:
    rng = np.random.default_rng(0)
    for share in (0.1, 0.5, 0.7, 0.9):
        for _ in range(20):
            shape = tuple(rng.integers(1, 15, 2))
            mask = rng.random(shape) < share
            mask[tuple(rng.integers(0, shape))] = True
            np.testing.assert_array_equal(reader(outline(mask), shape), mask)


def test_one_polygon_for_each_piece_that_hangs_together_by_edges() -> None:
    mask = np.random.default_rng(1).random((40, 30)) < 0.6
    assert len(outline(mask)) == label(mask, connectivity=1).max() > 10


def test_corners_are_few_and_just_inside_the_edges() -> None:
    (square,) = outline(np.ones((3, 2), bool))
    near, across, down = INSET - 0.5, 2.5 - INSET, 1.5 - INSET
    np.testing.assert_allclose(square, [[near, near], [across, near], [across, down], [near, down]])
    (ring,) = outline(drawn(SHAPES["ring"]))
    assert len(ring) == 4 + 4 + 4  # outside, hole, and the two ends of the bridge there and back
    assert all(np.abs(corner - np.round(corner)).max() <= 0.5 - INSET + 1e-12 for corner in ring)


def test_rounded_corners_lie_in_the_mask() -> None:
    mask = np.random.default_rng(2).random((30, 30)) < 0.6
    for polygon in outline(mask):
        x, y = np.round(polygon).astype(int).T
        assert mask[x, y].all()


def test_a_chain_of_a_thousand_holes() -> None:
    mask = np.ones((2001, 3), bool)
    mask[1::2, 1] = False
    (polygon,) = outline(mask)
    np.testing.assert_array_equal(by_xor([polygon], mask.shape), mask)
