"""Elastic deformation with rotation, scaling, shear, flip and crop, in one resampling."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from monai.data.meta_tensor import MetaTensor
from monai.transforms.transform import MapTransform, RandomizableTransform

from medseg.training.sampling import Floats, Sampling, Size, bending, copying, read, take

Bools = npt.NDArray[np.bool_]

# A cubic B-spline deformation whose control values stay below distance / 2.48 cannot fold (Choi & Lee 2000, in 3D).
NO_FOLD = 0.4


@dataclass(frozen=True, eq=False)
class Draw:
    """What was drawn for one patch.

    Args:
        start: the first voxel of the undeformed patch.
        flips: the axes that are mirrored.
        matrix: (3, 3) from an offset in the patch to an offset in the picture, flips in it.
        control: (cx, cy, cz, 3) B-spline control values of places in the picture; None for an exact copy (with its flips).
    """

    start: npt.NDArray[np.int64]
    flips: Bools
    matrix: Floats
    control: Floats | None


class RandElasticAffineCropd(RandomizableTransform, MapTransform):  # type: ignore[misc]
    """A patch around a point, deformed: random elastic displacement, rotation, scaling, shear and flips at once.

    Elastic deformation as Ronneberger et al. 2015 (U-Net) describe it: Gaussian displacements on a coarse control grid,
    interpolated smoothly (cubic B-splines). B-splines reproduce affine maps, so the affine part is added to the control values
    and the sampling positions come out of three small matrix products; then each picture is sampled ONCE. Only the box of
    voxels that the patch needs is read, so pictures may be memory-mapped arrays. Where neither elastic nor affine is drawn,
    the patch is an exact copy (with its flips).

    Pictures are arrays, tensors or MetaTensors, channel-first, (C, X, Y, Z) or (C, X, Y) as `patch_size` has three or two sizes;
    along an axis where the patch is one voxel thick nothing moves. Outside of the picture there are zeros: the mean of an image
    that was normalised by its own mean, and the background of labels. That is what sliding-window prediction pads with too, and
    so it is background even where labels hold an ignored value, which `nearest` carries over like any other.

        >>> transform = Compose([
        ...     LoadImaged(["image", "label"]),
        ...     EnsureChannelFirstd(["image", "label"]),
        ...     NormalizeIntensityd("image"),
        ...     RandElasticAffineCropd(["image", "label"], (96, 96, 96), ("bilinear", "nearest"), flip=(0, 0.5, 0.5)),
        ... ]).set_random_state(seed=0)
        >>> patch = transform({"image": "scan.nii.gz", "label": "labels.nii.gz"})  # tensors of (1, 96, 96, 96)

    A MetaTensor stays one; its affine becomes that of the patch, to which the elastic displacement comes on top.

    Args:
        keys: pictures on one grid.
        patch_size: voxels of the result.
        mode: `bilinear`, `bicubic` (images; cubic in a flat patch, linear in a thick one) or `nearest` (labels), one for all or
            one a key.
        spacing: voxel size; rotations are rigid in these units.
        elastic: (probability, (fewest, most) control points along the longest side, (least, most) standard deviation of the
            displacement as a share of the distance between control points). Ronneberger: 3 points, 10 pixels, about 0.04.
        rotation: (probability, (least, most) degrees about each axis, or a pair for each of the three); where the patch is flat
            only the turn about the flat axis counts.
        scaling: (probability, (smallest, largest) factor); above 1 structures grow. Half of the draws shrink, half enlarge.
        shear: (probability, largest tangent of the angle between two axes).
        flip: probability of mirroring along each axis.
        swap: (axis, pairs of label values that change places where that axis is mirrored), for structures with a left and a
            right: a mirrored left hand is a right hand. Of the pictures in mode `nearest`.
        centre_key: where the dictionary holds the voxel (X, Y, Z) to put in the middle; without it, any at which the patch fits.
        allow_missing_keys: keys that are not there are passed over.
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
        swap: tuple[int, Sequence[tuple[int, int]]] = (0, ()),
        centre_key: str = "centre",
        allow_missing_keys: bool = False,
    ) -> None:
        RandomizableTransform.__init__(self, 1.0)
        MapTransform.__init__(self, keys, allow_missing_keys)
        self.patch: Size = (*patch_size, 1)[:3]  # type: ignore[assignment]
        self.dimensions = len(patch_size)
        modes = [mode] * len(self.keys) if isinstance(mode, str) else list(mode)
        if len(modes) != len(self.keys):
            raise ValueError(f"{len(modes)} modes for {len(self.keys)} keys")
        self.modes: dict[Hashable, str] = dict(zip(self.keys, modes, strict=True))
        if unknown := set(modes) - {"bilinear", "bicubic", "nearest"}:
            raise ValueError(f"mode `{min(unknown)}` is none of bilinear, bicubic, nearest")
        self.spacing = np.array((*spacing, 1.0, 1.0)[:3], float)
        self.elastic, self.scaling, self.shear, self.swap = elastic, scaling, shear, swap
        self.rotation = (rotation[0], np.broadcast_to(np.array(rotation[1], float), (3, 2)))
        self.flip = np.array((*flip, 0.0, 0.0)[:3], float)
        self.centre_key = centre_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        pictures = {key: data[key] for key in self.key_iterator(data)}
        if not pictures:
            return dict(data)
        drawn, where = self.place(data)
        boxes = {key: self.read(picture, where) for key, picture in pictures.items()}
        patches = self.take(boxes, where)
        return {**data, **{key: self._as_given(patch, pictures[key], drawn) for key, patch in patches.items()}}

    def place(self, data: Mapping[Hashable, Any]) -> tuple[Draw, Sampling]:
        """Draw a patch of these pictures; nothing of them is read yet. Raises: ValueError where their shapes do not fit."""
        shapes = {tuple(data[key].shape[1:]) for key in self.key_iterator(data)}
        shape = shapes.pop()
        if shapes:
            raise ValueError(f"pictures on one grid have one shape, not {shape} and {shapes.pop()}")
        if len(shape) != self.dimensions:
            raise ValueError(f"a picture of {len(shape)} axes where (C, {', '.join('XYZ'[: self.dimensions])}) is expected")
        drawn = self.draw((*shape, 1)[:3], data.get(self.centre_key))
        if drawn.control is None:
            return drawn, copying(drawn.start.tolist(), self.patch, (*shape, 1)[:3], drawn.flips.tolist())
        margin = int("bicubic" in self.modes.values() and 1 in self.patch)
        return drawn, bending(drawn.control, self.patch, (*shape, 1)[:3], drawn.flips.tolist(), margin)

    def draw(self, shape: Sequence[int], centre: Any = None) -> Draw:
        """Random numbers for one patch of a picture of (X, Y, Z) voxels, around `centre` or where the patch fits."""
        start = self._start(shape, centre)
        flips = self._draw_flips()
        matrix = np.diag(np.where(flips, -1.0, 1.0))
        deformation = self._draw_deformation(matrix)
        if deformation is None:
            return Draw(start, flips, matrix, None)
        return Draw(start, flips, deformation[0], deformation[1] + start)

    def read(self, picture: Any, where: Sampling) -> torch.Tensor:
        """The box of voxels that the patch needs, (C, X, Y, Z)."""
        return read(picture[..., None] if self.dimensions == 2 else picture, where)

    def take(self, boxes: Mapping[Hashable, torch.Tensor], where: Sampling) -> dict[Hashable, torch.Tensor]:
        """The patches out of the boxes (of some or all keys), computed on the device where the boxes are."""
        modes = [self.modes[key] for key in boxes]
        axis, pairs = self.swap
        result = {}
        for key, mode, patch in zip(boxes, modes, take(list(boxes.values()), modes, where, self.patch), strict=True):
            swapped = swap_values(patch, pairs) if mode == "nearest" and where.flips[axis] else patch
            result[key] = swapped[..., 0] if self.dimensions == 2 else swapped
        return result

    def _as_given(self, patch: torch.Tensor, picture: Any, drawn: Draw) -> torch.Tensor:
        if not isinstance(picture, MetaTensor):
            return patch
        step, middle = np.eye(4), (np.array(self.patch) - 1) / 2
        step[:3, :3], step[:3, 3] = drawn.matrix, drawn.start + middle - drawn.matrix @ middle
        axes = [*range(len(picture.affine) - 1), 3]  # a 2D picture's affine may have 3 rows or 4
        result = MetaTensor(patch, meta=dict(picture.meta))
        result.affine = picture.affine @ torch.from_numpy(step[np.ix_(axes, axes)]).to(picture.affine)
        return result

    def _start(self, shape: Sequence[int], centre: Any) -> npt.NDArray[np.int64]:
        if centre is None:
            room = np.array(shape) - self.patch
            return np.array([self.R.randint(min(r, 0), max(r, 0) + 1) for r in room])
        return np.array((*centre, 0)[:3], np.int64) - np.array(self.patch) // 2

    def _draw_flips(self) -> Bools:
        return np.asarray((self.R.rand(3) < self.flip) & (np.array(self.patch) > 1))

    def _draw_deformation(self, mirror: Floats) -> tuple[Floats, Floats] | None:
        """The affine part with the flips, and control values: places that count from the first voxel of the undeformed patch."""
        bent, turned, scaled, sheared = (self.R.rand() < p[0] for p in (self.elastic, self.rotation, self.scaling, self.shear))
        if not (bent or turned or scaled or sheared):
            return None
        moving = np.array(self.patch) > 1
        angles = np.deg2rad(self.R.uniform(*self.rotation[1].T)) * turned
        if not moving.all():
            angles[moving] = 0  # a turn about an axis in the plane would leave it
        factor = self._draw_factor() if scaled else 1.0
        tangents = self.R.uniform(-1, 1, 3) * self.shear[1] * sheared
        matrix = affine_matrix(angles, factor, tangents, self.spacing, moving) @ mirror
        intervals = self._draw_intervals()
        control = affine_control(matrix, self.patch, intervals)
        if bent:
            control += self._draw_displacement(control.shape, intervals, moving)
        return matrix, control

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

    def _draw_displacement(self, shape: tuple[int, ...], intervals: Size, moving: Bools) -> Floats:
        # Smoothing by the B-spline halves the variance along each axis, so the control values are drawn that much wider.
        deviation = self.R.uniform(*self.elastic[2]) * 2 ** (moving.sum() / 2)
        noise = np.clip(self.R.standard_normal(shape) * deviation, -NO_FOLD, NO_FOLD)
        return np.asarray(noise * (np.array(self.patch) - 1) / intervals * moving)


def swap_values(labels: torch.Tensor, pairs: Sequence[tuple[int, int]]) -> torch.Tensor:
    """A copy in which the two values of each pair have changed places."""
    result = labels.clone() if pairs else labels
    for one, other in pairs:
        result.masked_fill_(labels == one, other).masked_fill_(labels == other, one)
    return result


def affine_matrix(angles: Floats, factor: float, tangents: Floats, spacing: Floats, moving: Bools) -> Floats:
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
