"""The choices that a training starts with: by rule where they change its numbers, else by the clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from medseg.core.errors import MedsegError
from medseg.training.config import TrainingConfig
from medseg.training.dataset import PatchDataset, batches
from medseg.training.device import choose_precision, compiler_present, computes_in, why_not_compiled
from medseg.training.distributed import own_cores
from medseg.training.on_device import deferred
from medseg.training.schedule import Schedule, often_enough, steps_in
from medseg.training.step import MEMORY_REASON, Trainer, fresh_scaler

TIMED_STEPS, TIMED_SECONDS = 5, 10.0
WORKERS_PAY_AFTER_SECONDS = 180.0  # a worker process needs some ten seconds to start


@dataclass(frozen=True)
class Timing:
    """Seconds to make a batch and to learn from it."""

    batch: float
    step: float

    @property
    def both(self) -> float:
        return self.batch + self.step


def decide(
    config: TrainingConfig,
    schedule: Schedule,
    trainer: Trainer,
    dataset: PatchDataset,
    validation_seconds: Callable[[], float],
    saving_seconds: Callable[[], float],
    started: float,
) -> Schedule:
    """The schedule with compile, workers, the place of augmentation and, where a budget is given, the number of steps.

    Steps are timed on the real network, which gets its first weights back. Afterwards `trainer.forward` is the compiled form
    where that is kept, and dataset and trainer leave augmentation to the device where that was chosen. Where several processes
    train, the main one's clock decides for all.

    Args:
        schedule: device, precision, layout and validation interval, decided by rule.
        validation_seconds, saving_seconds: measure one validation of all cases, and one checkpoint (there is one an epoch).
        started: of this training, by `time.perf_counter`: what has passed is taken off the budget.
    """
    reasons = dict(schedule.reasons)
    timing = _timed_only(trainer, dataset)
    compiled, reasons["compile"] = _try_compiling(config, trainer, dataset, timing)
    kept = compiled is not None
    timing = compiled or timing
    budget = None if config.budget_minutes is None else config.budget_minutes * 60
    expected = schedule.steps * timing.both if budget is None else budget
    workers, reasons["workers"] = choose_workers(config, timing, trainer.device, expected)
    augment_on, reasons["augment_on"] = choose_augment_on(config, timing, trainer.device, workers)
    if augment_on == "device":
        leave_to_device(dataset, trainer)
        timing = _timed_only(trainer, dataset)
    step_seconds = _step_seconds(timing, workers, trainer.device)
    update: dict[str, Any] = {"compile": kept, "workers": workers, "augment_on": augment_on, "step_seconds": step_seconds}
    update |= {"micro_batches": trainer.micro_batches, "reasons": reasons}
    if trainer.micro_batches > 1:
        reasons["micro_batches"] = MEMORY_REASON
    if budget is not None:
        measured = (validation_seconds(), saving_seconds())
        (validation, saving), left = trainer.processes.gather((measured, budget - (time.perf_counter() - started)))[0]
        per_epoch, interval = config.steps_per_epoch, schedule.validation_interval
        each = step_seconds + saving / per_epoch
        steps = steps_in(left, each, validation, per_epoch, interval)
        if config.validation_interval is None:
            interval = often_enough(interval, steps // per_epoch)
            steps = steps_in(left, each, validation, per_epoch, interval)
        reasons["steps"] = (
            f"{left:.0f} s of the {budget:.0f} s were left; a step takes {step_seconds:.3f} s, a checkpoint {saving:.2f} s every "
            f"epoch and a validation {validation:.1f} s every {interval} epochs"
        )
        update |= {"steps": steps, "validation_interval": interval, "validation_seconds": validation}
    return schedule.model_copy(update=update)


def take_over(schedule: Schedule, config: TrainingConfig, device: torch.device, overhangs: bool) -> Schedule:
    """The schedule of a training that goes on, here and now.

    Its choices stand, so that it ends as it would have without the interruption. Only what speed alone depends on follows the
    configuration where that states it (workers, the place of augmentation), and what this machine cannot do is replaced.

    Args:
        overhangs: as in `choose_precision`.
    Raises: ConfigError for a stated precision that this machine cannot compute in.
    """
    new: dict[str, tuple[Any, str]] = {}
    if config.workers != "auto":
        new["workers"] = config.workers, "stated in the configuration"
    if config.augment_on != "auto":
        new["augment_on"] = config.augment_on, "stated in the configuration"
    if schedule.device != device.type:
        new["device"] = device.type, f"the training was begun on {schedule.device}"
        if device.type == "cpu" and "augment_on" not in new:
            new["augment_on"] = "cpu", "there is no GPU that could do it"
    if config.precision != "auto":
        choose_precision(config.precision, device, overhangs)
    elif not computes_in(schedule.precision, device, overhangs):
        precision, reason = choose_precision("auto", device, overhangs)
        new["precision"] = precision, f"{reason}; the training was begun in {schedule.precision}"
    if schedule.compile and device.type == "cpu" and not compiler_present():
        new["compile"] = False, "there is no C++ compiler"
    changed = {key: (value, reason) for key, (value, reason) in new.items() if value != getattr(schedule, key)}
    reasons = schedule.reasons | {key: reason for key, (_, reason) in changed.items()}
    return schedule.model_copy(update={key: value for key, (value, _) in changed.items()} | {"reasons": reasons})


def _step_seconds(timing: Timing, workers: int, device: torch.device) -> float:
    """Seconds a step with so many workers; on a CPU they take from the cores that the network computes on."""
    if not workers:
        return timing.both
    shared = timing.batch / own_cores() if device.type == "cpu" else 0.0
    return max(timing.batch / workers, timing.step + shared)


def time_steps(trainer: Trainer, dataset: PatchDataset) -> Timing:
    """Medians over a few steps after a first one that is not counted; of the main process."""
    together = trainer.processes
    stream = batches(dataset, 0, TIMED_STEPS + 1, 0, trainer.device.type == "cuda", together.rank, together.world)
    records: list[tuple[float, float]] = []
    with torch.random.fork_rng(devices=[]):
        begin = 0.0
        for number in range(TIMED_STEPS + 1):
            start = time.perf_counter()
            batch = next(stream)
            made = time.perf_counter()
            trainer.step(batch, learning_rate=0.0, seed=number)
            _wait(trainer.device)
            records.append((made - start, time.perf_counter() - made))
            if number == 0:
                begin = time.perf_counter()  # the first step compiles, and is not counted
            elif together.any(time.perf_counter() - begin > TIMED_SECONDS):
                break
    counted = records[1:]
    middle = len(counted) // 2
    return together.gather(Timing(sorted(b for b, _ in counted)[middle], sorted(s for _, s in counted)[middle]))[0]


def _timed_only(trainer: Trainer, dataset: PatchDataset) -> Timing:
    """`time_steps`, after which the trainer is as it was before."""
    weights = {k: v.clone() for k, v in trainer.network.state_dict().items()}
    scaler = fresh_scaler(trainer.scaler, trainer.device)
    try:
        return time_steps(trainer, dataset)
    finally:
        trainer.network.load_state_dict(weights)
        trainer.optimizer.state.clear()
        trainer.scaler = scaler


def leave_to_device(dataset: PatchDataset, trainer: Trainer) -> None:
    """From here on the samples are only drawn and read, and the trainer's device makes patches of them."""
    dataset.transforms, trainer.augment = deferred(dataset.transforms)


def compile_network(forward: Callable[[torch.Tensor], list[torch.Tensor]]) -> Callable[[torch.Tensor], list[torch.Tensor]]:
    """The compiled form of a network, on the same weights; validation goes on with the network itself."""
    torch.compiler.reset()  # of an earlier training in this process: its shapes would make this one's count as changing
    return torch.compile(forward, dynamic=False)


def _try_compiling(config: TrainingConfig, trainer: Trainer, dataset: PatchDataset, eager: Timing) -> tuple[Timing | None, str]:
    """The compiled steps' timing where they are kept (then `trainer.forward` is compiled), and the reason."""
    if reason := why_not_compiled(config, trainer.device):
        return None, reason
    plain, micro_batches, start = trainer.forward, trainer.micro_batches, time.perf_counter()
    trainer.forward = compile_network(trainer.forward)
    try:
        compiled = _timed_only(trainer, dataset)
    except MedsegError:
        raise
    except Exception as error:  # the compiler's own failures are of many types; training goes on without it
        trainer.forward, trainer.micro_batches = plain, micro_batches
        return None, f"compiling failed: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    took = time.perf_counter() - start
    text = f"a step takes {eager.step:.3f} s plain and {compiled.step:.3f} s compiled ({took:.0f} s to compile)"
    if config.compile == "auto" and compiled.step >= eager.step:
        trainer.forward, trainer.micro_batches = plain, micro_batches
        return None, text
    return compiled, text


def choose_workers(config: TrainingConfig, timing: Timing, device: torch.device, expected_seconds: float) -> tuple[int, str]:
    """Processes that make batches, and the reason. They change nothing but the speed."""
    if config.workers != "auto":
        return config.workers, "stated in the configuration"
    cores = own_cores()
    share = timing.batch / timing.step
    text = f"a batch takes {timing.batch * 1e3:.0f} ms to make and {timing.step * 1e3:.0f} ms to learn from"
    if cores == 1 or expected_seconds < WORKERS_PAY_AFTER_SECONDS:
        return 0, f"{text}; " + ("one core" if cores == 1 else "the training is too short for workers to start")
    if device.type == "cpu":
        # Workers and the network share the cores, so a worker pays only where making a batch leaves cores idle for long.
        return (0, text) if share < 0.1 else (min(cores - 1, 1 + int(share * cores / 4)), text)
    return max(1, min(cores - 1, 1 + int(1.5 * share))), text


def choose_augment_on(config: TrainingConfig, timing: Timing, device: torch.device, workers: int) -> tuple[str, str]:
    """Where patches are bent and changed, `cpu` or `device`, and the reason."""
    if config.augment_on != "auto":
        return config.augment_on, "stated in the configuration"
    if device.type == "cpu":
        return "cpu", "there is no GPU that could do it"
    making = timing.batch / max(1, workers)
    text = f"{workers} workers make a batch in {making * 1e3:.0f} ms and the GPU learns from it in {timing.step * 1e3:.0f} ms"
    return "device" if making > timing.step else "cpu", text


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
