"""Stage `predict`: the cases of a split through every model of a run."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import pytest
from phantoms import write_config, write_volume_set
from tiny_models import write_tiny_model

from medseg.core.errors import ConfigError, ModelFileError, StageError
from medseg.core.files import write_json
from medseg.core.labels import LabelScheme, Structure
from medseg.io.formats import read_grid, read_labels
from pipelines.config import RunConfig
from pipelines.predict import run
from pipelines.segment import segment

STRUCTURES = [{"name": "large", "id": 1}, {"name": "small", "id": 2}]
SCHEME = LabelScheme(structures=[Structure(**s) for s in STRUCTURES])


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    """A run with two trained models of random weights, and three test cases."""
    manifest = write_volume_set(tmp_path, {"train": 1, "val": 1, "test": 3})
    path = write_config(tmp_path, manifest, structures=STRUCTURES, models=["unet", "fcn8s"], predict={"device": "cpu"})
    loaded = RunConfig.load(path)
    for seed, name in enumerate(("unet", "fcn8s")):
        (loaded.folder("train", name)).mkdir(parents=True)
        write_tiny_model(loaded.folder("train", name) / "model.medseg", seed=seed, scheme=SCHEME)
    return loaded


def table(config: RunConfig, model: str = "unet") -> pd.DataFrame:
    return pd.read_csv(config.folder("predict", model) / "predictions.csv", keep_default_na=False).set_index("case_id")


def times(config: RunConfig) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in config.folder("predict").rglob("*") if path.is_file()}


def test_every_model_predicts_the_test_cases(config: RunConfig, tmp_path: Path) -> None:
    assert run(config) == 0
    for model in ("unet", "fcn8s"):
        rows = table(config, model)
        assert rows.status.to_dict() == dict.fromkeys(["test00", "test01", "test02"], "done")
        assert rows.loc["test00", "input"] == "images/test00.nii.gz"
        mask = config.folder("predict", model) / str(rows.loc["test00", "output"])
        assert read_grid(mask) == read_grid(tmp_path / "images/test00.nii.gz")
        stage = json.loads((config.folder("predict", model) / "stage.json").read_text())
        assert stage["counts"] == {"given": 3, "done": 3, "failed": 0}
        assert (config.folder("predict", model) / "records/test01.json").is_file()
    a, b = (read_labels(config.folder("predict", m) / "test00.nii.gz").array for m in ("unet", "fcn8s"))
    assert (a != b).any()


def test_it_reads_no_label_and_no_other_split(config: RunConfig, tmp_path: Path) -> None:
    for path in [*tmp_path.glob("labels/*"), *tmp_path.glob("images/train*"), *tmp_path.glob("images/val*")]:
        path.unlink()
    assert run(config) == 0


def test_segment_gives_the_same_masks(config: RunConfig, tmp_path: Path) -> None:
    run(config)
    segment(config.folder("train", "unet") / "model.medseg", tmp_path / "images", tmp_path / "masks", device="cpu")
    name = "test02.nii.gz"
    assert (tmp_path / "masks" / name).read_bytes() == (config.folder("predict", "unet") / name).read_bytes()


def test_unchanged_is_skipped_and_changes_are_seen(config: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(config)
    before = times(config)
    capsys.readouterr()
    assert run(config) == 0
    assert times(config) == before
    assert "predict unet: unchanged, skipped" in capsys.readouterr().err
    # One altered mask is made again, and only that one.
    mask = config.folder("predict", "unet") / "test01.nii.gz"
    whole = mask.read_bytes()
    mask.write_bytes(b"edited")
    assert run(config) == 0
    assert mask.read_bytes() == whole
    changed = {path.name for path, time in times(config).items() if before.get(path) != time and path.suffix == ".gz"}
    assert changed == {"test01.nii.gz"}
    # A new model makes its own predictions again, not the other's.
    before = times(config)
    write_tiny_model(config.folder("train", "fcn8s") / "model.medseg", seed=7, scheme=SCHEME)
    assert run(config) == 0
    changed_models = {
        path.parent.name for path, time in times(config).items() if before.get(path) != time and path.suffix == ".gz"
    }
    assert changed_models == {"fcn8s"}
    before = times(config)
    assert run(config, redo=True) == 0
    assert not set(before.items()) & {i for i in times(config).items() if i[0].suffix == ".gz"}


def test_a_bad_case_is_a_row_and_is_tried_again(config: RunConfig, tmp_path: Path) -> None:
    scan = tmp_path / "images/test01.nii.gz"
    whole = scan.read_bytes()
    scan.unlink()
    assert run(config) == 1
    rows = table(config)
    assert rows.status.tolist() == ["done", "failed", "done"]
    assert "test01.nii.gz does not exist" in rows.loc["test01", "reason"]
    assert rows.loc["test01", "output"] == ""
    assert run(config) == 1  # not taken for finished
    scan.write_bytes(whole)
    assert run(config) == 0
    assert table(config).status.tolist() == ["done"] * 3


def test_other_splits_on_request(config: RunConfig) -> None:
    config.settings["predict"] = {"split": ["val", "test"], "device": "cpu"}
    assert run(config) == 0
    assert len(table(config)) == 4


def test_what_cannot_be_predicted(config: RunConfig) -> None:
    model = config.folder("train", "unet") / "model.medseg"
    whole = model.read_bytes()
    write_tiny_model(model)
    with pytest.raises(ModelFileError, match=r"was trained for other structures, liver \(3\), tumour \(300\)"):
        run(config)
    model.write_bytes(whole[:-1000])
    with pytest.raises(ModelFileError, match="truncated"):
        run(config)
    model.unlink()
    with pytest.raises(StageError, match="run `medseg train` first"):
        run(config)
    config.settings["predict"] = {"overlapp": 0.5}
    with pytest.raises(ConfigError, match=r"predict: unknown key `overlapp`"):
        run(config)


def test_a_test_case_that_the_model_has_seen_is_refused(config: RunConfig) -> None:
    """Without folds too, and for the model of all folds; other splits may be predicted on purpose."""
    for model, folder in (("unet", "unet"), ("fcn8s", "fcn8s/fold_1")):
        record = config.folder("train", folder) / "stage.json"
        write_json(record, {"inputs": {"cases": {"train00": [], "test01": []}}})
        if folder != model:
            write_json(config.folder("train", model) / "stage.json", {"inputs": {"folds": ["a", "b"]}})
        with pytest.raises(StageError, match=r"has seen 1 of the test cases \(such as test01\): the splits have changed"):
            run(config)
        config.settings["predict"]["split"] = ["train"]
        assert run(config) == 0
        config.settings["predict"]["split"] = ["test"]
        record.unlink()
    assert run(config) == 0


def test_channels_in_another_order_are_refused(config: RunConfig, tmp_path: Path) -> None:
    model = config.folder("train", "unet") / "model.medseg"
    write_tiny_model(model, scheme=SCHEME, channels=["t1", "flair"], n_channels=2)
    text = (tmp_path / "manifest.csv").read_text().replace("case_id,image,", "case_id,image_flair,image_t1,", 1)
    lines = [re.sub(r"(images/\S+?gz),", r"\1,\1,", line) for line in text.splitlines()]
    (tmp_path / "manifest.csv").write_text("\n".join(lines) + "\n")
    with pytest.raises(ModelFileError, match=r"takes the channels t1, flair and the manifest has flair, t1; order and name"):
        run(config)


def test_a_split_without_cases(tmp_path: Path) -> None:
    manifest = write_volume_set(tmp_path, {"train": 1, "val": 1})
    config = RunConfig.load(write_config(tmp_path, manifest, structures=STRUCTURES, models=["unet"]))
    with pytest.raises(ConfigError, match="has no case of split test"):
        run(config)
