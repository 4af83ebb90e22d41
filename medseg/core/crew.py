"""Worker processes that do cases. This side knows which cases each has in hand; one that dies costs those only."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Generic

from medseg.core.claims import Claims
from medseg.core.errors import MedsegError
from medseg.core.steps import Bench, Item, Lost, Outcome, Result, Steps, Underway, Undone

SECONDS_TO_END = 2.0


class Crew(Generic[Item, Result]):
    """Processes of this machine, started when there is a case for them; a dead one is replaced in the same way.

    Args:
        workers: processes at most.
        in_hand: cases that each may have at a time; with as many as there are steps, the steps overlap.
    """

    def __init__(self, job: Steps[Item, Result], claims: Claims | None, workers: int, in_hand: int) -> None:
        self.job, self.claims, self.workers, self.in_hand = job, claims, workers, in_hand
        self.team: list[_Worker] = []
        self.stopping = False

    def __enter__(self) -> Crew[Item, Result]:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for worker in self.team:
            worker.connection.close()
        for worker in self.team:
            worker.end(SECONDS_TO_END if kind is None else 0.0)

    def room(self) -> bool:
        return len(self.team) < self.workers or any(len(worker.cases) < self.in_hand for worker in self.team)

    def give(self, index: int, item: Item) -> None:
        """Hand a case to the worker that has the fewest; a new one goes before those that have any."""
        worker = min(self.team, key=lambda w: len(w.cases), default=None)
        if worker is None or (worker.cases and len(self.team) < self.workers):
            worker = _Worker(self.job, self.claims)
            self.team.append(worker)
        worker.cases.append(index)
        with suppress(OSError):  # of a dead worker, which `wait` finds
            worker.connection.send((index, item))

    def stop(self) -> None:
        """Have the cases come back that have been read at most; those that are computed or written are finished."""
        for worker in [] if self.stopping else self.team:
            with suppress(OSError):
                worker.connection.send(None)
        self.stopping = True

    def wait(self, seconds: float) -> list[tuple[int, Outcome[Item, Result] | Undone | Lost]]:
        """What has ended, by its index; empty where nothing has within `seconds`.

        Raises: MedsegError that a worker met and that is not a CaseError.
        """
        answers: list[tuple[int, Outcome[Item, Result] | Undone | Lost]] = []
        ready = wait([worker.connection for worker in self.team], seconds)
        for worker in [worker for worker in self.team if worker.connection in ready]:
            try:
                index, answer = worker.connection.recv()
            except (OSError, EOFError):
                self.team.remove(worker)
                code = worker.end(SECONDS_TO_END)
                answers += [(index, Lost(code)) for index in worker.cases]
                continue
            if isinstance(answer, MedsegError):
                raise answer
            worker.cases.remove(index)
            answers.append((index, answer))
        return answers


class _Worker:
    """One process, this side of its pipe, and the cases that it has in hand."""

    def __init__(self, job: Steps[Any, Any], claims: Claims | None) -> None:
        # Spawned: a fork of a process whose numerical threads have started can hang.
        context = multiprocessing.get_context("spawn")
        self.cases: list[int] = []
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(job, claims, theirs), daemon=True)
        with signals_held_back():
            self.process.start()
        theirs.close()  # so that the pipe ends when the worker does

    def end(self, seconds: float) -> int:
        """Kill the process if it has not ended within `seconds`. Returns: its exit code."""
        self.connection.close()
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
        code = self.process.exitcode or 0
        self.process.close()
        return code


@contextmanager
def signals_held_back() -> Iterator[None]:
    """Processes started here never get Ctrl-C or SIGTERM, which reach a whole group: this one alone decides how to stop.

    In this process they arrive when the block ends.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()  # its own start, which is else a part of the first worker's, would lift the mask
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(job: Steps[Any, Any], claims: Claims | None, connection: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # where there are no masks
    _Line(Bench(job, claims), connection).run()


class _Line:
    """The steps of a job one behind the other in a worker, each in a thread of its own.

    The queues between them need no bound: the other side hands out no more cases than there are steps.
    """

    def __init__(self, bench: Bench[Any, Any], connection: Connection) -> None:
        self.bench, self.connection, self.sending = bench, connection, threading.Lock()
        self.queues: list[SimpleQueue[Underway[Any]]] = [SimpleQueue() for _ in bench.steps]
        self.middle, self.stopping = len(self.queues) // 2, False

    def run(self) -> None:
        threading.Thread(target=self._receive, daemon=True).start()
        for number in range(len(self.queues)):
            if number != self.middle:
                threading.Thread(target=self._serve, args=(number,), daemon=True).start()
        self._serve(self.middle)

    def _receive(self) -> None:
        """Take in cases until the pipe ends: all is done or to be dropped, or the parent was killed; no step may go on."""
        with _or_exit():
            try:
                while True:
                    case = self.connection.recv()
                    if case is None:
                        self.stopping = True
                    else:
                        self.queues[0].put(Underway(*case))
            except (OSError, EOFError):
                os._exit(0)

    def _serve(self, number: int) -> None:
        with _or_exit():
            while True:
                case = self.queues[number].get()
                answer: Outcome[Any, Any] | Undone | MedsegError | None
                try:
                    dropped = self.stopping and number <= self.middle
                    answer = self.bench.give_up(case, number) if dropped else self.bench.advance(case, number)
                except MedsegError as error:
                    answer = error
                if answer is None:
                    self.queues[number + 1].put(case)
                else:
                    self._send(case, answer)

    def _send(self, case: Underway[Any], answer: Outcome[Any, Any] | Undone | MedsegError) -> None:
        with self.sending, suppress(OSError):  # of a parent that is gone
            try:
                self.connection.send((case.index, answer))
            except (OSError, MemoryError):
                raise
            except Exception as error:
                reason = f"unexpected {type(error).__name__}: its result cannot be handed over ({error})"
                self.connection.send((case.index, case.end(reason, traceback.format_exc())))


@contextmanager
def _or_exit() -> Iterator[None]:
    """A thread that ends by an error takes its process along: cases would wait for it for ever."""
    try:
        yield
    except BaseException:
        traceback.print_exc()
        os._exit(1)
