"""Every case as a dot, with a box over it: what a mean would hide."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter
from matplotlib.transforms import blended_transform_factory

from medseg.drawing.style import INK, MUTED, quiet, structure_colour, styled

ROW_INCHES, GROUP_GAP, LABEL_ROOM = 0.42, 0.75, 0.55  # inches; rows between groups, and above one whose spans have labels
MOST_VECTOR_DOTS = 1500  # more than this many and the dots become one picture, or the page grows by megabytes


@dataclass(frozen=True)
class Strip:
    """One row: the values of one structure by one model for every metric.

    Args:
        group, name: the structure and the model.
        colour: place of the structure in the label scheme, from 0.
        values: one (n,) float array a metric; NaN where a case has no value (shown as a cross at the worse end).
    """

    group: str
    name: str
    colour: int
    values: tuple[npt.NDArray[np.float64], ...]


@dataclass(frozen=True)
class Scale:
    """One metric's axis. `better`: which end is good; a `bounded` metric ends at 1."""

    label: str
    better: Literal["higher", "lower"]
    bounded: bool = True


@dataclass(frozen=True)
class Span:
    """What a group's values are held against, as a shaded band with a line at its mean: readers, perhaps.

    Args:
        low, high: of the band; NaN where there is the line alone.
        label: stands above the group's rows.
    """

    mean: float
    low: float
    high: float
    label: str


Spans = Mapping[str, Sequence[Span | None]]


def strip_figure(strips: Sequence[Strip], scales: Sequence[Scale], spans: Spans | None = None) -> Figure:
    """Strip plots with boxes: one panel a metric side by side, one row a structure and model.

    Args:
        strips: rows in order, those of one group together.
        scales: one for each metric, in the order of `Strip.values`.
        spans: behind the rows of a group, one or None for each metric.
    """
    spans = spans or {}
    places, headings = _places(strips, spans)
    with styled():
        height = 0.75 + ROW_INCHES * (places[-1] + 1 if places else 1)
        figure = Figure(figsize=(3.9 * len(scales) + 0.4, height), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.12)  # type: ignore[union-attr, call-arg]
        panels = figure.subplots(1, len(scales), sharey=True, squeeze=False)[0]
        n_dots = sum(v.size for strip in strips for v in strip.values)
        for index, (axes, scale) in enumerate(zip(panels, scales, strict=True)):
            quiet(axes, "x")
            axes.spines["left"].set_visible(False)
            behind = {group: span for group, of_group in spans.items() if (span := of_group[index])}
            ends = [np.array([span.low, span.mean, span.high]) for span in behind.values()]
            _set_scale(axes, scale, [*(strip.values[index] for strip in strips), *ends])
            for group, span in behind.items():
                _draw_span(axes, [at for at, strip in zip(places, strips, strict=True) if strip.group == group], span)
            for place, strip in zip(places, strips, strict=True):
                _draw_strip(axes, place, strip.values[index], structure_colour(strip.colour), scale, n_dots > MOST_VECTOR_DOTS)
            axes.set_xlabel(scale.label)
        panels[0].set_yticks(places, [strip.name for strip in strips])
        panels[0].tick_params(axis="y", pad=9)  # clear of a cross at the low end
        panels[0].set_ylim((places[-1] if places else 0) + 0.6, -1.1)
        for place, group in headings:
            panels[0].text(
                0,
                place,
                group,
                fontweight="bold",
                va="center",
                transform=blended_transform_factory(panels[0].transAxes, panels[0].transData),
            )
    return figure


def _draw_span(axes: Axes, places: Sequence[float], span: Span) -> None:
    if not places:
        return
    top, end = places[0] - 0.46, places[-1] + 0.46
    if np.isfinite(span.low):
        axes.fill_between([span.low, span.high], top, end, color=MUTED, alpha=0.22, linewidth=0, zorder=1)
    axes.plot([span.mean] * 2, [top, end], color=MUTED, linewidth=1.2, linestyle=(0, (4, 2)), zorder=1.5)
    across = blended_transform_factory(axes.transAxes, axes.transData)
    axes.text(0, top - 0.26, span.label, fontsize=7.5, color=MUTED, va="center", transform=across)


def _places(strips: Sequence[Strip], labelled: Container[str]) -> tuple[list[float], list[tuple[float, str]]]:
    """Where each row stands, and where the heading of each group stands."""
    places: list[float] = []
    headings: list[tuple[float, str]] = []
    at, before = -1.0, None
    for strip in strips:
        at += 1
        if strip.group != before:
            room = LABEL_ROOM if strip.group in labelled else 0
            at += room + (GROUP_GAP if before is not None else 0)
            headings.append((at - 0.72 - room, strip.group))
            before = strip.group
        places.append(at)
    return places, headings


def _set_scale(axes: Axes, scale: Scale, values: Sequence[npt.NDArray[np.float64]]) -> None:
    known = np.concatenate([np.zeros(0), *(v[np.isfinite(v)] for v in values)])
    if scale.bounded:
        low = np.floor((known.min() if known.size else 0) * 10 - 0.25) / 10
        axes.set_xlim(max(0.0, min(low, 0.8)), 1.0)
        return
    high = float(known.max()) if known.size else 1.0
    typical = float(np.quantile(known, 0.75)) if known.size else 1.0
    if typical > 0 and high > 8 * typical:
        axes.set_xscale("symlog", linthresh=2 * typical)
        steps = [m * 10.0**k for k in range(-3, 7) for m in (1, 2, 5)]
        axes.xaxis.set_major_locator(FixedLocator([0, *(s for s in steps if typical / 2 <= s <= high)]))
        # Matplotlib's own labels would be powers of ten, set as mathematics.
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.margins(x=0)
    axes.set_xlim(0, high * 1.06 or 1)


def _draw_strip(axes: Axes, place: float, values: npt.NDArray[np.float64], colour: str, scale: Scale, as_picture: bool) -> None:
    known = values[np.isfinite(values)]
    # The spread across the row has no meaning; it is drawn from a fixed seed so that a figure is the same each time.
    spread = np.random.default_rng(0).uniform(-0.24, 0.24, values.size)
    axes.scatter(
        known,
        place + spread[: known.size],
        s=13,
        color=colour,
        alpha=0.6,
        linewidths=0,
        clip_on=False,
        rasterized=as_picture,
        zorder=2,
    )
    if lost := values.size - known.size:
        end = axes.get_xlim()[0 if scale.better == "higher" else 1]
        axes.scatter(
            np.full(lost, end),
            place + spread[known.size :],
            s=26,
            marker="x",
            color=colour,
            linewidths=1.4,
            clip_on=False,
            zorder=4,
        )
    if known.size >= 4:
        _draw_box(axes, place, known)
    elif known.size:
        axes.plot([np.median(known)] * 2, [place - 0.3, place + 0.3], color=INK, linewidth=1.8, zorder=3)


def _draw_box(axes: Axes, place: float, known: npt.NDArray[np.float64]) -> None:
    line: dict[str, Any] = {"color": INK, "linewidth": 0.9}
    axes.boxplot(
        [known],
        positions=[place],
        orientation="horizontal",
        widths=0.6,
        showfliers=False,
        manage_ticks=False,
        zorder=3,
        boxprops=line,
        whiskerprops={**line, "color": MUTED},
        capprops={**line, "linewidth": 0},
        medianprops={**line, "linewidth": 1.8},
    )
