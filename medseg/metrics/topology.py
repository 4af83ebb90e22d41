"""Topology of vessels and other networks: is the centreline found, and are pieces, loops and cavities as many?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from medseg.core.components import box_of, number_components
from medseg.metrics.elements import corners, neighbourhood_codes
from medseg.metrics.overlap import CHUNK_VOXELS

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class CentrelineOverlap:
    """How far each mask holds the other's centreline (Shit et al. 2021).

    Args:
        precision: share of the predicted centreline inside the reference; NaN without a predicted mask.
        sensitivity: share of the reference's centreline inside the prediction; NaN without a reference mask.
    """

    precision: float
    sensitivity: float

    @property
    def cldice(self) -> float:
        """Harmonic mean of the two (clDice); 0 where one mask is empty, NaN where both are."""
        parts = [part for part in (self.precision, self.sensitivity) if not math.isnan(part)]
        if not parts:
            return math.nan
        return 0.0 if min(parts) == 0 else 2 / (1 / self.precision + 1 / self.sensitivity)


def centreline_overlap(reference: Mask, prediction: Mask) -> CentrelineOverlap:
    """Overlap of masks and centrelines, for clDice.

    The centrelines are hard skeletons by scikit-image (Zhang and Suen 1984 in 2D, Lee et al. 1994 in 3D), as in the authors'
    metric; the soft skeletons of their loss are another, thicker thing. A piece that the skeleton loses keeps one voxel. A
    skeleton voxel counts one, whatever the voxel size.

    Args:
        reference, prediction: (X, Y) or (X, Y, Z) bool on the same grid; cropping to their common box changes nothing.
    Returns: `worst` should write 1 where both masks are empty and 0 where one is.
    """
    return CentrelineOverlap(_share_inside(prediction, reference), _share_inside(reference, prediction))


def _share_inside(mask: Mask, other: Mask) -> float:
    """Share of a mask's centreline that lies in the other mask."""
    if (place := box_of(mask)) is None:
        return math.nan
    centreline = find_centreline(mask[place])
    return int((centreline & other[place]).sum()) / int(centreline.sum())


def find_centreline(mask: Mask) -> Mask:
    """The skeleton of a mask, with at least one voxel in every piece of it.

    Args:
        mask: (X, Y) or (X, Y, Z) bool.
    """
    from scipy import ndimage
    from skimage.morphology import skeletonize

    # A rim of background: a volume one voxel thick is otherwise thinned differently than inside a larger one.
    padded = np.pad(mask, 1)
    centreline: Mask = skeletonize(padded).astype(bool)
    pieces, n_pieces = number_components(padded)
    # Lee's method erodes some compact pieces away, such as a cube of 2 voxels: their deepest voxel stands for them.
    lost = np.setdiff1d(np.arange(1, n_pieces + 1), pieces[centreline])
    places = ndimage.find_objects(pieces) if lost.size else []
    for piece in lost:
        depth = ndimage.distance_transform_edt(np.pad(pieces[places[piece - 1]] == piece, 1))[(slice(1, -1),) * mask.ndim]
        centreline[places[piece - 1]][np.unravel_index(depth.argmax(), depth.shape)] = True
    return centreline[(slice(1, -1),) * mask.ndim]


@dataclass(frozen=True)
class Betti:
    """Betti numbers of a mask, or their absolute differences between two.

    Args:
        b0: connected pieces.
        b1: holes in 2D; loops and tunnels in 3D.
        b2: closed cavities; 0 in 2D.
    """

    b0: int
    b1: int
    b2: int


def betti_numbers(mask: Mask) -> Betti:
    """Pieces, loops and cavities of a mask.

    Pieces are connected over corners (8 neighbours in 2D, 26 in 3D), the background over faces (4 and 6), which is the dual
    that makes a closed line enclose something. In 2D the holes are the enclosed pieces of background; in 3D the loops follow
    from the Euler characteristic, b0 - b1 + b2. Beyond the picture lies background.

    Args:
        mask: (X, Y) or (X, Y, Z) bool.
    """
    from scipy import ndimage

    if (place := box_of(mask)) is None:
        return Betti(0, 0, 0)
    inside = np.pad(mask[place], 1)
    pieces = number_components(inside)[1]
    enclosed = int(ndimage.label(~inside)[1]) - 1
    if mask.ndim == 2:
        return Betti(pieces, enclosed, 0)
    return Betti(pieces, pieces + enclosed - euler_characteristic(mask[place]), enclosed)


def betti_errors(reference: Mask, prediction: Mask) -> Betti:
    """Absolute differences of the Betti numbers, over the whole picture at once (Hu et al. 2019 take the mean over patches).

    Numbers are compared, not places: a loop lost here and one invented there cancel out, so read it beside clDice.

    Args:
        reference, prediction: (X, Y) or (X, Y, Z) bool on the same grid.
    Returns: defined for empty masks too (0, 0, 0 where both are). There is no largest value that `worst` could write: with one
        mask empty it should write what is measured, the other mask's own numbers, which may be less than a prediction in
        pieces gets; a case without a prediction is measured with an empty one.
    """
    ours, theirs = betti_numbers(reference), betti_numbers(prediction)
    return Betti(abs(ours.b0 - theirs.b0), abs(ours.b1 - theirs.b1), abs(ours.b2 - theirs.b2))


def euler_characteristic(mask: Mask) -> int:
    """Vertices - edges + faces (- cells) of the mask as a union of closed pixels or voxels.

    Args:
        mask: (X, Y) or (X, Y, Z) bool; voxels that touch at a corner are joined.
    """
    # The elements between voxels each hold one vertex, and a half, quarter or eighth of what meets there.
    codes, counts = neighbourhood_codes(mask).ravel(), np.zeros(2**2**mask.ndim, np.int64)
    for start in range(0, codes.size, CHUNK_VOXELS):
        counts += np.bincount(codes[start : start + CHUNK_VOXELS], minlength=counts.size)
    return int(counts @ _shares_of_euler(mask.ndim)) // 2**mask.ndim


@lru_cache
def _shares_of_euler(ndim: int) -> npt.NDArray[np.int64]:
    """What each neighbourhood code adds to the Euler characteristic, times 2 ** ndim so that it is whole."""
    places = np.asarray(corners(ndim))
    inside = (np.arange(2 ** len(places))[:, None] >> np.arange(len(places)) & 1).astype(bool)
    total = np.zeros(len(inside), np.int64)
    for pattern in np.ndindex(*(3,) * ndim):  # along each axis: towards 0, towards 1, or across both
        fixed = np.asarray(pattern) < 2
        around = (places[:, fixed] == np.asarray(pattern)[fixed]).all(axis=1)
        dimension = int(fixed.sum())  # of the vertex, half edge, quarter face or eighth of a cell that goes that way
        total += inside[:, around].any(axis=1) * (-1) ** dimension * 2 ** (ndim - dimension)
    return total
