"""One case through a model: read, preprocess, sliding window, restore to the scan's own grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from medseg.core.errors import CaseError, ModelFileError
from medseg.core.volume import LabelMap
from medseg.data.transforms import apply, scan_transform
from medseg.inference.bundle import Bundle, read_bundle
from medseg.inference.config import EngineConfig
from medseg.inference.device import find_device, find_dtype
from medseg.inference.postprocess import postprocess
from medseg.inference.restore import restore
from medseg.inference.window import predict_logits
from medseg.models.layers import to_channels_last

Spacing = tuple[float, float, float] | None


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model on a device, ready to predict."""

    bundle: Bundle
    networks: list[nn.Module]
    device: torch.device
    dtype: torch.dtype


def load_model(path: Path, settings: EngineConfig, sha256: str = "") -> LoadedModel:
    """The model in a file, on the device and with the arithmetic that the settings ask for.

    Args:
        sha256: what the file must have; empty accepts any.
    Raises: ModelFileError; ConfigError where a GPU is asked for and there is none.
    """
    device = find_device(settings.device)
    bundle = read_bundle(path)
    if sha256 and bundle.sha256 != sha256:
        raise ModelFileError(f"{path} was replaced while it was in use; start again.")
    networks = bundle.networks(device)
    for network in networks:
        to_channels_last(network)
    return LoadedModel(bundle, networks, device, find_dtype(settings.precision, device))


def predict_case(
    model: LoadedModel, images: Sequence[Path], settings: EngineConfig, spacing_mm: Spacing = None, where: str = "scan"
) -> LabelMap:
    """The classes of one scan, on its own grid.

    Args:
        images: one file a channel, in the order of the plan's channels.
        spacing_mm: voxel size of files that state none.
        where: the case, for errors.
    Returns: (X, Y, Z) uint8 class indices, 0 the background; `LabelScheme.decode` gives the ids to write.
    Raises: CaseError where the scan cannot be used with this model.
    """
    bundle, plan = model.bundle, model.bundle.plan
    scan = apply(scan_transform(plan.preprocessing, spacing_mm), {"image": tuple(images), "case_id": where})
    logits = None
    for network, temperature in zip(model.networks, bundle.temperatures, strict=True):
        answer = predict_logits(
            network,
            scan["image"],
            plan.patch_voxels,
            overlap=settings.overlap,
            batch=settings.batch or plan.batch_size,
            mirror_axes=mirror_axes(bundle, settings),
            device=model.device,
            dtype=model.dtype,
            swaps=bundle.swaps,
        )
        answer /= temperature * len(model.networks)
        logits = answer if logits is None else np.add(logits, answer, out=logits)
    assert logits is not None
    if not np.isfinite(logits).all():
        raise CaseError(f"{where}: the network's answer is not finite; use `precision: float32`, or train the model again.")
    classes = restore(logits, scan["grid"], scan["image_grid"], bundle.labels)
    if bundle.description.postprocessing is None:
        return classes
    return LabelMap(postprocess(classes.array, bundle.description.postprocessing, bundle.labels, classes.grid), classes.grid)


def mirror_axes(bundle: Bundle, settings: EngineConfig) -> tuple[int, ...]:
    """The axes to mirror along: those that the model allows, where mirroring is asked for."""
    return bundle.allowed_flips if settings.mirror else ()
