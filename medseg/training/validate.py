"""Validation: whole cases through the sliding window, measured on the prepared grid."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from medseg.core.labels import IGNORE, LabelScheme
from medseg.data.store import PreparedCase
from medseg.inference.runtime import TorchNetwork
from medseg.inference.window import predict_logits
from medseg.metrics.overlap import confusion_matrix, counts_of, dice

MOST_SCORES = 2**24  # that the loss looks at together


@dataclass(frozen=True)
class Validation:
    """Dice of each structure or region (mean over the cases where it is defined; NaN where it is in none) and mean loss.

    Args:
        dice: mean over the structures that have one; 0 where none has.
        loss: of whole cases, without the weight map of a boundary loss; it follows a training and chooses nothing.
    """

    dice: float
    structures: dict[str, float] = field(default_factory=dict)
    loss: float = math.nan


@dataclass(frozen=True)
class CaseScore:
    """Dice of each of `labels.measured` in one case, NaN where it is in neither mask, and the loss."""

    dice: list[float]
    loss: float


def score_cases(
    network: nn.Module,
    cases: Iterable[PreparedCase],
    labels: LabelScheme,
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    patch: tuple[int, int, int],
    overlap: float,
    batch: int,
    device: torch.device,
    dtype: torch.dtype,
) -> list[CaseScore]:
    """Predict each case and compare. The network comes back in training mode.

    The loss of a case of more than 2^24 scores is the mean over slabs along its longest axis, weighted by their voxels without
    ignored ones: the memory that it takes then grows no further.
    """
    network.eval()
    run = TorchNetwork(network, device, dtype)
    scores = []
    for case in cases:
        logits = predict_logits(run, np.array(case.image), patch, overlap, batch, device=device)
        classes = np.array(case.classes)
        matrix = confusion_matrix(classes, labels.decide(logits), labels.n_classes)
        scores.append(CaseScore(measured_dice(matrix, labels), _loss_in_slabs(loss, logits, classes)))
    network.train()
    return scores


def _loss_in_slabs(
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    logits: npt.NDArray[np.float32],
    classes: npt.NDArray[np.uint8],
) -> float:
    """Args: (n_outputs, X, Y, Z) logits and (X, Y, Z) classes of a case."""
    size = max(classes.shape)
    axis, depth = classes.shape.index(size), max(1, MOST_SCORES * size // logits.size)
    count = math.ceil(size / depth)
    slabs = zip(np.array_split(logits, count, axis + 1), np.array_split(classes, count, axis), strict=True)
    values, voxels = [], []
    with torch.inference_mode():
        for scores, truth in slabs:
            values.append(float(loss(torch.from_numpy(scores)[None], torch.from_numpy(truth)[None])))
            voxels.append(int((truth != IGNORE).sum()))
    return math.fsum(value * (n / max(1, sum(voxels))) for value, n in zip(values, voxels, strict=True))


def measured_dice(matrix: npt.NDArray[np.int64], labels: LabelScheme) -> list[float]:
    """Dice of each structure, or each region, from the confusion matrix of the classes."""
    return [dice(counts_of(matrix, classes)) for classes in labels.measured.values()]


def summarise(scores: Sequence[CaseScore], names: Sequence[str]) -> Validation:
    """Means over cases, then over structures; undefined Dice are left out."""
    table = np.array([score.dice for score in scores])
    structures = {
        name: float(np.mean(c)) if len(c := column[~np.isnan(column)]) else math.nan
        for name, column in zip(names, table.T, strict=True)
    }
    defined = [value for value in structures.values() if not math.isnan(value)]
    loss = float(np.mean([score.loss for score in scores]))
    return Validation(float(np.mean(defined)) if defined else 0.0, structures, loss)
