"""The plan: everything that data decide about a model, each value with its reason in words."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from medseg.core.config import Section, parse
from medseg.core.errors import ConfigError, StageError
from medseg.core.files import write_text
from medseg.core.labels import LabelScheme
from medseg.data.normalise import CaseNormalisation, FixedNormalisation, Normalisation
from medseg.data.preprocess import Preprocessing
from medseg.planning.config import PlanConfig
from medseg.planning.fingerprint import Fingerprint

ANISOTROPIC = 3.0  # nnU-Net's threshold: above it the coarse axis is not upsampled to the median of the fine ones
MANY_ZEROS = 0.25
PATCH_VOXELS_3D, PATCH_VOXELS_2D = 64**3, 256**2
PATCH_MULTIPLE = 8  # three halvings fit; networks pad further where they need more
BATCH_3D, BATCH_2D = 2, 8
AXIS_WORDS = {0: {"left", "right"}, 1: {"anterior", "posterior"}, 2: {"superior", "inferior", "upper", "lower"}}
AXIS_NAMES = ("left-right", "posterior-anterior", "inferior-superior")


class Plan(Section):
    """What a model must know of its data; it travels in the model file.

    Args:
        channels: names of the image files of a case; `n_channels` counts the network's inputs (RGB has three).
        patch_voxels: along right, anterior, superior; 1 along one axis makes a 2D network.
        flips: axes along which mirroring keeps the anatomy's meaning.
        models: each model's architecture and options.
        reasons: why each value is what it is.
    """

    preprocessing: Preprocessing
    channels: list[str]
    n_channels: int
    patch_voxels: tuple[int, int, int]
    batch_size: int
    flips: list[int]
    models: dict[str, dict[str, Any]] = Field(default_factory=dict)
    reasons: dict[str, str] = Field(default_factory=dict)

    def save(self, path: Path) -> None:
        write_text(path, self.model_dump_json(indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> Plan:
        """The plan in a plan.json. Raises: StageError where there is none, ConfigError where an edit broke it."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except OSError:
            raise StageError(f"{path} does not exist; run `medseg prepare` first.") from None
        return parse_plan(text, str(path))


def parse_plan(text: str, where: str) -> Plan:
    """A plan from its JSON text. Raises: ConfigError."""
    import json

    try:
        content = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{where} is not valid JSON ({error}).") from None
    return parse(Plan, content, where)


def make_plan(
    fingerprint: Fingerprint,
    config: PlanConfig,
    scheme: LabelScheme,
    channels: tuple[str, ...],
    modality: str | list[str],
    models: dict[str, dict[str, Any]],
) -> Plan:
    """The plan for these training cases; values that `config` states win over the rules.

    Args:
        modality: one name for all channels, or one for each.
        models: architecture and options of each model.
    Raises: ConfigError where the number of modalities does not fit the channels.
    """
    reasons: dict[str, str] = {}
    spacing = _spacing(fingerprint, config, reasons)
    shape = _prepared_shape(fingerprint, spacing)
    patch = _patch(shape, config, reasons)
    preprocessing = Preprocessing(
        physical=fingerprint.physical,
        spacing=spacing,
        crop_nonzero=_crop(fingerprint, reasons),
        normalisation=_normalisation(fingerprint, modality, reasons),
        order=3,
    )
    return Plan(
        preprocessing=preprocessing,
        channels=list(channels),
        n_channels=fingerprint.channels,
        patch_voxels=patch,
        batch_size=_batch(patch, config, reasons),
        flips=_flips(patch, scheme, fingerprint.physical, config, reasons),
        models=models,
        reasons=reasons,
    )


def _spacing(fingerprint: Fingerprint, config: PlanConfig, reasons: dict[str, str]) -> tuple[float, float, float] | None:
    if config.spacing_mm:
        reasons["spacing"] = "stated in the configuration"
        return config.spacing_mm
    if not fingerprint.physical:
        reasons["spacing"] = "the files state no physical size, so every picture keeps its own pixels"
        return None
    spacings = np.array([c.spacing for c in fingerprint.cases])
    spacing = np.median(spacings, axis=0)
    reasons["spacing"] = f"median voxel size of {len(spacings)} training cases"
    coarse = int(spacing.argmax())
    if spacing[coarse] > ANISOTROPIC * np.delete(spacing, coarse).max() and fingerprint.median_shape[2] > 1:
        spacing[coarse] = max(np.percentile(spacings[:, coarse], 10), np.delete(spacing, coarse).max())
        reasons["spacing"] += (
            f"; the {AXIS_NAMES[coarse]} axis is over {ANISOTROPIC:g} times coarser, there the 10th percentile is taken"
        )
    x, y, z = spacing
    return float(x), float(y), float(z)


def _prepared_shape(fingerprint: Fingerprint, spacing: tuple[float, float, float] | None) -> tuple[int, int, int]:
    shapes = np.array([c.shape for c in fingerprint.cases], float)
    if spacing is not None:
        shapes = shapes * np.array([c.spacing for c in fingerprint.cases]) / np.array(spacing)
    x, y, z = np.maximum(1, np.round(np.median(shapes, axis=0))).astype(int)
    return int(x), int(y), int(z)


def _patch(shape: tuple[int, int, int], config: PlanConfig, reasons: dict[str, str]) -> tuple[int, int, int]:
    if config.patch_voxels:
        reasons["patch_voxels"] = "stated in the configuration"
        return config.patch_voxels
    planar = shape[2] == 1
    most = PATCH_VOXELS_2D if planar else PATCH_VOXELS_3D
    patch = np.array(shape, float)
    while patch.prod() > most:
        # The longest side gives way first, so the patch nears a cube as it shrinks.
        patch[patch.argmax()] *= 0.9
    rounded = [
        1 if n == 1 else max(PATCH_MULTIPLE, int(np.ceil(p / PATCH_MULTIPLE)) * PATCH_MULTIPLE)
        for n, p in zip(shape, patch, strict=True)
    ]
    reasons["patch_voxels"] = (
        f"the median prepared case is {' x '.join(map(str, shape))} voxels; shrunk to about {most} voxels and rounded up to "
        f"multiples of {PATCH_MULTIPLE}" + (", one voxel thick: a 2D network" if planar else "")
    )
    return rounded[0], rounded[1], rounded[2]


def _batch(patch: tuple[int, int, int], config: PlanConfig, reasons: dict[str, str]) -> int:
    if config.batch_size:
        reasons["batch_size"] = "stated in the configuration"
        return config.batch_size
    batch = BATCH_2D if 1 in patch else BATCH_3D
    reasons["batch_size"] = (
        f"{batch} patches a step: the least that batch statistics bear, and many small steps learn faster than few large ones"
    )
    return batch


def _crop(fingerprint: Fingerprint, reasons: dict[str, str]) -> bool:
    share = float(np.median([c.nonzero_box_share for c in fingerprint.cases]))
    crop = share < 1 - MANY_ZEROS
    reasons["crop_nonzero"] = f"the box of non-zero voxels fills {share:.0%} of the median scan" + (
        ", so the rest is cut off" if crop else ""
    )
    return crop


def _normalisation(fingerprint: Fingerprint, modality: str | list[str], reasons: dict[str, str]) -> list[Normalisation]:
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


def _rule(fingerprint: Fingerprint, channel: int, modality: str, many_zeros: bool) -> Normalisation:
    if modality == "ct":
        measured = np.array([c.foreground[channel] for c in fingerprint.cases if c.foreground])
        if not len(measured):
            raise ConfigError("no training case holds any structure, so CT intensities cannot be planned; check the labels.")
        mean, std, low, _, high = np.median(measured, axis=0)
        return FixedNormalisation(low=float(low), high=float(high), mean=float(mean), std=max(float(std), 1e-6))
    return CaseNormalisation(clip=modality == "microscopy", nonzero=modality == "mr" and many_zeros, joint=modality == "rgb")


def _flips(
    patch: tuple[int, int, int], scheme: LabelScheme, physical: bool, config: PlanConfig, reasons: dict[str, str]
) -> list[int]:
    axes = [axis for axis in range(3) if patch[axis] > 1]
    if config.flips is not None:
        reasons["flips"] = "stated in the configuration"
        return [axis for axis in config.flips if axis in axes]
    paired = any(s.paired_with for s in scheme.structures)
    words = {word for name in scheme.names for word in re.split(r"[^a-z]+", name.lower())}
    named = [axis for axis, ends in AXIS_WORDS.items() if words & ends or (axis == 0 and paired)]
    if not physical:
        reasons["flips"] = (
            "the structures' names tell sides apart and the files state no axes, so nothing is mirrored"
            if named
            else "pictures without anatomical axes may be mirrored along all"
        )
        return [] if named else axes
    text = "; ".join(f"none along {AXIS_NAMES[a]}: the structures' names tell its ends apart" for a in named if a in axes)
    reasons["flips"] = text or "no structure's name tells the ends of an axis apart"
    return [axis for axis in axes if axis not in named]
