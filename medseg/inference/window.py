"""Sliding-window inference: a volume of any size through a network that sees patches.

Windows go along one axis, plane after plane. What no later window can touch is handed on at once, so the memory that the answer
takes depends on the patch and on the picture's cross-section, not on its length.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from medseg.core.errors import StageError
from medseg.core.progress import say

SIGMA = 1 / 8  # of the patch; centre voxels have the most context (Isensee et al. 2021)
LEAST_WEIGHT = 1e-3  # of a patch's corner, so that a voxel seen by corners only is not divided by almost nothing

LEFT_RIGHT = 0  # the axis along which left becomes right

Shape = tuple[int, int, int]
Corner = tuple[int, int, int]
Run = Callable[[torch.Tensor], torch.Tensor]
"""A network ready to be asked: (B, C, *patch) float32 -> (B, K, *patch) float32, on the device where it lives."""
Compare = Callable[[torch.Tensor, torch.Tensor], None]


@dataclass(frozen=True)
class Slab:
    """A finished part of a picture's answer.

    Args:
        axis, start: its first row along this axis of X, Y, Z.
        logits: (K, X, Y, Z) float32, as many rows as are finished; valid until the next slab is asked for.
    """

    axis: int
    start: int
    logits: torch.Tensor


@dataclass
class Empty:
    """What no network needs to look at.

    Args:
        test: whether the box from this voxel to that one (exclusive) holds nothing to find.
        logits: the answer where every window was left out, one an output.
        skipped: how many windows were left out; counted while a picture is predicted.
    """

    test: Callable[[Corner, Corner], bool]
    logits: Sequence[float]
    skipped: int = 0


def window_starts(size: int, patch: int, overlap: float) -> list[int]:
    """First voxels of windows of `patch` voxels, evenly spread from the first to the last place where one fits.

    Neighbours share at least `overlap` of the patch (rounded down to whole voxels).
    """
    if size <= patch:
        return [0]
    step = max(1, math.floor(patch * (1 - overlap)))
    count = math.ceil((size - patch) / step) + 1
    return [round(i * (size - patch) / (count - 1)) for i in range(count)]


def count_windows(shape: Sequence[int], patch: Sequence[int], overlap: float) -> int:
    """Windows that the sliding window takes over a picture."""
    return math.prod(len(window_starts(max(n, p), p, overlap)) for n, p in zip(shape, patch, strict=True))


@lru_cache(maxsize=4)
def importance(patch_voxels: Shape) -> torch.Tensor:
    """(X, Y, Z) float32 weights of a patch's voxels: a Gaussian around its centre, at least `LEAST_WEIGHT`."""
    weight = torch.ones(1, 1, 1)
    for axis, size in enumerate(patch_voxels):
        distance = torch.arange(size, dtype=torch.float32) - (size - 1) / 2
        shape = [1, 1, 1]
        shape[axis] = size
        weight = weight * torch.exp(-0.5 * (distance / (SIGMA * size)) ** 2).reshape(shape)
    return weight.clamp_min(LEAST_WEIGHT)


def predict_slabs(
    run: Run,
    image: npt.NDArray[np.float32] | torch.Tensor,
    patch_voxels: Sequence[int],
    overlap: float = 0.5,
    batch: int = 1,
    mirror_axes: Sequence[int] = (),
    device: torch.device | str = "cpu",
    swaps: Sequence[tuple[int, int]] = (),
    empty: Empty | None = None,
    compare: Compare | None = None,
) -> Iterator[Slab]:
    """The network's answer for a whole volume, windows blended by Gaussian weights, slab by slab.

    Args:
        run: the network, on `device`.
        image: (C, X, Y, Z) float32; where it is smaller than the patch it is padded with 0 on both sides.
        patch_voxels: window size along X, Y, Z; 1 along an axis takes the volume slice by slice.
        overlap: share of a window that neighbours have in common.
        batch: windows that go through the network together; it changes speed only. Halved where a GPU's memory holds fewer.
        mirror_axes: axes of X, Y, Z; the answer is averaged over all mirror images along them.
        swaps: outputs that change places where X is mirrored: the left and the right of a pair.
        empty: tells windows that are left out.
        compare: shown each mirror image's answer, turned back, and the mean of them all.
    Yields: slabs in order, together the whole volume.
    Raises: StageError where a GPU's memory does not hold one window.
    """
    device = torch.device(device)
    patch: Shape = (int(patch_voxels[0]), int(patch_voxels[1]), int(patch_voxels[2]))
    cut = _Cut(_plain(image), patch)
    starts = [window_starts(n, p, overlap) for n, p in zip(cut.room, patch, strict=True)]
    axis = min(range(3), key=lambda a: patch[a] / cut.room[a])  # the fewest rows at once, as a share of the picture
    corners = _planes(starts, axis)
    asked = [[empty is None or not empty.test(*cut.box(corner)) for corner in plane] for plane in corners]
    flips = [axes for count in range(len(mirror_axes) + 1) for axes in itertools.combinations(mirror_axes, count)]
    wanted = list(itertools.compress(itertools.chain(*corners), itertools.chain(*asked)))
    band = _Band(patch, cut.room, axis, None if empty is None else empty.logits)
    answers = _answers(run, cut, wanted, batch, flips, device, swaps, band.to_host, compare)
    if empty is not None:
        empty.skipped = len(corners) * len(corners[0]) - len(wanted)
    for index, (plane, ask) in enumerate(zip(corners, asked, strict=True)):
        for corner in itertools.compress(plane, ask):
            band.add(corner, next(answers))
        start = starts[axis][index]
        stop = starts[axis][index + 1] if index + 1 < len(corners) else cut.room[axis]
        yield Slab(axis, max(0, start - cut.before[axis]), cut.without_margin(band.finish(stop), axis, start))


def predict_logits(
    run: Run,
    image: npt.NDArray[np.float32] | torch.Tensor,
    patch_voxels: Sequence[int],
    overlap: float = 0.5,
    batch: int = 1,
    mirror_axes: Sequence[int] = (),
    device: torch.device | str = "cpu",
    swaps: Sequence[tuple[int, int]] = (),
) -> npt.NDArray[np.float32]:
    """All slabs of `predict_slabs` together, in main memory. Returns: (K, X, Y, Z) float32."""
    whole: npt.NDArray[np.float32] | None = None
    for slab in predict_slabs(run, image, patch_voxels, overlap, batch, mirror_axes, device, swaps):
        if whole is None:
            whole = np.empty((slab.logits.shape[0], *image.shape[1:]), np.float32)
        rows = [slice(None)] * 4
        rows[slab.axis + 1] = slice(slab.start, slab.start + slab.logits.shape[slab.axis + 1])
        torch.from_numpy(whole)[tuple(rows)].copy_(slab.logits)
    assert whole is not None
    return whole


class _Cut:
    """A picture, and how windows are cut out of it: where it is smaller than the patch, zeros are put around it."""

    def __init__(self, picture: torch.Tensor, patch: Shape) -> None:
        self.picture, self.patch = picture, patch
        self.size: Shape = tuple(picture.shape[1:])  # type: ignore[assignment]
        self.room: Shape = tuple(max(n, p) for n, p in zip(self.size, patch, strict=True))  # type: ignore[assignment]
        self.before: Corner = tuple((r - n) // 2 for r, n in zip(self.room, self.size, strict=True))  # type: ignore[assignment]

    def __call__(self, corner: Corner) -> torch.Tensor:
        """(C, *patch)"""
        first, last = self.box(corner)
        part = self.picture[(slice(None), *map(slice, first, last))]
        if part.shape[1:] == self.patch:
            return part
        sides = [(b, r - n - b) for b, r, n in zip(self.before, self.room, self.size, strict=True)]
        return functional.pad(part, [n for pair in reversed(sides) for n in pair])

    def box(self, corner: Corner) -> tuple[Corner, Corner]:
        """The voxels of the picture that a window sees: the first, and the one after the last."""
        first = tuple(max(0, c - b) for c, b in zip(corner, self.before, strict=True))
        last = tuple(min(n, c + p - b) for c, p, b, n in zip(corner, self.patch, self.before, self.size, strict=True))
        return first, last  # type: ignore[return-value]

    def without_margin(self, logits: torch.Tensor, axis: int, start: int) -> torch.Tensor:
        """Rows of an answer, from `start` on along the axis, without what was put around the picture."""
        parts = [slice(b, b + n) for b, n in zip(self.before, self.size, strict=True)]
        before, size = self.before[axis], self.size[axis]
        parts[axis] = slice(max(0, before - start), before + size - start)
        return logits[(slice(None), *parts)]


def _planes(starts: list[list[int]], axis: int) -> list[list[Corner]]:
    """The windows' corners, those with the same place along the axis together."""
    others = [starts[a] if a != axis else [0] for a in range(3)]
    plane = list(itertools.product(*others))
    return [[(*c[:axis], start, *c[axis + 1 :]) for c in plane] for start in starts[axis]]  # type: ignore[misc]


def _plain(image: npt.NDArray[np.float32] | torch.Tensor) -> torch.Tensor:
    """The image as an ordinary float32 tensor: no MetaTensor, no read-only memory map."""
    if isinstance(image, torch.Tensor):
        return image.as_subclass(torch.Tensor).float()
    return torch.from_numpy(np.require(image, np.float32, ["C", "W"]))


def _answers(
    run: Run,
    cut: _Cut,
    corners: list[Corner],
    batch: int,
    flips: list[tuple[int, ...]],
    device: torch.device,
    swaps: Sequence[tuple[int, int]],
    make_room: Callable[[], bool],
    compare: Compare | None,
) -> Iterator[torch.Tensor]:
    """Each window's logits (K, *patch) float32, averaged over the mirror images, in order.

    Where a GPU's memory does not hold a batch, half as many windows are tried, and at last the sums go to main memory.
    """
    done = 0
    while done < len(corners):
        some = corners[done : done + batch]
        try:
            stack = torch.stack([cut(corner) for corner in some]).to(device, non_blocking=True)
            answers = _mean_over_mirror_images(run, stack, flips, swaps, compare)
        except torch.OutOfMemoryError:
            answers = None  # what failed lets go of its memory only outside of this block
        if answers is None:
            batch = _fewer_windows(batch, make_room)
            continue
        yield from answers
        done += len(some)


def _mean_over_mirror_images(
    run: Run, stack: torch.Tensor, flips: list[tuple[int, ...]], swaps: Sequence[tuple[int, int]], compare: Compare | None
) -> torch.Tensor:
    answers = []
    for axes in flips:
        dimensions = [a + 2 for a in axes]
        with torch.inference_mode():
            answer = run(stack.flip(dimensions) if axes else stack)
        answer = answer.flip(dimensions) if axes else answer
        answers.append(answer[:, swapped(answer.shape[1], swaps)] if LEFT_RIGHT in axes and swaps else answer)
    if len(answers) == 1:
        return answers[0]
    mean = sum(answers[1:], answers[0]) / len(answers)
    if compare is not None:
        for answer in answers:
            compare(answer, mean)
    return mean


def _fewer_windows(batch: int, make_room: Callable[[], bool]) -> int:
    """Half as many at once; where it was one only, the same after room was made. Raises: StageError where none can be."""
    if batch > 1:
        say(f"the GPU's memory does not hold {batch} windows at once; going on with {batch // 2}")
    elif make_room():
        say("the GPU's memory does not hold the sums of the answers; going on with them in main memory")
    else:
        raise StageError(
            "the GPU's memory does not hold one window of this network; end other programs that use it, or state the device cpu."
        )
    torch.cuda.empty_cache()
    return max(1, batch // 2)


def swapped(count: int, swaps: Sequence[tuple[int, int]]) -> list[int]:
    """The numbers 0 to count - 1 with the pairs in each other's places."""
    order = list(range(count))
    for a, b in swaps:
        order[a], order[b] = b, a
    return order


class _Band:
    """The weighted sums over one plane of windows: as many rows along the axis as the patch has.

    Args:
        room: of the whole picture, at least the patch.
        nothing: logits where no window was asked for.
    """

    def __init__(self, patch: Shape, room: Shape, axis: int, nothing: Sequence[float] | None) -> None:
        self.patch, self.axis, self.nothing = patch, axis, nothing
        self.first, self.finished = 0, 0  # the band's first row in the picture; rows at its front that were handed out
        self.shape = tuple(patch[a] if a == axis else room[a] for a in range(3))
        self.alone = patch == room  # a single window needs no sums
        self.weight = importance(patch)
        self.total: torch.Tensor | None = None
        self.weights: torch.Tensor | None = None

    def add(self, corner: Corner, logits: torch.Tensor) -> None:
        """A window's answer (K, *patch); its corner lies in the band's first row."""
        if self.alone:
            self.total = logits
            return
        self._begin(logits.shape[0], logits.device)
        assert self.total is not None and self.weights is not None
        place = tuple(slice(0 if a == self.axis else c, None) for a, c in enumerate(corner))
        part = tuple(slice(0, p) for p in self.patch)
        self.total[(slice(None), *place)][(slice(None), *part)].addcmul_(logits.to(self.total.device), self.weight)
        self.weights[place][part].add_(self.weight)

    def finish(self, stop: int) -> torch.Tensor:
        """(K, ...) the weighted means of the rows before `stop`, which no later window sees."""
        if self.alone and self.total is not None:
            return self.total
        self._begin(len(self.nothing or ()), torch.device("cpu"))
        assert self.total is not None and self.weights is not None
        self.finished, self.first = stop - self.first, stop
        logits = self.total.narrow(self.axis + 1, 0, self.finished)
        weights = self.weights.narrow(self.axis, 0, self.finished)
        if self.nothing is not None and (unseen := weights == 0).any():
            weights[unseen] = 1
            for output, logit in zip(logits, self.nothing, strict=True):
                output[unseen] = logit
        return logits.div_(weights)

    def to_host(self) -> bool:
        """Move the sums to main memory. Returns: False where they are there."""
        if self.total is None or self.total.device.type == "cpu":
            return False
        assert self.weights is not None
        self.total, self.weights, self.weight = self.total.cpu(), self.weights.cpu(), self.weight.cpu()
        return True

    def _begin(self, outputs: int, device: torch.device) -> None:
        """See to it that there are sums, and that rows which were handed out have made way for new ones."""
        if self.total is None:
            place = _room(outputs * math.prod(self.shape) * 4, device)
            self.total, self.weights = torch.zeros(outputs, *self.shape, device=place), torch.zeros(self.shape, device=place)
            self.weight = self.weight.to(place)
        if self.finished:
            assert self.weights is not None
            for sums, axis in ((self.total, self.axis + 1), (self.weights, self.axis)):
                _move_to_front(sums, axis, self.finished)
            self.finished = 0


def _move_to_front(sums: torch.Tensor, axis: int, rows: int) -> None:
    """Drop the first rows along an axis, in place; as many zeros come in at the end."""
    size = sums.shape[axis]
    for start in range(0, size - rows, rows):  # never more at once than was dropped, so that nothing is read after it was written
        count = min(rows, size - rows - start)
        sums.narrow(axis, start, count).copy_(sums.narrow(axis, start + rows, count))
    sums.narrow(axis, size - rows, rows).zero_()


def _room(size_bytes: int, device: torch.device) -> torch.device:
    """Where the sums go: the GPU where they take at most half of what is free there, else main memory."""
    if device.type == "cuda" and size_bytes < torch.cuda.mem_get_info(device)[0] / 2:
        return device
    return torch.device("cpu")
