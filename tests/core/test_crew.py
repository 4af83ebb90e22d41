"""Whole commands that share, stop and are killed: real processes, real signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from medseg.core.cases import Claims, Steps, map_cases

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_SECONDS = 60

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX systems")


@dataclass(frozen=True)
class Slow:
    """Say `case begun`, wait, say `case ended`; with claims, a case that has ended is left alone."""

    folder: Path
    seconds: float = 0.5

    def __call__(self, case: str) -> str:
        if (self.folder / f"{case}.ended").exists():
            return "stood"
        self._tell(case, "begun")
        time.sleep(self.seconds)
        self._tell(case, "ended")
        return "done"

    def _tell(self, case: str, what: str) -> None:
        with open(self.folder / f"{case}.{what}", "a") as file:  # a line each time
            file.write(f"{os.getpid()}\n")


@dataclass(frozen=True)
class SlowSteps(Steps[str, str]):
    """Slow, between a step that reads and one that writes."""

    slow: Slow

    @property
    def steps(self) -> tuple[Callable[[Any], Any], ...]:
        return (self.read, self.slow, str)

    def read(self, case: str) -> str:
        (self.slow.folder / f"{case}.read").touch()
        return case


def command(folder: str, cases: str, options: str) -> None:
    place = Path(folder)
    claims = Claims(place / ".claims") if "claims" in options else None
    workers = 2 if "workers" in options else 1
    job = Slow(place, 5.0 if "long" in options else 0.5)
    map_cases(
        SlowSteps(job) if "steps" in options else job,
        [f"c{n}" for n in range(int(cases))],
        "slow",
        workers,
        isolated="here" not in options,
        claims=claims,
    )


class Command:
    """`command` in a process of its own group, as a terminal starts it."""

    def __init__(self, folder: Path, cases: int, options: str) -> None:
        self.folder = folder
        code = "import sys, test_crew; test_crew.command(*sys.argv[1:])"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, str(folder), str(cases), options],
            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(Path(__file__).parent)])},
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def interrupt(self, number: int = signal.SIGINT) -> None:
        os.killpg(self.process.pid, number)  # the whole group, workers too

    def end(self) -> tuple[int, str]:
        _, text = self.process.communicate(timeout=DEADLINE_SECONDS)
        return self.process.returncode, text


def count(folder: Path, what: str) -> int:
    """How often a case has begun, or ended, in all."""
    return sum(len(path.read_text().splitlines()) for path in folder.glob(f"*.{what}"))


def wait_for(moment: Callable[[], Any]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not moment():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("options", ["here", "", "workers"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_asked_to_stop_once_finishes_the_cases_in_hand_and_begins_no_other(tmp_path: Path, options: str, number: int) -> None:
    run = Command(tmp_path, 20, options)
    wait_for(lambda: count(tmp_path, "begun") >= 2)
    run.interrupt(number)
    code, text = run.end()
    assert code == (-signal.SIGINT if number == signal.SIGINT else 128 + signal.SIGTERM), text
    assert text.count("stopping after the cases in hand; press Ctrl-C again to drop them") == 1
    assert 2 <= count(tmp_path, "begun") == count(tmp_path, "ended") <= 4


def test_a_case_that_has_been_read_ahead_is_not_computed_any_more(tmp_path: Path) -> None:
    run = Command(tmp_path, 20, "long steps claims")
    wait_for(lambda: len(list(tmp_path.glob("*.read"))) == 3)
    run.interrupt()
    code, text = run.end()
    assert code == -signal.SIGINT, text
    assert count(tmp_path, "begun") == count(tmp_path, "ended") == 1
    assert [path.name for path in (tmp_path / ".claims").iterdir()] == ["gate"]


@pytest.mark.parametrize("options", ["long here", "long workers"])
def test_ctrl_c_twice_drops_the_cases_in_hand(tmp_path: Path, options: str) -> None:
    run = Command(tmp_path, 20, options)
    wait_for(lambda: count(tmp_path, "begun") >= 1)
    begun = time.monotonic()
    run.interrupt()
    time.sleep(0.1)
    run.interrupt()  # so soon after the first, from a wrapper that passes it on
    time.sleep(0.6)
    assert run.process.poll() is None
    run.interrupt()
    code, text = run.end()
    assert code == -signal.SIGINT, text
    assert time.monotonic() - begun < 4
    assert count(tmp_path, "ended") == 0


def test_workers_end_at_once_when_their_parent_is_killed(tmp_path: Path) -> None:
    run = Command(tmp_path, 20, "long workers")
    wait_for(lambda: count(tmp_path, "begun") == 2)
    pids = {int(path.read_text()) for path in tmp_path.glob("*.begun")}
    assert len(pids) == 2 and run.process.pid not in pids
    run.process.kill()
    run.process.wait()
    begun = time.monotonic()
    wait_for(lambda: not any(runs(pid) for pid in pids))
    assert time.monotonic() - begun < 3
    assert count(tmp_path, "ended") == 0
    run.end()


def runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"  # nobody may reap orphans in a container


@pytest.mark.parametrize("options", ["claims here", "claims", "claims workers"])
def test_two_commands_share_the_cases_and_do_none_twice(tmp_path: Path, options: str) -> None:
    runs = [Command(tmp_path, 8, options) for _ in range(2)]
    for run in runs:
        code, text = run.end()
        assert code == 0, text
    assert count(tmp_path, "begun") == count(tmp_path, "ended") == 8
    workers = {path.read_text() for path in tmp_path.glob("*.begun")}
    assert len(workers) >= 2  # both had their share
    assert [path.name for path in (tmp_path / ".claims").iterdir()] == ["gate"]


def test_the_cases_of_a_killed_command_are_done_by_the_other(tmp_path: Path) -> None:
    first = Command(tmp_path, 6, "claims workers")
    wait_for(lambda: count(tmp_path, "begun") >= 2)
    second = Command(tmp_path, 6, "claims")
    wait_for(lambda: count(tmp_path, "begun") >= 3)
    first.process.kill()
    first.end()
    code, text = second.end()
    assert code == 0, text
    assert all((tmp_path / f"c{n}.ended").exists() for n in range(6))
    assert count(tmp_path, "ended") == 6
    assert count(tmp_path, "begun") <= 6 + 2
