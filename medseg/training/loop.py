"""The training of one model, from its first weights to its best ones."""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

import torch

from medseg.core.files import remove
from medseg.core.progress import progress
from medseg.drawing.curves import draw_training_curves
from medseg.training.checkpoint import Progress, Tensors, propose_best, save_checkpoint, settle_best
from medseg.training.dataset import PatchDataset, batches
from medseg.training.decide import compile_network, decide, leave_to_device
from medseg.training.distributed import ALONE, Processes
from medseg.training.diverging import Diverged, finite
from medseg.training.job import Job, loss_of, set_up, training_samples, validation_windows
from medseg.training.log import Clock, note, tell, trackers, write_log
from medseg.training.recover import best_weights, go_back, resume
from medseg.training.schedule import Schedule, learning_rate_factor
from medseg.training.step import MEMORY_REASON, Trainer, step_seed
from medseg.training.stop import Stop, stop_signals
from medseg.training.validate import CaseScore, Validation, score_cases, summarise

if TYPE_CHECKING:
    from medseg.training.track import Trackers

SECONDS_BETWEEN_DRAWINGS = 20.0
COPIES_SAVED = {"sgd": 2, "adamw": 3}  # the weights and the optimizer's moments
LOSSES_READ_TOGETHER = 20  # on a GPU, where reading a loss waits for the device


@dataclass(frozen=True)
class Trained:
    """The best weights, where they came from, and how long the training took."""

    weights: Tensors
    best: Mapping[str, Any]
    schedule: Schedule
    seconds: float


@dataclass
class Run:
    """A training under way: everything that its functions share."""

    job: Job
    processes: Processes
    trainer: Trainer
    dataset: PatchDataset
    schedule: Schedule
    state: Progress
    clock: Clock
    stop: Stop
    trackers: Trackers | None = None


def train_model(job: Job, processes: Processes = ALONE) -> Trained:
    """Train, or go on with a training that was interrupted; the same steps give the same weights either way (on a CPU).

    Where several processes train, all of them call this, and all of them get the best weights.

    Raises: StageError for a training that diverges twice, too little memory for one patch, a prepared case or best weights
        that are missing, or a budget below one step.
    """
    started = time.perf_counter()
    trainer, schedule = set_up(job, processes)
    dataset = training_samples(job)
    for case_id in job.val_ids:  # one that is missing is found before the first step, as among the training cases
        job.store.open(case_id)
    before = processes.gather(Schedule.load(job.folder / "schedule.json"))[0]
    if before is None:
        measures = partial(_validation_seconds, job, trainer), partial(_saving_seconds, job, trainer)
        schedule = decide(job.settings, schedule, trainer, dataset, *measures, started)
    else:
        if schedule.compile:
            trainer.forward = compile_network(trainer.forward)
        if schedule.augment_on == "device":
            leave_to_device(dataset, trainer)
    state = resume(job, trainer)
    if processes.main:
        tell(job.name, schedule, state, before)
        if schedule != before:
            schedule.save(job.folder / "schedule.json")
    with stop_signals() as stop:
        run = Run(job, processes, trainer, dataset, schedule, state, Clock(state.seconds, started), stop)
        while run.state.step < run.schedule.steps or run.state.epoch_open:
            try:
                with trackers(job, processes, run.schedule, run.state) as run.trackers:
                    _steps(run)
            except Diverged as trouble:
                cases = dataset.cases_of(trouble.step)
                run.state, what = go_back(job, trainer, run.state, trouble, cases)
                _note_down(run, "learning_rate", what)
        if processes.any(stop.number is not None):  # asked in the last moment: all is saved, and what follows takes long
            _leave(run)
    processes.barrier()  # the best weights are in place
    return Trained(best_weights(job), run.state.best, run.schedule, run.state.seconds)


def _steps(run: Run) -> None:
    """The loop over steps, from `run.state.step` to the schedule's end. Raises: Diverged; StageError."""
    job, processes, trainer, schedule, state, clock = run.job, run.processes, run.trainer, run.schedule, run.state, run.clock
    settings, on_gpu = job.settings, trainer.device.type == "cuda"
    waiting: list[torch.Tensor] = []
    stream = batches(run.dataset, state.step, schedule.steps, schedule.workers, on_gpu, processes.rank, processes.world)
    title = f"train {job.name}"
    display = progress(title, schedule.steps) if processes.main else contextlib.nullcontext(lambda done, note="": None)
    with display as advance, contextlib.closing(stream):  # type: ignore[type-var]
        if state.epoch_open and schedule.ends_epoch(state.step):  # it was left in the validation
            _end_epoch(run)
            _save(run, good=state.trend.calm)
        for batch in stream:
            rate = _learning_rate(run, state.step)
            waiting.append(trainer.step(batch, rate, step_seed(job.seed, state.step, processes.rank)))
            state.step += 1
            ends = schedule.ends_epoch(state.step)
            stopping = processes.any(run.stop.number is not None)
            saves = ends or stopping or processes.any(clock.since_saving > settings.checkpoint_minutes * 60)
            if saves or not on_gpu or len(waiting) >= LOSSES_READ_TOGETHER:
                _read_losses(run, waiting)
            if saves:
                _require_finite(run)  # before anything is saved
            if ends:
                _end_epoch(run)
            if saves:
                _save(run, good=ends and state.trend.calm)
            if trainer.micro_batches != run.schedule.micro_batches:
                _note_down(run, "micro_batches", MEMORY_REASON, micro_batches=trainer.micro_batches)
            advance(state.step, note(state))
            if stopping:
                _leave(run)


def _leave(run: Run) -> NoReturn:
    run.processes.barrier()  # nobody leaves before the state is saved
    run.stop.leave()


def _learning_rate(run: Run, step: int) -> float:
    settings = run.job.settings
    factor = learning_rate_factor(settings.schedule, step, run.schedule.steps, settings.warmup_steps)
    return settings.optimizer.rate * factor * run.state.learning_rate_scale


def _read_losses(run: Run, waiting: list[torch.Tensor]) -> None:
    """Losses from the device into the state. Raises: Diverged, on all processes alike."""
    first = run.state.step - len(waiting)
    trouble: tuple[int, str] | None = None
    for step, loss in enumerate(torch.stack(waiting).tolist(), start=first):
        what = run.state.trend.add(loss)
        if what and trouble is None:
            trouble = (step, what)
        run.state.losses.append(loss)
    waiting.clear()
    if found := next((t for t in run.processes.gather(trouble) if t), None):
        raise Diverged(*found)


def _require_finite(run: Run) -> None:
    """Raises: Diverged, on all processes alike."""
    if run.processes.any(not finite(run.trainer.network)):
        raise Diverged(run.state.step - 1, "the weights became no numbers")


def _note_down(run: Run, key: str, reason: str, **changes: Any) -> None:
    """Say what the training met, and write it into its schedule."""
    reasons = run.schedule.reasons | {key: reason}
    run.schedule = run.schedule.model_copy(update={**changes, "reasons": reasons})
    run.processes.say(f"train {run.job.name}: {reason}")
    if run.processes.main:
        run.schedule.save(run.job.folder / "schedule.json")


def _end_epoch(run: Run) -> None:
    """A row of the log; a validation and perhaps a new best where it is due.

    The state is saved before a validation, which may take long; a training that is stopped or killed in it begins it again.
    """
    job, state, schedule = run.job, run.state, run.schedule
    epoch = math.ceil(state.step / schedule.steps_per_epoch)
    row: dict[str, Any] = {"epoch": epoch, "step": state.step, "learning_rate": _learning_rate(run, state.step - 1)}
    row["train_loss"] = sum(state.losses) / len(state.losses)
    if schedule.validates(epoch):
        _save(run, good=False)
        result = _validate(run)
        if result is None:
            _leave(run)
        row |= {"val_loss": result.loss, "val_dice": result.dice}
        row |= {f"val_dice_{name}": value for name, value in result.structures.items()}
        if not state.best or result.dice >= state.best["dice"]:  # of equals the later: it has learnt longer
            state.best = {"epoch": epoch, "step": state.step, "dice": result.dice, "structures": result.structures}
            if run.processes.main:
                propose_best(job.best, run.trainer.network.state_dict(), state.best)
    state.losses = []
    state.log.append({**row, "seconds": round(run.clock.seconds, 1)})
    if run.processes.main:
        _show(run, row)


def _show(run: Run, row: dict[str, Any]) -> None:
    """The log as a table, as curves and to the trackers."""
    log = write_log(run.job.folder / "log.csv", run.state.log)
    if run.trackers is not None:
        run.trackers.log(run.state.step, {key: value for key, value in row.items() if key not in ("epoch", "step")})
    if run.state.step == run.schedule.steps or run.clock.since_drawing > SECONDS_BETWEEN_DRAWINGS:
        draw_training_curves(log, run.job.folder / "progress.png")
        run.clock.drawn()


def _save(run: Run, good: bool) -> None:
    """The whole state, then the best weights in their place."""
    state = run.state
    state.seconds, state.scaler, state.good = run.clock.seconds, run.trainer.scaler.state_dict(), good
    if run.processes.main:
        save_checkpoint(run.job.checkpoint, run.trainer.network, run.trainer.optimizer, state)
        settle_best(run.job.best, state.best)
    run.clock.saved()


def _validate(run: Run) -> Validation | None:
    """All validation cases, shared out over the processes; None where one of these is asked to stop meanwhile."""
    job, processes = run.job, run.processes
    processes.share_buffers(run.trainer.network)
    own = job.val_ids[processes.rank :: processes.world]
    scores = _scores(job, run.trainer, itertools.takewhile(lambda _: run.stop.number is None, own))
    shares = processes.gather(scores)
    if sum(map(len, shares)) < len(job.val_ids):
        return None
    scores = [shares[i % processes.world][i // processes.world] for i in range(len(job.val_ids))]
    return summarise(scores, list(job.labels.measured))


def _scores(job: Job, trainer: Trainer, case_ids: Iterable[str]) -> list[CaseScore]:
    cases = (job.store.open(case_id) for case_id in case_ids)  # one open at a time
    patch, overlap = job.plan.patch_voxels, job.settings.validation_overlap
    batch = max(1, job.batch_size // trainer.micro_batches)
    return score_cases(trainer.network, cases, job.labels, loss_of(job), patch, overlap, batch, trainer.device, trainer.dtype)


def _validation_seconds(job: Job, trainer: Trainer) -> float:
    """What a validation of all cases will take, by the first of them."""
    windows = validation_windows(job)
    if trainer.device.type == "cuda":
        _scores(job, trainer, job.val_ids[:1])  # the first convolutions of each shape are tuned, which takes long
    start = time.perf_counter()
    _scores(job, trainer, job.val_ids[:1])
    return (time.perf_counter() - start) * sum(windows) / windows[0] / min(trainer.processes.world, len(windows))


def _saving_seconds(job: Job, trainer: Trainer) -> float:
    """What a checkpoint will take, by one without the optimizer's moments."""
    if not trainer.processes.main:
        return 0.0
    start, trial = time.perf_counter(), job.checkpoint.with_stem("trial")
    remove(trial)  # which a kill may have left
    save_checkpoint(trial, trainer.network, trainer.optimizer, Progress())
    seconds = time.perf_counter() - start
    remove(trial)
    return seconds * COPIES_SAVED[job.settings.optimizer.name]
