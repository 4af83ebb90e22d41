"""Same picture, another grid: the one function that crops, pads, reorients and respaces, there and back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from medseg.core.grid import Grid
from medseg.core.limits import in_threads

Array = npt.NDArray[Any]
INTEGER_TOLERANCE = 1e-4  # of a voxel: below it a mapping is a copy, not an interpolation
MOST_VOXELS = 2**18  # that are interpolated together: what a processor keeps at hand


def resample(
    array: Array, from_grid: Grid, to_grid: Grid, order: int | Sequence[int], fill: float = 0, use_up: bool = False
) -> Array:
    """The picture `array` on another grid.

    An exact copy of voxels where only flips, axis orders, crops or padding are needed; one axis at a time where the axes
    stay parallel; general interpolation otherwise. Voxels more than half a voxel outside the picture get `fill`.

    Args:
        array: (X, Y, Z) or (C, X, Y, Z) on `from_grid`.
        order: 0 nearest (labels), 1 linear, 3 cubic spline; one for all axes, or one for each axis of `to_grid` (where the
            axes do not stay parallel, the lowest of them holds).
        use_up: the array may be overwritten with what is made on the way.
    Returns: array on `to_grid`; the dtype is kept for order 0 and copies, else float32.
    """
    if array.ndim == 3:
        return resample(array[None], from_grid, to_grid, order, fill, use_up)[0]
    if array.shape[1:] != from_grid.shape:
        raise ValueError(f"array {array.shape} does not lie on a grid of {from_grid.shape}")
    mapping = np.linalg.solve(from_grid.affine, to_grid.affine)  # index on to_grid -> index on from_grid
    axes = _parallel_axes(mapping)
    orders = [order] * 3 if isinstance(order, int) else list(order)
    if axes is None:
        return _general(array, mapping, to_grid.shape, min(orders), fill)
    # Axis j of the result runs along axis axes[j] of the input.
    turned = array.transpose(0, *(a + 1 for a in axes))
    positions = [mapping[a, j] * np.arange(n) + mapping[a, 3] for j, (a, n) in enumerate(zip(axes, to_grid.shape, strict=True))]
    if all(np.abs(p - np.round(p)).max() < INTEGER_TOLERANCE for p in positions):
        orders = [0, 0, 0]
    if any(orders):
        turned = turned.astype(np.float32, copy=False)
    room = array.reshape(-1) if use_up and array.dtype == np.float32 and array.flags.c_contiguous else np.empty(0, np.float32)
    inside = []
    for axis, (position, along) in enumerate(zip(positions, orders, strict=True), start=1):
        size = turned.shape[axis]
        inside.append((position >= -0.5 - INTEGER_TOLERANCE) & (position <= size - 0.5 + INTEGER_TOLERANCE))
        turned = _along_axis(turned, np.clip(position, 0, size - 1), axis, along, room)
    lent = np.may_share_memory(turned, room) and turned.size < room.size  # more memory than it needs
    if all(mask.all() for mask in inside) and not lent:
        return np.ascontiguousarray(turned)
    result = np.array(turned, order="C")  # never the caller's own voxels
    for axis, mask in enumerate(inside, start=1):
        if not mask.all():
            result[(slice(None),) * axis + (~mask,)] = fill
    return result


def axes_between(from_grid: Grid, to_grid: Grid) -> tuple[int, int, int] | None:
    """The axis of `from_grid` under each axis of `to_grid`, or None where the axes are not parallel."""
    return _parallel_axes(np.linalg.solve(from_grid.affine, to_grid.affine))


def _parallel_axes(mapping: Array) -> tuple[int, int, int] | None:
    """The input axis under each output axis, or None where the axes are not parallel."""
    linear = np.abs(mapping[:3, :3])
    axes = tuple(int(a) for a in linear.argmax(0))
    remainder = linear.copy()
    remainder[axes, range(3)] = 0
    # An off-axis term matters once it moves a voxel noticeably across a picture of a thousand voxels.
    if len(set(axes)) == 3 and remainder.max() < 1e-5 * linear.max():
        return axes  # type: ignore[return-value]
    return None


def _along_axis(array: Array, position: Array, axis: int, order: int, room: Array) -> Array:
    """The array at other positions along one axis; a view where they are a plain part of it.

    Args:
        room: (N,) float32 that the result is put into where it fits and the array does not lie there.
    """
    size = array.shape[axis]
    if order == 0 or size == 1:
        # Half-way positions round up, on every platform and whatever the last digits of a header's float32 are.
        index = np.clip(np.floor(position + 0.5 + INTEGER_TOLERANCE).astype(int), 0, size - 1)
        return array[(slice(None),) * axis + (_as_slice(index),)]
    index, weights = _taps(position, size, order)
    result_shape = (*array.shape[:axis], len(position), *array.shape[axis + 1 :])
    fits = math.prod(result_shape) <= room.size and not np.may_share_memory(array, room)
    result = room[: math.prod(result_shape)].reshape(result_shape) if fits else np.empty(result_shape, np.float32)
    shape = [len(position) if a == axis else 1 for a in range(array.ndim)]
    # In parts along another axis, side by side: each line is computed by itself, and what is made on the way stays small.
    across = max((a for a in range(1, array.ndim) if a != axis), key=lambda a: array.shape[a])
    depth = max(1, MOST_VOXELS * array.shape[across] // max(array.size, result.size))

    def do(start: int) -> None:
        part = (slice(None),) * across + (slice(start, start + depth),)
        lines = array[part]
        if order == 3 and size > 3:
            lines = ndimage.spline_filter1d(lines, 3, axis, output=np.float32, mode="mirror")
        total = np.take(lines, index[0], axis)
        total *= weights[0].reshape(shape)
        for at, weight in zip(index[1:], weights[1:], strict=True):
            tap = np.take(lines, at, axis)
            tap *= weight.reshape(shape)
            total += tap
        result[part] = total

    in_threads(do, range(0, array.shape[across], depth))
    return result


def _taps(position: Array, size: int, order: int) -> tuple[list[Array], list[Array]]:
    """For each of two neighbours, or four for a cubic spline: its index and its weight at each position."""
    first = np.floor(position).astype(int)
    t = position - first
    if order == 1 or size <= 3:
        taps = {0: 1 - t, 1: t}
    else:
        taps = {-1: (1 - t) ** 3 / 6, 0: 2 / 3 - t**2 + t**3 / 2, 1: 2 / 3 - (1 - t) ** 2 + (1 - t) ** 3 / 2, 2: t**3 / 6}
    index = [np.abs(first + offset) for offset in taps]
    return [np.where(i > size - 1, 2 * (size - 1) - i, i) for i in index], [w.astype(np.float32) for w in taps.values()]


def _as_slice(index: Array) -> Array | slice:
    """The index as a slice where it runs in steps of one, forwards or backwards."""
    step = int(index[-1] - index[0]) // max(1, len(index) - 1) or 1
    if abs(step) != 1 or not np.array_equal(index, index[0] + step * np.arange(len(index))):
        return index
    stop = int(index[-1]) + step
    return slice(int(index[0]), None if stop < 0 else stop, step)


def _general(array: Array, mapping: Array, shape: tuple[int, int, int], order: int, fill: float) -> Array:
    dtype = array.dtype if order == 0 else np.dtype(np.float32)
    result = np.empty((array.shape[0], *shape), dtype)
    coordinates = np.einsum("ij,jxyz->ixyz", mapping[:3, :3], np.indices(shape, np.float64)) + mapping[:3, 3, None, None, None]
    size = np.asarray(array.shape[1:]).reshape(3, 1, 1, 1)
    outside = ((coordinates < -0.5 - INTEGER_TOLERANCE) | (coordinates > size - 0.5 + INTEGER_TOLERANCE)).any(0)
    for channel, picture in enumerate(array):
        ndimage.map_coordinates(picture, coordinates, result[channel], order=order, mode="nearest")
    result[:, outside] = fill
    return result
