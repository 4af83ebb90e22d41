r"""Tables as LaTeX: they print what they are given, and fit a portrait page where they are `\input`."""

from __future__ import annotations

import re
import shutil
import subprocess

import pandas as pd
import pytest
from reporting.phantom_run import write_picture_run, write_volume_run

from medseg.reporting.exports import Table
from medseg.reporting.latex import LINE, LONG_ROWS, latex
from medseg.reporting.letters import escape, needed
from pipelines.config import RunConfig
from pipelines.report import run

PAGE = "\\documentclass[{paper}]{{article}}\\usepackage{{booktabs,array,longtable}}\\begin{{document}}\n{body}\\end{{document}}\n"
NAMES = ["été_µm_01", "a--b 5 % & more", "κ = ½ #3", "e\u0301tude", "x" * 70, "sub-0001_ses-02_acq-highres_T1w_desc-brain", "Ł"]


def table(headers, rows, numeric, name="t"):
    return Table(name, "A caption of 95 % & some_words.", pd.DataFrame(), headers, rows, numeric)


def compile_tables(folder, texts, paper):
    """The log of a plain article that holds these tables."""
    if (compiler := shutil.which("pdflatex")) is None:
        pytest.skip("needs pdflatex to compile the tables")
    for number, text in enumerate(texts):
        (folder / f"t{number}.tex").write_text(text, encoding="utf-8")
    body = "".join(f"\\input{{t{number}}}\\clearpage\n" for number in range(len(texts)))
    (folder / "all.tex").write_text(PAGE.format(paper=paper, body=body), encoding="utf-8")
    for _ in range(3):  # until the columns of long tables have settled
        command = [compiler, "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
        done = subprocess.run(command, cwd=folder, capture_output=True, timeout=120, check=False)
        assert done.returncode == 0, done.stdout.decode(errors="replace")[-2000:]
    return (folder / "all.log").read_text(encoding="latin-1")


def too_wide(log):
    return re.findall(r"Overfull \\hbox.*|.*Float too large.*", log)


@pytest.mark.parametrize("paper", ["a4paper", "letterpaper"])
@pytest.mark.parametrize("rows", [5, LONG_ROWS + 9])
def test_wide_tables_fit_the_page(tmp_path, paper, rows):
    figures = [f"{0.9 - i / 999:.3f} [0.801 to 0.934]" for i in range(rows)]
    names = [f"{NAMES[i % len(NAMES)]} {i}" for i in range(rows)]
    told = [f"the file {'ab12' * 16} of scanner no. {i} is truncated after 12 kB; copy the scan again" for i in range(rows)]
    wide = table(
        ["Case", "Model", *(f"Reference volume {i} (ml)" for i in range(12))],
        [[n, "unet", *[f] * 12] for n, f in zip(names, figures, strict=True)],
        [False, False, *[True] * 12],
    )
    texts = table(["Case", "Stage", "Reason"], list(map(list, zip(names, names, told, strict=True))), [False] * 3)
    hashes = table(["What", "SHA-256"], [[n, "0123456789abcdef" * 4] for n in names], [False] * 2)
    log = compile_tables(tmp_path, [latex(t) for t in (wide, texts, hashes)], paper)
    assert not too_wide(log)


@pytest.mark.parametrize("write", [write_volume_run, write_picture_run])
def test_every_table_of_a_report_fits_the_page(tmp_path, write):
    assert run(RunConfig.load(write(tmp_path), ["report.pdf=false", "report.gallery_cases=0"])) == 0
    files = sorted((tmp_path / "run" / "report" / "tables").glob("*.tex"))
    assert len(files) > 6
    log = compile_tables(tmp_path, [path.read_text(encoding="utf-8") for path in files], "a4paper")
    assert not too_wide(log)


def test_nothing_is_lost_where_columns_are_set_in_parts():
    headers = ["Case", *(f"Figure {i}" for i in range(20))]
    text = latex(table(headers, [[f"c{k}", *(f"{k}.{i:05d}" for i in range(20))] for k in range(3)], [False] + [True] * 20))
    assert text.count(r"\begin{tabular}") > 1 and text.count("c1 &") == text.count(r"\begin{tabular}")
    assert all(text.count(f"{k}.{i:05d}") == 1 for k in range(3) for i in range(20))
    assert text.count(r"\caption") == text.count(r"\label") == 1


def test_the_parts_are_of_like_width():
    headers = ["Case", *(f"F{i}" for i in range(13))]
    text = latex(table(headers, [["a case", *["0.1234567"] * 12, "1"], ["b", *["0.2345678"] * 13]], [False] + [True] * 13))
    counts = [len(re.findall("[rl]", spec)) for spec in re.findall(r"\\begin\{tabular\}\{@\{\}([rl]+)@\{\}\}", text)]
    assert len(counts) == 2 and abs(counts[0] - counts[1]) <= 1


def test_what_every_row_says_goes_into_the_caption_of_a_wide_table_only():
    rows = [[f"case {i}", "unet", *[f"{i}.000"] * 8, "0"] for i in range(3)]
    headers = ["Case", "Model", *["A long heading"] * 8, "Missed"]
    wide = latex(table(headers, rows, [False, False, *[True] * 9]))
    assert "In every row: Model: unet; Missed: 0." in wide and r"\textbf{Model}" not in wide
    narrow = latex(table(headers[:2], [row[:2] for row in rows], [False, False]))
    assert "In every row" not in narrow and r"\textbf{Model}" in narrow


def test_an_empty_table_says_so():
    assert "None." in latex(table(["Case", "Reason"], [], [False, False]))


def test_texts_are_broken_between_words_and_figures_before_their_interval():
    rows = [["a word " * 20, "−0.123 [−0.200 to 0.100]"]] * 2 + [["b", "1 [0 to 2]"]]
    text = latex(table(["Case", "Mean", *["Another mean"] * 4], [[*row, *row[1:] * 4] for row in rows], [False, *[True] * 5]))
    assert r"$-$0.123 {[}$-$0.200~to~0.100{]}" in text and r"\raggedleft" in text and r"\raggedright" in text
    widths = [float(w) for w in re.findall(r"p\{([\d.]+)pt\}", re.search(r"\\begin\{(tabular|longtable)\}.*", text)[0])]
    assert sum(widths) <= LINE


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a_b & c%", r"a\_b \& c\%"),
        ("\\x{}", r"\textbackslash{}x\{\}"),
        ("−1", "$-$1"),
        ("2\u202f000", r"2\,000"),
        ("[1]", "{[}1{]}"),
        ("a---b", "a-{}-{}-b"),
        ("e\u0301 µ μ", r"é \textmu{} $\mu$"),
    ],
)
def test_escape(text, expected):
    assert escape(text) == expected


def test_what_pdflatex_does_not_have_by_itself_is_said():
    assert needed("Größe é Łódź µ κ ≤") == "" and "fontenc" in needed("Đorđe") and "XeLaTeX" in needed("脳")
    assert "XeLaTeX" in latex(table(["Case"], [["脳_1"]], [False])).splitlines()[0]
