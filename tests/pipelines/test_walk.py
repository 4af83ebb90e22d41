"""From check to report on phantoms: real files, real training, every stage of the command line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
from phantoms import LPS_AFFINE, write_config, write_picture_set, write_volume_set

from pipelines.config import RunConfig
from pipelines.run import run

SPLITS = {"train": 6, "val": 2, "test": 3}
VOLUME_SETTINGS = {
    "structures": [{"name": "large", "id": 1}, {"name": "small", "id": 2}],
    "plan": {"patch_voxels": [24, 20, 16], "batch_size": 2, "workers": 1},
    "models": {"unet": {"features": [8, 16]}, "fcn8s": {"width": 0.0625, "depth": 11}},
    "training": {
        "epochs": 5,
        "steps_per_epoch": 25,
        "optimizer": {"name": "adamw", "learning_rate": 0.005},
        "schedule": "cosine",
        "compile": False,
    },
    "evaluate": {"bootstrap_resamples": 200},
}


def walk(config: Path, redo: tuple[str, ...] = ()) -> int:
    return run(RunConfig.load(config), redo)


def modified(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and path.name != "config.yaml"}


@pytest.fixture(scope="module")
def volume_run(tmp_path_factory):
    """A whole run on 3D phantoms with two models."""
    folder = tmp_path_factory.mktemp("volumes")
    config = write_config(folder, write_volume_set(folder, SPLITS), **VOLUME_SETTINGS)
    assert walk(config) == 0
    return folder, config


def test_every_stage_leaves_its_results(volume_run):
    out = volume_run[0] / "run"
    for path in (
        "config.yaml",
        "check/stage.json",
        "check/report.csv",
        "prepare/plan.json",
        "prepare/fingerprint.json",
        "train/unet/model.medseg",
        "train/fcn8s/model.medseg",
        "train/unet/log.csv",
        "train/unet/progress.png",
        "predict/unet/predictions.csv",
        "predict/unet/test00.nii.gz",
        "evaluate/unet/per_case.csv",
        "evaluate/fcn8s/summary.csv",
        "evaluate/comparison.csv",
        "report/report.html",
    ):
        assert (out / path).is_file(), path


def test_the_unet_finds_both_balls_on_the_scans_own_grid(volume_run):
    out = volume_run[0] / "run"
    table = pd.read_csv(out / "evaluate/unet/per_case.csv")
    assert len(table) == 3 * 2 and set(table.status) == {"ok"}
    assert table.groupby("structure").dice.mean().min() > 0.85
    mask = nibabel.load(out / "predict/unet/test00.nii.gz")
    np.testing.assert_array_equal(mask.affine, LPS_AFFINE)
    reference = np.asarray(nibabel.load(volume_run[0] / "labels/test00.nii.gz").dataobj)
    ours = (
        2 * np.logical_and(mask.get_fdata() == 1, reference == 1).sum() / ((mask.get_fdata() == 1).sum() + (reference == 1).sum())
    )
    assert table[(table.case_id == "test00") & (table.structure == "large")].dice.item() == pytest.approx(ours)


def test_a_second_walk_does_nothing(volume_run):
    before = modified(volume_run[0] / "run")
    assert walk(volume_run[1]) == 0
    assert modified(volume_run[0] / "run") == before


def test_prepare_and_train_read_no_test_case(tmp_path):
    manifest = write_volume_set(tmp_path, SPLITS)
    settings = VOLUME_SETTINGS | {"models": {"unet": {"features": [8, 16]}}}
    settings["training"] = settings["training"] | {"epochs": 1, "steps_per_epoch": 2}
    config = RunConfig.load(write_config(tmp_path, manifest, **settings))
    for path in tmp_path.rglob("test*.nii.gz"):
        path.write_bytes(b"not to be read")  # unreadable even for root, whom file permissions do not stop
    from pipelines import prepare, train

    assert prepare.run(config) == 0
    assert train.run(config) == 0
    assert (config.folder("train", "unet") / "model.medseg").is_file()
    assert not list(config.folder("prepare").rglob("test*"))


def test_the_same_seed_gives_the_same_weights(volume_run, tmp_path):
    from medseg.inference.bundle import read_bundle
    from pipelines import prepare, train

    settings = VOLUME_SETTINGS | {"models": {"unet": {"features": [4, 8]}, "fcn8s": {"width": 0.0625, "depth": 11}}}
    settings["training"] = settings["training"] | {"epochs": 1, "steps_per_epoch": 3}
    weights = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        path = write_config(tmp_path / name, volume_run[0] / "manifest.csv", **settings)
        config = RunConfig.load(path)
        prepare.run(config)
        train.run(config)
        weights.append([read_bundle(config.folder("train", m) / "model.medseg").weights[0] for m in ("unet", "fcn8s")])
    for first, second in zip(*weights, strict=True):
        assert all((first[key] == second[key]).all() for key in first)


def test_two_threads_give_the_same_weights_twice(volume_run, tmp_path):
    from medseg.inference.bundle import read_bundle

    settings = VOLUME_SETTINGS | {"models": {"unet": {"features": [8, 16]}}}
    settings["training"] = settings["training"] | {"epochs": 1, "steps_per_epoch": 3}
    config = write_config(tmp_path, volume_run[0] / "manifest.csv", **settings)
    assert run_medseg("prepare", str(config), cwd=tmp_path).returncode == 0
    weights = []
    for redo in ([], ["--redo"]):
        done = run_medseg("train", str(config), *redo, cwd=tmp_path, OMP_NUM_THREADS="2")
        assert done.returncode == 0, done.stderr
        weights.append(read_bundle(tmp_path / "run/train/unet/model.medseg").weights[0])
    assert all((weights[0][key] == weights[1][key]).all() for key in weights[0])


def test_pictures_walk_the_same_road(tmp_path):
    config = write_config(
        tmp_path,
        write_picture_set(tmp_path, SPLITS),
        data={"root": str(tmp_path), "manifest": str(tmp_path / "manifest.csv"), "modality": "rgb", "sampling_unit": "image"},
        structures=[{"name": "nucleus", "id": 1, "values": "nonzero"}],
        plan={"patch_voxels": [48, 48, 1], "batch_size": 4, "workers": 1},
        models={"unet": {"features": [8, 16, 32]}},
        training={"epochs": 3, "steps_per_epoch": 12, "optimizer": {"name": "adamw", "learning_rate": 0.003}, "compile": False},
        evaluate={"bootstrap_resamples": 200},
    )
    assert walk(config) == 0
    table = pd.read_csv(tmp_path / "run/evaluate/unet/per_case.csv")
    assert table.dice.mean() > 0.85
    assert "hd95_px" in table and not [c for c in table if c.endswith("_mm")]


def test_an_unreadable_test_scan_is_a_row_and_exit_code_1(volume_run, tmp_path):
    import shutil

    shutil.copytree(volume_run[0], tmp_path / "copy")
    folder = tmp_path / "copy"
    config = RunConfig.load(write_config(folder, folder / "manifest.csv", **VOLUME_SETTINGS))
    scan = folder / "images/test01.nii.gz"
    scan.write_bytes(scan.read_bytes()[:2000])
    from pipelines import evaluate, predict, report

    assert predict.run(config) == 1
    rows = pd.read_csv(folder / "run/predict/unet/predictions.csv").set_index("case_id")
    assert rows.status.to_dict() == {"test00": "done", "test01": "failed", "test02": "done"}
    assert not (folder / "run/predict/unet/test01.nii.gz").exists()
    assert evaluate.run(config) == 1
    table = pd.read_csv(folder / "run/evaluate/unet/per_case.csv")
    assert table[table.case_id == "test01"].status.tolist() == ["prediction_missing"] * 2
    summary = pd.read_csv(folder / "run/evaluate/unet/summary.csv").set_index(["structure", "metric", "convention"])
    worst, defined = (summary.loc[("large", "dice", c), "mean"] for c in ("worst", "defined"))
    assert worst == pytest.approx(defined * 2 / 3)
    assert report.run(config) == 0
    assert "test01" in (folder / "run/report/report.html").read_text()


def run_medseg(*arguments: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2]), **variables}
    return subprocess.run(
        [sys.executable, "-m", "pipelines.cli", *arguments], cwd=cwd, env=environment, capture_output=True, text=True
    )


def test_a_folder_of_scans_is_segmented_from_the_command_line(volume_run, tmp_path):
    import shutil

    shutil.copytree(volume_run[0] / "images", tmp_path / "scans")
    (tmp_path / "scans" / "broken.nii.gz").write_bytes(b"\x1f\x8b broken")
    model = volume_run[0] / "run/train/unet/model.medseg"
    done = run_medseg("segment", str(model), "scans", "masks", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    rows = pd.read_csv(tmp_path / "masks/predictions.csv").set_index("case_id")
    assert rows.status.value_counts().to_dict() == {"done": 11, "failed": 1}
    assert "broken" in done.stderr and "Traceback" not in done.stderr
    ours, theirs = tmp_path / "masks/test00.nii.gz", volume_run[0] / "run/predict/unet/test00.nii.gz"
    assert ours.read_bytes() == theirs.read_bytes()
    assert run_medseg("segment", "no.medseg", "scans", "masks", cwd=tmp_path).returncode == 2


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["run", "nothing.yaml"], "nothing.yaml does not exist"),
        (["check", "c.yaml", "--set", "training.epoch=3"], "epoch"),
        (["train", "c.yaml", "--set", "modles=[unet]"], "unknown key `modles`"),
        (["run", "c.yaml", "--redo", "trane"], "no such stage"),
        (["evaluate"], "give a configuration"),
        (["fetch", "nowhere"], "nowhere"),
    ],
)
def test_a_users_mistake_is_one_sentence(volume_run, tmp_path, arguments, sentence):
    (tmp_path / "c.yaml").write_text(volume_run[1].read_text())
    done = run_medseg(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert sentence in done.stderr + done.stdout and "Traceback" not in done.stderr


def test_help_and_the_measuring_stages_load_no_torch():
    code = (
        "import sys, pipelines.cli, pipelines.evaluate, pipelines.report, pipelines.compare, pipelines.config;"
        "sys.exit(bool({'torch', 'monai'} & set(sys.modules)))"
    )
    assert run_python(code) == 0


def run_python(code: str) -> int:
    return subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).resolve().parents[2]).returncode
