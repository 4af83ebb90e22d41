"""Results as small text tables for the person who watches."""

from __future__ import annotations

import io
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import pandas as pd

from medseg.core.wording import FEW
from medseg.evaluation.compare import Comparison
from medseg.evaluation.summary import gains_of_defined
from medseg.evaluation.table import Evaluation

WIDTH = 160
MOST_COLUMNS = 6  # that fit beside one another; summary.csv has them all


def summary_text(title: str, evaluation: Evaluation, summary: pd.DataFrame) -> str:
    """Means under `worst`, a row a structure; then the flow of cases and the first that failed."""
    figures = [m.column for m in evaluation.measures if m.better]
    shown = figures[:MOST_COLUMNS]
    cells = {(row["structure"], row["metric"]): row for row in summary[summary["convention"] == "worst"].to_dict("records")}
    rows = []
    for structure in evaluation.structures:
        of_structure = [cells.get((structure, column)) for column in shown]
        n = max((row["n"] for row in of_structure if row), default=0)
        means = [interval_text(r["mean"], r["ci_low"], r["ci_high"]) if r else "" for r in of_structure]
        rows.append([structure, *means, f"{n:g}"])
    lines = [text_table(f"{title}: mean [interval], convention worst", ["structure", *shown, "n"], rows)]
    if rest := figures[MOST_COLUMNS:]:
        lines.append(f"and {len(rest)} more in summary.csv: {', '.join(rest)}")
    lines.append("cases: " + ", ".join(f"{count} {name}" for name, count in evaluation.counts.items()))
    failed = evaluation.cases[evaluation.cases["status"] != "ok"].to_dict("records")
    lines += [f"  {case['case_id']}: {case['status']}: {case['reason']}" for case in failed[:FEW]]
    if len(failed) > FEW:
        lines.append(f"  and {len(failed) - FEW} more in cases.csv")
    gains = gains_of_defined(summary, {m.column: m.better for m in evaluation.measures}).to_dict("records")
    lines += [gain_text(row) for row in gains[:FEW]]
    if len(gains) > FEW:
        lines.append(f"convention `defined` looks better in {len(gains) - FEW} more rows of summary.csv")
    return "\n".join(lines)


def gain_text(row: Mapping[Hashable, Any]) -> str:
    """A row of `gains_of_defined` as a sentence."""
    unit = f" {row['unit']}" if row["unit"] else ""
    left_out = f"it leaves out {row['n_filled']:g} of {row['n']:g} cases, which count as the worst"
    return (
        f"{row['structure']}, {row['metric']}: {row['defined']:.3f} under `defined`, {row['worst']:.3f} under `worst`; "
        f"`defined` looks better by {row['gain']:.3f}{unit}, for {left_out}"
    )


def comparison_text(comparison: Comparison) -> str:
    """Mean paired differences, a row a structure, metric and pair of models; then what was counted as worst."""
    headers = ["structure", "metric", "difference", "mean [interval]", "n", "missing", "wins/ties/losses", "p (Holm)", "effect"]
    records = comparison.summary.to_dict("records")
    judged = any(not math.isnan(r["margin"]) for r in records)
    rows = [_comparison_row(r) + ([_verdicts(r)] if judged else []) for r in records]
    lines = [text_table("paired differences, convention worst", [*headers, *(["verdict"] if judged else [])], rows)]
    lines += [
        f"{count} cases have no usable prediction of {model}: they count as its worst" for model, count in _missing(records)
    ]
    return "\n".join(lines)


def _comparison_row(r: Mapping[Hashable, Any]) -> list[str]:
    return [
        r["structure"],
        r["metric"],
        f"{r['model_a']} - {r['model_b']}",
        interval_text(r["mean_difference"], r["ci_low"], r["ci_high"]),
        f"{r['n']}",
        f"{r['n_missing']}",
        f"{r['wins']}/{r['ties']}/{r['losses']}",
        "" if math.isnan(r["p_holm"]) else f"{r['p_holm']:.2g}",
        "" if math.isnan(r["rank_biserial"]) else f"{r['rank_biserial']:+.2f}",
    ]


def _verdicts(r: Mapping[Hashable, Any]) -> str:
    """The first model's verdict against the second; the table has the other's too."""
    if math.isnan(r["margin"]):
        return ""
    return f"{r['verdict_a'] or 'no interval'} (margin {r['margin']:g})"


def _missing(records: Sequence[Mapping[Hashable, Any]]) -> list[tuple[str, int]]:
    """Models with cases that count as their worst, and the most of these in any row."""
    most: dict[str, int] = {}
    for r in records:
        for side in ("a", "b"):
            most[r[f"model_{side}"]] = max(most.get(r[f"model_{side}"], 0), r[f"n_missing_{side}"])
    return [(model, count) for model, count in most.items() if count]


def ranking_text(ranking: pd.DataFrame) -> str:
    """Models in their order, a row a structure, metric and model."""
    headers = ["structure", "metric", "model", "mean", "n", "rank", "in resamples", "same rank", "Kendall's tau"]
    rows = [
        [
            r["structure"],
            r["metric"],
            r["model"],
            interval_text(r["mean"], math.nan, math.nan),
            f"{r['n']}",
            "" if math.isnan(r["rank"]) else f"{r['rank']:g}",
            "" if math.isnan(r["rank_low"]) else f"{r['rank_low']:g} to {r['rank_high']:g}",
            "" if math.isnan(r["rank_low"]) else f"{_share(r):.0%}",
            "" if math.isnan(r["tau_mean"]) else f"{r['tau_mean']:.2f}",
        ]
        for r in ranking.to_dict("records")
    ]
    return text_table("ranking by the mean, convention worst", headers, rows)


def _share(r: Mapping[Hashable, Any]) -> float:
    return float(r[f"share_rank_{r['rank']:g}"])


def interval_text(mean: float, low: float, high: float, undefined: str = "undefined") -> str:
    """A mean with its interval, where it has one."""
    if math.isnan(mean):
        return undefined
    return f"{mean:.3f}" if math.isnan(low) else f"{mean:.3f} [{low:.3f}, {high:.3f}]"


def text_table(title: str, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as plain lines; the first column stands left, the others right."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # Texts, not strings: brackets in a name are not markup.
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for place, header in enumerate(headers):
        table.add_column(Text(header), justify="right" if place else "left")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    sink = io.StringIO()
    Console(file=sink, width=WIDTH).print(table)
    return "\n".join([title, *(line.rstrip() for line in sink.getvalue().splitlines())])
