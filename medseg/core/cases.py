"""The one loop over cases: every folder stage goes through `map_cases`."""

from __future__ import annotations

import multiprocessing
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from medseg.core.errors import CaseError, MedsegError
from medseg.core.progress import progress

Item = TypeVar("Item")
Result = TypeVar("Result")

BYTES_WORTH_WORKERS = 50e6


def worth_workers(files: Iterable[Path]) -> bool:
    """Whether reading these files takes longer than starting worker processes."""
    return sum(path.stat().st_size for path in files if path.is_file()) > BYTES_WORTH_WORKERS


@dataclass(frozen=True)
class Outcome(Generic[Item, Result]):
    """What became of one case: a result, or the reason why there is none.

    Args:
        reason: one sentence, empty where all went well.
        trace: the traceback where the reason is a fault of ours and not of the case.
    """

    item: Item
    result: Result | None
    reason: str = ""
    trace: str = ""
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        return not self.reason


def map_cases(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    title: str,
    workers: int = 1,
    done: Callable[[Outcome[Item, Result]], None] | None = None,
) -> list[Outcome[Item, Result]]:
    """`function` of every case; one bad case is one outcome with a reason and the others go on.

    Args:
        function: picklable where `workers` is above 1.
        title: what is being done, for the progress display.
        workers: processes; 1 works in this one.
        done: called in this process as each case ends, in the order of ending (to write its record).
    Returns: one outcome an item, in the order given. A worker that the operating system kills costs its own case only.
    Raises: MedsegError that is not a CaseError (a full disk, say): it would befall every case.
    """
    outcomes: list[Outcome[Item, Result] | None] = [None] * len(items)
    with progress(title, len(items)) as advance:
        stream = _in_workers(function, items, workers) if workers > 1 and len(items) > 1 else _here(function, items)
        for count, (index, outcome) in enumerate(stream, start=1):
            outcomes[index] = outcome
            if done:
                done(outcome)
            advance(count)
    return [o for o in outcomes if o is not None]


def _attempt(function: Callable[[Item], Result], item: Item) -> Outcome[Item, Result]:
    start = time.perf_counter()
    try:
        result = function(item)
    except CaseError as error:
        return Outcome(item, None, str(error), seconds=time.perf_counter() - start)
    except MedsegError:
        raise
    except MemoryError:
        return Outcome(item, None, "out of memory", traceback.format_exc(), time.perf_counter() - start)
    except Exception as error:
        reason = f"unexpected {type(error).__name__}: {' '.join(str(error).split())}"
        return Outcome(item, None, reason, traceback.format_exc(), time.perf_counter() - start)
    return Outcome(item, result, seconds=time.perf_counter() - start)


def _here(function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[tuple[int, Outcome[Item, Result]]]:
    for index, item in enumerate(items):
        yield index, _attempt(function, item)


def _in_workers(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int
) -> Iterator[tuple[int, Outcome[Item, Result]]]:
    waiting = list(range(len(items)))
    while waiting:
        suspects = []
        with _pool(min(workers, len(waiting))) as pool, _nothing_left(pool):
            futures: dict[Future[Outcome[Item, Result]], int] = {pool.submit(_attempt, function, items[i]): i for i in waiting}
            while futures:
                for future in wait(futures, return_when=FIRST_COMPLETED).done:
                    index = futures.pop(future)
                    try:
                        yield index, future.result()
                    except BrokenProcessPool:
                        suspects.append(index)
        # A killed worker breaks its pool and takes the unfinished cases with it: the first of them again, each alone.
        suspects.sort()
        for index in suspects[:workers]:
            yield index, _alone(function, items[index])
        waiting = suspects[workers:]


@contextmanager
def _nothing_left(pool: ProcessPoolExecutor) -> Iterator[None]:
    """On the way out by an error, a full disk or Ctrl-C, the cases that have not begun are not begun."""
    try:
        yield
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise


def _alone(function: Callable[[Item], Result], item: Item) -> Outcome[Item, Result]:
    with _pool(1) as pool:
        try:
            return pool.submit(_attempt, function, item).result()
        except BrokenProcessPool:
            return Outcome(item, None, "its worker process was killed, most likely for want of memory; free memory and run again")


def _pool(workers: int) -> ProcessPoolExecutor:
    # Spawned, not forked: a fork of a process whose numerical threads have started can hang.
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
