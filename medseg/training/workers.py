"""Processes that make batches ahead of need. One that dies says of what, and which cases it was at.

Not torch's DataLoader: where one of its workers dies, it raises from a signal handler in the middle of whatever the training is
doing, a checkpoint perhaps, and cannot say which batch was being made.
"""

from __future__ import annotations

import atexit
import itertools
import signal
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
import torch.multiprocessing

from medseg.core.crew import signals_held_back
from medseg.core.errors import MedsegError, StageError

if TYPE_CHECKING:
    from medseg.training.dataset import Batch, PatchDataset

AHEAD = 3  # batches that each worker may have ready
SECONDS_TO_END = 2.0
STARTING = -1  # in place of a step: the imports of a new process take seconds
LIKELY = {  # what a signal most often means here, and what to do
    "SIGKILL": "most likely memory ran out: close other programs or set `training.workers` lower",
    "SIGBUS": "most likely shared memory ran out, or a prepared file was cut short: set `training.workers` lower, "
    "or run `medseg prepare` again",
}


def in_workers(dataset: PatchDataset, steps: Sequence[int], places: Sequence[int], workers: int) -> Iterator[Batch]:
    """The batches of the steps, in their order; the i-th comes from worker i % workers.

    Raises: StageError for a sample that cannot be made, and for a worker that died, naming the cases that it was at.
    """
    team: list[_Worker] = []
    end = partial(_end, team)
    atexit.register(end)  # a generator that is still held when Python exits is never closed
    try:
        team += [_Worker(dataset, places) for _ in range(min(workers, len(steps)))]
        asked: deque[_Worker] = deque()
        for step, worker in zip(steps, itertools.cycle(team), strict=False):
            worker.ask(step)
            asked.append(worker)
            if len(asked) == AHEAD * len(team):
                yield asked.popleft().answer()
        while asked:
            yield asked.popleft().answer()
    finally:
        end()
        atexit.unregister(end)


class _Worker:
    """One process, and this side of the pipe that it gets steps through and sends batches back."""

    def __init__(self, dataset: PatchDataset, places: Sequence[int]) -> None:
        # Spawned: a fork of a process whose numerical threads have started can hang.
        context = torch.multiprocessing.get_context("spawn")
        self.dataset, self.places = dataset, places
        self.at = context.RawValue("q", STARTING)
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(dataset, places, theirs, self.at), daemon=True)
        with signals_held_back():
            self.process.start()
        theirs.close()  # so that the pipe ends when the worker does

    def ask(self, step: int) -> None:
        with suppress(OSError):  # of a dead worker; its answer says so
            self.connection.send(step)

    def answer(self) -> Batch:
        """The batch of the oldest step that was asked for and not answered."""
        try:
            result = self.connection.recv()
        except (OSError, EOFError, RuntimeError) as error:  # a RuntimeError where shared memory cannot be opened
            raise self._fault(error) from None
        if isinstance(result, MedsegError):
            raise result
        return dict(result)

    def _fault(self, error: Exception) -> StageError:
        self.process.join(SECONDS_TO_END)
        code, step = self.process.exitcode, int(self.at.value)
        if code is None:
            return StageError(
                f"a batch did not arrive from worker process {self.process.pid} ({error}); set `training.workers` to 0."
            )
        how = f"ended with code {code}" if code >= 0 else f"was killed (signal {-code})"
        if step == STARTING:
            doing = "while it started"
        else:
            cases = self.dataset.cases_of(step)
            names = ", ".join(dict.fromkeys(cases[place] for place in self.places))
            doing = f"while it made the samples of cases {names} (step {step + 1})"
        name = signal.Signals(-code).name if code < 0 else ""
        advice = LIKELY.get(name, "set `training.workers` to 0 if it happens again")
        return StageError(f"worker process {self.process.pid} {how} {doing}; {advice}; run the same command again to go on.")


def _end(team: list[_Worker]) -> None:
    """Close the pipes, at which workers leave by themselves, and wait for them; not for long."""
    for worker in team:
        worker.connection.close()
    for worker in team:
        worker.process.join(SECONDS_TO_END)
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()
        worker.process.close()
    team.clear()


def _work(dataset: PatchDataset, places: Sequence[int], connection: Connection, at: Any) -> None:
    """What a worker does until the training process closes the pipe, or is gone."""
    torch.set_num_threads(1)
    sys.excepthook = _told
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            at.value = connection.recv()
            try:
                connection.send(dataset.batch(at.value, places))
            except MedsegError as error:
                connection.send(error)
            except RuntimeError as error:  # of the sending; a sample's own errors come as StageError
                text = f"a batch could not be handed over ({' '.join(str(error).split())[:200]}); {LIKELY['SIGBUS']}."
                connection.send(StageError(text))


def _told(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Of the thread that hands tensors over: that the training process was killed meanwhile needs no words from its workers."""
    if not isinstance(error, OSError | EOFError):
        sys.__excepthook__(kind, error, trace)
