"""The report: one HTML file that needs nothing else, the same as PDF, its figures and tables also as files beside it."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

import medseg
from medseg.core.files import write_text
from medseg.core.progress import say
from medseg.drawing.style import structure_colour
from medseg.reporting import (
    cases,
    checklists,
    exports,
    figures,
    hashes,
    methods,
    pdf,
    provenance,
    recipe,
    sheets,
    statistics,
    tables,
    words,
    written,
)
from medseg.reporting.cards import make_walls
from medseg.reporting.collect import ReportData
from medseg.reporting.config import ReportConfig

TEMPLATES = Path(__file__).parent / "templates"
HEADLINE = ("dice", "hd95")
# A longer table of cases is data in the page, and so many rows of it are there for readers without scripts.
PLAIN_ROWS, FIRST_ROWS = 400, 100
RUNNING_TITLE = 90  # letters at the head of a printed page
PRINTED_METRICS = 10  # of every case; more columns do not fit a sheet of paper
ON_SCREEN = re.compile(r'<script\b.*?</script>|<details class="screen">.*?</details>|<img class="sheet[^>]*>', re.DOTALL)
MOST_ROWS = 50  # of cases that failed, and of missed structures


def write_report(data: ReportData, folder: Path, config: ReportConfig | None = None) -> Path:
    """Write `report.html`, `report.pdf`, `figures/` and `tables/` into a folder; a sentence says so where there can be no PDF.

    What an earlier report has written there and this one does not goes, but for what was changed since.

    Args:
        data: what `collect_run` or `collect_folders` found.
    Returns: the path of report.html.
    Raises: OutputError where the folder cannot be written.
    """
    folder = Path(folder)
    with written.replaced(folder) as place:
        _write(data, place, config or ReportConfig())
    return folder / "report.html"


def _write(data: ReportData, folder: Path, config: ReportConfig) -> None:
    headline = [column for name in HEADLINE if (column := words.find_metric(data, name))]
    exports.write_tables(sheets.report_tables(data, headline, config.patient_ids), folder / "tables")
    content = _content(data, folder / "figures", config)
    methods.write_methods(content["methods"], folder)
    checklists.write_checklists(content["checklists"], folder / "checklists")
    page = _environment().get_template("report.html.j2").render(content)
    write_text(folder / "report.html", page)
    if config.pdf and (reason := pdf.write_pdf(_for_paper(page), folder / "report.pdf")):
        say(f"report: {reason}")


def _for_paper(page: str) -> str:
    """The page as it is printed: nothing runs, nothing is folded away or loaded late, and what only a screen shows is gone."""
    page = pdf.as_jpeg(ON_SCREEN.sub("", page))
    return page.replace("<details>", "<details open>").replace(' loading="lazy"', "")


def _summaries(data: ReportData) -> list[tuple[str, list[tables.SummaryBlock]]]:
    """Both conventions, or the one where they say the same."""
    worst, defined = (tables.summary_blocks(data, name) for name in ("worst", "defined"))
    return [("worst", worst)] if worst == defined else [("worst", worst), ("defined", defined)]


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
        "running_title": _css_text(config.title or data.name),
        "data": data,
        "facts": data.facts,
        "version": medseg.__version__,
        "written": time.strftime("%d %B %Y"),
        "legend": [(name, structure_colour(i)) for i, name in enumerate(data.drawn)],
        "regions": data.labels.regions if data.labels else [],
        "unit_words": words.unit_words(data),
        "interval_note": tables.interval_note(data),
        "confidence": tables.confidence(data),
        "patch": recipe.patch_text(data.plan),
        "flow": cases.flow_rows(data),
        "failures": cases.failures(data),
        "not_measured": cases.not_measured(data),
        "notes": cases.reservations(data),
        "warnings": cases.check_warnings(data),
        "missed": cases.missed(data),
        "most_rows": MOST_ROWS,
        "headline": tables.side_by_side(data, headline),
        "abstract": tables.abstract(data, headline),
        "counts": [tables.COUNTS[column] for column in tables.counted(data)],
        "conventions": sheets.CONVENTIONS,
        "flow_chart": figures.flow(data, folder),
        "summaries": _summaries(data),
        "comparison": tables.comparison_groups(data),
        "compared": tables.comparison_columns(data),
        "comparison_notes": tables.comparison_notes(data),
        **_case_rows(cases.per_case_table(data, config.patient_ids)),
        "strips": figures.strips(data, folder),
        "statistics": statistics.statistics_tables(data, headline),
        "agreement": figures.agreement(data, folder),
        "reliability": figures.reliability(data, folder),
        "curves": figures.curves(data, folder),
        "gallery": make_walls(data, config, folder),
        "methods": (told := methods.compose_methods(data)),
        "checklists": checklists.fill_checklists(data, told),
        "hashes": hashes.hash_rows(data),
        "models": provenance.model_rows(data),
        "stages": provenance.stage_rows(data),
        "machine": provenance.machine_text(provenance.latest(data)["machine"]),
        "packages": provenance.latest(data)["versions"],
        "seed": provenance.latest(data)["seed"],
    }


def _css_text(text: str) -> Markup:
    """A text as a string of a style sheet, every letter by its number, so that none ends the string or the sheet."""
    shown = text if len(text) <= RUNNING_TITLE else f"{text[: RUNNING_TITLE - 1]}…"
    return Markup('"{}"').format("".join(f"\\{ord(letter):06x}" for letter in shown))


def _case_rows(table: cases.CaseTable) -> dict[str, Any]:
    """The table of every case: its rows in the page or, where they are many, as data of which the page shows those in sight."""
    numbers = [i for i, numeric in enumerate(table.numeric) if numeric]
    content = {"per_case": table, "beyond": set(numbers[PRINTED_METRICS:]), "printed_metrics": PRINTED_METRICS}
    if len(table.rows) <= PLAIN_ROWS:
        return content | {"shown_rows": table.rows, "row_data": None}
    rows = [[c.text if c.value is None else [c.text, float(f"{c.value:.7g}")] for c in row] for row in table.rows]
    # Nothing in a script element is text to the parser but its end.
    text = json.dumps({"rows": rows, "anchors": table.anchors}, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    return content | {"shown_rows": table.rows[:FIRST_ROWS], "row_data": Markup(text)}
