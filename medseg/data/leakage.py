"""Pictures that stand twice, or nearly: hashes of voxels, and small thumbnails that are compared all with all."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]

SIDE = 12  # of a volume's thumbnail, in pixels
PLANAR_SIDE = 24  # of a slice's
# Least correlation of two thumbnails that are called nearly equal. Different subjects reached 0.89 (hippocampus crops, 200 cases)
# and 0.982 (brains on one template); a copy with noise of a fifth of its contrast keeps 0.999.
NEAR = 0.998
ROWS_AT_ONCE = 512


@dataclass(frozen=True)
class NearPair:
    """Two pictures that are nearly equal. `flipped`: one is the mirror image of the other, along one axis or several."""

    first: int
    second: int
    correlation: float
    flipped: bool


def content_hash(arrays: Sequence[Array]) -> str:
    """The SHA-256 of voxels and shapes: equal for one picture in files of other compression or header."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(str(array.shape).encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def thumbnail(arrays: Sequence[Array]) -> Array | None:
    """A small picture for comparison: the mean of the standardised channels, with mean 0 and length 1.

    Args:
        arrays: each (C, X, Y, Z), all on the same voxels.
    Returns: float32, (12, 12, 12), or 24 x 24 for a slice; None where nothing varies or not all voxels are numbers.
    """
    channels = [channel for array in arrays for channel in array]
    planar = 1 in channels[0].shape
    shape = tuple(1 if n == 1 else PLANAR_SIDE if planar else SIDE for n in channels[0].shape)
    varied = []
    for channel in channels:
        if not np.isfinite(channel).all():
            return None
        small = shrink(channel, shape)
        small = np.clip(small, *np.percentile(small, (0.5, 99.5)))  # one bright voxel decides nothing
        if small.std() > 0:
            varied.append((small - small.mean()) / small.std())
    if not varied:
        return None
    mean = np.mean(varied, axis=0)
    length = float(np.linalg.norm(mean))
    return (mean / length).astype(np.float32) if length > 0 else None


def shrink(array: Array, shape: Sequence[int]) -> Array:
    """Means over boxes of equal size, axis by axis; an axis that is shorter than wished repeats its voxels."""
    result = np.asarray(array, np.float32)
    for axis, size in enumerate(shape):
        n = result.shape[axis]
        weights = np.zeros((size, n), np.float32)
        for i in range(size):
            start, stop = i * n // size, -(-(i + 1) * n // size)
            weights[i, start:stop] = 1 / (stop - start)
        result = np.moveaxis(np.tensordot(weights, result, (1, axis)), 0, axis)
    return result


def near_pairs(thumbnails: Sequence[Array], groups: Sequence[str], least: float = NEAR) -> list[NearPair]:
    """Pairs of nearly equal pictures from different groups (splits or folds), the most alike first.

    Each picture is held against all others and against their mirror images along every axis. 5000 volumes take some seconds.

    Args:
        thumbnails: of one shape.
        groups: the split or fold of each.
    """
    if len(set(groups)) < 2:
        return []
    flat = np.stack([t.ravel() for t in thumbnails])
    _, group = np.unique(np.asarray(groups), return_inverse=True)
    best: dict[tuple[int, int], NearPair] = {}
    for axes in _flips(thumbnails[0].shape):
        flipped = np.stack([np.flip(t, axes).ravel() for t in thumbnails]) if axes else flat
        for pair in _above(flat, flipped, group, least, bool(axes)):
            before = best.get((pair.first, pair.second))
            if before is None or pair.correlation > before.correlation:
                best[pair.first, pair.second] = pair
    return sorted(best.values(), key=lambda pair: -pair.correlation)


def _flips(shape: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Every set of axes to mirror along, none first."""
    long = [axis for axis, n in enumerate(shape) if n > 1]
    for chosen in product((False, True), repeat=len(long)):
        yield tuple(axis for axis, use in zip(long, chosen, strict=True) if use)


def _above(flat: Array, others: Array, group: npt.NDArray[np.intp], least: float, flipped: bool) -> Iterator[NearPair]:
    for start in range(0, len(flat), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        correlation = flat[rows] @ others[start:].T  # a pair is symmetric, so only the part to the right
        for i, j in np.argwhere((correlation >= least) & (group[rows, None] != group[None, start:])):
            if i < j:
                yield NearPair(start + int(i), start + int(j), min(1.0, float(correlation[i, j])), flipped)
