"""Distances between the surfaces of two masks, computed once and read in several ways."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from medseg.metrics.elements import element_sizes, neighbourhood_codes

Array = npt.NDArray[Any]
Sizes = npt.NDArray[np.float64]

ROUNDING = 1e-4  # relative; a header's rounded spacing must not put a surface out of reach that lies just within it


@dataclass(frozen=True, eq=False)
class SurfaceDistances:
    """From each surface element of one mask to the nearest of the other, with the element's size, in both directions.

    Args:
        from_reference, from_prediction: distances, in the unit of the spacing.
        reference_sizes, prediction_sizes: areas of the same elements (lengths of contour in 2D).
    """

    from_reference: Sizes
    reference_sizes: Sizes
    from_prediction: Sizes
    prediction_sizes: Sizes


def surface_distances(
    reference: npt.NDArray[np.bool_], prediction: npt.NDArray[np.bool_], spacing: tuple[float, ...]
) -> SurfaceDistances:
    """Distances between two surfaces, as Nikolov et al. 2018 (DeepMind's surface-distance) define them.

    A surface element lies at a voxel corner whose neighbouring voxels are partly inside; the picture's border closes a mask.

    Args:
        reference, prediction: (X, Y, Z) or (X, Y) bool on the same grid, neither empty; crop them to their common box, which
            changes no distance.
        spacing: voxel size along each axis.
    """
    reference_codes, prediction_codes = neighbourhood_codes(reference), neighbourhood_codes(prediction)
    inside = len(element_sizes(spacing)) - 1
    reference_border = (reference_codes > 0) & (reference_codes < inside)
    prediction_border = (prediction_codes > 0) & (prediction_codes < inside)
    return SurfaceDistances(
        _distances(reference_border, prediction_border, spacing),
        element_sizes(spacing)[reference_codes[reference_border]],
        _distances(prediction_border, reference_border, spacing),
        element_sizes(spacing)[prediction_codes[prediction_border]],
    )


def _distances(here: npt.NDArray[np.bool_], there: npt.NDArray[np.bool_], spacing: tuple[float, ...]) -> Sizes:
    """From every True of `here` to the nearest True of `there`."""
    from scipy import ndimage

    # Only the index of the nearest element is asked for: distances of all the other voxels would cost time and memory.
    nearest = ndimage.distance_transform_edt(~there, sampling=spacing, return_distances=False, return_indices=True)
    total = np.zeros(int(here.sum()), np.float64)
    for axis, place in enumerate(np.nonzero(here)):
        total += ((place - nearest[axis][here]) * spacing[axis]) ** 2
    return np.sqrt(total)


def hausdorff(distances: SurfaceDistances, percentile: float) -> float:
    """The larger of the two directed percentiles of the surface distances (Huttenlocher et al. 1993), elements weighed by size.

    Args:
        percentile: 100 for the Hausdorff distance, 95 for HD95.
    Returns: distance in the unit of the spacing. The two directions are not pooled, so neither surface hides the other.
    """
    return max(
        _percentile(distances.from_reference, distances.reference_sizes, percentile),
        _percentile(distances.from_prediction, distances.prediction_sizes, percentile),
    )


def _percentile(distances: Sizes, sizes: Sizes, percentile: float) -> float:
    """The least distance that at least `percentile` % of the surface does not exceed."""
    order = np.argsort(distances, kind="stable")
    share = np.cumsum(sizes[order]) / sizes.sum()
    place = np.searchsorted(share, percentile / 100)
    return float(distances[order[min(int(place), len(order) - 1)]])


def surface_dice(distances: SurfaceDistances, tolerance: float) -> float:
    """Share of both surfaces, by area, lying within `tolerance` of each other (Nikolov et al. 2018)."""
    tolerance *= 1 + ROUNDING
    within = distances.reference_sizes[distances.from_reference <= tolerance].sum()
    within += distances.prediction_sizes[distances.from_prediction <= tolerance].sum()
    return float(within / (distances.reference_sizes.sum() + distances.prediction_sizes.sum()))
