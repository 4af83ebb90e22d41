"""Going on: after an interruption, and after a training diverged."""

from __future__ import annotations

import torch

from medseg.core.errors import StageError
from medseg.core.files import remove, remove_leftovers
from medseg.training.checkpoint import DAMAGED, Progress, Tensors, load_checkpoint, load_weights, settle_best
from medseg.training.distributed import Processes
from medseg.training.diverging import LOWER_RATE, Diverged
from medseg.training.job import Job, begin_anew
from medseg.training.step import Trainer


def resume(job: Job, trainer: Trainer) -> Progress:
    """The state that the last checkpoint left, put back; a new one where there is none that can be read.

    Raises: StageError where a checkpoint is there and the system does not let it be read.
    """
    processes = trainer.processes
    if processes.main:
        remove_leftovers(job.folder)
    state = load_checkpoint(job.checkpoint, trainer.network, trainer.optimizer, tell=processes.say)
    if state is None:
        if job.has_checkpoint:  # damaged; the trainer was set up for its weights
            begin_anew(job, trainer)
        if processes.main:
            remove(job.best)
        state = Progress()
    elif state.scaler:
        trainer.scaler.load_state_dict(state.scaler)
    best = processes.gather(settle_best(job.best, state.best) if processes.main else {})[0]
    if state.best and not best:
        processes.say(f"train {job.name}: {job.best} is missing or damaged; the best is sought among the validations to come")
    state.best = best
    _require_one_state(processes, state)
    return state


def _require_one_state(processes: Processes, state: Progress) -> None:
    """Raises: StageError where the processes do not read the same checkpoints."""
    if len(set(processes.gather((state.step, state.learning_rate_scale)))) > 1:
        raise StageError(
            "the processes do not see the same checkpoints; give all machines one shared `output` folder, then run the same "
            "command again."
        )


def go_back(job: Job, trainer: Trainer, state: Progress, trouble: Diverged, cases: list[str]) -> tuple[Progress, str]:
    """To the last good checkpoint, or the first weights, with a lower learning rate: once.

    Only the ends of epochs are gone back to, never a checkpoint that the clock asked for, so that the same run goes the same
    way again.

    Args:
        cases: of the batch that showed it.
    Returns: the state to go on from, and what happened.
    Raises: StageError the second time.
    """
    where = f"{trouble.what} at step {trouble.step + 1} (cases {', '.join(cases)})"
    if state.learning_rate_scale < 1:
        raise StageError(
            f"train {job.name}: {where}, after a return to a lower learning rate; look at these cases, or lower "
            "`training.optimizer.learning_rate` and run with `--redo train`."
        )
    tell = trainer.processes.say
    good = load_checkpoint(job.checkpoint, trainer.network, trainer.optimizer, only_good=True, tell=tell)
    if good is None:
        begin_anew(job, trainer)
        good = Progress()
    _require_one_state(trainer.processes, good)
    good.best, good.learning_rate_scale = state.best, LOWER_RATE  # the best weights on disk stay what they are
    trainer.scaler = torch.amp.GradScaler(trainer.device.type, enabled=trainer.scaler.is_enabled())
    if good.scaler:
        trainer.scaler.load_state_dict(good.scaler)
    place = f"step {good.step}" if good.step else "the first weights"
    return good, f"{where}: back to {place}, and on with the learning rate times {LOWER_RATE:g}"


def best_weights(job: Job) -> Tensors:
    """The weights of the best validation. Raises: StageError where they are missing or damaged."""
    try:
        return load_weights(job.best)
    except (OSError, *DAMAGED):
        raise StageError(f"{job.best} is missing or damaged; start anew with `--redo train`.") from None
