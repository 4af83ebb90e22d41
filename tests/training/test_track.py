"""Rows arrive in the real TensorBoard and MLflow, and are read back with their own readers."""

from __future__ import annotations

import builtins
import math
import os
import sqlite3
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from medseg.core.errors import MissingExtraError, StageError
from medseg.training.track import TRACKERS, flattened, open_trackers

SETTINGS = {
    "loss": "dice_ce",
    "optimizer": {"name": "sgd", "learning_rate": 0.01},
    "track": ["mlflow"],
    "compile": False,
    "none": {},
}


def rows_of(step: int) -> dict[str, float]:
    return {"train_loss": 10.0 / step, "val_dice_left (kidney)": step / 100, "seconds": float(step)}


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard would show."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    reader.Reload()
    return {tag: [(e.step, pytest.approx(e.value, rel=1e-6)) for e in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}


def mlflow_runs(folder: Path):
    """A client on the file, and the runs in it, the oldest first."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mlflow.tracking import MlflowClient

        client = MlflowClient(tracking_uri=f"sqlite:///{(folder.parent / 'mlflow.db').as_posix()}")
        experiment = client.get_experiment_by_name("medseg")
        runs = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"])
    return client, runs


def history(client, run, key: str) -> list[tuple[int, float]]:
    return [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, key)]


def train(names, folder: Path, steps, done: int = 0, finished: bool = True) -> None:
    trackers = open_trackers(names, folder, folder.name, SETTINGS, done)
    for step in steps:
        trackers.log(step, rows_of(step))
    trackers.close(finished)


def test_tensorboard_shows_every_row_once_though_the_training_was_cut_short(tmp_path):
    folder = tmp_path / "unet"
    train(["tensorboard"], folder, [5, 10, 15], finished=False)  # killed before the checkpoint of step 15
    train(["tensorboard"], folder, [15, 20], done=10)
    shown = scalars(folder)
    assert shown["train_loss"] == [(5, 2.0), (10, 1.0), (15, 10 / 15), (20, 0.5)]
    assert {step for points in shown.values() for step, _ in points} == {5, 10, 15, 20} and len(shown) == 3
    train(["tensorboard"], folder, [5], done=0)  # begun anew: nothing of the old one is left in the curves
    assert scalars(folder)["train_loss"] == [(5, 2.0)]


def test_a_kill_loses_no_row_of_tensorboard(tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from medseg.training.track import open_trackers;"
        "t = open_trackers(['tensorboard'], Path(sys.argv[1]), 'unet', {}, 0);"
        "t.log(5, {'train_loss': 2.0}); t.log(10, {'train_loss': 1.0}); os.kill(os.getpid(), 9)"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "unet")], env=environment, check=False)
    assert scalars(tmp_path / "unet")["train_loss"] == [(5, 2.0), (10, 1.0)]


def test_mlflow_holds_one_run_with_its_settings_and_every_row_once(tmp_path):
    folder = tmp_path / "train" / "unet"
    train(["mlflow"], folder, [5, 10, 15], finished=False)
    client, (run,) = mlflow_runs(folder)
    assert run.info.status == "KILLED"
    train(["mlflow"], folder, [15, 20], done=10)
    client, (run,) = mlflow_runs(folder)
    assert run.info.run_name == "unet" and run.info.status == "FINISHED"
    assert run.data.params == {
        "loss": "dice_ce",
        "optimizer.name": "sgd",
        "optimizer.learning_rate": "0.01",
        "track": '["mlflow"]',
        "compile": "false",
        "none": "{}",
    }
    assert history(client, run, "train_loss") == [(5, 2.0), (10, 1.0), (15, 10 / 15), (20, 0.5)]
    assert history(client, run, "val_dice_left _kidney_") == [(s, s / 100) for s in (5, 10, 15, 20)]
    # Another model of the run, and the first one begun anew.
    train(["mlflow"], folder.parent / "fcn8s", [5])
    train(["mlflow"], folder, [5])
    client, runs = mlflow_runs(folder)
    assert [r.info.run_name for r in runs] == ["unet", "fcn8s", "unet"]
    assert [len(history(client, r, "train_loss")) for r in runs] == [4, 1, 1]
    train(["mlflow"], folder / "fold_0", [5])
    assert [r.info.run_name for r in mlflow_runs(folder)[1]][-1] == "fold_0"
    assert [p.parent for p in tmp_path.rglob("mlflow.db")] == [folder.parent]
    assert not (Path.cwd() / "mlruns").exists()


def test_undefined_values_are_logged_and_a_training_that_fails_is_marked(tmp_path):
    with pytest.raises(StageError, match="cause"), open_trackers(list(TRACKERS), tmp_path / "unet", "unet", {}, 0) as trackers:
        trackers.log(5, {"val_dice_absent": math.nan, "train_loss": 1.0})
        raise StageError("cause")
    client, (run,) = mlflow_runs(tmp_path / "unet")
    ((_, value),) = history(client, run, "val_dice_absent")
    assert math.isnan(value) and scalars(tmp_path / "unet")["train_loss"] == [(5, 1.0)]
    assert run.info.status == "KILLED"


def test_the_network_is_not_touched_and_nothing_is_printed(tmp_path):
    code = """
import socket, sys
from pathlib import Path

def refuse(*arguments, **options):
    sys.stdout.write("network\\n")
    raise OSError("no network here")

socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
import medseg.training.augment  # MONAI, which imports MLflow by itself
from medseg.training.track import open_trackers
with open_trackers(["tensorboard", "mlflow"], Path(sys.argv[1]) / "unet", "unet", {"loss": "dice"}, 0) as trackers:
    trackers.log(5, {"train_loss": 1.0})
from mlflow.telemetry import get_telemetry_client
assert get_telemetry_client() is None  # it reports from a thread, minutes later
"""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], env=environment, capture_output=True, text=True, cwd=tmp_path
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mlflow.db", "unet"]


@pytest.mark.parametrize(("name", "package"), [("tensorboard", "tensorboard"), ("mlflow", "mlflow"), ("mlflow", "sqlalchemy")])
def test_a_missing_package_names_the_command(tmp_path, monkeypatch, name, package):
    real = builtins.__import__

    def without(module, *arguments, **options):
        if module.split(".")[0] == package:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)
        return real(module, *arguments, **options)

    for loaded in [m for m in sys.modules if m.split(".")[0] in (package, "mlflow") or m.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=rf'{name} needs a package .*{package}.* `pip install "medseg\[track\]"`'):
        open_trackers([name], tmp_path, "unet", {}, 0)


def test_files_that_cannot_be_used_are_a_sentence(tmp_path):
    (tmp_path / "mlflow.db").write_text("not a database, and long enough to be seen as none" * 100)
    with pytest.raises(StageError, match=r"training.track: mlflow cannot use its files at .*; move them elsewhere"):
        open_trackers(["mlflow"], tmp_path / "unet", "unet", {}, 0)


def test_a_tracker_that_fails_under_way_does_not_end_the_training(tmp_path, capsys):
    trackers = open_trackers(list(TRACKERS), tmp_path / "unet", "unet", {}, 0)
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        database.execute("DROP TABLE metrics")
    for step in (5, 10):
        trackers.log(step, rows_of(step))
    trackers.close()
    assert capsys.readouterr().err.count("mlflow: the log cannot be written") == 1
    assert [step for step, _ in scalars(tmp_path / "unet")["train_loss"]] == [5, 10]


def test_settings_become_dotted_keys():
    assert flattened({"a": {"b": 1, "c": {"d": [1, 2]}}, "e": None}) == {"a.b": "1", "a.c.d": "[1, 2]", "e": "null"}
