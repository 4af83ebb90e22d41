"""Small pieces of the sentences that commands and reports say."""

from __future__ import annotations

from collections.abc import Iterable

FEW = 5  # names told one by one


def some_of(names: Iterable[object], most: int = FEW) -> str:
    """The first few names, and how many more there are."""
    told = [str(name) for name in names]
    return ", ".join(told[:most]) + (f" and {len(told) - most} more" if len(told) > most else "")


def one_line(error: Exception, most: int | None = None) -> str:
    """What an error says, as one line of at most so many characters; empty where it says nothing."""
    return " ".join(str(error).split())[:most]
