"""Overlap of labels: one pass over the voxels counts the pairs of classes, and every figure is read from the counts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

CHUNK_VOXELS = 2**16  # bincount widens its input to 8 bytes a voxel; pieces of this size stay in the processor's cache


@dataclass(frozen=True)
class Counts:
    """Voxels of one structure: found, invented and missed, and all voxels looked at."""

    true_positive: int
    false_positive: int
    false_negative: int
    total: int

    @property
    def reference(self) -> int:
        """Voxels of the structure in the reference."""
        return self.true_positive + self.false_negative

    @property
    def prediction(self) -> int:
        """Voxels of the structure in the prediction."""
        return self.true_positive + self.false_positive

    @property
    def true_negative(self) -> int:
        """Voxels that are of the structure in neither."""
        return self.total - self.reference - self.false_positive


def confusion_matrix(
    reference: npt.NDArray[np.uint8], prediction: npt.NDArray[np.uint8], n_classes: int
) -> npt.NDArray[np.int64]:
    """How often each class of the reference meets each class of the prediction.

    Args:
        reference, prediction: class indices, of one shape; voxels where the reference is 255 (ignored) are left out, and
            255 in the prediction counts as background.
        n_classes: structures plus background.
    Returns: (n_classes, n_classes) int64; rows are the reference, columns the prediction.
    """
    if reference.shape != prediction.shape:
        raise ValueError(f"reference {reference.shape} and prediction {prediction.shape} are of different shapes")
    size = n_classes + 1  # the last class holds the ignored voxels (255, above every structure's index)
    # Files of most formats lie in Fortran order: flattened as they lie, nothing is copied.
    order: Literal["F", "C"] = "F" if reference.flags.f_contiguous else "C"
    flat_reference, flat_prediction = reference.ravel(order), prediction.ravel(order)
    total = np.zeros(size * size, np.int64)
    for start in range(0, flat_reference.size, CHUNK_VOXELS):
        a, b = flat_reference[start : start + CHUNK_VOXELS], flat_prediction[start : start + CHUNK_VOXELS]
        somewhere = (a | b) != 0
        if (absent := len(a) - np.count_nonzero(somewhere)) > len(a) // 2:  # most of a scan is background in both
            a, b = a[somewhere], b[somewhere]
            total[0] += absent
        pairs = np.minimum(a, n_classes).astype(np.uint16)
        pairs *= size
        pairs += np.minimum(b, n_classes)
        total += np.bincount(pairs, minlength=size * size)
    matrix = total.reshape(size, size)
    matrix[:, 0] += matrix[:, n_classes]
    return matrix[:n_classes, :n_classes]


def counts_of(matrix: npt.NDArray[np.int64], classes: Sequence[int]) -> Counts:
    """The counts of the union of some classes in a confusion matrix."""
    of = list(classes)
    found, predicted, present = (int(part.sum()) for part in (matrix[np.ix_(of, of)], matrix[:, of], matrix[of]))
    return Counts(found, predicted - found, present - found, int(matrix.sum()))


def dice(counts: Counts) -> float:
    """Dice similarity coefficient (Dice 1945); NaN where both masks are empty."""
    return _ratio(2 * counts.true_positive, counts.reference + counts.prediction)


def iou(counts: Counts) -> float:
    """Intersection over union (Jaccard 1912); NaN where both masks are empty."""
    return _ratio(counts.true_positive, counts.reference + counts.false_positive)


def precision(counts: Counts) -> float:
    """Share of the predicted voxels that are right; NaN where nothing is predicted."""
    return _ratio(counts.true_positive, counts.prediction)


def sensitivity(counts: Counts) -> float:
    """Share of the reference voxels that are found (recall); NaN where the reference is empty."""
    return _ratio(counts.true_positive, counts.reference)


def specificity(counts: Counts) -> float:
    """Share of the voxels outside the reference that are left alone; NaN where the reference fills the scan.

    With nothing predicted it is 1, so in the convention `worst` a missed structure counts as 0. Mostly air makes it close to 1
    for whatever mask: read it where the rest of the scan is as large as the structure.
    """
    return _ratio(counts.true_negative, counts.true_negative + counts.false_positive)


def volume_similarity(counts: Counts) -> float:
    """1 - |FN - FP| / (2 TP + FP + FN), the sizes alone compared (Taha and Hanbury 2015).

    Returns: 1 for masks of one size wherever they lie; 0 where one is empty; NaN where both are.
    """
    both = counts.reference + counts.prediction
    return _ratio(both - abs(volume_difference(counts)), both)


def volume_difference(counts: Counts) -> int:
    """Voxels predicted less voxels of the reference: above 0 the prediction is too large. Defined for empty masks too."""
    return counts.prediction - counts.reference


def absolute_volume_difference(counts: Counts) -> int:
    """Voxels by which the sizes differ; 0 where both masks are empty, and all of the other mask where one is."""
    return abs(volume_difference(counts))


def relative_volume_difference(counts: Counts) -> float:
    """The signed difference as a share of the reference: -1 where nothing is predicted; NaN where the reference is empty."""
    return _ratio(volume_difference(counts), counts.reference)


def absolute_relative_volume_difference(counts: Counts) -> float:
    """The same without its sign (Heimann et al. 2009): 1 where nothing is predicted, no bound above; NaN without a reference."""
    return abs(relative_volume_difference(counts))


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else math.nan
