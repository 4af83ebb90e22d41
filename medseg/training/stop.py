"""Leaving a training between two steps when it is asked to stop."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import NoReturn


@dataclass
class Stop:
    """The signal that asked the training to stop, if any."""

    number: int | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.number is not None and number == signal.SIGINT:  # Ctrl-C while it stops: at once
            raise KeyboardInterrupt
        if self.number is None:  # a cluster may send SIGTERM twice, by itself and through torchrun
            self.number = number

    def leave(self) -> NoReturn:
        """Leave with this process; where only another one was asked, as after SIGTERM.

        Raises: KeyboardInterrupt after Ctrl-C; SystemExit with 128 + the signal's number after another.
        """
        if self.number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + (self.number or signal.SIGTERM))


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """Ctrl-C and SIGTERM (a cluster's pre-emption) let the step under way end, so that a whole state is saved."""
    stop = Stop()
    try:
        previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread, which alone gets signals
        previous = {}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
