"""Cross-entropy and focal loss."""

from __future__ import annotations

from torch import Tensor

from medseg.losses.dice import true_class

CITE_FOCAL = "Lin et al. 2017 (focal loss)"


def cross_entropy(log_p: Tensor, classes: Tensor) -> Tensor:
    """Mean of -log p of the true class over the voxels that count; 0 where none does.

    Args:
        log_p: (B, K, ...) float32 log probabilities.
        classes: (B, ...) unsigned or long, 255 ignored.
    """
    log_true, valid = true_class(log_p, classes)
    return -(log_true * valid).sum() / valid.sum().clamp(min=1)


def focal_loss(log_p: Tensor, classes: Tensor, gamma: float) -> Tensor:
    """Mean of -(1 - p)^gamma log p of the true class: cross-entropy that looks away from easy voxels (Lin et al. 2017).

    Args as `cross_entropy`; gamma 0 is cross-entropy.
    """
    log_true, valid = true_class(log_p, classes)
    # 1 - p from the logarithm itself: rounding may not make it negative, whose power has no gradient.
    hard = -log_true.expm1()
    return -(hard**gamma * log_true * valid).sum() / valid.sum().clamp(min=1)
