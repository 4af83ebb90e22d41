"""Centrelines and Betti numbers: shapes with known topology, graphs counted one by one, and scikit-image."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import ndimage

from medseg.metrics.topology import (
    Betti,
    betti_errors,
    betti_numbers,
    centreline_overlap,
    euler_characteristic,
    find_centreline,
)


def _tube(shape: tuple[int, ...] = (9, 9, 30)) -> np.ndarray:
    """A straight vessel 3 voxels thick along the last axis."""
    tube = np.zeros(shape, bool)
    tube[(*(slice(3, 6),) * (len(shape) - 1), slice(2, -2))] = True
    return tube


def _blobs(shape: tuple[int, ...], seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return ndimage.gaussian_filter(generator.random(shape), 0.7) > generator.uniform(0.4, 0.6)


@pytest.mark.parametrize("shape", [(9, 30), (9, 9, 30)])
def test_a_gap_costs_sensitivity_and_a_false_branch_precision(shape):
    tube = _tube(shape)
    length = int(find_centreline(tube).sum())
    assert centreline_overlap(tube, tube).cldice == 1
    cut = tube.copy()
    cut[..., 12:17] = False
    overlap = centreline_overlap(tube, cut)
    assert overlap.precision == 1
    assert overlap.sensitivity == pytest.approx(1 - 5 / length)
    assert overlap.cldice == pytest.approx(2 * overlap.sensitivity / (1 + overlap.sensitivity))
    back = centreline_overlap(cut, tube)
    assert (back.precision, back.sensitivity) == (overlap.sensitivity, overlap.precision)


def test_thickness_costs_nothing_where_the_centrelines_agree():
    tube = _tube()
    assert centreline_overlap(tube, ndimage.binary_dilation(tube, np.ones((3, 3, 1)))).cldice == 1


def test_is_the_formula_on_the_skeletons_of_scikit_image():
    morphology = pytest.importorskip("skimage.morphology")
    for seed, shape in enumerate([(40, 40), (20, 20, 20)]):
        reference, prediction = _blobs(shape, seed), _blobs(shape, seed + 7)
        ours = centreline_overlap(reference, prediction)
        skeletons = [morphology.skeletonize(mask).astype(bool) for mask in (reference, prediction)]
        sensitivity, precision = (
            (skeletons[0] & prediction).sum() / skeletons[0].sum(),
            (skeletons[1] & reference).sum() / skeletons[1].sum(),
        )
        assert ours.cldice == pytest.approx(2 * precision * sensitivity / (precision + sensitivity))


@pytest.mark.parametrize("shape", [(2, 2), (1, 1), (2, 2, 2), (4, 4, 4), (1, 5, 5), (6, 6, 1)])
def test_every_piece_has_a_centreline_inside_it(shape):
    # Lee's method erodes a cube with an even side away.
    mask = np.zeros([n + 12 for n in shape], bool)
    mask[tuple(slice(n) for n in shape)] = True
    mask |= np.flip(mask)
    centreline = find_centreline(mask)
    assert not np.any(centreline & ~mask)
    assert betti_numbers(centreline).b0 == 2
    assert centreline_overlap(mask, mask).cldice == 1


def test_cropping_changes_no_centreline():
    for seed in range(20):
        mask, other = _blobs((10, 10, 10), seed), _blobs((10, 10, 10), seed + 50)
        assert centreline_overlap(np.pad(mask, 4), np.pad(other, 4)) == centreline_overlap(mask, other)


def test_empty_masks():
    empty, tube = np.zeros((9, 9, 30), bool), _tube()
    assert math.isnan(centreline_overlap(empty, empty).cldice)
    for overlap in (centreline_overlap(empty, tube), centreline_overlap(tube, empty)):
        assert overlap.cldice == 0
    assert math.isnan(centreline_overlap(tube, empty).precision) and centreline_overlap(tube, empty).sensitivity == 0
    assert centreline_overlap(tube, np.roll(tube, 4, axis=0)).cldice == 0  # both there, nothing in common
    assert betti_errors(empty, empty) == Betti(0, 0, 0)
    assert betti_errors(tube, empty) == betti_errors(empty, tube) == Betti(1, 0, 0)


def _block(*hollow: tuple[slice, slice, slice]) -> np.ndarray:
    block = np.zeros((12, 12, 12), bool)
    block[1:11, 1:11, 1:11] = True
    for place in hollow:
        block[place] = False
    return block


def _rod() -> np.ndarray:
    rod = np.zeros((12, 12, 12), bool)
    rod[1:11, 5, 5] = True
    return rod


ALL = slice(None)


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        (_block(), Betti(1, 0, 0)),
        (_block((slice(4, 7),) * 3), Betti(1, 0, 1)),  # a hollow ball
        (_block((slice(4, 7), slice(4, 7), ALL)), Betti(1, 1, 0)),  # a ring
        (_block((slice(2, 4), slice(2, 4), ALL), (slice(7, 9), slice(7, 9), ALL)), Betti(1, 2, 0)),
        (_block((slice(5, 6), ALL, ALL)), Betti(2, 0, 0)),
        (_block((slice(3, 9),) * 3) | _rod(), Betti(1, 1, 1)),  # a rod through the cavity makes a ring of it
        (np.zeros((4, 4, 4), bool), Betti(0, 0, 0)),
        (np.ones((4, 4, 4), bool), Betti(1, 0, 0)),
        (np.eye(2, dtype=bool)[..., None], Betti(1, 0, 0)),  # joined at an edge
        (np.eye(5, dtype=bool), Betti(1, 0, 0)),
        (np.pad(np.zeros((2, 2), bool), 1, constant_values=True), Betti(1, 1, 0)),
        (np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]], bool), Betti(1, 1, 0)),  # corners close a ring too
    ],
)
def test_known_shapes(mask, expected):
    assert betti_numbers(mask) == expected


@pytest.mark.parametrize("ndim", [2, 3])
def test_euler_characteristic_agrees_with_scikit_image(ndim):
    measure = pytest.importorskip("skimage.measure")
    for seed in range(20):
        mask = np.random.default_rng(seed).random((7,) * ndim) < seed / 20
        assert euler_characteristic(mask) == measure.euler_number(mask, connectivity=ndim)


def test_counting_in_pieces_changes_nothing(monkeypatch):
    mask = _blobs((9, 10, 11), 1)
    whole = betti_numbers(mask)
    monkeypatch.setattr("medseg.metrics.topology.CHUNK_VOXELS", 7)
    assert betti_numbers(mask) == whole


def _rank(matrix: np.ndarray) -> int:
    """Rank over the field of two elements, by elimination; each row is a set of columns."""
    pivots: dict[int, int] = {}
    for row in matrix:
        value = int("".join(map(str, row.astype(int))), 2)
        while value and value.bit_length() in pivots:
            value ^= pivots[value.bit_length()]
        if value:
            pivots[value.bit_length()] = value
    return len(pivots)


def _betti_by_homology(mask: np.ndarray) -> Betti:
    """Betti numbers from the boundary matrices of the cubical complex: cells at even and odd places of a doubled lattice."""
    cells: dict[int, set[tuple[int, ...]]] = {d: set() for d in range(4)}
    for voxel in np.argwhere(mask):
        for step in itertools.product((-1, 0, 1), repeat=mask.ndim):
            cells[step.count(0)].add(tuple(2 * int(v) + s for v, s in zip(voxel, step, strict=True)))
    ranks = [0] * 5
    for d in range(1, mask.ndim + 1):
        places = {cell: i for i, cell in enumerate(sorted(cells[d - 1]))}
        matrix = np.zeros((len(cells[d]), len(places)), bool)
        for row, cell in enumerate(sorted(cells[d])):
            for axis in (a for a in range(mask.ndim) if cell[a] % 2 == 0):
                for side in (-1, 1):
                    matrix[row, places[(*cell[:axis], cell[axis] + side, *cell[axis + 1 :])]] = True
        ranks[d] = _rank(matrix)
    return Betti(*(len(cells[d]) - ranks[d] - ranks[d + 1] for d in range(3)))


@pytest.mark.parametrize("shape", [(5, 6), (4, 4, 4)])
def test_agrees_with_homology_by_elimination(shape):
    seen = set()
    for seed in range(12):
        mask = np.random.default_rng(seed).random(shape) < 0.3 + seed / 20
        seen.add(betti_numbers(mask))
        assert betti_numbers(mask) == _betti_by_homology(mask)
    assert len(seen) > 4


def test_errors_are_differences_of_each_number():
    ring, hollow = _block((slice(4, 7), slice(4, 7), ALL)), _block((slice(4, 7),) * 3)
    assert betti_errors(ring, hollow) == betti_errors(hollow, ring) == Betti(0, 1, 1)
