"""Stage `train`: models trained, skipped, resumed, refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from phantoms import write_config, write_volume_set

from medseg.core.errors import ConfigError, ModelFileError, StageError
from medseg.core.record import differences
from medseg.inference.bundle import read_bundle, write_bundle
from medseg.training import loop
from pipelines import prepare
from pipelines.config import RunConfig
from pipelines.train import run

SETTINGS = {
    "structures": [{"name": "large", "id": 1}, {"name": "small", "id": 2}],
    "plan": {"patch_voxels": [16, 16, 8], "batch_size": 2, "workers": 1},
    "models": {"unet": {"features": [4, 8]}, "wide": {"architecture": "unet", "features": [6, 8]}},
    "training": {"epochs": 2, "steps_per_epoch": 2, "device": "cpu"},
}


@pytest.fixture(autouse=True)
def _no_drawing(monkeypatch):
    """Drawing takes longer than these trainings."""
    monkeypatch.setattr(loop, "draw_training_curves", lambda log, path: path)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("train_stage")
    path = write_config(folder, write_volume_set(folder, {"train": 3, "val": 1, "test": 1}), **SETTINGS)
    prepare.run(RunConfig.load(path))
    return path


@pytest.fixture
def load(prepared, tmp_path):
    """The prepared run under an output of its own, with settings overridden."""
    import shutil

    shutil.copytree(prepared.parent / "run", tmp_path / "run")

    def with_settings(*assignments: str) -> RunConfig:
        return RunConfig.load(prepared, [f"output={tmp_path / 'run'}", *assignments])

    return with_settings


def test_each_model_gets_its_file(load):
    config = load()
    assert run(config) == 0
    for name in ("unet", "wide"):
        bundle = read_bundle(config.folder("train", name) / "model.medseg")
        assert bundle.description.model == name and bundle.description.architecture == "unet"
        assert bundle.labels == config.labels and bundle.plan.patch_voxels == (16, 16, 8)
        assert bundle.networks()[0].training is False
        assert "For research use" in bundle.card and bundle.description.fingerprint["cases"] == 3
        text = json.dumps(bundle.description.model_dump(mode="json")) + bundle.card
        assert "train00" not in text and "val00" not in text  # no case ids travel
        stage = json.loads((config.folder("train", name) / "stage.json").read_text())
        assert stage["counts"] == {"train": 3, "val": 1, "steps": 4} and stage["best"]["epoch"] in (1, 2)
        # A model's time is its own: it does not begin with the model before it.
        assert stage["seconds"] <= stage["training_seconds"] + 3


def test_what_is_trained_is_skipped_and_a_new_model_disturbs_no_other(load, capsys):
    config = load("models={unet: {features: [4, 8]}}")
    prepare.run(config)
    run(config)
    prepare.run(load())
    before = {p: p.stat().st_mtime_ns for p in config.folder("train").rglob("*") if p.is_file()}
    capsys.readouterr()
    assert run(load()) == 0
    assert "train unet: unchanged, skipped" in capsys.readouterr().err
    assert all(p.stat().st_mtime_ns == t for p, t in before.items())
    assert (config.folder("train", "wide") / "model.medseg").is_file()
    assert run(load("training.workers=0", "training.checkpoint_minutes=1")) == 0  # neither changes the weights


@pytest.mark.parametrize(
    ("assignment", "named"),
    [
        ("training.optimizer.learning_rate=0.5", "training.optimizer.learning_rate"),
        ("seed=7", "seed"),
        ("models.unet.features=[4, 4]", "model.options.features"),
        ("structures=[{name: liver, id: 1}, {name: small, id: 2}]", "labels.structures, .*"),
    ],
)
def test_other_inputs_are_refused_by_name(load, assignment, named):
    config = load("models={unet: {features: [4, 8]}}")
    prepare.run(config)
    run(config)
    model = config.folder("train", "unet") / "model.medseg"
    before = model.read_bytes()
    changed = load("models={unet: {features: [4, 8]}}", assignment)
    prepare.run(changed)
    with pytest.raises(StageError, match=rf"finished training made from other inputs \({named} changed\); .*--redo train"):
        run(changed)
    assert model.read_bytes() == before


def test_a_half_done_training_goes_on_or_is_refused(load, monkeypatch):
    one = "models={unet: {features: [4, 8]}}"
    whole = load(one)
    prepare.run(whole)
    run(whole)
    expected = read_bundle(whole.folder("train", "unet") / "model.medseg").weights[0]
    run(load(one), redo=True)  # the same again, from the start
    save = loop.save_checkpoint

    def killed_after(path, *state):
        save(path, *state)
        raise MemoryError

    config = load(one)
    monkeypatch.setattr(loop, "save_checkpoint", killed_after)
    with pytest.raises(MemoryError):
        run(config, redo=True)
    monkeypatch.setattr(loop, "save_checkpoint", save)
    assert not (config.folder("train", "unet") / "model.medseg").exists()
    with pytest.raises(StageError, match="half-done"):
        run(load(one, "seed=3"))
    assert run(config) == 0
    weights = read_bundle(config.folder("train", "unet") / "model.medseg").weights[0]
    assert all((weights[k] == expected[k]).all() for k in expected)


def test_without_prepare_the_sentence_says_so(prepared, tmp_path):
    with pytest.raises(StageError, match="run `medseg prepare` first"):
        run(RunConfig.load(prepared, [f"output={tmp_path / 'empty'}"]))


def test_a_wrong_setting_is_found_before_any_training(load):
    with pytest.raises(ConfigError, match="unknown key `learning_rate`"):
        run(load("training.learning_rate=1"))
    assert not load().folder("train").exists()


def test_an_unfinished_prepare_is_not_trained_on(load):
    config = load()
    (config.folder("prepare") / "stage.json").unlink()
    with pytest.raises(StageError, match="prepare is not finished; run `medseg prepare` first"):
        run(config)


def test_differences_are_dotted_keys():
    assert differences({"a": {"b": 1, "c": [1]}, "d": 1}, {"a": {"b": 2, "c": [1]}, "e": 1}) == ["a.b", "d", "e"]


def test_torchrun_starts_the_stage_as_a_module(load):
    """Two processes train one model; one of them writes, and what is finished is skipped by both."""
    config = load("models={unet: {features: [4, 8]}}", "training.workers=0")
    config.save()
    prepare.run(config)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "pipelines.train"]
    root = Path(__file__).resolve().parents[2]
    for heard in ("best validation Dice", "train unet: unchanged, skipped"):
        done = subprocess.run([*command, str(config.folder("config.yaml"))], cwd=root, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stderr.count(heard) == 1
    assert json.loads((config.folder("train", "unet") / "stage.json").read_text())["counts"]["steps"] == 4
    assert run(config) == 0
    (config.folder("train", "unet") / "inputs.json").write_text("{}")
    done = subprocess.run([*command, str(config.folder("config.yaml"))], cwd=root, capture_output=True, text=True)
    assert done.returncode and done.stderr.count("holds a finished training made from other inputs") == 1


def test_another_file_to_start_from_is_another_training(load, tmp_path):
    """The weights that a training starts with count by their content, not by the name of their file."""
    one = "models={unet: {features: [4, 8]}}"
    config = load(one)
    prepare.run(config)
    run(config)
    start = tmp_path / "start.medseg"
    start.write_bytes((config.folder("train", "unet") / "model.medseg").read_bytes())
    begun = load(one, f"training.init_from={start}")
    prepare.run(begun)
    run(begun, redo=True)
    bundle = read_bundle(config.folder("train", "unet") / "model.medseg")
    assert bundle.description.started_from.model == "unet"
    moved = start.rename(tmp_path / "moved.medseg")
    assert run(load(one, f"training.init_from={moved}")) == 0
    write_bundle(moved, bundle)
    prepare.run(load(one, f"training.init_from={moved}"))
    with pytest.raises(StageError, match="init_from_sha256 changed"):
        run(load(one, f"training.init_from={moved}"))
    with pytest.raises(ModelFileError, match=r"none.medseg"):
        run(load(one, f"training.init_from={tmp_path / 'none.medseg'}"))
