"""Boundary IoU: overlap of the rims of two masks, which shows errors of outline that the bulk of a large mask hides."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from medseg.core.components import box_of
from medseg.metrics.surface import ROUNDING

Mask = npt.NDArray[np.bool_]

SHARE = 0.02  # of the diagonal: what Cheng et al. 2021 take for the pictures of COCO and LVIS
SLAB_VOXELS = 2**22  # a distance transform needs some 24 bytes for each


def boundary_distance(shape: tuple[int, ...], spacing: tuple[float, ...], share: float = SHARE) -> float:
    """Width of the rim as a share of the diagonal of the whole picture or scan (Cheng et al. 2021).

    Args:
        shape: voxels along each axis, of the scan and not of a box cut from it.
        spacing: voxel size along each axis.
    Returns: in the unit of `spacing`, not rounded to whole voxels.
    """
    return share * math.hypot(*(n * side for n, side in zip(shape, spacing, strict=True)))


def boundary_iou(reference: Mask, prediction: Mask, spacing: tuple[float, ...], distance: float) -> float:
    """Intersection over union of the two rims (Cheng et al. 2021).

    A rim holds the voxels of a mask whose centre is at most `distance` from the centre of a voxel outside; beyond the border of
    the picture is outside. Distances are Euclidean and physical, where the authors' program counts erosions by 3 x 3 pixels.

    Args:
        reference, prediction: (X, Y) or (X, Y, Z) bool on the same grid; cropping them to their common box changes nothing.
        distance: width of the rim in the unit of `spacing`, as of `boundary_distance`; the shortest voxel side at least.
    Returns: value in [0, 1]; 0 where one mask is empty, NaN where both are (in the convention `worst` 0 and 1).
    """
    one, other = rim(reference, spacing, distance), rim(prediction, spacing, distance)
    union = np.count_nonzero(one | other)
    return float(np.count_nonzero(one & other) / union) if union else math.nan


def rim(mask: Mask, spacing: tuple[float, ...], distance: float) -> Mask:
    """The voxels of a mask that lie within `distance` of its outside, as of `boundary_iou`; bool of the mask's shape."""
    found = np.zeros_like(mask)
    if (box := box_of(mask)) is None:
        return found
    padded = np.pad(mask[box], 1)
    inner = found[box]
    width = max(distance, min(spacing)) * (1 + ROUNDING)
    halo = int(width / spacing[0]) + 1  # what lies further off decides nothing
    thick = max(halo, SLAB_VOXELS * len(padded) // padded.size)
    for start in range(0, len(inner), thick):
        stop, first = min(start + thick, len(inner)), max(start + 1 - halo, 0)
        near = _near_outside(padded[first : stop + 1 + halo], spacing, width)
        inner[start:stop] = near[start + 1 - first : stop + 1 - first][(slice(None), *(slice(1, -1),) * (mask.ndim - 1))]
    return found


def _near_outside(mask: Mask, spacing: tuple[float, ...], width: float) -> Mask:
    """The voxels of a mask at most `width` from one outside."""
    from scipy import ndimage

    nearest = ndimage.distance_transform_edt(mask, sampling=spacing, return_distances=False, return_indices=True)
    inside = np.nonzero(mask)
    square = np.zeros(len(inside[0]))
    for place, axis, side in zip(inside, nearest, spacing, strict=True):
        square += ((place - axis[inside]) * side) ** 2
    near = np.zeros_like(mask)
    near[inside] = square <= width**2
    return near
