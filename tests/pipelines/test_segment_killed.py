"""`medseg segment` killed, at any moment and in any of its processes: the same command again ends as if nothing had happened."""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from phantoms import LPS_AFFINE, ball
from test_killed import Medseg, hashes, workers_of
from tiny_models import write_tiny_model

from pipelines.segment import segment

fcntl = pytest.importorskip("fcntl")
pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="signals of POSIX systems, and /proc")

SMALL, LARGE = (40, 36, 24), (150, 120, 80)
SECONDS_TO_END = 10  # for what a killed command leaves behind


def write_scan(path: Path, shape: tuple[int, int, int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    array = rng.normal(100, 8, shape) + 80 * ball(shape, tuple(rng.uniform(0.3, 0.7, 3) * shape), min(shape) / 4)
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array.astype(np.float32), LPS_AFFINE), path)


class Folder:
    """One call of `medseg segment`, to be made as often as need be."""

    def __init__(self, model: Path, scans: Path, output: Path, *options: str) -> None:
        self.model, self.scans, self.output, self.options = model, scans, output, options

    def start(self, *options: str) -> Medseg:
        return Medseg("segment", str(self.model), str(self.scans), str(self.output), *self.options, *options)

    def finish(self, **options: Any) -> int:
        """The same in this process, which has all imports behind it."""
        return segment(self.model, self.scans, self.output, **options)

    def elsewhere(self, output: Path) -> Folder:
        return Folder(self.model, self.scans, output, *self.options)

    def mask(self, name: str) -> Path:
        return self.output / f"{name}.nii.gz"

    def record(self, name: str) -> Path:
        return self.output / "records" / f"{name}.json"

    def records(self) -> int:
        return len(list((self.output / "records").glob("[!.]*.json")))

    def writing(self, pattern: str) -> bool:
        """A temporary file of this kind is there: its writing is under way."""
        return any(self.output.glob(f".????????.{pattern}")) or any((self.output / "records").glob(f".????????.{pattern}"))

    def at(self, name: str) -> bool:
        """Some process is at this case: it holds its claim."""
        claim = self.output / "records/.claims" / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.claim"
        try:
            with open(claim, "rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return False
        except BlockingIOError:
            return True
        except FileNotFoundError:
            return False

    def hidden(self) -> list[str]:
        return sorted(str(path.relative_to(self.output)) for path in self.output.rglob(".*") if path.name != ".claims")

    def content(self) -> dict[str, Any]:
        """All that it made, without the seconds."""
        found: dict[str, Any] = {
            name: d for name, d in hashes(self.output, "predictions.csv", "gate").items() if "records/" not in name
        }
        rows = list(csv.DictReader((self.output / "predictions.csv").read_text().splitlines()))
        found["predictions.csv"] = [{k: v for k, v in row.items() if k != "seconds"} for row in rows]
        for path in (self.output / "records").glob("*.json"):
            found[path.name] = {k: v for k, v in json.loads(path.read_text()).items() if k != "seconds"}
        return found


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model") / "model.medseg")


@pytest.fixture(scope="module")
def undisturbed(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """Sixteen scans, one of them broken, that nothing happened to."""
    place = tmp_path_factory.mktemp("undisturbed")
    for number in range(15):
        write_scan(place / f"scans/s{number:02d}.nii.gz", SMALL, number)
    (place / "scans/s07.nii.gz").write_bytes(b"\x1f\x8b broken")
    folder = Folder(model, place / "scans", place / "masks")
    assert folder.finish() == 1
    assert folder.hidden() == []
    return folder


def assert_nothing_is_half(folder: Folder, whole: dict[str, Any]) -> None:
    """What stands under its name is what an undisturbed run writes."""
    for path in folder.output.glob("[!.]*.nii.gz"):
        assert hashlib.sha256(path.read_bytes()).hexdigest() == whole[path.name], path
    for path in (folder.output / "records").glob("[!.]*.json"):
        record = json.loads(path.read_text())
        assert {k: v for k, v in record.items() if k != "seconds"} == whole[path.name]
        assert not record["output"] or (folder.output / record["output"]).exists()


def killed(folder: Folder, moment: Callable[[], bool], with_workers: bool, whole: dict[str, Any], *options: str) -> bool:
    """Kill the command as soon as a moment has come, alone or with its workers. Returns: False where it had ended."""
    run = folder.start(*options)
    if run.wait_for(moment):
        (os.killpg if with_workers else os.kill)(run.process.pid, signal.SIGKILL)
    begun = time.monotonic()
    code = run.end()  # returns when the last process that writes to its pipe is gone: workers end by themselves
    assert time.monotonic() - begun < SECONDS_TO_END
    assert code in (1, -signal.SIGKILL), run.text
    assert len(folder.hidden()) <= 5, folder.hidden()  # of this kill alone
    assert_nothing_is_half(folder, whole)
    return code != 1


def times(folder: Folder) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.output.glob("[!.]*.nii.gz")}


def test_kill_9_while_it_works_and_the_rerun_ends_the_same(undisturbed: Folder, tmp_path: Path) -> None:
    folder, whole = undisturbed.elsewhere(tmp_path / "masks"), undisturbed.content()
    assert killed(folder, lambda: folder.records() >= 4 and folder.writing("*.nii.gz"), True, whole)
    assert [name for name in folder.hidden() if name.endswith(".nii.gz")]
    assert killed(folder, lambda: (folder.output / "volumes.csv").exists(), False, whole)  # before predictions.csv
    before = times(folder)
    assert len(before) == 14
    (folder.output / ".notes").write_text("of somebody else")
    assert folder.finish() == 1
    assert folder.hidden() == [".notes"]  # what kills left is gone, and nothing else is
    (folder.output / ".notes").unlink()
    assert folder.content() == whole
    assert times(folder) == before


def random_moment(folder: Folder, dice: random.Random) -> Callable[[], bool]:
    """A time after it was started; or, when so many scans have been recorded, that some file is being written."""
    if dice.random() < 0.3:
        moment = time.monotonic() + dice.uniform(1, 14)
        return lambda: time.monotonic() > moment
    count, what = dice.randint(0, 14), dice.choice(["*.nii.gz", "*.json", "*probabilities*", "*"])
    return lambda: folder.records() >= count and folder.writing(what)


@pytest.mark.slow
def test_kill_9_at_many_random_moments_and_the_rerun_ends_the_same(undisturbed: Folder, tmp_path: Path) -> None:
    dice = random.Random(0)
    first = undisturbed.elsewhere(tmp_path / "undisturbed")
    assert first.finish(probabilities=True) == 1
    folder, whole = undisturbed.elsewhere(tmp_path / "masks"), first.content()
    kills, left = 0, set()
    for _ in range(24):
        kills += killed(folder, random_moment(folder, dice), dice.random() < 0.5, whole, "--probabilities")
        left |= set(folder.hidden())
        records = sorted((folder.output / "records").glob("[!.]*.json"))
        for path in dice.sample(records, len(records) // 2):  # so that there is work for the next
            path.unlink()
    assert kills >= 12 and left
    assert folder.finish(probabilities=True) == 1
    assert folder.content() == whole
    assert folder.hidden() == []


@pytest.fixture(scope="module")
def large(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """Three small scans, and then two that take some seconds."""
    place = tmp_path_factory.mktemp("large")
    for number, name in enumerate("abc"):
        write_scan(place / f"scans/{name}.nii.gz", SMALL, number)
    for number, name in enumerate("yz"):
        write_scan(place / f"scans/{name}.nii.gz", LARGE, number)
    return Folder(model, place / "scans", place / "masks")


def kill_worker_when(run: Medseg, moment: Callable[[], bool]) -> int:
    """Kill the worker that the command has at that moment. Returns: its process id."""
    assert run.wait_for(moment)
    (worker,) = workers_of(run.process.pid)
    os.kill(worker, signal.SIGKILL)
    return worker


@pytest.mark.slow
def test_a_killed_worker_costs_no_case_and_killed_again_the_one_that_it_is_killed_over(large: Folder) -> None:
    run = large.start()
    first = kill_worker_when(run, lambda: large.at("z"))
    assert not large.mask("z").exists()
    assert run.wait_for(lambda: not large.at("z"))
    second = kill_worker_when(run, lambda: large.at("z"))  # when all that it had in hand has been tried again
    assert first != second
    assert run.end() == 1, run.text
    assert "4 done, 1 failed" in run.text and "  z: its worker process was killed (signal 9)" in run.text
    table = {row["case_id"]: row for row in csv.DictReader((large.output / "predictions.csv").read_text().splitlines())}
    assert {name: row["status"] for name, row in table.items()} == {**dict.fromkeys("abcy", "done"), "z": "failed"}
    assert table["z"]["reason"] == (
        "its worker process was killed (signal 9), most likely for want of memory, also when it was tried again alone with less "
        "memory; free memory, or take a machine with more, and run again."
    )
    assert json.loads(large.record("z").read_text())["reason"] == table["z"]["reason"]
    assert large.hidden() == [] and not large.mask("z").exists()
    before = times(large)
    assert large.finish() == 0
    assert before.items() <= times(large).items()
    whole = large.elsewhere(large.output.parent / "whole")
    assert whole.finish() == 0
    assert large.content() == whole.content()  # one thread or two, one window or several: the same masks


@pytest.fixture
def small_memory(tmp_path: Path) -> Iterator[Callable[[int], None]]:
    """Gives a control group of little memory, into which a process may put itself."""
    place = next((p for p in (Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")) if (p / "cgroup.procs").exists()), None)
    if place is None:
        pytest.skip("no control groups of memory")
    group = place / f"medseg-test-{os.getpid()}"
    try:
        group.mkdir()
        limit = next(group / name for name in ("memory.limit_in_bytes", "memory.max") if (group / name).exists())
    except (OSError, StopIteration):
        pytest.skip("no control group can be made here")

    def limited(size_bytes: int) -> Callable[[], None]:
        limit.write_text(str(size_bytes))
        return lambda: (group / "cgroup.procs").write_text(str(os.getpid()))  # type: ignore[func-returns-value]

    yield limited
    group.rmdir()


@pytest.mark.slow
def test_where_memory_runs_out_the_scan_is_a_row_and_the_rest_goes_on(
    model: Path, tmp_path: Path, small_memory: Callable[[int], Callable[[], None]]
) -> None:
    """By the system's own killer, in a control group. The scan is packed well, so nothing tells its size before it is read."""
    for number, name in enumerate("abc"):
        write_scan(tmp_path / f"scans/{name}.nii.gz", SMALL, number)
    image = nibabel.Nifti1Image(np.zeros((1, 1, 1), np.float32), LPS_AFFINE)
    image.header.set_data_shape((800, 700, 600))
    with gzip.open(tmp_path / "scans/b_huge.nii.gz", "wb", compresslevel=1) as file:
        file.write(image.header.binaryblock + bytes(4) + np.float32(7).tobytes() + bytes(4 * 800 * 700 * 600 - 4))
    folder = Folder(model, tmp_path / "scans", tmp_path / "masks")
    run = Medseg("segment", str(model), str(folder.scans), str(folder.output), preexec_fn=small_memory(1_600_000_000))
    assert run.end() == 1, run.text
    table = {row["case_id"]: row for row in csv.DictReader((folder.output / "predictions.csv").read_text().splitlines())}
    assert {name: row["status"] for name, row in table.items()} == {**dict.fromkeys("abc", "done"), "b_huge": "failed"}
    assert "memory" in table["b_huge"]["reason"], table["b_huge"]
    assert folder.hidden() == []
