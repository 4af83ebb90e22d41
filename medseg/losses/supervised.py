"""Deep supervision: one loss over outputs of several resolutions (Lee et al. 2015)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from medseg.losses.registry import LossFunction


def supervised(loss: LossFunction, weights: Sequence[float]) -> Callable[..., Tensor]:
    """The weighted sum of `loss` over a network's training outputs, each against the classes at its resolution.

    Args:
        weights: one an output; a network's `deep_supervision_weights`.
    Returns: function of (logits from fine to coarse, classes (B, X, Y, Z) at full resolution, voxel weights of the same shape
        or None), giving a scalar.
    """

    def total(outputs: Sequence[Tensor], classes: Tensor, weight: Tensor | None = None) -> Tensor:
        losses = []
        for share, logits in zip(weights, outputs, strict=True):
            size = logits.shape[2:]
            coarse = None if weight is None else downsample(weight, size)
            losses.append(share * loss(logits, downsample(classes, size), coarse))
        return torch.stack(losses).sum()

    return total


def downsample(picture: Tensor, size: Sequence[int]) -> Tensor:
    """Of classes or weights (B, ...), the voxels nearest to the centres of a coarser output of `size`.

    A coarse voxel spans ceil(full / size) voxels, the last one perhaps fewer.
    """
    for axis, wanted in enumerate(size, start=1):
        full = picture.shape[axis]
        if full != wanted:
            step = -(-full // wanted)
            index = torch.arange(wanted, device=picture.device) * step + step // 2
            picture = picture.index_select(axis, index.clamp(max=full - 1))
    return picture
