"""Overlap of labels: one pass over the voxels counts the pairs of classes, and every figure is read from the counts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

CHUNK_VOXELS = 2**22  # bincount widens its input to 8 bytes a voxel, so a large scan is counted in pieces


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
    flat_reference, flat_prediction = reference.ravel(), prediction.ravel()
    total = np.zeros(size * size, np.int64)
    for start in range(0, flat_reference.size, CHUNK_VOXELS):
        piece = slice(start, start + CHUNK_VOXELS)
        pairs = np.minimum(flat_reference[piece], n_classes).astype(np.uint16)
        pairs *= size
        pairs += np.minimum(flat_prediction[piece], n_classes)
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


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else math.nan
