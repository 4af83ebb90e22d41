"""From a scan to what the network sees: another grid and normalised intensities; the same for training and prediction."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from medseg.core.config import Millimetres, Section
from medseg.core.errors import GridMismatchError
from medseg.core.grid import Grid
from medseg.core.resample import resample
from medseg.core.volume import Volume
from medseg.data.normalise import Normalisation, normalise

Order = Literal[0, 1, 3]


class Preprocessing(Section):
    """The common part of a plan.

    Args:
        physical: whether spacing is in mm; a scan of the other kind is refused.
        spacing: voxel size along right, anterior, superior; None keeps each scan's own (2D pictures in pixels).
        crop_nonzero: first cut the scan to the box of its non-zero voxels.
        normalisation: one rule for each channel.
        order: interpolation of the image, 0 nearest, 1 linear or 3 cubic: along all axes, or along each.
    """

    physical: bool
    spacing: tuple[Millimetres, Millimetres, Millimetres] | None
    crop_nonzero: bool = False
    normalisation: list[Normalisation] = Field(min_length=1)
    order: Order | tuple[Order, Order, Order] = 3


def preprocess(volume: Volume, preprocessing: Preprocessing, where: str = "scan", use_up: bool = False) -> Volume:
    """The scan as the network sees it, on its prepared grid (`Volume.grid` of the result).

    Args:
        use_up: the volume's voxels may be overwritten, which saves a copy of them.
    Raises: GridMismatchError where the scan states a physical size and the plan does not, or the other way round;
        IntensityError as `normalise`.
    """
    grid = prepared_grid(volume, preprocessing, where)
    normalised = normalise(volume.array, preprocessing.normalisation, where, in_place=use_up)
    return Volume(resample(normalised, volume.grid, grid, preprocessing.order, use_up=use_up), grid)


def prepared_grid(volume: Volume, preprocessing: Preprocessing, where: str = "scan") -> Grid:
    """The grid on which the network sees this scan: canonical axes, cropped, respaced."""
    if volume.grid.physical != preprocessing.physical:
        has, needs = ("a", "none") if volume.grid.physical else ("no", "one in mm")
        raise GridMismatchError(
            f"{where} states {has} physical size and the plan was made for {needs}; state `data.spacing_mm` or leave it out."
        )
    grid = volume.grid.canonical()
    if preprocessing.crop_nonzero:
        grid = nonzero_box(volume, grid)
    if preprocessing.spacing is not None and not np.allclose(grid.spacing, preprocessing.spacing, rtol=1e-3):
        grid = grid.respaced(preprocessing.spacing)
    return grid


def resample_classes(classes: npt.NDArray[np.uint8], from_grid: Grid, to_grid: Grid) -> npt.NDArray[np.uint8]:
    """Class indices on another grid: each class is interpolated linearly and the largest wins (smoother than nearest).

    Args:
        classes: (X, Y, Z) uint8 on `from_grid`.
    """
    if np.allclose(from_grid.spacing, to_grid.spacing, rtol=1e-3):
        return resample(classes, from_grid, to_grid, order=0)
    best = np.zeros(to_grid.shape, np.float32)
    result = np.zeros(to_grid.shape, np.uint8)
    for value in np.unique(classes):
        share = resample((classes == value).astype(np.float32), from_grid, to_grid, order=1)
        result[share > best] = value
        best = np.maximum(best, share)
    return result


def nonzero_box(volume: Volume, canonical: Grid) -> Grid:
    """The part of the scan's canonical grid that holds all voxels that are not 0 in some channel; all of it where none is."""
    nonzero = resample((volume.array != 0).any(0).astype(np.uint8), volume.grid, canonical, order=0)
    if not nonzero.any():
        return canonical
    start, stop = [], []
    for axis in range(3):
        used = np.flatnonzero(nonzero.any(tuple(a for a in range(3) if a != axis)))
        start.append(int(used[0]))
        stop.append(int(used[-1]) + 1)
    return canonical.cropped(tuple(start), tuple(b - a for a, b in zip(start, stop, strict=True)))
