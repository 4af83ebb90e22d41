"""One optimizer step: the same for timing, training and tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from medseg.core.errors import StageError
from medseg.losses.boundary import WEIGHT
from medseg.training.augment import CLASSES, IMAGE
from medseg.training.distributed import ALONE, Processes
from medseg.training.on_device import Applier
from medseg.training.optimizer import set_learning_rate

Batch = dict[str, Any]
MEMORY_REASON = "the GPU's memory does not hold the batch whole, so its gradients are accumulated over micro-batches"


@dataclass
class Trainer:
    """A network with everything that changes it.

    Args:
        network: in training mode, on `device`.
        forward: the network itself, or its distributed or compiled form on the same weights.
        loss: of (list of logits, classes, weight of each voxel or None) -> scalar, deep supervision included.
        dtype: of the arithmetic; sums and weights stay float32.
        scaler: keeps float16 gradients from vanishing; disabled otherwise.
        processes: that train together; each steps on its own share of the batch.
        micro_batches: in which a batch goes through the network, gradients accumulated; doubled where memory does not hold it.
            The loss is then the mean of theirs, each by its share of the samples: for a Dice over the batch, a Dice of each.
        augment: bends and changes the batch on the device, where workers leave that to it.
    """

    network: nn.Module
    forward: Callable[[torch.Tensor], list[torch.Tensor]]
    loss: Callable[[list[torch.Tensor], torch.Tensor, torch.Tensor | None], torch.Tensor]
    optimizer: torch.optim.Optimizer
    device: torch.device
    dtype: torch.dtype
    gradient_clip: float
    scaler: torch.amp.GradScaler
    processes: Processes = ALONE
    micro_batches: int = 1
    augment: Applier | None = None

    def step(self, batch: Batch, learning_rate: float, seed: int) -> torch.Tensor:
        """Learn from one batch, of which tensors may be on the device already; returns its loss, still on the device.

        Args:
            seed: of dropout and anything else that the network draws.
        Raises: StageError where memory does not hold one sample, or the patches while they are made.
        """
        set_learning_rate(self.optimizer, learning_rate)
        if self.augment is not None:
            batch = self._augmented(self.augment, batch)
        while (loss := self._attempt(batch, seed)) is None:
            self._halve(len(batch[CLASSES]))
        return loss

    def _augmented(self, augment: Applier, batch: Batch) -> Batch:
        try:
            return augment(batch, self.device)
        except torch.OutOfMemoryError:
            raise StageError(
                "the GPU's memory does not hold the patches while they are made; set `training.augment_on` to cpu."
            ) from None

    def _attempt(self, batch: Batch, seed: int) -> torch.Tensor | None:
        """The step's loss, or None where the device's memory did not suffice; nothing is learnt then."""
        torch.manual_seed(seed)
        try:
            loss = self._gradients(batch)
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.network.parameters(), self.gradient_clip)
            self.scaler.step(self.optimizer)
            self.scaler.update()
        except torch.OutOfMemoryError:
            return None  # the frames that hold the failed step's tensors are gone only after this
        finally:
            self.optimizer.zero_grad(set_to_none=True)
        return loss

    def _gradients(self, batch: Batch) -> torch.Tensor:
        """The loss, its gradients in the parameters."""
        parts = {key: batch[key].tensor_split(self.micro_batches) for key in (IMAGE, CLASSES, WEIGHT) if key in batch}
        losses = []
        for index in range(self.micro_batches):
            piece = {key: values[index].to(self.device, non_blocking=True) for key, values in parts.items()}
            with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
                loss = self.loss(self.forward(piece[IMAGE]), piece[CLASSES], piece.get(WEIGHT))
            loss = loss * (len(piece[CLASSES]) / len(batch[CLASSES]))
            self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
        return torch.stack(losses).sum()

    def _halve(self, samples: int) -> None:
        """Take the batch in twice as many micro-batches from now on."""
        if self.processes.world > 1:  # the others wait for this one in the middle of the step
            raise StageError(
                "the GPU's memory does not hold the share of the batch that a process has; train with more processes, or lower "
                "`plan.batch_size`, then run `medseg prepare` and train with `--redo train`."
            )
        if self.micro_batches >= samples:
            raise StageError(
                "the GPU's memory does not hold one patch of this network; lower `plan.memory_gb` or `plan.patch_voxels`, then "
                "run `medseg prepare` and train with `--redo train`."
            )
        self.micro_batches = min(2 * self.micro_batches, samples)
        self.scaler = fresh_scaler(self.scaler, self.device)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def fresh_scaler(scaler: torch.amp.GradScaler, device: torch.device) -> torch.amp.GradScaler:
    """The same scale without memory of a step that was begun."""
    result = torch.amp.GradScaler(device.type, enabled=scaler.is_enabled())
    if scaler.is_enabled():
        result.load_state_dict(scaler.state_dict())
    return result


def step_seed(seed: int, step: int, rank: int = 0) -> int:
    """The seed of a step's own random numbers in one of the processes."""
    return int(np.random.SeedSequence([seed, step, *([rank] if rank else [])]).generate_state(1)[0])
