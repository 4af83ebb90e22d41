"""One structure in a reference and a prediction: what every metric is computed from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from medseg.core.components import Box, box_around, boxes_of, number_components
from medseg.core.grid import Grid
from medseg.core.labels import IGNORE
from medseg.metrics.instances import Numbers
from medseg.metrics.overlap import Counts, confusion_matrix, counts_of
from medseg.metrics.surface import SurfaceDistances, surface_distances

Classes = npt.NDArray[np.uint8]
T = TypeVar("T")

NOWHERE: Box = (slice(0, 0),) * 3
LESION_OVERLAP = 0.1  # IoU from which on a lesion is found: small lesions are seldom outlined alike


@dataclass(frozen=True)
class Frame:
    """What sizes are measured in: mm or pixels, volumes or areas. One for all the cases of an evaluation.

    Args:
        physical: voxel sizes are known.
        planar: every case is one voxel thick, so surfaces are contours and volumes are areas.
    """

    physical: bool
    planar: bool

    @property
    def length_unit(self) -> str:
        return "mm" if self.physical else "px"

    @property
    def size_unit(self) -> str:
        return {(True, False): "ml", (True, True): "mm2", (False, False): "voxels", (False, True): "px"}[
            self.physical, self.planar
        ]

    def voxel_size(self, grid: Grid) -> float:
        """Volume (or area) of one voxel in `size_unit`."""
        if not self.physical:
            return 1.0
        return grid.spacing[0] * grid.spacing[1] if self.planar else grid.voxel_volume / 1000


@dataclass(frozen=True, eq=False)
class StructurePair:
    """One structure in a reference and a prediction on the same grid.

    Args:
        classes: class indices of the structure; several where it is a region.
        reference: (X, Y, Z) uint8 class indices; 255 is ignored.
        prediction: the same; 0 wherever the reference is ignored.
        box: where the structure lies in either, or None where it is in neither.
        tolerance: of the surface Dice, in `frame.length_unit`.
        lesion_overlap: IoU from which on a lesion is found.
        probability: gives (X, Y, Z) float32, the structure's probability; None where none was kept.
        reference_numbers, prediction_numbers: (X, Y, Z) unsigned, values that differ from object to object, 0 in none; whatever
            they are outside of the structure. None where connected pieces are the objects.
    """

    classes: tuple[int, ...]
    counts: Counts
    reference: Classes
    prediction: Classes
    box: Box | None
    grid: Grid
    frame: Frame
    tolerance: float
    lesion_overlap: float = LESION_OVERLAP
    probability: Callable[[], npt.NDArray[np.float32] | None] | None = None
    reference_numbers: Numbers | None = None
    prediction_numbers: Numbers | None = None
    _found: dict[Any, Any] = field(default_factory=dict, init=False, repr=False)

    def once(self, measure: Callable[[StructurePair], T]) -> T:
        """What a function finds in this pair, computed once for all the metrics that read it."""
        if measure not in self._found:
            self._found[measure] = measure(self)
        return self._found[measure]

    def masks(self, box: Box | None = None) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """The structure in the reference and in the prediction, (X, Y) where planar, else (X, Y, Z)."""
        place = self._place(box)
        return self._of(self.reference[place]), self._of(self.prediction[place])

    def boxed_masks(self) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """The same in `box` alone; of no voxels where the structure is in neither."""
        return self.masks(self.box or NOWHERE)

    def _place(self, box: Box | None) -> Any:
        """What picks the box, or all, out of an array (X, Y, Z)."""
        return (*(box or (slice(None),) * 3)[:2], 0) if self.frame.planar else box or ...

    def _of(self, classes: Classes) -> npt.NDArray[np.bool_]:
        if len(self.classes) == 1:
            return classes == self.classes[0]
        member = np.zeros(IGNORE + 1, bool)
        member[list(self.classes)] = True
        return member[classes]

    def objects(self) -> tuple[Numbers, Numbers]:
        """The structure's objects in the reference and in the prediction, in `box`: integers, 0 is background.

        Either has the numbers of its file, or without them its connected components. Ignored voxels are in no object.
        """
        of_reference, of_prediction = self.boxed_masks()
        place = self._place(self.box or NOWHERE)
        return _numbered(of_reference, self.reference_numbers, place), _numbered(of_prediction, self.prediction_numbers, place)

    @property
    def ignored(self) -> npt.NDArray[np.bool_]:
        """Voxels that are not looked at, of the shape of `masks()`."""
        return (self.reference[..., 0] if self.frame.planar else self.reference) == IGNORE

    def probabilities(self) -> npt.NDArray[np.float32] | None:
        """The structure's probability, of the shape of `masks()`; None where none was kept."""
        given = self.probability() if self.probability else None
        return given[..., 0] if given is not None and self.frame.planar else given

    @property
    def sides(self) -> tuple[float, ...]:
        """Voxel size along each axis of `masks()`."""
        return self.grid.spacing[:2] if self.frame.planar else self.grid.spacing

    @property
    def extent(self) -> tuple[int, ...]:
        """Shape of `masks()`."""
        return self.grid.shape[:2] if self.frame.planar else self.grid.shape

    @cached_property
    def distances(self) -> SurfaceDistances | None:
        """Distances between the two surfaces, or None where one of the masks is empty."""
        if not self.counts.reference or not self.counts.prediction:
            return None
        return surface_distances(*self.masks(self.box), self.sides)


def pair_structures(
    reference: Classes,
    prediction: Classes,
    grid: Grid,
    frame: Frame,
    measured: Sequence[Sequence[int]],
    tolerances: Sequence[float],
    lesion_overlap: float = LESION_OVERLAP,
) -> list[StructurePair]:
    """Every structure or region of a case as a pair; the voxels are counted once for all of them.

    Args:
        reference, prediction: (X, Y, Z) uint8 class indices on `grid`; voxels that are 255 in the reference are left out of
            everything (for surfaces they are background in both).
        measured: the class indices of each structure or region; each class is in one of them at least.
        tolerances: one each, in the same order.
        lesion_overlap: IoU from which on a lesion is found.
    """
    n_classes = max(index for classes in measured for index in classes) + 1
    if (ignored := reference == IGNORE).any():
        prediction = np.where(ignored, np.uint8(0), prediction)
    matrix = confusion_matrix(reference, prediction, n_classes)
    boxes = [boxes_of(labels, n_classes - 1) for labels in (reference, prediction)]
    return [
        StructurePair(
            tuple(classes),
            counts_of(matrix, classes),
            reference,
            prediction,
            box_around(found[index - 1] for found in boxes for index in classes),
            grid,
            frame,
            tolerance,
            lesion_overlap,
        )
        for classes, tolerance in zip(measured, tolerances, strict=True)
    ]


def _numbered(mask: npt.NDArray[np.bool_], numbers: Numbers | None, place: Any) -> Numbers:
    return number_components(mask)[0] if numbers is None else numbers[place] * mask
