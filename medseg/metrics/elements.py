"""Sizes of the surface elements of a binary mask: marching squares and marching cubes, derived from their definition.

An element lies between 2 x 2 (or 2 x 2 x 2) neighbouring voxels of which some are inside. Its contour (or surface) runs
through the midpoints of the edges between an inside and an outside voxel (Lorensen and Cline 1987). Where a face is
ambiguous, with two inside voxels at opposite corners, the corners of which there are fewer in the element are kept apart,
so a mask and its complement have the same surface. A polygon that is not flat is cut into triangles in the way that gives
the largest area. With these two rules the areas equal the table of DeepMind's surface-distance for every neighbourhood.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Point = tuple[float, ...]
Triangle = tuple[Point, Point, Point]

RING = [(0, 0), (0, 1), (1, 1), (1, 0)]  # the corners of a square, in the order of its edge


def neighbourhood_codes(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    """Which of the voxels around each voxel corner are inside, as the bits of a number.

    Args:
        mask: (X, Y) or (X, Y, Z) bool; what lies beyond its border is outside.
    Returns: uint8, one longer along each axis; 0 is all outside, 15 (2D) or 255 (3D) all inside.
    """
    codes = np.pad(mask, 1).view(np.uint8)
    for axis in reversed(range(mask.ndim)):
        # Each voxel and the next along the axis become one number, which then stands for the corner between them.
        ahead = codes[(slice(None),) * axis + (slice(1, None),)] << 2 ** (mask.ndim - 1 - axis)
        ahead |= codes[(slice(None),) * axis + (slice(-1),)]
        codes = ahead
    return codes


@lru_cache
def element_sizes(spacing: tuple[float, ...]) -> npt.NDArray[np.float64]:
    """Contour length (2D) or surface area (3D) of the element of each neighbourhood code.

    Args:
        spacing: voxel size along each of the 2 or 3 axes.
    Returns: (16,) or (256,), in the unit of `spacing` (squared in 3D).
    """
    if len(spacing) == 2:
        return np.asarray([_contour_length(code, spacing) for code in range(16)])
    x, y, z = spacing
    # An area vector's component along an axis is the area seen along it: it scales with the other two spacings.
    return np.asarray([np.linalg.norm(v * (y * z, x * z, x * y), axis=1).sum() for v in _area_vectors()])


def corners(ndim: int) -> list[tuple[int, ...]]:
    """The corners of an element, in the order of the bits of its code."""
    return list(itertools.product((0, 1), repeat=ndim))


def _contour_length(code: int, spacing: tuple[float, ...]) -> float:
    inside = _inside(code, 2)
    segments = _segments(RING, inside)
    return float(sum(np.linalg.norm((np.subtract(a, b)) * spacing) for a, b in segments))


@lru_cache
def _area_vectors() -> list[Array]:
    """For each code, the (n, 3) area vectors of its triangles in an element of unit size."""
    vectors = []
    for code in range(256):
        triangles = [t for loop in _loops(_cube_segments(_inside(code, 3))) for t in _triangles(loop)]
        vectors.append(np.asarray([_area_vector(t) for t in triangles]).reshape(-1, 3))
    return vectors


def _inside(code: int, ndim: int) -> set[tuple[int, ...]]:
    """The inside corners, or the outside ones where those are fewer: both have the same surface."""
    places = corners(ndim)
    inside = {corner for bit, corner in enumerate(places) if code >> bit & 1}
    return inside if 2 * len(inside) <= len(places) else set(places) - inside


def _cube_segments(inside: set[tuple[int, ...]]) -> list[tuple[Point, Point]]:
    """The contour on each of the cube's six faces."""
    segments = []
    for axis, side in itertools.product(range(3), (0, 1)):
        segments += _segments([(*c[:axis], side, *c[axis:]) for c in RING], inside)
    return segments


def _segments(ring: list[Any], inside: set[tuple[int, ...]]) -> list[tuple[Point, Point]]:
    """The contour in a face whose corners are `ring`: pairs of edge midpoints, each run of inside corners cut off."""
    after = [*ring[1:], ring[0]]
    crossings = [(c in inside, _midpoint(c, d)) for c, d in zip(ring, after, strict=True) if (c in inside) != (d in inside)]
    if crossings and crossings[0][0]:
        crossings = crossings[1:] + crossings[:1]  # begin where the ring enters the inside
    points = [point for _, point in crossings]
    return list(zip(points[::2], points[1::2], strict=True))


def _midpoint(a: Point, b: Point) -> Point:
    return tuple((p + q) / 2 for p, q in zip(a, b, strict=True))


def _loops(segments: list[tuple[Point, Point]]) -> list[list[Point]]:
    """The closed polygons that the segments of all faces make; each midpoint joins two faces."""
    neighbours: dict[Point, list[Point]] = defaultdict(list)
    for a, b in segments:
        neighbours[a].append(b)
        neighbours[b].append(a)
    loops = []
    while neighbours:
        loop = [next(iter(neighbours))]
        while following := [p for p in neighbours.pop(loop[-1]) if p in neighbours]:
            loop.append(following[0])
        loops.append(loop)
    return loops


def _triangles(loop: list[Point]) -> list[Triangle]:
    """The triangulation of a polygon with the largest area (dynamic programming over its diagonals)."""
    best: dict[tuple[int, int], tuple[float, list[Triangle]]] = {(i, i + 1): (0.0, []) for i in range(len(loop))}
    for length in range(2, len(loop)):
        for i in range(len(loop) - length):
            j = i + length
            options = []
            for k in range(i + 1, j):
                triangle = (loop[i], loop[k], loop[j])
                area = float(np.linalg.norm(_area_vector(triangle)))
                options.append((best[i, k][0] + best[k, j][0] + area, [*best[i, k][1], *best[k, j][1], triangle]))
            best[i, j] = max(options, key=lambda option: option[0])
    return best[0, len(loop) - 1][1]


def _area_vector(triangle: Triangle) -> Array:
    a, b, c = (np.asarray(p) for p in triangle)
    return np.cross(b - a, c - a) / 2
