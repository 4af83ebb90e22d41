"""What every format has in common: the picture that its reader gives, its row in the table of formats, and units."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medseg.core.errors import UnreadableError
from medseg.core.grid import Grid

Array = npt.NDArray[Any]

LPS_TO_RAS = np.array([-1.0, -1.0, 1.0])

MILLIMETRES = {
    "m": 1e3, "meter": 1e3, "metre": 1e3,
    "cm": 10.0, "centimeter": 10.0,
    "mm": 1.0, "millimeter": 1.0, "millimetre": 1.0,
    "um": 1e-3, "micron": 1e-3, "microns": 1e-3, "micrometer": 1e-3, "\u00b5m": 1e-3, "\u03bcm": 1e-3, "\\u00b5m": 1e-3,
    "nm": 1e-6, "nanometer": 1e-6, "pm": 1e-9,
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Picture:
    """What a file holds. `array`: (C, X, Y, Z) of the file's own type, or float64 where its header scales the values."""

    array: Array
    grid: Grid


@dataclass(frozen=True)
class Format:
    """One file format; `formats.py` has a row for each.

    Args:
        name: as the user knows it.
        read: the picture in a file; True asks for labels (the indices of a palette, not its colours).
        read_grid: its grid, from the header alone where the format allows it.
        encode: a label map (X, Y, Z) uint8 or uint16 as the bytes of a file with the geometry fields of the scan given; None
            where labels are not written so.
        label_suffix: what label maps of such scans are called.
        warnings: what a careful reader should know about the geometry in a file, one sentence each.
    """

    name: str
    read: Callable[[Any, bool], Picture]
    read_grid: Callable[[Any], Grid]
    encode: Callable[[Array, Path], bytes] | None
    label_suffix: str
    warnings: Callable[[Any], list[str]]


def no_warnings(path: Path) -> list[str]:
    """For formats whose geometry cannot contradict itself."""
    return []


def millimetres(unit: str, path: Path) -> float:
    """Length of a unit in mm; a unit left blank is mm. Raises: UnreadableError for a word that is no unit of length."""
    word = unit.strip().lower()
    if word in ("", "?", "???", "none"):
        return 1.0
    if word not in MILLIMETRES:
        raise UnreadableError(f"{path}: the length unit `{unit}` is not known; write the header with mm.")
    return MILLIMETRES[word]


def colour_channels(array: Array, path: Path) -> Array:
    """The channels of (C, X, Y, Z) voxels that hold one value or a colour, without alpha.

    Raises: UnreadableError where they hold vectors of some other kind.
    """
    values = array.shape[0]
    if values == 1 or (values == 3 and array.dtype.kind == "u"):
        return array
    if values in (2, 4) and array.dtype.kind == "u":
        return array[:-1]
    raise UnreadableError(f"{path} holds vectors of {values} values a voxel; save each component as a scan of its own.")


def grid_of(shape: tuple[int, ...], affine: Array, path: Path, physical: bool = True) -> Grid:
    """A Grid, or an UnreadableError where the header's geometry is nonsense."""
    try:
        return Grid((*shape, 1, 1)[:3], affine, physical)  # type: ignore[arg-type]
    except ValueError as error:
        raise UnreadableError(f"{path}: {error} in its header; write the file again with a valid geometry.") from None
