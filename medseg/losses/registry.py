"""The losses by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import Field, model_validator
from torch import Tensor

from medseg.core.config import Section, parse
from medseg.core.errors import ConfigError
from medseg.losses.dice import CITE as CITE_DICE
from medseg.losses.dice import DiceConfig, dice_loss, log_probabilities
from medseg.losses.focal import CITE_FOCAL, cross_entropy, focal_loss

# (logits (B, K, X, Y, Z), classes (B, X, Y, Z) with 255 ignored) -> float32 scalar
LossFunction = Callable[[Tensor, Tensor], Tensor]


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


def _dice(config: DiceConfig) -> LossFunction:
    return lambda logits, classes: dice_loss(log_probabilities(logits).exp(), classes, config)


def _cross_entropy(config: CrossEntropyConfig) -> LossFunction:
    return lambda logits, classes: cross_entropy(log_probabilities(logits), classes)


def _dice_ce(config: DiceCEConfig) -> LossFunction:
    def loss(logits: Tensor, classes: Tensor) -> Tensor:
        log_p = log_probabilities(logits)
        return config.dice_weight * dice_loss(log_p.exp(), classes, config) + config.ce_weight * cross_entropy(log_p, classes)

    return loss


def _dice_focal(config: DiceFocalConfig) -> LossFunction:
    def loss(logits: Tensor, classes: Tensor) -> Tensor:
        log_p = log_probabilities(logits)
        dice = dice_loss(log_p.exp(), classes, config)
        return config.dice_weight * dice + config.focal_weight * focal_loss(log_p, classes, config.gamma)

    return loss


@dataclass(frozen=True)
class Loss:
    """One row of `LOSSES`: its settings, how to build it, and whom to cite."""

    config: type[Section]
    build: Callable[[Any], LossFunction]
    cite: str


LOSSES: dict[str, Loss] = {
    "ce": Loss(CrossEntropyConfig, _cross_entropy, "cross-entropy"),
    "dice": Loss(DiceConfig, _dice, CITE_DICE),
    "dice_ce": Loss(DiceCEConfig, _dice_ce, f"{CITE_DICE}; with cross-entropy, Isensee et al. 2021"),
    "dice_focal": Loss(DiceFocalConfig, _dice_focal, f"{CITE_DICE}; {CITE_FOCAL}"),
}


def build_loss(name: str, options: dict[str, Any], n_classes: int) -> LossFunction:
    """The loss of a configuration: a function of logits (B, K, X, Y, Z) and classes (B, X, Y, Z), 255 ignored.

    It computes in float32 under autocast and stays finite where a class, or every voxel, is absent.

    Args:
        options: settings of the loss.
        n_classes: K, structures plus background.
    Raises: ConfigError for an unknown name or setting, or fewer than two classes.
    """
    if name not in LOSSES:
        raise ConfigError(f"training.loss: there is no loss `{name}`; use one of {', '.join(LOSSES)}.")
    if n_classes < 2:
        raise ConfigError(f"training.loss: {n_classes} class is nothing to tell apart; name at least one structure.")
    row = LOSSES[name]
    return row.build(parse(row.config, options, f"training.loss: {name}"))
