"""Intensities made comparable between scans."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from medseg.core.config import Section
from medseg.core.errors import IntensityError

Image = npt.NDArray[np.float32]
LOW_PERCENTILE, HIGH_PERCENTILE = 0.5, 99.5  # as nnU-Net clips CT (Isensee et al. 2021, suppl. note 2)
MOST_VOXELS_FOR_PERCENTILES = 500_000


class FixedNormalisation(Section):
    """CT: Hounsfield units mean the same in every scan, so all are clipped and scaled alike, by the training foreground.

    Isensee et al. 2021, Nat Methods 18:203, supplementary note 2.
    """

    kind: Literal["fixed"] = "fixed"
    low: float
    high: float
    mean: float
    std: float = Field(gt=0)


class CaseNormalisation(Section):
    """MR, microscopy and others: the scale is the scanner's, so each case is centred and scaled by its own voxels.

    Args:
        clip: cut the brightest and darkest 0.5 % first, against hot pixels and fluorescence outliers.
        nonzero: mean and deviation over voxels that are not 0 (skull-stripped or masked scans); the others stay 0.
        joint: one mean and deviation over all channels that have such a rule, which keeps the colour of RGB pictures.
    """

    kind: Literal["case"] = "case"
    clip: bool = False
    nonzero: bool = False
    joint: bool = False


Normalisation = Annotated[FixedNormalisation | CaseNormalisation, Field(discriminator="kind")]


def normalise(image: Image, channels: list[Any], where: str = "scan") -> Image:
    """The image with each channel normalised by its rule.

    Args:
        image: (C, X, Y, Z) float32.
        channels: one Normalisation a channel; those with a joint rule are scaled together.
        where: the case, for the error.
    Returns: (C, X, Y, Z) float32; a constant channel beside others that are not (an empty dye) is 0 where its own voxels would
        have scaled it.
    Raises: IntensityError for NaN or infinite voxels and for a constant image.
    """
    require_finite(image, where)
    if all(channel.min() == channel.max() for channel in image):
        raise IntensityError(f"{where} is constant: every voxel holds the same value; check the file or remove the case.")
    if len(channels) != len(image):
        raise IntensityError(
            f"{where} has {len(image)} channels where the plan expects {len(channels)}; give the channels it was planned for."
        )
    result = np.empty_like(image)
    joint = [index for index, rule in enumerate(channels) if isinstance(rule, CaseNormalisation) and rule.joint]
    if joint:
        colours = image[joint]
        result[joint] = 0 if colours.min() == colours.max() else _by_case(colours, channels[joint[0]], where)
    for index in set(range(len(channels))) - set(joint):
        result[index] = _one(image[index], channels[index], where)
    return result


def require_finite(image: Image, where: str) -> None:
    """Raises: IntensityError where some voxels are NaN or infinite."""
    if n_bad := image.size - int(np.count_nonzero(np.isfinite(image))):
        raise IntensityError(f"{where} holds {n_bad} NaN or infinite voxels; replace them.")


def _one(channel: Image, rule: FixedNormalisation | CaseNormalisation, where: str) -> Image:
    if isinstance(rule, FixedNormalisation):
        return ((np.clip(channel, rule.low, rule.high) - rule.mean) / rule.std).astype(np.float32)
    return np.zeros_like(channel) if channel.min() == channel.max() else _by_case(channel, rule, where)


def _by_case(image: Image, rule: CaseNormalisation, where: str) -> Image:
    inside = image != 0 if rule.nonzero else None
    voxels = image[inside] if inside is not None else image
    if voxels.min() == voxels.max():  # of a channel that is not constant, so there are zeros around them
        raise IntensityError(f"{where} is constant where it is not 0; check the file or remove the case.")
    if rule.clip:
        low, high = np.percentile(thinned(voxels), [LOW_PERCENTILE, HIGH_PERCENTILE])
        # A picture that is almost all background has equal percentiles; then its outliers are the signal.
        if high > low:
            image = np.clip(image, low, high)
            voxels = image[inside] if inside is not None else image
    mean, std = voxels.mean(dtype=np.float64), voxels.std(dtype=np.float64)
    result = ((image - mean) / std).astype(np.float32)
    if inside is not None:
        result[~inside] = 0
    return result


def thinned(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """At most half a million of the values, evenly spread: enough for a percentile, the same every time."""
    flat = values.reshape(-1)
    step = -(-flat.size // MOST_VOXELS_FOR_PERCENTILES) or 1
    # A step that shares a factor with the picture's sides would take whole slices and leave others out.
    while math.gcd(step, flat.size) > 1 and step > 1:
        step += 1
    return flat[::step]
