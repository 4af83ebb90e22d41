"""Progress of long work: a bar on a terminal, plain lines in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

SECONDS_BETWEEN_LINES = 15.0


class Advance(Protocol):
    def __call__(self, done: float, note: str = "", known: float = 0.0) -> None:
        """Say that so much is done; `known` of it had been done before and took no time, so no rate is derived from it."""


def say(text: str) -> None:
    """One line to the person who watches (standard error, so that standard output stays a result)."""
    print(text, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """A time in the unit that a person would use."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


@contextmanager
def progress(title: str, total: float) -> Iterator[Advance]:
    """Show `title` with the share of `total` done and the time left; call the yielded function with the amount done so far."""
    if sys.stderr.isatty():
        with _bar(title, total) as advance:
            yield advance
    else:
        yield _Lines(title, total)


@contextmanager
def _bar(title: str, total: float) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=total, note="")

        def advance(done: float, note: str = "", known: float = 0.0) -> None:
            bar.update(task, completed=done - known, total=total - known, note=note)

        yield advance


class _Lines:
    def __init__(self, title: str, total: float) -> None:
        self.title, self.total = title, total
        self.start = self.last = time.monotonic()

    def __call__(self, done: float, note: str = "", known: float = 0.0) -> None:
        now = time.monotonic()
        if done < self.total and now - self.last < SECONDS_BETWEEN_LINES:
            return
        self.last = now
        left = f", about {duration((now - self.start) / (done - known) * (self.total - done))} left" if done > known else ""
        tail = left if done < self.total else f" in {now - self.start:.0f} s"
        say(f"{self.title}: {done:g} of {self.total:g}{tail}{'  ' + note if note else ''}")
