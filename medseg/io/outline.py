"""Outlines of a mask: polygons that hold exactly the centres of its voxels."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from medseg.io.picture import Array

# Voxels. Outlines keep this far inside the voxel's edges: so pieces that touch at a corner do not touch each other, and a
# reader that rounds the corners to whole voxels, and counts the line as inside, arrives at the same mask as one that asks
# which centres are inside.
INSET = 0.01
BRIDGE = 0.25  # voxels off the centres of its row, so that no centre lies on a bridge

ALONG = np.array([[1, 0], [0, 1], [-1, 0], [0, -1]])  # the four ways an edge can run; each is a right turn from the one before
INWARD = np.array([[0, 1], [-1, 0], [0, -1], [1, 0]])  # the mask lies to the right of its edges, X to the right and Y down
UP, DOWN = 3, 1  # of ALONG: the left edge of a voxel, and its right edge


def outline(mask: Array) -> list[npt.NDArray[np.float64]]:
    """One closed polygon for each piece of a mask, without straight-on corners.

    A hole is joined to the line around it by a bridge of no width (the keyhole of DICOM PS3.3 C.8.8.6.3), which runs along a row
    through the mask: even-odd, winding and rounding readers, and those that unite or XOR polygons, all see the hole. Pieces
    are connected through edges of voxels, not corners; a piece in a hole is a polygon of its own.

    Args:
        mask: (X, Y) bool, at least one voxel.
    Returns: (corners, 2) each, in voxels: (0, 0) is the centre of the first voxel.
    """
    edges, way, start, following = _trace(mask)
    previous = np.empty_like(following)
    previous[following] = np.arange(len(following))
    corners = start - 0.5 + INSET * (INWARD[way] + INWARD[way[previous]])
    turns = way != way[previous]
    outer, holes = _loops(way, start, following)
    points, chain, kept = corners.tolist(), following.tolist(), turns.tolist()
    for hole in holes:
        _bridge(hole, mask, edges, start, (points, chain, kept))
    return [np.array(_walk(first, points, chain, kept)) for first in outer]


def _trace(mask: Array) -> tuple[Array, Array, Array, Array]:
    """The edges between mask and background, and which edge follows each.

    Returns: (4, X + 1, Y + 1) number of the edge that leaves a corner in a direction, or -1; and by number its direction, the
    corner it leaves, and the edge that it leads to.
    """
    x, y = mask.shape
    outside = ~np.pad(mask, 1)
    there = np.zeros((4, x + 1, y + 1), bool)
    there[0, :-1, :-1] = mask & outside[1:-1, :-2]
    there[1, 1:, :-1] = mask & outside[2:, 1:-1]
    there[2, 1:, 1:] = mask & outside[1:-1, 2:]
    there[3, :-1, 1:] = mask & outside[:-2, 1:-1]
    way, *start = np.nonzero(there)
    edges = np.full(there.shape, -1)
    edges[there] = np.arange(len(way))
    corner = np.column_stack(start)
    right, ahead, left = (edges[(way + turn) % 4, *(corner + ALONG[way]).T] for turn in (1, 0, -1))
    # Where voxels touch at a corner, a right turn stays with the same voxel.
    following = np.where(right >= 0, right, np.where(ahead >= 0, ahead, left))
    return edges, way, corner, following


def _loops(way: Array, start: Array, following: Array) -> tuple[list[int], list[int]]:
    """An edge of each outer loop, and of each hole the leftmost: there a hole has the mask on its left."""
    chain, seen = following.tolist(), bytearray(len(following))
    outer, holes = [], []
    for first in range(len(chain)):
        loop, edge = [], first
        while not seen[edge]:
            seen[edge] = 1
            loop.append(edge)
            edge = chain[edge]
        if not loop:
            continue
        upright = np.array([edge for edge in loop if way[edge] % 2])
        leftmost = int(upright[start[upright, 0].argmin()])
        if way[leftmost] == UP:
            outer.append(loop[0])
        else:
            holes.append(leftmost)
    return outer, holes


def _bridge(hole: int, mask: Array, edges: Array, start: Array, lines: tuple[list[list[float]], list[int], list[bool]]) -> None:
    """Join a hole to the loop that a walk to the left of its leftmost edge arrives at, which reaches further to the left."""
    points, chain, kept = lines
    right, row = (int(i) for i in start[hole])
    background = np.flatnonzero(~mask[:right, row])
    left = int(background[-1]) + 1 if background.size else 0
    target = int(edges[UP, left, row + 1])
    near, far = [left - 0.5 + INSET, row + BRIDGE], [right - 0.5 - INSET, row + BRIDGE]
    there, back = len(chain), len(chain) + 2
    points += [near, far, far, near]
    kept += [True] * 4
    chain += [there + 1, chain[hole], back + 1, chain[target]]
    chain[target], chain[hole] = there, back


def _walk(first: int, points: list[list[float]], chain: list[int], kept: list[bool]) -> list[list[float]]:
    found, edge = [], first
    while True:
        if kept[edge]:
            found.append(points[edge])
        edge = chain[edge]
        if edge == first:
            return found
