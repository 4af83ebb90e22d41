"""The losses by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from monai.transforms import MapTransform
from pydantic import Field, model_validator
from torch import Tensor

from medseg.core.config import Section, parse
from medseg.core.errors import ConfigError
from medseg.core.labels import IGNORE, LabelScheme
from medseg.losses.answer import Answer, ClassAnswer, RegionAnswer, on_device
from medseg.losses.boundary import CITE as CITE_BOUNDARY
from medseg.losses.boundary import BoundaryConfig, BoundaryWeightd
from medseg.losses.dice import CITE as CITE_DICE
from medseg.losses.dice import DiceConfig, dice_loss
from medseg.losses.focal import CITE_FOCAL, cross_entropy, focal_loss
from medseg.losses.tversky import CITE as CITE_TVERSKY
from medseg.losses.tversky import TverskyConfig, tversky_loss


class LossFunction(Protocol):
    """A loss of logits (B, n_outputs, X, Y, Z), classes (B, X, Y, Z) with 255 ignored and, for a loss that has a
    `weight_map`, its map (B, X, Y, Z) float32. Returns a float32 scalar."""

    def __call__(self, logits: Tensor, classes: Tensor, weight: Tensor | None = None) -> Tensor: ...


class CrossEntropyConfig(Section):
    """Cross-entropy has no settings."""


class DiceCEConfig(DiceConfig):
    """Weights of the two terms of Dice + cross-entropy, and the settings of Dice."""

    dice_weight: float = Field(default=1.0, ge=0)
    ce_weight: float = Field(default=1.0, ge=0)

    @model_validator(mode="after")
    def _something_to_learn(self) -> DiceCEConfig:
        if self.dice_weight == self.ce_weight == 0:
            raise ValueError("`dice_weight` and `ce_weight` are both 0; give one a weight")
        return self


class DiceFocalConfig(DiceConfig):
    """Weights of the two terms of Dice + focal loss, the focusing `gamma`, and the settings of Dice."""

    dice_weight: float = Field(default=1.0, ge=0)
    focal_weight: float = Field(default=1.0, ge=0)
    gamma: float = Field(default=2.0, ge=0)

    @model_validator(mode="after")
    def _something_to_learn(self) -> DiceFocalConfig:
        if self.dice_weight == self.focal_weight == 0:
            raise ValueError("`dice_weight` and `focal_weight` are both 0; give one a weight")
        return self


class DiceBoundaryConfig(DiceCEConfig, BoundaryConfig):
    """Weights of the two terms of Dice + boundary-weighted cross-entropy, and the settings of both."""


def _dice_ce(answer: Answer, config: DiceCEConfig) -> Tensor:
    return config.dice_weight * dice_loss(answer, config) + config.ce_weight * cross_entropy(answer)


def _dice_focal(answer: Answer, config: DiceFocalConfig) -> Tensor:
    return config.dice_weight * dice_loss(answer, config) + config.focal_weight * focal_loss(answer, config.gamma)


@dataclass(frozen=True)
class Loss:
    """One row of `LOSSES`.

    Args:
        config: its settings.
        measure: the loss of an answer with these settings.
        cite: whom to cite.
        weighs_classes: it has a mean over voxels, in which classes can have weights.
        weight_map: of its settings: a transform of samples that adds "weight" (X, Y, Z) float32 to "classes"; None where the
            loss needs no map.
    """

    config: type[Section]
    measure: Callable[[Answer, Any], Tensor]
    cite: str
    weighs_classes: bool = True
    weight_map: Callable[[Any], MapTransform] | None = None


LOSSES: dict[str, Loss] = {
    "ce": Loss(CrossEntropyConfig, lambda answer, _: cross_entropy(answer), "cross-entropy"),
    "dice": Loss(DiceConfig, dice_loss, CITE_DICE, weighs_classes=False),
    "dice_ce": Loss(DiceCEConfig, _dice_ce, f"{CITE_DICE}; with cross-entropy, Isensee et al. 2021"),
    "dice_focal": Loss(DiceFocalConfig, _dice_focal, f"{CITE_DICE}; {CITE_FOCAL}"),
    "tversky": Loss(TverskyConfig, tversky_loss, CITE_TVERSKY, weighs_classes=False),
    "boundary_ce": Loss(BoundaryConfig, lambda answer, _: cross_entropy(answer), CITE_BOUNDARY, weight_map=BoundaryWeightd),
    "dice_boundary_ce": Loss(DiceBoundaryConfig, _dice_ce, f"{CITE_DICE}; {CITE_BOUNDARY}", weight_map=BoundaryWeightd),
}


def build_loss(
    name: str, options: dict[str, Any], labels: LabelScheme, class_weights: Sequence[float] | None = None
) -> LossFunction:
    """The loss of a configuration.

    It computes in float32 under autocast, ignores voxels of class 255, stays finite where a class, or every voxel, is absent,
    and is that of the global batch where several processes train. Where the labels have regions it takes its sigmoid form:
    Dice of each region, binary cross-entropy.

    Args:
        options: settings of the loss.
        class_weights: of the cross-entropy part, one a class, the background first.
    Raises: ConfigError for an unknown name or setting, or class weights where there is nothing that they could weigh.
    """
    if name not in LOSSES:
        raise ConfigError(f"training.loss: there is no loss `{name}`; use one of {', '.join(LOSSES)}.")
    row = LOSSES[name]
    config = parse(row.config, options, f"training.loss: {name}")
    weight_of = on_device(_weights(name, labels, class_weights))
    region_of = None if labels.membership is None else on_device(_by_class(torch.from_numpy(labels.membership)))

    def loss(logits: Tensor, classes: Tensor, weight: Tensor | None = None) -> Tensor:
        index = classes.long()
        voxel_weight = weight_of(classes.device)[index]
        if weight is not None:
            voxel_weight = voxel_weight + weight * (classes != IGNORE)
        if region_of is None:
            return row.measure(ClassAnswer(logits, classes, voxel_weight[:, None]), config)
        target = region_of(classes.device)[:, index].movedim(0, 1)
        return row.measure(RegionAnswer(logits, classes, voxel_weight[:, None], target), config)

    return loss


def _weights(name: str, labels: LabelScheme, class_weights: Sequence[float] | None) -> Tensor:
    """(256,) float32: what a voxel of each class counts; 0 for ignored ones."""
    if class_weights is not None and labels.regions:
        raise ConfigError("training.class_weights: regions overlap, so classes have no weights of their own; leave it out.")
    if class_weights is not None and not LOSSES[name].weighs_classes:
        with_part = ", ".join(n for n, row in LOSSES.items() if row.weighs_classes)
        raise ConfigError(f"training.class_weights: the loss `{name}` has no cross-entropy part to weigh; use {with_part}.")
    return _by_class(torch.tensor([1.0] * labels.n_classes if class_weights is None else class_weights, dtype=torch.float32))


def _by_class(values: Tensor) -> Tensor:
    """(..., n_classes) as (..., 256), to be indexed by uint8 classes; 0 beyond the classes, for ignored voxels too."""
    table = values.new_zeros((*values.shape[:-1], IGNORE + 1))
    table[..., : values.shape[-1]] = values
    return table
