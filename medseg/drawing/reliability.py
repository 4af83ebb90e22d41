"""Reliability diagrams: how often voxels that were given a probability are in the structure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from medseg.drawing.style import INK, MUTED, quiet, structure_colour, styled

PANELS_PER_ROW = 3
SIDE = 2.6  # inches
LARGEST_DOT = 80.0  # points squared, of the bin with the most voxels beside the two at the ends


@dataclass(frozen=True)
class Diagram:
    """One panel: a structure by a model.

    Args:
        title, colour: its heading, and the place of the structure in the label scheme, from 0.
        probability, hit_rate: (bins,) mean probability given, and share of the voxels in the structure; NaN in empty bins.
        voxels: (bins,) int, how many voxels each bin holds.
        error: expected calibration error over all cases.
    """

    title: str
    colour: int
    probability: npt.NDArray[np.float64]
    hit_rate: npt.NDArray[np.float64]
    voxels: npt.NDArray[np.int64]
    error: float


def reliability_figure(panels: Sequence[Diagram], models: int = 1) -> Figure:
    """Diagrams side by side; on the diagonal a probability is what it says, below it is too sure of the structure.

    Args:
        models: panels of each structure; two or three stand in one row.
    """
    columns = min(models if models in (2, 3) else PANELS_PER_ROW, len(panels))
    rows = -(-len(panels) // columns)
    with styled():
        figure = Figure(figsize=(SIDE * columns + 0.4, (SIDE + 0.3) * rows), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes in grid[len(panels) :]:
            axes.set_visible(False)
        for place, (axes, panel) in enumerate(zip(grid, panels, strict=False)):
            _draw(axes, panel)
            if place % columns == 0:
                axes.set_ylabel("Share in the structure")
            if place + columns >= len(panels):
                axes.set_xlabel("Probability given")
    return figure


def _draw(axes: Axes, panel: Diagram) -> None:
    quiet(axes)
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8, linestyle="--", zorder=1)
    known = panel.voxels > 0
    inner = panel.voxels[1:-1].max(initial=1)  # the two ends hold nearly all voxels
    sizes = np.clip(LARGEST_DOT * panel.voxels[known] / inner, 6, LARGEST_DOT)
    colour = structure_colour(panel.colour)
    axes.plot(panel.probability[known], panel.hit_rate[known], color=colour, linewidth=1.2, zorder=2)
    axes.scatter(panel.probability[known], panel.hit_rate[known], s=sizes, color=colour, alpha=0.8, linewidths=0, zorder=3)
    axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), aspect="equal")
    axes.set_title(panel.title if len(panel.title) <= 34 else f"{panel.title[:33]}…", fontsize=9)
    axes.text(0.03, 0.97, f"error {panel.error:.3f}", fontsize=7.5, color=INK, va="top")
