"""Distances between the surfaces of two masks, computed once and read in several ways."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from medseg.metrics.elements import element_sizes, neighbourhood_codes

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]
Sizes = npt.NDArray[np.float64]

ROUNDING = 1e-4  # relative; a header's rounded spacing must not put a surface out of reach that lies just within it
# Neighbours are looked up one offset after the other as far as 6 mean voxel sides: about 900 offsets, 2 microseconds for an
# element that finds nothing, which is what its search in a tree takes.
MEAN_SIDES, LEAST_SIDES = 6, 12
TRANSFORM_LOOKUPS = 30  # so many take as long as a distance transform does for one voxel: then it is time to do that
TRANSFORM_VOXELS = 60  # a distance transform of so many voxels takes as long as one search in a tree
MOST_TRANSFORMED = 2**25  # voxels; it needs 12 bytes for each


@dataclass(frozen=True, eq=False)
class SurfaceDistances:
    """How far the surface of each mask is from the other's, and how much of the surface is that far, in both directions.

    Args:
        from_reference, from_prediction: the distances that occur, ascending, in the unit of the spacing.
        reference_sizes, prediction_sizes: area of the surface at each (length of the contour in 2D).
    """

    from_reference: Sizes
    reference_sizes: Sizes
    from_prediction: Sizes
    prediction_sizes: Sizes


@dataclass(frozen=True, eq=False)
class _Surface:
    """The surface elements of a mask.

    Args:
        border: (X, Y, Z) bool, C-contiguous, True where there is an element, with a margin around.
        places: indices of the elements in the flattened `border`, ascending.
        codes: their neighbourhoods.
    """

    border: Mask
    places: npt.NDArray[np.intp]
    codes: npt.NDArray[np.uint8]


def surface_distances(reference: Mask, prediction: Mask, spacing: tuple[float, ...]) -> SurfaceDistances:
    """Distances between two surfaces, as Nikolov et al. 2018 (DeepMind's surface-distance) define them.

    A surface element lies at a voxel corner whose neighbouring voxels are partly inside; the picture's border closes a mask.
    With an empty mask there is no distance: every figure read from distances is then undefined, and in the convention `worst`
    the scan's diagonal where one mask is empty and 0 where both are; the surface Dice 0 and 1.

    Args:
        reference, prediction: (X, Y, Z) or (X, Y) bool on the same grid, neither empty; crop them to their common box, which
            changes no distance.
        spacing: voxel size along each axis.
    """
    if reference.flags.f_contiguous:  # as most files lie; the elements are gone through in the order of the memory
        reference, prediction, spacing = reference.T, prediction.T, spacing[::-1]
    margin, _ = _rings(spacing)
    one, other = _surface(reference, margin), _surface(prediction, margin)
    return SurfaceDistances(*_distances(one, other, spacing), *_distances(other, one, spacing))


def _surface(mask: Mask, margin: tuple[int, ...]) -> _Surface:
    codes = neighbourhood_codes(np.ascontiguousarray(mask))
    border = codes - np.uint8(1) < 2**2**mask.ndim - 2  # neither 0, which wraps around, nor all inside
    found = codes[border]
    border = np.pad(border, [(n, n) for n in margin])
    return _Surface(border, np.flatnonzero(border), found)


def _distances(here: _Surface, there: _Surface, spacing: tuple[float, ...]) -> tuple[Sizes, Sizes]:
    """Distances from one surface to the other, ascending, and the area at each.

    Most elements lie near the other surface: their neighbours are looked up in the order of their distance.
    """
    sizes = element_sizes(spacing)
    places, codes, border = here.places, here.codes, there.border.reshape(-1)
    steps = np.asarray(there.border.strides)
    distances: list[Array] = []
    areas: list[Array] = []
    lookups = 0
    for distance, offsets in _rings(spacing)[1]:
        hit = np.zeros(len(places), bool)
        for step in (offsets @ steps).tolist():
            hit |= border.take(places + step)
        distances.append(np.asarray([distance]))
        areas.append(sizes[codes[hit]].sum(keepdims=True))
        lookups += len(places) * len(offsets)
        places, codes = places[~hit], codes[~hit]
        if not len(places) or lookups > TRANSFORM_LOOKUPS * border.size:
            break
    if len(places):
        far = _far_distances(places, there, spacing)
        order = np.argsort(far)
        distances.append(far[order])
        areas.append(sizes[codes][order])
    area = np.concatenate(areas)
    return np.concatenate(distances)[area > 0], area[area > 0]


@lru_cache
def _rings(spacing: tuple[float, ...]) -> tuple[tuple[int, ...], list[tuple[float, Array]]]:
    """Offsets to the neighbours of a voxel: the longest along each axis, and (distance, (n, ndim) offsets), ascending."""
    reach = min(MEAN_SIDES * math.prod(spacing) ** (1 / len(spacing)), LEAST_SIDES * min(spacing))
    longest = tuple(int(reach / side) for side in spacing)
    offsets = np.asarray(list(itertools.product(*(range(-n, n + 1) for n in longest))))
    lengths = np.sqrt(((offsets * spacing) ** 2).sum(1))
    ranks = np.round(lengths / min(spacing), 9)  # the same length but for rounding
    return longest, [(lengths[ranks == r].min(), offsets[ranks == r]) for r in np.unique(ranks[lengths <= reach])]


def _far_distances(places: npt.NDArray[np.intp], there: _Surface, spacing: tuple[float, ...]) -> Sizes:
    """From elements at `places` to the nearest of a surface, wherever it is."""
    shape = there.border.shape
    here = np.unravel_index(places, shape)
    if there.border.size <= min(len(places) * TRANSFORM_VOXELS, MOST_TRANSFORMED):
        nearest = _nearest_by_transform(here, there, spacing)
    else:
        nearest = _nearest_by_tree(here, there, spacing)
    total = np.zeros(len(places), np.float64)
    for a, b, side in zip(here, nearest, spacing, strict=True):
        total += ((a - b) * side) ** 2
    return np.sqrt(total)


def _nearest_by_transform(here: tuple[Array, ...], there: _Surface, spacing: tuple[float, ...]) -> list[Array]:
    from scipy import ndimage

    # Only the index of the nearest element is asked for: distances of all the other voxels would cost time and memory.
    nearest = ndimage.distance_transform_edt(~there.border, sampling=spacing, return_distances=False, return_indices=True)
    return [axis[here] for axis in nearest]


def _nearest_by_tree(here: tuple[Array, ...], there: _Surface, spacing: tuple[float, ...]) -> list[Array]:
    from scipy.spatial import cKDTree

    elements = np.unravel_index(there.places, there.border.shape)
    points, wanted = (np.stack(place, 1) * np.asarray(spacing) for place in (elements, here))
    # Halving boxes at their middle builds faster than at the median point, and is searched faster too.
    tree = cKDTree(points, leafsize=16, compact_nodes=False, balanced_tree=False)
    _, index = tree.query(wanted)
    return [axis[index] for axis in elements]


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
    """The least of ascending distances that at least `percentile` % of the surface does not exceed."""
    share = np.cumsum(sizes) / sizes.sum()
    place = np.searchsorted(share, percentile / 100)
    return float(distances[min(int(place), len(distances) - 1)])


def directed_means(distances: SurfaceDistances) -> tuple[float, float]:
    """Mean distance, by area, from the reference's surface to the prediction's, and from the prediction's to the reference's."""
    return (
        float(np.average(distances.from_reference, weights=distances.reference_sizes)),
        float(np.average(distances.from_prediction, weights=distances.prediction_sizes)),
    )


def average_symmetric_surface_distance(distances: SurfaceDistances) -> float:
    """ASSD (Heimann et al. 2009): the mean over both surfaces together, by area, so the larger surface weighs more."""
    found, sizes = _pooled(distances)
    return float(np.average(found, weights=sizes))


def mean_surface_distance(distances: SurfaceDistances) -> float:
    """The mean of the two directed means, so both surfaces weigh the same (MASD of Metrics Reloaded, Maier-Hein et al. 2024)."""
    return sum(directed_means(distances)) / 2


def median_surface_distance(distances: SurfaceDistances) -> float:
    """The least distance that at least half of both surfaces together, by area, does not exceed."""
    found, sizes = _pooled(distances)
    order = np.argsort(found, kind="stable")
    return _percentile(found[order], sizes[order], 50)


def _pooled(distances: SurfaceDistances) -> tuple[Sizes, Sizes]:
    return (
        np.concatenate([distances.from_reference, distances.from_prediction]),
        np.concatenate([distances.reference_sizes, distances.prediction_sizes]),
    )


def surface_dice(distances: SurfaceDistances, tolerance: float) -> float:
    """Share of both surfaces, by area, lying within `tolerance` of each other (Nikolov et al. 2018)."""
    tolerance *= 1 + ROUNDING
    within = distances.reference_sizes[distances.from_reference <= tolerance].sum()
    within += distances.prediction_sizes[distances.from_prediction <= tolerance].sum()
    return float(within / (distances.reference_sizes.sum() + distances.prediction_sizes.sum()))
