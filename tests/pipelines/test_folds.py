"""A cross-validation from check to report on phantoms: two folds, each case predicted by the model that did not see it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from phantoms import write_config, write_volume_set

from medseg.core.errors import ConfigError, StageError
from medseg.inference.bundle import read_bundle
from medseg.io.formats import read_labels
from medseg.training import loop
from medseg.training.config import TrainingConfig
from pipelines import evaluate, predict, prepare, report, train
from pipelines.check import check
from pipelines.config import RunConfig
from pipelines.run import run

SETTINGS = {
    "folds": 2,
    "structures": [{"name": "large", "id": 1}, {"name": "small", "id": 2}],
    "plan": {"patch_voxels": [16, 16, 8], "batch_size": 2, "workers": 1},
    "models": {"unet": {"features": [4, 8]}},
    "training": {"epochs": 1, "steps_per_epoch": 3, "device": "cpu", "workers": 0},
    "evaluate": {"bootstrap_resamples": 100, "metrics": ["dice"]},
    "report": {"gallery_cases": 0, "pdf": False},
}
POOL = [f"train{n:02d}" for n in range(6)] + ["val00", "val01"]


@pytest.fixture(scope="module", autouse=True)
def _no_drawing():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "draw_training_curves", lambda log, path: path)
        patch.setattr(prepare, "draw_preview", lambda path, *_: path)
        yield


@pytest.fixture(scope="module")
def crossed(tmp_path_factory) -> Path:
    """A finished cross-validation: 8 cases of 6 patients in the pool (the first three are one's), 2 test cases, two sites."""
    folder = tmp_path_factory.mktemp("folds")
    manifest = write_volume_set(folder, {"train": 6, "val": 2, "test": 2})
    table = pd.read_csv(manifest)
    table["patient_id"] = ["same"] * 3 + table["patient_id"].tolist()[3:]
    table.assign(site=["a", "b"] * 5).to_csv(manifest, index=False)
    data = {"root": str(folder), "manifest": str(manifest), "stratify_by": ["site"], "val_fraction": 0.3}
    path = write_config(folder, manifest, **SETTINGS, data=data)
    assert run(RunConfig.load(path)) == 0
    return path


@pytest.fixture
def load(crossed: Path, tmp_path: Path):
    """The finished run under an output of its own."""
    shutil.copytree(crossed.parent / "run", tmp_path / "run")
    return lambda *assignments: RunConfig.load(crossed, [f"output={tmp_path / 'run'}", *assignments])


def held_out(folder: Path) -> dict[str, int]:
    return pd.read_csv(folder / "run/train/folds.csv").set_index("case_id")["fold"].to_dict()


def test_every_case_of_the_pool_is_predicted_once_by_a_model_that_never_saw_it(crossed: Path) -> None:
    out = crossed.parent / "run"
    fold_of = held_out(crossed.parent)
    assert sorted(fold_of) == POOL and len({fold_of[c] for c in POOL[:3]}) == 1  # one patient, one fold
    rows = pd.read_csv(out / "predict/unet/predictions.csv").set_index("case_id")
    assert rows.index.tolist() == POOL and set(rows.status) == {"done"}
    seen = {}
    for number in (0, 1):
        place = out / "train/unet" / f"fold_{number}"
        cases = json.loads((place / "inputs.json").read_text())["cases"]
        seen[read_bundle(place / "model.medseg").sha256] = set(cases)
        own = {case_id for case_id, fold in fold_of.items() if fold == number}
        assert set(cases) == set(POOL) - own
        assert {use for use, _ in cases.values()} == {"train", "val"}
        assert (place / "log.csv").is_file() and (place / "stage.json").is_file()
    for case_id, row in rows.iterrows():
        assert case_id not in seen[row["model_sha256"]]
        assert read_labels(out / "predict/unet" / row["output"]).array.shape == (24, 20, 16)


def test_the_ensemble_holds_both_networks(crossed: Path) -> None:
    place = crossed.parent / "run/train/unet"
    whole, parts = read_bundle(place / "model.medseg"), [read_bundle(place / f"fold_{n}" / "model.medseg") for n in (0, 1)]
    assert len(whole.weights) == 2 and whole.description.model == "unet"
    for weights, part in zip(whole.weights, parts, strict=True):
        assert all((weights[key] == part.weights[0][key]).all() for key in weights)
    voxels = [bundle.description.plan.class_voxels for bundle in (whole, *parts)]
    for counted, number in zip(voxels[1:], (0, 1), strict=True):  # in the fold's own training cases
        cases = json.loads((place / f"fold_{number}" / "inputs.json").read_text())["cases"]
        records = [place.parents[1] / f"prepare/fingerprints/{c}.json" for c, (split, _) in cases.items() if split == "train"]
        each = [json.loads(path.read_text())["fingerprint"]["class_voxels"] for path in records]
        assert counted == [sum(values) for values in zip(*each, strict=True)] and 0 < counted[0] < voxels[0][0]
    assert whole.temperatures == [part.temperatures[0] for part in parts]
    assert len(whole.networks()) == 2
    assert "2-fold cross-validation" in whole.card
    stage = json.loads((place / "stage.json").read_text())
    assert stage["counts"] == {"folds": 2, "pool": 8} and stage["training_seconds"] > 0


def test_tables_are_pooled_and_the_report_says_so(crossed: Path) -> None:
    out = crossed.parent / "run"
    table = pd.read_csv(out / "evaluate/unet/per_case.csv")
    assert len(table) == 8 * 2
    assert dict(zip(table.case_id, table.fold, strict=True)) == held_out(crossed.parent)
    summary = pd.read_csv(out / "evaluate/unet/summary.csv")
    assert "fold" not in set(summary.metric) and set(summary.n + summary.n_undefined) == {8}
    page = (out / "report/report.html").read_text()
    assert "2-fold cross-validation, out-of-fold predictions, grouped by patient, stratified by site" in page
    assert "unet, fold 1" in page and "2 folds of 3" in page


def test_compare_reads_the_pooled_tables(crossed: Path, tmp_path: Path) -> None:
    from pipelines.compare import compare

    shutil.copytree(crossed.parent / "run", tmp_path / "other")
    assert compare([crossed.parent / "run", tmp_path / "other"], tmp_path / "out") == 0
    assert (pd.read_csv(tmp_path / "out/comparison_summary.csv").mean_difference == 0).all()


def test_a_second_walk_does_nothing(load, capsys: pytest.CaptureFixture[str]) -> None:
    config = load()
    before = {p: p.stat().st_mtime_ns for p in config.output.rglob("*") if p.is_file()}
    for stage in (train, predict, evaluate):
        assert stage.run(config) == 0
    heard = capsys.readouterr().err
    for words in ("train unet fold 0: unchanged", "train unet: all 2 folds unchanged", "predict unet: unchanged"):
        assert words in heard
    after = {p: p.stat().st_mtime_ns for p in config.output.rglob("*") if p.is_file()}
    assert {p for p in after if after[p] != before.get(p)} <= {config.folder("train", "folds.csv")}


def test_a_finished_fold_is_not_trained_again(load) -> None:
    config = load()
    first, second = (config.folder("train", "unet", f"fold_{n}") / "model.medseg" for n in (0, 1))
    whole = config.folder("train", "unet") / "model.medseg"
    before, weights = first.stat().st_mtime_ns, whole.read_bytes()
    for name in train.OWN_FILES:
        (second.parent / name).unlink(missing_ok=True)
    assert train.run(config) == 0
    assert first.stat().st_mtime_ns == before and second.is_file()
    assert whole.read_bytes() == weights  # the same seed and steps: the same model


def test_the_test_cases_go_through_all_folds_together(load) -> None:
    config = load("predict.split=test")
    assert predict.run(config) == 0
    rows = pd.read_csv(config.folder("predict", "unet") / "predictions.csv")
    assert rows.case_id.tolist() == ["test00", "test01"]
    assert set(rows.model_sha256) == {read_bundle(config.folder("train", "unet") / "model.medseg").sha256}
    assert evaluate.run(config) == 0 and report.run(config) == 0
    assert "fold" not in pd.read_csv(config.folder("evaluate", "unet") / "per_case.csv")
    assert "test cases predicted by all folds" in config.folder("report", "report.html").read_text()


@pytest.mark.parametrize("split", ["[train, test]", "train", "[val]"])
def test_out_of_fold_and_other_cases_are_not_mixed(load, split: str) -> None:
    config = load(f"predict.split={split}")
    for stage in (predict, evaluate):
        with pytest.raises(ConfigError, match=r"would mix cases .*; with `folds` leave it out .* or write `test`"):
            stage.run(config)


def test_folds_that_changed_after_training_are_refused(load) -> None:
    """A model must not be measured on what it has seen."""
    with pytest.raises(StageError, match=r"fold_\d.model.medseg has seen \d of the cases that its fold holds out"):
        predict.run(load("seed=5"))
    with pytest.raises(StageError, match=r"finished training made from other inputs \(.*changed\)"):
        train.run(load("seed=5"))
    with_splits = load("folds=null", "data.stratify_by=[]")
    with pytest.raises(StageError, match=r"cases.val00, cases.val01 changed since the cases were prepared"):
        train.run(with_splits)
    prepare.run(with_splits)
    with pytest.raises(StageError, match="holds a finished training made from other inputs"):
        train.run(with_splits)


def test_the_order_of_the_rows_changes_nothing(load, crossed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = tmp_path / "manifest.csv"
    pd.read_csv(crossed.parent / "manifest.csv").iloc[::-1].to_csv(manifest, index=False)
    config, turned = load(), load(f"data.manifest={manifest}")
    assert turned.cross_validation(turned.manifest()) == config.cross_validation(config.manifest())
    job, same = (
        train._job(c, c.manifest(), "unet", c.section("training", TrainingConfig), prepare.plan_of(c)) for c in (config, turned)
    )
    assert job.train_ids == same.train_ids == POOL


def test_a_training_without_folds_is_not_overwritten(load) -> None:
    config = load()
    shutil.rmtree(config.folder("train"))
    config.folder("train", "unet").mkdir(parents=True)
    (config.folder("train", "unet") / "inputs.json").write_text("{}")
    with pytest.raises(StageError, match="holds a training without folds"):
        train.run(config)


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        (["folds=1"], "`folds`: a whole number of at least 2, not 1"),
        (["folds=7"], "6 patients are too few for 7 folds"),
        (["data.stratify_by=[sex]"], "`stratify_by` names `sex`"),
        (["predict.split=[train, test]"], "would mix cases"),
        (["training.init_from=no.medseg"], "`init_from`: no.medseg does not exist"),
        (["training.class_weights={larg: 2}"], "`class_weights` names `larg`"),
        (["training.loss=dice", "training.class_weights=auto"], "no cross-entropy part"),
    ],
)
def test_check_finds_what_cannot_be(crossed: Path, tmp_path: Path, assignment: list[str], said: str) -> None:
    assert check(crossed, [f"output={tmp_path}", *assignment]) == 2
    found = pd.read_csv(tmp_path / "check/report.csv", keep_default_na=False)
    assert found[found.severity == "error"].problem.str.contains(said, regex=False).any(), found.to_string()


def test_check_finds_an_extra_that_is_missing(crossed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelines import check as stage

    monkeypatch.setattr(stage.importlib.util, "find_spec", lambda name: None)
    assert check(crossed, [f"output={tmp_path}", "training.track=[mlflow]"]) == 2
    assert "pip install medseg[track]" in (tmp_path / "check/report.csv").read_text()


def test_check_warns_of_settings_without_effect(crossed: Path, tmp_path: Path) -> None:
    assert check(crossed, [f"output={tmp_path}", "folds=null"]) == 0
    assert "has no effect without `folds`" in (tmp_path / "check/report.csv").read_text()


def test_check_finds_a_picture_in_two_folds(crossed: Path, tmp_path: Path) -> None:
    """The same scan under two patients' names."""
    table = pd.read_csv(crossed.parent / "manifest.csv")
    fold_of = held_out(crossed.parent)
    a, b = (next(c for c in POOL[3:] if fold_of[c] == number) for number in (0, 1))
    image = table.set_index("case_id").image
    table.loc[table.case_id == b, "image"] = image[a]
    table.to_csv(tmp_path / "manifest.csv", index=False)
    code = check(crossed, [f"output={tmp_path / 'run'}", f"data.manifest={tmp_path / 'manifest.csv'}"])
    found = pd.read_csv(tmp_path / "run/check/report.csv", keep_default_na=False)
    assert code == 2 and found.problem.str.contains("in different folds").any()
