"""What the machine grants a plan: the kind of its processor, memory and time. The only part of planning that looks at it."""

from __future__ import annotations

import os
from typing import Literal

import torch

from medseg.core.config import Section
from medseg.core.limits import available_cores, memory_limit

GPU_SHARE, CPU_SHARE = 0.8, 0.5  # of the memory: a CPU's is shared with the workers and with everything else
FLOAT32_GFLOPS = 40.0  # a core, in convolutions
BFLOAT16_GFLOPS = {"AMX": 150.0, "AVX-512 BF16": 100.0}  # the same where the processor has such a unit
MOST_GB = 10.0  # more is not taken unasked, so that plans made on most machines agree


class Granted(Section):
    """What a training step may take.

    Args:
        device: what training computes on.
        memory_gb: 10^9 bytes, of the GPU or of the machine.
        cores: of the processor, those that this process may use.
        core_gflops: operations that a core is taken to do in a second; a rule, never timed, so that plans repeat.
        minutes: wall time of one model's training; None where the configuration counts epochs.
        reason: where the memory comes from.
    """

    device: Literal["cpu", "gpu"] = "cpu"
    memory_gb: float = MOST_GB
    cores: int = 1
    core_gflops: float = FLOAT32_GFLOPS
    minutes: float | None = None
    reason: str = "stated"


def granted_here(
    memory_gb: float | None, device: Literal["auto", "cpu", "cuda"], minutes: float | None, precision: str = "auto"
) -> Granted:
    """What this machine and the configuration grant.

    Args:
        memory_gb: as stated; None asks the machine.
        device, precision: of `training`.
    """
    gpu = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    if memory_gb is not None:
        reason = "stated in the configuration"
    elif gpu and torch.cuda.is_available():
        memory_gb, reason = (
            _at_most(GPU_SHARE * torch.cuda.get_device_properties(0).total_memory),
            f"{GPU_SHARE:.0%} of the GPU's",
        )
    elif not gpu and hasattr(os, "sysconf"):
        physical, limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), memory_limit()
        memory_gb = _at_most(CPU_SHARE * min(physical, limit))
        reason = f"{CPU_SHARE:.0%} of " + ("the machine's" if physical <= limit else "what its control group (cgroup) may use")
    else:
        memory_gb, reason = MOST_GB, "what most machines have: this one does not say"
    if memory_gb == MOST_GB and "%" in reason:
        reason += f", at most {MOST_GB:g}"
    return Granted(
        device="gpu" if gpu else "cpu",
        memory_gb=memory_gb,
        cores=available_cores(),
        core_gflops=BFLOAT16_GFLOPS[unit] if precision in ("auto", "bfloat16") and (unit := bfloat16_unit()) else FLOAT32_GFLOPS,
        minutes=minutes,
        reason=reason,
    )


def bfloat16_unit() -> str | None:
    """The part of the processor that multiplies in bfloat16; None where there is none and bfloat16 would be emulated."""
    asked = {"AMX": "_is_amx_tile_supported", "AVX-512 BF16": "_is_avx512_bf16_supported"}
    return next((unit for unit, name in asked.items() if getattr(torch.cpu, name, lambda: False)()), None)


def _at_most(size_bytes: float) -> float:
    return round(min(size_bytes / 1e9, MOST_GB), 1)
