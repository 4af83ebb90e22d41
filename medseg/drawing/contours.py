"""Structures outlined on slices: image, reference and prediction side by side, the right way round."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import AbstractPathEffect, withStroke
from scipy import ndimage

from medseg.core.grid import Grid
from medseg.core.labels import IGNORE
from medseg.core.resample import resample
from medseg.core.volume import Volume
from medseg.drawing.style import structure_colour, styled

Array = npt.NDArray[Any]
Plane = Literal["axial", "coronal", "sagittal"]
Percentiles = tuple[float, float]

DARK = "#0c0e10"
FIGURE_INCHES, TALLEST_INCHES = 7.2, 8.0
CONTEXT = 0.75  # of the structures' size, kept on each side of them in a volume
LEAST_CONTEXT_VOXELS = 12
LETTER: dict[str, Any] = {"color": "#ffd24a", "fontfamily": "DejaVu Sans Mono", "fontweight": "bold"}  # its I has serifs
OUTLINE: list[AbstractPathEffect] = [withStroke(linewidth=2.2, foreground="black", alpha=0.75)]


@dataclass(frozen=True)
class View:
    """How one plane of a canonical (R, A, S) or stored array is laid on paper.

    Args:
        axis: the array axis that the plane is perpendicular to.
        across, down: the array axes that run to the right and down the page, and whether each runs backwards.
        letters: what lies at the left, right, top and bottom; empty where the orientation is unknown.
    """

    name: str
    axis: int
    across: int
    down: int
    backwards: bool
    letters: str = ""

    def slice(self, array: Array, index: int) -> Array:
        """Plane `index` of (X, Y, Z, ...) as (rows, columns, ...), row 0 at the top."""
        plane = np.take(array, index, self.axis)
        plane = np.swapaxes(plane, 0, 1)  # the axis across is always the earlier one
        return plane[::-1, ::-1] if self.backwards else plane


# As radiologists read: the patient's right on the left of the page; front, or top, up; sagittal planes face left.
ANATOMICAL: dict[str, View] = {
    "axial": View("Axial", 2, 0, 1, True, "RLAP"),
    "coronal": View("Coronal", 1, 0, 2, True, "RLSI"),
    "sagittal": View("Sagittal", 0, 1, 2, True, "APSI"),
}
STACK: dict[str, View] = {
    "axial": View("XY", 2, 0, 1, False),
    "coronal": View("XZ", 1, 0, 2, False),
    "sagittal": View("YZ", 0, 1, 2, False),
}
FLAT = View("", 2, 0, 1, False)


def window(image: Array, percentiles: Percentiles = (1, 99)) -> npt.NDArray[np.float32]:
    """Intensities stretched between two percentiles to [0, 1]; the channels of a colour picture together."""
    finite = image[np.isfinite(image)]
    if not finite.size:
        return np.zeros(image.shape, np.float32)
    low, high = np.percentile(finite, percentiles)
    if high <= low:
        low, high = float(finite.min()), float(finite.max())
    scaled = (np.nan_to_num(image.astype(np.float32), nan=low, posinf=high, neginf=low) - low) / max(high - low, 1e-12)
    return np.clip(scaled, 0, 1).astype(np.float32)


def pick_planes(mask: Array) -> tuple[int, int, int]:
    """The plane along each axis to look at a structure in: through its centre of mass.

    Where the centre of mass lies off the structure (a left and a right kidney, say), the plane that shows most of it.

    Args:
        mask: (X, Y, Z) bool; an empty one gives the middle of the volume.
    """
    if not mask.any():
        x, y, z = (n // 2 for n in mask.shape)
        return x, y, z
    centre = ndimage.center_of_mass(mask)
    chosen = []
    for axis in range(3):
        areas = mask.sum(tuple(a for a in range(3) if a != axis))
        index = round(float(centre[axis]))
        chosen.append(index if areas[index] >= 0.25 * areas.max() else int(areas.argmax()))
    return chosen[0], chosen[1], chosen[2]


def draw_case(
    image: Volume,
    reference: Array | None,
    prediction: Array | None,
    planes: Sequence[Plane] = ("axial", "coronal", "sagittal"),
    channel: int | None = None,
    percentiles: Percentiles = (1, 99),
    missing: str = "",
) -> Figure:
    """One case as image | reference | prediction: a 2D image whole, a volume in planes through its structures.

    A volume with a physical size is turned to right, anterior, superior (no interpolation), shown in its true proportions
    and cropped to the structures with some context; other pictures are shown as stored.

    Args:
        image: the scan; one channel is shown, or all three of a colour picture.
        reference, prediction: (X, Y, Z) class indices on the scan's grid, 255 ignored; None where there is none.
        channel: which channel to show; by default the first, or colour where a 2D picture has three.
        missing: why there is no prediction, written in its place.
    Returns: a figure without background that can stand on a light or a dark page.
    """
    views = [FLAT] if image.grid.planar else [(ANATOMICAL if image.grid.physical else STACK)[p] for p in planes]
    picture, maps, grid = _turned(image, [reference, prediction], channel, percentiles)
    picture, maps = _cropped(picture, maps, grid)
    structures = [m for m in maps if m is not None]
    shown = next((m for m in structures if _inside(m).any()), None)
    indices = pick_planes(np.zeros(picture.shape[:3], bool) if shown is None else _inside(shown))
    spacing = grid.spacing
    with styled():
        widest = max(picture.shape[v.across] * spacing[v.across] for v in views)
        heights = [picture.shape[v.down] * spacing[v.down] / widest for v in views]
        figure, panels = _panels(heights)
        for view, row in zip(views, panels, strict=True):
            steps = (spacing[view.down], spacing[view.across])
            for column, (axes, title) in enumerate(zip(row, ("Image", "Reference", "Prediction"), strict=True)):
                draw_picture(axes, view.slice(picture, indices[view.axis]), steps)
                classes = maps[column - 1] if column else None
                if classes is not None:
                    draw_outlines(axes, view.slice(classes, indices[view.axis]), steps)
                elif column:
                    _fade(axes)
                    if view is views[0]:
                        _write_absence(axes, f"No {title.lower()}", missing if column == 2 else "")
                if view is views[0]:
                    _write(axes, 0.03, 0.97, title, va="top", fontweight="bold")
                _widen(axes, widest)
            _annotate(row[0], view, grid.unit, widest)
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


def draw_outlines(axes: Axes, classes: Array, steps: tuple[float, float]) -> None:
    """The outline and a faint filling of every structure of (rows, columns) class indices, in the structure's colour."""
    # A border of background closes the outline of a structure that runs into the picture's edge.
    padded = np.pad(classes, 1)
    y, x = ((np.arange(n) - 0.5) * step for n, step in zip(padded.shape, steps, strict=True))
    limits = axes.get_xlim(), axes.get_ylim()
    for value in np.unique(_inside(classes) * classes):
        if value == 0:
            continue
        mask = (padded == value).astype(float)
        colour = structure_colour(int(value) - 1)
        axes.contourf(x, y, mask, levels=[0.5, 1.5], colors=[colour], alpha=0.18)
        line = axes.contour(x, y, mask, levels=[0.5], colors=[colour], linewidths=1.25)
        line.set_path_effects(OUTLINE)
    axes.set_xlim(limits[0])
    axes.set_ylim(limits[1])


def _inside(classes: Array) -> npt.NDArray[np.bool_]:
    return (classes > 0) & (classes != IGNORE)


def _turned(
    image: Volume, maps: list[Array | None], channel: int | None, percentiles: Percentiles
) -> tuple[Array, list[Array | None], Grid]:
    """The windowed picture (X, Y, Z) or (X, Y, Z, 3), and the class maps, on the grid that they are shown on."""
    grid = image.grid
    shown = grid.canonical() if grid.physical and not grid.planar else grid
    colour = channel is None and image.array.shape[0] == 3 and grid.planar
    channels = image.array if colour else image.array[[channel or 0]]
    turned = np.moveaxis(window(resample(channels, grid, shown, 0), percentiles), 0, -1)
    return turned if colour else turned[..., 0], [None if m is None else resample(m, grid, shown, 0) for m in maps], shown


def _cropped(picture: Array, maps: list[Array | None], grid: Grid) -> tuple[Array, list[Array | None]]:
    masks = [_inside(m) for m in maps if m is not None]
    together = np.logical_or.reduce(masks) if masks else np.zeros(())
    if grid.planar or not together.any():
        return picture, maps
    window_ = []
    for axis in range(3):
        filled = np.flatnonzero(together.any(tuple(a for a in range(3) if a != axis)))
        first, last = int(filled[0]), int(filled[-1]) + 1
        context = max(LEAST_CONTEXT_VOXELS, round(CONTEXT * (last - first)))
        window_.append(slice(max(0, first - context), last + context))
    box = tuple(window_)
    return picture[box], [None if m is None else m[box] for m in maps]


def _panels(heights: list[float]) -> tuple[Figure, list[list[Axes]]]:
    """A figure of three columns whose rows have these heights (of a column's width), with hair lines between."""
    gap = 0.012
    column = (1 - 2 * gap) / 3
    width = FIGURE_INCHES
    tall = width * (column * sum(heights) + gap * (len(heights) - 1))
    if tall > TALLEST_INCHES:
        width, tall = width * TALLEST_INCHES / tall, TALLEST_INCHES
    figure = Figure(figsize=(width, tall), facecolor="none")
    tops = np.cumsum([0.0, *(column * h + gap for h in heights)]) * width / tall
    rows = []
    for top, below in pairwise(tops):
        height = below - top - gap * width / tall
        rows.append([_black(figure.add_axes((c * (column + gap), 1 - top - height, column, height))) for c in range(3)])
    return figure, rows


def _black(axes: Axes) -> Axes:
    """A black sheet under a panel whose picture does not fill it (the axes' own patch is off with its frame)."""
    axes.add_patch(Rectangle((0, 0), 1, 1, transform=axes.transAxes, facecolor=DARK, linewidth=0, zorder=-1))
    return axes


def _widen(axes: Axes, widest: float) -> None:
    """Every panel spans the same length, so that all planes have one scale; the rest of a panel is black."""
    left, right = axes.get_xlim()
    spare = (widest - (right - left)) / 2
    axes.set_xlim(left - spare, right + spare)


def _annotate(axes: Axes, view: View, unit: str, widest: float) -> None:
    """The plane's name, the letters of its directions and a scale bar."""
    for letter, (x, y) in zip(view.letters, ((0.03, 0.5), (0.97, 0.5), (0.5, 0.97), (0.5, 0.03)), strict=False):
        _write(axes, x, y, letter, ha=_side(x, "left", "right"), va=_side(y, "bottom", "top"), **LETTER)
    _write(axes, 0.03, 0.03, view.name, va="bottom")
    length = _round_length(widest / 4)
    share = length / widest
    for width, colour in ((3.4, "black"), (1.6, "white")):
        axes.plot([0.97 - share, 0.97], [0.045, 0.045], color=colour, linewidth=width, transform=axes.transAxes)
    _write(axes, 0.97 - share / 2, 0.06, f"{length:g} {unit}", ha="center", va="bottom", fontsize=7)


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
    axes.images[0].set_alpha(0.25)


def _write_absence(axes: Axes, what: str, reason: str) -> None:
    text = "\n".join([what, *_lines(reason)])
    _write(axes, 0.5, 0.5, text, ha="center", va="center", linespacing=1.4)


def _lines(text: str, width: int = 30, most: int = 5) -> Iterator[str]:
    lines = textwrap.wrap(text, width)
    yield from lines[:most]
    if len(lines) > most:
        yield "…"
