"""Rules for the prepared scans: voxel size, crop, intensities and interpolation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medseg.core.errors import ConfigError
from medseg.data.normalise import CaseNormalisation, FixedNormalisation, Normalisation
from medseg.data.preprocess import Order, Preprocessing
from medseg.planning.config import PlanConfig
from medseg.planning.fingerprint import Fingerprint, pooled
from medseg.planning.sides import AXIS_NAMES, STATED

ANISOTROPIC = 3.0  # nnU-Net's threshold: above it the coarse axis is not upsampled to the median of the fine ones
COARSE_PERCENTILE = 10  # of the coarse axis' voxel sizes (Isensee et al. 2021)
MANY_ZEROS = 0.25
CUBIC: Order = 3
LINEAR: Order = 1


def plan_preparation(
    fingerprint: Fingerprint, config: PlanConfig, modality: str | list[str], reasons: dict[str, str]
) -> Preprocessing:
    """How scans are prepared, with the reasons added to `reasons`. Raises: ConfigError as `make_plan`."""
    return Preprocessing(
        physical=fingerprint.physical,
        spacing=_spacing(fingerprint, config, reasons),
        crop_nonzero=_crop(fingerprint, config, reasons),
        normalisation=_normalisation(fingerprint, config, modality, reasons),
        order=_order(fingerprint, config, reasons),
    )


def prepared_shapes(fingerprint: Fingerprint, preprocessing: Preprocessing) -> np.ndarray:
    """(cases, 3) voxels of each training case once it is prepared."""
    shapes = np.array([c.nonzero_shape if preprocessing.crop_nonzero else c.shape for c in fingerprint.cases], float)
    if preprocessing.spacing is not None:
        shapes = shapes * np.array([c.spacing for c in fingerprint.cases]) / np.array(preprocessing.spacing)
    return np.maximum(1, np.round(shapes)).astype(int)


def _spacing(fingerprint: Fingerprint, config: PlanConfig, reasons: dict[str, str]) -> tuple[float, float, float] | None:
    if config.spacing_mm:
        reasons["spacing"] = STATED
        return config.spacing_mm
    if not fingerprint.physical:
        reasons["spacing"] = "the files state no physical size, so every picture keeps its own pixels"
        return None
    spacings = np.array([c.spacing for c in fingerprint.cases])
    spacing = np.median(spacings, axis=0)
    reasons["spacing"] = f"median voxel size of {len(spacings)} training cases"
    coarse = _coarse_axis(fingerprint)
    if coarse is not None:
        spacing[coarse] = max(np.percentile(spacings[:, coarse], COARSE_PERCENTILE), np.delete(spacing, coarse).max())
        reasons["spacing"] += (
            f"; the {AXIS_NAMES[coarse]} axis is over {ANISOTROPIC:g} times coarser, there the {COARSE_PERCENTILE}th percentile "
            "is taken"
        )
    x, y, z = spacing
    return float(x), float(y), float(z)


def _coarse_axis(fingerprint: Fingerprint) -> int | None:
    """The axis whose voxels are over three times as long as the others', in the median case of a set of volumes."""
    spacing = np.median([c.spacing for c in fingerprint.cases], axis=0)
    coarse = int(spacing.argmax())
    if spacing[coarse] > ANISOTROPIC * np.delete(spacing, coarse).max() and fingerprint.median_shape[coarse] > 1:
        return coarse
    return None


def _order(fingerprint: Fingerprint, config: PlanConfig, reasons: dict[str, str]) -> Order | tuple[Order, Order, Order]:
    if config.order is not None:
        reasons["order"] = STATED
        return config.order
    coarse = _coarse_axis(fingerprint)
    if coarse is None:
        reasons["order"] = (
            "cubic along all axes: they are about equally fine"
            if fingerprint.physical
            else "cubic; pictures that keep their own pixels are not interpolated"
        )
        return CUBIC
    reasons["order"] = (
        f"cubic, but linear along the {AXIS_NAMES[coarse]} axis, which is over {ANISOTROPIC:g} times coarser: a cubic rings "
        "between distant slices"
    )
    along: list[Order] = [LINEAR if axis == coarse else CUBIC for axis in range(3)]
    x, y, z = along
    return x, y, z


def _crop(fingerprint: Fingerprint, config: PlanConfig, reasons: dict[str, str]) -> bool:
    if config.crop_nonzero is not None:
        reasons["crop_nonzero"] = STATED
        return config.crop_nonzero
    share = float(np.median([c.nonzero_box_share for c in fingerprint.cases]))
    crop = share < 1 - MANY_ZEROS
    reasons["crop_nonzero"] = f"the box of non-zero voxels fills {share:.0%} of the median scan" + (
        ", so the rest is cut off" if crop else ", so all is kept"
    )
    return crop


def _normalisation(
    fingerprint: Fingerprint, config: PlanConfig, modality: str | list[str], reasons: dict[str, str]
) -> list[Normalisation]:
    if config.normalisation is not None:
        require_rules(config.normalisation, fingerprint.channels)
        reasons["normalisation"] = STATED
        return config.normalisation
    modalities = [modality] * fingerprint.channels if isinstance(modality, str) else modality
    if len(modalities) != fingerprint.channels:
        raise ConfigError(
            f"`data.modality` names {len(modalities)} channels and the images have {fingerprint.channels}; name one for each."
        )
    zeros = float(np.median([c.zero_share for c in fingerprint.cases]))
    rules = [_rule(fingerprint, channel, name, zeros > MANY_ZEROS) for channel, name in enumerate(modalities)]
    texts = {
        "ct": "ct: clipped to the training foreground's 0.5 to 99.5 percentiles, the same scale for every scan",
        "mr": "mr: each case by its own mean and deviation"
        + (f", over non-zero voxels ({zeros:.0%} are zero)" if zeros > MANY_ZEROS else ""),
        "microscopy": "microscopy: each case by its own mean and deviation after clipping 0.5 % at both ends",
        "rgb": "rgb: each case by one mean and deviation over all colours, which keeps the hue",
        "other": "other: each case by its own mean and deviation",
    }
    reasons["normalisation"] = "; ".join(texts[m] for m in dict.fromkeys(modalities))
    return rules


def require_rules(rules: Sequence[Normalisation], channels: int) -> None:
    """Raises: ConfigError where there is not one for each channel."""
    if len(rules) != channels:
        raise ConfigError(
            f"`plan.normalisation` has {len(rules)} rules and the images have {channels} channels; give one for each."
        )


def _rule(fingerprint: Fingerprint, channel: int, modality: str, many_zeros: bool) -> Normalisation:
    if modality == "ct":
        measured = [c.foreground[channel] for c in fingerprint.cases if c.foreground]
        if not measured:
            raise ConfigError("no training case holds any structure, so CT intensities cannot be planned; check the labels.")
        mean, std, low, high = pooled(measured)
        return FixedNormalisation(low=low, high=high, mean=mean, std=max(std, 1e-6))
    return CaseNormalisation(clip=modality == "microscopy", nonzero=modality == "mr" and many_zeros, joint=modality == "rgb")
