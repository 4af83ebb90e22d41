"""From the figures of cases to means with their intervals, under both conventions for empty and missing masks."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pandas as pd

from medseg.evaluation.config import EvaluateConfig
from medseg.evaluation.intervals import mean_intervals
from medseg.evaluation.table import Evaluation

SUMMARY_COLUMNS = [
    *("structure", "metric", "unit", "convention", "n", "n_undefined", "mean", "ci_low", "ci_high", "median", "q1", "q3"),
]
EMPTY: dict[str, Literal["", "both", "one"]] = {"ok": "", "both_empty": "both"}  # any other status: in one mask, or no prediction


def under_worst(evaluation: Evaluation) -> pd.DataFrame:
    """per_case under the convention `worst`: a missing prediction or a missed structure counts as 0, or as the scan's diagonal
    for distances; a structure that is in neither mask counts as perfect.

    Returns: the table with the same rows; NaN remains only where the reference could not be read.
    """
    table = evaluation.per_case.copy()
    diagonals = table["case_id"].map(evaluation.cases.set_index("case_id")["diagonal"]).to_numpy(float)
    for measure in evaluation.measures:
        measured = zip(table["structure"], table["status"], table[measure.column], diagonals, strict=True)
        table[measure.column] = [
            measure.worst(value, EMPTY.get(status, "one"), diagonal)
            if measure.applies(structure) and not np.isnan(diagonal)
            else np.nan
            for structure, status, value, diagonal in measured
        ]
    return table


def summarise(evaluation: Evaluation, settings: EvaluateConfig, seed: int) -> pd.DataFrame:
    """summary.csv: every structure and measure under `worst`, then all of them under `defined`.

    `n` and `n_undefined` add up to the cases given. Intervals are of the mean, over patients (or units).
    """
    conventions = {"worst": under_worst(evaluation), "defined": evaluation.per_case}
    rows = [row for name, table in conventions.items() for row in _rows(evaluation, table, name, settings, seed)]
    return pd.DataFrame(rows, columns=SUMMARY_COLUMNS)


def _rows(
    evaluation: Evaluation, table: pd.DataFrame, convention: str, settings: EvaluateConfig, seed: int
) -> list[dict[str, object]]:
    rows = []
    for structure in evaluation.structures:
        measures = [m for m in evaluation.measures if m.applies(structure)]
        part = table[table["structure"] == structure]
        values = part[[m.column for m in measures]].to_numpy(float)
        intervals = mean_intervals(values, units_of(part), settings.bootstrap_resamples, settings.confidence, seed)
        for measure, column, (low, high) in zip(measures, values.T, intervals, strict=True):
            names = {"structure": structure, "metric": measure.column, "unit": measure.unit, "convention": convention}
            rows.append(names | describe(column) | {"ci_low": low, "ci_high": high})
    return rows


def units_of(table: pd.DataFrame) -> list[str]:
    """Whom each row belongs to: the patient, or the case where none is named."""
    return list(table["patient_id"].where(table["patient_id"] != "", table["case_id"]))


def describe(values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> dict[str, float]:
    """n, n_undefined, mean, median and quartiles of the values that are defined."""
    defined = values[np.isfinite(values)]
    counts: dict[str, float] = {"n": len(defined), "n_undefined": len(values) - len(defined)}
    if not len(defined):
        return counts | dict.fromkeys(("mean", "median", "q1", "q3"), float("nan"))
    q1, median, q3 = np.quantile(defined, (0.25, 0.5, 0.75))
    return counts | {"mean": float(defined.mean()), "median": float(median), "q1": float(q1), "q3": float(q3)}
