"""A picture with its grid: `Volume` for intensities, `LabelMap` for labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from medseg.core.grid import Grid

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Volume:
    """Intensities. `array`: (C, X, Y, Z) float32 on `grid`."""

    array: npt.NDArray[np.float32]
    grid: Grid

    def __post_init__(self) -> None:
        if self.array.ndim != 4 or self.array.shape[1:] != self.grid.shape:
            raise ValueError(f"array {self.array.shape} does not lie on a grid of {self.grid.shape}")


@dataclass(frozen=True, eq=False)
class LabelMap:
    """Labels. `array`: (X, Y, Z) unsigned integer on `grid`."""

    array: Array
    grid: Grid

    def __post_init__(self) -> None:
        if self.array.shape != self.grid.shape:
            raise ValueError(f"array {self.array.shape} does not lie on a grid of {self.grid.shape}")
        if self.array.dtype.kind != "u":
            raise ValueError(f"labels are unsigned integers, not {self.array.dtype}")
