"""One optimizer step: the same for timing, training and tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from medseg.training.augment import CLASSES, IMAGE
from medseg.training.optimizer import set_learning_rate

Batch = dict[str, Any]


@dataclass
class Trainer:
    """A network with everything that changes it.

    Args:
        network: in training mode, on `device`.
        forward: the network itself, or its compiled form on the same weights.
        loss: of (list of logits, classes) -> scalar, deep supervision included.
        dtype: of the arithmetic; sums and weights stay float32.
        scaler: keeps float16 gradients from vanishing; disabled otherwise.
    """

    network: nn.Module
    forward: Callable[[torch.Tensor], list[torch.Tensor]]
    loss: Callable[[list[torch.Tensor], torch.Tensor], torch.Tensor]
    optimizer: torch.optim.Optimizer
    device: torch.device
    dtype: torch.dtype
    gradient_clip: float
    scaler: torch.amp.GradScaler

    def step(self, batch: Batch, learning_rate: float, seed: int) -> torch.Tensor:
        """Learn from one batch; returns its loss, still on the device.

        Args:
            seed: of dropout and anything else that the network draws.
        """
        torch.manual_seed(seed)
        set_learning_rate(self.optimizer, learning_rate)
        image = batch[IMAGE].to(self.device, non_blocking=True)
        classes = batch[CLASSES].to(self.device, non_blocking=True)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            loss = self.loss(self.forward(image), classes)
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.network.parameters(), self.gradient_clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()


def step_seed(seed: int, step: int) -> int:
    """The seed of a step's own random numbers."""
    return int(np.random.SeedSequence([seed, step]).generate_state(1)[0])
