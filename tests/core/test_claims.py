"""Claims on cases, between real processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from filelock import FileLock

from medseg.core.claims import Claims
from medseg.core.errors import OutputError

ROOT = Path(__file__).resolve().parents[2]
OWNER = """
import sys, time
from pathlib import Path
from medseg.core.claims import Claims
claims = Claims(Path(sys.argv[1]))
print(claims.claim(sys.argv[2]), flush=True)
time.sleep(600)
"""


@contextmanager
def owner_of(folder: Path, case_id: str) -> Iterator[subprocess.Popen]:
    """Another process that has claimed a case."""
    command = [sys.executable, "-c", OWNER, folder, case_id]
    with subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def files(folder: Path) -> int:
    return len(list(folder.glob("*.claim")))


def test_a_case_has_one_owner_and_leaves_no_file(tmp_path: Path) -> None:
    first, second = Claims(tmp_path / "claims"), Claims(tmp_path / "claims")
    assert first.claim("a")
    assert not second.claim("a")
    assert not first.claim("a")
    assert second.claim("b")
    assert files(tmp_path / "claims") == 2
    first.release("a")
    assert second.claim("a")
    second.release("a")
    second.release("b")
    assert files(tmp_path / "claims") == 0


@pytest.mark.parametrize("case_id", ["../../etc/x", "a/b", "CON", "x" * 300, "ä ö\n", "", "a\udcff", "a:b*?"])
def test_any_case_id_makes_a_safe_name_that_tells_nothing(tmp_path: Path, case_id: str) -> None:
    claims = Claims(tmp_path)
    assert claims.claim(case_id)
    (path,) = tmp_path.glob("*.claim")
    assert len(path.name) < 50
    assert case_id == "" or case_id not in path.name
    claims.release(case_id)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_claim_ends_with_its_killed_owner(tmp_path: Path) -> None:
    claims = Claims(tmp_path)
    with owner_of(tmp_path, "a") as owner:
        assert owner.stdout.readline() == "True\n"
        assert not claims.claim("a")
        claims.sweep()
        assert files(tmp_path) == 1  # what is held is not swept away
        assert not claims.claim("a")
        os.kill(owner.pid, signal.SIGKILL)
        owner.wait()
        assert files(tmp_path) == 1
        assert claims.claim("a")
        claims.release("a")
    with owner_of(tmp_path, "b") as owner:
        owner.stdout.readline()
    assert files(tmp_path) == 1
    claims.sweep()
    assert files(tmp_path) == 0


def contend(folder: Path, turns: int) -> None:
    """Claim, be alone and release, so many times."""
    claims = Claims(folder)
    while turns:
        if claims.claim("a"):
            flag = folder / "inside"
            flag.touch(exist_ok=False)  # raises where another is inside
            time.sleep(0.001)
            flag.unlink()
            claims.release("a")
            turns -= 1
        time.sleep(0.001)
        claims.sweep()


def test_processes_that_claim_release_and_sweep_at_once_are_never_two_inside(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        pool.starmap(contend, [(tmp_path, 60)] * 3)
    assert files(tmp_path) == 0


def test_a_folder_that_cannot_be_made_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="choose another output"):
        Claims(tmp_path / "file" / "claims").claim("a")


def test_a_file_system_without_locks_is_told_once_and_work_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def lockless(*arguments: object, **options: object) -> None:
        raise NotImplementedError

    monkeypatch.setattr(FileLock, "acquire", lockless)
    claims = Claims(tmp_path)
    assert claims.claim("a")
    claims.release("a")
    assert claims.claim("b")
    claims.sweep()
    assert capfd.readouterr().err.count("has no locks") == 1
