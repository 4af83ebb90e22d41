"""Deep supervision: one loss over outputs of several resolutions (Lee et al. 2015)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def supervised(
    loss: Callable[[Tensor, Tensor], Tensor], weights: Sequence[float]
) -> Callable[[Sequence[Tensor], Tensor], Tensor]:
    """The weighted sum of `loss` over a network's training outputs, each against the classes at its resolution.

    Args:
        weights: one an output; a network's `deep_supervision_weights`.
    Returns: function of (logits from fine to coarse, classes (B, X, Y, Z) at full resolution), giving a scalar.
    """

    def total(outputs: Sequence[Tensor], classes: Tensor) -> Tensor:
        losses = [w * loss(logits, downsample(classes, logits.shape[2:])) for w, logits in zip(weights, outputs, strict=True)]
        return torch.stack(losses).sum()

    return total


def downsample(classes: Tensor, size: Sequence[int]) -> Tensor:
    """The classes (B, ...) of the voxels nearest to the centres of a coarser output of `size`.

    A coarse voxel spans ceil(full / size) voxels, the last one perhaps fewer.
    """
    for axis, wanted in enumerate(size, start=1):
        full = classes.shape[axis]
        if full != wanted:
            step = -(-full // wanted)
            index = torch.arange(wanted, device=classes.device) * step + step // 2
            classes = classes.index_select(axis, index.clamp(max=full - 1))
    return classes
