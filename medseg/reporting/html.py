"""The report: one HTML file that needs nothing else, its figures and tables also as files beside it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

import medseg
from medseg.core.files import write_text
from medseg.drawing.style import structure_colour
from medseg.reporting import cases, figures, provenance, tables, words
from medseg.reporting.collect import ModelResults, ReportData
from medseg.reporting.config import ReportConfig
from medseg.reporting.gallery import Exhibit, exhibits

TEMPLATES = Path(__file__).parent / "templates"
HEADLINE = ("dice", "hd95")


def write_report(data: ReportData, folder: Path, config: ReportConfig | None = None) -> Path:
    """Write `report.html`, `figures/` and `tables/` into a folder.

    Args:
        data: what `collect_run` or `collect_folders` found.
    Returns: the path of report.html.
    Raises: OutputError where the folder cannot be written.
    """
    config = config or ReportConfig()
    folder = Path(folder)
    _write_tables(data, folder / "tables")
    page = _environment().get_template("report.html.j2").render(_content(data, folder / "figures", config))
    path = folder / "report.html"
    write_text(path, page)
    return path


def _environment() -> jinja2.Environment:
    # Everything that users named (cases, structures, notes, reasons) is escaped by the template.
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _content(data: ReportData, folder: Path, config: ReportConfig) -> dict[str, Any]:
    headline = [column for name in HEADLINE if (column := words.find_metric(data, name))]
    return {
        "title": config.title or data.name,
        "data": data,
        "facts": data.facts,
        "version": medseg.__version__,
        "written": time.strftime("%d %B %Y"),
        "legend": [(name, structure_colour(i)) for i, name in enumerate(data.drawn)],
        "regions": data.labels.regions if data.labels else [],
        "unit_words": words.unit_words(data),
        "interval_note": tables.interval_note(data),
        "confidence": tables.confidence(data),
        "flow": cases.flow_rows(data),
        "failures": cases.failures(data),
        "warnings": cases.check_warnings(data),
        "missed": cases.missed(data),
        "headline": tables.side_by_side(data, headline),
        "summaries": [(name, tables.summary_blocks(data, name)) for name in ("worst", "defined")],
        "comparison": tables.comparison_groups(data),
        "per_case": cases.per_case_table(data),
        "strips": figures.strips(data, folder),
        "curves": figures.curves(data, folder),
        "gallery": [(m, [_show(data, m, e, folder, i) for i, e in enumerate(found)]) for m, found in _galleries(data, config)],
        "models": provenance.model_rows(data),
        "stages": provenance.stage_rows(data),
        "machine": provenance.machine_text(provenance.latest(data)["machine"]),
        "packages": provenance.latest(data)["versions"],
        "seed": provenance.latest(data)["seed"],
    }


def _galleries(data: ReportData, config: ReportConfig) -> Sequence[tuple[ModelResults, list[Exhibit]]]:
    found = [(model, exhibits(data, model, config)) for model in data.models]
    return [(model, shown) for model, shown in found if shown]


def _show(data: ReportData, model: ModelResults, exhibit: Exhibit, folder: Path, number: int) -> dict[str, Any]:
    """An exhibit with its picture and its figures for the caption."""
    texts = [words.describe(c) for name in HEADLINE if (c := words.find_metric(data, name))]
    rows = model.per_case[model.per_case["case_id"] == exhibit.pick.case_id]
    return {
        "pick": exhibit.pick,
        "layout": exhibit.layout,
        "reason": exhibit.reason,
        "figure": figures.place_exhibit(exhibit, folder, number),
        "mean": words.format_number(exhibit.pick.dice, 3),
        "headers": [t.label for t in texts],
        "rows": [
            (row["structure"], [t.format(row.get(t.column)) for t in texts], words.STATUS.get(row["status"], row["status"]))
            for row in rows.to_dict("records")
        ],
    }


def _write_tables(data: ReportData, folder: Path) -> None:
    """The report's tables as CSV: those of all models in one, ready for a spreadsheet."""
    found = {
        "summary": pd.concat([m.summary.assign(model=m.name) for m in data.models]),
        "per_case": pd.concat([m.per_case.assign(model=m.name) for m in data.models]),
        "cases_flow": pd.DataFrame([astuple(r) for r in cases.flow_rows(data)], columns=[f.name for f in fields(cases.FlowRow)]),
        "failures": pd.DataFrame([astuple(r) for r in cases.failures(data)], columns=[f.name for f in fields(cases.Failure)]),
    }
    if data.comparison_summary is not None:
        found["comparison_summary"] = data.comparison_summary
    for name, table in found.items():
        if "model" in table and name in ("summary", "per_case"):
            table = table[["model", *(c for c in table.columns if c != "model")]]
        write_text(folder / f"{name}.csv", table.to_csv(index=False, lineterminator="\n"))
