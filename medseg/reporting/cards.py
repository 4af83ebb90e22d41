"""The gallery as the page shows it: a card for each case, its pictures small enough for a thousand-case report."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from medseg.core.files import atomic_path
from medseg.drawing.slices import SliceStack
from medseg.drawing.style import DPI, PRINT_DPI, save_svg, styled
from medseg.drawing.webp import to_webp
from medseg.reporting.anchors import case_anchor, row_anchor
from medseg.reporting.collect import ModelResults, ReportData
from medseg.reporting.config import ReportConfig
from medseg.reporting.gallery import Exhibit, Layout, galleries
from medseg.reporting.picks import Pick
from medseg.reporting.words import STATUS, describe, find_metric, format_number

COLUMNS = ("dice", "hd95")
MOST_ROWS = 8  # of a card's table; a case with more structures shows those that it stands for
MOST_PLANES_BYTES = 80 * 1024
PNG_EFFORT = 2  # a third of the time of the usual 6 for files a quarter larger


@dataclass(frozen=True)
class Picture:
    """An embedded picture: its data address, and its size on the page in CSS pixels."""

    address: str
    width: int
    height: int


@dataclass(frozen=True)
class Scroller:
    """A volume's slices as the addresses of two pictures.

    Args:
        aspect: a frame's width by its height.
        labels: what each frame is, in words.
        start: the frame shown first.
    """

    picture: str
    contours: str
    aspect: str
    labels: list[str]
    start: int


@dataclass(frozen=True)
class CardRow:
    """A structure's figures, and the id of its row in the table of every case."""

    structure: str
    cells: list[str]
    status: str
    anchor: str


@dataclass(frozen=True)
class Card:
    """A case with what it stands for, its pictures and its figures, all as text that is yet to be escaped."""

    anchor: str
    case_id: str
    kinds: list[tuple[str, str]]
    headers: list[str]
    rows: list[CardRow]
    layout: Layout
    reason: str
    window: str
    alt: str
    planes: Picture | None
    scroller: Scroller | None


@dataclass(frozen=True)
class Wall:
    """One model's cards; `left_out` more cases are not drawn."""

    model: str
    cards: list[Card]
    left_out: int


def make_walls(data: ReportData, config: ReportConfig, folder: Path) -> list[Wall]:
    """The gallery of each model; its planes also as PNG at 300 dpi and SVG in a folder."""
    walls = []
    for gallery in galleries(data, config):
        cards = [_card(data, gallery.model, e, folder, number) for number, e in enumerate(gallery.exhibits)]
        walls.append(Wall(gallery.model.name, cards, gallery.left_out))
    return walls


def _card(data: ReportData, model: ModelResults, exhibit: Exhibit, folder: Path, number: int) -> Card:
    texts = [describe(c) for name in COLUMNS if (c := find_metric(data, name))]
    kinds = stands_for(exhibit.picks, len(data.structures) > 1)
    told = "; ".join(f"{kind} of {names}" if names else kind for kind, names in kinds)
    name = f"{_file_name(model.name)}_{_file_name(exhibit.picks[0].kind)}_{number}.png"
    window = exhibit.limits and "Window {} to {} HU.".format(*(format_number(v, 0) for v in exhibit.limits))
    return Card(
        anchor=case_anchor(model.name, exhibit.case_id),
        case_id=exhibit.case_id,
        kinds=kinds,
        headers=[t.label for t in texts],
        rows=[
            CardRow(
                row["structure"],
                [t.format(row.get(t.column)) for t in texts],
                STATUS.get(row["status"], row["status"]),
                row_anchor(model.name, exhibit.case_id, row["structure"]),
            )
            for row in _rows(model, exhibit)
        ],
        layout=exhibit.layout,
        reason=exhibit.reason,
        window=window or "",
        alt=f"Case {exhibit.case_id} of {model.name} ({told}): {'' if exhibit.blank else 'the image, and the image with '}the "
        f"reference outlined in solid lines and the prediction in dashed ones. {exhibit.reason}".strip(),
        planes=None if exhibit.figure is None else _place(exhibit.figure, folder / name),
        scroller=None if exhibit.slices is None else _scroller(exhibit.slices),
    )


def stands_for(picks: list[Pick], named: bool) -> list[tuple[str, str]]:
    """Each kind with the structures it is for, in words. `named`: there is more than one structure."""
    found = []
    for kind, group in groupby(picks, key=lambda p: p.kind):
        names = ", ".join(p.structure or "the mean over structures" for p in group)
        found.append((str(kind), names if named else ""))
    return found


def _rows(model: ModelResults, exhibit: Exhibit) -> list[dict[Any, Any]]:
    rows = model.per_case[model.per_case["case_id"] == exhibit.case_id].to_dict("records")
    own = {p.structure for p in exhibit.picks}
    return rows if len(rows) <= MOST_ROWS else [r for r in rows if r["structure"] in own][:MOST_ROWS] or rows[:MOST_ROWS]


def _place(figure: Figure, path: Path) -> Picture:
    """Write the planes as PNG at 300 dpi and SVG, and have them for the page as WebP at 150. They are drawn once for both."""
    with styled():
        figure.set_dpi(PRINT_DPI)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()  # type: ignore[no-untyped-call]
        drawn = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")  # type: ignore[no-untyped-call]
    with atomic_path(path) as temporary:
        drawn.save(temporary, "PNG", compress_level=PNG_EFFORT, dpi=(PRINT_DPI, PRINT_DPI))
    for image in (image for axes in figure.axes for image in axes.images):
        image.set_interpolation("none")  # an SVG holds the voxels themselves
    save_svg(figure, path.with_suffix(".svg"))
    width, height = figure.get_size_inches()
    small = drawn.reduce(PRINT_DPI // DPI)
    return Picture(_address(to_webp(small, MOST_PLANES_BYTES)), round(width * 100), round(height * 100))


def _scroller(stack: SliceStack) -> Scroller:
    below = " from below" if stack.name == "Axial" else ""
    labels = [f"{stack.name} slice {n} of {stack.depth}{below}" for n in stack.slices]
    return Scroller(_address(stack.picture), _address(stack.contours), f"{stack.aspect:.4g}", labels, stack.start)


def _address(data: bytes) -> str:
    return f"data:image/webp;base64,{base64.b64encode(data).decode()}"


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name)
