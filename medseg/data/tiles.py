"""One large picture cut into tiles as cases, with a spatial split whose regions do not touch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medseg.core.files import atomic_path
from medseg.core.manifest import Split

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Band:
    """A horizontal band of the picture, from `first_row` on, `rows` high, whose tiles all go to one split."""

    split: Split
    first_row: int
    rows: int


@dataclass(frozen=True)
class Tile:
    """A rectangle of the picture: `shape` (rows, columns) from pixel (`row`, `column`)."""

    name: str
    split: Split
    row: int
    column: int
    shape: tuple[int, int]

    def of(self, picture: Array) -> Array:
        """This tile's part of a (rows, columns, ...) picture."""
        return picture[self.row : self.row + self.shape[0], self.column : self.column + self.shape[1]]


def tile_layout(size: tuple[int, int], tile: tuple[int, int], bands: Sequence[Band], gap: int, prefix: str) -> list[Tile]:
    """The tiles of a picture, band by band, row by row.

    Args:
        size, tile: (rows, columns) of the picture and of one tile.
        gap: rows that must lie unused between bands of different splits. Where it is longer than any object, no object is
            in two splits.
        prefix: what the tiles' names begin with; row and column of their first pixel follow.
    Raises: ValueError where a band leaves the picture, comes within `gap` of the next, or is no whole number of tiles.
    """
    end = -gap
    for band in bands:
        if band.first_row < end + gap or band.first_row + band.rows > size[0]:
            raise ValueError(f"{band} leaves the picture or comes within {gap} rows of the band before it")
        if band.rows % tile[0] or size[1] % tile[1]:
            raise ValueError(f"{band} is no whole number of tiles of {tile[0]} x {tile[1]}")
        end = band.first_row + band.rows
    return [
        Tile(f"{prefix}_y{row:03d}_x{column:03d}", band.split, row, column, tile)
        for band in bands
        for row in range(band.first_row, band.first_row + band.rows, tile[0])
        for column in range(0, size[1], tile[1])
    ]


def write_tiles(pictures: dict[str, Array], tiles: Sequence[Tile], root: Path) -> list[Path]:
    """Write each tile of each picture as `root/<picture>/<tile>.tif` and return the files.

    Args:
        pictures: (rows, columns) array by folder name, such as `images` and `labels`.
    """
    import tifffile

    written = []
    for folder, picture in pictures.items():
        for tile in tiles:
            path = root / folder / f"{tile.name}.tif"
            with atomic_path(path) as temporary:
                tifffile.imwrite(temporary, np.ascontiguousarray(tile.of(picture)), metadata=None)
            written.append(path)
    return written


# The quick start's picture: 512 x 512 pixels. None of its nuclei reaches across a gap of 32 rows.
NUCLEI_SAMPLE = tile_layout(
    size=(512, 512),
    tile=(64, 128),
    bands=(Band("train", 0, 256), Band("val", 288, 64), Band("test", 384, 128)),
    gap=32,
    prefix="nuclei",
)
