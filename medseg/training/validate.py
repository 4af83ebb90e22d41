"""Validation: whole cases through the sliding window, measured on the prepared grid."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from medseg.core.labels import LabelScheme
from medseg.data.store import PreparedCase
from medseg.inference.window import predict_logits, window_starts
from medseg.metrics.overlap import confusion_matrix, counts_of, dice


@dataclass(frozen=True)
class Validation:
    """Dice of each structure (mean over the cases where it is defined; NaN where it is in none) and mean loss.

    Args:
        dice: mean over the structures that have one; 0 where none has.
    """

    dice: float
    structures: dict[str, float] = field(default_factory=dict)
    loss: float = math.nan


def validate(
    network: nn.Module,
    cases: Iterable[PreparedCase],
    labels: LabelScheme,
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    patch: tuple[int, int, int],
    overlap: float,
    batch: int,
    device: torch.device,
    dtype: torch.dtype,
) -> Validation:
    """Predict each case and compare. The network comes back in training mode."""
    network.eval()
    scores, losses = [], []
    for case in cases:
        logits = predict_logits(network, np.array(case.image), patch, overlap, batch, (), device, dtype)
        classes = np.array(case.classes)
        matrix = confusion_matrix(classes, logits.argmax(0).astype(np.uint8), labels.n_classes)
        scores.append([dice(counts_of(matrix, k)) for k in range(1, labels.n_classes)])
        with torch.inference_mode():
            losses.append(float(loss(torch.from_numpy(logits)[None], torch.from_numpy(classes)[None])))
    network.train()
    return summarise(np.array(scores), labels.names, float(np.mean(losses)))


def summarise(scores: np.ndarray, names: Sequence[str], loss: float = math.nan) -> Validation:
    """Means over cases, then over structures, of (cases, structures) Dice; NaN cells are left out."""
    structures = {
        name: float(np.mean(c)) if len(c := s[~np.isnan(s)]) else math.nan for name, s in zip(names, scores.T, strict=True)
    }
    defined = [value for value in structures.values() if not math.isnan(value)]
    return Validation(float(np.mean(defined)) if defined else 0.0, structures, loss)


def count_windows(shape: Sequence[int], patch: Sequence[int], overlap: float) -> int:
    """Windows that the sliding window takes over a case."""
    return math.prod(len(window_starts(max(n, p), p, overlap)) for n, p in zip(shape, patch, strict=True))
