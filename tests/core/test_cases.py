"""`map_cases`; its jobs stand at module level because worker processes import them."""

from __future__ import annotations

import ctypes
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from medseg.core.cases import Already, Outcome, Steps, map_cases
from medseg.core.errors import OutputError, UnreadableError

ROOT = Path(__file__).resolve().parents[2]

posix = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX systems")


def double(item: int) -> int:
    return 2 * item


def double_but_one_is_bad(item: int) -> int:
    if item == 3:
        raise UnreadableError("scan 3 is truncated; bring it again.")
    if item == 4:
        raise ValueError("our\nfault")
    if item == 5:
        raise MemoryError
    return 2 * item


def double_but_one_is_killed(item: int) -> int:
    if item == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.02)
    return 2 * item


def disk_is_full(path: Path) -> None:
    path.touch()
    time.sleep(0.1)
    raise OutputError("disk is full.")


def process_of(item: int) -> int:
    return os.getpid()


def leave(item: int) -> int:
    if item == 1:
        sys.exit(3)
    return item


def not_to_be_handed_over(item: int) -> Any:
    return (lambda: item) if item == 1 else item


@pytest.mark.parametrize("workers", [1, 2])
def test_outcomes_come_in_the_order_given_and_bad_cases_have_reasons(workers: int) -> None:
    ended: list[Outcome[int, int]] = []
    outcomes = map_cases(double_but_one_is_bad, range(8), "doubling", workers, ended.append)
    assert [o.item for o in outcomes] == list(range(8))
    assert [o.result for o in outcomes] == [0, 2, 4, None, None, None, 12, 14]
    assert outcomes[3].reason == "scan 3 is truncated; bring it again."
    assert outcomes[3].trace == ""
    assert outcomes[4].reason == "unexpected ValueError: our fault"
    assert "double_but_one_is_bad" in outcomes[4].trace
    assert outcomes[5].reason == "there was not enough memory for it; free some, use fewer workers, or crop it"
    assert [o.ok for o in outcomes] == [True] * 3 + [False] * 3 + [True] * 2
    assert sorted(o.item for o in ended) == list(range(8))


@posix
def test_a_killed_worker_costs_its_own_case_only() -> None:
    ended: list[int] = []
    outcomes = map_cases(double_but_one_is_killed, range(10), "doubling", 2, lambda o: ended.append(o.item))
    assert [o.result for o in outcomes] == [0, 2, None, *range(6, 20, 2)]
    assert outcomes[2].reason == (
        "its worker process was killed (signal 9), most likely for want of memory, also when it was tried again alone; "
        "free memory, or take a machine with more, and run again."
    )
    assert sorted(ended) == list(range(10))  # each case ends once, also those that were begun twice
    assert ended[-1] == 2  # the others went on meanwhile


def test_a_full_disk_stops_all_cases_and_no_new_one_begins(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="full"):
        map_cases(disk_is_full, [tmp_path / str(n) for n in range(60)], "writing", workers=2)
    assert len(list(tmp_path.iterdir())) < 20
    with pytest.raises(OutputError, match="full"):
        map_cases(disk_is_full, [tmp_path / f"here{n}" for n in range(3)], "writing")
    assert not (tmp_path / "here1").exists()


def test_an_error_while_recording_an_outcome_stops_the_rest() -> None:
    def record(outcome: Outcome[int, int]) -> None:
        raise OutputError("disk is full.")

    with pytest.raises(OutputError):
        map_cases(double, range(4), "doubling", 2, record)


def test_no_cases_and_one_case() -> None:
    assert map_cases(double, [], "nothing", workers=4) == []
    assert map_cases(double, [], "nothing", isolated=True) == []
    assert map_cases(double, [21], "one", workers=4)[0].result == 42


def test_progress_tells_how_many_are_done(capfd: pytest.CaptureFixture[str]) -> None:
    map_cases(double, range(3), "doubling")
    assert "doubling: 3 of 3" in capfd.readouterr().err


def test_one_isolated_worker_does_all_cases_in_one_other_process() -> None:
    (process,) = {o.result for o in map_cases(process_of, range(3), "asking", isolated=True)}
    assert process != os.getpid()
    assert {o.result for o in map_cases(process_of, range(3), "asking")} == {os.getpid()}


def test_a_worker_that_leaves_and_a_result_that_cannot_be_handed_over_cost_their_case() -> None:
    outcomes = map_cases(leave, range(3), "leaving", isolated=True)
    assert [o.result for o in outcomes] == [0, None, 2]
    assert outcomes[1].reason.startswith("its worker process ended by itself (code 1), also when it was tried again alone;")
    outcomes = map_cases(not_to_be_handed_over, range(3), "handing over", isolated=True)
    assert [o.result for o in outcomes] == [0, None, 2]
    assert "cannot be handed over" in outcomes[1].reason


@dataclass(frozen=True)
class Times:
    """When the steps of a case began and ended, by their names, and in which thread and process."""

    case: int
    spans: dict[str, tuple[float, float]]
    threads: dict[str, bool]
    process: int


@dataclass(frozen=True)
class Walk(Steps[int, Times]):
    """Three steps that take their time and note it."""

    grams: float = 0.0

    @property
    def steps(self) -> tuple[Callable[[Any], Any], ...]:
        return (self.read, self.compute, self.write)

    def weight(self, item: int) -> float:
        if item == 5:
            raise UnreadableError("no header.")
        return self.grams

    def read(self, item: int) -> Times:
        return noted(Times(item, {}, {}, os.getpid()), "read", 0.05)

    def compute(self, times: Times) -> Times:
        return noted(times, "compute", 0.1)

    def write(self, times: Times) -> Times:
        return noted(times, "write", 0.05)


def noted(times: Times, name: str, seconds: float) -> Times:
    start = time.monotonic()
    time.sleep(seconds)
    times.spans[name] = start, time.monotonic()
    times.threads[name] = threading.current_thread() is threading.main_thread()
    return times


def walked(*arguments: Any, **options: Any) -> list[Times]:
    outcomes = map_cases(*arguments, **options)
    assert all(o.ok for o in outcomes), outcomes
    return sorted((o.result for o in outcomes), key=lambda times: times.spans["read"])


def test_steps_of_neighbouring_cases_overlap_in_one_worker() -> None:
    cases = walked(Walk(), range(8), "walking", isolated=True)
    assert len({times.process for times in cases}) == 1
    pairs = list(itertools.pairwise(cases))
    assert sum(b.spans["read"][0] < a.spans["compute"][1] for a, b in pairs) >= 6
    assert sum(b.spans["compute"][0] < a.spans["write"][1] for a, b in pairs) >= 5
    for name in ("read", "compute", "write"):  # each step does one case at a time
        assert all(a.spans[name][1] <= b.spans[name][0] for a, b in pairs)
    assert all(c.spans["read"][0] >= a.spans["write"][1] for a, c in zip(cases, cases[3:], strict=False))  # three in hand
    assert all(times.threads == {"read": False, "compute": True, "write": False} for times in cases)


def test_steps_in_this_process_go_one_after_the_other() -> None:
    outcomes = map_cases(Walk(), range(3), "walking")
    cases = [o.result for o in outcomes if o.result]
    assert all(a.spans["write"][1] <= b.spans["read"][0] for a, b in itertools.pairwise(cases))
    assert list(outcomes[0].parts) == ["read", "compute", "write"]
    assert outcomes[0].parts["compute"] == pytest.approx(0.1, abs=0.08)
    assert outcomes[0].seconds == pytest.approx(sum(outcomes[0].parts.values()))


@pytest.mark.parametrize("grams, most", [(10, 2), (15, 1), (99, 1)])
def test_what_is_in_hand_weighs_no_more_than_is_allowed_in_all_workers_together(grams: float, most: int) -> None:
    cases = walked(Walk(grams), range(5), "walking", workers=2, memory=20)
    moments = [times.spans["read"][0] for times in cases]
    held = [sum(c.spans["read"][0] <= moment < c.spans["write"][1] for c in cases) for moment in moments]
    assert max(held) == most


def test_a_case_that_cannot_be_weighed_is_done_like_the_others() -> None:
    assert len(walked(Walk(10), range(4, 7), "walking", workers=2, memory=15)) == 3


@dataclass(frozen=True)
class Stumble(Steps[int, str]):
    """Steps that fail at one of them, in ways that the item names."""

    folder: Path
    frugal: bool = False

    @property
    def steps(self) -> tuple[Callable[[Any], Any], ...]:
        return (self.read, self.compute, self.write)

    def careful(self) -> Stumble:
        return Stumble(self.folder, frugal=True)

    def ended(self, outcome: Outcome[str, str]) -> None:
        (self.folder / outcome.item).write_text(outcome.reason or f"{outcome.result}")

    def read(self, item: str) -> Any:
        if item == "unreadable":
            raise UnreadableError("no scan.")
        return Already("as before") if item == "known" else item

    def compute(self, item: str) -> str:
        assert item != "known"
        if item == "large" and not self.frugal:
            os.kill(os.getpid(), signal.SIGKILL)
        if item == "huge":
            os.kill(os.getpid(), signal.SIGKILL)
        if item == "segfault":
            ctypes.string_at(0)
        return item

    def write(self, item: str) -> str:
        if item == "full":
            raise OutputError("disk is full.")
        if item == "bug":
            raise ValueError("here")
        return item + (" frugally" if self.frugal else "")


@posix
def test_each_step_can_fail_and_costs_its_case_alone(tmp_path: Path) -> None:
    names = ["one", "unreadable", "large", "bug", "huge", "known", "segfault", "two"]
    outcomes = {o.item: o for o in map_cases(Stumble(tmp_path), names, "stumbling", workers=2)}
    assert list(outcomes) == names
    assert outcomes["unreadable"].reason == "no scan."
    assert outcomes["bug"].reason == "unexpected ValueError: here"
    assert outcomes["large"].result == "large frugally"
    assert "killed (signal 9), most likely for want of memory, also when it was tried again alone with less memory" in (
        outcomes["huge"].reason
    )
    assert "crashed (signal 11)" in outcomes["segfault"].reason and "memory;" in outcomes["segfault"].reason
    assert outcomes["segfault"].reason.endswith(
        "damaged in a way that a library does not survive; write it anew or leave it out."
    )
    assert outcomes["known"].result == "as before" and outcomes["known"].already
    assert outcomes["one"].ok and outcomes["two"].ok and not outcomes["one"].already
    recorded = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert recorded == {n: o.reason or o.result for n, o in outcomes.items() if n not in ("huge", "segfault")}


def test_a_full_disk_met_by_the_last_step_ends_the_run(tmp_path: Path) -> None:
    for options in ({"isolated": True}, {"workers": 2}, {}):
        with pytest.raises(OutputError, match="full"):
            map_cases(Stumble(tmp_path), ["one", "full", "two"], "stumbling", **options)


def test_cases_that_were_known_do_not_spoil_the_time_left(tmp_path: Path, monkeypatch, capfd) -> None:
    monkeypatch.setattr("medseg.core.progress.SECONDS_BETWEEN_LINES", 0.0)
    map_cases(Stumble(tmp_path), ["known"] * 3 + ["one"], "stumbling")
    lines = capfd.readouterr().err.splitlines()
    assert lines[:3] == [f"stumbling: {n} of 4" for n in (1, 2, 3)]


def test_functions_of_a_guarded_script_can_be_jobs(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from medseg.core.cases import map_cases\n"
        "def square(item):\n    return item**2\n"
        "if __name__ == '__main__':\n    print([o.result for o in map_cases(square, range(3), 'squaring', 2)])\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    run = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, timeout=60)
    assert run.stdout == "[0, 1, 4]\n", run.stderr
