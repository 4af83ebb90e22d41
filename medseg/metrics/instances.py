"""Objects compared one by one: panoptic quality, average precision and aggregated Jaccard index, from one table of overlaps.

A pair of objects matches where its IoU reaches a threshold; each object is in one pair at most. The pairs are chosen so that
there are as many as possible and, among such choices, the sum of their IoU is largest. Above an IoU of 0.5 there is no choice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]
Numbers = npt.NDArray[Any]
Counts = npt.NDArray[np.int64]

CHUNK_VOXELS = 2**22  # compared at a time, so that the memory beside the two arrays stays small
THRESHOLDS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9)


@dataclass(frozen=True, eq=False)
class Overlaps:
    """The objects of two label arrays and which of them share voxels: everything that this module measures is read from it.

    Args:
        reference, prediction: (R,) and (P,) int64 voxels of each object, in the order of their numbers.
        pairs: (N, 2) int64 places in `reference` and in `prediction` of the objects that share a voxel.
        shared: (N,) int64 voxels that each pair shares.
    """

    reference: Counts
    prediction: Counts
    pairs: Counts
    shared: Counts

    @cached_property
    def iou(self) -> npt.NDArray[np.float64]:
        """(N,) intersection over union of each pair."""
        return self.shared / self.unions

    @cached_property
    def unions(self) -> Counts:
        """(N,) voxels in either object of each pair."""
        return self.reference[self.pairs[:, 0]] + self.prediction[self.pairs[:, 1]] - self.shared


@dataclass(frozen=True)
class Panoptic:
    """Panoptic quality and what it is made of (Kirillov et al. 2019).

    Args:
        reference, prediction: objects in each.
        matched: pairs of objects.
        iou_sum: of the pairs.
    """

    reference: int
    prediction: int
    matched: int
    iou_sum: float

    @property
    def segmentation_quality(self) -> float:
        """Mean IoU of the pairs; 0 where there are objects in both but no pair, NaN where either is empty.

        The convention `worst` writes 1 where both are empty and 0 where one is. No pair is the worst of outlines, so it is not
        left out of a mean.
        """
        if not self.reference or not self.prediction:
            return math.nan
        return self.iou_sum / self.matched if self.matched else 0.0

    @property
    def recognition_quality(self) -> float:
        """F1 score of the objects; NaN where both are empty (`worst`: 1), 0 where one is."""
        return f1(self.matched, self.reference, self.prediction)

    @property
    def quality(self) -> float:
        """Segmentation times recognition quality; NaN where both are empty (`worst`: 1), 0 where one is."""
        objects = self.reference + self.prediction
        return 2 * self.iou_sum / objects if objects else math.nan


def count_overlaps(reference: Numbers, prediction: Numbers) -> Overlaps:
    """One pass over two label arrays.

    Args:
        reference, prediction: integers (or bool) of one shape; 0 is background, every other number an object, in one piece or
            several. Numbers need not be consecutive, nor the same in both.
    Raises: ValueError where shapes differ or an array holds no integers.
    """
    if reference.shape != prediction.shape:
        raise ValueError(f"reference {reference.shape} and prediction {prediction.shape} are of different shapes")
    for name, numbers in (("reference", reference), ("prediction", prediction)):
        if numbers.dtype.kind not in "iub":
            raise ValueError(f"the objects of the {name} are numbered by {numbers.dtype}, not by integers")
    there, found, voxels = _runs(reference.ravel(), prediction.ravel())
    there, reference_sizes = _sizes(there, voxels)
    found, prediction_sizes = _sizes(found, voxels)
    both = (there >= 0) & (found >= 0)
    width = max(1, len(prediction_sizes))
    codes, which = np.unique(there[both] * width + found[both], return_inverse=True)
    pairs = np.stack(np.divmod(codes, width), axis=1)
    return Overlaps(reference_sizes, prediction_sizes, pairs, _sums(which, voxels[both], len(codes)))


def _runs(reference: Numbers, prediction: Numbers) -> tuple[Numbers, Numbers, Counts]:
    """Stretches of neighbouring voxels with the same two numbers, background in both left out: far fewer than voxels."""
    found: list[tuple[Numbers, Numbers, Counts]] = [(reference[:0], prediction[:0], np.zeros(0, np.int64))]
    for start in range(0, reference.size, CHUNK_VOXELS):
        one, other = (numbers[start : start + CHUNK_VOXELS] for numbers in (reference, prediction))
        starts = np.flatnonzero(np.concatenate([[True], (one[1:] != one[:-1]) | (other[1:] != other[:-1])]))
        lengths = np.diff(starts, append=one.size)
        objects = (one[starts] != 0) | (other[starts] != 0)
        found.append((one[starts][objects], other[starts][objects], lengths[objects]))
    one, other, lengths = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return one, other, lengths


def _sizes(numbers: Numbers, voxels: Counts) -> tuple[Counts, Counts]:
    """The object of each stretch, counted from 0 (-1 is background), and the voxels of each object."""
    values, which = np.unique(numbers, return_inverse=True)
    objects = values != 0
    order = np.where(objects, np.cumsum(objects) - 1, -1)[which]
    return order, _sums(order[order >= 0], voxels[order >= 0], int(objects.sum()))


def _sums(which: Counts, voxels: Counts, n: int) -> Counts:
    return np.bincount(which, voxels, n).astype(np.int64)  # added as float64: exact up to 2 ** 53 voxels


def match_objects(overlaps: Overlaps, iou: float) -> Counts:
    """The pairs that match: one to one, as many as can be, and of those choices the one with the largest sum of IoU.

    Args:
        iou: that a pair must reach, 0 to 1; 0 for pairs that share any voxel.
    Returns: (M,) int64 places in `overlaps.pairs`.
    """
    if not 0 <= iou <= 1:
        raise ValueError(f"an IoU of {iou:g} is not between 0 and 1")
    near = np.flatnonzero(overlaps.iou >= iou)
    one, other = overlaps.pairs[near].T
    contested = (np.bincount(one)[one] > 1) | (np.bincount(other)[other] > 1)
    return np.sort(np.concatenate([near[~contested], _assign(overlaps, near[contested])]))


def _assign(overlaps: Overlaps, near: Counts) -> Counts:
    """Those of the pairs `near` that an optimal assignment chooses."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import min_weight_full_bipartite_matching

    if not len(near):
        return near
    (rows, one), (columns, other) = (np.unique(side, return_inverse=True) for side in overlaps.pairs[near].T)
    n, m = len(rows), len(columns)
    # Every reference object may also take a partner of its own that stands for none; a real pair outweighs it, and more
    # pairs outweigh any sum of IoU.
    weights = np.concatenate([2 + overlaps.iou[near] / (n + 1), np.ones(n)])
    places = np.concatenate([one, np.arange(n)]), np.concatenate([other, m + np.arange(n)])
    chosen = min_weight_full_bipartite_matching(coo_array((weights, places), shape=(n, m + n)).tocsr(), maximize=True)[1]
    return near[chosen[one] == other]


def panoptic(overlaps: Overlaps, iou: float = 0.5) -> Panoptic:
    """Panoptic quality of the objects (Kirillov et al. 2019), at IoU of at least (there: above) 0.5."""
    matched = match_objects(overlaps, iou)
    # fsum: the same to the last bit, however the objects are numbered.
    return Panoptic(len(overlaps.reference), len(overlaps.prediction), len(matched), math.fsum(overlaps.iou[matched]))


def average_precision(overlaps: Overlaps, iou: float) -> float:
    """TP / (TP + FP + FN) of the objects at an IoU, which StarDist and Cellpose call average precision.

    It is no area under a curve of precision and recall (COCO): masks carry no confidence to draw one from.

    Returns: NaN where both are empty (`worst`: 1), 0 where one is.
    """
    matched = len(match_objects(overlaps, iou))
    objects = len(overlaps.reference) + len(overlaps.prediction) - matched
    return matched / objects if objects else math.nan


def mean_average_precision(overlaps: Overlaps, ious: Sequence[float] = THRESHOLDS) -> float:
    """Mean of `average_precision` over IoU 0.5, 0.55, ... 0.9; empty masks as there."""
    return float(np.mean([average_precision(overlaps, iou) for iou in ious]))


def aggregated_jaccard(overlaps: Overlaps) -> float:
    """Aggregated Jaccard index (Kumar et al. 2017, algorithm 1).

    Each reference object takes the predicted one with the highest IoU, which several may take. The voxels shared are divided by
    the voxels in either, summed over the reference objects, plus all voxels of predicted objects that none took.

    Returns: 0 to 1; NaN where both are empty (`worst`: 1), 0 where one is.
    """
    one, other = overlaps.pairs.T
    order = np.lexsort((other, -overlaps.iou, one))  # of equal IoU, the lower number
    best = order[np.unique(one[order], return_index=True)[1]]
    missed, spare = overlaps.reference.copy(), overlaps.prediction.copy()
    missed[one[best]] = spare[other[best]] = 0
    union = overlaps.unions[best].sum() + missed.sum() + spare.sum()
    return float(overlaps.shared[best].sum() / union) if union else math.nan


def f1(matched: int, reference: int, prediction: int) -> float:
    """F1 score of objects; NaN where there are none in either."""
    return 2 * matched / (reference + prediction) if reference + prediction else math.nan
