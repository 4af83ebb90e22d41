"""Real processes, really killed: the same command again ends where an undisturbed run ends, bit for bit."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from phantoms import write_config, write_volume_set
from safetensors import safe_open

from pipelines import prepare, train
from pipelines.config import RunConfig

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX systems")

ROOT = Path(__file__).resolve().parents[2]
STEPS = 60
SETTINGS = {
    "structures": [{"name": "large", "id": 1}, {"name": "small", "id": 2}],
    "plan": {"patch_voxels": [16, 16, 8], "batch_size": 2, "workers": 1},
    "models": {"unet": {"features": [4, 8]}},
    "training": {
        "epochs": 6,
        "steps_per_epoch": STEPS // 6,
        "device": "cpu",
        "compile": False,
        "workers": 0,
        "checkpoint_minutes": 0.00001,  # after every step: most of the time is spent writing one
    },
}
DEADLINE_SECONDS = 120


class Medseg:
    """A `medseg` process of its own group, with what it says."""

    def __init__(self, *arguments: str, **options) -> None:
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pipelines.cli", *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            **options,
        )
        self.text = ""

    def end(self) -> int:
        self.text, _ = self.process.communicate(timeout=DEADLINE_SECONDS)
        assert "Traceback" not in self.text and "Warning" not in self.text, self.text
        return self.process.returncode

    def wait_for(self, moment: Callable[[], bool]) -> bool:
        """False where the process has ended before the moment came."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not moment():
            if self.process.poll() is not None or time.monotonic() > deadline:
                return False
            time.sleep(0.0005)
        return True

    def kill_when(self, moment: Callable[[], bool], number: int = signal.SIGKILL) -> int:
        """Send a signal as soon as the moment has come; the exit code, which is 0 where the process was faster."""
        if self.wait_for(moment):
            self.process.send_signal(number)
        return self.end()


class Run:
    """One run folder and its configuration."""

    def __init__(self, config: Path, output: Path) -> None:
        self.config, self.output = config, output

    def medseg(self, stage: str, *assignments: str, redo: bool = False, **options) -> Medseg:
        sets = [part for text in (f"output={self.output}", *assignments) for part in ("--set", text)]
        return Medseg(stage, str(self.config), *sets, *(["--redo"] if redo else []), **options)

    def train(self, *assignments: str, **options) -> Medseg:
        return self.medseg("train", *assignments, **options)

    @property
    def folder(self) -> Path:
        return self.output / "train" / "unet"

    @property
    def checkpoint(self) -> Path:
        return self.folder / "last.safetensors"

    @property
    def model(self) -> bytes:
        return (self.folder / "model.medseg").read_bytes()

    def writing(self, name: str, folder: Path | None = None) -> bool:
        """A temporary file of this name is there: its writing is under way."""
        return any((folder or self.folder).glob(f".????????.{name}"))

    def copy(self, output: Path) -> Run:
        shutil.copytree(self.output, output)
        return Run(self.config, output)


def hashes(folder: Path, *but: str) -> dict[str, str]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in but]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Run:
    folder = tmp_path_factory.mktemp("prepared")
    config = write_config(folder, write_volume_set(folder, {"train": 4, "val": 2, "test": 1}), **SETTINGS)
    prepare.run(RunConfig.load(config))
    return Run(config, folder / "run")


@pytest.fixture(scope="module")
def undisturbed(prepared, tmp_path_factory) -> bytes:
    """The model of a training that nothing happened to."""
    return finish(prepared.copy(tmp_path_factory.mktemp("undisturbed") / "run"))


@pytest.fixture(scope="module")
def half(prepared, tmp_path_factory) -> Run:
    """A training that SIGTERM, a cluster's pre-emption, ended half-way."""
    run = prepared.copy(tmp_path_factory.mktemp("half") / "run")
    training = run.train()
    assert training.kill_when(moments(run.checkpoint, STEPS // 2), signal.SIGTERM) == 128 + signal.SIGTERM, training.text
    assert not (run.folder / "model.medseg").exists()
    assert 0 < steps_done(run.checkpoint) < STEPS
    return run


def moments(path: Path, count: int) -> Callable[[], bool]:
    """True once the file has been seen to change so often."""
    seen: set[int] = set()

    def come() -> bool:
        with contextlib.suppress(FileNotFoundError):
            seen.add(path.stat().st_mtime_ns)
        return len(seen) >= count

    return come


def steps_done(checkpoint: Path) -> int:
    import json

    with safe_open(checkpoint, framework="np") as file:
        return int(json.loads(file.metadata()["progress"])["step"])


def finish(run: Run, *assignments: str) -> bytes:
    """Train to the end, in this process, which has all imports behind it; the model."""
    assert train.run(RunConfig.load(run.config, [f"output={run.output}", *assignments])) == 0
    hidden = {path.name for path in run.folder.iterdir() if path.name.startswith(".")}
    assert hidden <= {".openvino"}  # what a kill left is cleared away
    return run.model


def killed_until_done(run: Run, times: Sequence[Callable[[], bool]], *assignments: str) -> int:
    """Kill the same command at each of these moments; how often it was killed before it had ended."""
    kills = 0
    for moment in times:
        code = run.train(*assignments).kill_when(moment)
        assert code in (0, -signal.SIGKILL)
        kills += code != 0
    return kills


def test_kill_9_while_checkpoints_are_written(prepared, undisturbed, tmp_path):
    run = prepared.copy(tmp_path / "run")
    dice = random.Random(0)

    def best_changes() -> Callable[[], bool]:
        changed = moments(run.folder / "best.safetensors", 2)
        return lambda: run.writing("best*") or changed()

    times = [lambda: run.writing("last.safetensors"), best_changes(), moments(run.checkpoint, dice.randint(2, 9))]
    assert killed_until_done(run, times) == len(times)
    last = run.train()
    assert last.end() == 0, last.text
    assert run.model == undisturbed


@pytest.mark.slow
def test_kill_9_at_many_moments_with_workers(prepared, undisturbed, tmp_path):
    run = prepared.copy(tmp_path / "run")
    dice = random.Random(1)
    times = [moments(run.folder / "schedule.json", 1), moments(run.folder / "log.csv", 1)]
    times += [moments(run.checkpoint, dice.randint(1, 12)) for _ in range(6)]
    times += [lambda: run.writing("model.medseg")]
    assert killed_until_done(run, times, "training.workers=2") >= len(times) - 1
    assert finish(run, "training.workers=2") == undisturbed


def test_sigterm_saves_and_the_rerun_ends_the_same(half, undisturbed, tmp_path):
    assert finish(half.copy(tmp_path / "run")) == undisturbed


@pytest.mark.parametrize("name", ["image.npy", "case.json"])
def test_a_deleted_prepared_file_names_its_case_and_prepare_stores_it_again(half, undisturbed, tmp_path, name):
    run = half.copy(tmp_path / "run")
    (run.output / "prepare" / "cases" / "train02" / name).unlink()
    before = hashes(run.folder)
    training = run.train()
    assert training.end() == 2
    assert len(training.text.splitlines()) == 1 and "train02: the prepared case is missing or damaged" in training.text
    assert "`medseg prepare`" in training.text and hashes(run.folder) == before
    assert prepare.run(RunConfig.load(run.config, [f"output={run.output}"])) == 0
    assert finish(run) == undisturbed


def test_two_trainings_do_not_write_into_one_folder(half, undisturbed, tmp_path):
    run = half.copy(tmp_path / "run")
    first = run.train()
    assert first.wait_for(moments(run.checkpoint, 2))
    first.process.send_signal(signal.SIGSTOP)
    before = hashes(run.folder)
    for second in (run.train(), run.medseg("train", redo=True), run.medseg("prepare", redo=True)):
        assert second.end() == 2
        (sentence,) = second.text.splitlines()
        assert sentence.startswith("StageError: ") and "another process is at prepare or train there" in sentence
    assert hashes(run.folder) == before
    first.process.kill()
    first.end()
    assert finish(run) == undisturbed  # a lock ends with the process that holds it


def test_a_manifest_that_changed_between_runs_is_refused(half, tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(half.config.parent, folder, ignore=shutil.ignore_patterns("run"))
    run = half.copy(tmp_path / "run")
    run.config = write_config(folder, folder / "manifest.csv", **SETTINGS)
    manifest = folder / "manifest.csv"
    before = hashes(run.output)
    rows = manifest.read_text().splitlines(keepends=True)
    manifest.write_text("".join(row for row in rows if not row.startswith("train03,")))
    training = run.train()
    assert training.end() == 2
    (sentence,) = training.text.splitlines()
    assert sentence.startswith("StageError: ") and "cases.train03 changed since the cases were prepared" in sentence
    assert hashes(run.output) == before


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("file systems can be mounted by root only")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_is_a_sentence_and_the_checkpoint_before_it_holds(half, undisturbed, tmp_path, small_disk):
    run = half.copy(tmp_path / "run")
    shutil.copytree(run.output / "train", small_disk / "train")
    shutil.rmtree(run.output / "train")
    (run.output / "train").symlink_to(small_disk / "train")
    filler = small_disk / "filler"
    training = run.train()
    training.wait_for(moments(run.checkpoint, 3))
    fill(filler)
    assert training.end() == 2, training.text
    assert "cannot be written (No space left on device); free space or choose another output" in training.text
    assert steps_done(half.checkpoint) < steps_done(run.checkpoint) < STEPS
    filler.unlink()
    assert finish(run) == undisturbed


def fill(path: Path) -> None:
    with open(path, "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass


def test_a_file_that_may_not_grow_is_a_sentence_and_nothing_is_lost(half, undisturbed, tmp_path):
    import resource

    run = half.copy(tmp_path / "run")
    size = run.checkpoint.stat().st_size // 2
    before = {name: digest for name, digest in hashes(run.folder).items() if name.endswith(".safetensors")}
    training = run.train(preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)))
    assert training.end() == 2
    assert "cannot be written (File too large); free space or choose another output" in training.text
    assert before.items() <= hashes(run.folder).items()
    assert finish(run) == undisturbed


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the worker in /proc")
def test_a_killed_worker_names_its_cases_and_the_rerun_goes_on(prepared, undisturbed, tmp_path):
    run = prepared.copy(tmp_path / "run")
    training = run.train("training.workers=1")
    training.wait_for(moments(run.checkpoint, 5))
    (worker,) = workers_of(training.process.pid)
    os.kill(worker, signal.SIGKILL)
    assert training.end() == 2, training.text
    sentence = training.text.splitlines()[-1]
    assert sentence.startswith(
        f"StageError: worker process {worker} was killed (signal 9) while it made the samples of cases train"
    )
    assert "most likely memory ran out" in sentence and sentence.endswith("run the same command again to go on.")
    assert finish(run, "training.workers=1") == undisturbed


def workers_of(pid: int) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
            if parent == pid and b"spawn_main" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def test_kill_9_while_cases_are_prepared(prepared, tmp_path):
    run = Run(prepared.config, tmp_path / "run")
    cases = run.output / "prepare" / "cases"
    times = [
        lambda: (run.output / "prepare" / "fingerprints").exists(),
        lambda: run.writing("image.npy", cases / "train02") or (cases / "train02" / "image.npy").exists(),
    ]
    for moment in times:
        assert run.medseg("prepare").kill_when(moment) == -signal.SIGKILL
        assert not (run.output / "prepare" / "stage.json").exists()
    last = run.medseg("prepare")
    assert last.end() == 0, last.text
    assert hashes(run.output / "prepare", "stage.json") == hashes(prepared.output / "prepare", "stage.json")
