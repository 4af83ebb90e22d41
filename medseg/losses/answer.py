"""A network's answer beside the truth, as every loss reads it: softmax over classes, or a sigmoid for each region."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property, lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from medseg.core.labels import IGNORE


class Answer(ABC):
    """Logits (B, C, ...) and classes (B, ...) with 255 ignored, C being classes or regions. All arithmetic is in float32.

    Args:
        voxel_weight: (B, 1, ...) float32, 0 where ignored: what a voxel counts in a mean over voxels.
    """

    def __init__(self, logits: Tensor, classes: Tensor, voxel_weight: Tensor) -> None:
        self.logits, self.classes, self.voxel_weight = logits, classes, voxel_weight

    @cached_property
    def valid(self) -> Tensor:
        """(B, 1, ...) bool: voxels that are not ignored."""
        return (self.classes != IGNORE)[:, None]

    @abstractmethod
    def shares(self, background: bool) -> tuple[Tensor, Tensor]:
        """(B, C', ...) probabilities and (B, C', ...) bool truth of everything that an overlap is measured of."""

    @property
    @abstractmethod
    def log_true(self) -> Tensor:
        """(B, 1 or R, ...) log probability of what is true: of a voxel's class, or of its being in or out of each region."""


class ClassAnswer(Answer):
    """One of several classes at each voxel, the background among them."""

    @cached_property
    def _log_p(self) -> Tensor:
        return F.log_softmax(self.logits, dim=1, dtype=torch.float32)

    def shares(self, background: bool) -> tuple[Tensor, Tensor]:
        first = 0 if background else 1
        indices = torch.arange(first, self.logits.shape[1], dtype=self.classes.dtype, device=self.classes.device)
        target = self.classes[:, None] == indices.view(1, -1, *[1] * (self.classes.ndim - 1))
        return self._log_p.exp()[:, first:], target

    @cached_property
    def log_true(self) -> Tensor:
        return self._log_p.gather(1, torch.where(self.valid, self.classes[:, None].long(), 0))


class RegionAnswer(Answer):
    """Yes or no for each of several regions, which may contain each other.

    Args:
        target: (B, R, ...) bool, False where ignored.
    """

    def __init__(self, logits: Tensor, classes: Tensor, voxel_weight: Tensor, target: Tensor) -> None:
        super().__init__(logits.float(), classes, voxel_weight)
        self.target = target

    def shares(self, background: bool) -> tuple[Tensor, Tensor]:
        return self.logits.sigmoid(), self.target

    @cached_property
    def log_true(self) -> Tensor:
        return F.logsigmoid(torch.where(self.target, self.logits, -self.logits))


def on_device(values: Tensor) -> Callable[[torch.device], Tensor]:
    """`values` on any device, copied there once: a copy in every step would make the processor wait for the device."""
    return lru_cache(values.to)
