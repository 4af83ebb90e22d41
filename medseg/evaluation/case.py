"""One case: its masks read, laid on one grid and measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from medseg.core.components import number_components
from medseg.core.errors import CaseError, GridMismatchError, UnreadableError
from medseg.core.grid import Grid
from medseg.core.labels import LabelScheme
from medseg.core.volume import LabelMap
from medseg.evaluation.layouts import is_empty_folder
from medseg.evaluation.masks import read_masks
from medseg.evaluation.pairs import Pair, on_grid, place, widen
from medseg.io.formats import read_grid
from medseg.io.probabilities import ProbabilityMaps, read_probabilities
from medseg.metrics.calibration import Reliability, reliability_of
from medseg.metrics.instances import Numbers
from medseg.metrics.measures import Measure
from medseg.metrics.membranes import CellScores, threshold_scores
from medseg.metrics.pair import LESION_OVERLAP, Frame, StructurePair, pair_structures
from medseg.metrics.table import METRICS

Status = Literal["ok", "both_empty", "reference_empty", "prediction_empty", "prediction_missing", "unreadable", "grid_mismatch"]
UNUSABLE: tuple[Status, ...] = ("prediction_missing", "unreadable", "grid_mismatch")  # nothing to measure, so the worst of all
Classes = npt.NDArray[np.uint8]
PairNumbers = tuple[Numbers, Numbers | None]

MAXIMA = ("v_rand_max", "v_info_max")


@dataclass(frozen=True)
class Ruler:
    """How every case of an evaluation is measured.

    Args:
        tolerances: of the surface Dice, one for each of `scheme.measured`, in its order.
        spacing_mm: of files that state none.
        nearest: predictions on other voxels are resampled.
        lesion_overlap: IoU from which on a lesion is found.
        missing_empty: a structure without a mask of its own, where masks stand by name, is absent.
    """

    scheme: LabelScheme
    measures: tuple[Measure, ...]
    frame: Frame
    tolerances: tuple[float, ...]
    spacing_mm: tuple[float, float, float] | None = None
    nearest: bool = False
    lesion_overlap: float = LESION_OVERLAP
    missing_empty: bool = False


@dataclass(frozen=True)
class CaseResult:
    """What came of one case.

    Args:
        rows: one a structure (or region), as in per_case.csv without the case's names.
        status: ok, prediction_missing, unreadable or grid_mismatch.
        reason: one sentence where it is not ok, or where it was measured with a reservation: resampled, or numbers that are none.
        reliability: of each structure whose probabilities were measured, the bins of a reliability diagram.
        thresholds: of each such structure, its cells scored at each of ISBI_THRESHOLDS, where a metric asks for the best.
        diagonal: of the reference's grid; NaN where the reference could not be read, and the case not be evaluated.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    status: Status = "ok"
    reason: str = ""
    diagonal: float = math.nan
    reliability: dict[str, Reliability] = field(default_factory=dict)
    thresholds: dict[str, list[CellScores]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Read:
    """A label file: (X, Y, Z) class indices, and the values that the file holds, both on the reference's grid."""

    classes: Classes
    values: Numbers


def measure_pair(pair: Pair, ruler: Ruler) -> CaseResult:
    """Read and measure one case; what is wrong with its files is its status and not an error."""
    try:
        reference_map, absent = _reference(pair, ruler)
        reference = Read(ruler.scheme.encode(reference_map.array, str(pair.reference)), reference_map.array)
    except CaseError as error:
        return CaseResult(rows_without_figures(ruler, "unreadable"), "unreadable", str(error))
    grid = reference_map.grid
    status, reason, prediction = _prediction(pair, ruler, grid)
    try:
        maps = _probabilities(pair, ruler, grid) if prediction is not None else None
    except CaseError as error:
        maps, reason = None, f"{reason} {error}".strip()
    numbers, doubt = _numbers(reference, prediction, ruler)
    rows, bins, scores = _measure(reference.classes, prediction.classes if prediction else None, grid, ruler, maps, numbers)
    if prediction is None:
        rows = [row | {"status": status} for row in rows]
    return CaseResult(rows, status, "; ".join(filter(None, (absent, reason, doubt))), grid.diagonal, bins, scores)


def _reference(pair: Pair, ruler: Ruler) -> tuple[LabelMap, str]:
    if pair.reference is None:
        raise UnreadableError(f"case {pair.case_id} names no reference; name its label file.")
    labels, cut, absent = read_masks(pair.reference, ruler.scheme, spacing_mm=ruler.spacing_mm, missing_empty=ruler.missing_empty)
    labels = _widened(labels, pair, ruler) if cut else labels
    if ruler.frame.planar and not labels.grid.planar:
        raise GridMismatchError(f"{pair.reference} marks one slice of a scan of {labels.grid.shape[2]}; save all slices of it.")
    return labels, absent


def _widened(labels: LabelMap, pair: Pair, ruler: Ruler) -> LabelMap:
    """A reference that was cut to its structures, on all that the prediction covers."""
    try:
        return widen(labels, read_grid(pair.prediction, spacing_mm=ruler.spacing_mm)) if pair.prediction else labels
    except CaseError:
        return labels  # reading the prediction gives the reason


def _prediction(pair: Pair, ruler: Ruler, grid: Grid) -> tuple[Status, str, Read | None]:
    """The prediction on the reference's grid, or the status and the reason why there is none."""
    if pair.prediction is None or not pair.prediction.exists():
        return "prediction_missing", pair.reason or f"{pair.prediction} does not exist", None
    if is_empty_folder(pair.prediction):
        if not ruler.missing_empty:
            return "prediction_missing", f"{pair.prediction} is an empty folder", None
        none = np.zeros(grid.shape, np.uint8)
        return "ok", f"{pair.prediction} is an empty folder: all structures taken as absent", Read(none, none)
    try:
        labels, cut, absent = read_masks(pair.prediction, ruler.scheme, True, ruler.spacing_mm, ruler.missing_empty)
        labels, note = on_grid(place(labels, grid) if cut else labels, grid, ruler.nearest)
        note = "; ".join(filter(None, (note, absent)))
        return "ok", note, Read(ruler.scheme.encode(labels.array, str(pair.prediction), prediction=True), labels.array)
    except GridMismatchError as error:
        return "grid_mismatch", str(error), None
    except CaseError as error:
        return "unreadable", str(error), None


def _probabilities(pair: Pair, ruler: Ruler, grid: Grid) -> ProbabilityMaps | None:
    """What the network gave each voxel, where it was kept and a metric asks for it."""
    wanted = any(METRICS[m.metric].of_probabilities for m in ruler.measures)
    return read_probabilities(pair.probabilities, grid) if wanted and pair.probabilities else None


def _numbers(reference: Read, prediction: Read | None, ruler: Ruler) -> tuple[dict[str, PairNumbers], str]:
    """What numbers the objects of each structure of which that is declared, and a sentence where a file contradicts it.

    A reference is taken at its word. A prediction numbers its objects where the file holds several values of a structure; a mask
    of a single value does not tell, and its connected components are its objects.
    """
    if not any(METRICS[m.metric].group == "instances" for m in ruler.measures):
        return {}, ""
    found: dict[str, PairNumbers] = {}
    doubts = []
    for name in ruler.scheme.numbered:
        classes = ruler.scheme.measured[name]
        told = prediction is not None and any(_several(prediction, [index]) for index in classes)
        found[name] = reference.values, prediction.values if prediction and told else None
        if not _several(reference, classes) and (pieces := _pieces(reference, classes)) > 1:
            doubts.append(f"all {pieces} pieces of {name} have one number in the reference, so they count as one object")
    return found, "; ".join(doubts)


def _several(read: Read, classes: Sequence[int]) -> bool:
    """True where the voxels of these classes hold more than one value."""
    values = read.values[np.isin(read.classes, classes)]
    return bool(values.size and (values != values[0]).any())


def _pieces(read: Read, classes: Sequence[int]) -> int:
    return number_components(np.isin(read.classes, classes))[1]


def evaluate_case(reference: Classes, prediction: Classes | None, grid: Grid, ruler: Ruler) -> list[dict[str, Any]]:
    """The rows of one case: a structure each (or a region each, where the scheme has regions), with its figures and status.

    Args:
        reference, prediction: (X, Y, Z) uint8 class indices on `grid`. Without a prediction only the reference's size is
            measured, and the status is prediction_missing.
    Returns: dictionaries with `structure`, one key a measure (NaN where undefined) and `status`.
    """
    return _measure(reference, prediction, grid, ruler)[0]


def _measure(
    reference: Classes,
    prediction: Classes | None,
    grid: Grid,
    ruler: Ruler,
    maps: ProbabilityMaps | None = None,
    numbers: Mapping[str, PairNumbers] | None = None,
) -> tuple[list[dict[str, Any]], dict[str, Reliability], dict[str, list[CellScores]]]:
    """The rows of one case, and of its probabilities (`maps`, on `grid`) the bins and the scores over thresholds.

    Args:
        numbers: of structures whose objects are numbered, the values in the reference and, or None, in the prediction.
    """
    absent = prediction is None
    compared = np.zeros_like(reference) if prediction is None else prediction
    measured = ruler.scheme.measured
    pairs = pair_structures(
        reference, compared, grid, ruler.frame, list(measured.values()), ruler.tolerances, ruler.lesion_overlap
    )
    rows, bins, scores = [], {}, {}
    for name, pair in zip(measured, pairs, strict=True):
        if numbers and name in numbers:
            pair = replace(pair, reference_numbers=numbers[name][0], prediction_numbers=numbers[name][1])
        if maps is not None:
            pair = replace(pair, probability=partial(maps.of, name))
            bins[name] = pair.once(reliability_of)
            if any(m.metric in MAXIMA for m in ruler.measures):
                scores[name] = pair.once(threshold_scores)
        measurable = [m for m in ruler.measures if m.applies(name) and (not absent or m.metric == "reference_volume")]
        figures = {m.column: METRICS[m.metric].function(pair) for m in measurable}
        rows.append(_row(name, ruler.measures, figures, "prediction_missing" if absent else _status(pair)))
    return rows, bins, scores


def _status(pair: StructurePair) -> Status:
    table: dict[tuple[bool, bool], Status] = {
        (True, True): "ok",
        (True, False): "prediction_empty",
        (False, True): "reference_empty",
        (False, False): "both_empty",
    }
    return table[pair.counts.reference > 0, pair.counts.prediction > 0]


def rows_without_figures(ruler: Ruler, status: Status) -> list[dict[str, Any]]:
    """The rows of a case of which nothing could be measured."""
    return [_row(name, ruler.measures, {}, status) for name in ruler.scheme.measured]


def _row(name: str, measures: Sequence[Measure], figures: dict[str, float], status: Status) -> dict[str, Any]:
    return {"structure": name, **{m.column: figures.get(m.column, math.nan) for m in measures}, "status": status}
