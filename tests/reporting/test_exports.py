"""Tables as CSV, Excel and LaTeX."""

from __future__ import annotations

import math
import re
import shutil
import subprocess

import numpy as np
import openpyxl
import pandas as pd
import pytest

from medseg.reporting.exports import Table, write_tables
from medseg.reporting.latex import LONG_ROWS, latex

HOSTILE = ["=1+1", "+cmd", "@x", "-2", "a\x07b", '<b>&%$#_{}~^\\|"[]', "‘Ä’ – −3 × 2² ≤ 5\u202f000…", "line\nbreak"]


def table(texts=HOSTILE, name="per_case"):
    frame = pd.DataFrame(
        {"case_id": texts, "dice": np.linspace(0.1, 0.9, len(texts)), "n": np.arange(len(texts)), "gap": math.nan}
    )
    rows = [[text, f"{value:.3f}"] for text, value in zip(texts, frame["dice"], strict=True)]
    return Table(name, "Every case, 95 % of them & more.", frame, ["Case", "Dice_x"], rows, [False, True])


@pytest.fixture
def folder(tmp_path):
    write_tables([table(), table(["c1"], "failures")], tmp_path)
    return tmp_path


def test_every_table_is_there_in_each_form(folder):
    expected = {"per_case.csv", "per_case.tex", "failures.csv", "failures.tex", "tables.xlsx"}
    assert {p.name for p in folder.iterdir()} == expected
    pd.testing.assert_frame_equal(pd.read_csv(folder / "per_case.csv"), table().frame)


def test_excel_holds_numbers_as_numbers_and_texts_as_texts(folder):
    book = openpyxl.load_workbook(folder / "tables.xlsx")
    assert book.sheetnames == ["per_case", "failures"]
    sheet = book["per_case"]
    assert [c.value for c in sheet[1]] == ["case_id", "dice", "n", "gap"] and all(c.font.bold for c in sheet[1])
    assert sheet.freeze_panes == "A2" and sheet.auto_filter.ref == f"A1:D{len(HOSTILE) + 1}"
    cells = list(sheet.iter_rows(min_row=2))
    assert [row[0].value for row in cells] == [text.replace("\x07", "\ufffd") for text in HOSTILE]
    assert all(row[0].data_type == "s" for row in cells)  # never a formula
    assert [row[1].value for row in cells] == pytest.approx(list(table().frame["dice"]))
    assert all(row[1].data_type == row[2].data_type == "n" and row[3].value is None for row in cells)


def test_latex_has_rules_a_caption_and_a_label():
    text = latex(table())
    for part in (
        r"\toprule",
        r"\midrule",
        r"\bottomrule",
        r"\caption{Every case, 95 \% of them \& more.}",
        r"\label{tab:per-case}",
    ):
        assert part in text, part
    assert r"\begin{tabular}{@{}lr@{}}" in text and r"\textbf{Dice\_x}" in text
    assert "longtable" in latex(table(["c"] * (LONG_ROWS + 1))) and "longtable" not in text


def test_every_row_of_latex_has_as_many_cells_as_columns():
    body = re.search(r"\\midrule\n(.*)\n\\bottomrule", latex(table()), re.DOTALL)[1].splitlines()
    assert len(body) == len(HOSTILE)
    assert all(len(re.findall(r"(?<!\\)&", line)) == 1 and line.endswith(r" \\") for line in body)


@pytest.mark.parametrize("rows", [HOSTILE, ["case_1 [0.1]"] * (LONG_ROWS + 5)])
def test_latex_compiles(tmp_path, rows):
    compiler = shutil.which("pdflatex") or shutil.which("tectonic")
    if compiler is None:
        pytest.skip("needs pdflatex or tectonic to compile the tables")
    head = "\\documentclass{article}\n\\usepackage{booktabs,array,longtable}\n"
    (tmp_path / "t.tex").write_text(f"{head}\\begin{{document}}\n{latex(table(rows))}\\end{{document}}\n", encoding="utf-8")
    flags = ["-interaction=nonstopmode", "-halt-on-error"] if "pdflatex" in compiler else []
    done = subprocess.run([compiler, *flags, "t.tex"], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
