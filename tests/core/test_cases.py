"""`map_cases`; its functions stand at module level because worker processes import them."""

import os
import signal
import time
from pathlib import Path

import pytest

from medseg.core.cases import Outcome, map_cases
from medseg.core.errors import OutputError, UnreadableError


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
    assert outcomes[5].reason == "out of memory"
    assert [o.ok for o in outcomes] == [True] * 3 + [False] * 3 + [True] * 2
    assert sorted(o.item for o in ended) == list(range(8))


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_killed_worker_costs_its_own_case_only() -> None:
    ended: list[int] = []
    outcomes = map_cases(double_but_one_is_killed, range(10), "doubling", 2, lambda o: ended.append(o.item))
    assert [o.result for o in outcomes] == [0, 2, None, *range(6, 20, 2)]
    assert "killed" in outcomes[2].reason
    assert "memory" in outcomes[2].reason
    assert sorted(ended) == list(range(10))  # each case ends once, also those that were begun twice


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
    assert map_cases(double, [21], "one", workers=4)[0].result == 42


def test_progress_tells_how_many_are_done(capfd: pytest.CaptureFixture[str]) -> None:
    map_cases(double, range(3), "doubling")
    assert "doubling: 3 of 3" in capfd.readouterr().err
