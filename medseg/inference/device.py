"""What this machine computes on, and in which numbers: the part that training and prediction share."""

from __future__ import annotations

import torch

from medseg.core.errors import ConfigError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def find_device(setting: str, where: str = "device") -> torch.device:
    """`auto`, `cpu` or `cuda` as a device; `auto` is the GPU where there is one.

    Args:
        where: what the user calls the setting.
    Raises: ConfigError where a GPU is asked for and there is none.
    """
    if setting == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"`{where}` is cuda and this machine has no GPU that PyTorch can use; use auto or cpu.")
    return torch.device("cuda" if setting != "cpu" and torch.cuda.is_available() else "cpu")


def has_bfloat16(device: torch.device) -> bool:
    """Whether a GPU computes in bfloat16 itself; False on a CPU."""
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
