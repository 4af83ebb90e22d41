"""What this machine computes on, and in which numbers."""

from __future__ import annotations

import shutil
from typing import Literal

import torch
from torch import nn

from medseg.core.errors import ConfigError
from medseg.inference.device import DTYPES as DTYPES
from medseg.inference.device import find_device, has_bfloat16
from medseg.models.layers import to_channels_last
from medseg.planning.machine import BFLOAT16_GFLOPS, bfloat16_unit
from medseg.training.config import TrainingConfig

COMPILING_PAYS_AFTER_MINUTES = 5.0  # on a CPU, where compiling takes half a minute to a minute and a half


def choose_device(setting: str) -> tuple[torch.device, str]:
    """The device and the reason. Raises: ConfigError where a GPU is asked for and there is none."""
    device = find_device(setting, "training.device")
    if device.type == "cuda":
        return device, torch.cuda.get_device_name()
    return device, "stated in the configuration" if setting == "cpu" else "there is no GPU"


def choose_precision(
    setting: str, device: torch.device, overhangs: bool
) -> tuple[Literal["float32", "bfloat16", "float16"], str]:
    """The name of the type to compute in (`DTYPES`), and the reason.

    Args:
        overhangs: of the network (`medseg.models.cost`): its gradients in bfloat16 would be wrong on a CPU.
    Raises: ConfigError for float16 on a CPU, where its small range has no loss scaling to help it, and for bfloat16 there where
        gradients would be wrong.
    """
    if setting == "bfloat16" and device.type == "cpu" and overhangs:
        raise ConfigError(
            "`training.precision` bfloat16: this network has convolutions longer than the pictures that they see in a patch, and "
            "on a CPU their gradients come out wrong in it; use auto or float32, or a larger `plan.patch_voxels`."
        )
    if setting == "float16" and device.type == "cpu":
        raise ConfigError("`training.precision` float16 needs a GPU; use auto, float32 or bfloat16.")
    if setting != "auto":
        return setting, "stated in the configuration"  # type: ignore[return-value]
    if device.type == "cuda":
        if has_bfloat16(device):
            return "bfloat16", "the GPU computes in it"
        return "float16", "the GPU has no bfloat16"
    if overhangs:
        return "float32", "convolutions longer than the pictures that they see come out wrong in bfloat16 on a CPU"
    if unit := bfloat16_unit():
        return "bfloat16", f"the processor has {unit}"
    # Emulated bfloat16 is many times slower than float32.
    return "float32", f"the processor has neither {' nor '.join(BFLOAT16_GFLOPS)}, so bfloat16 would be emulated"


def computes_in(precision: str, device: torch.device, overhangs: bool) -> bool:
    """Whether the device computes in this precision itself, and rightly."""
    if precision == "float32":
        return True
    if device.type == "cpu":
        return precision == "bfloat16" and bfloat16_unit() is not None and not overhangs
    return precision == "float16" or has_bfloat16(device)


def choose_layout(setting: str, device: torch.device, precision: str, planar: bool, compiled: bool) -> tuple[bool, str]:
    """Whether convolutions work channels-last, and the reason. Never timed: it changes the last digits.

    Args:
        planar: of a 2D network. compiled: whether compiling will be tried.
    """
    if setting != "auto":
        return setting == "true", "stated in the configuration"
    if device.type == "cpu" and precision == "float32" and planar:
        return False, "2D convolutions in float32 on a CPU gain nothing by it"
    if device.type == "cpu" and precision == "bfloat16" and not compiled:
        return False, "on a CPU, norms in bfloat16 that are not compiled are slower with it"
    return True, "convolutions here are faster with it"


def arrange(network: nn.Module, device: torch.device, channels_last: bool) -> nn.Module:
    """The network on the device, its convolutions channels-last if so wished."""
    network.to(device)
    if channels_last:
        to_channels_last(network)
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")
    return network


def compiler_present() -> bool:
    """Whether the C++ compiler that torch.compile needs on a CPU is there."""
    return any(shutil.which(name) for name in ("g++", "clang++", "cl"))


def why_not_compiled(config: TrainingConfig, device: torch.device) -> str | None:
    """The reason for which compiling is not even tried; None where it is. A rule that looks at no clock."""
    if config.compile == "false":
        return "stated in the configuration"
    if device.type != "cpu":
        return None
    if not compiler_present():
        return "there is no C++ compiler"
    if config.compile == "true":
        return None
    if config.budget_minutes is None:
        return "a CPU run counted in epochs is not compiled unless the configuration says so, to give the same numbers again"
    if config.budget_minutes < COMPILING_PAYS_AFTER_MINUTES:
        return f"a budget below {COMPILING_PAYS_AFTER_MINUTES:g} minutes does not pay for compiling"
    return None
