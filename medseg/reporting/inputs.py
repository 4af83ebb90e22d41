"""The tables that stages have written, read back for a report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from medseg.core.errors import StageError
from medseg.core.wording import one_line
from medseg.evaluation.readers import BAND_COLUMNS
from medseg.evaluation.table import read_text_table

# Columns that stay text whatever they hold: a case named 007 or NA is a name.
TEXT = {
    "case_id",
    "patient_id",
    "fold",
    "structure",
    "status",
    "metric",
    "unit",
    "convention",
    "input",
    "output",
    "reason",
    "file",
    "severity",
    "problem",
    "what_to_do",
    "model_sha256",
    "model",
    "statistic",
    "covariate",
    "group",
    "verdict_a",
    "verdict_b",
    "mixed_note",
    "missing",
    "readers",
}
_INTERVAL = ("n", "n_undefined", "ci_low", "ci_high")
# Table -> the stage that writes it, and the columns without which there is no report.
TABLES: dict[str, tuple[str, tuple[str, ...]]] = {
    "per_case.csv": ("evaluate", ("case_id", "patient_id", "structure", "status")),
    "summary.csv": ("evaluate", ("structure", "metric", "convention", *_INTERVAL, "mean", "median", "q1", "q3")),
    "cases.csv": ("evaluate", ("case_id",)),
    "comparison_summary.csv": (
        "evaluate",
        (
            *("structure", "metric", "model_a", "model_b", *_INTERVAL, "mean_difference"),
            *("n_missing", "wins", "ties", "losses", "p_holm"),
        ),
    ),
    "agreement.csv": ("evaluate", ("structure", "statistic", "unit", "value", "ci_low", "ci_high", "n", "n_undefined")),
    "reliability.csv": ("evaluate", ("structure", "n", "mean_probability", "hit_rate")),
    "thresholds.csv": ("evaluate", ("structure", "metric", "threshold", "n", "n_undefined", "mean")),
    "subgroups.csv": ("evaluate", ("covariate", "group", "structure", "metric", "convention", *_INTERVAL, "mean")),
    "ranking.csv": ("evaluate", ("structure", "metric", "model", "n", "mean", "rank", "rank_low", "rank_high")),
    "predictions.csv": ("predict", ("case_id", "output", "status", "reason")),
    "unmatched.csv": ("evaluate", ("case_id", "missing", "file")),
    "readers.csv": ("readers", tuple(BAND_COLUMNS)),
    "reader_cases.csv": ("readers", ("case_id", "readers")),
    "log.csv": ("train", ()),
    "report.csv": ("check", ("case_id", "severity", "problem", "what_to_do")),
}


def read_table(path: Path) -> pd.DataFrame:
    """A CSV table: names as text, all else as numbers where every filled cell is one; an empty cell is NaN.

    Raises: StageError where the file is missing, is not a table or lacks a column.
    """
    stage, needed = TABLES[path.name]
    try:
        table = read_text_table(path)
    except FileNotFoundError:
        raise StageError(f"{path} does not exist; run `medseg {stage}` first.") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise StageError(f"{path} is not a readable table ({one_line(error)}); run `medseg {stage}` again.") from None
    if missing := [column for column in needed if column not in table]:
        raise StageError(f"{path} has no column {', '.join(missing)}; run `medseg {stage}` again.")
    return table.apply(lambda column: column if column.name in TEXT else _numbers(column))


def read_if_there(path: Path) -> pd.DataFrame | None:
    """As `read_table`; None where there is no such file."""
    return read_table(path) if path.exists() else None


def _numbers(column: pd.Series[str]) -> pd.Series[Any]:
    filled = column.str.strip() != ""
    numbers = pd.to_numeric(column.where(filled), errors="coerce")
    return numbers if numbers[filled].notna().all() else column
