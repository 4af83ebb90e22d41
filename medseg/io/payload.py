"""The voxels behind a header: bytes to array, checked against the size that the header states."""

from __future__ import annotations

import gzip
import mmap
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medseg.core.errors import UnreadableError

Array = npt.NDArray[Any]
Buffer = bytes | mmap.mmap

COMPRESSION_LEVEL = 6


def open_bytes(path: Path) -> Buffer:
    """The bytes of a file, mapped and not copied. Raises: UnreadableError for an empty file."""
    with path.open("rb") as file:
        if not path.stat().st_size:
            raise UnreadableError(f"{path} is empty; replace it with an intact copy.")
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def gunzip(data: Buffer) -> bytes:
    """The content of gzip data, all of it: its checksum and length stand at the end. Raises: OSError, EOFError, zlib.error."""
    return gzip.decompress(data)


def gzip_bytes(data: bytes) -> bytes:
    """Gzip without a time stamp or a file name: equal content gives equal bytes."""
    return gzip.compress(data, COMPRESSION_LEVEL, mtime=0)


def zlib_bytes(data: bytes) -> bytes:
    """Zlib data, as MetaImage holds them."""
    return zlib.compress(data, COMPRESSION_LEVEL)


def voxels(data: Buffer, dtype: np.dtype[Any], shape: tuple[int, ...], offset: int, path: Path) -> Array:
    """The array of `shape`, first axis fastest, that starts `offset` bytes into `data`; a view, not a copy.

    Args:
        offset: negative where the voxels are the last bytes of the file.
    Raises: UnreadableError where there are fewer bytes than the header states.
    """
    if min(shape, default=0) < 1:
        raise UnreadableError(f"{path} states a size of {' x '.join(map(str, shape))} voxels; replace it with an intact copy.")
    count = 1
    for n in shape:
        count *= int(n)  # in Python's integers, which do not overflow on a damaged header
    start = len(data) - count * dtype.itemsize if offset < 0 else offset
    held = max(0, len(data) - start)
    if start < 0 or held < count * dtype.itemsize:
        raise UnreadableError(
            f"{path} is truncated: its header states {count * dtype.itemsize} bytes of voxels and it holds {held}; "
            "replace it with an intact copy."
        )
    return np.frombuffer(data, dtype, count, start).reshape(shape, order="F")


def text_voxels(data: Buffer, dtype: np.dtype[Any], shape: tuple[int, ...], offset: int, path: Path) -> Array:
    """The same for voxels written as decimal text. Raises: UnreadableError, ValueError."""
    values = np.array(bytes(data[offset:]).split()).astype(dtype)
    return voxels(values.tobytes(), dtype, shape, 0, path)
