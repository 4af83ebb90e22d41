"""Cross-entropy and focal loss."""

from __future__ import annotations

import torch
from torch import Tensor

from medseg.losses.answer import Answer
from medseg.losses.reduce import total

CITE_FOCAL = "Lin et al. 2017 (focal loss)"


def cross_entropy(answer: Answer) -> Tensor:
    """Mean of -log p of the truth, weighed by `answer.voxel_weight`; 0 where no voxel counts.

    Weights as in PyTorch: sum of w l over sum of w. Of regions it is the binary cross-entropy, mean over voxels and regions.
    """
    return _weighted_mean(-answer.log_true, answer.voxel_weight)


def focal_loss(answer: Answer, gamma: float) -> Tensor:
    """Mean of -(1 - p)^gamma log p of the truth: cross-entropy that looks away from easy voxels (Lin et al. 2017).

    Args as `cross_entropy`; gamma 0 is cross-entropy. Class weights are the paper's alpha.
    """
    # 1 - p from the logarithm itself: rounding may not make it negative, whose power has no gradient; nor has 0 below a square.
    hard = (-answer.log_true.expm1()).clamp(min=torch.finfo(torch.float32).tiny)
    return _weighted_mean(-(hard**gamma) * answer.log_true, answer.voxel_weight)


def _weighted_mean(losses: Tensor, weight: Tensor) -> Tensor:
    """Mean of (B, C, ...) over voxels by weight (B, 1, ...), and over C, of all processes; 0 where all weights are 0."""
    sums = total(torch.stack([(losses * weight).sum(), losses.shape[1] * weight.sum()]))
    return sums[0] / sums[1].clamp(min=torch.finfo(sums.dtype).tiny)
