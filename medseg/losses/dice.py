"""Soft Dice loss, and the overlaps that Dice and Tversky share."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from medseg.core.config import Section
from medseg.losses.answer import Answer
from medseg.losses.reduce import total

CITE = "Milletari et al. 2016 (soft Dice); Drozdzal et al. 2016"


class OverlapConfig(Section):
    """What overlaps are measured over.

    Args:
        batch: one overlap over all samples of the batch; false: one a sample, then their mean. Over the batch it is steadier
            where patches are small and a structure is absent from many of them.
        smooth: added above and below, in voxels: a class absent from reference and prediction has overlap 1, and a class
            that is absent from the reference alone about 0 with a gradient that stays bounded.
        background: count the background as a class too (regions have none).
    """

    batch: bool = True
    smooth: float = Field(default=1e-5, gt=0)
    background: bool = False


class DiceConfig(OverlapConfig):
    """Settings of the soft Dice loss."""


def overlaps(answer: Answer, config: OverlapConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Soft volumes without ignored voxels: common to prediction and reference, of the prediction, of the reference.

    Returns: three tensors (samples, C) float32, one sample (of all processes) with `config.batch`.
    """
    share, target = answer.shares(config.background)
    axes = list(range(2, share.ndim))
    volumes = torch.stack([(share * target).sum(axes), (share * answer.valid).sum(axes), target.sum(axes).float()])
    if config.batch:
        volumes = total(volumes.sum(1, keepdim=True))
    common, predicted, reference = volumes
    return common, predicted, reference


def mean_sample(values: Tensor, config: OverlapConfig) -> Tensor:
    """Mean of (samples, C) over C, then over the samples of all processes."""
    of_samples = values.mean(1)
    if config.batch:
        return of_samples.squeeze(0)
    sums = total(torch.stack([of_samples.sum(), of_samples.new_full((), len(of_samples))]))
    return sums[0] / sums[1]


def dice_loss(answer: Answer, config: OverlapConfig) -> Tensor:
    """1 - mean soft Dice over the classes or regions, ignored voxels left out; float32 scalar in [0, 1]."""
    common, predicted, reference = overlaps(answer, config)
    return 1 - mean_sample((2 * common + config.smooth) / (predicted + reference + config.smooth), config)
