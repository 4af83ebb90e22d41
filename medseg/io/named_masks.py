"""Structures that a source tells apart by name and not by value, each a mask of its own, so that they may overlap."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medseg.core.errors import GridMismatchError, LabelError
from medseg.core.grid import Grid
from medseg.core.volume import LabelMap

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class NamedMasks:
    """The masks of one case, read one at a time.

    Args:
        names: of the structures, each once.
        grid: where all of them lie.
        mask: (X, Y, Z) bool of a name, on `grid`. It raises CaseError.
        one_file: all of them stand in one file, which was written whole and may be cut to where they lie: what is outside of
            `grid` is in no structure. Of a folder with a file a structure neither is certain.
    """

    names: tuple[str, ...]
    grid: Grid
    mask: Callable[[str], Mask]
    one_file: bool

    @property
    def unit(self) -> str:
        """What a mask is in its source: a segment of the one file, or a file."""
        return "segment" if self.one_file else "file"

    def guarded(self, reading: Callable[[], AbstractContextManager[Any]]) -> NamedMasks:
        """The same, with each mask read within `reading()`: damage in the voxels is found no earlier."""

        def mask(name: str) -> Mask:
            with reading():
                return self.mask(name)

        return replace(self, mask=mask)


def masks_of_files(files: Mapping[str, Path], grid: Grid, read: Callable[[Path], LabelMap]) -> NamedMasks:
    """Masks with a file each.

    Args:
        files: by structure.
        grid: of the first.
    """
    first = next(iter(files.values()))

    def mask(name: str) -> Mask:
        labels = read(files[name])
        if difference := grid.difference(labels.grid):
            raise GridMismatchError(f"{first} and {files[name].name} do not lie on the same voxels: {difference}.")
        if len(values := np.unique(labels.array[labels.array > 0])) > 1:
            raise LabelError(
                f"{files[name]} holds {len(values)} values above 0 ({values[0]}, {values[1]}), where the file of a structure "
                "holds one; if it is the label map of a case, take it out of its folder."
            )
        return labels.array > 0

    return NamedMasks(tuple(files), grid, mask, one_file=False)
