"""How long to train and how fast to learn: decided once, then counted in steps."""

from __future__ import annotations

import math
from pathlib import Path

from medseg.core.config import Section, load_yaml, parse
from medseg.core.errors import StageError
from medseg.core.files import write_json

POLY_POWER = 0.9  # Chen et al. 2017 (DeepLab); nnU-Net
VALIDATION_SHARE = 0.07  # of the time, for validation during training
FEWEST_VALIDATIONS = 4  # among which the best checkpoint is sought
SAFETY = 0.96  # of the budget: the rest is for checkpoints, curves and the model file


class Schedule(Section):
    """What was decided when a training started, `schedule.json`; a resumed run reads it and decides nothing anew.

    Only what the training met is added later: too little memory, a return to a lower learning rate (in `reasons`), and what
    another machine or the configuration of a later sitting made of it (`decide.take_over`).

    Args:
        steps: optimizer steps in all. validation_interval: epochs between validations; the last epoch is always validated.
        compile, channels_last, workers, augment_on, precision, device: the choices made for this machine.
        micro_batches: in which a batch goes through the network, where the GPU's memory does not hold it whole.
        step_seconds, validation_seconds: measured for them; None where nothing was.
        reasons: how each was derived, in words.
    """

    steps: int
    steps_per_epoch: int
    validation_interval: int
    compile: bool = False
    channels_last: bool = False
    workers: int = 0
    augment_on: str = "cpu"
    micro_batches: int = 1
    precision: str = "float32"
    device: str = "cpu"
    step_seconds: float | None = None
    validation_seconds: float | None = None
    reasons: dict[str, str] = {}

    @property
    def epochs(self) -> int:
        return math.ceil(self.steps / self.steps_per_epoch)

    def ends_epoch(self, step: int) -> bool:
        """Whether an epoch ends after so many steps."""
        return step % self.steps_per_epoch == 0 or step == self.steps

    def validates(self, epoch: int) -> bool:
        """Whether the network is validated at the end of this epoch (1, 2, ...)."""
        return epoch == self.epochs or epoch % self.validation_interval == 0

    def save(self, path: Path) -> None:
        write_json(path, self.model_dump())

    @classmethod
    def load(cls, path: Path) -> Schedule | None:
        """The schedule that a training was started with, or None where there is none. Raises: ConfigError."""
        return parse(cls, load_yaml(path), str(path)) if path.exists() else None


def learning_rate_factor(kind: str, step: int, steps: int, warmup: int = 0) -> float:
    """The share of the learning rate at a step (0 ... steps - 1).

    Args:
        kind: `cosine` (Loshchilov & Hutter 2017, without restarts) or `poly`.
        warmup: first steps over which the rate rises evenly.
    """
    warmup = min(warmup, steps // 2)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    done = (step - warmup) / max(1, steps - warmup)
    return 0.5 * (1 + math.cos(math.pi * done)) if kind == "cosine" else float((1 - done) ** POLY_POWER)


def validation_interval(windows: int, batch_size: int, steps_per_epoch: int) -> int:
    """Epochs between validations so that these take about `VALIDATION_SHARE` of the time.

    Counted, not timed, for it decides among which epochs the best is sought, and that must not depend on the clock.

    Args:
        windows: that one validation predicts. A prediction costs about a third of a training step on as many patches.
    """
    in_steps = windows / (3 * batch_size)
    return max(1, math.ceil(in_steps * (1 - VALIDATION_SHARE) / VALIDATION_SHARE / steps_per_epoch))


def often_enough(interval: int, epochs: int) -> int:
    """The interval, shortened where it would leave fewer than `FEWEST_VALIDATIONS`."""
    return max(1, min(interval, epochs // FEWEST_VALIDATIONS))


def steps_in(seconds: float, step_seconds: float, validation_seconds: float, steps_per_epoch: int, interval: int) -> int:
    """Steps that fit into the time together with their validations, one of them at the very end.

    Raises: StageError where not even one fits.
    """
    usable = seconds * SAFETY - validation_seconds
    steps = int(usable / (step_seconds + validation_seconds / (steps_per_epoch * interval)))
    if steps < 1:
        raise StageError(
            f"`training.budget_minutes` leaves {max(seconds, 0):.0f} s, and one step takes {step_seconds:.1f} s and validation "
            f"{validation_seconds:.1f} s; give more time, or a smaller patch or network."
        )
    return steps
