"""Boundary weights: cross-entropy that insists on the narrow gaps between objects, as in the U-Net paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from monai.transforms import MapTransform
from pydantic import Field
from scipy import ndimage

from medseg.core.config import Section
from medseg.core.labels import IGNORE

CITE = "Ronneberger et al. 2015, eq. 2 (boundary-weighted cross-entropy)"
CLASSES, WEIGHT = "classes", "weight"
Codes = npt.NDArray[Any]
BLOCK = 2**16  # voxels worked on at a time, as many as a processor's cache holds
REACH = 3  # in sigma: where even the nearest border alone is this far away, exp(-9 / 2) = 1 % of w0 is left


class BoundaryConfig(Section):
    """Settings of the weights w(x) = wc(x) + w0 exp(-(d1 + d2)^2 / (2 sigma^2)).

    Args:
        w0: the greatest weight that a gap adds.
        sigma: in voxels: how wide a gap may be to be called narrow.
        objects: what must be kept apart: the connected pieces of each structure, or of the background (cells in electron
            microscopy, where the structure is the membrane between them).
    """

    w0: float = Field(default=10.0, ge=0)
    sigma: float = Field(default=5.0, gt=0)
    objects: Literal["structures", "background"] = "structures"


def boundary_term(classes: npt.NDArray[Any], config: BoundaryConfig) -> npt.NDArray[np.float32]:
    """The second term of the weights, w0 exp(-(d1 + d2)^2 / (2 sigma^2)); the first, wc, is the class's own weight.

    d1 and d2 are the distances in voxels to the border voxels of the nearest and the second nearest object; voxels of an object
    hang together over faces, and an edge of the picture is no border. An object more than 3 sigma away counts as absent, which
    leaves out at most 1.2 % of w0.

    Args:
        classes: (X, Y, Z) class indices, 255 ignored.
    Returns: (X, Y, Z) float32; 0 where two objects are not near.
    """
    flat = classes.reshape([n for n in classes.shape if n > 1] or [1])  # a picture one voxel thick is measured as a plane
    nearest, second = two_nearest(_objects(flat, config.objects), int(REACH * config.sigma))
    term = config.w0 * np.exp(-((nearest + second) ** 2) / (2 * config.sigma**2))
    return term.astype(np.float32).reshape(classes.shape)


def _objects(classes: npt.NDArray[Any], objects: str) -> npt.NDArray[np.int64]:
    """The connected pieces of each structure, or of the background, numbered from 1."""
    numbers = np.zeros(classes.shape, np.int64)
    wanted = [0] if objects == "background" else [k for k in np.unique(classes) if 0 < k < IGNORE]
    found = 0
    for k in wanted:
        pieces, count = ndimage.label(classes == k)
        numbers += np.where(pieces > 0, pieces + found, 0)
        found += count
    return numbers


def two_nearest(objects: npt.NDArray[np.int64], reach: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Distance of every voxel to the border voxels of the nearest object and to those of the second nearest one.

    One axis after the other, as in Felzenszwalb & Huttenlocher 2012, but keeping the nearest of two different objects: what is
    among the two nearest of the whole picture is so in its own row too, so the distances are exact.

    Args:
        objects: numbers from 1; 0 is no object.
        reach: distances above it become infinite.
    Returns: two float32 arrays of the same shape.
    """
    # Squared distance and object are one number, so that the nearer of two is their minimum.
    bits = int(objects.max()).bit_length()
    far = (reach**2 * (objects.ndim + 1) + 1) << bits
    first = np.where(_borders(objects), objects, far).astype(np.int32 if 2 * far < 2**31 else np.int64)
    second = np.full_like(first, far)
    for axis, length in enumerate(objects.shape):
        rows = [np.moveaxis(codes, axis, 0) for codes in (first, second)]
        flat = [row.reshape(length, -1) for row in rows]
        for start in range(0, flat[0].shape[1], max(1, BLOCK // length)):
            block = (slice(None), slice(start, start + max(1, BLOCK // length)))
            flat[0][block], flat[1][block] = _along_rows(flat[0][block].copy(), flat[1][block].copy(), reach, bits, far)
        for row, done in zip(rows, flat, strict=True):
            row[...] = done.reshape(row.shape)
    squares = [np.right_shift(codes, bits).astype(np.float32) for codes in (first, second)]
    nearest, next_one = (np.sqrt(np.where(s <= reach**2, s, np.inf)) for s in squares)
    return nearest, next_one


def _along_rows(first: Codes, second: Codes, reach: int, bits: int, far: int) -> tuple[Codes, Codes]:
    """Let every voxel of (length, n) codes compete along the first axis for the places of the nearest and the second nearest."""
    sources = [codes.copy() for codes in (first, second) if codes.min() < far]
    there, *spare = np.empty((3, *first.shape), first.dtype)
    for step in range(1, min(reach, len(first) - 1) + 1):
        for source in sources:
            np.add(source, step**2 << bits, out=there)
            for here, from_there in ((slice(step, None), slice(None, -step)), (slice(None, -step), slice(step, None))):
                _keep_two(first[here], second[here], there[from_there], [s[here] for s in spare], bits, far)
    return first, second


def _keep_two(first: Codes, second: Codes, other: Codes, spare: Sequence[Codes], bits: int, far: int) -> None:
    """Let `other` compete, in place, for the places of the nearest and of the nearest other object.

    Args:
        spare: two arrays of the same shape to compute in: fresh ones would take most of the time.
    """
    same, loser = spare
    # All bits where both are of one object, none elsewhere: 0 - 1 is negative.
    np.bitwise_xor(first, other, out=same)
    np.bitwise_and(same, (1 << bits) - 1, out=same)
    np.subtract(same, 1, out=same)
    np.right_shift(same, first.dtype.itemsize * 8 - 1, out=same)
    np.bitwise_and(same, far, out=same)
    np.maximum(first, other, out=loser)
    np.maximum(loser, same, out=loser)
    np.minimum(first, other, out=first)
    np.minimum(second, loser, out=second)


def _borders(objects: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Voxels of an object with a face neighbour that is not of it."""
    borders = np.zeros(objects.shape, bool)
    for axis in range(objects.ndim):
        row, mark = np.moveaxis(objects, axis, 0), np.moveaxis(borders, axis, 0)
        differs = row[1:] != row[:-1]
        mark[1:] |= differs
        mark[:-1] |= differs
    return borders & (objects > 0)


class BoundaryWeightd(MapTransform):  # type: ignore[misc]
    """Adds "weight" (X, Y, Z) float32 to a sample: the boundary term of its "classes"."""

    def __init__(self, config: BoundaryConfig) -> None:
        super().__init__(CLASSES)
        self.config = config

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        return {**data, WEIGHT: boundary_term(np.asarray(data[CLASSES]), self.config)}
