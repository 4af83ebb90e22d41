"""From the network's answer on the prepared grid back to the scan's own voxels, slab by slab."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from medseg.core.grid import Grid
from medseg.core.labels import LabelScheme
from medseg.core.resample import INTEGER_TOLERANCE, axes_between
from medseg.core.volume import LabelMap
from medseg.inference.window import Slab

MOST_VOXELS = 2**20  # of the scan that are looked at together
MIXED = 255  # in place of a class: the voxels around do not agree


class Rows:
    """The rows of a scan that the answer reaches, as its slabs come in.

    Args:
        prepared_grid: of the answer; its axes are parallel to those of `scan_grid`.
        most: voxels of the scan that are handed out together.
    """

    def __init__(self, prepared_grid: Grid, scan_grid: Grid, most: int) -> None:
        axes = axes_between(prepared_grid, scan_grid)
        if axes is None:
            raise ValueError("the axes of the two grids are not parallel")
        mapping = np.linalg.solve(prepared_grid.affine, scan_grid.affine)  # index of the scan -> index of the answer
        self.axes, self.most = axes, most
        self.lines = [
            _line(mapping[a, j] * np.arange(n) + mapping[a, 3], prepared_grid.shape[a])
            for j, (a, n) in enumerate(zip(axes, scan_grid.shape, strict=True))
        ]
        self.exact = not any(line.share.any() for line in self.lines)
        self.done = 0  # rows along the axis that slabs come in
        self.held: torch.Tensor | None = None  # the last row of the slab before

    def ready(self, slab: Slab) -> Iterator[tuple[torch.Tensor, list[list[Line]]]]:
        """What can be said now. Slabs come in order.

        Yields: logits (K, x, y, z), and parts of the scan, each as its lines along X, Y and Z, that lie between them: first what
            lies between this slab and the one before, then the slab.
        """
        axis = slab.axis + 1
        if self.held is not None:
            seam = torch.cat([self.held, slab.logits.narrow(axis, 0, 1)], axis)
            yield seam, self._parts(slab.axis, slab.start - 1, 2)
        rows = slab.logits.shape[axis]
        yield slab.logits, self._parts(slab.axis, slab.start, rows)
        if not self.exact:
            self.held = slab.logits.narrow(axis, rows - 1, 1).clone()

    def _parts(self, slab_axis: int, first: int, rows: int) -> list[list[Line]]:
        """What has not been said of the scan and needs these rows of the answer only."""
        axis = self.axes.index(slab_axis)
        line = self.lines[axis].moved(-first)
        ready = line.ready(rows)
        each = max(1, self.most * len(line.lower) // max(1, math.prod(len(one.lower) for one in self.lines)))
        parts = []
        for start in range(self.done, ready, each):
            part = list(self.lines)
            part[axis] = line.part(start, min(start + each, ready))
            parts.append(part)
        self.done = max(self.done, ready)
        return parts

    def turned(self, picture: torch.Tensor) -> torch.Tensor:
        """The last three axes of a picture as the scan's Z, Y, X."""
        first = picture.ndim - 3
        return picture.permute([*range(first), *(first + self.axes[j] for j in (2, 1, 0))])


class Restorer:
    """The class of every voxel of a scan, decided as the answer comes in.

    Where the two grids share their voxels (flips, axis orders, crops), the classes are copied. Elsewhere the logits are
    interpolated linearly before the decision, as in nnU-Net. Logits, not probabilities: near a border they grow about linearly
    with the distance to it, so the border comes back at its place between two voxels, where saturated probabilities would pull
    it to the middle and shrink whatever is convex (a ball of 12 mm through voxels of 2.2 mm: 2.4 % of its volume against 1.6 %).

    Whatever has the greatest logit in all eight voxels around a place has it at the place too, so only places whose neighbours
    disagree, those near a border, are interpolated. Of the answer, one slab is held: never classes times voxels.
    """

    def __init__(self, prepared_grid: Grid, scan_grid: Grid, labels: LabelScheme) -> None:
        self.rows = Rows(prepared_grid, scan_grid, MOST_VOXELS)
        self.labels, self.scan_grid = labels, scan_grid
        self.classes = np.zeros(scan_grid.shape, np.uint8, order="F")  # in Fortran's order, which most files have
        written = [index for _, index in labels.painting]
        self.told_apart = len(set(written)) == len(written)  # each class stands for one region

    def add(self, slab: Slab) -> None:
        """Decide what can be decided now. Slabs come in order."""
        for logits, parts in self.rows.ready(slab):
            codes = self._codes(logits) if parts else None
            for lines in parts:
                assert codes is not None
                self.classes.T[place_of(lines)] = self._decide(logits, codes, lines).cpu().numpy()

    def finish(self) -> LabelMap:
        """(X, Y, Z) uint8 class indices on the scan's grid; background where the prepared picture does not reach."""
        return LabelMap(self.classes, self.scan_grid)

    def _codes(self, logits: torch.Tensor) -> torch.Tensor:
        """(x, y, z) uint8: the class that a voxel and its upper neighbours agree on, or `MIXED`."""
        near = torch.zeros(logits.shape[1:], dtype=torch.uint8, device=logits.device)
        if not (self.rows.exact or self.told_apart):
            return self.rows.turned(near.fill_(MIXED)).contiguous()
        near = self.labels.decide_by_channel(lambda channel: logits[channel], near)
        return self.rows.turned(near if self.rows.exact else _agreed(near)).contiguous()

    def _decide(self, logits: torch.Tensor, codes: torch.Tensor, lines: list[Line]) -> torch.Tensor:
        """(z, y, x) uint8 classes of the scan's voxels on these lines."""
        places = [line.on(codes.device) for line in reversed(lines)]
        for axis in (2, 1, 0):  # the last is the slowest, and the picture grows
            codes = codes.index_select(axis, places[axis][0])
        if self.rows.exact:
            return codes
        mixed = (codes == MIXED).nonzero(as_tuple=True)
        near = [[values[at] for values in place] for place, at in zip(places, mixed, strict=True)]
        corners = []
        for sides in itertools.product((0, 1), repeat=3):
            weight = math.prod(share if side else 1 - share for (_, _, share), side in zip(near, sides, strict=True))
            corners.append(([lower_upper[side] for lower_upper, side in zip(near, sides, strict=True)], weight))
        answer = self.rows.turned(logits)

        def between(channel: int) -> torch.Tensor:
            one = answer[channel]
            return sum(one[z, y, x] * weight for (z, y, x), weight in corners)  # type: ignore[return-value]

        codes[mixed] = self.labels.decide_by_channel(between, torch.zeros_like(mixed[0], dtype=torch.uint8))
        return codes


def place_of(lines: list[Line]) -> tuple[slice, ...]:
    """The box of the scan on these lines, along Z, Y, X."""
    return tuple(slice(line.first, line.first + len(line.lower)) for line in reversed(lines))


def _agreed(near: torch.Tensor) -> torch.Tensor:
    """(x, y, z) classes where a voxel and its upper neighbours are of the same, else `MIXED`."""
    low = high = near
    for axis, size in enumerate(near.shape):
        upper = torch.arange(1, size + 1, device=near.device).clamp_max_(size - 1)
        low = torch.minimum(low, low.index_select(axis, upper))
        high = torch.maximum(high, high.index_select(axis, upper))
    return low.masked_fill_(low != high, MIXED)


def restore(logits: npt.NDArray[np.float32], prepared_grid: Grid, scan_grid: Grid, labels: LabelScheme) -> LabelMap:
    """A whole answer at once; see `Restorer`.

    Args:
        logits: (labels.n_outputs, X, Y, Z) float32 on `prepared_grid`.
    """
    restorer = Restorer(prepared_grid, scan_grid, labels)
    restorer.add(Slab(0, 0, torch.from_numpy(logits)))
    return restorer.finish()


@dataclass(frozen=True, eq=False)
class Line:
    """Along one axis of the scan: its voxels that the answer reaches, from `first` on.

    Args:
        lower, upper: (N,) the answer's voxels on both sides of each.
        share: (N,) of the upper one.
        backwards: the answer's axis runs the other way.
    """

    first: int
    lower: npt.NDArray[np.int64]
    upper: npt.NDArray[np.int64]
    share: npt.NDArray[np.float32]
    backwards: bool

    def ready(self, stop: int) -> int:
        """How many, from the answer's first row on, need no row from `stop` on."""
        return int(np.searchsorted(self.upper[::-1] if self.backwards else self.upper, stop))

    def part(self, start: int, stop: int) -> Line:
        """The voxels `start` to `stop`, counted from the answer's first row on."""
        if self.backwards:
            start, stop = len(self.lower) - stop, len(self.lower) - start
        part = slice(start, stop)
        return replace(self, first=self.first + start, lower=self.lower[part], upper=self.upper[part], share=self.share[part])

    def moved(self, by: int) -> Line:
        return replace(self, lower=self.lower + by, upper=self.upper + by)

    def on(self, device: torch.device) -> list[torch.Tensor]:
        """`lower`, `upper` and `share` where the answer lives."""
        return [torch.from_numpy(values).to(device) for values in (self.lower, self.upper, self.share)]


def _line(position: npt.NDArray[np.float64], size: int) -> Line:
    """From the places of the scan's voxels in the answer, in its voxels.

    A prepared shape is a whole number of voxels, so its field of view may end up to a quarter of a voxel inside the scan's on
    either side. There the nearest answer holds. A scan that reaches further was cropped, and there it is background.
    """
    low, high = -0.5 - INTEGER_TOLERANCE, size - 0.5 + INTEGER_TOLERANCE
    if 0 < -0.5 - position.min() <= 0.25:
        low -= 0.25
    if 0 < position.max() - (size - 0.5) <= 0.25:
        high += 0.25
    inside = np.flatnonzero((position >= low) & (position <= high))
    place = np.clip(position[inside], 0, size - 1)
    if np.abs(position - np.round(position)).max() < INTEGER_TOLERANCE:
        place = np.round(place)
    lower = np.floor(place).astype(np.int64)
    share = (place - lower).astype(np.float32)
    upper = np.where(share > 0, lower + 1, lower)
    return Line(int(inside[0]) if len(inside) else 0, lower, upper, share, bool(position[-1] < position[0]))
