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
VOXELS_AT_ONCE = 2**22


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


def normalise(image: Image, channels: list[Any], where: str = "scan", in_place: bool = False) -> Image:
    """The image with each channel normalised by its rule.

    Args:
        image: (C, X, Y, Z) float32.
        in_place: the result takes the image's memory.
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
    result = image if in_place else np.empty_like(image)
    joint = [index for index, rule in enumerate(channels) if isinstance(rule, CaseNormalisation) and rule.joint]
    if joint:
        colours = image[joint]
        if colours.min() == colours.max():
            colours[:] = 0
        else:
            _by_case(colours, colours, channels[joint[0]], where)
        result[joint] = colours
    for index in set(range(len(channels))) - set(joint):
        _one(image[index], result[index], channels[index], where)
    return result


def require_finite(image: Image, where: str) -> None:
    """Raises: IntensityError where some voxels are NaN or infinite."""
    if n_bad := image.size - int(np.count_nonzero(np.isfinite(image))):
        raise IntensityError(f"{where} holds {n_bad} NaN or infinite voxels; replace them.")


def _one(channel: Image, result: Image, rule: FixedNormalisation | CaseNormalisation, where: str) -> None:
    """Write the channel, normalised, to `result`, which may be the channel itself."""
    if isinstance(rule, FixedNormalisation):
        np.clip(channel, rule.low, rule.high, out=result)
        result -= rule.mean
        result /= rule.std
    elif channel.min() == channel.max():
        result[:] = 0
    else:
        _by_case(channel, result, rule, where)


def _by_case(image: Image, result: Image, rule: CaseNormalisation, where: str) -> None:
    zero = image == 0 if rule.nonzero else None
    voxels = image if zero is None else image[~zero]
    if voxels.min() == voxels.max():  # of a channel that is not constant, so there are zeros around them
        raise IntensityError(f"{where} is constant where it is not 0; check the file or remove the case.")
    low, high = np.percentile(thinned(voxels), [LOW_PERCENTILE, HIGH_PERCENTILE]) if rule.clip else (0, 0)
    # A picture that is almost all background has equal percentiles; then its outliers are the signal.
    if high > low:
        image = np.clip(image, low, high, out=result)
        voxels = image if zero is None else image[~zero]
    mean = voxels.mean(dtype=np.float64)
    std = _deviation(voxels, mean)
    for part, target in zip(_parts(image), _parts(result), strict=True):
        target[:] = np.subtract(part, mean, dtype=np.float64) / std  # in double precision, a part at a time
    if zero is not None:
        result[zero] = 0


def _deviation(voxels: Image, mean: np.float64) -> np.float64:
    """The standard deviation, in double precision without a copy of the voxels in it."""
    squares = sum(float(np.square(np.subtract(part, mean, dtype=np.float64)).sum()) for part in _parts(voxels))
    return np.sqrt(np.float64(squares / voxels.size))


def _parts(image: Image) -> list[Image]:
    """The image in views of some millions of voxels."""
    return np.array_split(image, -(-image.size // VOXELS_AT_ONCE), int(np.argmax(image.shape)))


def thinned(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """At most half a million of the values, evenly spread: enough for a percentile, the same every time."""
    flat = values.reshape(-1)
    step = -(-flat.size // MOST_VOXELS_FOR_PERCENTILES) or 1
    # A step that shares a factor with the picture's sides would take whole slices and leave others out.
    while math.gcd(step, flat.size) > 1 and step > 1:
        step += 1
    return flat[::step]
