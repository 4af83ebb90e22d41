"""What the training cases look like, measured once: the facts that the plan is derived from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import Field

from medseg.core.config import Section
from medseg.core.labels import IGNORE, LabelScheme
from medseg.core.volume import Volume
from medseg.data.normalise import thinned
from medseg.data.preprocess import nonzero_box

QUANTILES = 100  # of the intensities inside structures, at 0.5, 1.5, ... 99.5 %


class Intensities(Section):
    """Of the voxels inside structures, of one channel.

    Args:
        quantiles: at 0.5, 1.5, ... 99.5 %, each standing for one percent of the voxels.
        lowest: of all of them; None in fingerprints of earlier versions.
    """

    mean: float
    std: float
    quantiles: list[float] = Field(min_length=QUANTILES, max_length=QUANTILES)
    lowest: float | None = None


class CaseFingerprint(Section):
    """One training case, on canonical axes.

    Args:
        shape: voxels along right, anterior, superior.
        spacing: voxel size along them.
        zero_share: share of voxels that are 0 in every channel (skull-stripped and masked scans have many).
        nonzero_box_share: share of the scan that the box of its non-zero voxels fills.
        nonzero_shape: voxels of that box along right, anterior, superior.
        foreground: for each channel, the intensities inside structures (empty where the case has none).
        class_voxels: voxels of each class, background first.
    """

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    physical: bool
    zero_share: float
    nonzero_box_share: float
    nonzero_shape: tuple[int, int, int]
    foreground: list[Intensities]
    class_voxels: list[int]


class Fingerprint(Section):
    """The training cases together; `cases` holds measurements only, no names."""

    channels: int
    physical: bool
    cases: list[CaseFingerprint] = Field(min_length=1)

    @property
    def median_shape(self) -> tuple[int, int, int]:
        x, y, z = np.median([c.shape for c in self.cases], axis=0).astype(int)
        return int(x), int(y), int(z)


def measure(volume: Volume, classes: np.ndarray, scheme: LabelScheme) -> CaseFingerprint:
    """The fingerprint of one case.

    Args:
        volume: the scan on its own grid.
        classes: (X, Y, Z) uint8 class indices on the same grid.
    """
    canonical = volume.grid.canonical()
    used = (volume.array != 0).any(0)
    x, y, z = nonzero_box(volume, canonical).shape
    inside = (classes > 0) & (classes != IGNORE)
    return CaseFingerprint(
        shape=canonical.shape,
        spacing=canonical.spacing,
        physical=canonical.physical,
        zero_share=float(1 - used.mean()),
        nonzero_box_share=x * y * z / used.size,
        nonzero_shape=(x, y, z),
        foreground=[intensities(channel[inside]) for channel in volume.array] if inside.any() else [],
        class_voxels=[int((classes == k).sum()) for k in range(scheme.n_classes)],
    )


def intensities(values: np.ndarray) -> Intensities:
    """Of at least one voxel."""
    sample = thinned(values)
    quantiles = np.quantile(sample, (np.arange(QUANTILES) + 0.5) / QUANTILES).tolist()
    mean, std = sample.mean(dtype=np.float64), sample.std(dtype=np.float64)
    return Intensities(mean=mean, std=std, quantiles=quantiles, lowest=float(values.min()))


def pooled(cases: Sequence[Intensities]) -> tuple[float, float, float, float]:
    """Mean, standard deviation, 0.5 and 99.5 percentile of the voxels of all cases together, each case counting alike.

    That is how Isensee et al. 2021 draw them (nnU-Net takes as many voxels of each case). The percentiles are those of the
    cases' quantiles together.
    """
    means, variances = np.array([c.mean for c in cases]), np.array([c.std for c in cases]) ** 2
    low, high = np.percentile(np.concatenate([c.quantiles for c in cases]), [0.5, 99.5], method="hazen")
    return float(means.mean()), float(np.sqrt(variances.mean() + means.var())), float(low), float(high)
