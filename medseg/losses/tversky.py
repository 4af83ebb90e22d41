"""Tversky loss: an overlap that can punish missed voxels more than invented ones."""

from __future__ import annotations

from pydantic import Field, model_validator
from torch import Tensor

from medseg.losses.answer import Answer
from medseg.losses.dice import OverlapConfig, mean_sample, overlaps

CITE = "Salehi et al. 2017 (Tversky loss); Abraham & Khan 2019 (focal Tversky)"
SMALLEST = 1e-6  # below it the root of a focal Tversky loss would have no finite gradient


class TverskyConfig(OverlapConfig):
    """Settings of the Tversky loss.

    Args:
        alpha: weight of false positives. beta: of false negatives. Both 0.5: Dice. Salehi et al. found 0.3 and 0.7 best for
            small lesions.
        gamma: above 1 the loss is (1 - index)^(1 / gamma), which cares longer for structures that are nearly right; Abraham &
            Khan used 4/3.
    """

    alpha: float = Field(default=0.3, ge=0)
    beta: float = Field(default=0.7, ge=0)
    gamma: float = Field(default=1.0, ge=1, le=3)

    @model_validator(mode="after")
    def _some_error_counts(self) -> TverskyConfig:
        if self.alpha == self.beta == 0:
            raise ValueError("`alpha` and `beta` are both 0, so no error would cost anything; give one a weight")
        return self


def tversky_loss(answer: Answer, config: TverskyConfig) -> Tensor:
    """Mean of 1 - TP / (TP + alpha FP + beta FN) over the classes or regions, ignored voxels left out (Salehi et al. 2017)."""
    common, predicted, reference = overlaps(answer, config)
    errors = config.alpha * (predicted - common) + config.beta * (reference - common)
    lost = 1 - (common + config.smooth) / (common + errors + config.smooth)
    if config.gamma != 1:
        lost = lost.clamp(min=SMALLEST) ** (1 / config.gamma)
    return mean_sample(lost, config)
