"""`medseg evaluate` over a run and over two folders of masks."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
import torch
from derived_phantoms import MADE_BY, SCHEME, real_ct, series_of
from phantoms import LPS_AFFINE, write_config, write_volume_set
from PIL import Image
from test_named_masks import write_slicer

from medseg.core.errors import ConfigError, OutputError, StageError
from medseg.core.files import file_sha256
from medseg.core.grid import Grid
from medseg.core.labels import LabelScheme, Structure
from medseg.inference.probabilities import Probabilities
from medseg.inference.window import Slab
from medseg.io.dicom import read_grid as read_series_grid
from medseg.io.dicom_seg import encode_seg
from medseg.io.nifti import encode_placed
from pipelines.config import RunConfig
from pipelines.evaluate import COMPARISON_FILES, TABLES, run
from pipelines.evaluate_folders import evaluate_folders
from pipelines.report import report_folders

COLUMNS = [
    *("case_id", "input", "output", "status", "reason", "seconds"),
    *("input_sha256", "model_sha256", "options_sha256", "output_sha256"),
]
STRUCTURES = [{"name": "large", "id": 1}, {"name": "small", "id": 2}]


def _predict(config: RunConfig, model: str, change=lambda case, labels: labels) -> None:
    """Stand in for the predict stage: the references, changed; `change` gives None for a case that fails."""
    folder, rows = config.folder("predict", model), []
    folder.mkdir(parents=True)
    for case in config.manifest().of("test"):
        labels = change(case.case_id, np.asarray(nibabel.load(case.label).dataobj))
        if labels is not None:
            nibabel.save(nibabel.Nifti1Image(labels, LPS_AFFINE), folder / f"{case.case_id}.nii.gz")
        outcome = ("", "failed", "voxels are NaN") if labels is None else (f"{case.case_id}.nii.gz", "done", "")
        rows.append([case.case_id, str(case.images[0]), *outcome, 1.0, "", "", "", ""])
    pd.DataFrame(rows, columns=COLUMNS).to_csv(folder / "predictions.csv", index=False)


@pytest.fixture
def config(tmp_path) -> RunConfig:
    manifest = write_volume_set(tmp_path, {"train": 1, "val": 1, "test": 3})
    settings = {"structures": STRUCTURES, "models": ["unet", "fcn8s"], "evaluate": {"bootstrap_resamples": 200, "workers": 1}}
    return RunConfig.load(write_config(tmp_path, manifest, **settings))


def _shifted(case: str, labels: np.ndarray) -> np.ndarray | None:
    return None if case == "test02" else np.roll(labels, 1, axis=0)


def test_a_run_with_two_models(config, capsys):
    _predict(config, "unet")
    _predict(config, "fcn8s", _shifted)
    assert run(config) == 1
    unet, fcn = (pd.read_csv(config.folder("evaluate", m, "per_case.csv")) for m in ("unet", "fcn8s"))
    assert len(unet) == 6 and (unet["dice"] == 1).all() and (unet["hd95_mm"] == 0).all()
    assert list(fcn[fcn["case_id"] == "test02"]["status"]) == ["prediction_missing"] * 2
    assert fcn["hd95_mm"].dropna().between(0.5, 1.5).all()  # one voxel of 1 mm
    summary = pd.read_csv(config.folder("evaluate", "fcn8s", "summary.csv"))
    worst = summary[(summary["convention"] == "worst") & (summary["metric"] == "dice")]
    assert list(worst["n"]) == [3, 3] and (worst["mean"] < 0.7).all()
    record = json.loads(config.folder("evaluate", "fcn8s", "stage.json").read_text())
    assert record["counts"] == {"given": 3, "readable": 3, "segmented": 2, "evaluated": 2}
    assert record["inputs"]["sampling_unit"] == "patient"
    comparison = pd.read_csv(config.folder("evaluate", "comparison.csv"))
    assert {"unet", "fcn8s", "difference", "note"} < set(comparison.columns) and (comparison["note"].notna().sum()) == 12
    assert (pd.read_csv(config.folder("evaluate", "comparison_summary.csv"))["n_missing"] == 1).all()
    said = capsys.readouterr().err
    assert "3 given, 3 readable, 2 segmented, 2 evaluated" in said and "test02: prediction_missing: voxels are NaN" in said


def test_unchanged_is_skipped_and_changed_is_measured_again(config, capsys):
    for model in config.model_names:
        _predict(config, model)
    assert run(config) == 0
    table = config.folder("evaluate", "unet", "per_case.csv")
    written = table.stat().st_mtime_ns
    capsys.readouterr()
    assert run(config) == 0
    assert "evaluate unet: unchanged, skipped" in capsys.readouterr().err and table.stat().st_mtime_ns == written
    shutil.copy(config.folder("predict", "unet", "test00.nii.gz"), config.folder("predict", "unet", "test01.nii.gz"))
    assert run(config) == 0
    assert pd.read_csv(table)["dice"].min() < 1
    assert "evaluate fcn8s: unchanged, skipped" in capsys.readouterr().err
    run(config, redo=True)
    assert "unchanged, skipped" not in capsys.readouterr().err


def test_after_a_partial_rerun_equal_figures_are_still_ties(config):
    for model in config.model_names:
        _predict(config, model, lambda case, labels: np.roll(labels, 1, axis=0))
    run(config)
    # One model has one better mask, so it alone is measured again; its other two are the other model's still.
    shutil.copy(config.manifest().of("test")[0].label, config.folder("predict", "unet", "test00.nii.gz"))
    run(config)
    summary = pd.read_csv(config.folder("evaluate", "comparison_summary.csv")).set_index("metric")
    assert summary.loc["dice", ["wins", "ties", "losses"]].to_numpy().tolist() == [[1, 2, 0]] * 2


def test_tables_that_were_cut_short_do_not_pass_for_those_of_the_run_before(tmp_path):
    for name in ("r", "p"):
        _mask(tmp_path / name, "a", slice(2, 10), 1)
    places = [tmp_path / name for name in ("p", "r", "out")]
    evaluate_folders(*places)
    (tmp_path / "out" / "agreement.csv").unlink()
    (tmp_path / "out" / "agreement.csv" / "in the way").mkdir(parents=True)
    with pytest.raises(OutputError, match=r"agreement\.csv cannot be written"):
        evaluate_folders(*places, assignments=["evaluate.metrics=[iou]"])
    assert not (tmp_path / "out" / "stage.json").exists()
    shutil.rmtree(tmp_path / "out" / "agreement.csv")
    evaluate_folders(*places)
    assert {"dice", "iou"} < set(pd.read_csv(tmp_path / "out" / "per_case.csv"))


def test_deleted_tables_are_made_again(config):
    for model in config.model_names:
        _predict(config, model)
    run(config)
    tables = [config.folder("evaluate", *parts) for parts in (*(("unet", t) for t in TABLES), *((t,) for t in COMPARISON_FILES))]
    for table in tables:
        table.unlink()
        run(config)
        assert table.is_file(), table


def test_what_the_intervals_are_over(config):
    one = {**config.settings, "models": ["unet"]}
    _predict(config, "unet")
    contradiction = RunConfig(config.path, {**one, "data": {**one["data"], "sampling_unit": "slice"}})
    with pytest.raises(ConfigError, match=r"`sampling_unit` is slice, but .* names patients"):
        run(contradiction)
    manifest = config.data.manifest
    pd.read_csv(manifest).drop(columns="patient_id").to_csv(manifest, index=False)
    for settings, unit in ((one, "case"), (contradiction.settings, "slice")):
        again = RunConfig(config.path, settings)
        assert run(again) == 0
        record = json.loads(again.folder("evaluate", "unet", "stage.json").read_text())
        assert record["inputs"]["sampling_unit"] == unit


def test_a_changed_reference_is_noticed(config):
    for model in config.model_names:
        _predict(config, model)
    run(config)
    label = config.manifest().of("test")[0].label
    nibabel.save(nibabel.Nifti1Image(np.ones((24, 20, 16), np.uint8), LPS_AFFINE), label)
    run(config)
    assert pd.read_csv(config.folder("evaluate", "unet", "per_case.csv"))["dice"].min() < 1


def test_a_stale_file_of_a_failed_case_is_not_measured(config):
    for model in config.model_names:
        _predict(config, model, _shifted)
        shutil.copy(config.manifest().of("test")[2].label, config.folder("predict", model, "test02.nii.gz"))
    assert run(config) == 1
    table = pd.read_csv(config.folder("evaluate", "unet", "per_case.csv"))
    assert list(table[table["case_id"] == "test02"]["status"]) == ["prediction_missing"] * 2


def test_a_run_that_has_not_predicted(config):
    with pytest.raises(StageError, match=r"no predictions of `unet`; run `medseg predict` first"):
        run(config)


def test_predictions_of_a_model_that_was_replaced_are_refused(config):
    one = RunConfig(config.path, {**config.settings, "models": ["unet"]})
    _predict(one, "unet")
    place = one.folder("predict", "unet", "predictions.csv")
    table = pd.read_csv(place, keep_default_na=False)
    model = one.folder("train", "unet", "model.medseg")
    model.parent.mkdir(parents=True)
    model.write_bytes(b"trained")
    table.assign(model_sha256=file_sha256(model)).to_csv(place, index=False)
    assert run(one) == 0
    model.write_bytes(b"trained anew")
    with pytest.raises(StageError, match=r"predictions\.csv was made by another model than .*; run `medseg predict` first"):
        run(one)


def test_other_splits(config):
    both = RunConfig(config.path, {**config.settings, "models": ["unet"], "predict": {"split": ["val", "test"]}})
    _predict(both, "unet")
    assert run(both) == 1  # val00 was not predicted
    cases = pd.read_csv(both.folder("evaluate", "unet", "cases.csv")).set_index("case_id")
    assert len(cases) == 4 and cases.loc["val00", "reason"] == "it has no prediction"


def test_no_case_to_evaluate(tmp_path):
    manifest = write_volume_set(tmp_path, {"train": 1, "val": 1})
    config = RunConfig.load(write_config(tmp_path, manifest, structures=STRUCTURES, models=["unet"]))
    with pytest.raises(StageError, match="no case has the split test"):
        run(config)


def _mask(folder: Path, name: str, columns: slice, value: int = 255) -> None:
    folder.mkdir(exist_ok=True)
    array = np.zeros((12, 16), np.uint8)
    array[2:10, columns] = value
    Image.fromarray(array).save(folder / f"{name}.png")


def test_folders_of_masks(tmp_path, capsys):
    references, predictions = tmp_path / "references", tmp_path / "predictions"
    for name in ("a", "b", "c"):
        _mask(references, name, slice(2, 10))
    _mask(predictions, "a", slice(2, 10))
    _mask(predictions, "b", slice(4, 12))
    _mask(predictions, "z", slice(4, 12))
    assert evaluate_folders(predictions, references, tmp_path / "out") == 1
    table = pd.read_csv(tmp_path / "out" / "per_case.csv")
    assert list(table["structure"].unique()) == ["label_255"]
    assert list(table["status"]) == ["ok", "ok", "prediction_missing"]
    assert table["dice"][:2].tolist() == [1, 0.75] and table["hd95_px"][1] == 2
    unmatched = pd.read_csv(tmp_path / "out" / "unmatched.csv")
    assert unmatched[["case_id", "missing"]].to_numpy().tolist() == [["c", "prediction"], ["z", "reference"]]
    said = capsys.readouterr().err
    assert "structures are the values of the references (label_255)" in said
    assert "1 without a reference, not evaluated: z" in said and "1 without a prediction, counted as missed: c" in said


def test_folders_are_measured_again_only_where_needed(tmp_path, capsys):
    places = [tmp_path / name for name in ("p", "r", "out")]
    for folder in places[:2]:
        folder.mkdir()
        (folder / "a.mhd").write_text(
            "ObjectType = Image\nNDims = 3\nDimSize = 4 4 4\nElementSpacing = 1 1 1\nElementType = MET_UCHAR\n"
            "ElementDataFile = a.raw\n"
        )
        (folder / "a.raw").write_bytes(bytes([1] * 32 + [0] * 32))
    evaluate_folders(*places)
    assert "unchanged" not in capsys.readouterr().err
    evaluate_folders(*places)
    assert "unchanged, skipped" in capsys.readouterr().err
    evaluate_folders(*places, redo=True)
    assert "unchanged" not in capsys.readouterr().err
    (tmp_path / "p" / "a.raw").write_bytes(bytes([1] * 16 + [0] * 48))  # the header stays as it is
    evaluate_folders(*places)
    assert pd.read_csv(tmp_path / "out" / "per_case.csv")["dice"][0] < 1


def test_of_two_folders_only_the_evaluation_is_set(tmp_path):
    for name in ("r", "p"):
        _mask(tmp_path / name, "a", slice(2, 10))
    with pytest.raises(ConfigError, match="--set seed"):
        evaluate_folders(tmp_path / "p", tmp_path / "r", tmp_path / "out", assignments=["seed=1"])
    with pytest.raises(ConfigError, match="known: "):
        evaluate_folders(tmp_path / "p", tmp_path / "r", tmp_path / "out", assignments=["evaluate.tolerance=1"])
    assert evaluate_folders(tmp_path / "p", tmp_path / "r", tmp_path / "out", assignments=["evaluate.metrics=[iou]"]) == 0
    assert list(pd.read_csv(tmp_path / "out" / "per_case.csv"))[3:] == ["iou", "status"]


def test_a_table_of_the_cases_names_the_patients(tmp_path):
    names = [f"{patient}_{scan}" for patient in "abcdefg" for scan in (1, 2)]
    for number, name in enumerate(names):
        _mask(tmp_path / "r", name, slice(2, 10))
        _mask(tmp_path / "p", name, slice(2, 10 + number % 5))
    table = tmp_path / "cases.csv"
    table.write_text("case_id,patient_id,site\n" + "".join(f"{name},{name[0]},x\n" for name in names))
    assert evaluate_folders(tmp_path / "p", tmp_path / "r", tmp_path / "out", cases=table) == 0
    assert pd.read_csv(tmp_path / "out" / "per_case.csv")["patient_id"].tolist() == [name[0] for name in names]
    assert json.loads((tmp_path / "out" / "stage.json").read_text())["inputs"]["sampling_unit"] == "patient"
    table.write_text(table.read_text() + "a_1,a,x\n")
    with pytest.raises(ConfigError, match="names case `a_1` twice"):
        evaluate_folders(tmp_path / "p", tmp_path / "r", tmp_path / "out", cases=table)
    table.write_text("case,patient_id\na_1,a\n")
    with pytest.raises(ConfigError, match=r"has no column case_id \(it has: case, patient_id\); add it"):
        evaluate_folders(tmp_path / "p", tmp_path / "r", tmp_path / "out", cases=table)
    table.write_text("case_id;patient_id\na_1;a\n")  # as spreadsheets save it where decimals have commas
    with pytest.raises(ConfigError, match=r"case_id;patient_id\); save it with commas between its columns"):
        evaluate_folders(tmp_path / "p", tmp_path / "r", tmp_path / "out", cases=table)


def test_groups_of_cases_and_agreement_of_sizes(tmp_path, capsys):
    for number in range(14):
        _mask(tmp_path / "r", f"c{number}", slice(2, 10))
        _mask(tmp_path / "p", f"c{number}", slice(2, 10 if number % 2 else 6))
    table = tmp_path / "cases.csv"
    rows = "".join(f"c{n},{'ab'[n % 2]},{20 + n},same\n" for n in range(14))
    table.write_text("case_id,site,age,scanner\n" + rows)
    places = [tmp_path / name for name in ("p", "r", "out")]
    assert evaluate_folders(*places, cases=table, assignments=["evaluate.subgroups={site: null, age: [27], scanner: null}"]) == 0
    found = pd.read_csv(tmp_path / "out" / "subgroups.csv")
    found = found[(found["metric"] == "iou") & (found["convention"] == "worst")].set_index(["covariate", "group"])
    assert found.loc[("site", "a"), ["n", "mean"]].tolist() == [7, 0.5] and found.loc[("site", "b"), "mean"] == 1
    assert len(found.loc["age"]) == 2 and set(found.loc["age"]["n"]) == {7}
    assert "scanner: 1 value, no groups" in capsys.readouterr().err
    sizes = pd.read_csv(tmp_path / "out" / "agreement.csv").set_index("statistic")
    assert sizes.loc["bias", "value"] == -16 and sizes.loc["bias", "n"] == 14  # half of them 4 of 8 columns short, 8 rows each
    with pytest.raises(ConfigError, match="`subgroups` names `sex`"):
        evaluate_folders(*places, cases=table, assignments=["evaluate.subgroups=[sex]"])
    assert evaluate_folders(*places) == 0
    assert not (tmp_path / "out" / "subgroups.csv").exists()


def test_probabilities_beside_the_masks_are_measured(tmp_path, capsys):
    """0.75 where the mask is and 0.25 elsewhere, with a mask that is right: each bin is off by a quarter."""
    affine = np.diag([1.0, 1, 1, 1])
    grid = Grid((12, 12, 12), affine)
    scheme = LabelScheme(structures=[Structure(name="label_1", id=1)])
    mask = np.zeros((12, 12, 12), np.uint8)
    mask[3:9, 3:9, 3:9] = 1
    for name in ("r", "p"):
        (tmp_path / name).mkdir()
        for case in ("a", "b"):
            nibabel.save(nibabel.Nifti1Image(mask, affine), tmp_path / name / f"{case}.nii.gz")
    logit = math.log(3) / 2 * np.where(mask == 1, 1, -1)
    with Probabilities(tmp_path / "p" / "a.probabilities.nii.gz", grid, grid, scheme) as file:
        file.add(Slab(0, 0, torch.from_numpy(np.stack([-logit, logit]).astype(np.float32))))
        file.finish()
    places = [tmp_path / name for name in ("p", "r", "out")]
    assert evaluate_folders(*places, assignments=["evaluate.metrics=[dice, calibration]"]) == 0
    table = pd.read_csv(tmp_path / "out" / "per_case.csv").set_index("case_id")
    assert table.loc["a", ["ece", "brier"]].tolist() == pytest.approx([0.25, 0.0625], abs=1e-4)
    assert table.loc["b", ["ece", "brier"]].isna().all()
    summary = pd.read_csv(tmp_path / "out" / "summary.csv")
    assert (summary.loc[summary["metric"] == "ece", ["n", "n_undefined"]].to_numpy() == 1).all()
    bins = pd.read_csv(tmp_path / "out" / "reliability.csv")
    filled = bins[bins["n"] > 0]
    assert filled["n"].tolist() == [12**3 - 6**3, 6**3] and filled["hit_rate"].tolist() == [0, 1]
    assert filled["mean_probability"].tolist() == pytest.approx([0.25, 0.75], abs=1e-4)
    report_folders([tmp_path / "out"], tmp_path / "report")
    assert "Reliability diagrams" in (tmp_path / "report" / "report.html").read_text()
    (tmp_path / "p" / "a.probabilities.nii.gz").unlink()
    capsys.readouterr()
    evaluate_folders(*places, assignments=["evaluate.metrics=[dice, calibration]"])
    assert not (tmp_path / "out" / "reliability.csv").exists()
    assert "2 of 2 cases have no probabilities beside their masks, so no ece, brier" in capsys.readouterr().err


def test_masks_on_other_voxels(tmp_path):
    for name, affine, shape in (("r", np.diag([1.0, 1, 1, 1]), (8, 8, 8)), ("p", np.diag([2.0, 2, 2, 1]), (4, 4, 4))):
        affine[:3, 3] = (affine[0, 0] - 1) / 2
        array = np.zeros(shape, np.uint8)
        array[: shape[0] // 2] = 1
        (tmp_path / name).mkdir()
        nibabel.save(nibabel.Nifti1Image(array, affine), tmp_path / name / "a.nii.gz")
    places = [tmp_path / name for name in ("p", "r", "out")]
    assert evaluate_folders(*places) == 1
    assert pd.read_csv(tmp_path / "out" / "per_case.csv")["status"].tolist() == ["grid_mismatch"]
    assert evaluate_folders(*places, assignments=["evaluate.resample=nearest"]) == 0
    assert pd.read_csv(tmp_path / "out" / "per_case.csv")["dice"].tolist() == [1]
    assert "resampled by nearest neighbour" in pd.read_csv(tmp_path / "out" / "cases.csv")["reason"][0]


def test_folders_with_a_labels_file(tmp_path):
    references, predictions, labels = tmp_path / "references", tmp_path / "predictions", tmp_path / "labels.yaml"
    _mask(references, "a", slice(2, 10), 255)
    _mask(predictions, "a", slice(2, 10), 1)
    labels.write_text("structures: [{name: cell, id: 1, values: [255], prediction_values: [1]}]\n")
    assert evaluate_folders(predictions, references, tmp_path / "out", labels) == 0
    assert pd.read_csv(tmp_path / "out" / "per_case.csv")["structure"][0] == "cell"
    # Without it the prediction's 1 means nothing, which is a row with a reason and not a Dice of 0 without a word.
    assert evaluate_folders(predictions, references, tmp_path / "out2") == 1
    assert "label values 1 are not in the label scheme" in pd.read_csv(tmp_path / "out2" / "cases.csv")["reason"][0]


def _structures(folder: Path, case: str, **masks: np.ndarray) -> None:
    """A folder with a file a structure, as TotalSegmentator writes it."""
    for name, array in masks.items():
        path = folder / case / f"{name}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(array.astype(np.uint8), np.eye(4)), path)


def _organs(shift: int = 0) -> dict[str, np.ndarray]:
    places = np.indices((10, 8, 6))[0] - shift
    return {"liver": places < 4, "spleen": (places >= 4) & (places < 6)}


def test_folders_with_a_file_a_structure(tmp_path, capsys):
    places = [tmp_path / name for name in ("p", "r", "out")]
    for case, shift in (("a", 0), ("b", 2)):
        _structures(tmp_path / "r", case, **_organs())
        _structures(tmp_path / "p", case, **_organs(shift), heart=np.ones((10, 8, 6)))
    assert evaluate_folders(*places) == 0
    table = pd.read_csv(tmp_path / "out" / "per_case.csv")
    assert table["structure"].tolist() == ["liver", "spleen"] * 2 and table["dice"].tolist() == [1, 1, 0.8, 0]
    assert "structures are the names of the references' masks (liver, spleen)" in capsys.readouterr().err
    evaluate_folders(*places)
    assert "unchanged, skipped" in capsys.readouterr().err
    _structures(tmp_path / "p", "b", **_organs())
    evaluate_folders(*places)
    assert (pd.read_csv(tmp_path / "out" / "per_case.csv")["dice"] == 1).all()
    (tmp_path / "p" / "b" / "spleen.nii.gz").unlink()
    assert evaluate_folders(*places) == 1
    cases = pd.read_csv(tmp_path / "out" / "cases.csv").set_index("case_id")
    assert cases["status"].to_dict() == {"a": "ok", "b": "unreadable"}
    assert "b has no mask of `spleen` (its files: `heart`, `liver`)" in cases.loc["b", "reason"]


def test_slices_in_the_folder_of_a_case_are_no_structures(tmp_path):
    for name in ("p", "r"):
        for case in "ab":
            _structures(tmp_path / name, case, **{f"slice_{z:03}": np.eye(8, 6, z)[None] for z in range(3)})
    with pytest.raises(ConfigError, match=r"only numbered \(slice_000, slice_001, slice_002\), as slices are"):
        evaluate_folders(tmp_path / "p", tmp_path / "r", tmp_path / "out")


def test_a_structure_without_a_file_is_absent_where_that_is_stated(tmp_path, capsys):
    places = [tmp_path / name for name in ("p", "r", "out")]
    for case in "abc":
        _structures(tmp_path / "r", case, **_organs())
    _structures(tmp_path / "p", "a", **_organs())
    _structures(tmp_path / "p", "b", liver=_organs()["liver"])
    (tmp_path / "p" / "c").mkdir()
    (tmp_path / "r" / "d").mkdir()
    assert evaluate_folders(*places) == 1
    cases = pd.read_csv(tmp_path / "out" / "cases.csv").set_index("case_id")
    assert cases["status"].to_dict() == {"a": "ok", "b": "unreadable", "c": "prediction_missing", "d": "unreadable"}
    assert evaluate_folders(*places, assignments=["evaluate.missing_structures=empty"]) == 1  # nothing says where d lies
    table = pd.read_csv(tmp_path / "out" / "per_case.csv").query("case_id in ['b', 'c']")
    assert table["status"].tolist() == ["ok", *["prediction_empty"] * 3] and table["dice"].tolist() == [1, 0, 0, 0]
    reasons = pd.read_csv(tmp_path / "out" / "cases.csv").set_index("case_id")["reason"]
    assert reasons["b"] == "b has no file of `spleen`: taken as absent"
    assert reasons["c"].endswith("c is an empty folder: all structures taken as absent")
    assert reasons["d"].endswith("d is an empty folder; bring its files.")
    report_folders([tmp_path / "out"], tmp_path / "report")
    assert "A structure without a mask of its own in a case was taken as absent there." in (
        tmp_path / "report" / "methods.txt"
    ).read_text().replace("\n", " ")


def test_names_and_values_meet_through_a_labels_file_only(tmp_path):
    labels = tmp_path / "dataset.json"
    labels.write_text(json.dumps({"labels": {"background": 0, "spleen": 1, "liver": 2}}))
    _structures(tmp_path / "named", "a", **_organs())
    organs = _organs()
    values = (organs["liver"] * 2 + organs["spleen"]).astype(np.uint8)
    (tmp_path / "values").mkdir()
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "values" / "a_pred.nii")
    said = r"name their structures \(liver, spleen\) and .*a_pred\.nii holds values; give --labels"
    for one, other in (("named", "values"), ("values", "named")):
        with pytest.raises(ConfigError, match=said):
            evaluate_folders(tmp_path / one, tmp_path / other, tmp_path / "out")
        assert evaluate_folders(tmp_path / one, tmp_path / other, tmp_path / "out", labels) == 0
        assert pd.read_csv(tmp_path / "out" / "per_case.csv")["dice"].tolist() == [1, 1]


def test_endings_of_names_are_said(tmp_path, capsys):
    for name in "ab":
        _mask(tmp_path / "r", name, slice(2, 10))
        _mask(tmp_path / "p", f"{name}_cp_masks", slice(2, 10))
    assert evaluate_folders(tmp_path / "p", tmp_path / "r", tmp_path / "out") == 0
    said = capsys.readouterr().err
    assert "2 matched apart from `_cp_masks` of the predictions, such as a_cp_masks.png with a.png" in said
    table = tmp_path / "cases.csv"
    table.write_text("case_id,patient_id\na,x\n")
    evaluate_folders(tmp_path / "p", tmp_path / "r", tmp_path / "out", cases=table)
    assert "does not name 1 of 2 cases, such as b; each counts as a patient of its own" in capsys.readouterr().err
    table.write_text("case_id,patient_id\na_seg,x\n")
    with pytest.raises(ConfigError, match="names none of the cases"):
        evaluate_folders(tmp_path / "p", tmp_path / "r", tmp_path / "out", cases=table)


def test_segmentations_that_are_cut_to_what_they_mark(tmp_path):
    """A DICOM SEG holds the slices from its first mark to its last; what a prediction marks beyond them counts all the same."""
    labels = np.zeros((9, 8, 6), np.uint8)
    labels[2:6, 2:6, 2:4] = 3
    series = series_of(tmp_path / "ct", labels)
    for name, array in (("seg", labels), ("slice", labels * (np.arange(6) == 2).astype(np.uint8))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.dcm").write_bytes(encode_seg(array, series, SCHEME, MADE_BY))
    taller = labels.copy()
    taller[2:6, 2:6, 0:2] = 3
    (tmp_path / "nifti").mkdir()
    (tmp_path / "nifti" / "a.nii.gz").write_bytes(encode_placed(taller, read_series_grid(series)))
    scheme = tmp_path / "labels.yaml"
    scheme.write_text("structures: [{name: Liver, id: 3}]\n")
    for one, other in (("seg", "nifti"), ("nifti", "seg")):
        assert evaluate_folders(tmp_path / one, tmp_path / other, tmp_path / "out", scheme) == 0
        table = pd.read_csv(tmp_path / "out" / "per_case.csv")
        assert table["dice"][0] == pytest.approx(2 / 3) and "hd95_mm" in table
    assert evaluate_folders(tmp_path / "seg", tmp_path / "seg", tmp_path / "out") == 0
    # Of one slice alone nothing tells that its scan is a volume, and figures of areas would be of the wrong slice.
    assert evaluate_folders(tmp_path / "nifti", tmp_path / "slice", tmp_path / "out", scheme) == 1
    assert "marks one slice of a scan of 6" in pd.read_csv(tmp_path / "out" / "cases.csv")["reason"][0]


def test_what_a_segmentation_does_not_name_is_said(tmp_path):
    organs = {name: mask.astype(np.uint8) for name, mask in _organs().items()}
    for side, names in (("r", ["liver", "spleen"]), ("p", ["liver"])):
        write_slicer(tmp_path / side / "a.seg.nrrd", np.stack([organs[n] for n in names]), [{"Name": n} for n in names])
    assert evaluate_folders(tmp_path / "p", tmp_path / "r", tmp_path / "out") == 0
    assert pd.read_csv(tmp_path / "out" / "per_case.csv")["status"].tolist() == ["ok", "prediction_empty"]
    assert pd.read_csv(tmp_path / "out" / "cases.csv")["reason"][0] == "a.seg.nrrd has no segment of `spleen`: taken as absent"


def test_references_without_structures(tmp_path):
    _mask(tmp_path / "r", "a", slice(2, 10), 0)
    _mask(tmp_path / "p", "a", slice(2, 10), 0)
    with pytest.raises(ConfigError, match="labels"):
        evaluate_folders(tmp_path / "p", tmp_path / "r", tmp_path / "out")
    Image.fromarray(np.arange(400, dtype=np.uint16).reshape(20, 20)).save(tmp_path / "r" / "a.png")
    with pytest.raises(ConfigError, match="too many to be structures"):
        evaluate_folders(tmp_path / "p", tmp_path / "r", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "r" / "a.png").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"none of the references can be read; of the first: .*a\.png is damaged"):
        evaluate_folders(tmp_path / "p", tmp_path / "r", tmp_path / "out")


def test_real_references_against_themselves(real_data, tmp_path):
    folder = real_data / "hippocampus" / "labels"
    if not folder.is_dir():
        pytest.skip("no hippocampus/labels in the real data")
    for side in ("p", "r"):
        (tmp_path / side).mkdir()
        for path in sorted(p for p in folder.glob("*.nii.gz") if not p.name.startswith("."))[:2]:
            shutil.copy(path, tmp_path / side / path.name)
    assert evaluate_folders(tmp_path / "p", tmp_path / "r", tmp_path / "out") == 0
    assert (pd.read_csv(tmp_path / "out" / "per_case.csv")["dice"] == 1).all()


def test_real_structures_by_name_and_by_value(real_data, tmp_path):
    """A real CT of TotalSegmentator: a label map, a file a structure and a DICOM SEG of it agree."""
    source = real_data / "totalseg_ct_mr_small/labels/example_ct_dicom_seg.nii.gz"
    if not source.is_file():
        pytest.skip("no totalseg_ct_mr_small in the real data")
    labels, series = real_ct(real_data)
    image = nibabel.load(source)
    array = np.asarray(image.dataobj)
    values = np.unique(array)[1:].astype(int).tolist()
    scheme = LabelScheme(structures=[Structure(name=f"organ_{v}", id=v) for v in values])
    for value in values:
        path = tmp_path / "files" / "p01" / "segmentations" / f"organ_{value}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image((array == value).astype(np.uint8), image.affine), path)
    (tmp_path / "map").mkdir()
    nibabel.save(nibabel.Nifti1Image(array.astype(np.float32), image.affine), tmp_path / "map" / "p01_seg.nii.gz")
    (tmp_path / "seg" / "p01").mkdir(parents=True)
    (tmp_path / "seg" / "p01" / "1.2.3").write_bytes(encode_seg(labels, series, scheme, MADE_BY))
    file = tmp_path / "labels.yaml"
    file.write_text(json.dumps(scheme.model_dump(mode="json")))
    settings = ["evaluate.metrics=[dice]"]
    for one, other in (("files", "map"), ("seg", "files"), ("map", "seg")):
        assert evaluate_folders(tmp_path / one, tmp_path / other, tmp_path / "out", file, assignments=settings) == 0
        table = pd.read_csv(tmp_path / "out" / "per_case.csv")
        assert len(table) == len(values) and (table["dice"] == 1).all()


def test_no_torch_is_imported(tmp_path):
    for side in ("p", "r"):
        _mask(tmp_path / side, "a", slice(2, 10))
    code = (
        "import sys; from pathlib import Path\n"
        "from pipelines.compare import compare; from pipelines.evaluate_folders import evaluate_folders\n"
        "from pipelines.report import report_folders\n"
        f"p, r, one, two = (Path({str(tmp_path)!r}, n) for n in ('p', 'r', 'one', 'two'))\n"
        "assert evaluate_folders(p, r, one) == evaluate_folders(p, r, two) == compare([one, two], r.parent / 'both') == 0\n"
        "assert report_folders([one, two]).is_file()\n"
        "sys.exit(any(m in sys.modules for m in ('torch', 'monai')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_numbered_nuclei_of_another_tool_are_compared_one_by_one(tmp_path):
    """Two touching nuclei, found as two in one picture and as one in the other; the report says what an object was."""
    numbers = np.zeros((20, 16), np.uint16)
    numbers[2:8, 3:9], numbers[8:12, 3:9], numbers[14:18, 3:9] = 300, 301, 302
    for name, pictures in (("r", (numbers, numbers)), ("p", (numbers * 2, np.where(numbers > 0, 1, 0).astype(np.uint16)))):
        (tmp_path / name).mkdir()
        for case, picture in zip("ab", pictures, strict=True):
            Image.fromarray(picture).save(tmp_path / name / f"{case}.png")
    labels = tmp_path / "labels.yaml"
    text = "structures: [{name: nuclei, id: 1, values: nonzero, prediction_values: nonzero, objects: %s}]"
    places = [tmp_path / name for name in ("p", "r", "out")]
    # In the mask the larger of the touching two is found at an IoU of 0.6.
    for objects, expected in (("numbered", [1, 2 * 1.6 / 5]), ("components", [1, 1])):
        labels.write_text(text % objects)
        assert evaluate_folders(*places, labels=labels, assignments=["evaluate.metrics=[dice, instances]"]) == 0
        table = pd.read_csv(tmp_path / "out" / "per_case.csv")
        assert table["panoptic_quality"].tolist() == pytest.approx(expected)
        report_folders([tmp_path / "out"], tmp_path / "report")
        methods = " ".join((tmp_path / "report" / "methods.txt").read_text().split())
        assert ("Objects of nuclei were those that the reference numbers" in methods) == (objects == "numbered")
        assert ("Objects of nuclei were the connected components of both masks." in methods) == (objects == "components")
    evaluate_folders(*places, labels=labels)
    report_folders([tmp_path / "out"], tmp_path / "report")
    assert "Objects of" not in (tmp_path / "report" / "methods.txt").read_text()


def test_the_best_threshold_of_the_mean_is_named(tmp_path, capsys):
    """A wall that parts two cells is 0.35 sure in one picture, 0.75 in the other; what is unsure inside of the cells is 0.2."""
    grid, scheme = Grid((20, 20, 1), np.eye(4)), LabelScheme(structures=[Structure(name="label_1", id=1)])
    wall = np.zeros((20, 20, 1), np.uint8)
    wall[10] = 1
    for case, sure in (("a", 0.35), ("b", 0.75)):
        probability = np.where(wall == 1, sure, np.where(np.arange(20)[:, None, None] % 5 == 3, 0.25, 0.05))
        for name in ("r", "p"):
            (tmp_path / name).mkdir(exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(wall, np.eye(4)), tmp_path / name / f"{case}.nii.gz")
        logit = np.log(probability / (1 - probability)).astype(np.float32) / 2
        with Probabilities(tmp_path / "p" / f"{case}.probabilities.nii.gz", grid, grid, scheme) as file:
            file.add(Slab(0, 0, torch.from_numpy(np.stack([-logit, logit]))))
            file.finish()
    places = [tmp_path / name for name in ("p", "r", "out")]
    assert evaluate_folders(*places, assignments=["evaluate.metrics=[dice, membranes]"]) == 0
    said = capsys.readouterr().err
    assert "label_1: the mean V-Rand over 2 cases is best at threshold 0.7: 1.000" in said
    table = pd.read_csv(tmp_path / "out" / "thresholds.csv").set_index(["metric", "threshold"])
    assert len(table) == 22 and set(table["n"]) == {2} and set(table["n_undefined"]) == {0}
    assert table.loc[("v_rand", 0.7), "mean"] == 1 and table.loc[("v_rand", 0.3), "mean"] < 0.9
    best = pd.read_csv(tmp_path / "out" / "per_case.csv")
    assert best["v_rand_max"].mean() >= table.loc["v_rand", "mean"].max()
    report_folders([tmp_path / "out"], tmp_path / "report")
    assert "Best thresholds." in (tmp_path / "report" / "report.html").read_text()
    evaluate_folders(*places, assignments=["evaluate.metrics=[dice, v_rand, calibration]"])
    assert not (tmp_path / "out" / "thresholds.csv").exists()
    assert "is best at threshold" not in capsys.readouterr().err
