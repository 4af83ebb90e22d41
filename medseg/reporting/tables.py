"""The report's tables of results: rows of ready text. Means and intervals are read, never made here."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from medseg.evaluation.summary import units_of
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
    counts: tuple[str, ...] = ()


# Columns of summary.csv, where it has them, and their headers.
COUNTS = {"n_true_negative": "True negative", "n_missed": "Missed", "n_false_positive": "False positive"}


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


def counted(data: ReportData) -> list[str]:
    """Which columns of COUNTS every model's summary has."""
    return [column for column in COUNTS if all(column in model.summary for model in data.models)]


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
        counts=tuple(format_number(row[column], 0) for column in COUNTS if column in row),
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


MOST_NAMED = 2  # with more structures the abstract gives the range of their means


def abstract(data: ReportData, columns: Iterable[str]) -> str:
    """What was evaluated on how many cases, and the headline results, in one sentence.

    Args:
        columns: the headline's metrics.
    """
    head = side_by_side(data, columns)
    models = " and ".join([", ".join(m.name for m in data.models[:-1]), data.models[-1].name][len(data.models) == 1 :])
    n_cases = max(int(model.per_case["case_id"].nunique()) for model in data.models)
    units, words = max(count_units(model.per_case) for model in data.models), unit_words(data)
    over = f" ({units} {words})" if words != "cases" and units != n_cases else ""
    what = f"{len(data.structures)} structures" if len(data.structures) != 1 else f"the structure {data.structures[0]}"
    where = f" of {data.facts.name}" if data.facts.name else ""
    start = f"{models} {'was' if len(data.models) == 1 else 'were'} evaluated on {n_cases} cases{over}{where} for {what}"
    results = "; ".join(_headline(data, head, place) for place in range(len(head.metrics)))
    intervals = f" In brackets are {confidence(data)} intervals over {words}." if head.any_interval else ""
    return f"{start}: {results}; what was missed counts as worst.{intervals}" if results else f"{start}."


def _headline(data: ReportData, head: Headline, place: int) -> str:
    metric, n = head.metrics[place], len(data.models)
    told = []
    for index, model in enumerate(data.models):
        cells = [(s, cell) for s, row in head.rows if (cell := row[place * n + index])]
        if len(cells) > MOST_NAMED:
            ordered = sorted(cells, key=lambda item: _mean(model, metric.column, item[0]))
            (low, least), (high, most) = ordered[0], ordered[-1]
            text = f"from {_with_interval(least)} ({low}) to {_with_interval(most)} ({high})"
        else:
            text = " and ".join(_with_interval(cell) + (f" ({s})" if len(head.rows) > 1 else "") for s, cell in cells)
        if text:
            told.append(f"{text} for {model.name}" if n > 1 else text)
    unit = f" in {metric.unit}" if metric.unit else ""
    return f"mean {metric.name}{unit} {', '.join(told)}"


def _with_interval(cell: SummaryRow) -> str:
    return cell.mean if cell.interval == NONE else f"{cell.mean} [{cell.interval}]"


def _mean(model: ModelResults, metric: str, structure: str) -> float:
    t = model.summary
    chosen = t[(t["convention"] == "worst") & (t["metric"] == metric) & (t["structure"] == structure)]
    return float(chosen["mean"].iloc[0])


def count_units(per_case: pd.DataFrame) -> int:
    """How many units an evaluation resamples: patients, or cases where none is named."""
    return len(set(units_of(per_case)))


def units_repeat(data: ReportData) -> bool:
    """Whether a unit has several cases in any evaluation."""
    return any(count_units(model.per_case) != model.per_case["case_id"].nunique() for model in data.models)


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
    """Two models on the same cases: one metric of one structure.

    Args:
        effect: matched-pairs rank-biserial correlation, above 0 where the first model is better.
        mixed: the mean difference between patients with its interval, by a mixed model; `mixed_note` says why there is none.
        margin, verdict: how much worse is still not inferior, and what each of the two models is then; empty where no margin was
            named.
    """

    metric: MetricText
    pair: str
    difference: str
    favours: str
    wins: str
    n: str
    p: str
    effect: str
    mixed: str
    mixed_note: str
    margin: str
    verdict: str


@dataclass(frozen=True)
class Column:
    """A column of the comparison: a field of its rows, as it is headed and set."""

    field: str
    header: str
    numeric: bool = True


COMPARISON = (
    Column("pair", "Difference of", numeric=False),
    Column("difference", "Mean [{confidence} interval]"),
    Column("favours", "Favours", numeric=False),
    Column("wins", "Better / equal / worse"),
    Column("n", "n"),
    Column("p", "p"),
    Column("effect", "Effect"),
    Column("mixed", "Mixed model"),
    Column("margin", "Margin"),
    Column("verdict", "Verdicts", numeric=False),
)


def comparison_columns(data: ReportData) -> list[Column]:
    """The columns of the comparison that say anything: not those without an entry, nor that of an only pair of models."""
    rows = [row for _, group in comparison_groups(data) for row in group]
    one_pair = len({row.pair for row in rows}) == 1
    return [
        replace(column, header=column.header.format(confidence=confidence(data)))
        for column in COMPARISON
        if {getattr(row, column.field) for row in rows} - {"", NONE} and not (one_pair and column.field == "pair")
    ]


def comparison_notes(data: ReportData) -> list[str]:
    """What a reader of the comparison must know beside its caption, in sentences."""
    rows = [row for _, group in comparison_groups(data) for row in group]
    pairs = {row.pair for row in rows}
    found = [f"Differences are {pairs.pop()}."] if len(pairs) == 1 else []
    if any(row.mixed for row in rows):
        found.append("The mixed model has a random intercept for each patient: patients with many scans weigh less in it.")
    for note, n in Counter(row.mixed_note for row in rows if row.mixed_note).items():
        found.append(f"No mixed model in {n} {'row' if n == 1 else 'rows'}: {note}.")
    if any(row.margin for row in rows):
        found.append("Verdicts on each of the two are by the interval and the margin named beforehand.")
    return found


def comparison_groups(data: ReportData) -> list[tuple[str, list[ComparisonRow]]]:
    """comparison_summary.csv as text, by structure; empty where there is none."""
    table = data.comparison_summary
    if table is None:
        return []
    found = {s: [_comparison_row(row) for _, row in table[table["structure"] == s].iterrows()] for s in data.structures}
    return [(structure, rows) for structure, rows in found.items() if rows]


JUDGED = {"model_a": "verdict_a", "model_b": "verdict_b"}


def _comparison_row(row: pd.Series[Any]) -> ComparisonRow:
    text = describe(str(row["metric"]))
    known = pd.notna(row["ci_low"]) and pd.notna(row["ci_high"])
    signs = {1: row["model_a"], -1: row["model_b"]}
    better = 1 if text.better != "lower" else -1
    clear = known and (row["ci_low"] > 0 or row["ci_high"] < 0)
    return ComparisonRow(
        metric=text,
        pair=f"{row['model_a']} − {row['model_b']}",
        difference=_with_ends(text, row["mean_difference"], row["ci_low"], row["ci_high"]),
        favours=str(signs[better * (1 if row["ci_low"] > 0 else -1)]) if clear else NONE,
        wins=f"{row['wins']:.0f} / {row['ties']:.0f} / {row['losses']:.0f}",
        n=_of_which(row),
        p=_p_value(row["p_holm"]),
        effect=format_number(row.get("rank_biserial"), 2),
        mixed=_with_ends(text, *(row.get(f"mixed_{name}", math.nan) for name in ("difference", "low", "high"))).replace(NONE, ""),
        mixed_note=str(row.get("mixed_note", "")),
        margin=text.format(row["margin"]) if (judged := pd.notna(row.get("margin"))) else "",
        verdict="; ".join(f"{row[m]}: {row[v] or 'no interval'}" for m, v in JUDGED.items()) if judged else "",
    )


def _of_which(row: pd.Series[Any]) -> str:
    """How many cases; where some count as a model's worst, or are undefined and left out, how many these are."""
    parts = [f"{format_number(row[f'n_{what}'], 0)} {what}" for what in ("missing", "undefined") if row[f"n_{what}"] > 0]
    return format_number(row["n"], 0) + (f" [{', '.join(parts)}]" if parts else "")


def _with_ends(text: MetricText, value: float, low: float, high: float) -> str:
    ends = f" [{_signed(text, low)} to {_signed(text, high)}]" if pd.notna(low) and pd.notna(high) else ""
    return f"{_signed(text, value)}{ends}"


def _signed(text: MetricText, value: float) -> str:
    shown = text.format(value)
    if not set(shown) & set("123456789"):
        return shown.lstrip("−")  # as printed it is zero, which has no sign
    return f"+{shown}" if value > 0 else shown


def _p_value(p: float) -> str:
    if math.isnan(p):
        return NONE
    return "< 0.001" if p < 0.001 else format_number(p, 3)
