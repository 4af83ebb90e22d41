"""Sums over the processes of a distributed training."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def total(values: Tensor) -> Tensor:
    """The sum of `values` over all processes, or `values` where there is one process.

    Numerators and denominators of a loss go through here, so that every process has the loss of the global batch. Gradients
    flow back through the sum to every process; the mean that DistributedDataParallel takes of them is then the gradient that one
    process would have found. Where no gradient is wanted nothing is summed: in validation each process has cases of its own, and
    perhaps more of them than another.
    """
    alone = not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1
    if alone or not torch.is_grad_enabled():
        return values
    return _Sum.apply(values)  # type: ignore[no-untyped-call]


class _Sum(torch.autograd.Function):
    """All processes depend on all values alike, so the gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return _summed(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _summed(gradient)


def _summed(values: Tensor) -> Tensor:
    result = values.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(result)
    return result
