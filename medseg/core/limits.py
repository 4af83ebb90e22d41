"""What this process may use of the machine, which a scheduler, a container or a job may have made less than there is."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

CGROUPS, OWN_CGROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def available_cores() -> int:
    """Processor cores: those that the process may run on, and no more than the time that its control group is given."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, math.ceil(min(_quotas(), default=cores))))


def in_threads(do: Callable[[int], None], parts: Sequence[int]) -> None:
    """Do the parts of an array side by side, as numpy and scipy let other threads work while they compute."""
    if len(parts) < 2 or available_cores() == 1:
        for part in parts:
            do(part)
        return
    with ThreadPoolExecutor(min(available_cores(), len(parts))) as pool:
        list(pool.map(do, parts))


def memory_limit() -> float:
    """Bytes that the control group of this process may use; infinite where none is set."""
    files = ("memory.max", "memory/memory.limit_in_bytes", "memory.limit_in_bytes")  # of version 2, and of version 1
    return min((float(text) for folder in _groups() for name in files if (text := _read(folder / name))), default=math.inf)


def available_memory() -> float:
    """Bytes that this process may still take: what is free or can be freed, of the machine and of its control group."""
    import psutil

    return min(float(psutil.virtual_memory().available), memory_limit())


def _quotas() -> Iterator[float]:
    """Cores' worth of time that each group around this process is given, where it is limited."""
    for folder in _groups():
        both = [_read(folder / "cpu.max").split()]  # "quota period", in microseconds
        both += [[_read(folder / kind / "cpu.cfs_quota_us"), _read(folder / kind / "cpu.cfs_period_us")] for kind in ("cpu", ".")]
        yield from (int(b[0]) / int(b[1]) for b in both if len(b) == 2 and b[0].isdigit() and b[1].isdigit() and int(b[1]))


def _groups() -> Iterator[Path]:
    """The folders of this process's control group, of those around it, and of the root, where a container has its own."""
    yield CGROUPS
    for line in _read(OWN_CGROUP).splitlines():
        _, controllers, place = line.split(":", 2)  # "0::/job" in version 2, "4:memory:/job" in version 1
        top = CGROUPS / controllers if controllers else CGROUPS
        folder = top / place.lstrip("/")
        while folder != top and top in folder.parents:
            yield folder
            folder = folder.parent


def _read(path: Path) -> str:
    """The file's text; "" where it cannot be read or says that there is no limit."""
    try:
        text = path.read_text().strip()
    except OSError:
        return ""
    return "" if text.startswith(("max", "-1")) else text
