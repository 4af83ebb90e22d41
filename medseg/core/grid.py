"""Where voxels lie: `Grid`, the one value that owns shape, spacing, orientation and position."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Shape = tuple[int, int, int]
Affine = npt.NDArray[np.float64]

SPACING_TOLERANCE = 1e-3  # relative; headers store spacing as float32 or as short decimals
DIRECTION_TOLERANCE_DEGREES = 0.1
ORIGIN_TOLERANCE_VOXELS = 0.01


@dataclass(frozen=True, eq=False)
class Grid:
    """The voxel lattice of a picture.

    Args:
        shape: voxels along X, Y, Z; a 2D image has 1 along Z.
        affine: (4, 4) float64, voxel index -> RAS position in mm.
        physical: False where the file states no physical size; then spacing is 1 and lengths are pixels, never mm.
    """

    shape: Shape
    affine: Affine
    physical: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))
        affine = np.array(self.affine, dtype=np.float64)
        affine.setflags(write=False)
        object.__setattr__(self, "affine", affine)
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise ValueError(f"a grid has three positive sizes, not {self.shape}")
        if affine.shape != (4, 4) or not np.isfinite(affine).all() or _flatness(affine[:3, :3]) < 1e-6:
            raise ValueError("the affine is singular or not finite")

    @classmethod
    def pixels(cls, shape: tuple[int, ...]) -> Grid:
        """The grid of a picture that states no physical size: unit spacing, not physical."""
        return cls((*shape, 1)[:3], np.eye(4), physical=False)  # type: ignore[arg-type]

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size along X, Y, Z, in `unit`."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)

    @property
    def directions(self) -> npt.NDArray[np.float64]:
        """(3, 3), unit vectors of the voxel axes as columns."""
        return self.affine[:3, :3] / np.asarray(self.spacing)

    @property
    def unit(self) -> str:
        """`mm`, or `px` where no physical size is known."""
        return "mm" if self.physical else "px"

    @property
    def voxel_volume(self) -> float:
        """Volume of one voxel in `unit` cubed."""
        return float(abs(np.linalg.det(self.affine[:3, :3])))

    @property
    def planar(self) -> bool:
        """True for a 2D image: one voxel thick along Z."""
        return self.shape[2] == 1

    @property
    def diagonal(self) -> float:
        """Length of the picture's diagonal in `unit`: the worst distance two of its voxels can have."""
        return float(np.linalg.norm((np.asarray(self.shape) - 1) * np.asarray(self.spacing)))

    def cropped(self, start: tuple[int, ...], shape: tuple[int, ...]) -> Grid:
        """The grid of `array[start : start + shape]`; start may be negative (padding)."""
        affine = self.affine.copy()
        affine[:3, 3] = affine[:3, :3] @ np.asarray(start, float) + affine[:3, 3]
        return Grid(shape, affine, self.physical)  # type: ignore[arg-type]

    def canonical(self) -> Grid:
        """The same voxels with axes reordered and flipped to lie closest to right, anterior, superior."""
        from scipy.optimize import linear_sum_assignment

        directions = self.directions
        _, voxel_axis = linear_sum_assignment(-np.abs(directions))  # voxel axis serving each world axis
        signs = np.sign(directions[np.arange(3), voxel_axis])
        matrix = np.zeros((4, 4))
        matrix[3, 3] = 1
        for world, (axis, sign) in enumerate(zip(voxel_axis, signs, strict=True)):
            matrix[axis, world] = sign
            matrix[axis, 3] = 0 if sign > 0 else self.shape[axis] - 1
        return Grid(tuple(self.shape[a] for a in voxel_axis), self.affine @ matrix, self.physical)  # type: ignore[arg-type]

    def respaced(self, spacing: tuple[float, float, float]) -> Grid:
        """The same field of view with another voxel size; an axis one voxel thick keeps its own, there is nothing between."""
        old = np.asarray(self.spacing)
        new = np.where(np.asarray(self.shape) == 1, old, spacing)
        shape = np.maximum(1, np.round(np.asarray(self.shape) * old / new)).astype(int)
        affine = self.affine.copy()
        affine[:3, :3] = self.directions * new
        # The two fields of view share their centre, so neither side of the scan loses more than the other.
        centre = self.affine[:3, :3] @ ((np.asarray(self.shape) - 1) / 2) + self.affine[:3, 3]
        affine[:3, 3] = centre - affine[:3, :3] @ ((shape - 1) / 2)
        return Grid(tuple(shape), affine, self.physical)

    def difference(self, other: Grid) -> str | None:
        """What tells the two grids apart, in words (shape, spacing, origin, direction), or None if nothing does."""
        if self.shape != other.shape:
            return f"shape {_times(self.shape)} against {_times(other.shape)} voxels"
        if self.physical != other.physical:
            return "one states a physical size and the other does not"
        if not np.allclose(self.spacing, other.spacing, rtol=SPACING_TOLERANCE, atol=0):
            return f"spacing {_times(self.spacing)} against {_times(other.spacing)} {self.unit}"
        cosines = np.clip((self.directions * other.directions).sum(0), -1, 1)
        if (angle := float(np.degrees(np.arccos(cosines.min())))) > DIRECTION_TOLERANCE_DEGREES:
            return f"direction differs by {angle:.1f} degrees"
        shift = self.affine[:3, 3] - other.affine[:3, 3]
        if np.linalg.norm(shift) > ORIGIN_TOLERANCE_VOXELS * min(self.spacing):
            return f"origin differs by {_times(np.round(np.abs(shift), 4).tolist())} {self.unit} along R, A, S"
        return None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Grid) and self.difference(other) is None

    __hash__ = None  # type: ignore[assignment]


def _flatness(linear: npt.NDArray[np.float64]) -> float:
    """Volume of the voxel over that of a box with its edges: 1 for right angles, 0 where axes coincide or have no length."""
    edges = np.linalg.norm(linear, axis=0)
    # Scaled first: the determinant of a voxel of some nanometres, in mm, is as small as rounding errors.
    return float(abs(np.linalg.det(linear / edges))) if edges.min() > 0 else 0.0


def _times(values: Any) -> str:
    return " x ".join(f"{v:g}" for v in values)
