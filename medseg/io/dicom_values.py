"""Values out of a DICOM data set, and silence about them.

Headers hold names, and pydicom repeats their values in warnings, log lines and exceptions. Nothing that it says gets out: `quiet`
goes around every use of it, and a value that does not parse is as good as absent.
"""

from __future__ import annotations

import logging
import math
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from pydicom.dataset import Dataset

# For good and not within `quiet` alone: whatever uses pydicom in this process is told nothing that would help anybody.
logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)

_lock = threading.Lock()
_depth = 0
_filters = ExitStack()


@contextmanager
def quiet() -> Iterator[None]:
    """Within it no library's warning gets out, from any thread; several threads may be within at once."""
    global _depth
    with _lock:
        _depth += 1
        if _depth == 1:
            _filters.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
    try:
        yield
    finally:
        with _lock:
            _depth -= 1
            if not _depth:
                _filters.close()


def value(data: Dataset, keyword: str) -> Any:
    """The value of an element; None where it is absent, empty or does not parse."""
    try:
        found = data.get(keyword)
    except Exception:
        return None
    return None if found is None or found == "" else found


def text(data: Dataset, keyword: str) -> str:
    """The value as text without padding; empty where there is none."""
    try:
        return str(value(data, keyword) or "").strip(" \0")
    except Exception:  # a name of bytes that its character set does not have
        return ""


def whole(data: Dataset, keyword: str) -> int | None:
    """The value as a whole number."""
    found = numbers(data, keyword, 1)
    return int(found[0]) if found and found[0] == int(found[0]) else None


def numbers(data: Dataset, keyword: str, count: int) -> tuple[float, ...] | None:
    """The `count` finite numbers of an element; None where there are other than that."""
    try:
        found = tuple(float(number) for number in many(data, keyword))
    except (TypeError, ValueError):
        return None
    return found if len(found) == count and all(map(math.isfinite, found)) else None


def many(data: Dataset, keyword: str) -> list[Any]:
    """The values of an element, or the items of a sequence, as a list."""
    found = value(data, keyword)
    if found is None:
        return []
    return [found] if isinstance(found, str | bytes | int | float) or not hasattr(found, "__iter__") else list(found)
