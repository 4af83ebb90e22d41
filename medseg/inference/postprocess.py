"""What is left out of a mask after the network: small pieces, and all but the largest piece of a structure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import Field

from medseg.core.components import Components, boxes_of, mask_of
from medseg.core.config import Section
from medseg.core.grid import Grid
from medseg.core.labels import LabelScheme

Classes = npt.NDArray[np.uint8]

TOLERANCE = 1e-6  # relative: a volume computed through an oblique affine differs in the last digits


class Rule(Section):
    """Which pieces of one structure stay.

    Args:
        keep_largest: only the largest piece stays.
        smallest_volume: pieces below it go; in mm3, or in voxels where scans state no physical size.
    """

    keep_largest: bool = False
    smallest_volume: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0

    def kept(self, volumes: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
        """(N,) which of N pieces stay, by their volumes; of equally large pieces the first is the largest."""
        kept = volumes >= self.smallest_volume * (1 - TOLERANCE)
        if self.keep_largest and len(volumes):
            kept &= np.arange(len(volumes)) == volumes.argmax()
        return kept

    def text(self, unit: str) -> str:
        """The rule in words; `unit` is that of a volume."""
        parts = ["its largest piece only"] if self.keep_largest else []
        parts += [f"no piece below {self.smallest_volume:.3g} {unit}"] if self.smallest_volume else []
        return ", ".join(parts) or "unchanged"


class Postprocessing(Section):
    """A rule for each structure or region that has one, by its name."""

    rules: dict[str, Rule] = Field(min_length=1)


def postprocess(classes: Classes, postprocessing: Postprocessing, labels: LabelScheme, grid: Grid) -> Classes:
    """A mask without the pieces that the rules leave out.

    What goes becomes background; a piece of a region within a larger one becomes what the larger one is written as. Regions are
    gone through from the largest to the smallest, so a region goes with the one that it lies in.

    Args:
        classes: (X, Y, Z) uint8 class indices on `grid`. It is not changed.
    Returns: the same, with some voxels changed.
    Raises: KeyError for a rule whose name the label scheme does not have.
    """
    result, boxes = classes.copy(), boxes_of(classes)  # boxes stay large enough: later structures only lose voxels
    for name in from_large_to_small(labels, postprocessing.rules):
        box, mask = mask_of(result, labels.measured[name], boxes)
        pieces = Components(mask)
        goes = np.zeros(len(pieces) + 1, bool)  # the first is what lies around the pieces
        goes[1:] = ~postprocessing.rules[name].kept(pieces.counts.astype(np.float64) * grid.voxel_volume)
        if goes.any():
            for slab, numbers in pieces.slabs():
                result[box][slab][goes[numbers]] = beneath(labels, name)
    return result


def from_large_to_small(labels: LabelScheme, names: Iterable[str]) -> list[str]:
    """The names of structures or regions, each region before those within it."""
    measured = labels.measured
    return sorted(names, key=lambda name: -len(measured[name]))


def around(labels: LabelScheme, name: str) -> list[str]:
    """The regions that a region lies in, the smallest first; none for a structure."""
    own = set(labels.measured[name])
    return sorted((n for n, c in labels.measured.items() if own < set(c)), key=lambda n: len(labels.measured[n]))


def beneath(labels: LabelScheme, name: str) -> int:
    """The class that voxels get which are no longer in a structure or region: of the region around it, or the background.

    The background too where the region around it is written as a structure of a smaller one, which it may not become.
    """
    outer = next(iter(around(labels, name)), None)
    if outer is None:
        return 0
    names = list(labels.measured)
    index = next(index for channel, index in labels.painting if names[channel] == outer)
    smaller = {c for n, classes in labels.measured.items() if outer in around(labels, n) for c in classes}
    return 0 if index in smaller else index
