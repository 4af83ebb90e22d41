"""One case: its masks read, laid on one grid and measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from medseg.core.errors import CaseError, GridMismatchError, UnreadableError
from medseg.core.grid import Grid
from medseg.core.labels import LabelScheme
from medseg.core.volume import LabelMap
from medseg.evaluation.pairs import Pair, on_grid
from medseg.io.formats import read_labels
from medseg.io.probabilities import ProbabilityMaps, read_probabilities
from medseg.metrics.calibration import Reliability, reliability_of
from medseg.metrics.measures import Measure
from medseg.metrics.pair import LESION_OVERLAP, Frame, StructurePair, pair_structures
from medseg.metrics.table import METRICS

Status = Literal["ok", "both_empty", "reference_empty", "prediction_empty", "prediction_missing", "unreadable", "grid_mismatch"]
Classes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Ruler:
    """How every case of an evaluation is measured.

    Args:
        tolerances: of the surface Dice, one for each of `scheme.measured`, in its order.
        spacing_mm: of files that state none.
        nearest: predictions on other voxels are resampled.
        lesion_overlap: IoU from which on a lesion is found.
    """

    scheme: LabelScheme
    measures: tuple[Measure, ...]
    frame: Frame
    tolerances: tuple[float, ...]
    spacing_mm: tuple[float, float, float] | None = None
    nearest: bool = False
    lesion_overlap: float = LESION_OVERLAP


@dataclass(frozen=True)
class CaseResult:
    """What came of one case.

    Args:
        rows: one a structure (or region), as in per_case.csv without the case's names.
        status: ok, prediction_missing, unreadable or grid_mismatch.
        reason: one sentence where it is not ok, or where the prediction was resampled.
        reliability: of each structure whose probabilities were measured, the bins of a reliability diagram.
        diagonal: of the reference's grid; NaN where the reference could not be read, and the case not be evaluated.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    status: Status = "ok"
    reason: str = ""
    diagonal: float = math.nan
    reliability: dict[str, Reliability] = field(default_factory=dict)


def measure_pair(pair: Pair, ruler: Ruler) -> CaseResult:
    """Read and measure one case; what is wrong with its files is its status and not an error."""
    try:
        reference_map = _reference(pair, ruler)
        reference = ruler.scheme.encode(reference_map.array, str(pair.reference))
    except CaseError as error:
        return CaseResult(rows_without_figures(ruler, "unreadable"), "unreadable", str(error))
    grid = reference_map.grid
    status, reason, prediction = _prediction(pair, ruler, grid)
    try:
        maps = _probabilities(pair, ruler, grid) if prediction is not None else None
    except CaseError as error:
        maps, reason = None, f"{reason} {error}".strip()
    rows, bins = _measure(reference, prediction, grid, ruler, maps)
    if prediction is None:
        rows = [row | {"status": status} for row in rows]
    return CaseResult(rows, status, reason, grid.diagonal, bins)


def _reference(pair: Pair, ruler: Ruler) -> LabelMap:
    if pair.reference is None:
        raise UnreadableError(f"case {pair.case_id} names no reference; name its label file.")
    return read_labels(pair.reference, spacing_mm=ruler.spacing_mm)


def _prediction(pair: Pair, ruler: Ruler, grid: Grid) -> tuple[Status, str, Classes | None]:
    """The prediction's classes on the reference's grid, or the status and the reason why there are none."""
    if pair.prediction is None or not pair.prediction.exists():
        return "prediction_missing", pair.reason or f"{pair.prediction} does not exist", None
    try:
        labels, note = on_grid(read_labels(pair.prediction, spacing_mm=ruler.spacing_mm), grid, ruler.nearest)
        return "ok", note, ruler.scheme.encode(labels.array, str(pair.prediction), prediction=True)
    except GridMismatchError as error:
        return "grid_mismatch", str(error), None
    except CaseError as error:
        return "unreadable", str(error), None


def _probabilities(pair: Pair, ruler: Ruler, grid: Grid) -> ProbabilityMaps | None:
    """What the network gave each voxel, where it was kept and a metric asks for it."""
    wanted = any(METRICS[m.metric].of_probabilities for m in ruler.measures)
    return read_probabilities(pair.probabilities, grid) if wanted and pair.probabilities else None


def evaluate_case(reference: Classes, prediction: Classes | None, grid: Grid, ruler: Ruler) -> list[dict[str, Any]]:
    """The rows of one case: a structure each (or a region each, where the scheme has regions), with its figures and status.

    Args:
        reference, prediction: (X, Y, Z) uint8 class indices on `grid`. Without a prediction only the reference's size is
            measured, and the status is prediction_missing.
    Returns: dictionaries with `structure`, one key a measure (NaN where undefined) and `status`.
    """
    return _measure(reference, prediction, grid, ruler)[0]


def _measure(
    reference: Classes, prediction: Classes | None, grid: Grid, ruler: Ruler, maps: ProbabilityMaps | None = None
) -> tuple[list[dict[str, Any]], dict[str, Reliability]]:
    """The rows of one case, and the bins of its probabilities (`maps`, on `grid`)."""
    absent = prediction is None
    compared = np.zeros_like(reference) if prediction is None else prediction
    measured = ruler.scheme.measured
    pairs = pair_structures(
        reference, compared, grid, ruler.frame, list(measured.values()), ruler.tolerances, ruler.lesion_overlap
    )
    rows, bins = [], {}
    for name, pair in zip(measured, pairs, strict=True):
        if maps is not None:
            pair = replace(pair, probability=partial(maps.of, name))
            bins[name] = pair.once(reliability_of)
        measurable = [m for m in ruler.measures if m.applies(name) and (not absent or m.metric == "reference_volume")]
        figures = {m.column: METRICS[m.metric].function(pair) for m in measurable}
        rows.append(_row(name, ruler.measures, figures, "prediction_missing" if absent else _status(pair)))
    return rows, bins


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
