"""Results as small text tables for the person who watches."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import pandas as pd

from medseg.evaluation.compare import Comparison
from medseg.evaluation.table import Evaluation

FEW = 5  # cases named one by one; the tables have them all
WIDTH = 160


def summary_text(title: str, evaluation: Evaluation, summary: pd.DataFrame) -> str:
    """Means under `worst`, a row a structure; then the flow of cases and the first that failed."""
    shown = [m.column for m in evaluation.measures if m.better]
    cells = {(row["structure"], row["metric"]): row for row in summary[summary["convention"] == "worst"].to_dict("records")}
    rows = []
    for structure in evaluation.structures:
        of_structure = [cells.get((structure, column)) for column in shown]
        n = max((row["n"] for row in of_structure if row), default=0)
        means = [interval_text(r["mean"], r["ci_low"], r["ci_high"]) if r else "" for r in of_structure]
        rows.append([structure, *means, f"{n:g}"])
    lines = [text_table(f"{title}: mean [interval], convention worst", ["structure", *shown, "n"], rows)]
    lines.append("cases: " + ", ".join(f"{count} {name}" for name, count in evaluation.counts.items()))
    failed = evaluation.cases[evaluation.cases["status"] != "ok"].to_dict("records")
    lines += [f"  {case['case_id']}: {case['status']}: {case['reason']}" for case in failed[:FEW]]
    if len(failed) > FEW:
        lines.append(f"  and {len(failed) - FEW} more in cases.csv")
    return "\n".join(lines)


def comparison_text(comparison: Comparison) -> str:
    """Mean paired differences, a row a structure, metric and pair of models."""
    headers = ["structure", "metric", "difference", "mean [interval]", "n", "missing", "wins/ties/losses", "p (Holm)"]
    rows = [
        [
            r["structure"],
            r["metric"],
            f"{r['model_a']} - {r['model_b']}",
            interval_text(r["mean_difference"], r["ci_low"], r["ci_high"]),
            f"{r['n']}",
            f"{r['n_missing']}",
            f"{r['wins']}/{r['ties']}/{r['losses']}",
            "" if math.isnan(r["p_holm"]) else f"{r['p_holm']:.2g}",
        ]
        for r in comparison.summary.to_dict("records")
    ]
    return text_table("paired differences, convention worst", headers, rows)


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
