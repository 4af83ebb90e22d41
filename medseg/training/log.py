"""What a training says of itself: log.csv, and lines on the console."""

from __future__ import annotations

import math
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from medseg.core.files import atomic_path
from medseg.core.progress import say
from medseg.training.checkpoint import Progress
from medseg.training.distributed import Processes
from medseg.training.job import Job
from medseg.training.schedule import Schedule

if TYPE_CHECKING:
    from medseg.training.track import Trackers

FIRST_COLUMNS = ["epoch", "step", "seconds", "learning_rate", "train_loss"]
CHOICES = ("device", "precision", "channels_last", "compile", "workers", "augment_on", "micro_batches", "validation_interval")


def write_log(path: Path, rows: list[dict[str, Any]]) -> pd.DataFrame:
    """log.csv: one row an epoch; cells of epochs without validation are empty."""
    log = pd.DataFrame(rows)
    log = log[[*FIRST_COLUMNS, *(c for c in log.columns if c not in FIRST_COLUMNS)]]
    with atomic_path(path) as temporary:
        log.to_csv(temporary, index=False)
    return log


def note(state: Progress) -> str:
    """The last loss and Dice, for the progress display."""
    loss = state.losses[-1] if state.losses else state.log[-1]["train_loss"] if state.log else math.nan
    dice = next((row["val_dice"] for row in reversed(state.log) if "val_dice" in row), None)
    best = f", best {state.best['dice']:.3f}" if state.best else ""
    return f"loss {loss:.3f}" + ("" if dice is None else f", Dice {dice:.3f}") + best


def tell(name: str, schedule: Schedule, state: Progress, before: Schedule | None) -> None:
    """Say what is about to be done, and why so.

    Args:
        before: the schedule as an earlier sitting left it.
    """
    if state.step:
        say(f"train {name}: goes on after step {state.step} of {schedule.steps}")
        for key in CHOICES:
            if before is not None and getattr(schedule, key) != getattr(before, key):
                say(f"  {key} {getattr(schedule, key)}, and no longer {getattr(before, key)}: {schedule.reasons[key]}")
        return
    if before is not None:
        say(f"train {name}: was begun before and left no checkpoint that can be read; it begins anew, as it was decided then")
    say(f"train {name}: {schedule.steps} steps ({schedule.reasons['steps']})")
    for key in CHOICES:
        if key in schedule.reasons:
            say(f"  {key} {getattr(schedule, key)}: {schedule.reasons[key]}")


def trackers(job: Job, processes: Processes, schedule: Schedule, state: Progress) -> AbstractContextManager[Trackers | None]:
    """The trackers that the configuration names, for the main process of a training that has steps to do."""
    if not job.settings.track or not processes.main or (state.step == schedule.steps and not state.epoch_open):
        return nullcontext()
    from medseg.training.track import open_trackers

    return open_trackers(job.settings.track, job.folder, job.name, job.settings.model_dump(mode="json"), state.step)


@dataclass
class Clock:
    """Seconds of training over all sittings, since the last checkpoint and since the last drawing."""

    before: float
    start: float
    saved_at: float = field(default_factory=time.perf_counter)
    drawn_at: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        return self.before + time.perf_counter() - self.start

    @property
    def since_saving(self) -> float:
        return time.perf_counter() - self.saved_at

    @property
    def since_drawing(self) -> float:
        return time.perf_counter() - self.drawn_at

    def saved(self) -> None:
        self.saved_at = time.perf_counter()

    def drawn(self) -> None:
        self.drawn_at = time.perf_counter()
