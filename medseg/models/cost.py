"""What one training step of a network takes, counted on shapes alone: nothing is computed and no memory is used."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from medseg.models.registry import build_network

# float32 each: the parameter, its gradient, two moments of the optimizer, and the copy that convolutions lay out for themselves.
PARAMETER_BYTES = 5 * 4
TRANSIENTS = 2  # gradients as large as the largest kept picture that live at once on the way back
LOSS_PICTURES = 8  # of the size of the network's answer: probabilities, one-hot classes, their products and gradients
COUNTED = 2  # patches: batch norm has no spread to train with where one patch ends in a single voxel
BACKWARD = 2  # operations of the way back, in those of the way there: one convolution for the input, one for the kernel


@dataclass(frozen=True)
class StepCost:
    """One training step in float32.

    Args:
        parameters: numbers that are learnt.
        patch_bytes: memory that each patch of the batch takes, beside the parameters.
        patch_operations: floating-point operations for each patch, there and back.
        overhangs: some convolution is longer than the picture that it sees (as `overhangs`).
    """

    parameters: int
    patch_bytes: int
    patch_operations: float
    overhangs: bool

    def memory_gb(self, batch_size: int) -> float:
        """Peak memory of a step, in 10^9 bytes."""
        return (PARAMETER_BYTES * self.parameters + batch_size * self.patch_bytes) / 1e9

    def operations(self, batch_size: int) -> float:
        return batch_size * self.patch_operations


def step_cost(
    architecture: str, options: dict[str, Any], *, in_channels: int, n_outputs: int, patch_voxels: tuple[int, int, int]
) -> StepCost:
    """The cost of a step of this network. Raises: ConfigError as `build_network`."""
    return _counted(architecture, json.dumps(options, sort_keys=True, default=str), in_channels, n_outputs, patch_voxels)


@lru_cache(maxsize=256)
def _counted(architecture: str, options: str, in_channels: int, n_outputs: int, patch: tuple[int, int, int]) -> StepCost:
    with torch.device("meta"):  # shapes without numbers
        network = build_network(
            architecture,
            json.loads(options),
            in_channels=in_channels,
            n_classes=n_outputs,
            patch_voxels=patch,
            pretrained=False,
        ).train()
        picture = torch.empty((COUNTED, in_channels, *patch))
    own = {tensor.untyped_storage()._cdata for tensor in network.state_dict(keep_vars=True).values()}
    kept = {}  # what the way back needs, each piece of memory once

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    convolutions: list[tuple[nn.Module, tuple[int, ...]]] = []
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            module.register_forward_pre_hook(lambda module, inputs: convolutions.append((module, inputs[0].shape[2:])))
    counter = FlopCounterMode(display=False)
    with counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        answers = network(picture)
    sizes = [storage.nbytes() for storage in kept.values()]
    loss = LOSS_PICTURES * sum(answer.numel() * answer.element_size() for answer in answers)
    return StepCost(
        parameters=sum(p.numel() for p in network.parameters()),
        patch_bytes=(sum(sizes) + TRANSIENTS * max(sizes) + loss) // COUNTED,
        patch_operations=(1 + BACKWARD) * counter.get_total_flops() / COUNTED,
        overhangs=any(overhangs(module, size) for module, size in convolutions),
    )


def overhangs(convolution: Any, size: Sequence[int]) -> bool:
    """Whether a convolution is longer, along some axis, than the picture that it sees.

    In bfloat16 on a CPU, oneDNN 3 computes wrong gradients of such kernels (numbers from memory that was never written), or
    writes beyond its own memory: seen with torch 2.13 for kernels of 3 over 2 slices, of 5 over 4 and of 7 over 1 to 4, and with
    steps of 2 over a single voxel; `tests/models/test_cost.py` asks again. On pictures of two axes only steps above 1 are wrong.

    Args:
        convolution: an nn.Conv2d or nn.Conv3d.
        size: of the picture along its spatial axes.
    """
    if len(size) == 2 and max(convolution.stride) == 1:
        return False
    return any(1 < kernel > voxels for kernel, voxels in zip(convolution.kernel_size, size, strict=True))
