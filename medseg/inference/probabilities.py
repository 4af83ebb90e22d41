"""Probabilities of every structure on the scan's own grid, written as the answer comes in and never held."""

from __future__ import annotations

import gzip
import math
import os
import secrets
import shutil
from pathlib import Path
from types import TracebackType

import numpy as np
import torch

from medseg.core.errors import OutputError
from medseg.core.files import atomic_path
from medseg.core.grid import Grid
from medseg.core.labels import LabelScheme
from medseg.inference.restore import Line, Rows, place_of
from medseg.inference.window import Slab
from medseg.io.nifti import FULL_SCALE, probability_header
from medseg.io.payload import COMPRESSION_LEVEL

MOST_VOXELS = 2**18  # of one channel at once


class Probabilities:
    """A file of (X, Y, Z, K) probabilities, one a structure or region, in 16 bits; 0 where the prepared picture does not reach.

    The logits are interpolated linearly, as for the mask, and then made probabilities.

    Args:
        path: the .nii.gz to be written by `finish`; until then the numbers lie uncompressed in a hidden file beside it.
    """

    def __init__(self, path: Path, prepared_grid: Grid, scan_grid: Grid, labels: LabelScheme) -> None:
        self.path, self.labels = path, labels
        self.rows = Rows(prepared_grid, scan_grid, MOST_VOXELS)
        self.header = probability_header(scan_grid, list(labels.measured))
        self.plain = path.with_name(f".{secrets.token_hex(4)}.{path.name}")  # as `atomic_path`, so that what a kill left is known
        shape = (*scan_grid.shape, len(labels.measured))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _reserve(self.plain, len(self.header) + 2 * math.prod(shape))
        except OSError as error:
            self.plain.unlink(missing_ok=True)
            raise OutputError(f"{path} cannot be written ({error.strerror}); free space or choose another output.") from error
        self.values = np.memmap(self.plain, "<u2", "r+", len(self.header), shape, order="F")

    def __enter__(self) -> Probabilities:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        del self.values
        self.plain.unlink(missing_ok=True)

    def add(self, slab: Slab) -> None:
        """Write what can be said now. Slabs come in order."""
        for logits, parts in self.rows.ready(slab):
            answer = self.rows.turned(logits)
            for lines in parts:
                between = torch.stack([_interpolated(channel, lines) for channel in answer])
                share = between.sigmoid() if self.labels.regions else between.softmax(0)[1:]
                self.values.T[(slice(None), *place_of(lines))] = (share * FULL_SCALE).round_().cpu().numpy().astype(np.uint16)

    def finish(self) -> None:
        """Compress the file to its place; equal numbers give equal bytes. Raises: OutputError."""
        self.values.flush()
        with open(self.plain, "r+b") as plain:
            plain.write(self.header)
        with (
            atomic_path(self.path) as temporary,
            open(temporary, "wb") as file,
            gzip.GzipFile("", "wb", COMPRESSION_LEVEL, file, mtime=0) as packed,
            open(self.plain, "rb") as plain,
        ):
            shutil.copyfileobj(plain, packed, 2**20)


def _reserve(path: Path, size_bytes: int) -> None:
    """Make a file of zeros whose place on the disk is certain: writing to a mapped file on a full disk would end the process."""
    with open(path, "wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size_bytes)
        else:
            file.truncate(size_bytes)


def _interpolated(channel: torch.Tensor, lines: list[Line]) -> torch.Tensor:
    for axis, line in zip((2, 1, 0), lines, strict=True):
        lower, upper, share = line.on(channel.device)
        shape = [1, 1, 1]
        shape[axis] = -1
        channel = torch.lerp(channel.index_select(axis, lower), channel.index_select(axis, upper), share.reshape(shape))
    return channel
