"""A grid of small pictures with contours: many patches at a glance."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from medseg.drawing.contours import DARK, draw_outlines, draw_picture
from medseg.drawing.style import save_png, styled
from medseg.drawing.windows import window

Array = npt.NDArray[Any]


def draw_contact_sheet(
    images: Sequence[Array],
    classes: Sequence[Array],
    titles: Sequence[str],
    path: Path,
    columns: int = 6,
    stretched: bool = True,
) -> Path:
    """Draw small pictures with the outlines of their structures, row by row, to a PNG.

    Args:
        images: (X, Y) any real dtype, or (X, Y, 3) colour; X runs to the right.
        classes: (X, Y) class indices, one for each image; 0 background, 255 ignored.
        titles: one for each image; may be empty strings.
        columns: pictures in a row, at most.
        stretched: window each picture by its own percentiles; False where they are in [0, 1] already and to be compared.
    """
    columns = max(1, min(columns, len(images)))
    rows = max(1, -(-len(images) // columns))
    tallest = max((i.shape[1] / i.shape[0] for i in images), default=1.0)
    width, heading, gap = 1.55, 0.2 * any(titles), 0.06
    height = width * tallest + heading
    with styled():
        figure = Figure(figsize=((width + gap) * columns + gap, (height + gap) * rows + gap), facecolor=DARK)
        grid = figure.subplots(rows, columns, squeeze=False)
        wide, high = figure.get_size_inches()
        figure.subplots_adjust(
            left=gap / wide,
            right=1 - gap / wide,
            bottom=gap / high,
            top=1 - (gap + heading) / high,
            wspace=gap / width,
            hspace=(gap + heading) / (width * tallest),
        )
        for axes in grid.flat:
            axes.set_axis_off()
        for axes, image, labels, title in zip(grid.flat, images, classes, titles, strict=False):
            draw_picture(axes, np.swapaxes(window(image) if stretched else image, 0, 1), (1.0, 1.0))
            draw_outlines(axes, labels.T, (1.0, 1.0))
            axes.set_title(title, fontsize=7.5, color="white", fontweight="normal", loc="center", pad=2)
    return save_png(figure, path)
