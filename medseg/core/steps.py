"""One case through the steps of a job, in the process that does it: a bad case is an outcome with a reason."""

from __future__ import annotations

import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from medseg.core.claims import Claims
from medseg.core.errors import CaseError, MedsegError
from medseg.core.wording import one_line

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Outcome(Generic[Item, Result]):
    """What became of one case: a result, or the reason why there is none.

    Args:
        reason: one sentence, empty where all went well.
        trace: the traceback where the reason is a fault of ours and not of the case.
        seconds: worked on it; what it waited between two steps is left out.
        parts: the seconds of each step, by the name of its function.
        already: it had been done before.
    """

    item: Item
    result: Result | None
    reason: str = ""
    trace: str = ""
    seconds: float = 0.0
    parts: dict[str, float] = field(default_factory=dict)
    already: bool = False

    @property
    def ok(self) -> bool:
        return not self.reason


@dataclass(frozen=True)
class Undone:
    """In place of an outcome: the case came back as another process holds its claim, or as all is to stop."""


@dataclass(frozen=True)
class Lost:
    """In place of an outcome: the process that had the case in hand died, with this exit code (below 0 a signal's number)."""

    code: int


@dataclass(frozen=True)
class Already(Generic[Result]):
    """What a step returns where the case had been done before: the steps behind it are left out."""

    result: Result


class Steps(ABC, Generic[Item, Result]):
    """A job in steps, which overlap in a worker process: while one case is written, the next is computed and a third is read."""

    @property
    @abstractmethod
    def steps(self) -> tuple[Callable[[Any], Any], ...]:
        """The first is a function of the item, each other one of what the step before it returned; the last gives the result.

        The middle one runs in the main thread of its process, as libraries with threads of their own like it.
        """

    def name(self, item: Item) -> str:
        """What the case is called in a claim."""
        return str(getattr(item, "case_id", item))

    def weight(self, item: Item) -> float:
        """Bytes that the case takes while it is in hand. Asked in the parent process: sizes and headers, not voxels."""
        return 0.0

    def careful(self) -> Steps[Item, Result]:
        """The same job with less memory: for a case that is tried again after its worker was killed."""
        return self

    def ended(self, outcome: Outcome[Item, Result]) -> None:
        """Called where the case was done, under its claim, whatever became of it: the place to record a failure."""


@dataclass(frozen=True)
class OneStep(Steps[Item, Result]):
    """A plain function as a job."""

    function: Callable[[Item], Result]

    @property
    def steps(self) -> tuple[Callable[[Any], Any], ...]:
        return (self.function,)


class Underway(Generic[Item]):
    """A case between two steps."""

    def __init__(self, index: int, item: Item) -> None:
        self.index, self.item = index, item
        self.value: Any = item
        self.parts: dict[str, float] = {}

    def take(self, step: Callable[[Any], Any]) -> Outcome[Item, Any] | None:
        """Take a step. Returns: the outcome where the case ended with it. Raises: MedsegError that is not a CaseError."""
        start, reason, trace = time.perf_counter(), "", ""
        try:
            self.value = step(self._handed_over())
        except CaseError as error:
            reason = str(error) or type(error).__name__
        except MedsegError:
            raise
        except MemoryError:
            reason = "there was not enough memory for it; free some, use fewer workers, or crop it"
            trace = traceback.format_exc()
        except Exception as error:
            reason, trace = f"unexpected {type(error).__name__}: {one_line(error)}", traceback.format_exc()
        name = getattr(step, "__name__", f"step {len(self.parts) + 1}")
        self.parts[name] = self.parts.get(name, 0.0) + time.perf_counter() - start
        return self.end(reason, trace) if reason or isinstance(self.value, Already) else None

    def end(self, reason: str = "", trace: str = "") -> Outcome[Item, Any]:
        value, already = self._handed_over(), False
        if isinstance(value, Already):
            value, already = value.result, True
        return Outcome(self.item, None if reason else value, reason, trace, sum(self.parts.values()), self.parts, already)

    def _handed_over(self) -> Any:
        """The value, which is let go of here, so that a step can free what it was given."""
        value, self.value = self.value, None
        return value


class Bench(Generic[Item, Result]):
    """Does the steps of a job, each case under its claim where there are claims."""

    def __init__(self, job: Steps[Item, Result], claims: Claims | None) -> None:
        self.job, self.claims, self.steps = job, claims, job.steps

    def advance(self, case: Underway[Item], number: int) -> Outcome[Item, Result] | Undone | None:
        """Do step `number` of a case. Returns: None where it goes on. Raises: MedsegError that is not a CaseError."""
        if number == 0 and self.claims and not self.claims.claim(self.job.name(case.item)):
            return Undone()
        goes_on = False
        try:
            outcome = case.take(self.steps[number])
            if outcome is None and number == len(self.steps) - 1:
                outcome = case.end()
            goes_on = outcome is None
            if outcome:
                self.job.ended(outcome)
            return outcome
        finally:
            if self.claims and not goes_on:
                self.claims.release(self.job.name(case.item))

    def give_up(self, case: Underway[Item], number: int) -> Undone:
        """Leave a case before step `number`."""
        if self.claims and number:
            self.claims.release(self.job.name(case.item))
        return Undone()
