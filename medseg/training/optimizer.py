"""Optimizers by name."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from medseg.training.config import OptimizerConfig


def build_optimizer(config: OptimizerConfig, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """SGD (with Nesterov momentum) or AdamW (Loshchilov & Hutter 2019), all parameters updated in one pass (fused)."""
    if config.name == "sgd":
        return torch.optim.SGD(
            parameters, config.rate, momentum=config.momentum, weight_decay=config.decay, nesterov=config.nesterov, fused=True
        )
    return torch.optim.AdamW(parameters, config.rate, weight_decay=config.decay, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
