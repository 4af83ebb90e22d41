"""Which intensities are shown as black and as white."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Percentiles = tuple[float, float]
Limits = tuple[float, float]

MOST_VALUES = 2**20  # that percentiles are taken of
# The usual windows in Hounsfield units, as level and width: lung -600 and 1500, soft tissue 40 and 400, bone 400 and 1800.
LUNG, SOFT_TISSUE, BONE = (-1350.0, 150.0), (-160.0, 240.0), (-500.0, 1300.0)
LUNG_BELOW, BONE_ABOVE = -400.0, 250.0
AIR_OF_CT = -900.0  # at most, where a scan without a plan is taken for a CT
LEAST_OF_CT = -200.0  # air and fat lie below it in every CT


def window(image: Array, percentiles: Percentiles = (1, 99)) -> npt.NDArray[np.float32]:
    """Intensities stretched between two percentiles to [0, 1]; the channels of a colour picture together."""
    return stretch(image, intensity_limits(image, percentiles))


def stretch(image: Array, limits: Limits) -> npt.NDArray[np.float32]:
    """Intensities between `limits` as [0, 1], others cut off; NaN is black."""
    low, high = limits
    scaled = (np.nan_to_num(image.astype(np.float32), nan=low, posinf=high, neginf=low) - low) / max(high - low, 1e-12)
    return np.clip(scaled, 0, 1).astype(np.float32)


def intensity_limits(image: Array, percentiles: Percentiles = (1, 99)) -> Limits:
    """Two percentiles of the finite intensities, of at most about a million of them; their extremes where those are equal."""
    values = image.reshape(-1)[:: max(1, image.size // MOST_VALUES)]
    values = values[np.isfinite(values)]
    if not values.size:
        return 0.0, 0.0
    low, high = (float(v) for v in np.percentile(values, percentiles))
    return (low, high) if high > low else (float(values.min()), float(values.max()))


def tissue_limits(inside: Array) -> Limits:
    """The window of a CT that shows a structure: lung, bone or soft tissue, by its median intensity.

    Args:
        inside: Hounsfield units of the structure's voxels; none of them gives the window of soft tissue.
    """
    median = float(np.median(inside)) if inside.size else 0.0
    return LUNG if median < LUNG_BELOW else BONE if median > BONE_ABOVE else SOFT_TISSUE
