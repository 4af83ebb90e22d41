"""Scans from DICOM series: one volume, values rescaled (HU for CT), on the grid that the slices state.

X runs along the columns of a slice, Y down its rows, Z along the normal of the slices (row x column direction). No message holds
a path, a name or a value of a header.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import numpy as np
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_color_lut

from medseg.core.errors import UnreadableError
from medseg.core.grid import Grid
from medseg.core.limits import available_cores
from medseg.io.dicom_codecs import plugin
from medseg.io.dicom_geometry import Stack, stack
from medseg.io.dicom_header import PROJECTIONS, Header, check_intact, open_pixels, read_headers
from medseg.io.dicom_values import quiet
from medseg.io.picture import Array, Picture
from medseg.io.series import Series

MOST_THREADS = 4
EXACT_IN_FLOAT32 = 2**24
EIGHT_BITS = 8
WHOLE_TYPES = (np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32, np.int64)


def read(series: Series, as_labels: bool = False) -> Picture:
    """The scan of a series, rescaled as each slice states; colours as three channels.

    MONOCHROME1 (the lowest value is white) is inverted for radiographs only, which then look alike whichever way they were
    stored; elsewhere the values mean something, such as HU, however they are to be shown.

    Args:
        as_labels: give the indices of a palette, not its colours, and invert nothing.
    Returns: (C, X, Y, Z), of a whole-number type of up to 16 bits where that holds every value exactly, else float32 (or a wider
        whole-number type for values beyond 2 ** 24). Memory is that array and a slice for each thread.
    Raises: UnreadableError, which says the series' own reason where it has one.
    """
    found = _stack(series)
    first = found.slices[0][0]
    shape = found.grid.shape
    channels = 3 if first.colour and not (as_labels and first.palette) else 1
    try:
        # A slice lies in one piece, so that it is written at once.
        array = np.empty((channels, *shape[::-1]), _dtype(found, channels))
    except MemoryError:
        raise UnreadableError("The series needs more memory than there is; crop it or use a larger machine.") from None
    with quiet(), ThreadPoolExecutor(min(MOST_THREADS, available_cores())) as pool:
        jobs = [pool.submit(_read_slice, found, index, array[:, index], as_labels) for index in range(len(found.slices))]
        try:
            for job in jobs:
                job.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return Picture(array.transpose(0, 3, 2, 1), found.grid)


def read_grid(series: Series) -> Grid:
    """Where the voxels of a series lie, from its headers alone. Raises: UnreadableError."""
    return _stack(series).grid


def warnings(series: Series) -> list[str]:
    """What a careful reader should know about a series, one sentence each. Raises: UnreadableError."""
    found = _stack(series)
    header, frame = found.slices[0]
    plane = header.planes[frame]
    sentences = list(series.notes)
    if not found.grid.physical:
        sentences.append("The series states no size of its pixels; lengths are counted in pixels.")
    if header.at_detector and found.grid.physical:
        sentences.append("The series states the size of its pixels on the detector; in the patient they are smaller.")
    if found.grid.physical and len(found.slices) == 1 and plane.position and plane.thickness_mm is None:
        sentences.append("The series is one slice that states no thickness; it is taken as 1 mm.")
    return sentences


def _stack(series: Series) -> Stack:
    if series.reason:
        raise UnreadableError(f"The series cannot be used: {series.reason}.")
    headers = read_headers(series.files)
    try:
        check_intact(headers)
        return stack(headers)
    except UnreadableError as error:
        raise UnreadableError(f"The series cannot be used: {error}.") from None


def _stored_range(pixels: dict[str, Any]) -> tuple[int, int]:
    bits = pixels["bits_stored"]
    return (-(1 << bits - 1), (1 << bits - 1) - 1) if pixels["pixel_representation"] else (0, (1 << bits) - 1)


def _scale(header: Header, frame: int) -> tuple[float, float]:
    plane = header.planes[frame]
    # The numbers of a palette's colours are on no scale.
    return (1.0, 0.0) if header.palette or plane.slope is None else (plane.slope, plane.intercept or 0.0)


def _dtype(found: Stack, channels: int) -> np.dtype[Any]:
    """The smallest type that holds every value that the slices can hold."""
    if channels == 3:
        return np.dtype(
            np.uint8 if found.slices[0][0].palette or found.slices[0][0].pixels["bits_stored"] <= EIGHT_BITS else np.uint16
        )
    ends = []
    for header, frame in found.slices:
        slope, intercept = _scale(header, frame)
        ends += [end * slope + intercept for end in _stored_range(header.pixels)]
        if slope != int(slope) or intercept != int(intercept):
            return np.dtype(np.float32)
    low, high = min(ends), max(ends)
    fitting = [t for t in WHOLE_TYPES if np.iinfo(t).min <= low and high <= np.iinfo(t).max]
    exact_as_float = max(-low, high) <= EXACT_IN_FLOAT32
    return np.dtype(np.float32 if not fitting or (fitting[0] in WHOLE_TYPES[4:] and exact_as_float) else fitting[0])


def _read_slice(found: Stack, index: int, into: Array, as_labels: bool) -> None:
    """Decode one slice and write it, rescaled, into (C, Y, X)."""
    header, frame = found.slices[index]
    reason = "is damaged; replace it with an intact copy"
    try:
        _fill(header, frame, into, as_labels)
        return
    except MemoryError:
        reason = "needs more memory than there is"
    except OSError as error:
        if isinstance(error, PermissionError):
            reason = "may not be read; give yourself permission to read it"
    except Exception:  # the decoders raise almost anything on damaged bytes, with header values in their words
        pass
    raise UnreadableError(f"The series cannot be used: {found.place(index)} {reason}.")


def _fill(header: Header, frame: int, into: Array, as_labels: bool) -> None:
    pixels = _decoded(header, frame)
    if len(into) == 3:
        into[:] = _colours(pixels, header).transpose(2, 0, 1)
        return
    low, high = _stored_range(header.pixels)
    if pixels.min() < low or pixels.max() > high:
        raise ValueError("values of more bits than the header states")
    slope, intercept = _scale(header, frame)
    if header.pixels["photometric_interpretation"] == "MONOCHROME1" and header.modality in PROJECTIONS and not as_labels:
        slope, intercept = -slope, intercept + slope * (low + high)
    if (slope, intercept) == (1.0, 0.0):
        into[0] = pixels
    else:
        np.add(pixels * np.float64(slope), intercept, out=into[0], casting="unsafe")


def _decoded(header: Header, frame: int) -> Array:
    """The stored values of a frame, (Y, X) or (Y, X, 3)."""
    decoder = get_decoder(header.syntax)
    with closing(open_pixels(header)) as file:
        return decoder.as_array(
            file, index=frame, decoding_plugin=plugin(header.syntax, header.pixels["bits_stored"]), **header.pixels
        )[0]


def _colours(pixels: Array, header: Header) -> Array:
    if header.palette is None:
        return pixels
    coloured = apply_color_lut(pixels, header.palette)
    return coloured >> EIGHT_BITS if coloured.dtype.itemsize == 2 else coloured
