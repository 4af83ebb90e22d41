"""The training of one model, from its first weights to its model file."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from medseg.core.errors import StageError
from medseg.core.files import atomic_path
from medseg.core.progress import progress, say
from medseg.drawing.curves import draw_training_curves
from medseg.losses.registry import build_loss
from medseg.training.checkpoint import Progress, Tensors, load_checkpoint, load_weights, save_checkpoint, save_weights
from medseg.training.dataset import PatchDataset, batches
from medseg.training.decide import compile_network, decide
from medseg.training.job import Job, set_up, training_samples, validation_windows
from medseg.training.schedule import Schedule, learning_rate_factor
from medseg.training.step import Trainer, step_seed
from medseg.training.stop import stop_signals
from medseg.training.validate import Validation, validate

SECONDS_BETWEEN_DRAWINGS = 20.0
LOSSES_READ_TOGETHER = 20  # on a GPU, where reading a loss waits for the device


@dataclass(frozen=True)
class Trained:
    """The best weights, where they came from, and how long the training took."""

    weights: Tensors
    best: Mapping[str, Any]
    schedule: Schedule
    seconds: float


def train_model(job: Job) -> Trained:
    """Train, or go on with a training that was interrupted; the same steps give the same weights either way (on a CPU).

    Raises: StageError for a loss that is no number, a prepared case that is missing, or a budget below one step.
    """
    started = time.perf_counter()
    trainer, schedule = set_up(job)
    dataset = training_samples(job)
    before = Schedule.load(job.folder / "schedule.json")
    if before is None:
        validation = partial(_validation_seconds, job, trainer)
        schedule = decide(job.settings, schedule, trainer, dataset, validation, started)
        schedule.save(job.folder / "schedule.json")
    elif schedule.compile:
        trainer.forward = compile_network(trainer.network)
    state = load_checkpoint(job.folder / "last.safetensors", trainer.network, trainer.optimizer) or Progress()
    if state.scaler:
        trainer.scaler.load_state_dict(state.scaler)
    _tell(job, schedule, state)
    _run(job, trainer, schedule, state, dataset, Clock(state.seconds, started))
    return Trained(load_weights(job.folder / "best.safetensors"), state.best, schedule, state.seconds)


def _run(job: Job, trainer: Trainer, schedule: Schedule, state: Progress, dataset: PatchDataset, clock: Clock) -> None:
    """The loop over steps, from `state.step` to the schedule's end."""
    settings = job.settings
    on_gpu = trainer.device.type == "cuda"
    waiting: list[tuple[torch.Tensor, list[str]]] = []
    stream = batches(dataset, state.step, schedule.steps, schedule.workers, pin=on_gpu)
    with progress(f"train {job.name}", schedule.steps) as advance, stop_signals() as stop:
        for batch in stream:
            factor = learning_rate_factor(settings.schedule, state.step, schedule.steps, settings.warmup_steps)
            rate = settings.optimizer.rate * factor
            loss = trainer.step(batch, rate, step_seed(job.seed, state.step))
            state.step += 1
            waiting.append((loss, batch["case_id"]))
            ends = state.step % schedule.steps_per_epoch == 0 or state.step == schedule.steps
            stopping = stop.number is not None
            saves = ends or stopping or clock.since_saving > settings.checkpoint_minutes * 60
            if saves or not on_gpu or len(waiting) >= LOSSES_READ_TOGETHER:
                _read_losses(job, state, waiting)  # before saving: a state that is no number must not be kept
            if ends:
                _end_epoch(job, trainer, schedule, state, rate, clock)
            if saves:
                state.seconds, state.scaler = clock.seconds, trainer.scaler.state_dict()
                save_checkpoint(job.folder / "last.safetensors", trainer.network, trainer.optimizer, state)
                clock.saved()
            advance(state.step, _note(state))
            if stopping:
                stop.leave()


def _read_losses(job: Job, state: Progress, waiting: list[tuple[torch.Tensor, list[str]]]) -> None:
    """Losses from the device into the state. Raises: StageError naming the batch's cases where one is no number."""
    for index, (loss, case_ids) in enumerate(waiting):
        value = float(loss)
        if not math.isfinite(value):
            step = state.step - len(waiting) + index + 1
            raise StageError(
                f"train {job.name}: the loss became {value} at step {step} (cases {', '.join(case_ids)}); "
                "look at these cases, or lower `training.optimizer.learning_rate` and run with `--redo train`."
            )
        state.losses.append(value)
    waiting.clear()


def _end_epoch(job: Job, trainer: Trainer, schedule: Schedule, state: Progress, rate: float, clock: Clock) -> None:
    """A row of the log; a validation and perhaps a new best where it is due."""
    epoch = math.ceil(state.step / schedule.steps_per_epoch)
    row: dict[str, Any] = {"epoch": epoch, "step": state.step, "learning_rate": rate}
    row["train_loss"] = sum(state.losses) / len(state.losses)
    if schedule.validates(epoch):
        result = _validate(job, trainer, job.val_ids)
        row |= {"val_loss": result.loss, "val_dice": result.dice}
        row |= {f"val_dice_{name}": value for name, value in result.structures.items()}
        if not state.best or result.dice >= state.best["dice"]:  # of equals the later: it has learnt longer
            state.best = {"epoch": epoch, "step": state.step, "dice": result.dice, "structures": result.structures}
            save_weights(job.folder / "best.safetensors", trainer.network.state_dict(), state.best)
    state.losses = []
    state.log.append({**row, "seconds": round(clock.seconds, 1)})
    log = write_log(job.folder / "log.csv", state.log)
    if state.step == schedule.steps or clock.since_drawing > SECONDS_BETWEEN_DRAWINGS:
        draw_training_curves(log, job.folder / "progress.png")
        clock.drawn()


def _validate(job: Job, trainer: Trainer, case_ids: Sequence[str]) -> Validation:
    settings, patch = job.settings, job.plan.patch_voxels
    loss = build_loss(settings.loss, settings.loss_options, job.labels.n_classes)
    overlap, batch = settings.validation_overlap, job.batch_size
    cases = (job.store.open(case_id) for case_id in case_ids)  # one open at a time
    return validate(trainer.network, cases, job.labels, loss, patch, overlap, batch, trainer.device, trainer.dtype)


def _validation_seconds(job: Job, trainer: Trainer) -> float:
    """What a validation of all cases will take, by the first of them."""
    windows = validation_windows(job)
    start = time.perf_counter()
    _validate(job, trainer, job.val_ids[:1])
    return (time.perf_counter() - start) * sum(windows) / windows[0]


def write_log(path: Path, rows: list[dict[str, Any]]) -> pd.DataFrame:
    """log.csv: one row an epoch; cells of epochs without validation are empty."""
    first = ["epoch", "step", "seconds", "learning_rate", "train_loss"]
    log = pd.DataFrame(rows)
    log = log[[*first, *(c for c in log.columns if c not in first)]]
    with atomic_path(path) as temporary:
        log.to_csv(temporary, index=False)
    return log


def _note(state: Progress) -> str:
    loss = state.losses[-1] if state.losses else state.log[-1]["train_loss"] if state.log else math.nan
    dice = next((row["val_dice"] for row in reversed(state.log) if "val_dice" in row), None)
    return f"loss {loss:.3f}" + ("" if dice is None else f", Dice {dice:.3f}, best {state.best['dice']:.3f}")


def _tell(job: Job, schedule: Schedule, state: Progress) -> None:
    if state.step:
        say(f"train {job.name}: goes on after step {state.step} of {schedule.steps}")
        return
    say(f"train {job.name}: {schedule.steps} steps ({schedule.reasons['steps']})")
    for key in ("device", "precision", "channels_last", "compile", "workers", "validation_interval"):
        say(f"  {key} {getattr(schedule, key)}: {schedule.reasons.get(key, '')}")


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
