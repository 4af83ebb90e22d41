"""Soft Dice loss, and the pieces that losses over class indices share."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from medseg.core.config import Section
from medseg.core.labels import IGNORE

CITE = "Milletari et al. 2016 (soft Dice); Drozdzal et al. 2016"


class DiceConfig(Section):
    """Settings of the soft Dice loss.

    Args:
        batch: one Dice over all samples of the batch; false: one a sample, then their mean. Over the batch it is steadier
            where patches are small and a structure is absent from many of them.
        smooth: added above and below, in voxels: a class absent from reference and prediction has Dice 1, and a class
            that is absent from the reference alone about 0 with a gradient that stays bounded.
        background: count the background as a class too.
    """

    batch: bool = True
    smooth: float = Field(default=1e-5, gt=0)
    background: bool = False


def log_probabilities(logits: Tensor) -> Tensor:
    """Log softmax over the classes, in float32 whatever the precision of the network."""
    return F.log_softmax(logits, dim=1, dtype=torch.float32)


def dice_loss(probabilities: Tensor, classes: Tensor, config: DiceConfig) -> Tensor:
    """1 - mean soft Dice over the classes, ignored voxels left out.

    Args:
        probabilities: (B, K, ...) float32.
        classes: (B, ...) unsigned or long, 255 ignored.
    Returns: float32 scalar in [0, 1].
    """
    first = 0 if config.background else 1
    indices = torch.arange(first, probabilities.shape[1], dtype=classes.dtype, device=classes.device)
    target = classes[:, None] == indices.view(1, -1, *[1] * (classes.ndim - 1))
    valid = (classes != IGNORE)[:, None]
    share = probabilities[:, first:]
    spatial = list(range(2, share.ndim))
    axes = [0, *spatial] if config.batch else spatial
    overlap = (share * target).sum(axes)
    volumes = (share * valid).sum(axes) + target.sum(axes)
    dice = (2 * overlap + config.smooth) / (volumes + config.smooth)
    return 1 - dice.mean()


def true_class(log_p: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Log probability of each voxel's own class, and which voxels count; both (B, 1, ...)."""
    valid = (classes != IGNORE)[:, None]
    index = classes[:, None].long()
    return log_p.gather(1, torch.where(valid, index, 0)), valid
