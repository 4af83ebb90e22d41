"""Every table of the report as it goes into files: figures in full for CSV and Excel, and as they are printed for LaTeX."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import astuple, fields
from typing import Any

import pandas as pd

from medseg.reporting import cases, provenance, tables
from medseg.reporting.collect import ReportData
from medseg.reporting.exports import Table
from medseg.reporting.statistics import statistics_tables

CONVENTIONS = {
    "worst": "a missing prediction or a missed structure counts as 0, or as the scan’s diagonal for distances; "
    "a structure in neither mask counts as perfect",
    "defined": "undefined figures are left out and counted",
}


def report_tables(data: ReportData, headline: Sequence[str], patients: bool = False) -> list[Table]:
    """The report's tables that hold anything.

    Args:
        headline: columns of the metrics that stand side by side.
        patients: with the patients' identifiers.
    """
    found = [
        _headline(data, headline),
        *_summaries(data),
        _comparison(data),
        *statistics_tables(data, headline),
        _per_case(data, patients),
        _records(
            "cases_flow", "How far the cases came.", cases.flow_rows(data), cases.FlowRow, "given readable segmented evaluated"
        ),
        _records("failures", "Cases that failed, and why.", cases.failures(data), cases.Failure),
        _missed(data),
        _unmatched(data),
        _records("models", "The models.", provenance.model_rows(data), provenance.ModelRow, "steps epochs best_dice"),
        _records("stages", "The stages of the run.", provenance.stage_rows(data), provenance.StageRow, "took"),
    ]
    return [table for table in found if table is not None]


def _headline(data: ReportData, columns: Sequence[str]) -> Table | None:
    head = tables.side_by_side(data, columns)
    if not head.rows:
        return None
    pairs = [(metric, model) for metric in head.metrics for model in data.models]
    rows = [
        [structure, *("–" if c is None else c.mean + (f" ({c.interval})" if c.interval != "–" else "") for c in cells)]
        for structure, cells in head.rows
    ]
    headers = [
        "Structure",
        *(f"{metric.label}, {model.name}" if len(data.models) > 1 else metric.label for metric, model in pairs),
    ]
    interval = f" ({tables.confidence(data)} interval)" if head.any_interval else ""
    caption = f"Mean{interval} over {len(data.models)} models; what is missed counts as worst. {tables.interval_note(data)}"
    if len(data.models) == 1:
        caption = f"Mean{interval} of {data.models[0].name}; what is missed counts as worst. {tables.interval_note(data)}"
    worst = pd.concat([m.summary.assign(model=m.name) for m in data.models])
    chosen = worst[(worst["convention"] == "worst") & worst["metric"].isin(list(columns))]
    return Table("headline", caption, _model_first(chosen), headers, rows, [False] + [True] * len(pairs))


def _summaries(data: ReportData) -> list[Table]:
    whole = _model_first(pd.concat([m.summary.assign(model=m.name) for m in data.models]))
    counts = tables.counted(data)
    found = []
    for convention, meaning in CONVENTIONS.items():
        blocks = tables.summary_blocks(data, convention)
        rows = [
            [block.structure, metric.label, r.model, r.mean, r.interval, r.median, r.quartiles, r.n, r.n_undefined]
            + list(r.counts if counts else ())
            for block in blocks
            for metric, found_rows in block.metrics
            for r in found_rows
        ]
        headers = ["Structure", "Metric", "Model", "Mean", f"{tables.confidence(data)} interval", "Median", "Quartiles", "n"]
        headers += ["Undefined", *(tables.COUNTS[c] for c in counts)]
        numeric = [False] * 3 + [True] * (len(headers) - 3)
        caption = f"Summary under the convention “{convention}”: {meaning}. {tables.interval_note(data)}"
        if rows:
            own = whole[whole["convention"] == convention]
            found.append(Table(f"summary_{convention}", caption, own, headers, rows, numeric))
    return found


def _comparison(data: ReportData) -> Table | None:
    groups = tables.comparison_groups(data)
    if data.comparison_summary is None or not groups:
        return None
    columns = tables.comparison_columns(data)
    headers = ["Structure", "Metric", *(column.header for column in columns)]
    rows = [
        [structure, row.metric.label, *(getattr(row, column.field) for column in columns)]
        for structure, group in groups
        for row in group
    ]
    caption = "Paired comparison of the models on the same cases; what one of them missed counts as its worst. p by Wilcoxon’s "
    caption += "signed rank test, corrected after Holm for all rows; effect: rank-biserial correlation of matched pairs."
    caption = " ".join([caption, *tables.comparison_notes(data)])
    numeric = [False] * 2 + [column.numeric for column in columns]
    return Table("comparison_summary", caption, data.comparison_summary, headers, rows, numeric)


def _per_case(data: ReportData, patients: bool) -> Table:
    shown = cases.per_case_table(data, patients)
    frame = _model_first(pd.concat([m.per_case.assign(model=m.name) for m in data.models]))
    if not patients:
        frame = frame.drop(columns="patient_id", errors="ignore")
    rows = [[cell.text for cell in row] for row in shown.rows]
    return Table("per_case", "Every case.", frame, shown.headers, rows, shown.numeric)


def _missed(data: ReportData) -> Table | None:
    headers = ["Case", "Model", "Structure"]
    rows = [[found.case_id, found.model, found.stage] for found in cases.missed(data)]
    frame = pd.DataFrame(rows, columns=["case_id", "model", "structure"])
    caption = "Missed structures: in the reference, but not in the mask."
    return Table("missed", caption, frame, headers, rows, [False] * 3) if rows else None


def _unmatched(data: ReportData) -> Table | None:
    rows = [[case_id, model.name] for model in data.models for case_id in model.without_reference]
    frame = pd.DataFrame(rows, columns=["case_id", "model"])
    caption = "Masks that have no reference and were not evaluated."
    return Table("unmatched", caption, frame, ["Case", "Model"], rows, [False] * 2) if rows else None


def _records(name: str, caption: str, rows: Iterable[Any], kind: type, numbers: str = "") -> Table | None:
    names = [field.name for field in fields(kind) if field.name != "lost"]
    frame = pd.DataFrame([astuple(row) for row in rows], columns=[field.name for field in fields(kind)])[names]
    if frame.empty and name != "failures":
        return None
    printed = [[str(value) for value in row] for row in frame.itertuples(index=False, name=None)]
    for column in numbers.split():
        values = pd.to_numeric(frame[column].astype(str).str.replace("\u202f", ""), errors="coerce")
        if values.notna().any():  # a time in words stays as it is
            frame[column] = values.astype("Int64") if (values.dropna() % 1 == 0).all() else values
    headers = [column.replace("_", " ").capitalize() for column in names]
    return Table(name, caption, frame, headers, printed, [column in numbers.split() for column in names])


def _model_first(table: pd.DataFrame) -> pd.DataFrame:
    return table[["model", *(c for c in table.columns if c != "model")]]
