"""A volume slice by slice as one small picture, its frames below one another, and its contours as another on top of it."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from scipy import ndimage
from skimage.measure import find_contours

from medseg.drawing.contours import lighter
from medseg.drawing.scene import Scene, View, inside_structures, pick_planes
from medseg.drawing.style import structure_colour
from medseg.drawing.webp import to_webp

Array = npt.NDArray[Any]
Line = npt.NDArray[np.float64]

MOST_SLICES = 24
LONGEST_SIDE, UNIT = 256, 8  # pixels of a frame, and what its sides are multiples of, so that it may be reduced
MOST_PICTURE_BYTES, MOST_CONTOUR_BYTES = 96 * 1024, 48 * 1024
FINE = 2  # contours are drawn so much larger and reduced, for a smooth edge
LINE_PIXELS, DASH_PIXELS, SPACE_PIXELS = 1.5, 5.0, 4.0


@dataclass(frozen=True)
class SliceStack:
    """Some slices of a volume along one axis.

    Args:
        picture, contours: WebP, the frames from top to bottom; the contours on nothing.
        width, height: of a frame in pixels, before it was made smaller for fewer bytes.
        aspect: a frame's true width by its height, to which the pixels come close.
        slices: number of each frame's slice in the whole volume, from 1.
        depth: how many slices the volume has.
        start: the frame to show first.
        name: of the slices: Axial, or XY where the orientation is unknown.
    """

    picture: bytes
    contours: bytes
    width: int
    height: int
    aspect: float
    slices: tuple[int, ...]
    depth: int
    start: int
    name: str


def draw_slices(scene: Scene, focus: Collection[int] = ()) -> SliceStack:
    """At most 24 slices, evenly spaced through the structures and some context, cropped to them, in at most about 144 kB.

    Args:
        focus: the classes that the first frame shows best, by default all.
    """
    structures = scene.inside()
    near = scene.cropped(structures)
    first = round(float((np.linalg.inv(scene.grid.affine) @ near.grid.affine[:, 3])[2]))
    depth = near.grid.shape[2]
    indices = np.unique(np.linspace(0, depth - 1, min(depth, MOST_SLICES)).round().astype(int))
    start = int(np.abs(indices - pick_planes(near.inside(focus))[2]).argmin())
    view = near.views["axial"]
    size, steps = _frame_size(near, view)
    pictures = [
        Image.fromarray((near.shown(view, i) * 255).astype(np.uint8)).resize(size, Image.Resampling.BILINEAR) for i in indices
    ]
    contours = [_draw_contours(near, view, i, size, steps) for i in indices]
    return SliceStack(
        _encode(pictures, MOST_PICTURE_BYTES),
        _encode(contours, MOST_CONTOUR_BYTES),
        *size,
        (size[0] / steps[1] * near.grid.spacing[view.across]) / (size[1] / steps[0] * near.grid.spacing[view.down]),
        tuple(int(i) + first + 1 for i in indices),
        scene.grid.shape[2],
        start,
        view.name,
    )


def _frame_size(scene: Scene, view: View) -> tuple[tuple[int, int], tuple[float, float]]:
    """A frame's width and height in pixels in the volume's true proportions, and pixels a voxel down and across."""
    voxels = scene.grid.shape[view.down], scene.grid.shape[view.across]
    lengths = [n * scene.grid.spacing[a] for n, a in zip(voxels, (view.down, view.across), strict=True)]
    height, width = (UNIT * max(1, round(LONGEST_SIDE / UNIT * length / max(lengths))) for length in lengths)
    return (width, height), (height / voxels[0], width / voxels[1])


def _draw_contours(scene: Scene, view: View, index: int, size: tuple[int, int], steps: tuple[float, float]) -> Image.Image:
    sheet = Image.new("RGBA", (size[0] * FINE, size[1] * FINE))
    pen = ImageDraw.Draw(sheet)
    scale = np.multiply(steps, FINE)
    for classes, dashed in ((scene.reference, False), (scene.prediction, True)):
        if classes is None:
            continue
        for value, line in outlines(view.slice(classes, index)):
            colour = structure_colour(value - 1)
            points = ((line + 0.5) * scale)[:, ::-1]
            for part in dashes(points) if dashed else [points]:
                path = [(float(x), float(y)) for x, y in part]
                pen.line(path, fill="#000000a0", width=round((LINE_PIXELS + 1.2) * FINE), joint="curve")
                pen.line(path, fill=lighter(colour) if dashed else colour, width=round(LINE_PIXELS * FINE), joint="curve")
    return sheet.resize(size, Image.Resampling.BOX)


def outlines(classes: Array) -> Iterator[tuple[int, Line]]:
    """Each structure's closed outlines in (rows, columns) class indices, as (n, 2) rows and columns of voxel centres."""
    structures = np.where(inside_structures(classes), classes, 0)
    for value, box in enumerate(ndimage.find_objects(structures), start=1):
        if box is None:
            continue
        mask = np.pad(structures[box] == value, 1).astype(float)
        for line in find_contours(mask, 0.5):
            yield value, line + [box[0].start - 1, box[1].start - 1]


def dashes(points: Line) -> Iterator[Line]:
    """The dashes of a line through (n, 2) points, in pixels of the frame."""
    lengths = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(points, axis=0).T))])
    dash, period = DASH_PIXELS * FINE, (DASH_PIXELS + SPACE_PIXELS) * FINE
    for begin in np.arange(0, lengths[-1], period):
        at = np.linspace(begin, min(begin + dash, lengths[-1]), 5)
        yield np.stack([np.interp(at, lengths, points[:, axis]) for axis in range(2)], axis=1)


def _encode(frames: list[Image.Image], most: int) -> bytes:
    """The frames below one another."""
    width, height = frames[0].size
    sheet = Image.new(frames[0].mode, (width, height * len(frames)))
    for row, frame in enumerate(frames):
        sheet.paste(frame, (0, row * height))
    return to_webp(sheet, most)
