"""A case laid out to be drawn: turned as radiologists read, its planes named, cropped to what is looked at."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from medseg.core.grid import Grid
from medseg.core.labels import IGNORE
from medseg.core.resample import resample
from medseg.core.volume import Volume
from medseg.drawing.windows import Limits, Percentiles, intensity_limits, stretch

Array = npt.NDArray[Any]

CONTEXT = 0.75  # of the structures' size, kept on each side of them in a volume
LEAST_CONTEXT_VOXELS, LEAST_CONTEXT_SLICES = 12, 2  # along the finest axis of a volume, and along any other
LEAST_CONTEXT_PIXELS = 32
LITTLE = 1 / 3  # of a picture's side: one that structures and their context fill less of is cropped


@dataclass(frozen=True)
class View:
    """How one plane of a canonical (R, A, S) or stored array is laid on paper.

    Args:
        axis: the array axis that the plane is perpendicular to.
        across, down: the array axes that run to the right and down the page, and whether each runs backwards.
        letters: what lies at the left, right, top and bottom; empty where the orientation is unknown.
    """

    name: str
    axis: int
    across: int
    down: int
    backwards: bool
    letters: str = ""

    def slice(self, array: Array, index: int) -> Array:
        """Plane `index` of (X, Y, Z, ...) as (rows, columns, ...), row 0 at the top."""
        plane = np.take(array, index, self.axis)
        plane = np.swapaxes(plane, 0, 1)  # the axis across is always the earlier one
        return plane[::-1, ::-1] if self.backwards else plane


# As radiologists read: the patient's right on the left of the page; front, or top, up; sagittal planes face left.
ANATOMICAL: dict[str, View] = {
    "axial": View("Axial", 2, 0, 1, True, "RLAP"),
    "coronal": View("Coronal", 1, 0, 2, True, "RLSI"),
    "sagittal": View("Sagittal", 0, 1, 2, True, "APSI"),
}
STACK: dict[str, View] = {
    "axial": View("XY", 2, 0, 1, False),
    "coronal": View("XZ", 1, 0, 2, False),
    "sagittal": View("YZ", 0, 1, 2, False),
}
FLAT = View("", 2, 0, 1, False)


@dataclass(frozen=True, eq=False)
class Scene:
    """A case laid out to be drawn.

    Args:
        picture: (X, Y, Z) or, in colour, (X, Y, Z, 3): intensities as read.
        reference, prediction: (X, Y, Z) class indices, 255 ignored; None where there is none.
        grid: of all of them: right, anterior, superior where a volume has a physical size, else as stored.
        limits: the intensities shown as black and as white.
        blank: whether there is no picture, only outlines.
    """

    picture: Array
    reference: Array | None
    prediction: Array | None
    grid: Grid
    limits: Limits
    blank: bool = False

    @property
    def views(self) -> dict[str, View]:
        """The planes by name; a 2D picture has one."""
        if self.grid.planar:
            return {"axial": FLAT}
        return ANATOMICAL if self.grid.physical else STACK

    def inside(self, classes: Collection[int] = ()) -> npt.NDArray[np.bool_]:
        """(X, Y, Z): where the reference, or else the prediction, has one of these classes, by default any structure."""
        for found in (self.reference, self.prediction):
            if found is not None and (mask := np.isin(found, list(classes)) if classes else inside_structures(found)).any():
                return mask
        return np.zeros(self.grid.shape, bool)

    def cropped(self, mask: Array) -> Scene:
        """A volume without what lies further from the mask than some context; all of it where the mask is empty.

        A 2D picture stays whole, but along an axis of which all structures fill little.
        """
        if self.grid.planar and self.prediction is not None:
            mask = mask | inside_structures(self.prediction)  # what is not there, too
        if not mask.any():
            return self
        x, y, z = box = tuple(self._near(mask, axis) for axis in range(3))
        return replace(
            self,
            picture=self.picture[x, y, z],
            reference=None if self.reference is None else self.reference[x, y, z],
            prediction=None if self.prediction is None else self.prediction[x, y, z],
            grid=self.grid.cropped(tuple(b.start for b in box), tuple(b.stop - b.start for b in box)),
        )

    def _near(self, mask: Array, axis: int) -> slice:
        """The part of an axis that a mask and its context take."""
        filled, size = np.flatnonzero(mask.any(tuple(a for a in range(3) if a != axis))), mask.shape[axis]
        first, last = int(filled[0]), int(filled[-1]) + 1
        if self.grid.planar:
            context = max(LEAST_CONTEXT_PIXELS, round(CONTEXT * (last - first)))
            little = last - first + 2 * context < LITTLE * size
            return slice(max(0, first - context), min(last + context, size)) if little else slice(0, size)
        # Of thick slices as much is shown as of thin ones in mm: many of them would leave little room for the others' planes.
        least = max(LEAST_CONTEXT_SLICES, round(LEAST_CONTEXT_VOXELS * min(self.grid.spacing) / self.grid.spacing[axis]))
        context = max(least, round(CONTEXT * (last - first)))
        return slice(max(0, first - context), min(last + context, size))

    def shown(self, view: View, index: int) -> npt.NDArray[np.float32]:
        """One plane of the picture in [0, 1], (rows, columns) or (rows, columns, 3)."""
        return stretch(view.slice(self.picture, index), self.limits)


def set_scene(
    image: Volume,
    reference: Array | None,
    prediction: Array | None,
    channel: int | None = None,
    percentiles: Percentiles = (1, 99),
) -> Scene:
    """Turn a case the way it is shown, without interpolation.

    Args:
        image: the scan; one channel is shown, or all three of a colour picture.
        reference, prediction: (X, Y, Z) class indices on the scan's grid, 255 ignored; None where there is none.
        channel: which channel to show; by default the first, or colour where a 2D picture has three.
    """
    grid = image.grid
    shown = grid.canonical() if grid.physical and not grid.planar else grid
    colour = channel is None and image.array.shape[0] == 3 and grid.planar
    channels = image.array if colour else image.array[[channel or 0]]
    turned = np.moveaxis(resample(channels, grid, shown, 0), 0, -1)
    maps = [None if m is None else resample(m, grid, shown, 0) for m in (reference, prediction)]
    return Scene(turned if colour else turned[..., 0], maps[0], maps[1], shown, intensity_limits(channels, percentiles))


def pick_planes(mask: Array) -> tuple[int, int, int]:
    """The plane along each axis to look at a structure in: through its centre of mass.

    Where the centre of mass lies off the structure (a left and a right kidney, say), the plane that shows most of it.

    Args:
        mask: (X, Y, Z) bool; an empty one gives the middle of the volume.
    """
    chosen = []
    for axis in range(3):
        areas = np.count_nonzero(mask, tuple(a for a in range(3) if a != axis))
        if not areas.any():
            chosen.append(mask.shape[axis] // 2)
            continue
        centre = round(float(np.average(np.arange(areas.size), weights=areas)))
        chosen.append(centre if areas[centre] >= 0.25 * areas.max() else int(areas.argmax()))
    return chosen[0], chosen[1], chosen[2]


def inside_structures(classes: Array) -> npt.NDArray[np.bool_]:
    """Where class indices name a structure: neither background nor ignored."""
    return (classes > 0) & (classes != IGNORE)
