"""PNG and JPEG by Pillow. The pixels are used as stored: a rotation in the EXIF data is not applied."""

from __future__ import annotations

import io
import warnings as python_warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
from PIL import Image, ImageFile

from medseg.core.errors import UnreadableError
from medseg.core.grid import Grid
from medseg.io.picture import Array, Picture

EXIF_ORIENTATION = 274
# What each of Pillow's modes is read as; the modes that are not here become RGB.
AS_IT_IS = ("1", "L", "I", "F", "I;16", "I;16B", "I;16L", "I;16N", "RGB")
WITHOUT_ALPHA = {"LA": "L", "La": "L", "PA": "RGB", "RGBA": "RGB", "RGBa": "RGB", "RGBX": "RGB"}
PNG_COLOUR_TYPES_PILLOW_NARROWS = (2, 4, 6)  # RGB, grey with alpha, RGBA


def read(path: Path, as_labels: bool) -> Picture:
    """The picture as (C, columns, rows, 1); labels with a palette give its indices. Raises: what Pillow raises."""
    with _opened(path) as image:
        if image.format == "PNG" and _is_wide_colour_png(path):
            pixels = _wide_png(path)
        elif image.mode in AS_IT_IS or (image.mode == "P" and as_labels):
            pixels = np.asarray(image)
        else:
            pixels = np.asarray(image.convert(WITHOUT_ALPHA.get(image.mode, "RGB")))
    if pixels.dtype == bool:
        pixels = pixels.astype(np.uint8)
    return Picture(as_channels(pixels), Grid.pixels((pixels.shape[1], pixels.shape[0])))


def read_grid(path: Path) -> Grid:
    """The pixel grid; a PNG or JPEG states no physical size that could be trusted."""
    with _opened(path) as image:
        return Grid.pixels(image.size)


def encode(labels: Array, like: Path) -> bytes:
    """A PNG file of `labels` (X, Y, 1), uint8 or uint16, that lies on the picture `like`."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(labels[:, :, 0].T)).save(buffer, "PNG")
    return buffer.getvalue()


def warnings(path: Path) -> list[str]:
    """A sentence where a viewer would show the picture turned."""
    with _opened(path) as image:
        orientation = image.getexif().get(EXIF_ORIENTATION, 1)
    if orientation in (0, 1):
        return []
    return [
        f"{path}: viewers turn it (EXIF orientation {orientation}) and its pixels are used as stored; check that its labels are."
    ]


def as_channels(pixels: Array) -> Array:
    """(rows, columns) or (rows, columns, C) as (C, X, Y, 1)."""
    return (pixels[..., None] if pixels.ndim == 2 else pixels).transpose(2, 1, 0)[..., None]


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # a library that is lenient with pictures of its own (WeasyPrint) sets it for all
    with python_warnings.catch_warnings():
        # Pillow warns from 90 million pixels on, which a microscope may well give; from twice that on it refuses.
        python_warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        # Damaged EXIF data do not touch the pixels.
        python_warnings.filterwarnings("ignore", "(Corrupt|Truncated|Possibly corrupt) EXIF|Metadata Warning", UserWarning)
        # Only these (JPEG with its pairs, MPO): Pillow would hand a file of another kind to whatever program reads it.
        with Image.open(path, formats=("PNG", "JPEG")) as image:
            if getattr(image, "n_frames", 1) > 1 and image.format == "PNG":
                raise UnreadableError(f"{path} is an animation of {image.n_frames} pictures; save each as a file of its own.")  # type: ignore[attr-defined]
            yield image


def _is_wide_colour_png(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(26)
    return start[24] == 16 and start[25] in PNG_COLOUR_TYPES_PILLOW_NARROWS


def _wide_png(path: Path) -> Any:
    """16-bit colour, which Pillow would cut to 8 bits."""
    pixels = np.asarray(imagecodecs.png_decode(path.read_bytes()))
    return pixels[..., :3] if pixels.shape[2] > 2 else pixels[..., 0]
