"""How many cases came how far, as a CONSORT-style chart: boxes from above to below, and beside them who was left out and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import wrap

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from medseg.drawing.style import INK, MUTED, styled

BOX, GAP, SIDE, MARGIN = 1.75, 0.22, 2.0, 0.3  # inches: a box's width, the arrow to the side, a side box's width, between columns
LINE, PAD, STEP = 0.165, 0.16, 0.34  # inches: a line of text, the padding of a box, the arrow between boxes
MOST_COLUMNS = 3
BOX_LETTERS, SIDE_LETTERS = 25, 31


@dataclass(frozen=True)
class Box:
    """A step that `n` cases reached, and those that `left` before it, as lines such as `2 could not be read`."""

    text: str
    n: int
    left: tuple[str, ...] = ()


@dataclass(frozen=True)
class Column:
    """The steps of one model, or of several whose cases fared alike."""

    title: str
    boxes: tuple[Box, ...]


def flow_figure(trunk: Sequence[Box], columns: Sequence[Column]) -> Figure:
    """The chart: the boxes of `trunk`, then one branch a column (the first three; the table beside it has all).

    Args:
        trunk: steps that all models share, at least one.
    """
    shown = columns[:MOST_COLUMNS]
    above = [_lines(box) for box in trunk]
    below = [[_lines(box) for box in column.boxes] for column in shown]
    pitch = BOX + GAP + SIDE + MARGIN
    wide = pitch * max(1, len(shown)) - MARGIN + 0.2
    titles = LINE * 1.6 * any(column.title for column in shown)
    tall = _tall(above) + (STEP + titles + max(map(_tall, below)) if below else 0) + 0.12
    with styled():
        figure = Figure(figsize=(wide, tall))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_xlim(0, wide)
        axes.set_ylim(tall, 0)
        axes.set_axis_off()
        centre = 0.1 + BOX / 2
        y = _draw_boxes(axes, centre, 0.06, trunk, above)
        for index, column in enumerate(shown):
            x = centre + index * pitch
            _branch(axes, centre, x, y, titles, arrives=not column.boxes[0].left)
            if column.title:
                axes.text(x + 0.08, y + STEP + titles / 2 - 0.02, _shorten(column.title, 44), fontweight="bold", va="center")
            _draw_boxes(axes, x, y + STEP + titles, column.boxes, below[index])
    return figure


def _lines(box: Box) -> tuple[list[str], list[str]]:
    """The lines of a box and of the box beside it."""
    beside = [line for text in box.left for line in wrap(text, SIDE_LETTERS, subsequent_indent="   ")[:3]]
    return [*wrap(box.text, BOX_LETTERS)[:2], f"n = {box.n}"], beside


def _height(lines: tuple[list[str], list[str]]) -> float:
    return LINE * len(lines[0]) + PAD


def _room(lines: tuple[list[str], list[str]]) -> float:
    """The space above a box: an arrow, which those who left stand beside."""
    return max(STEP, LINE * len(lines[1]) + PAD + 0.16) if lines[1] else STEP


def _tall(column: list[tuple[list[str], list[str]]]) -> float:
    return sum(_height(lines) + (_room(lines) if i or lines[1] else 0) for i, lines in enumerate(column))


def _draw_boxes(axes: Axes, x: float, y: float, boxes: Sequence[Box], texts: Sequence[tuple[list[str], list[str]]]) -> float:
    """Draw boxes from `y` downwards around `x`; returns where the last one ends."""
    for index, (box, lines) in enumerate(zip(boxes, texts, strict=True)):
        if index or lines[1]:
            room = _room(lines)
            _arrow(axes, (x, y), (x, y + room))
            if lines[1]:
                _beside(axes, x, y + room / 2, lines[1])
            y += room
        height = _height(lines)
        _frame(axes, x - BOX / 2, y, BOX, height, INK)
        text = "\n".join(lines[0][:-1])
        axes.text(x, y + PAD / 2, text, ha="center", va="top", linespacing=1.3)
        axes.text(
            x, y + height - PAD / 2 - 0.01, f"n = {box.n:,}".replace(",", "\u202f"), ha="center", va="bottom", fontweight="bold"
        )
        y += height
    return y


def _beside(axes: Axes, x: float, y: float, lines: list[str]) -> None:
    left, height = x + BOX / 2 + GAP, LINE * len(lines) + PAD
    _arrow(axes, (x, y), (left, y), MUTED)
    _frame(axes, left, y - height / 2, SIDE, height, MUTED)
    axes.text(left + 0.09, y, "\n".join(lines), va="center", fontsize=8, linespacing=1.3)


def _branch(axes: Axes, centre: float, x: float, y: float, titles: float, arrives: bool) -> None:
    """The way from the trunk's last box to a column's first one."""
    if x != centre:
        axes.plot([centre, x], [y + STEP / 2] * 2, color=INK, linewidth=0.9)
    start, end = y if x == centre else y + STEP / 2, y + STEP + titles
    axes.plot([x, x], [start, end], color=INK, linewidth=0.9)
    if arrives:
        _arrow(axes, (x, start), (x, end))


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], colour: str = INK) -> None:
    style = {"arrowstyle": "-|>,head_width=0.18,head_length=0.35", "color": colour, "linewidth": 0.9, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", end, start, arrowprops=style)


def _frame(axes: Axes, x: float, y: float, width: float, height: float, colour: str) -> None:
    xs, ys = [x, x + width, x + width, x, x], [y, y, y + height, y + height, y]
    axes.plot(xs, ys, color=colour, linewidth=1.0, solid_joinstyle="miter")


def _shorten(text: str, letters: int) -> str:
    return text if len(text) <= letters else f"{text[: letters - 1]}…"
