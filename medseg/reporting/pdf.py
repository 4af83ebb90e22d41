"""The report as PDF, made of the page itself: by WeasyPrint where it is installed, else by a Chromium that is."""

from __future__ import annotations

import base64
import contextlib
import importlib.util
import io
import logging
import re
import shutil
import subprocess
import tempfile
import warnings
from pathlib import Path

from PIL import Image, ImageFile

from medseg.core.files import atomic_path
from medseg.drawing.style import THEME

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge", "msedge")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-extensions", "--no-pdf-header-footer",
)  # fmt: skip
WEBP = re.compile(r"data:image/webp;base64,([A-Za-z0-9+/=]+)")
JPEG_QUALITY = 90
TIMEOUT = 180.0  # seconds
HOW = "`pip install medseg[pdf]`, or install Chromium"


def write_pdf(page: str, path: Path) -> str:
    """Write the report's page as a PDF.

    Args:
        page: the HTML, as it stands in report.html.
        path: where the PDF goes; an older one is removed where none can be made.
    Returns: why there is no PDF, in a sentence; empty where there is one.
    Raises: OutputError where the file cannot be written.
    """
    reasons = []
    for print_page in (_with_weasyprint, _with_browser):
        if not (reason := print_page(page, path)):
            return ""
        reasons.append(reason)
    path.unlink(missing_ok=True)
    return f"report.pdf was not written ({'; '.join(reasons)}); {HOW} to have it, or print report.html."


def as_jpeg(page: str) -> str:
    """A page with its WebP pictures as JPEG, which a PDF holds as they are; of another kind they would be many times as large."""
    return WEBP.sub(lambda found: _jpeg(base64.b64decode(found[1])), page)


def _jpeg(picture: bytes) -> str:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(picture)).convert("RGB").save(
        buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0
    )  # thin lines keep hue
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _with_weasyprint(page: str, path: Path) -> str:
    if importlib.util.find_spec("weasyprint") is None:
        return "WeasyPrint is not installed"
    # WeasyPrint resolves no variables inside a picture; on paper they have one value each.
    for colour, variable in THEME.items():
        page = page.replace(variable, colour)
    logging.getLogger("weasyprint").setLevel(logging.ERROR)  # it warns of every rule meant for the screen
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            lenient = ImageFile.LOAD_TRUNCATED_IMAGES
            import weasyprint
            from weasyprint.urls import URLFetcher

            ImageFile.LOAD_TRUNCATED_IMAGES = lenient  # it sets this for all: damaged scans would be read without a word

            # The page holds all that it needs; nothing is fetched from elsewhere.
            document = weasyprint.HTML(string=page, url_fetcher=URLFetcher(allowed_protocols=["data"])).render()
    except Exception as error:  # its native libraries may be missing or of another age
        return f"WeasyPrint failed: {_first_line(error)}"
    with atomic_path(path) as temporary:
        document.write_pdf(temporary)
    return ""


def _with_browser(page: str, path: Path) -> str:
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        return "there is no Chromium"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        source = Path(folder, "report.html")
        source.write_text(page, encoding="utf-8")
        made = Path(folder, "report.pdf")
        command = [browser, *FLAGS, f"--user-data-dir={folder}/profile", f"--print-to-pdf={made}", source.as_uri()]
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(command, capture_output=True, timeout=TIMEOUT, check=False)
        if not (made.is_file() and made.stat().st_size):
            return f"{Path(browser).name} made none"
        with atomic_path(path) as temporary:
            shutil.copyfile(made, temporary)
    return ""


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]
