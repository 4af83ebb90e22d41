"""Structures outlined on slices: the image, and on it the reference (solid) and the prediction (dashed), the right way round."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import AbstractPathEffect, withStroke

from medseg.drawing.scene import Scene, View, inside_structures, pick_planes
from medseg.drawing.style import structure_colour, styled

Array = npt.NDArray[Any]
Plane = Literal["axial", "coronal", "sagittal"]

DARK = "#0c0e10"
FIGURE_INCHES, TALLEST_INCHES = 7.2, 6.4
GAP_INCHES = 0.05
KEY_INCHES = (1.02, 0.38)
ROWS_WHERE_FULLER = 1.25  # planes stand below one another where that fills the paper so much better than side by side
LONG = 3.5  # a single picture that is so much wider than high stands below its twin
DASHES = (0, (2.6, 1.9))
LETTER: dict[str, Any] = {"color": "#ffd24a", "fontfamily": "DejaVu Sans Mono", "fontweight": "bold"}  # its I has serifs
OUTLINE: list[AbstractPathEffect] = [withStroke(linewidth=2.2, foreground="black", alpha=0.75)]


def draw_case(
    scene: Scene, planes: Sequence[Plane] = ("axial", "coronal", "sagittal"), focus: Collection[int] = (), missing: str = ""
) -> Figure:
    """One case as the image and the image with its contours: a 2D image whole, a volume in planes through a structure.

    Where there is no picture, the contours stand alone.

    A volume is shown in its true proportions and cropped to the structure with some context.

    Args:
        focus: the classes to look at, by default all.
        missing: why there is no prediction, written in its place.
    Returns: a figure without background that can stand on a light or a dark page.
    """
    scene = scene.cropped(scene.inside(focus))
    indices = pick_planes(scene.inside(focus))
    views = [scene.views[p] for p in planes if p in scene.views] or list(scene.views.values())
    spacing = scene.grid.spacing
    sizes = [(scene.grid.shape[v.across] * spacing[v.across], scene.grid.shape[v.down] * spacing[v.down]) for v in views]
    with styled():
        figure, panels, length = _panels(sizes, 1 if scene.blank else 2)
        for view, size, twins in zip(views, sizes, panels, strict=True):
            index, steps = indices[view.axis], (spacing[view.down], spacing[view.across])
            for axes in twins:
                draw_picture(axes, scene.shown(view, index), steps)
            for classes, dashed in ((scene.reference, False), (scene.prediction, True)):
                if classes is not None:
                    draw_outlines(twins[-1], view.slice(classes, index), steps, dashed)
            for axes in twins:
                _centre(axes, size)
            _annotate(twins[0], view, aside=scene.blank)
        _draw_scale(panels[0][0], length, scene.grid.unit)
        _draw_key(panels[0][-1], scene, missing)
    return figure


def draw_picture(axes: Axes, picture: Array, steps: tuple[float, float]) -> None:
    """A (rows, columns) grey or (rows, columns, 3) colour picture in [0, 1]; `steps`: pixel height and width."""
    rows, columns = picture.shape[:2]
    # Enlarged smoothly, as a viewer does; reduced with the antialiasing that matplotlib chooses.
    interpolation = "bilinear" if max(rows, columns) < 300 else "auto"
    axes.imshow(
        picture,
        cmap="gray",
        vmin=0,
        vmax=1,
        interpolation=interpolation,
        origin="upper",
        extent=(0, columns * steps[1], rows * steps[0], 0),
    )
    axes.set_axis_off()


def draw_outlines(axes: Axes, classes: Array, steps: tuple[float, float], dashed: bool = False) -> None:
    """The outline of every structure of (rows, columns) class indices in the structure's colour.

    Args:
        dashed: in dashes of a lighter shade, without the faint filling that a solid outline has.
    """
    # A border of background closes the outline of a structure that runs into the picture's edge.
    padded = np.pad(classes, 1)
    y, x = ((np.arange(n) - 0.5) * step for n, step in zip(padded.shape, steps, strict=True))
    limits = axes.get_xlim(), axes.get_ylim()
    for value in np.unique(inside_structures(classes) * classes):
        if value == 0:
            continue
        mask = (padded == value).astype(float)
        colour = structure_colour(int(value) - 1)
        if not dashed:
            axes.contourf(x, y, mask, levels=[0.5, 1.5], colors=[colour], alpha=0.14)
        style: dict[str, Any] = {"colors": [lighter(colour)], "linestyles": [DASHES]} if dashed else {"colors": [colour]}
        line = axes.contour(x, y, mask, levels=[0.5], linewidths=1.25, **style)
        line.set_path_effects(OUTLINE)
    axes.set_xlim(limits[0])
    axes.set_ylim(limits[1])


def lighter(colour: str) -> str:
    """The shade in which a prediction is dashed, told from the reference by its brightness, whatever colours one sees."""
    red, green, blue = (0.35 * c + 0.65 for c in to_rgb(colour))
    return to_hex((red, green, blue))


def _panels(sizes: list[tuple[float, float]], number: int) -> tuple[Figure, list[tuple[Axes, ...]], float]:
    """A figure with `number` panels for each (width, height), the plain image and the outlined one or that only, to one scale.

    The planes stand side by side over their outlined twins; long flat ones below one another, for they would leave the paper
    empty. A single picture stands beside its twin, a long one over it. Returns the length that a scale bar may have, too.
    """
    widths, heights = zip(*sizes, strict=True)
    fuller = sum(widths) * max(heights) > ROWS_WHERE_FULLER * sum(heights) * max(widths)
    in_rows = fuller if len(sizes) > 1 else max(widths) < LONG * max(heights)
    columns, rows = ([max(widths)] * number, list(heights)) if in_rows else (list(widths), [max(heights)] * number)
    broad = FIGURE_INCHES / 2 if in_rows and number == 1 else FIGURE_INCHES
    scale = (broad - GAP_INCHES * (len(columns) - 1)) / sum(columns)
    scale = min(scale, (TALLEST_INCHES - GAP_INCHES * (len(rows) - 1)) / sum(rows))
    wide = scale * sum(columns) + GAP_INCHES * (len(columns) - 1)
    tall = scale * sum(rows) + GAP_INCHES * (len(rows) - 1)
    figure = Figure(figsize=(wide, tall), facecolor="none")

    def panel(row: int, column: int) -> Axes:
        left = scale * sum(columns[:column]) + GAP_INCHES * column
        top = scale * sum(rows[:row]) + GAP_INCHES * row
        width, height = scale * columns[column], scale * rows[row]
        return _black(figure.add_axes((left / wide, 1 - (top + height) / tall, width / wide, height / tall)))

    places = range(len(sizes))
    panels = [tuple(panel(i, k) if in_rows else panel(k, i) for k in range(number)) for i in places]
    return figure, panels, _round_length(columns[0] / 4)


def _black(axes: Axes) -> Axes:
    """A black sheet under a panel whose picture does not fill it (the axes' own patch is off with its frame)."""
    axes.add_patch(Rectangle((0, 0), 1, 1, transform=axes.transAxes, facecolor=DARK, linewidth=0, zorder=-1))
    return axes


def _centre(axes: Axes, size: tuple[float, float]) -> None:
    """The picture in the middle of its panel, one unit as long across as down; the rest of the panel is black."""
    box = axes.bbox  # of the panel, not as the picture would shrink it
    width, height = size
    panel = box.width / box.height
    shown = (max(width, height * panel), max(height, width / panel))
    axes.set_xlim((width - shown[0]) / 2, (width + shown[0]) / 2)
    axes.set_ylim((height + shown[1]) / 2, (height - shown[1]) / 2)


def _annotate(axes: Axes, view: View, aside: bool = False) -> None:
    """The plane's name and the letters of its directions. `aside`: the name stands on the right, where the key is on the left."""
    for letter, (x, y) in zip(view.letters, ((0.03, 0.5), (0.97, 0.5), (0.5, 0.97), (0.5, 0.03)), strict=False):
        _write(axes, x, y, letter, ha=_side(x, "left", "right"), va=_side(y, "bottom", "top"), **LETTER)
    _write(axes, 0.97 if aside else 0.03, 0.97, view.name, ha="right" if aside else "left", va="top", fontweight="bold")


def _draw_scale(axes: Axes, length: float, unit: str) -> None:
    left, right = axes.get_xlim()
    share = length / (right - left)
    for width, colour in ((3.4, "black"), (1.6, "white")):
        axes.plot([0.97 - share, 0.97], [0.035, 0.035], color=colour, linewidth=width, transform=axes.transAxes)
    _write(axes, 0.97, 0.05, f"{length:g} {unit}", ha="right", va="bottom", fontsize=7)


def _draw_key(axes: Axes, scene: Scene, missing: str) -> None:
    """Which line is which, and what is not there."""
    lines: list[tuple[str, Any, Any]] = [("Reference", scene.reference, "-"), ("Prediction", scene.prediction, DASHES)]
    wide, tall = axes.bbox.width / axes.figure.dpi, axes.bbox.height / axes.figure.dpi
    key = Rectangle(
        (0, 1), KEY_INCHES[0] / wide, -KEY_INCHES[1] / tall, transform=axes.transAxes, color=DARK, alpha=0.6, lw=0, zorder=9
    )
    axes.add_patch(key)
    for row, (name, classes, dashes) in enumerate(lines):
        x, y = 0.07 / wide, 1 - (0.11 + 0.16 * row) / tall
        if classes is not None:
            ends = [x, x + 0.28 / wide]
            axes.plot(ends, [y, y], color="white", linewidth=1.4, linestyle=dashes, transform=axes.transAxes, zorder=10)
            x += 0.36 / wide
        _write(axes, x, y, name if classes is not None else f"No {name.lower()}", va="center", fontsize=7.5)
    if scene.prediction is None and missing:
        _fade(axes)
        _write(axes, 0.5, 0.45, "\n".join(_lines(missing)), ha="center", va="center", linespacing=1.4)


def _side(at: float, low: str, high: str) -> str:
    return low if at < 0.4 else high if at > 0.6 else "center"


def _round_length(length: float) -> float:
    """The largest of 1, 2, 5 times a power of ten that is not above `length`."""
    power = 10.0 ** np.floor(np.log10(length))
    return float(max(f * power for f in (1, 2, 5) if f * power <= length * (1 + 1e-9)))


def _write(axes: Axes, x: float, y: float, text: str, **style: Any) -> None:
    style = {"color": "white", "fontsize": 8, **style}
    axes.text(x, y, text, transform=axes.transAxes, path_effects=OUTLINE, zorder=10, **style)


def _fade(axes: Axes) -> None:
    axes.images[0].set_alpha(0.45)


def _lines(text: str, width: int = 30, most: int = 5) -> Iterator[str]:
    lines = textwrap.wrap(text, width)
    yield from lines[:most]
    if len(lines) > most:
        yield "…"
