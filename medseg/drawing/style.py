"""One look for every figure: colours, type, and the ways out (PNG and SVG files for papers, themed SVG for the report)."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from medseg.core.files import atomic_path

INK, MUTED, RULE = "#1b2026", "#59636e", "#d3d9e0"
THEME = {INK: "var(--ink)", MUTED: "var(--muted)", RULE: "var(--rule)"}

# Found by search: at least 3:1 against the white and the dark page (WCAG 1.4.11), and at least 12 apart (CIEDE2000) from
# each other for normal, protan, deutan and tritan sight.
STRUCTURE_COLOURS = ("#169fc2", "#f6267b", "#ab9104", "#5a59ce", "#19806f", "#79682b")

DPI, PRINT_DPI = 150, 300
STYLE: dict[str, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": MUTED,
    "axes.facecolor": "none",
    "axes.labelcolor": INK,
    "axes.labelsize": 9,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "figure.facecolor": "white",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "grid.color": RULE,
    "grid.linewidth": 0.7,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "svg.fonttype": "none",
    "svg.hashsalt": "medseg",
    "text.color": INK,
    "text.parse_math": False,  # a case or structure may have a $ in its name
    "xtick.color": MUTED,
    "xtick.labelcolor": INK,
    "xtick.labelsize": 8.5,
    "ytick.color": MUTED,
    "ytick.labelcolor": INK,
    "ytick.labelsize": 8.5,
}


def structure_colour(index: int) -> str:
    """The colour of the structure at this place in the label scheme (from 0); the colours repeat after the sixth."""
    return STRUCTURE_COLOURS[index % len(STRUCTURE_COLOURS)]


@contextmanager
def styled() -> Iterator[None]:
    """Figures made and saved inside have the project's style; the process's own settings come back afterwards."""
    with matplotlib.rc_context(STYLE):  # type: ignore[arg-type]
        yield


def quiet(axes: Axes, grid: str = "y") -> Axes:
    """Take away what carries no data: tick marks; faint lines along `grid` (`x`, `y` or `both`)."""
    axes.tick_params(length=0)
    axes.grid(True, axis=grid)  # type: ignore[arg-type]
    return axes


def save_png(figure: Figure, path: Path, transparent: bool = False, dpi: int = DPI) -> Path:
    """Write `figure` as a PNG, whole or not at all."""
    path = Path(path)
    with styled(), atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=dpi, transparent=transparent, metadata={"Software": None})
    return path


def save_svg(figure: Figure, path: Path) -> Path:
    """Write `figure` as an SVG that stands by itself, its text as text and its pictures at 300 dpi; whole or not at all."""
    path = Path(path)
    with styled(), atomic_path(path) as temporary:
        figure.savefig(temporary, format="svg", dpi=PRINT_DPI, metadata={"Date": None, "Creator": None})
    return path


def to_svg(figure: Figure, prefix: str) -> str:
    """`figure` as an `<svg>` element to stand inside a page that defines --ink, --muted and --rule, light or dark.

    Text stays text (it can be read aloud, searched and copied). No declaration, no metadata, no address is left in it.

    Args:
        prefix: put before every id, so that several figures can stand in one page.
    """
    buffer = io.StringIO()
    with styled():
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    text = re.sub(r'(url\(|href=")#', rf"\g<1>#{prefix}-", text)
    # A style element inside an SVG would rule the whole page; its one rule goes on the element itself.
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text, flags=re.DOTALL)
    text = re.sub(
        r'<svg .*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" style="stroke-linejoin: round">', text, count=1, flags=re.DOTALL
    )
    text = text.replace("'DejaVu Sans'", "var(--sans)")
    for colour, variable in THEME.items():
        text = text.replace(colour, variable)
    return text
