"""Windows that hold nothing but air: darker than anything that was ever inside a structure of the training cases."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from medseg.core.grid import Grid
from medseg.core.labels import LabelScheme
from medseg.core.volume import Volume
from medseg.inference.window import Corner, Empty

BLOCK = 16  # voxels along each axis that are looked at together
REACH = 2  # voxels of the scan around a window that interpolation takes into it
AIR = 10.0  # logit of the background, and of no region


class Air:
    """Where a scan holds air only.

    Args:
        scan: before it is normalised; looked at once, and not kept.
        below: for each channel, the intensity that every voxel must be below.
    """

    def __init__(self, scan: Volume, below: Sequence[float]) -> None:
        self.grid = scan.grid
        self.dark = np.ones([math.ceil(n / BLOCK) for n in scan.grid.shape], bool)
        for channel, limit in zip(scan.array, below, strict=True):
            self.dark &= _block_maxima(channel) < limit

    def empty(self, prepared: Grid, labels: LabelScheme) -> Empty:
        """What `predict_slabs` asks, on the prepared grid of the scan."""
        mapping = np.linalg.solve(self.grid.affine, prepared.affine)  # voxel of the prepared scan -> voxel of the scan

        def holds_air(first: Corner, last: Corner) -> bool:
            ends = np.array([[*first, 1], [*(n - 1 for n in last), 1]]) @ mapping.T[:, :3]
            low, high = np.floor(ends.min(0)) - REACH, np.ceil(ends.max(0)) + REACH
            blocks = (slice(max(0, int(a) // BLOCK), int(b) // BLOCK + 1) for a, b in zip(low, high, strict=True))
            return bool(self.dark[tuple(blocks)].all())

        nothing = [-AIR] * labels.n_outputs if labels.regions else [AIR] + [0.0] * (labels.n_outputs - 1)
        return Empty(holds_air, nothing)


def _block_maxima(channel: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    for axis in (2, 1, 0):
        channel = np.maximum.reduceat(channel, np.arange(0, channel.shape[axis], BLOCK), axis)
    return channel
