"""The report's tables as files: CSV, one Excel workbook, and LaTeX for a paper."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd
from openpyxl import Workbook
from openpyxl.cell import WriteOnlyCell
from openpyxl.styles import Alignment, Border, Font, Side
from openpyxl.utils import get_column_letter

from medseg.core.files import atomic_path, write_text
from medseg.reporting.latex import latex
from medseg.reporting.letters import NO_CHARACTER

WORKBOOK = "tables.xlsx"
WIDEST, NARROWEST = 48, 7  # characters of an Excel column
EXCEL_ROWS = 1_048_575  # below the header; Excel has no more


@dataclass(frozen=True, eq=False)
class Table:
    """A table of the report.

    Args:
        name: of its files and its sheet.
        caption: one or two sentences; also the LaTeX table's.
        frame: figures in full, for CSV and Excel.
        headers, rows: the same as it is printed, for LaTeX; every row as long as `headers`.
        numeric: whether a printed column is set to the right.
    """

    name: str
    caption: str
    frame: pd.DataFrame
    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: Sequence[bool]

    @property
    def groups(self) -> list[tuple[str, list[Sequence[str]]]]:
        """The printed rows, those together that follow one another and begin alike."""
        return [(first, list(rows)) for first, rows in groupby(self.rows, key=lambda row: row[0])]


def write_tables(tables: Sequence[Table], folder: Path) -> None:
    """Write each table as CSV and LaTeX, and all of them as sheets of tables.xlsx.

    Raises: OutputError where the folder cannot be written.
    """
    for table in tables:
        write_text(folder / f"{table.name}.csv", table.frame.to_csv(index=False, lineterminator="\n"))
        write_text(folder / f"{table.name}.tex", latex(table))
    write_workbook(tables, folder / WORKBOOK)


def write_workbook(tables: Sequence[Table], path: Path) -> None:
    """Write tables as sheets of an Excel workbook: a bold header that stays in sight, filters, numbers as numbers.

    Text is written as text, also where it looks like a formula. Raises: OutputError where the file cannot be written.
    """
    book = Workbook(write_only=True)
    for table in tables:
        _write_sheet(book.create_sheet(table.name[:31]), table.frame)
    with atomic_path(path) as temporary:
        book.save(temporary)


def _write_sheet(sheet: Any, frame: pd.DataFrame) -> None:
    shown = frame.iloc[:EXCEL_ROWS]
    for index, width in enumerate(_widths(shown), start=1):
        sheet.column_dimensions[get_column_letter(index)].width = width
    sheet.freeze_panes = "A2"
    if len(shown.columns):
        sheet.auto_filter.ref = f"A1:{get_column_letter(len(shown.columns))}{len(shown) + 1}"
    bold, line = Font(bold=True), Border(bottom=Side(style="thin"))
    header = [_text_cell(sheet, str(column)) for column in shown.columns]
    for cell in header:
        cell.font, cell.border, cell.alignment = bold, line, Alignment(vertical="bottom")
    sheet.append(header)
    for values in shown.itertuples(index=False, name=None):
        sheet.append([_cell(sheet, value) for value in values])


def _widths(frame: pd.DataFrame) -> list[int]:
    found = []
    for column in frame.columns:
        texts = [str(column), *map(str, frame[column].iloc[:200])]
        longest = max(len(text) for text in texts) if not pd.api.types.is_numeric_dtype(frame[column]) else len(str(column))
        found.append(min(WIDEST, max(NARROWEST, longest)) + 4)  # room for the filter's button
    return found


def _cell(sheet: Any, value: Any) -> Any:
    if isinstance(value, str):
        return _text_cell(sheet, value) if value[:1] in "=+-@#'" or NO_CHARACTER.search(value) else value
    if value is None or value is pd.NA or (isinstance(value, float) and not math.isfinite(value)):
        return None
    return value.item() if hasattr(value, "item") else value


def _text_cell(sheet: Any, text: str) -> Any:
    cell = WriteOnlyCell(sheet, NO_CHARACTER.sub("\ufffd", text))
    cell.data_type = "s"  # never a formula
    return cell
