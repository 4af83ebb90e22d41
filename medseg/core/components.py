"""The connected components of a mask, numbered slab by slab: memory does not grow with the mask."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]
Numbers = npt.NDArray[np.int32]
Box = tuple[slice, ...]

SLAB_VOXELS = 2**23  # of a slab, whose numbers take four bytes each


def boxes_of(classes: npt.NDArray[np.uint8], n_classes: int = 0) -> list[Box | None]:
    """The box around each class from 1 on; None where it is absent.

    Args:
        n_classes: length of the list; by default it ends with the last class that is there.
    """
    from scipy import ndimage

    if not classes.flags.f_contiguous:
        return ndimage.find_objects(classes, n_classes)
    # Gone through as it lies in memory, which takes a third of the time.
    return [box and box[::-1] for box in ndimage.find_objects(classes.T, n_classes)]


def box_around(boxes: Iterable[Box | None]) -> Box | None:
    """The smallest box around boxes, or None without any."""
    sides = list(zip(*(box for box in boxes if box is not None), strict=True))
    return tuple(slice(min(s.start for s in side), max(s.stop for s in side)) for side in sides) or None


def box_of(mask: Mask) -> Box | None:
    """The box around a mask of any dimension, or None where it is empty."""
    return box_around(boxes_of(mask.view(np.uint8), 1))


def mask_of(classes: npt.NDArray[np.uint8], members: Sequence[int], boxes: list[Box | None]) -> tuple[Box, Mask]:
    """The voxels of a structure, or of a region that has several classes, and the box that holds them all.

    Args:
        boxes: of the classes (`boxes_of`).
    Returns: the box, empty where the structure is absent; (box) bool.
    """
    box = box_around(boxes[k - 1] for k in members if k <= len(boxes))
    if box is None:
        return (slice(0, 0),) * 3, np.zeros((0, 0, 0), bool)
    return box, classes[box] == members[0] if len(members) == 1 else np.isin(classes[box], members)


def number_components(mask: Mask) -> tuple[Numbers, int]:
    """The connected components of a mask, numbered from 1 in the order of their first voxels; 0 is background.

    Args:
        mask: (X, Y) or (X, Y, Z) bool; voxels that share a face, an edge or a corner are one component (8 or 26 neighbours), as
            in nnU-Net.
    Returns: int32 of the same shape, and how many components there are.
    """
    from scipy import ndimage

    found: tuple[Numbers, int] = ndimage.label(mask, np.ones((3,) * mask.ndim, bool))
    return found


class Components:
    """The connected components of a mask.

    Each slab along the first axis is labelled by itself; components that touch across the faces of two slabs are one. What
    is labelled is not kept, but for a mask of one slab: `slabs` labels it again.

    Args:
        mask: (X, Y, Z) bool.
        slab_voxels: how many voxels are labelled at a time, where one plane has no more.
    Attributes:
        counts: (N,) voxels of each component, in the order of their first voxels.
    """

    def __init__(self, mask: Mask, slab_voxels: int = SLAB_VOXELS) -> None:
        self.mask = mask
        thickness = max(1, slab_voxels // max(1, mask[:1].size))
        self._slabs = [slice(start, start + thickness) for start in range(0, len(mask), thickness)]
        self._only: Numbers | None = None  # the numbers, where there is one slab
        voxels, pairs, first = [np.zeros(0, np.int64)], [np.zeros((0, 2), np.int32)], 0
        below: Numbers | None = None  # the last plane of the slab before
        for slab in self._slabs:
            numbers, count = number_components(mask[slab])
            voxels.append(np.bincount(numbers.ravel(), minlength=count + 1)[1:])
            if len(self._slabs) == 1:
                self._only = numbers
            else:
                if below is not None:
                    pairs.append(_touching(below, numbers[0]) + (first - len(voxels[-2]), first))
                below = numbers[-1].copy()
            first += count
        self._firsts = np.cumsum([len(counts) for counts in voxels[:-1]])
        self._joined, self.counts = _join(np.concatenate(voxels), np.concatenate(pairs))

    def __len__(self) -> int:
        return len(self.counts)

    def slabs(self) -> Iterator[tuple[slice, Numbers]]:
        """Each slab of planes along the first axis, and the numbers of its voxels: 0 around the components, from 1 on in them."""
        if self._only is not None:
            yield self._slabs[0], self._only
            return
        for slab, first in zip(self._slabs, self._firsts, strict=True):
            numbers, count = number_components(self.mask[slab])
            yield slab, np.concatenate([[0], self._joined[first : first + count] + 1]).astype(np.int32)[numbers]

    def numbers(self) -> Numbers:
        """(X, Y, Z) numbers of all voxels."""
        result = np.zeros(self.mask.shape, np.int32)
        for slab, numbers in self.slabs():
            result[slab] = numbers
        return result


def _touching(one: Numbers, other: Numbers) -> npt.NDArray[np.int64]:
    """(M, 2) which components of two neighbouring planes touch, counted from 0."""
    found, width = [], int(other.max(initial=0)) + 1
    for shifts in itertools.product((-1, 0, 1), repeat=2):
        here = tuple(slice(max(0, s), n + min(0, s)) for s, n in zip(shifts, one.shape, strict=True))
        there = tuple(slice(max(0, -s), n + min(0, -s)) for s, n in zip(shifts, one.shape, strict=True))
        both = (one[here] > 0) & (other[there] > 0)
        found.append(one[here][both].astype(np.int64) * width + other[there][both])
    return np.stack(np.divmod(np.unique(np.concatenate(found)), width), axis=1) - 1


def _join(voxels: npt.NDArray[np.int64], pairs: npt.NDArray[np.int64]) -> tuple[Numbers, npt.NDArray[np.int64]]:
    """Which whole each part belongs to, and the voxels of the wholes."""
    if not len(pairs):
        return np.arange(len(voxels), dtype=np.int32), voxels
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(len(voxels), len(voxels)))
    count, joined = connected_components(graph, directed=False)
    wholes = np.zeros(count, np.int64)
    np.add.at(wholes, joined, voxels)
    return joined, wholes
