"""Grid: orientations, spacing, crops, and what tells two grids apart."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from medseg.core.grid import Grid

ORIENTATIONS = [(axes, signs) for axes in itertools.permutations(range(3)) for signs in itertools.product((1, -1), repeat=3)]
SHAPE = (5, 4, 3)
SPACING = (0.7, 1.3, 2.9)


def oriented(axes: tuple[int, ...], signs: tuple[int, ...], shape: tuple[int, int, int] = SHAPE) -> Grid:
    """A grid whose voxel axis j runs along world axis axes[j], up or down."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for j, (axis, sign) in enumerate(zip(axes, signs, strict=True)):
        affine[axis, j] = sign * SPACING[j]
    affine[:3, 3] = -12.3, 45.6, 1 / 7
    return Grid(shape, affine)


def turned(degrees: float, shape: tuple[int, int, int] = SHAPE) -> Grid:
    """A grid turned about Z."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    affine = np.diag([*SPACING, 1.0])
    affine[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ affine[:3, :3]
    return Grid(shape, affine)


def positions(grid: Grid) -> np.ndarray:
    """World positions of all voxels, (N, 3), sorted."""
    index = np.stack([i.ravel() for i in np.indices(grid.shape)], 1)
    points = index @ grid.affine[:3, :3].T + grid.affine[:3, 3]
    return points[np.lexsort(np.round(points, 6).T)]


@pytest.mark.parametrize(("axes", "signs"), ORIENTATIONS)
def test_canonical_keeps_the_voxels_and_points_to_ras(axes: tuple[int, ...], signs: tuple[int, ...]) -> None:
    grid = oriented(axes, signs)
    canonical = grid.canonical()
    np.testing.assert_allclose(canonical.directions, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(positions(canonical), positions(grid), atol=1e-9)
    assert canonical.canonical() == canonical


@pytest.mark.parametrize("degrees", [10, 44, 46, 100, 200, 300])
def test_canonical_of_an_oblique_grid_is_the_nearest(degrees: float) -> None:
    grid = turned(degrees)
    canonical = grid.canonical()
    np.testing.assert_allclose(positions(canonical), positions(grid), atol=1e-9)
    assert (np.diag(canonical.directions) > 0.7).all()


def test_properties() -> None:
    grid = turned(33)
    np.testing.assert_allclose(grid.spacing, SPACING)
    np.testing.assert_allclose(grid.directions.T @ grid.directions, np.eye(3), atol=1e-12)
    assert np.isclose(grid.voxel_volume, np.prod(SPACING)) and grid.unit == "mm" and not grid.planar
    assert np.isclose(grid.diagonal, np.linalg.norm([4 * 0.7, 3 * 1.3, 2 * 2.9]))
    pixels = Grid.pixels((7, 6))
    assert pixels.shape == (7, 6, 1) and pixels.unit == "px" and pixels.planar and pixels.spacing == (1, 1, 1)
    assert Grid.pixels((7, 6, 5, 1)).shape == (7, 6, 5)


def test_a_grid_cannot_be_changed() -> None:
    affine = np.eye(4)
    grid = Grid(SHAPE, affine)
    affine[0, 0] = 9
    assert grid.spacing == (1, 1, 1)
    with pytest.raises(ValueError, match="read-only"):
        grid.affine[0, 0] = 9


@pytest.mark.parametrize(
    ("shape", "affine"),
    [
        ((5, 4), np.eye(4)),
        ((5, 4, 0), np.eye(4)),
        (SHAPE, np.diag([1, 1, 0, 1])),
        (SHAPE, np.diag([1, np.nan, 1, 1])),
        (SHAPE, np.diag([1, np.inf, 1, 1])),
        (SHAPE, np.eye(3)),
        (SHAPE, np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])),
    ],
)
def test_no_grid_without_a_voxel(shape: tuple[int, ...], affine: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"three positive sizes|singular"):
        Grid(shape, affine)  # type: ignore[arg-type]


@pytest.mark.parametrize("spacing", [(4e-6, 4e-6, 5e-5), (1e-5, 1e-5, 10.0), (1e4, 1e4, 1e4)])
def test_any_scale_is_a_grid(spacing: tuple[float, float, float]) -> None:
    np.testing.assert_allclose(Grid(SHAPE, np.diag([*spacing, 1])).spacing, spacing)


def test_cropped_with_a_negative_start() -> None:
    grid = turned(33)
    crop = grid.cropped((1, -2, 0), (2, 9, 3))
    assert crop.shape == (2, 9, 3)
    np.testing.assert_allclose(crop.affine @ [0, 2, 0, 1], grid.affine @ [1, 0, 0, 1])
    assert crop.cropped((-1, 2, 0), SHAPE) == grid


def test_respaced_shares_the_centre_and_the_field_of_view() -> None:
    grid = turned(33, (30, 41, 7))
    other = grid.respaced((1.0, 1.0, 1.0))
    assert other.shape == (21, 53, 20)
    np.testing.assert_allclose(other.spacing, 1)
    middle = [
        grid.affine @ [*(np.array(g.shape) - 1) / 2, 1] if g is grid else g.affine @ [*(np.array(g.shape) - 1) / 2, 1]
        for g in (grid, other)
    ]
    np.testing.assert_allclose(*middle)
    assert grid.respaced((100.0, 100.0, 100.0)).shape == (1, 1, 1)
    assert grid.respaced(grid.spacing) == grid


def test_difference_names_what_differs() -> None:
    grid = turned(0)
    moved, wide = grid.affine.copy(), grid.affine.copy()
    moved[1, 3] += 1.5
    wide[:3, 0] *= 1.01
    for other, words in (
        (Grid((5, 4, 2), grid.affine), "shape 5 x 4 x 3 against 5 x 4 x 2 voxels"),
        (Grid(SHAPE, moved), "origin differs by 0 x 1.5 x 0 mm"),
        (Grid(SHAPE, wide), "spacing 0.7 x 1.3 x 2.9 against 0.707 x 1.3 x 2.9 mm"),
        (turned(5), "direction differs by 5.0 degrees"),
        (oriented((0, 1, 2), (-1, 1, 1)), "direction differs by 180.0 degrees"),
        (Grid(SHAPE, grid.affine, physical=False), "physical size"),
    ):
        assert words in str(grid.difference(other)) and words.split()[0] in str(other.difference(grid)) and grid != other


def test_header_rounding_is_no_difference() -> None:
    grid = oriented((2, 0, 1), (1, -1, 1))
    assert grid == Grid(SHAPE, grid.affine.astype(np.float32)) and grid.difference(grid) is None
    assert grid != "a grid"


def test_a_slice_stays_a_slice_on_another_spacing():
    grid = Grid((64, 48, 1), np.diag([0.5, 0.5, 5.0, 1.0]))
    assert grid.respaced((1.0, 1.0, 0.2)) == Grid((32, 24, 1), grid.respaced((1.0, 1.0, 5.0)).affine)
