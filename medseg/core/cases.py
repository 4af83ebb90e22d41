"""The one loop over cases: every folder stage goes through `map_cases`."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Generic, NoReturn, Protocol

from medseg.core.claims import Claims
from medseg.core.crew import Crew
from medseg.core.progress import progress, say
from medseg.core.steps import Already, Bench, Item, Lost, OneStep, Outcome, Result, Steps, Underway, Undone

__all__ = ["Already", "Claims", "Engine", "Outcome", "Steps", "map_cases", "worth_workers"]

BYTES_WORTH_WORKERS = 50e6
SECONDS_OF_WAITING = 0.5  # at a time; also until a case that another process was at is looked at again
SECONDS_BETWEEN_SIGNALS = 0.5  # below it they are one: `timeout` and other wrappers pass on what the group got too


def worth_workers(files: Iterable[Path]) -> bool:
    """Whether reading these files takes longer than starting worker processes."""
    return sum(path.stat().st_size for path in files if path.is_file()) > BYTES_WORTH_WORKERS


def map_cases(
    job: Callable[[Item], Result] | Steps[Item, Result],
    items: Sequence[Item],
    title: str,
    workers: int = 1,
    done: Callable[[Outcome[Item, Result]], None] | None = None,
    *,
    isolated: bool = False,
    memory: float = math.inf,
    claims: Claims | None = None,
) -> list[Outcome[Item, Result]]:
    """The job for every case; one bad case is one outcome with a reason and the others go on.

    A worker process that the operating system kills costs the cases that it had in hand only, and these are tried again when the
    others have ended, one at a time and with `job.careful()`. After Ctrl-C or SIGTERM the cases that are being computed
    or written are finished; after another they are dropped.

    Args:
        job: a function, or steps that overlap in each worker process; picklable where there are any.
        title: what is being done, for the progress display.
        workers: processes; 1 works in this one, one step after the other.
        done: called in this process as each case ends, in the order of ending (to write its record).
        isolated: work in another process also where one is enough: no crash of a library ends this one.
        memory: bytes that the cases in hand may weigh together (`job.weight`); one alone may weigh more.
        claims: shared with other processes that work on the same cases. One that is busy is looked at again later; it is for
            the job to see then that it has been done.
    Returns: one outcome an item, in the order given.
    Raises: MedsegError that is not a CaseError (a full disk, say): it would befall every case. KeyboardInterrupt after Ctrl-C,
        SystemExit after SIGTERM.
    """
    outcomes: dict[int, Outcome[Item, Result]] = {}
    known = 0
    steps = job if isinstance(job, Steps) else OneStep(job)
    with _stop_signals() as stop, progress(title, len(items)) as advance:
        if isolated or (workers > 1 and len(items) > 1):
            stream = _in_crews(steps, items, workers, memory, claims, stop)
        else:
            stream = _here(steps, items, claims, stop)
        with closing(stream):
            for index, outcome in stream:
                outcomes[index] = outcome
                if done:
                    done(outcome)
                known += outcome.already
                advance(len(outcomes), known=known)
    if claims:
        claims.sweep()
    if stop.number is not None:
        stop.leave()
    return [outcomes[index] for index in range(len(items))]


class Engine(Protocol[Item, Result]):
    """Where cases are done. The loop hands them out and hears what ended; which process does one is the engine's to know."""

    def room(self) -> bool:
        """Whether it takes another case now."""

    def give(self, index: int, item: Item) -> None: ...

    def stop(self) -> None:
        """Have cases come back undone whose computing has not begun."""

    def wait(self, seconds: float) -> list[tuple[int, Outcome[Item, Result] | Undone | Lost]]:
        """What has ended within `seconds`, by its index. Raises: MedsegError that is not a CaseError."""


class _Here(Generic[Item, Result]):
    """This process as an engine: one case, one step after the other."""

    def __init__(self, bench: Bench[Item, Result]) -> None:
        self.bench = bench
        self.case: Underway[Item] | None = None

    def room(self) -> bool:
        return self.case is None

    def give(self, index: int, item: Item) -> None:
        self.case = Underway(index, item)

    def stop(self) -> None:
        pass

    def wait(self, seconds: float) -> list[tuple[int, Outcome[Item, Result] | Undone | Lost]]:
        case, self.case = self.case, None
        if case is None:
            return []
        for number in range(len(self.bench.steps)):
            if answer := self.bench.advance(case, number):
                return [(case.index, answer)]
        return []


def _here(
    job: Steps[Item, Result], items: Sequence[Item], claims: Claims | None, stop: _Stop
) -> Generator[tuple[int, Outcome[Item, Result]], None, None]:
    for index, answer in _Round(_Here(Bench(job, claims)), items, range(len(items)), stop):
        assert isinstance(answer, Outcome)
        yield index, answer


def _in_crews(
    job: Steps[Item, Result], items: Sequence[Item], workers: int, memory: float, claims: Claims | None, stop: _Stop
) -> Generator[tuple[int, Outcome[Item, Result]], None, None]:
    """All cases in worker processes; then those again, one at a time, whose worker died."""
    suspects = []
    with Crew(job, claims, workers, in_hand=len(job.steps)) as crew:
        weight = job.weight if memory < math.inf else None
        for index, answer in _Round(crew, items, range(len(items)), stop, weight, memory):
            if isinstance(answer, Lost):
                suspects.append(index)
            else:
                yield index, answer
    careful = job.careful()
    with Crew(careful, claims, workers=1, in_hand=1) as crew:
        for index, answer in _Round(crew, items, sorted(suspects), stop):
            if isinstance(answer, Lost):
                answer = Outcome(items[index], None, _fate(answer.code, with_less=careful is not job))
            yield index, answer


class _Round(Generic[Item, Result]):
    """Hands cases to an engine, in their order, until each has come back or the user has asked to stop."""

    def __init__(
        self,
        engine: Engine[Item, Result],
        items: Sequence[Item],
        indices: Iterable[int],
        stop: _Stop,
        weight: Callable[[Item], float] | None = None,
        memory: float = math.inf,
    ) -> None:
        self.engine, self.items, self.stop, self.weight, self.memory = engine, items, stop, weight, memory
        self.waiting = dict.fromkeys(indices, 0.0)  # and when each may be looked at
        self.in_hand: dict[int, float] = {}  # and what each weighs

    def __iter__(self) -> Iterator[tuple[int, Outcome[Item, Result] | Lost]]:
        while self.in_hand or (self.waiting and self.stop.number is None):
            self._hand_out()
            if self.stop.number is not None:
                self.engine.stop()
            if not self.in_hand:
                time.sleep(SECONDS_OF_WAITING)
                continue
            for index, answer in self.engine.wait(SECONDS_OF_WAITING):
                del self.in_hand[index]
                if isinstance(answer, Undone):
                    self.waiting[index] = time.monotonic() + SECONDS_OF_WAITING
                else:
                    yield index, answer

    def _hand_out(self) -> None:
        while self.stop.number is None and self.engine.room():
            now = time.monotonic()
            index = next((index for index, due in self.waiting.items() if due <= now), None)
            if index is None:
                return
            weight = self._weight(index)
            if self.in_hand and sum(self.in_hand.values()) + weight > self.memory:
                return
            del self.waiting[index]
            self.in_hand[index] = weight
            self.engine.give(index, self.items[index])

    def _weight(self, index: int) -> float:
        try:
            return self.weight(self.items[index]) if self.weight else 0.0
        except Exception:  # a file that cannot be read; its first step says why
            return 0.0


def _fate(code: int, with_less: bool) -> str:
    """The reason of a case whose worker died, and died again when it had nothing else in hand."""
    again = f"also when it was tried again alone{' with less memory' if with_less else ''}"
    if code == -9:
        how = "was killed (signal 9), most likely for want of memory"
        advice = "free memory, or take a machine with more, and run again"
    elif code < 0:
        how = f"crashed (signal {-code})"
        advice = "most likely one of its files is damaged in a way that a library does not survive; write it anew or leave it out"
    else:
        how = f"ended by itself (code {code})"
        advice = "what it printed says why"
    return f"its worker process {how}, {again}; {advice}."


class _Stop:
    """The first signal that asked to stop, if any; another one, by a raised KeyboardInterrupt, drops the cases in hand."""

    def __init__(self) -> None:
        self.number: int | None = None
        self.since = 0.0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.number is None:
            self.number, self.since = number, time.monotonic()
            with suppress(RuntimeError):  # where the signal came in the middle of another line
                say("stopping after the cases in hand; press Ctrl-C again to drop them")
        elif time.monotonic() - self.since > SECONDS_BETWEEN_SIGNALS:
            raise KeyboardInterrupt

    def leave(self) -> NoReturn:
        if self.number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + (self.number or signal.SIGTERM))


@contextmanager
def _stop_signals() -> Iterator[_Stop]:
    stop = _Stop()
    previous = {}
    with suppress(ValueError):  # not the main thread, which alone gets signals
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as of a job in the background
                previous[number] = signal.signal(number, stop)
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
