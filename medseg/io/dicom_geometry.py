"""Pictures of a series as one volume: their order, the grid, or the reason why they are none.

An affine can only say that slices are parallel, upright and evenly spaced. Whatever is not, is refused with where and how much.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from medseg.core.errors import UnreadableError
from medseg.core.grid import DIRECTION_TOLERANCE_DEGREES, SPACING_TOLERANCE, Grid
from medseg.io.dicom_header import KINDS, Header, Plane
from medseg.io.picture import LPS_TO_RAS

Array = npt.NDArray[Any]

# How far a slice may lie off its place on the even grid. Scanners round positions, some to 0.1 mm, and two slices differ by
# two roundings; of thin slices it may be no more than a tenth of the step, so that a missing one is never taken for a rounding.
PLACE_TOLERANCE_MM = 0.1
PLACE_TOLERANCE_STEPS = 0.1
SAME_PLACE_MM = 1e-3
PERPENDICULAR_TOLERANCE = 1e-2  # of the cosine between rows and columns: directions are short decimals
SINGLE_SLICE_MM = 1.0  # where no thickness is stated; as in every format, its volume in cubic mm is then its area
MOST_GAPS_NAMED = 3


@dataclass(frozen=True, eq=False)
class Stack:
    """A volume's slices, along Z of its grid. `slices`: the header and the index of the frame in it."""

    slices: tuple[tuple[Header, int], ...]
    grid: Grid

    def place(self, index: int) -> str:
        """Where slice `index` lies, in words."""
        if not self.grid.physical or len(self.slices) == 1:
            return "its picture"
        centre = LPS_TO_RAS * self.grid.affine[:3, 3]
        normal = LPS_TO_RAS * self.grid.directions[:, 2]
        return f"its slice at {centre @ normal + index * self.grid.spacing[2]:.4g} mm"


def stack(headers: Sequence[Header]) -> Stack:
    """The volume that the files of a series make up.

    Args:
        headers: of files without a problem of their own.
    Raises: UnreadableError with the reason, a phrase that names no file, where they are not one volume.
    """
    if len(headers) > 1 and any(h.frames > 1 for h in headers):
        raise UnreadableError(f"it holds {len(headers)} files with several pictures each; give each as a series of its own")
    _check_same_pixels(headers)
    slices = [(header, frame) for header in headers for frame in range(len(header.planes))]
    first = headers[0]
    if first.frames != len(slices) and len(headers) == 1:
        what = "states the place of none of them" if len(slices) == 1 else f"describes {len(slices)} of them"
        raise UnreadableError(f"it holds {first.frames} pictures in one file and {what}; export it as single slices")
    if first.colour and len(slices) > 1:
        raise UnreadableError(f"it holds {len(slices)} colour pictures; give the one to segment as a series of its own")
    planes = [header.planes[frame] for header, frame in slices]
    _check_scales(planes, first)
    shape = (first.pixels["columns"], first.pixels["rows"], len(planes))
    try:
        with np.errstate(all="ignore"):
            if len(planes) == 1:
                return Stack(tuple(slices), _single(planes[0], shape))
            order, affine = _arranged(planes)
            return Stack(tuple(slices[i] for i in order), Grid(shape, affine))
    except ValueError:  # of Grid, or of numbers that no scanner wrote
        raise UnreadableError("its slices state a geometry that is nonsense; export it again") from None


def _check_same_pixels(headers: Sequence[Header]) -> None:
    sizes = Counter((h.pixels["columns"], h.pixels["rows"]) for h in headers)
    if len(sizes) > 1:
        words = _counted({f"{columns} x {rows}": count for (columns, rows), count in sizes.items()})
        raise UnreadableError(f"its slices differ in size ({words} pixels); give each size as a series of its own")
    if len({(h.colour, h.pixels["photometric_interpretation"] == "MONOCHROME1") for h in headers}) > 1:
        raise UnreadableError(
            "some of its pictures are grey and others colour, or inverted; give each kind as a series of its own"
        )


def _check_scales(planes: Sequence[Plane], first: Header) -> None:
    wrong = sum(plane.slope is None or plane.intercept is None for plane in planes)
    if wrong and not first.colour:
        raise UnreadableError(f"{wrong} of its {len(planes)} slices state no valid rescaling of their values; export it again")


def _single(plane: Plane, shape: tuple[int, int, int]) -> Grid:
    if plane.spacing_mm is None:
        return Grid.pixels(shape)
    rows_mm, columns_mm = plane.spacing_mm
    spacing = np.array([columns_mm, rows_mm, plane.thickness_mm or SINGLE_SLICE_MM])
    if plane.position is None or plane.orientation is None:
        # A radiograph states no direction; its axes are the picture's own, as of a PNG of it, and its thickness means nothing.
        return Grid(shape, np.diag([columns_mm, rows_mm, SINGLE_SLICE_MM, 1.0]))
    return Grid(shape, _affine(_directions([plane]) * spacing, np.array(plane.position)))


def _arranged(planes: Sequence[Plane]) -> tuple[list[int], Array]:
    """The order of the planes along their normal, and the affine."""
    lost = sum(plane.position is None or plane.orientation is None for plane in planes)
    if lost == len(planes):
        raise UnreadableError(f"its {lost} pictures state no position, so they are no volume; give each as a series of its own")
    if lost:
        raise UnreadableError(f"{lost} of its {len(planes)} slices state no position or orientation; export it again")
    spacing_mm = _spacing(planes)
    directions = _directions(planes)
    positions = np.array([plane.position for plane in planes])
    order = np.argsort(positions @ directions[:, 2], kind="stable")
    along = (positions @ directions[:, 2])[order]
    _check_repeated(along, [planes[i] for i in order])
    _check_upright(positions[order], directions)
    _check_even(along)
    step = (along[-1] - along[0]) / (len(along) - 1)
    edges = directions * [spacing_mm[1], spacing_mm[0], step]
    return order.tolist(), _affine(edges, positions[order[0]])


def _spacing(planes: Sequence[Plane]) -> tuple[float, ...]:
    found = {plane.spacing_mm for plane in planes}
    if None in found:
        raise UnreadableError(
            "its slices state no distance of their pixels; export it again, or convert it with a stated spacing"
        )
    sizes = np.array(list(found), dtype=float)
    if (np.ptp(sizes, axis=0) > SPACING_TOLERANCE * sizes.min(0)).any():
        low, high = sizes.min(0).min(), sizes.max(0).max()
        raise UnreadableError(
            f"its slices differ in pixel spacing ({low:.4g} to {high:.4g} mm); give each as a series of its own"
        )
    assert planes[0].spacing_mm is not None
    return planes[0].spacing_mm


def _directions(planes: Sequence[Plane]) -> Array:
    """(3, 3) unit vectors in LPS as columns: along a row, down a column, and the normal."""
    stated = np.array([plane.orientation for plane in planes]).reshape(-1, 2, 3)
    lengths = np.linalg.norm(stated, axis=2)
    cosines = (stated[:, 0] * stated[:, 1]).sum(1)
    if (np.abs(lengths - 1) > PERPENDICULAR_TOLERANCE).any() or (np.abs(cosines) > PERPENDICULAR_TOLERANCE).any():
        raise UnreadableError("its slices state an orientation whose axes are not perpendicular; export it again")
    stated = stated / lengths[..., None]
    angles = np.degrees(np.arccos(np.clip((stated * stated[0]).sum(2), -1, 1))).max(1)
    if turned := int((angles > DIRECTION_TOLERANCE_DEGREES).sum()):
        raise UnreadableError(
            f"its slices are not parallel: {turned} of {len(planes)} are turned against the first, by up to {angles.max():.1f} "
            "degrees; give each direction as a series of its own"
        )
    row, column = stated[0]
    column = column - (row @ column) * row
    column = column / np.linalg.norm(column)
    return np.stack([row, column, np.cross(row, column)], 1)


def _check_repeated(along: Array, planes: Sequence[Plane]) -> None:
    places = 1 + int((np.diff(along) > SAME_PLACE_MM).sum())
    if places == len(along):
        return
    differing = [words for i, (words, _, _) in enumerate(KINDS) if len({plane.kinds[i] for plane in planes}) > 1]
    what = f", which differ in their {' and '.join(dict.fromkeys(differing))}" if differing else ""
    raise UnreadableError(
        f"it holds {len(along)} slices at {places} places{what}; give each volume as a series of its own, or remove the copies"
    )


def _check_upright(positions: Array, directions: Array) -> None:
    way = positions - positions[0]
    along = way @ directions[:, 2]
    aside = np.linalg.norm(way @ directions[:, :2], axis=1)
    angle = math.degrees(math.atan2(aside[-1], along[-1]))
    allowed = max(PLACE_TOLERANCE_MM, along[-1] * math.tan(math.radians(DIRECTION_TOLERANCE_DEGREES)))
    if aside.max() <= allowed:
        return
    if aside[-1] <= allowed or np.abs(aside - along / along[-1] * aside[-1]).max() > allowed:
        raise UnreadableError(
            f"its slices do not lie above each other: one is {aside.max():.3g} mm aside; give each stack as a series of its own"
        )
    raise UnreadableError(
        f"its slices are sheared by {angle:.1f} degrees (gantry tilt), so that its voxels are no boxes; "
        "resample it to upright slices, for example with dcm2niix"
    )


def _check_even(along: Array) -> None:
    gaps = np.diff(along)
    step = float(np.sort(gaps)[(len(gaps) - 1) // 2])  # the lower median: with one of two gaps wide, the narrow one
    tolerance = min(PLACE_TOLERANCE_MM, PLACE_TOLERANCE_STEPS * step)
    even = along[0] + np.arange(len(along)) * (along[-1] - along[0]) / len(gaps)
    if np.abs(along - even).max() <= tolerance:
        return
    counts = np.round(gaps / step)
    if counts.min() >= 1 and counts.max() > 1 and (np.abs(gaps - counts * step) <= tolerance * np.maximum(1, counts)).all():
        wide = np.flatnonzero(counts > 1)
        places = [f"{int(counts[i]) - 1} between {along[i]:.4g} and {along[i + 1]:.4g} mm" for i in wide[:MOST_GAPS_NAMED]]
        more = f" and at {len(wide) - MOST_GAPS_NAMED} more places" if len(wide) > MOST_GAPS_NAMED else ""
        missing = int((counts - 1).sum())
        raise UnreadableError(
            f"{missing} of its slices {_are(missing)} missing ({', '.join(places)}{more}); bring the missing files"
        )
    worst = int(np.abs(gaps - step).argmax())
    raise UnreadableError(
        f"its slices are unevenly spaced: {gaps.min():.4g} to {gaps.max():.4g} mm apart, most by {step:.4g} mm "
        f"(see {along[worst]:.4g} to {along[worst + 1]:.4g} mm); resample it to even slices"
    )


def _affine(edges: Array, origin: Array) -> Array:
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = edges, origin
    affine[:3] *= LPS_TO_RAS[:, None]
    return affine + 0.0


def _are(count: int) -> str:
    return "is" if count == 1 else "are"


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} of {words}" for words, count in counts.items())
