"""Telling a training that diverges from one that learns, by its losses alone."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import nn

WINDOW = 20  # losses of small batches jump; their running mean does not
EXPLODED = 3.0  # times the best running mean
START_MARGIN = 0.1  # above the first running mean, as a share of it: worse than a network that has learnt nothing
LOWER_RATE = 0.3  # of the learning rate, after a return


class Diverged(Exception):
    """The training cannot go on from here.

    Args:
        step: 0-based, whose batch showed it. what: in words.
    """

    def __init__(self, step: int, what: str) -> None:
        super().__init__(what)
        self.step, self.what = step, what


@dataclass
class Trend:
    """Running mean of the last losses; it is part of a checkpoint, so that a resumed training judges alike.

    Args:
        recent: the last losses. start, best: first and smallest running mean; None before there is a whole one.
    """

    recent: list[float] = field(default_factory=list)
    start: float | None = None
    best: float | None = None

    def add(self, loss: float) -> str | None:
        """Take in one step's loss; returns what is wrong, in words, where the training diverges."""
        if not math.isfinite(loss):
            return f"the loss became {loss}"
        self.recent = [*self.recent, loss][-WINDOW:]
        if len(self.recent) < WINDOW:
            return None
        mean = sum(self.recent) / WINDOW
        if mean > self.limit:
            return f"the mean loss of {WINDOW} steps rose to {mean:.3g} after it had been {self.best:.3g}"
        self.start = mean if self.start is None else self.start
        self.best = mean if self.best is None else min(self.best, mean)
        return None

    @property
    def limit(self) -> float:
        """The running mean above which the training has exploded."""
        if self.start is None or self.best is None:
            return math.inf
        return max(EXPLODED * self.best, self.start + START_MARGIN * abs(self.start))

    @property
    def calm(self) -> bool:
        """Whether no recent loss alone is above the limit, which it is while an explosion begins."""
        return all(loss <= self.limit for loss in self.recent)


def finite(network: nn.Module) -> bool:
    """Whether all weights are numbers: a loss shows only what the step before its own did to them."""
    with torch.no_grad():
        return bool(torch.stack([value.isfinite().all() for value in network.state_dict().values()]).all())
