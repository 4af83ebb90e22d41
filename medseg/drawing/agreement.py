"""Volumes against the reference after Bland and Altman: the mean of both against their difference, with bias and limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from medseg.drawing.style import INK, MUTED, quiet, structure_colour, styled

PANELS_PER_ROW = 3
WIDTH = {1: 4.6, 2: 8.0, 3: 8.25}  # inches, by columns
MOST_VECTOR_DOTS = 1500
LABEL_HEIGHT = 0.08  # of a panel; the labels of lines that lie closer are moved apart
LONG_NUMBER = 10_000  # from here on thousands are set apart


@dataclass(frozen=True)
class Agreement:
    """One panel: a structure by a model.

    Args:
        title, colour: its heading, and the place of the structure in the label scheme, from 0.
        mean, difference: (n,) float64 in `unit`: (prediction + reference) / 2 and prediction - reference.
        bias, lower, upper: the mean difference and the limits of agreement; NaN where there are none.
        bias_interval, lower_interval, upper_interval: confidence intervals, or None.
    """

    title: str
    colour: int
    mean: npt.NDArray[np.float64]
    difference: npt.NDArray[np.float64]
    bias: float
    lower: float
    upper: float
    unit: str
    bias_interval: tuple[float, float] | None = None
    lower_interval: tuple[float, float] | None = None
    upper_interval: tuple[float, float] | None = None


def agreement_figure(panels: Sequence[Agreement], models: int = 1) -> Figure:
    """Bland-Altman plots; those of one structure (one colour) share the axis of the differences.

    Args:
        models: panels of each structure; two or three stand in one row.
    """
    columns = max(1, min(models if models in (2, 3) else PANELS_PER_ROW, len(panels)))
    rows = max(1, -(-len(panels) // columns))
    as_picture = sum(panel.mean.size for panel in panels) > MOST_VECTOR_DOTS
    with styled():
        figure = Figure(figsize=(WIDTH[columns], 2.5 * rows), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes in grid[len(panels) :]:
            axes.set_visible(False)
        for place, (axes, panel) in enumerate(zip(grid, panels, strict=False)):
            low, high = _limits([p for p in panels if p.colour == panel.colour])
            axes.set_ylim(low, high)
            _draw(axes, panel, as_picture, LABEL_HEIGHT * (high - low))
            if place % columns == 0:
                axes.set_ylabel(f"Prediction − reference ({panel.unit})")
            if place + columns >= len(panels):
                axes.set_xlabel(f"Mean of both ({panel.unit})")
    return figure


def _draw(axes: Axes, panel: Agreement, as_picture: bool, label: float) -> None:
    quiet(axes)
    axes.axhline(0, color=MUTED, linewidth=0.7)
    colour = structure_colour(panel.colour)
    axes.scatter(panel.mean, panel.difference, s=13, color=colour, alpha=0.6, linewidths=0, rasterized=as_picture, zorder=2)
    lines = (
        (panel.upper, panel.upper_interval, "--", max(panel.upper, panel.bias + label)),
        (panel.bias, panel.bias_interval, "-", panel.bias),
        (panel.lower, panel.lower_interval, "--", min(panel.lower, panel.bias - label)),
    )
    for value, interval, dash, height in lines:
        if not np.isfinite(value):
            continue
        if interval and np.isfinite(interval).all():
            axes.axhspan(*interval, color=MUTED, alpha=0.14, linewidth=0, zorder=0)
        axes.axhline(value, color=INK, linewidth=1.2, linestyle=dash, zorder=3)
        text = _signed(value, panel.upper - panel.lower)
        place: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "xytext": (3, 0)}
        axes.annotate(text, (1, height), ha="left", va="center", fontsize=7.5, color=INK, annotation_clip=False, **place)
    axes.set_title(panel.title if len(panel.title) <= 34 else f"{panel.title[:33]}…", fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.margins(x=0.08)
    for axis, values in ((axes.xaxis, panel.mean), (axes.yaxis, axes.get_ylim())):
        if np.abs(values).max(initial=0) >= LONG_NUMBER:
            axis.set_major_formatter(FuncFormatter(lambda value, _: _apart(f"{value:,.0f}")))


def _limits(panels: Sequence[Agreement]) -> tuple[float, float]:
    edges = [edge for p in panels for interval in (p.lower_interval, p.upper_interval) for edge in interval or ()]
    values = np.concatenate([np.array([0.0, *edges]), *(np.array([p.lower, p.upper, *p.difference]) for p in panels)])
    known = values[np.isfinite(values)]
    room = 0.1 * (known.max() - known.min()) or 1.0
    return float(known.min() - room), float(known.max() + 1.4 * room)


def _signed(value: float, spread: float) -> str:
    """A line's height with the digits that the distance between the limits bears."""
    known = np.isfinite(spread) and spread > 0
    decimals = int(np.clip(2 - np.floor(np.log10(spread)), 0, 4)) if known else 2
    return _apart(f"{value:+{',' if abs(value) >= LONG_NUMBER else ''}.{decimals}f}")


def _apart(number: str) -> str:
    return number.replace(",", "\u202f").replace("-", "−")
