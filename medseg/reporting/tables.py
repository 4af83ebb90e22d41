"""The report's tables of results: rows of ready text. Means and intervals are read, never made here."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from medseg.reporting.collect import ModelResults, ReportData
from medseg.reporting.words import NONE, MetricText, describe, format_number, unit_words

LEAST_UNITS = 6  # below so many an interval says more than the data do


@dataclass(frozen=True)
class SummaryRow:
    """One model's figures of one metric of one structure, as text."""

    model: str
    mean: str
    interval: str
    median: str
    quartiles: str
    n: str
    n_undefined: str
    any_undefined: bool


@dataclass(frozen=True)
class SummaryBlock:
    """The models' rows of one metric, and the metrics of one structure."""

    structure: str
    metrics: list[tuple[MetricText, list[SummaryRow]]]

    @property
    def n_rows(self) -> int:
        return sum(len(rows) for _, rows in self.metrics)


def summary_blocks(data: ReportData, convention: str) -> list[SummaryBlock]:
    """The summary table under one convention: structure, metric, model."""
    tables = {m.name: m.summary[m.summary["convention"] == convention] for m in data.models}
    metrics = list(dict.fromkeys(metric for table in tables.values() for metric in table["metric"]))
    blocks = []
    for structure in data.structures:
        found = []
        for metric in metrics:
            text = describe(metric)
            chosen = {m: t[(t["structure"] == structure) & (t["metric"] == metric)] for m, t in tables.items()}
            rows = [summary_row(model, text, rows.iloc[0]) for model, rows in chosen.items() if len(rows)]
            if rows:
                found.append((text, rows))
        if found:
            blocks.append(SummaryBlock(structure, found))
    return blocks


def summary_row(model: str, text: MetricText, row: pd.Series[Any]) -> SummaryRow:
    """One row of summary.csv as text."""
    interval = NONE
    if pd.notna(row["ci_low"]) and pd.notna(row["ci_high"]):
        interval = f"{text.format(row['ci_low'])} to {text.format(row['ci_high'])}"
    undefined = row["n_undefined"]
    return SummaryRow(
        model=model,
        mean=text.format(row["mean"]),
        interval=interval,
        median=text.format(row["median"]),
        quartiles=f"{text.format(row['q1'])} to {text.format(row['q3'])}" if pd.notna(row["q1"]) else NONE,
        n=format_number(row["n"], 0),
        n_undefined=format_number(undefined, 0),
        any_undefined=bool(pd.notna(undefined) and undefined > 0),
    )


@dataclass(frozen=True)
class Headline:
    """The models beside one another: one row a structure, one cell a metric and model, under the convention `worst`."""

    metrics: list[MetricText]
    rows: list[tuple[str, list[SummaryRow | None]]]

    @property
    def any_interval(self) -> bool:
        return any(cell and cell.interval != NONE for _, cells in self.rows for cell in cells)


def side_by_side(data: ReportData, columns: Iterable[str]) -> Headline:
    """The headline of these metrics (columns of per_case.csv)."""
    metrics = [describe(column) for column in columns]
    cells = {s: [_cell(m, text, s) for text in metrics for m in data.models] for s in data.structures}
    return Headline(metrics, [(structure, row) for structure, row in cells.items() if any(row)])


def _cell(model: ModelResults, text: MetricText, structure: str) -> SummaryRow | None:
    t = model.summary
    rows = t[(t["convention"] == "worst") & (t["metric"] == text.column) & (t["structure"] == structure)]
    return summary_row(model.name, text, rows.iloc[0]) if len(rows) else None


def count_units(per_case: pd.DataFrame) -> int:
    """How many units an evaluation resamples: patients, or cases where none is named."""
    named = per_case["patient_id"] if "patient_id" in per_case else per_case["case_id"]
    return int(named.where(named != "", per_case["case_id"]).nunique())


def interval_note(data: ReportData) -> str:
    """What the intervals are over, or why there are none, in one sentence."""
    words = unit_words(data)
    units = min(count_units(model.per_case) for model in data.models)
    if units < LEAST_UNITS:
        return f"No confidence intervals are given: there are {units} {words}, and below {LEAST_UNITS} an interval would mislead."
    method = f"bootstrap confidence intervals over {words} ({units} {words} resampled, not voxels)"
    dash = f"a dash stands where fewer than {LEAST_UNITS} of them have a figure"
    return f"Intervals are {confidence(data)} {method}; {dash}."


def confidence(data: ReportData) -> str:
    """The intervals' confidence in per cent."""
    return f"{100 * data.facts.confidence:g} %"


@dataclass(frozen=True)
class ComparisonRow:
    """Two models on the same cases: one metric of one structure."""

    metric: MetricText
    pair: str
    difference: str
    interval: str
    favours: str
    wins: str
    n: str
    n_missing: str
    n_undefined: str
    p: str


def comparison_groups(data: ReportData) -> list[tuple[str, list[ComparisonRow]]]:
    """comparison_summary.csv as text, by structure; empty where there is none."""
    table = data.comparison_summary
    if table is None:
        return []
    found = {s: [_comparison_row(row) for _, row in table[table["structure"] == s].iterrows()] for s in data.structures}
    return [(structure, rows) for structure, rows in found.items() if rows]


def _comparison_row(row: pd.Series[Any]) -> ComparisonRow:
    text = describe(str(row["metric"]))
    known = pd.notna(row["ci_low"]) and pd.notna(row["ci_high"])
    signs = {1: row["model_a"], -1: row["model_b"]}
    better = 1 if text.better != "lower" else -1
    clear = known and (row["ci_low"] > 0 or row["ci_high"] < 0)
    return ComparisonRow(
        metric=text,
        pair=f"{row['model_a']} − {row['model_b']}",
        difference=_signed(text, row["mean_difference"]),
        interval=f"{_signed(text, row['ci_low'])} to {_signed(text, row['ci_high'])}" if known else NONE,
        favours=str(signs[better * (1 if row["ci_low"] > 0 else -1)]) if clear else NONE,
        wins=f"{row['wins']:.0f} / {row['ties']:.0f} / {row['losses']:.0f}",
        n=format_number(row["n"], 0),
        n_missing=format_number(row["n_missing"], 0),
        n_undefined=format_number(row["n_undefined"], 0),
        p=_p_value(row["p_holm"]),
    )


def _signed(text: MetricText, value: float) -> str:
    shown = text.format(value)
    return f"+{shown}" if pd.notna(value) and value > 0 else shown


def _p_value(p: float) -> str:
    if math.isnan(p):
        return NONE
    return "< 0.001" if p < 0.001 else format_number(p, 3)
