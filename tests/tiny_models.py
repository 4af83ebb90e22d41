"""Model files with small networks, for tests of everything that uses a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from medseg.core.labels import LabelScheme, Structure
from medseg.data.normalise import CaseNormalisation
from medseg.data.preprocess import Preprocessing
from medseg.inference.bundle import Bundle, Description, write_bundle
from medseg.models.registry import build_network
from medseg.planning.plan import Plan

OPTIONS = {"features": [4, 8]}
SCHEME = LabelScheme(structures=[Structure(name="liver", id=3), Structure(name="tumour", id=300)])


def tiny_plan(**changes: Any) -> Plan:
    """A plan for single-channel 3D scans in mm; `changes` replace its values, `spacing` and `physical` its preprocessing's."""
    about = {key: changes.pop(key) for key in ("spacing", "physical", "crop_nonzero") if key in changes}
    n_channels = changes.get("n_channels", 1)
    preprocessing = Preprocessing(
        **{"physical": True, "spacing": (1.0, 1.5, 2.0), "order": 1, "normalisation": [CaseNormalisation()] * n_channels, **about}
    )
    values = {
        "preprocessing": preprocessing,
        "channels": ["image"],
        "n_channels": 1,
        "patch_voxels": (16, 16, 8),
        "batch_size": 2,
        "flips": [0, 1],
    }
    return Plan(**(values | changes))


def tiny_bundle(seed: int = 0, weights: int = 1, scheme: LabelScheme = SCHEME, **changes: Any) -> Bundle:
    """A U-Net with random weights, drawn with `seed`."""
    plan = tiny_plan(**changes)
    states = []
    for index in range(weights):
        torch.manual_seed(seed + index)
        network = build_network(
            "unet", OPTIONS, in_channels=plan.n_channels, n_classes=scheme.n_outputs, patch_voxels=plan.patch_voxels
        )
        states.append(network.state_dict())
    description = Description(model="tiny", architecture="unet", options=OPTIONS, plan=plan, labels=scheme)
    return Bundle(description, tuple(states), "# tiny\n\nFor research use.\n")


def write_tiny_model(path: Path, **changes: Any) -> Path:
    """Write `tiny_bundle(**changes)` to `path`."""
    write_bundle(path, tiny_bundle(**changes))
    return path
