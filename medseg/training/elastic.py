"""Elastic deformation with rotation, scaling, shear, flip and crop, in one resampling."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from monai.transforms.transform import MapTransform, RandomizableTransform

Floats = npt.NDArray[np.float64]
Size = tuple[int, int, int]

# A cubic B-spline deformation whose control values stay below distance / 2.48 cannot fold (Choi & Lee 2000, in 3D).
NO_FOLD = 0.4


class RandElasticAffineCropd(RandomizableTransform, MapTransform):  # type: ignore[misc]
    """A patch around a point, deformed: random elastic displacement, rotation, scaling, shear and flips at once.

    Elastic deformation as Ronneberger et al. 2015 (U-Net) describe it: Gaussian displacements on a coarse control grid,
    interpolated smoothly (cubic B-splines). B-splines reproduce affine maps, so the affine part is added to the control values
    and the sampling positions come out of three small matrix products; then each picture is sampled ONCE. Only the box of
    voxels that the patch needs is read, so pictures may be memory-mapped arrays. Where neither elastic nor affine is drawn,
    the patch is an exact copy (with its flips).

    Pictures are channel-first, (C, X, Y, Z) or (C, X, Y) as `patch_size` has three or two sizes; along an axis where the patch
    is one voxel thick nothing moves. Outside of the picture there are zeros: the mean of an image that was normalised by its
    own mean, and the background of labels.

    Args:
        keys: pictures on one grid.
        patch_size: voxels of the result.
        mode: `bilinear` (images) or `nearest` (labels), one for all or one a key.
        spacing: voxel size; rotations are rigid in these units.
        elastic: (probability, (fewest, most) control points along the longest side, (least, most) standard deviation of the
            displacement as a share of the distance between control points). Ronneberger: 3 points, 10 pixels, about 0.04.
        rotation: (probability, (least, most) degrees about each axis, or a pair for each of the three); where the patch is flat
            only the turn about the flat axis counts.
        scaling: (probability, (smallest, largest) factor); above 1 structures grow. Half of the draws shrink, half enlarge.
        shear: (probability, largest tangent of the angle between two axes).
        flip: probability of mirroring along each axis.
        centre_key: where the dictionary holds the voxel (X, Y, Z) to put in the middle; without it, any at which the patch fits.
    """

    def __init__(
        self,
        keys: Sequence[str],
        patch_size: Sequence[int],
        mode: str | Sequence[str] = ("bilinear", "nearest"),
        spacing: Sequence[float] = (1.0, 1.0, 1.0),
        elastic: tuple[float, tuple[int, int], tuple[float, float]] = (0.3, (3, 6), (0.02, 0.1)),
        rotation: tuple[float, Any] = (0.2, (-30.0, 30.0)),
        scaling: tuple[float, tuple[float, float]] = (0.2, (0.7, 1.4)),
        shear: tuple[float, float] = (0.1, 0.1),
        flip: Sequence[float] = (0.5, 0.5, 0.5),
        centre_key: str = "centre",
    ) -> None:
        RandomizableTransform.__init__(self, 1.0)
        MapTransform.__init__(self, keys)
        self.patch: Size = (*patch_size, 1)[:3]  # type: ignore[assignment]
        self.dimensions = len(patch_size)
        self.modes = [mode] * len(self.keys) if isinstance(mode, str) else list(mode)
        if len(self.modes) != len(self.keys):
            raise ValueError(f"{len(self.modes)} modes for {len(self.keys)} keys")
        self.spacing = np.array((*spacing, 1.0, 1.0)[:3], float)
        self.elastic, self.scaling, self.shear = elastic, scaling, shear
        self.rotation = (rotation[0], np.broadcast_to(np.array(rotation[1], float), (3, 2)))
        self.flip = np.array((*flip, 0.0, 0.0)[:3], float)
        self.centre_key = centre_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        pictures = [self._with_three_axes(data[key]) for key in self.keys]
        start = self._start(pictures[0].shape[1:], data.get(self.centre_key))
        flips = self._draw_flips()
        control = self._draw_deformation(flips)
        where = None if control is None else sampling(control + start, self.patch, pictures[0].shape[1:])
        for key, picture, mode in zip(self.keys, pictures, self.modes, strict=True):
            if where is None:
                patch = crop(picture, start, self.patch).flip([a + 1 for a in range(3) if flips[a]])
            else:
                patch = sample(picture, where, mode)
            result[key] = patch[..., 0] if self.dimensions == 2 else patch
        return result

    def _with_three_axes(self, picture: Any) -> Any:
        if picture.ndim != self.dimensions + 1:
            raise ValueError(
                f"a picture of shape {tuple(picture.shape)} where (C, {', '.join('XYZ'[: self.dimensions])}) is expected"
            )
        return picture[..., None] if self.dimensions == 2 else picture

    def _start(self, shape: Sequence[int], centre: Any) -> npt.NDArray[np.int64]:
        """The first voxel of the undeformed patch."""
        room = np.array(shape) - self.patch
        if centre is None:
            return np.array([self.R.randint(min(r, 0), max(r, 0) + 1) for r in room])
        return np.array((*centre, 0)[:3], np.int64) - np.array(self.patch) // 2

    def _draw_flips(self) -> npt.NDArray[np.bool_]:
        return np.asarray((self.R.rand(3) < self.flip) & (np.array(self.patch) > 1))

    def _draw_deformation(self, flips: npt.NDArray[np.bool_]) -> Floats | None:
        """Control values (cx, cy, cz, 3): voxel positions that count from the first voxel of the undeformed patch."""
        bent, turned, scaled, sheared = (self.R.rand() < p[0] for p in (self.elastic, self.rotation, self.scaling, self.shear))
        if not (bent or turned or scaled or sheared):
            return None
        moving = np.array(self.patch) > 1
        angles = np.deg2rad(self.R.uniform(*self.rotation[1].T)) * turned
        if not moving.all():
            angles[moving] = 0  # a turn about an axis in the plane would leave it
        factor = self._draw_factor() if scaled else 1.0
        tangents = self.R.uniform(-1, 1, 3) * self.shear[1] * sheared
        matrix = affine_matrix(angles, factor, tangents, self.spacing, moving) * np.where(flips, -1, 1)
        intervals = self._draw_intervals()
        control = affine_control(matrix, self.patch, intervals)
        if bent:
            control += self._draw_displacement(control.shape, intervals, moving)
        return control

    def _draw_factor(self) -> float:
        low, high = self.scaling[1]
        shrink = low < 1 and (high <= 1 or self.R.rand() < 0.5)
        return float(self.R.uniform(low, min(high, 1.0)) if shrink else self.R.uniform(max(low, 1.0), high))

    def _draw_intervals(self) -> Size:
        """Control intervals along each axis: about equally long in the units of `spacing`."""
        fewest, most = self.elastic[1]
        extent = np.array(self.patch) * self.spacing
        longest = self.R.randint(fewest, most + 1) - 1
        x, y, z = np.maximum(1, np.round(longest * extent / extent[np.array(self.patch) > 1].max(initial=1e-9)))
        return int(x), int(y), int(z)

    def _draw_displacement(self, shape: tuple[int, ...], intervals: Size, moving: npt.NDArray[np.bool_]) -> Floats:
        # Smoothing by the B-spline halves the variance along each axis, so the control values are drawn that much wider.
        deviation = self.R.uniform(*self.elastic[2]) * 2 ** (moving.sum() / 2)
        noise = np.clip(self.R.standard_normal(shape) * deviation, -NO_FOLD, NO_FOLD)
        return np.asarray(noise * (np.array(self.patch) - 1) / intervals * moving)


def affine_matrix(angles: Floats, factor: float, tangents: Floats, spacing: Floats, moving: npt.NDArray[np.bool_]) -> Floats:
    """The (3, 3) map from an offset in the patch to an offset in the picture, both in voxels.

    Args:
        angles: radians about X, Y, Z. tangents: of the shears Y along X, Z along X, Z along Y.
        factor: how much structures grow along the moving axes.
    """
    cos, sin = np.cos(angles), np.sin(angles)
    about_x = np.array([[1, 0, 0], [0, cos[0], -sin[0]], [0, sin[0], cos[0]]])
    about_y = np.array([[cos[1], 0, sin[1]], [0, 1, 0], [-sin[1], 0, cos[1]]])
    about_z = np.array([[cos[2], -sin[2], 0], [sin[2], cos[2], 0], [0, 0, 1]])
    shear = np.eye(3)
    shear[0, 1], shear[0, 2], shear[1, 2] = tangents
    shear[~np.outer(moving, moving) & ~np.eye(3, dtype=bool)] = 0
    rigid = about_x @ about_y @ about_z @ shear / np.where(moving, factor, 1)
    return np.asarray(rigid * spacing / spacing[:, None])


def affine_control(matrix: Floats, patch: Size, intervals: Size) -> Floats:
    """B-spline control values (cx, cy, cz, 3) of an affine map about the middle of the patch."""
    middle = (np.array(patch) - 1) / 2
    axes = [np.zeros(1) if n == 1 else (np.arange(-1, m + 2) / m - 0.5) * (n - 1) for n, m in zip(patch, intervals, strict=True)]
    return np.asarray(np.stack(np.meshgrid(*axes, indexing="ij"), -1) @ matrix.T + middle)


@lru_cache(maxsize=256)
def bspline_weights(size: int, intervals: int) -> torch.Tensor:
    """(size, intervals + 3) float32: each control point's weight at `size` even positions from the first knot to the last."""
    if size == 1:
        return torch.ones(1, 1)
    position = np.linspace(0, intervals, size)
    first = np.minimum(position.astype(int), intervals - 1)
    t = position - first
    weights = np.zeros((size, intervals + 3), np.float32)
    taps = ((1 - t) ** 3 / 6, 2 / 3 - t**2 + t**3 / 2, 2 / 3 - (1 - t) ** 2 + (1 - t) ** 3 / 2, t**3 / 6)
    for offset, tap in enumerate(taps):
        weights[np.arange(size), first + offset] = tap
    return torch.from_numpy(weights)


def spline_field(control: Floats, patch: Size) -> torch.Tensor:
    """The B-spline with these control values (cx, cy, cz, n) at each voxel of the patch: (X, Y, Z, n) float32."""
    field = torch.from_numpy(np.ascontiguousarray(control)).float()
    cx, cy, cz, n = field.shape
    x, y, z = patch
    wx, wy, wz = (bspline_weights(size, max(1, c - 3)) for size, c in zip(patch, (cx, cy, cz), strict=True))
    field = torch.matmul(wz, field)  # (cx, cy, Z, n)
    field = torch.matmul(wy, field.view(cx, cy, z * n))  # (cx, Y, Z * n)
    return torch.matmul(wx, field.view(cx, y * z * n)).view(x, y, z, n)


def bezier_points(control: Floats) -> Floats:
    """The same spline's Bezier points: the field lies within their hull, which is far tighter than that of the control values."""
    for axis in range(3):
        n = control.shape[axis]
        if n > 1:
            matrix = np.zeros((3 * (n - 3) + 1, n))
            for interval in range(n - 3):
                inner = interval + 1
                matrix[3 * interval, inner - 1 : inner + 2] = (1 / 6, 2 / 3, 1 / 6)
                matrix[3 * interval + 1, inner : inner + 2] = (2 / 3, 1 / 3)
                matrix[3 * interval + 2, inner : inner + 2] = (1 / 3, 2 / 3)
            matrix[-1, n - 3 :] = (1 / 6, 2 / 3, 1 / 6)
            control = np.moveaxis(np.tensordot(matrix, control, (1, axis)), 0, axis)
    return control


@dataclass(frozen=True)
class Sampling:
    """Where a patch is taken from: the box of voxels that it needs, and each voxel's place in the box.

    Args:
        box: of the picture's X, Y, Z.
        grid: (X, Y, Z, 3) places in the box as `grid_sample` wants them (last axis first, from -1 to 1), or two axes of each
            where the patch is one voxel thick.
        flat: the axis along which the patch and the box are one voxel thick, if any.
    """

    box: tuple[slice, slice, slice]
    grid: torch.Tensor
    flat: int | None


def sampling(control: Floats, patch: Size, shape: Sequence[int]) -> Sampling:
    """The sampling of a patch out of pictures of this shape; `control` holds voxel positions in the picture."""
    hull = bezier_points(control).reshape(-1, 3)
    low = np.clip(np.floor(hull.min(0)).astype(int), 0, np.array(shape) - 1)
    high = np.clip(np.ceil(hull.max(0)).astype(int) + 1, low + 1, shape)
    # A B-spline's weights add up to 1, so shifting and scaling the control values shifts and scales the field.
    scaled = (control - low + 0.5) * (2 / (high - low)) - 1
    # A patch one voxel thick is sampled in its plane: faster, and exact across it.
    flat = next((axis for axis in range(3) if patch[axis] == 1 and high[axis] - low[axis] == 1), None)
    axes = [axis for axis in (2, 1, 0) if axis != flat]
    grid = spline_field(scaled[..., axes], patch)
    box = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    return Sampling(box, grid if flat is None else grid.squeeze(flat), flat)  # type: ignore[arg-type]


def crop(picture: Any, start: npt.NDArray[np.int64], patch: Size) -> torch.Tensor:
    """An exact copy of a box, (C, *patch), zeros where it leaves the picture."""
    shape = np.array(picture.shape[1:])
    low, high = np.clip(start, 0, shape), np.clip(start + patch, 0, shape)
    inside = torch.from_numpy(np.array(picture[:, low[0] : high[0], low[1] : high[1], low[2] : high[2]]))
    if inside.shape[1:] == tuple(patch):
        return inside
    result = inside.new_zeros((len(inside), *patch))
    (a, b, c), (d, e, f) = low - start, high - start
    result[:, a:d, b:e, c:f] = inside
    return result


def sample(picture: Any, where: Sampling, mode: str) -> torch.Tensor:
    """The patch out of the picture, zeros outside of it.

    Args:
        picture: (C, X, Y, Z) array or tensor; only the sampling's box is read.
        mode: `bilinear` or `nearest`.
    Returns: (C, x, y, z), float32 for bilinear, else the picture's dtype.
    """
    box = torch.from_numpy(np.array(picture[(slice(None), *where.box)]))
    dtype = torch.float32 if mode == "bilinear" else box.dtype
    if where.flat is not None:
        box = box.squeeze(where.flat + 1)
    result = F.grid_sample(box.float()[None], where.grid[None], mode=mode, padding_mode="zeros", align_corners=False)[0]
    return (result if where.flat is None else result.unsqueeze(where.flat + 1)).to(dtype)
