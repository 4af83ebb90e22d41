"""What a large report costs: 1,000 cases of 20 structures with their pictures, made, weighed and opened in a browser.

    python benchmarks/report.py [--cases 1000] [--work FOLDER] > benchmarks/results/report.json

Every case is a volume of 64 x 64 x 32 voxels with 20 ellipsoids, a noisy image, and a prediction that is bent, misses a
structure in one case of 20 and invents one in another. `medseg evaluate` and `medseg report --images` run as commands of their
own. The browser is Chromium without a window. The page's own clock says when it was loaded and laid out, counted from the start
of its navigation; the seconds are of the whole browser, from its start to a picture of the page. JSON goes to standard output.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from medseg.core.record import machine, versions

Labels = npt.NDArray[np.uint8]

SHAPE, STRUCTURES = (64, 64, 32), 20
SPACING = (1.5, 1.5, 3.0)
ROUNDS = 3
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
QUIET = ("--headless", "--no-sandbox", "--disable-gpu")
# Says, in the page's title, how long it took until everything was loaded and has its place.
CLOCK = (
    "<script>addEventListener('load', () => { document.body.getBoundingClientRect();"
    " document.title = 'opened after ' + performance.now() + ' ms'; });</script>"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--work", type=Path, help="folder for the cases; a temporary one where it is left out")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = arguments.work or Path(folder)
        make_cases(work, arguments.cases)
        result: dict[str, Any] = {"machine": machine(), "versions": versions(), "cases": arguments.cases}
        result |= {"structures": STRUCTURES, "evaluate_s": _medseg(*_evaluate(work)), "report_s": _medseg(*_report(work))}
        page = work / "report" / "report.html"
        result |= {"mb": round(page.stat().st_size / 1e6, 2), "pictures": page.read_text("utf-8").count("<img")}
        print(json.dumps(result | opened(page, work), indent=2))


def _evaluate(work: Path) -> list[str]:
    folders = ("--predictions", work / "predictions", "--references", work / "references", "--output", work / "evaluation")
    return ["evaluate", *map(str, folders)]


def _report(work: Path) -> list[str]:
    return ["report", str(work / "evaluation"), "--images", str(work / "images"), "--output", str(work / "report")]


def _medseg(*command: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "pipelines.cli", *command], check=True, stdout=sys.stderr)
    return round(time.perf_counter() - start, 1)


def make_cases(work: Path, count: int) -> None:
    """Write images, references and predictions of phantoms, the same at each call."""
    affine = np.diag([*SPACING, 1.0])
    for name in ("images", "references", "predictions"):
        (work / name).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        rng = np.random.default_rng(number)
        reference = ellipsoids(rng, np.zeros(3))
        prediction = ellipsoids(np.random.default_rng(number), rng.normal(0, 0.7, 3))
        if number % 20 == 0:
            prediction[prediction == 1 + number // 20 % STRUCTURES] = 0
        if number % 20 == 10:
            reference[reference == 1 + number // 20 % STRUCTURES] = 0
        image = (reference * 10 + rng.normal(0, 20, SHAPE)).astype(np.int16)
        for folder, array in (("images", image), ("references", reference), ("predictions", prediction)):
            nib.save(nib.Nifti1Image(array, affine), work / folder / f"case_{number:04}.nii.gz")


def ellipsoids(rng: np.random.Generator, shift: npt.NDArray[np.float64]) -> Labels:
    """(64, 64, 32) uint8 with the structures 1 to 20 in a lattice of 5 x 4, shifted by `shift` voxels."""
    axes = np.ogrid[tuple(slice(n) for n in SHAPE)]
    labels = np.zeros(SHAPE, np.uint8)
    for index in range(STRUCTURES):
        centre = np.array([7 + 12 * (index % 5), 8 + 16 * (index // 5), 16]) + rng.uniform(-1, 1, 3) + shift
        radii = rng.uniform(3, 5, 3)
        inside = sum(((x - c) / r) ** 2 for x, c, r in zip(axes, centre, radii, strict=True)) <= 1
        labels[inside] = index + 1
    return labels


def opened(page: Path, work: Path) -> dict[str, Any]:
    """Milliseconds until the report is laid out, and seconds of the whole browser for it and for an empty page; the best of 3."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        return {"browser": "none found"}
    timed, empty = work / "timed.html", work / "empty.html"
    timed.write_text(page.read_text("utf-8").replace("</body>", f"{CLOCK}</body>"), "utf-8")
    empty.write_text("<!doctype html><title>empty</title>", "utf-8")
    return {
        "browser": subprocess.run([browser, "--version"], capture_output=True, text=True, check=True).stdout.strip(),
        "laid_out_ms": min(_clock(browser, timed) for _ in range(ROUNDS)),
        "picture_s": min(_picture(browser, page, work) for _ in range(ROUNDS)),
        "picture_of_an_empty_page_s": min(_picture(browser, empty, work) for _ in range(ROUNDS)),
    }


def _clock(browser: str, page: Path) -> int:
    text = subprocess.run([browser, *QUIET, "--dump-dom", page.as_uri()], capture_output=True, text=True, check=True).stdout
    found = re.search(r"<title>opened after ([\d.]+) ms", text)
    if found is None:
        raise SystemExit(f"{page}: the browser did not say when it was open")
    return round(float(found[1]))


def _picture(browser: str, page: Path, work: Path) -> float:
    start = time.perf_counter()
    options = (*QUIET, f"--screenshot={work / 'page.png'}", "--window-size=1200,1600")
    subprocess.run([browser, *options, page.as_uri()], capture_output=True, check=True)
    return round(time.perf_counter() - start, 2)


if __name__ == "__main__":
    main()
