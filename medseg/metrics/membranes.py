"""Membranes in electron microscopy: not where the lines run, but whether they part the same cells (ISBI 2012)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from medseg.metrics.pair import StructurePair

Mask = npt.NDArray[np.bool_]
Labels = npt.NDArray[np.integer[Any]]

ISBI_THRESHOLDS = tuple(step / 10 for step in range(11))  # of the probability of being inside a cell


@dataclass(frozen=True)
class CellScores:
    """Agreement of two partitions into cells, 1 for the same cells (Arganda-Carreras et al. 2015, equations 3 to 6).

    Args:
        v_rand: F score of the next two.
        rand_split: of the pixel pairs in one reference cell, the share that lies in one predicted cell; low where cells are cut.
        rand_merge: of the pixel pairs in one predicted cell, the share that lies in one reference cell; low where cells run
            together.
        v_info: mutual information over the mean of both entropies; NaN where both partitions are a single cell.
        info_split: mutual information over the prediction's entropy; NaN where the prediction is a single cell.
        info_merge: mutual information over the reference's entropy; NaN where the reference is a single cell.
    """

    v_rand: float
    rand_split: float
    rand_merge: float
    v_info: float
    info_split: float
    info_merge: float


@dataclass(frozen=True)
class BestScores:
    """The largest V-Rand and the largest V-Info over thresholds, each with its own threshold, as the challenge ranks."""

    v_rand: float
    v_rand_threshold: float
    v_info: float
    v_info_threshold: float


def score_cells(reference: Mask, prediction: Mask, ignored: Mask | None = None, thin: bool = True) -> CellScores:
    """V-Rand and V-Info, foreground-restricted, as the ISBI 2012 challenge scores them.

    Cells are what is not membrane, connected over edges (4 neighbours). Pixels that are membrane in the reference are left out.
    The predicted membrane is first thinned to one pixel, so its thickness costs nothing; each pixel that it still covers inside
    a reference cell is a segment of its own. The reference is not thinned.

    Args:
        reference, prediction: (X, Y) bool, True on the membrane; or (X, Y, Z), where each slice along Z is scored by itself and
            the mean is given, as in the challenge.
        ignored: pixels to leave out besides; no cell reaches across them.
        thin: False to score the predicted membrane as thick as it is.
    Returns: all NaN where the reference has no pixel outside the membrane; the mean of a stack leaves undefined figures out.
        `worst` should write 1 where neither mask has a membrane and 0 where one has none.
    """
    if reference.ndim == 3:
        return _mean([score_cells(*pieces, thin) for pieces in _slices(reference, prediction, ignored)])
    segments = thin_membrane(prediction, ignored) if thin else find_cells(prediction, ignored)
    return _compare(find_cells(reference, ignored), segments)


def score_cells_at(
    reference: Mask,
    probability: npt.NDArray[np.float32],
    thresholds: Sequence[float] = ISBI_THRESHOLDS,
    ignored: Mask | None = None,
) -> list[CellScores]:
    """`score_cells` of the picture cut at each threshold: a pixel is in a cell where 1 - probability is above it.

    Args:
        reference, ignored: as in `score_cells`.
        probability: float32 of the same shape, of the membrane, from 0 to 1.
    Returns: one for each threshold. The challenge takes the mean over all slices at a threshold first and then the largest
        mean; the largest of each slice by itself is a little higher.
    """
    return [score_cells(reference, ~(1 - probability > threshold), ignored) for threshold in thresholds]


def threshold_scores(pair: StructurePair) -> list[CellScores]:
    """`score_cells_at` of a structure for each of ISBI_THRESHOLDS; empty where its probabilities were not kept."""
    given = pair.probabilities()
    return [] if given is None else score_cells_at(pair.masks()[0], given, ignored=pair.ignored)


def best_scores(scores: Sequence[CellScores], thresholds: Sequence[float] = ISBI_THRESHOLDS) -> BestScores:
    """The largest figures over thresholds, the lower threshold of two that are as good; NaN where no threshold has a figure.

    Args:
        scores: one for each threshold, or none.
    """
    best: list[float] = []
    for values in ([s.v_rand for s in scores], [s.v_info for s in scores]):
        defined = [place for place, value in enumerate(values) if not math.isnan(value)]
        place = max(defined, key=values.__getitem__, default=None)
        best += [math.nan, math.nan] if place is None else [values[place], thresholds[place]]
    return BestScores(*best)


def find_cells(membrane: Mask, ignored: Mask | None = None) -> Labels:
    """Cells numbered from 1, connected over faces (4 neighbours in 2D, 6 in 3D); 0 on the membrane and where ignored."""
    from scipy import ndimage

    # Ignored pixels must not join predicted cells either: they are no membrane, whatever the prediction holds there.
    cells: Labels = ndimage.label(~membrane if ignored is None else ~membrane & ~ignored)[0]
    return cells


def thin_membrane(membrane: Mask, ignored: Mask | None = None) -> Labels:
    """Cells grown into the membrane until one pixel is left of it where two cells meet (a watershed of the mask).

    Membrane that ends inside a cell disappears. A picture that is membrane all over is one cell, as in the challenge's script.
    """
    from skimage.segmentation import watershed

    open_to_cells = np.ones_like(membrane) if ignored is None else ~ignored
    cells = find_cells(membrane, ignored)
    if not cells.any():
        return open_to_cells.astype(np.int32)
    grown: Labels = watershed(np.zeros(membrane.shape, np.uint8), cells, connectivity=1, mask=open_to_cells, watershed_line=True)
    return grown


def _compare(cells: Labels, segments: Labels) -> CellScores:
    """Rand and information scores over the pixels inside reference cells."""
    inside = cells > 0
    if not inside.any():
        return CellScores(*[math.nan] * 6)
    truth, segment = cells[inside].astype(np.int64), segments[inside].astype(np.int64)
    lone = segment == 0
    segment[lone] = segment.max() + 1 + np.arange(np.count_nonzero(lone))
    joint, of_truth, of_segment = (
        np.unique(labels, return_counts=True)[1] / truth.size
        for labels in (truth * (segment.max() + 1) + segment, truth, segment)
    )
    pairs, truth_pairs, segment_pairs = (float(p @ p) for p in (joint, of_truth, of_segment))
    joint_entropy, truth_entropy, segment_entropy = (-float(p @ np.log(p)) for p in (joint, of_truth, of_segment))
    shared = max(truth_entropy + segment_entropy - joint_entropy, 0.0)
    return CellScores(
        _share(2 * pairs, truth_pairs + segment_pairs),
        _share(pairs, truth_pairs),
        _share(pairs, segment_pairs),
        _share(2 * shared, truth_entropy + segment_entropy),
        _share(shared, segment_entropy),
        _share(shared, truth_entropy),
    )


def _share(part: float, whole: float) -> float:
    """At most 1: rounding may carry a sum of many shares past it."""
    return min(part / whole, 1.0) if whole > 0 else math.nan


def _mean(scores: Sequence[CellScores]) -> CellScores:
    columns = zip(*(astuple(score) for score in scores), strict=True)
    defined = [[value for value in column if not math.isnan(value)] for column in columns]
    return CellScores(*[sum(values) / len(values) if values else math.nan for values in defined])


def _slices(reference: Mask, prediction: Mask, ignored: Mask | None) -> list[tuple[Mask, Mask, Mask | None]]:
    return [
        (reference[..., z], prediction[..., z], None if ignored is None else ignored[..., z]) for z in range(reference.shape[2])
    ]


def adapted_rand_error(reference: Mask, prediction: Mask, ignored: Mask | None = None) -> float:
    """1 - F score of pairs of pixels that lie in one cell (Arganda-Carreras et al. 2015), by scikit-image.

    Cells are the connected components of what is not membrane, over faces (4 neighbours in 2D, 6 in 3D), in each mask. Pixels
    that are membrane in the reference are left out; the predicted membrane among the rest counts as one more segment, as thick
    as it is.

    Args:
        reference, prediction: (X, Y) or (X, Y, Z) bool, True on the membrane.
        ignored: pixels to leave out besides.
    Returns: 0 (the same cells) to 1; NaN where the reference has no pixel outside the membrane.
    """
    from skimage.metrics import adapted_rand_error as scikit_image_error

    cells = find_cells(reference, ignored)
    if not cells.any():
        return math.nan
    # Two 2D pictures of one pixel, or cells of one pixel each, hold no pair; scikit-image then divides 0 by 0.
    with np.errstate(invalid="ignore", divide="ignore"):
        error, _, _ = scikit_image_error(cells, find_cells(prediction, ignored))
    return float(error)


def warping_error(reference: Mask, prediction: Mask, ignored: Mask | None = None) -> float:
    """Share of the pixels that differ after the reference was bent towards the prediction (Jain et al. 2010).

    Bending shifts lines but neither parts nor joins cells, so what is left are splits, merges, lost and invented cells. A line
    is followed as far as it still touches the one it came from; further off it counts as lost here and invented there.

    Args:
        reference, prediction: (X, Y) bool, True on the membrane; or (X, Y, Z), where the mean over the slices along Z is given.
        ignored: pixels that are neither changed nor counted.
    Returns: 0 to 1; NaN where every pixel is ignored. `worst` should write 0 where neither mask has a membrane and 1 where one
        has none.
    """
    if reference.ndim == 3:
        errors = [warping_error(*pieces) for pieces in _slices(reference, prediction, ignored)]
        defined = [error for error in errors if not math.isnan(error)]
        return sum(defined) / len(defined) if defined else math.nan
    counted = np.ones_like(reference) if ignored is None else ~ignored
    differing = (warp(reference, prediction, ignored) != prediction) & counted
    return int(differing.sum()) / int(counted.sum()) if counted.any() else math.nan


def warp(reference: Mask, prediction: Mask, ignored: Mask | None = None) -> Mask:
    """The reference with every pixel flipped towards the prediction that can be without a change of topology.

    A pixel may flip where it is simple (Bertrand and Malandain 1994): cells are connected over 4 neighbours, membranes over 8,
    and beyond the border lies membrane. Pixels flip in rounds from where the masks touch; as with any order, a shorter way may
    be missed. No pixel flips back, so there are at most as many rounds as pixels that differ; a few are usual.
    """
    cells, wanted = np.pad(~reference, 1), np.pad(~prediction, 1)
    differing = (cells != wanted) & (True if ignored is None else np.pad(~ignored, 1))
    width = cells.shape[1]
    around = (-width, -width + 1, 1, width + 1, width, width - 1, -1, -width - 1)
    flat, goal, left = cells.ravel(), wanted.ravel(), np.flatnonzero(differing)
    before = -1
    while left.size != before:
        before = left.size
        # Two pixels of one quarter of the lattice never touch, so that they may flip at once.
        quarter = (left // width % 2) * 2 + left % width % 2
        for part in range(4):
            pixels = left[quarter == part]
            codes = sum(flat[pixels + offset].astype(np.uint8) << bit for bit, offset in enumerate(around))
            flat[pixels[_simple()[codes]]] ^= True
        left = left[flat[left] != goal[left]]
    return ~flat.reshape(cells.shape)[1:-1, 1:-1]


@lru_cache
def _simple() -> Mask:
    """For each code of the ring of 8 neighbours, clockwise from an edge neighbour: may the pixel inside flip?

    It may where its connectivity number (Yokoi et al. 1975) is 1: edge neighbours in a cell, less those joined to the next one
    by the corner between them. A ring that is all cell has 0.
    """
    ring = (np.arange(256)[:, None] >> np.arange(8) & 1).astype(bool)
    edges, corners = ring[:, ::2], ring[:, 1::2]
    joined = edges & corners & np.roll(edges, -1, axis=1)
    simple: Mask = edges.sum(axis=1) - joined.sum(axis=1) == 1
    return simple
