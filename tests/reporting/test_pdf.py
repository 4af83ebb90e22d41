"""The report as PDF."""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import re
import shutil
import subprocess
import sys
import warnings

import numpy as np
import pytest
from PIL import Image
from reporting.phantom_run import HOSTILE, write_picture_run

from medseg.reporting import pdf
from pipelines.config import RunConfig
from pipelines.report import run


def weasyprint_works() -> bool:
    """Installed, and its native libraries (Pango) too."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import weasyprint  # noqa: F401
    except (ImportError, OSError):
        return False
    return True


HAS_WEASYPRINT = weasyprint_works()
HAS_BROWSER = any(map(shutil.which, pdf.BROWSERS))
LONG = "".join(f"<tr><td>row {i}</td></tr>" for i in range(150))
PAGE = f"""<!doctype html><title>A report</title><style>@page {{ size: A4 }} thead {{ display: table-header-group }}</style>
<p style="color: var(--ink)">Ä text</p><table><thead><tr><th>Heading</th></tr></thead><tbody>{LONG}</tbody></table>"""


def pages_of(path):
    if shutil.which("pdftotext") is None:
        pytest.skip("needs pdftotext (poppler) to read the PDF")
    return subprocess.run(["pdftotext", "-layout", path, "-"], capture_output=True, text=True, check=True).stdout.split("\f")[:-1]


@pytest.mark.parametrize("way", ["_with_weasyprint", "_with_browser"])
def test_a_page_becomes_a_pdf_whose_tables_repeat_their_heads(tmp_path, way):
    if not (HAS_WEASYPRINT if way == "_with_weasyprint" else HAS_BROWSER):
        pytest.skip("needs WeasyPrint, or Chromium")
    assert getattr(pdf, way)(PAGE, tmp_path / "r.pdf") == ""
    pages = pages_of(tmp_path / "r.pdf")
    assert len(pages) > 1 and all("Heading" in page for page in pages) and "Ä text" in pages[0]
    assert [p.name for p in tmp_path.iterdir()] == ["r.pdf"]


def test_nothing_is_fetched_from_elsewhere(tmp_path):
    if not HAS_WEASYPRINT:
        pytest.skip("needs WeasyPrint")
    secret = tmp_path / "secret.css"
    secret.write_text("body::after { content: 'fetched' }")
    page = f'<link rel="stylesheet" href="{secret.as_uri()}"><p>text</p>'
    assert pdf._with_weasyprint(page, tmp_path / "r.pdf") == ""
    assert "fetched" not in pages_of(tmp_path / "r.pdf")[0]


def test_pictures_are_read_as_strictly_as_before(tmp_path):
    """WeasyPrint tells Pillow, for the whole process, to read truncated pictures without a word."""
    if not HAS_WEASYPRINT:
        pytest.skip("needs WeasyPrint")
    code = "from medseg.reporting.pdf import write_pdf; from pathlib import Path; from PIL import ImageFile; import sys\n"
    code += f"assert write_pdf('<p>text</p>', Path({str(tmp_path / 'r.pdf')!r})) == ''\n"
    code += "assert 'weasyprint' in sys.modules and not ImageFile.LOAD_TRUNCATED_IMAGES"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_both_there_is_one_sentence_and_no_old_pdf(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "r.pdf").write_text("of an earlier report")
    reason = pdf.write_pdf(PAGE, tmp_path / "r.pdf")
    assert "WeasyPrint is not installed" in reason and "pip install medseg[pdf]" in reason and "\n" not in reason
    assert not (tmp_path / "r.pdf").exists()


@pytest.mark.skipif(not (HAS_WEASYPRINT or HAS_BROWSER), reason="needs WeasyPrint or Chromium")
def test_the_report_of_a_run_has_a_pdf_with_page_numbers(tmp_path):
    assert run(RunConfig.load(write_picture_run(tmp_path), ["report.pdf=true"])) == 0
    pages = pages_of(tmp_path / "run" / "report" / "report.pdf")
    text = " ".join(" ".join(pages).split())
    assert f"1/{len(pages)}" in "".join(pages[0].split())
    assert "For research use only" in text and "Every case" in text and HOSTILE.split()[0] in text
    assert "Filter" not in text  # no tools of the screen


@pytest.mark.skipif(not (HAS_WEASYPRINT or HAS_BROWSER), reason="needs WeasyPrint or Chromium")
def test_pages_after_the_first_bear_the_title_whatever_letters_it_has(tmp_path):
    title = 'Nuclei "quoted" </style> \\ é'
    config = RunConfig.load(write_picture_run(tmp_path), ["report.pdf=true", f"report.title={json.dumps(title)}"])
    assert run(config) == 0
    pages = [" ".join(page.split()) for page in pages_of(tmp_path / "run" / "report" / "report.pdf")]
    assert all(page.startswith(title) for page in pages[1:]) and pages[0].startswith("SEGMENTATION")


@pytest.mark.skipif(not (HAS_WEASYPRINT or HAS_BROWSER), reason="needs WeasyPrint or Chromium")
def test_on_paper_checklists_are_short_and_name_what_is_left(tmp_path):
    assert run(RunConfig.load(write_picture_run(tmp_path), ["report.pdf=true", "report.gallery_cases=0"])) == 0
    pages = [" ".join(page.split()) for page in pages_of(tmp_path / "run" / "report" / "report.pdf")]
    first = next(i for i, page in enumerate(pages) if "CLAIM 2024" in page)
    last = next(i for i, page in enumerate(pages) if i >= first and "Provenance" in page)
    assert last - first <= 3 and sum("Left to the author: " in page for page in pages) >= 2
    assert not any("For the author" in page for page in pages)  # the table of the screen


def test_pictures_of_a_page_are_jpeg_on_paper():
    wave = (np.indices((40, 60)).sum(axis=0) * 2).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(wave).convert("RGB").save(buffer, "WEBP", quality=90)
    address = f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    page = pdf.as_jpeg(f'<img src="{address}"><p>data:image/webp</p>')
    found = re.fullmatch(r'<img src="data:image/jpeg;base64,([^"]+)"><p>data:image/webp</p>', page)
    with Image.open(io.BytesIO(base64.b64decode(found[1]))) as picture:
        assert picture.format == "JPEG" and picture.size == (60, 40)
        np.testing.assert_allclose(np.asarray(picture.convert("L")).astype(int), wave, atol=12)
