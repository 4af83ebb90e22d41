"""Taking a patch out of a picture along a B-spline, reading only the box of voxels that it needs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

Floats = npt.NDArray[np.float64]
Size = tuple[int, int, int]


class Sampling(NamedTuple):
    """How a patch comes out of a picture. (A tuple, so that a data loader finds and pins the tensor in it.)

    Args:
        box: the voxels that are needed, of the picture's X, Y, Z.
        first: where the box begins in the patch; of exact copies only.
        flips: the axes that are mirrored.
        control: (cx, cy, cz, n) float32 B-spline control values of each voxel's place in the box, as `grid_sample` counts it
            (last axis first, from -1 to 1); n is 3, or 2 without the flat axis. None for an exact copy.
        flat: the axis along which the patch and the box are one voxel thick, if any.
    """

    box: tuple[slice, slice, slice]
    first: Size
    flips: tuple[bool, bool, bool]
    control: torch.Tensor | None = None
    flat: int | None = None


def copying(start: Sequence[int], patch: Size, shape: Sequence[int], flips: Sequence[bool]) -> Sampling:
    """An exact copy, mirrored along `flips`, of the patch that begins at voxel `start` of pictures of this shape."""
    low, high = (np.clip(np.add(start, part), 0, shape) for part in ((0, 0, 0), patch))
    return Sampling(_slices(low, high), _three(low - start, int), _three(flips, bool))


def bending(control: Floats, patch: Size, shape: Sequence[int], flips: Sequence[bool], margin: int = 0) -> Sampling:
    """The places of a patch that is bent.

    Args:
        control: (cx, cy, cz, 3) B-spline control values: places in the picture, in voxels, `flips` already in them.
        margin: voxels more on each side than linear interpolation reads; 1 for cubic.
    """
    # Rounded: sums of weights that add up to 1 but for the last bit must not make the box one voxel thicker.
    hull = bezier_points(control).reshape(-1, 3).round(6)
    wide = np.where(np.array(patch) > 1, margin, 0)
    low = np.clip(np.floor(hull.min(0)).astype(int) - wide, 0, np.array(shape) - 1)
    high = np.clip(np.ceil(hull.max(0)).astype(int) + 1 + wide, low + 1, shape)
    # A patch one voxel thick is sampled in its plane: faster, and exact across it.
    inside = (hull.min(0) >= 0) & (hull.max(0) <= np.array(shape) - 1)
    flat = next((axis for axis in range(3) if patch[axis] == 1 and high[axis] - low[axis] == 1 and inside[axis]), None)
    # A B-spline's weights add up to 1, so shifting and scaling the control values shifts and scales the field.
    scaled = (control - low + 0.5) * (2 / (high - low)) - 1
    axes = [axis for axis in (2, 1, 0) if axis != flat]
    values = torch.from_numpy(np.ascontiguousarray(scaled[..., axes], np.float32))
    return Sampling(_slices(low, high), (0, 0, 0), _three(flips, bool), values, flat)


def read(picture: Any, where: Sampling) -> torch.Tensor:
    """The box out of a (C, X, Y, Z) array (perhaps memory-mapped) or tensor; not a copy where the picture is a tensor."""
    box = picture[(slice(None), *where.box)]
    return box.as_subclass(torch.Tensor) if isinstance(box, torch.Tensor) else torch.from_numpy(np.array(box))


def take(boxes: Sequence[torch.Tensor], modes: Sequence[str], where: Sampling, patch: Size) -> list[torch.Tensor]:
    """The patch out of the boxes that were read for it, computed on the device where they are; zeros outside of the picture.

    Args:
        boxes: (C, X, Y, Z) each, on one grid.
        modes: `bilinear`, `bicubic` (in a flat patch; a thick one is interpolated linearly) or `nearest`, one a box.
    Returns: (C, *patch) each; float32 where interpolated, else the box's dtype.
    """
    if where.control is None:
        return [_copy(box, where, patch) for box in boxes]
    grid = spline_field(where.control.to(boxes[0].device, non_blocking=True), patch)
    return [_sample(box, mode, grid, where.flat) for box, mode in zip(boxes, modes, strict=True)]


def _copy(box: torch.Tensor, where: Sampling, patch: Size) -> torch.Tensor:
    mirrored = [axis + 1 for axis in range(3) if where.flips[axis]]
    if box.shape[1:] == patch:
        return box.flip(mirrored)  # copies, even where nothing is mirrored
    result = box.new_zeros((len(box), *patch))
    (a, b, c), (x, y, z) = where.first, box.shape[1:]
    result[:, a : a + x, b : b + y, c : c + z] = box
    return result.flip(mirrored)


def _sample(box: torch.Tensor, mode: str, grid: torch.Tensor, flat: int | None) -> torch.Tensor:
    dtype = box.dtype if mode == "nearest" else torch.float32
    if flat is not None:
        box, grid = box.squeeze(flat + 1), grid.squeeze(flat)
    elif mode == "bicubic":
        mode = "bilinear"
    result = F.grid_sample(box.float()[None], grid[None], mode=mode, padding_mode="zeros", align_corners=False)[0]
    return (result if flat is None else result.unsqueeze(flat + 1)).to(dtype)


def spline_field(control: torch.Tensor, patch: Size) -> torch.Tensor:
    """The B-spline with these control values (cx, cy, cz, n) at each voxel of the patch: (X, Y, Z, n) float32."""
    # A GPU may round the factors of float32 products to 10 bits (TF32), which moves a place by a tenth of a voxel.
    field = control.to(torch.float32 if control.device.type == "cpu" else torch.float64)
    cx, cy, cz, n = field.shape
    x, y, z = patch
    wx, wy, wz = (
        bspline_weights(size, max(1, count - 3), field.device, field.dtype)
        for size, count in zip(patch, (cx, cy, cz), strict=True)
    )
    field = torch.matmul(wz, field)  # (cx, cy, Z, n)
    field = torch.matmul(wy, field.view(cx, cy, z * n))  # (cx, Y, Z * n)
    return torch.matmul(wx, field.view(cx, y * z * n)).view(x, y, z, n).float()


@lru_cache(maxsize=256)
def bspline_weights(size: int, intervals: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """(size, intervals + 3): each control point's weight at `size` even positions from the first knot to the last."""
    if size == 1:
        return torch.ones(1, 1, device=device, dtype=dtype)
    position = np.linspace(0, intervals, size)
    first = np.minimum(position.astype(int), intervals - 1)
    t = position - first
    weights = np.zeros((size, intervals + 3))
    taps = ((1 - t) ** 3 / 6, 2 / 3 - t**2 + t**3 / 2, 2 / 3 - (1 - t) ** 2 + (1 - t) ** 3 / 2, t**3 / 6)
    for offset, tap in enumerate(taps):
        weights[np.arange(size), first + offset] = tap
    return torch.from_numpy(weights).to(device, dtype)


def bezier_points(control: Floats) -> Floats:
    """The same spline's Bezier points: the field lies within their hull, which is far tighter than that of the control values."""
    for axis in range(3):
        n = control.shape[axis]
        if n > 1:
            control = np.moveaxis(np.tensordot(_bezier_matrix(n), control, (1, axis)), 0, axis)
    return control


@lru_cache(maxsize=64)
def _bezier_matrix(n: int) -> Floats:
    """From `n` B-spline control values to the Bezier points of the n - 3 intervals."""
    matrix = np.zeros((3 * (n - 3) + 1, n))
    for interval in range(n - 3):
        inner = interval + 1
        matrix[3 * interval, inner - 1 : inner + 2] = (1 / 6, 2 / 3, 1 / 6)
        matrix[3 * interval + 1, inner : inner + 2] = (2 / 3, 1 / 3)
        matrix[3 * interval + 2, inner : inner + 2] = (1 / 3, 2 / 3)
    matrix[-1, n - 3 :] = (1 / 6, 2 / 3, 1 / 6)
    return matrix


def _slices(low: Any, high: Any) -> tuple[slice, slice, slice]:
    x, y, z = (slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    return x, y, z


def _three(values: Any, kind: Any) -> Any:
    return tuple(kind(value) for value in values)
