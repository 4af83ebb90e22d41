"""`medseg check`: every problem of a run in one pass, with the exit code, the table and the console."""

import gzip
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import phantoms
import pytest
import yaml
from tiny_models import write_tiny_model

from medseg.core.errors import ConfigError, MedsegError
from pipelines.check import MOST_ROWS_SHOWN, check, rendered, report_table, run
from pipelines.config import RunConfig

STRUCTURES = [{"name": "large", "id": 1}, {"name": "small", "id": 2}]


def settings(**changes: Any) -> dict[str, Any]:
    return {"structures": STRUCTURES, "models": {"unet": {"features": [4, 8]}}, "training": {"epochs": 1}} | changes


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    return phantoms.write_volume_set(tmp_path, {"train": 2, "val": 1, "test": 1})


def report(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "run" / "check" / "report.csv", keep_default_na=False)


def test_a_sound_run_passes_and_is_not_checked_twice(manifest: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = manifest.parent
    config = RunConfig.load(phantoms.write_config(folder, manifest, **settings()))
    assert run(config) == 0
    assert report(folder).empty
    assert list(report(folder)) == ["case_id", "file", "severity", "problem", "what_to_do"]
    assert "4 cases (2 train, 1 val, 1 test), 0 errors, 0 warnings" in capfd.readouterr().err
    assert run(config) == 0
    assert "unchanged, skipped" in capfd.readouterr().err
    assert run(config, redo=True) == 0
    assert "0 errors" in capfd.readouterr().err


def test_a_changed_scan_is_checked_again(manifest: Path) -> None:
    folder = manifest.parent
    config = RunConfig.load(phantoms.write_config(folder, manifest, **settings()))
    assert run(config) == 0
    scan = folder / "images" / "train00.nii.gz"
    scan.write_bytes(scan.read_bytes()[:-100])
    assert run(config) == 2
    assert report(folder)["case_id"].tolist() == ["train00"]
    assert not (folder / "run" / "check" / "stage.json").exists()


def test_everything_wrong_is_listed_in_one_pass(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    manifest = phantoms.write_volume_set(tmp_path, {"train": 7, "val": 1, "test": 2})
    images, labels = tmp_path / "images", tmp_path / "labels"
    (images / "train00.nii.gz").unlink()
    (images / "train01.nii.gz").write_bytes(gzip.compress(b"short"))
    nibabel.save(nibabel.Nifti1Image(np.zeros((24, 20, 16), np.uint8), np.eye(4)), labels / "train02.nii.gz")
    nibabel.save(nibabel.Nifti1Image(np.full((24, 20, 16), 9, np.uint8), phantoms.LPS_AFFINE), labels / "train03.nii.gz")
    nibabel.save(nibabel.Nifti1Image(np.full((24, 20, 16), np.nan, np.float32), phantoms.LPS_AFFINE), images / "train04.nii.gz")
    nibabel.save(nibabel.Nifti1Image(np.ones((24, 20, 16), np.float32), phantoms.LPS_AFFINE), images / "train05.nii.gz")
    nibabel.save(nibabel.Nifti1Image(np.ones((24, 20, 16, 3), np.float32), phantoms.LPS_AFFINE), images / "test00.nii.gz")
    table = pd.read_csv(manifest, dtype=str)
    table.loc[table["case_id"] == "test01", "patient_id"] = "train06"
    pd.concat([table, table.iloc[[6]]]).to_csv(manifest, index=False)
    training = {"epochs": 1, "budget_minutes": 3, "learning_rte": 1}
    changes = {"training": training, "modles": ["unet"], "models": ["unett"], "evaluate": {"surface_tolerance": {"liver": 1}}}
    config = phantoms.write_config(tmp_path, manifest, **settings(**changes))

    assert check(config) == 2
    found = report(tmp_path)
    by_case = {case: " | ".join(rows["problem"]) for case, rows in found.groupby("case_id")}
    assert "images/train00.nii.gz does not exist" in by_case["train00"]
    assert "images/train01.nii.gz" in by_case["train01"]
    assert "spacing" in by_case["train02"]
    assert "is empty" in by_case["train02"]
    assert "label values 9" in by_case["train03"]
    assert "NaN" in by_case["train04"]
    assert "constant" in by_case["train05"]
    assert "4D" in by_case["test00"]
    assert "`train06` is in two splits" in by_case["test01"]
    assert "case_id `train06` stands in row 8 already" in by_case["train06"]
    assert "unknown key `modles`" in by_case[""]
    assert "`learning_rte`" in by_case[""]
    assert "unett" in by_case[""]
    assert "`surface_tolerance`" in by_case[""]
    assert "`epochs` and `budget_minutes` contradict" in by_case[""]  # though another key of the section is unknown
    assert "same image voxels" not in by_case["train06"]
    assert (found["what_to_do"] != "").all()
    assert found["severity"].tolist() == sorted(found["severity"])
    assert "write `models`, or remove it" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("changes", "said", "cure"),
    [
        ({"training": {"epochs": 1, "budget_minutes": 2}}, "contradict", ""),
        ({"report": {"channel": "t1"}}, "`channel: t1`", "image"),
        ({"training": {"epochs": 1, "loss": "mse"}}, "no loss `mse`", "dice_ce"),
        ({"training": {"epochs": 1, "loss_options": {"gama": 2}}}, "unknown key `gama`", ""),
        ({"seed": -1}, "`seed`", ""),
        ({"seed": "x", "structures": []}, "structures", ""),
        ({"models": {"unet": None, "unett": None}}, "no architecture `unett`", "unet"),
        ({"models": {"unet": {"features": [4] * 6}}, "plan": {"patch_voxels": [16, 16, 16]}}, "a patch of 16x16x16", "larger"),
        ({"models": {"fcn8s": {"weights": "no.pth"}}}, "no.pth does not exist", "`weights`"),
        ({"models": None}, "`models` names no model", "models: [unet"),
        (
            {"structures": [STRUCTURES[0] | {"paired_with": "small"}, STRUCTURES[1]]},
            "`large` is paired_with `small`",
            "pair them",
        ),
        ({"structures": [STRUCTURES[0] | {"paired_with": "large"}, STRUCTURES[1]]}, "`large` is paired_with itself", "or none"),
        ({"structures": [{"name": "a", "id": 1, "values": [1]}, {"name": "b", "id": 2, "values": [1]}]}, "another structure", ""),
    ],
)
def test_a_contradictory_configuration_is_named(manifest: Path, changes: dict[str, Any], said: str, cure: str) -> None:
    config = phantoms.write_config(manifest.parent, manifest, **settings(**changes))
    assert check(config) == 2
    rows = report(manifest.parent).query("severity == 'error' and case_id == ''")
    assert any(said in row.problem and cure in row.what_to_do for row in rows.itertuples()), rows.to_string()


def test_a_start_for_other_channels_is_named(manifest: Path) -> None:
    model = write_tiny_model(manifest.parent / "start.medseg")
    training = {"epochs": 1, "init_from": str(model)}
    config = phantoms.write_config(manifest.parent, manifest, **settings(training=training))
    assert check(config) == 0
    write_tiny_model(model, n_channels=2, channels=["t1", "t2"])
    assert check(config) == 2
    (row,) = report(manifest.parent).query("severity == 'error'").itertuples()
    assert "`init_from` is a model for 2 channels (t1, t2) and these scans have 1" in row.problem


def test_a_start_of_another_architecture_is_named(manifest: Path) -> None:
    model = write_tiny_model(manifest.parent / "start.medseg")
    training = {"epochs": 1, "init_from": str(model)}
    models = {"unet": {}, "fcn8s": {"width": 0.0625}}
    assert check(phantoms.write_config(manifest.parent, manifest, **settings(training=training, models=models))) == 2
    (row,) = report(manifest.parent).query("severity == 'error'").itertuples()
    assert "models.fcn8s: `training.init_from` is a unet" in row.problem and "leave fcn8s out" in row.what_to_do


def test_a_unit_that_is_not_the_patients_of_the_manifest_is_named(manifest: Path) -> None:
    data = {"root": str(manifest.parent), "manifest": str(manifest), "sampling_unit": "tile"}
    assert check(phantoms.write_config(manifest.parent, manifest, **settings(data=data))) == 2
    assert report(manifest.parent).what_to_do.str.contains("remove `sampling_unit` or the column patient_id").any()


def test_nothing_to_predict_is_found_before_training(tmp_path: Path) -> None:
    manifest = phantoms.write_volume_set(tmp_path, {"train": 2, "val": 1})
    assert check(phantoms.write_config(tmp_path, manifest, **settings())) == 2
    assert report(tmp_path).problem.str.contains("no case has the split test").any()


def test_the_two_sides_of_the_body_should_be_paired(manifest: Path) -> None:
    names = [{"name": "left lung", "id": 1}, {"name": "right lung", "id": 2}]
    config = phantoms.write_config(manifest.parent, manifest, **settings(structures=names))
    assert check(config) == 0
    (row,) = report(manifest.parent).itertuples()
    assert row.severity == "warning"
    assert "`left lung` and `right lung`" in row.problem


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"manifest": "no.csv"}, "does not exist"),
        ({"root": "nowhere"}, "the data folder nowhere does not exist"),
        ({"modality": ["mr", "mr"]}, None),  # a single file may have two channels
        ({"rooot": "x"}, "`rooot`"),
    ],
)
def test_data_that_are_not_there(manifest: Path, data: dict[str, Any], said: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(manifest.parent)
    assignments = [f"data.{key}={value}" for key, value in data.items()]
    code = check(phantoms.write_config(manifest.parent, manifest, **settings()), assignments)
    assert code == (2 if said else 0)
    assert said is None or any(said in problem for problem in report(manifest.parent)["problem"])


def test_a_public_data_set_that_is_missing_names_the_command(manifest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(manifest.parent)
    config = phantoms.write_config(manifest.parent, manifest, **settings())
    assert check(config, ["data.root=null", "data.name=nuclei-sample"]) == 2
    (row,) = report(manifest.parent).itertuples()
    assert row.what_to_do == "run `medseg fetch nuclei-sample`"


def test_a_manifest_without_the_named_column(manifest: Path) -> None:
    manifest.write_text(manifest.read_text().replace("label", "lable", 1))
    assert check(phantoms.write_config(manifest.parent, manifest, **settings())) == 2
    (row,) = report(manifest.parent).itertuples()
    assert "no column label" in row.problem
    assert row.file == manifest.name


def test_pictures_without_splits_are_checked_too(tmp_path: Path) -> None:
    manifest = phantoms.write_picture_set(tmp_path, {"train": 10})
    table = pd.read_csv(manifest).assign(split="")
    table.to_csv(manifest, index=False)
    nuclei = [{"name": "nuclei", "id": 1, "values": "nonzero"}]
    assert check(phantoms.write_config(tmp_path, manifest, **settings(structures=nuclei))) == 0


def test_a_file_that_is_no_configuration_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        check(tmp_path / "no.yaml")
    (tmp_path / "list.yaml").write_text(yaml.safe_dump([1]))
    with pytest.raises(MedsegError, match="holds no settings"):
        check(tmp_path / "list.yaml")


def test_a_long_list_is_cut_on_the_console_only() -> None:
    from medseg.data.check import Problem

    problems = [Problem("error", f"[bold]{n}[/bold] is wrong", "mend it", f"p{n:03d}") for n in range(MOST_ROWS_SHOWN + 5)]
    table = report_table(problems, Path("root"))
    assert len(table) == MOST_ROWS_SHOWN + 5
    text = rendered(table)
    assert "... and 5 more in report.csv" in text
    assert "[bold]3[/bold] is wrong" in text  # a file's name is text, not markup


def test_a_picture_that_leaks_into_the_test_split_is_found(tmp_path: Path) -> None:
    """Once as the same voxels in an uncompressed file, once brighter, once mirrored; and twice within a split."""
    manifest = phantoms.write_volume_set(tmp_path, {"train": 4, "val": 1, "test": 2})
    table = pd.read_csv(manifest)
    first = nibabel.load(tmp_path / "images" / "train00.nii.gz")
    nibabel.save(first, tmp_path / "images" / "test00.nii")
    table.loc[table.case_id == "test00", "image"] = "images/test00.nii"
    second = np.asarray(nibabel.load(tmp_path / "images" / "train01.nii.gz").dataobj)
    for name, array in (("test01", second * np.float32(1.0001)), ("val00", second[:, ::-1])):
        nibabel.save(nibabel.Nifti1Image(array, phantoms.LPS_AFFINE), tmp_path / "images" / f"{name}.nii.gz")
    table.loc[table.case_id == "train03", "image"] = "images/train02.nii.gz"
    table.to_csv(manifest, index=False)
    assert check(phantoms.write_config(tmp_path, manifest, **settings())) == 2
    found = report(tmp_path).set_index("case_id")
    assert found.loc["test00", "severity"] == "error" and "same image voxels as case train00" in found.loc["test00", "problem"]
    assert found.loc["train03", "severity"] == "warning" and "same image voxels" in found.loc["train03", "problem"]
    near = found[found.problem.str.contains("looks nearly the same")]
    assert set(near.index) == {"val00", "test01"} and set(near.severity) == {"warning"}
    assert "case train01 mirrored (correlation 1.0000)" in near.loc["val00", "problem"]
    assert len(found) == 4
