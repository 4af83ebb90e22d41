"""resample: exact copies, known fields, the half-voxel rule, and the way back."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import ndimage

from medseg.core.grid import Grid
from medseg.core.resample import resample

ORIENTATIONS = [(axes, signs) for axes in itertools.permutations(range(3)) for signs in itertools.product((1, -1), repeat=3)]
SHAPE = (6, 5, 4)
SPACING = (0.7, 1.3, 2.9)


def box(shape: tuple[int, ...] = SHAPE, spacing: tuple[float, ...] = SPACING, origin: tuple[float, ...] = (-3, 7, 1 / 7)) -> Grid:
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = origin
    return Grid(shape, affine)  # type: ignore[arg-type]


def turned(grid: Grid, degrees: float, axis: int = 2) -> Grid:
    """`grid` turned about its centre."""
    i, j = [k for k in range(3) if k != axis]
    turn = np.eye(3)
    turn[i, i] = turn[j, j] = np.cos(np.radians(degrees))
    turn[i, j], turn[j, i] = -np.sin(np.radians(degrees)), np.sin(np.radians(degrees))
    centre = grid.affine @ [*(np.array(grid.shape) - 1) / 2, 1]
    affine = grid.affine.copy()
    affine[:3, :3] = turn @ affine[:3, :3]
    affine[:3, 3] = centre[:3] + turn @ (grid.affine[:3, 3] - centre[:3])
    return Grid(grid.shape, affine)


def counting(shape: tuple[int, ...], dtype: type = np.int16) -> np.ndarray:
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


def world(grid: Grid) -> np.ndarray:
    """(3, X, Y, Z) positions of the voxels."""
    return np.einsum("ij,jxyz->ixyz", grid.affine[:3, :3], np.indices(grid.shape)) + grid.affine[:3, 3].reshape(3, 1, 1, 1)


def linear_field(grid: Grid) -> np.ndarray:
    x, y, z = world(grid)
    return (2 * x - 3 * y + 0.5 * z + 4).astype(np.float32)


def inside(grid: Grid, other: Grid) -> np.ndarray:
    """Voxels of `other` between the outermost voxel centres of `grid`."""
    index = np.einsum("ij,jxyz->ixyz", np.linalg.inv(grid.affine)[:3, :3], world(other))
    index += np.linalg.inv(grid.affine)[:3, 3].reshape(3, 1, 1, 1)
    return ((index > -1e-6) & (index < np.array(grid.shape).reshape(3, 1, 1, 1) - 1 + 1e-6)).all(0)


@pytest.mark.parametrize("order", [0, 1, 3])
@pytest.mark.parametrize(("axes", "signs"), ORIENTATIONS)
def test_every_orientation_round_trips_exactly(axes: tuple[int, ...], signs: tuple[int, ...], order: int) -> None:
    affine = np.eye(4)
    affine[:3, :3] = 0
    for j, (axis, sign) in enumerate(zip(axes, signs, strict=True)):
        affine[axis, j] = sign * SPACING[j]
    affine[:3, 3] = -12.3, 45.6, 1 / 7
    grid = Grid(SHAPE, affine)
    array = counting((2, *SHAPE))
    there = resample(array, grid, grid.canonical(), order)
    # By numpy alone: bring the axes into world order, then flip those that run down.
    order_of_axes = np.argsort(axes)
    expected = array.transpose(0, *(order_of_axes + 1))
    expected = expected[(slice(None), *(slice(None, None, signs[a]) for a in order_of_axes))]
    assert there.dtype == array.dtype and np.array_equal(there, expected)
    back = resample(there, grid.canonical(), grid, order)
    assert np.array_equal(back, array) and back.dtype == array.dtype


def test_oblique_grids_flip_exactly_too() -> None:
    grid = turned(turned(box(), 25), 40, axis=0)
    array = counting(SHAPE)
    there = resample(array, grid, grid.canonical(), 3)
    assert there.dtype == array.dtype and np.array_equal(resample(there, grid.canonical(), grid, 3), array)
    affine = grid.affine @ np.diag([-1.0, 1, 1, 1])
    affine[:3, 3] = (grid.affine @ [SHAPE[0] - 1, 0, 0, 1])[:3]
    assert np.array_equal(resample(array, grid, Grid(SHAPE, affine), 1), array[::-1])


@pytest.mark.parametrize("order", [0, 1, 3])
def test_crop_and_padding_are_copies(order: int) -> None:
    grid = turned(box(), 25)
    array = counting(SHAPE)
    crop = resample(array, grid, grid.cropped((1, 2, 0), (4, 2, 3)), order)
    assert np.array_equal(crop, array[1:5, 2:4, :3]) and crop.dtype == array.dtype
    padded = resample(array, grid, grid.cropped((-2, -1, 1), (11, 6, 7)), order, fill=-9)
    expected = np.pad(array, ((2, 3), (1, 0), (0, 4)), constant_values=-9)[:, :, 1:]
    assert np.array_equal(padded, expected)
    assert (resample(array, grid, grid.cropped((50, 0, 0), SHAPE), order, fill=-9) == -9).all()


@pytest.mark.parametrize("order", [1, 3])
@pytest.mark.parametrize("target", ["finer", "coarser", "shifted", "turned about z", "turned twice"])
def test_a_linear_field_is_exact(order: int, target: str) -> None:
    grid = box((24, 18, 14))
    other = {
        "finer": grid.respaced((0.4, 0.5, 1.1)),
        "coarser": grid.respaced((1.5, 2.0, 3.3)),
        "shifted": Grid(grid.shape, grid.affine + np.array([[0, 0, 0, 0.3], [0, 0, 0, -0.6], [0, 0, 0, 1.0], [0, 0, 0, 0]])),
        "turned about z": turned(grid, 20),
        "turned twice": turned(turned(grid, 20), -15, axis=0),
    }[target]
    result = resample(linear_field(grid), grid, other, order)
    # A spline bends where the mirrored edge does, so cubic is compared some voxels inside.
    margin = 0 if order == 1 else 5
    core = inside(grid.cropped((margin,) * 3, tuple(n - 2 * margin for n in grid.shape)), other)
    assert result.dtype == np.float32 and core.sum() > 20
    np.testing.assert_allclose(result[core], linear_field(other)[core], atol=2e-4 if order == 1 else 0.05)


def test_cubic_agrees_with_scipy_and_beats_linear() -> None:
    grid = box((40, 30, 20), (1, 1, 1), (0, 0, 0))
    x, y, z = world(grid)
    smooth = (np.sin(x / 3) * np.cos(y / 4) + z / 10).astype(np.float32)
    other = Grid((79, 59, 39), np.diag([0.5, 0.5, 0.5, 1]))
    u, v, w = world(other)
    truth = np.sin(u / 3) * np.cos(v / 4) + w / 10
    core = (slice(16, -16),) * 3
    cubic, linear = (resample(smooth, grid, other, order) for order in (3, 1))
    oracle = ndimage.map_coordinates(smooth, np.indices(other.shape) / 2, order=3, mode="mirror")
    np.testing.assert_allclose(cubic, oracle, atol=1e-4)
    assert np.abs(cubic - truth)[core].max() < 0.1 * np.abs(linear - truth)[core].max()


def test_the_three_ways_agree_with_scipy_on_an_oblique_grid() -> None:
    grid = box((20, 20, 20), (1, 1, 1), (0, 0, 0))
    noise = np.random.default_rng(0).normal(size=grid.shape).astype(np.float32)
    other = turned(grid, 30)
    coordinates = world(other)
    core = inside(grid, other)
    for order in (0, 1):
        oracle = ndimage.map_coordinates(noise, coordinates, order=order, mode="nearest")
        np.testing.assert_allclose(resample(noise, grid, other, order)[core], oracle[core], atol=1e-5)


@pytest.mark.parametrize("spacing", [(0.5, 0.5, 0.5), (0.35, 1.3, 1.45)])
def test_labels_survive_the_way_to_a_finer_grid_and_back(spacing: tuple[float, float, float]) -> None:
    grid = box((12, 11, 9))
    labels = np.random.default_rng(0).integers(0, 4, grid.shape).astype(np.uint8)
    finer = grid.respaced(spacing)
    there = resample(labels, grid, finer, 0)
    assert there.dtype == np.uint8 and set(np.unique(there)) <= set(range(4))
    assert np.array_equal(resample(there, finer, grid, 0), labels)


def test_a_sphere_keeps_its_volume_on_any_grid() -> None:
    grid = box((40, 40, 40), (1, 1, 1), (0, 0, 0))
    sphere = (np.linalg.norm(world(grid) - np.array([19.5] * 3).reshape(3, 1, 1, 1), axis=0) < 12).astype(np.uint8)
    volume = sphere.sum() * grid.voxel_volume
    for other in (grid.respaced((0.8, 1.7, 1.1)), turned(grid, 30), turned(turned(grid, 30), 50, axis=1)):
        again = resample(sphere, grid, other, 0).sum() * other.voxel_volume
        assert abs(again / volume - 1) < 0.02
        back = resample(resample(sphere, grid, other, 0), other, grid, 0)
        assert 2 * (back & sphere).sum() / (back.sum() + sphere.sum()) > 0.95


@pytest.mark.parametrize("degrees", [0.0, 30.0])
def test_the_half_voxel_rule(degrees: float) -> None:
    """A voxel reaches half its size beyond its centre: there it has its own value, and beyond it `fill`."""
    grid = turned(box((8, 8, 8), (2, 2, 2), (0, 0, 0)), degrees)
    array = np.ones(grid.shape, np.float32)
    fine = np.diag([0.25, 0.25, 0.25, 1.0])
    fine[:3, 3] = -1.125
    # From a world-aligned finer grid in the frame of `grid`, so that its edge lies between two samples.
    other = Grid((72, 72, 72), grid.affine @ fine)
    for order in (0, 1, 3):
        result = resample(array, grid, other, order, fill=-5)
        index = 0.25 * np.arange(72) - 1.125
        within = (index >= -0.5) & (index <= 7.5)
        expected = within[:, None, None] & within[None, :, None] & within[None, None, :]
        np.testing.assert_allclose(result, np.where(expected, 1, -5), atol=1e-5)


def test_half_way_positions_round_up_and_edges_count_as_inside() -> None:
    grid = Grid((4, 1, 1), np.eye(4))
    array = counting((4, 1, 1))
    half = np.eye(4)
    half[0, 3] = -0.5
    # Positions -0.5, 0.5, 1.5, 2.5 and 3.5: the first is still inside, and so is the last.
    assert resample(array, grid, Grid((5, 1, 1), half), 0, fill=9).ravel().tolist() == [0, 1, 2, 3, 3]


@pytest.mark.parametrize("noise", [-1e-6, 1e-6])
def test_the_last_digits_of_a_header_do_not_decide_where_half_way_positions_go(noise: float) -> None:
    grid = box()
    shifted = Grid(SHAPE, grid.affine @ np.array([[1, 0, 0, 0.5 + noise], [0, 1, 0, 0.5 - noise], [0, 0, 1, 0], [0, 0, 0, 1]]))
    picture = counting(SHAPE)[None]
    np.testing.assert_array_equal(resample(picture, grid, shifted, order=0)[0, :-1, :-1], picture[0, 1:, 1:])


def test_a_planar_picture_stays_planar() -> None:
    grid = Grid.pixels((30, 20))
    array = np.random.default_rng(0).normal(size=(3, 30, 20, 1)).astype(np.float32)
    other = Grid((15, 10, 1), np.diag([2.0, 2.0, 1.0, 1.0]), physical=False)
    for order in (0, 1, 3):
        assert np.array_equal(resample(array, grid, other, order), array[:, ::2, ::2])
    turned_grid = turned(grid, 20)
    assert resample(array, grid, Grid(turned_grid.shape, turned_grid.affine, False), 1).shape == array.shape


def test_tiny_axes_do_not_fail() -> None:
    for shape in itertools.product((1, 2, 3), repeat=3):
        grid = Grid(shape, np.eye(4))
        other = grid.respaced((0.4, 0.4, 0.4))
        for order in (0, 1, 3):
            np.testing.assert_allclose(resample(np.full(shape, 3.0, np.float32), grid, other, order), 3, atol=1e-5)


def test_channels_are_independent_and_the_input_is_untouched() -> None:
    grid = box()
    array = np.random.default_rng(0).normal(size=(2, *SHAPE)).astype(np.float32)
    before = array.copy()
    array.setflags(write=False)
    for other in (grid, grid.canonical(), grid.cropped((-1, -1, -1), (3, 9, 4)), grid.respaced((1, 1, 1)), turned(grid, 10)):
        both = resample(array, grid, other, 1, fill=5)
        assert np.array_equal(both, np.stack([resample(channel, grid, other, 1, fill=5) for channel in array]))
    assert np.array_equal(array, before)
    with pytest.raises(ValueError, match="does not lie on a grid"):
        resample(array, box((1, 2, 3)), grid, 0)


def test_orders_are_taken_axis_by_axis():
    """An edge between thick slices rings under a cubic and does not where that axis is linear."""
    grid = box((12, 12, 8), (1, 1, 4))
    finer = grid.respaced((0.7, 0.7, 1.3))
    edge = np.broadcast_to((np.arange(8) >= 4).astype(np.float32), grid.shape).copy()
    assert resample(edge, grid, finer, (3, 3, 3)).max() > 1.05
    mixed = resample(edge, grid, finer, (3, 3, 1))
    assert mixed.min() > -1e-5 and mixed.max() < 1 + 1e-5
    smooth = np.random.default_rng(0).normal(size=grid.shape).astype(np.float32)
    between = grid.respaced((0.7, 0.7, 4))
    np.testing.assert_allclose(resample(smooth, grid, between, (3, 3, 1)), resample(smooth, grid, between, 3), atol=1e-5)
    assert not np.array_equal(resample(smooth, grid, finer, (3, 3, 1)), resample(smooth, grid, finer, (1, 1, 3)))


def test_orders_follow_the_axes_of_the_result():
    grid = box((8, 12, 12), (4, 1, 1))  # thick along the first axis; the result has that axis last
    to = grid.affine.copy()
    to[:3, :3] = grid.affine[:3, [1, 2, 0]]
    turned_grid = Grid((12, 12, 8), to).respaced((1, 1, 1.3))
    edge = np.broadcast_to((np.arange(8) >= 4).astype(np.float32)[:, None, None], grid.shape).copy()
    assert resample(edge, grid, turned_grid, (3, 3, 1)).max() < 1 + 1e-5
    assert resample(edge, grid, turned_grid, (1, 3, 3)).max() > 1.05


@pytest.mark.parametrize(("axes", "signs"), ORIENTATIONS[::5])
@pytest.mark.parametrize("spacing", [SPACING, (1.5, 1.5, 2.9), (1.0, 2.0, 4.0), (0.7, 1.3, 0.9), (0.3, 0.5, 0.9)])
@pytest.mark.parametrize("order", [0, 1, 3])
def test_an_array_that_is_used_up_gives_the_same(
    axes: tuple[int, ...], signs: tuple[int, ...], spacing: tuple[float, float, float], order: int
) -> None:
    picture = np.random.default_rng(0).normal(size=(2, *SHAPE)).astype(np.float32)
    grid = box()
    flip = np.zeros((4, 4))
    flip[3, 3] = 1
    for column, (axis, sign) in enumerate(zip(axes, signs, strict=True)):
        flip[axis, column] = sign
        flip[axis, 3] = 0 if sign > 0 else SHAPE[axis] - 1
    target = Grid(tuple(SHAPE[a] for a in axes), grid.affine @ flip).respaced(spacing)
    for goal in (target, target.cropped((1, 0, 1), (2, 2, 2))):
        expected = resample(picture, grid, goal, order)
        np.testing.assert_array_equal(resample(picture.copy(), grid, goal, order, use_up=True), expected)


def test_an_array_that_is_used_up_leaves_no_more_memory_than_the_result_needs() -> None:
    picture = np.zeros((1, 40, 40, 40), np.float32)
    grid = box((40, 40, 40), (1, 1, 1))
    result = resample(picture, grid, grid.respaced((2, 2, 2)), 3, use_up=True)
    assert not np.shares_memory(result, picture) and (result if result.base is None else result.base).size == result.size
