"""From the figures of cases to means with their intervals, under both conventions for empty and missing masks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from medseg.evaluation.config import EvaluateConfig
from medseg.evaluation.intervals import mean_intervals
from medseg.evaluation.table import Evaluation

COUNTS = ["n_true_negative", "n_missed", "n_false_positive", "n_filled"]
SUMMARY_COLUMNS = [
    *("structure", "metric", "unit", "convention", "n", "n_undefined", "mean", "ci_low", "ci_high", "median", "q1", "q3"),
    *COUNTS,
]
GAIN_COLUMNS = ["structure", "metric", "unit", "worst", "defined", "gain", "n_filled", "n"]
EMPTY: dict[str, Literal["", "both", "one"]] = {"ok": "", "both_empty": "both"}  # any other status: in one mask, or no prediction
Array = npt.NDArray[np.float64]


def under_worst(evaluation: Evaluation) -> pd.DataFrame:
    """per_case under the convention `worst`: a missing prediction or a missed structure counts as 0, or as the scan's diagonal
    for distances; a structure that is in neither mask counts as perfect.

    Returns: the table with the same rows; NaN remains where the reference could not be read,
    and for figures without a worst value (`Metric.better`, `Metric.of_probabilities`).
    """
    table = evaluation.per_case.copy()
    diagonals = _diagonals(evaluation)
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

    `n` and `n_undefined` add up to the cases given. Intervals are of the mean, over patients (or units). The counts are of cases
    with a readable reference: `n_true_negative` in neither mask, `n_missed` in the reference and not in the mask or without a
    usable prediction, `n_false_positive` in the mask alone, `n_filled` undefined and counted as the worst under `worst`.
    """
    return pd.DataFrame(summary_rows(evaluation, both_conventions(evaluation), settings, seed), columns=SUMMARY_COLUMNS)


def both_conventions(evaluation: Evaluation) -> dict[str, pd.DataFrame]:
    """per_case under `worst` and under `defined`."""
    return {"worst": under_worst(evaluation), "defined": evaluation.per_case}


def summary_rows(
    evaluation: Evaluation,
    tables: Mapping[str, pd.DataFrame],
    settings: EvaluateConfig,
    seed: int,
    chosen: npt.NDArray[np.bool_] | None = None,
) -> list[dict[str, Any]]:
    """The rows of `summarise`, each with `n_units` too: the patients (or units) that have a figure.

    Args:
        tables: of `both_conventions`.
        chosen: which rows of per_case to sum up; by default all.
    """
    keep = np.ones(len(evaluation.per_case), bool) if chosen is None else chosen
    readable = ~np.isnan(_diagonals(evaluation))
    rows = []
    for convention in tables:
        for structure in evaluation.structures:
            own = keep & (evaluation.per_case["structure"] == structure).to_numpy()
            parts = {name: table[own] for name, table in tables.items()}
            rows += _rows(evaluation, structure, convention, parts, readable[own], settings, seed)
    return rows


def _rows(
    evaluation: Evaluation,
    structure: str,
    convention: str,
    parts: Mapping[str, pd.DataFrame],
    readable: npt.NDArray[np.bool_],
    settings: EvaluateConfig,
    seed: int,
) -> list[dict[str, Any]]:
    """The rows of one structure under one convention. `parts`: the structure's rows of per_case under each."""
    measures = [m for m in evaluation.measures if m.applies(structure)]
    columns = [m.column for m in measures]
    values, units = parts[convention][columns].to_numpy(float), units_of(parts[convention])
    intervals = mean_intervals(values, units, settings.bootstrap_resamples, settings.confidence, seed)
    filled = parts["defined"][columns].isna().to_numpy() & parts["worst"][columns].notna().to_numpy()
    n_filled = (filled & (parts["worst"]["status"] != "both_empty").to_numpy()[:, None]).sum(0)
    counts = count_outcomes(parts["defined"]["status"][readable])
    rows: list[dict[str, Any]] = []
    for measure, column, (low, high), more in zip(measures, values.T, intervals, n_filled, strict=True):
        names = {"structure": structure, "metric": measure.column, "unit": measure.unit, "convention": convention}
        n_units = len(set(np.asarray(units)[np.isfinite(column)]))
        figures = describe(column) | {"ci_low": low, "ci_high": high, "n_units": n_units}
        rows.append(names | figures | counts | {"n_filled": int(more)})
    return rows


def count_outcomes(statuses: pd.Series[str]) -> dict[str, int]:
    """True negatives, missed structures and false positives among the statuses of cases with a readable reference."""
    return {
        "n_true_negative": int((statuses == "both_empty").sum()),
        "n_missed": int((~statuses.isin(["ok", "both_empty", "reference_empty"])).sum()),
        "n_false_positive": int((statuses == "reference_empty").sum()),
    }


def gains_of_defined(summary: pd.DataFrame, better: Mapping[str, str]) -> pd.DataFrame:
    """Where the convention `defined` looks better than `worst`, by how much, and for how many cases.

    Args:
        summary: of `summarise`, or read back from summary.csv.
        better: for each metric (column of per_case) `higher`, `lower`, or an empty text, whose rows are passed over.
    Returns: one row a structure and metric, the largest number of cases first: structure, metric, unit, the mean under `worst`
        and under `defined`, `gain` (how much better the latter looks, above 0), `n_filled` (cases that `defined` leaves out
        and `worst` counts as the worst) and `n` (cases under `worst`).
    """
    keys = ["structure", "metric", "unit"]
    sides = {c: summary[summary["convention"] == c].fillna({"unit": ""}).set_index(keys) for c in ("worst", "defined")}
    table = (
        pd.DataFrame({name: side["mean"] for name, side in sides.items()}).join(sides["worst"][["n_filled", "n"]]).reset_index()
    )
    signs = table["metric"].map(better).map({"higher": 1.0, "lower": -1.0})
    table["gain"] = (table["defined"] - table["worst"]) * signs.astype(float)
    # What differs in the last digits of a file alone is no gain.
    shown = table[table["gain"] > 1e-7 * np.maximum(1, table["worst"].abs())]
    return shown.sort_values("n_filled", ascending=False, kind="stable")[GAIN_COLUMNS].reset_index(drop=True)


def units_of(table: pd.DataFrame) -> list[str]:
    """Whom each row belongs to: the patient, or the case where none is named."""
    return list(table["patient_id"].where(table["patient_id"] != "", table["case_id"]))


def describe(values: Array) -> dict[str, float]:
    """n, n_undefined, mean, median and quartiles of the values that are defined."""
    defined = values[np.isfinite(values)]
    counts: dict[str, float] = {"n": len(defined), "n_undefined": len(values) - len(defined)}
    if not len(defined):
        return counts | dict.fromkeys(("mean", "median", "q1", "q3"), float("nan"))
    q1, median, q3 = np.quantile(defined, (0.25, 0.5, 0.75))
    return counts | {"mean": float(defined.mean()), "median": float(median), "q1": float(q1), "q3": float(q3)}


def _diagonals(evaluation: Evaluation) -> Array:
    """The diagonal of each row's scan; NaN where the reference could not be read."""
    return evaluation.per_case["case_id"].map(evaluation.cases.set_index("case_id")["diagonal"]).to_numpy(float)
