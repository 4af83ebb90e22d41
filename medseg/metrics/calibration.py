"""Calibration: of the voxels that a network gives 80 %, are 80 % in the structure? Bins that add up over cases."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medseg.metrics.overlap import CHUNK_VOXELS
from medseg.metrics.pair import StructurePair

N_BINS = 15
MARGIN = 10.0  # mm, or pixels where sizes are unknown
ROUNDING = 1e-3  # probabilities come from sums of rounded ones and may be stored with few digits

Sums = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Reliability:
    """Voxels binned by the probability that they were given; the sum of two is that of all their voxels together.

    Args:
        counts: (bins,) int64 voxels in each of the equally wide bins from 0 to 1, the upper edge belonging to a bin.
        confidence: (bins,) float64 sum of their probabilities.
        hits: (bins,) int64 of them in the structure.
        squared_error: sum over all voxels of (probability - in the structure) squared.
    """

    counts: npt.NDArray[np.int64]
    confidence: Sums
    hits: npt.NDArray[np.int64]
    squared_error: float

    def __add__(self, other: Reliability) -> Reliability:
        """Raises: ValueError where the numbers of bins differ."""
        if self.counts.size != other.counts.size:
            raise ValueError(
                f"{self.counts.size} and {other.counts.size} bins do not add up; measure all cases with the same bins"
            )
        return Reliability(
            self.counts + other.counts,
            self.confidence + other.confidence,
            self.hits + other.hits,
            self.squared_error + other.squared_error,
        )

    @property
    def mean_confidence(self) -> Sums:
        """(bins,) mean probability in each bin, the x of a reliability diagram; NaN where a bin is empty."""
        return _ratio(self.confidence, self.counts)

    @property
    def hit_rate(self) -> Sums:
        """(bins,) share of each bin's voxels in the structure, the y of a reliability diagram; NaN where a bin is empty."""
        return _ratio(self.hits, self.counts)


def reliability(
    reference: npt.NDArray[np.bool_],
    probability: npt.NDArray[np.floating],
    ignored: npt.NDArray[np.bool_] | None = None,
    n_bins: int = N_BINS,
) -> Reliability:
    """Bins of one structure in one case, over every voxel given: cut to `calibration_box` first.

    Args:
        reference: (X, Y) or (X, Y, Z) bool.
        probability: float of the same shape, that a voxel is in the structure.
        ignored: bool of the same shape, voxels to leave out.
    Raises: ValueError where shapes differ, or a probability is not a number from 0 to 1.
    """
    if reference.shape != probability.shape:
        raise ValueError(f"reference {reference.shape} and probability {probability.shape} are of different shapes")
    flat_reference, flat_probability = reference.ravel(), probability.ravel()
    kept = None if ignored is None else ~ignored.ravel()
    total = Reliability(np.zeros(n_bins, np.int64), np.zeros(n_bins), np.zeros(n_bins, np.int64), 0.0)
    for start in range(0, flat_reference.size, CHUNK_VOXELS):
        piece = slice(start, start + CHUNK_VOXELS)
        inside, given = flat_reference[piece], flat_probability[piece]
        if kept is not None:
            inside, given = inside[kept[piece]], given[kept[piece]]
        total += _binned(inside, _checked(given), n_bins)
    return total


def _binned(inside: npt.NDArray[np.bool_], given: Sums, n_bins: int) -> Reliability:
    bins = np.maximum(np.ceil(given * n_bins), 1).astype(np.intp) - 1
    return Reliability(
        np.bincount(bins, minlength=n_bins),
        np.asarray(np.bincount(bins, given, n_bins), np.float64),
        np.bincount(bins[inside], minlength=n_bins),
        float(((given - inside) ** 2).sum()),
    )


def _checked(given: npt.NDArray[np.floating]) -> Sums:
    if given.size and not (given.min() >= -ROUNDING and given.max() <= 1 + ROUNDING):
        raise ValueError(
            f"probabilities from {given.min():g} to {given.max():g} are not from 0 to 1; give the network's output after softmax"
        )
    return np.clip(given, 0, 1, dtype=np.float64)


def reliability_of(pair: StructurePair) -> Reliability:
    """The bins of a pair, over the box around the structure (`calibration_box`); none in them without probabilities, or where the
    structure is in neither mask.
    """
    given = pair.probabilities()
    place = calibration_box(pair.box and pair.box[: len(pair.sides)], pair.extent, pair.sides)
    if given is None or place is None:
        return reliability(np.zeros(0, bool), np.zeros(0, np.float32))
    return reliability(pair.masks()[0][place], given[place], pair.ignored[place])


def expected_calibration_error(bins: Reliability) -> float:
    """Mean distance between a bin's mean probability and its share of hits, bins weighed by their voxels (ECE).

    Of the structure's own probability, not of the winning class's (Guo et al. 2017 bin the latter; this is the class-wise
    form of Kull et al. 2019, one class at a time).

    Args:
        bins: of one case, or the sum over cases for the pooled figure, which is no mean of theirs.
    Returns: 0 to 1; NaN without voxels. `worst` should write 0 where the structure is in neither mask, and 1 where it is in one
        only or there is no prediction: few voxels with a small probability may look well calibrated, though it was missed.
    """
    voxels = int(bins.counts.sum())
    return float(np.abs(bins.confidence - bins.hits).sum()) / voxels if voxels else math.nan


def brier_score(bins: Reliability) -> float:
    """Mean squared distance between probability and truth (Brier 1950), of the structure alone: 0 to 1, half of the sum over
    two classes. NaN without voxels. `worst` should write what it writes for the calibration error.
    """
    voxels = int(bins.counts.sum())
    return bins.squared_error / voxels if voxels else math.nan


def calibration_box(
    box: Sequence[slice] | None, shape: Sequence[int], spacing: Sequence[float], margin: float = MARGIN
) -> tuple[slice, ...] | None:
    """Where calibration is measured: the box around the structure in both masks, and a margin, within the scan.

    Over a whole scan nearly every voxel is far from the structure and rightly given 0, so the error would shrink with the
    field of view. A false positive far off widens the box: it counts, and so does the background between.

    Args:
        box: where the structure lies in the reference or the prediction; None where it is in neither.
        shape, spacing: of the scan, along the same axes as the box.
        margin: in the unit of the spacing, on each side.
    Returns: a box, or None where there is none: the calibration of an absent structure is undefined.
    """
    if box is None:
        return None
    steps = [math.ceil(margin / size) for size in spacing]
    return tuple(
        slice(max(side.start - step, 0), min(side.stop + step, length))
        for side, step, length in zip(box, steps, shape, strict=True)
    )


def _ratio(part: npt.NDArray[np.number], whole: npt.NDArray[np.int64]) -> Sums:
    return np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0)
