"""Cases measured from files: rows and statuses of per_case.csv."""

from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image

from medseg.core.errors import ConfigError, StageError
from medseg.core.labels import LabelScheme
from medseg.core.record import StageRecord
from medseg.evaluation.config import EvaluateConfig
from medseg.evaluation.pairs import Pair
from medseg.evaluation.table import evaluate_cases, load_evaluation, write_evaluation

SCHEME = LabelScheme(structures=[{"name": "liver", "id": 1}, {"name": "tumour", "id": 2}], ignore_values=[9])
SHAPE = (10, 9, 8)
DIAGONAL = float(np.linalg.norm((9 * 1, 8 * 1.5, 7 * 2.5)))


def _labels(liver=True, tumour=True) -> np.ndarray:
    labels = np.zeros(SHAPE, np.uint8)
    labels[1:7, 1:7, 1:6] = liver
    labels[8:10, 2:4, 2:4] = 2 * tumour
    return labels


@pytest.fixture
def evaluation(save_labels):
    good, bad = save_labels("ref/good.nii.gz", _labels()), save_labels("ref/damaged.nii.gz", _labels())
    bad.write_bytes(bad.read_bytes()[:60])
    short = save_labels("pred/short.nii.gz", _labels()[:9])
    strange = save_labels("pred/strange.nii.gz", 7 * _labels())
    pairs = [
        Pair("perfect", "p1", good, good),
        Pair("missed", "p1", good, save_labels("pred/missed.nii.gz", _labels(tumour=False))),
        Pair("invented", "", save_labels("ref/healthy.nii.gz", _labels(tumour=False)), good),
        Pair("none", "", good, None, "the scan holds NaN"),
        Pair("short", "", good, short),
        Pair("strange", "", good, strange),
        Pair("damaged", "", bad, good),
        Pair("unlabelled", "", None, good),
    ]
    return evaluate_cases(pairs, SCHEME, EvaluateConfig(workers=1))


def test_one_row_for_every_case_and_structure(evaluation):
    table = evaluation.per_case
    assert list(table.columns) == [
        *("case_id", "patient_id", "structure", "dice", "iou", "precision", "sensitivity"),
        *("reference_volume_ml", "predicted_volume_ml", "hd95_mm", "surface_dice_2mm", "status"),
    ]
    assert table[["case_id", "structure"]].apply(tuple, axis=1).nunique() == len(table) == 16
    assert list(table["patient_id"].head(4)) == ["p1"] * 4


def test_statuses(evaluation):
    status = {(r["case_id"], r["structure"]): r["status"] for r in evaluation.per_case.to_dict("records")}
    assert status["perfect", "tumour"] == status["missed", "liver"] == "ok"
    assert status["missed", "tumour"] == "prediction_empty"
    assert status["invented", "tumour"] == "reference_empty"
    for case, expected in {"none": "prediction_missing", "short": "grid_mismatch"}.items():
        assert status[case, "liver"] == status[case, "tumour"] == expected
    assert {status[case, "liver"] for case in ("strange", "damaged", "unlabelled")} == {"unreadable"}


def test_both_empty(save_labels):
    path = save_labels("empty.nii.gz", _labels(tumour=False))
    table = evaluate_cases([Pair("a", "", path, path)], SCHEME, EvaluateConfig(workers=1)).per_case
    row = table[table["structure"] == "tumour"].iloc[0]
    assert row["status"] == "both_empty" and math.isnan(row["dice"]) and row["reference_volume_ml"] == 0


def test_figures_without_a_prediction_are_undefined_but_for_the_size_of_the_reference(evaluation):
    table = evaluation.per_case.set_index(["case_id", "structure"])
    voxel_ml = 1 * 1.5 * 2.5 / 1000
    for case in ("none", "short", "strange"):
        row = table.loc[(case, "liver")]
        assert row["reference_volume_ml"] == pytest.approx(6 * 6 * 5 * voxel_ml)
        assert row[["dice", "predicted_volume_ml", "hd95_mm"]].isna().all()
    assert table.loc[("damaged", "liver")].drop(["patient_id", "status"]).isna().all()


def test_cases_say_why(evaluation):
    cases = evaluation.cases.set_index("case_id")
    assert cases.loc["none", "reason"] == "the scan holds NaN"
    assert "shape" in cases.loc["short", "reason"]
    assert "7, 14" in cases.loc["strange", "reason"]
    assert cases.loc["perfect", "diagonal"] == pytest.approx(DIAGONAL)
    assert cases.loc[["damaged", "unlabelled"], "diagonal"].isna().all()
    assert evaluation.counts == {"given": 8, "readable": 6, "segmented": 5, "evaluated": 3}


def test_predictions_in_other_axes_measure_the_same(save_labels):
    affine = np.diag([1.0, 1.5, 2.5, 1])
    flipped = np.diag([-1.0, 1.5, 2.5, 1])
    flipped[0, 3] = SHAPE[0] - 1
    reference = save_labels("r.nii.gz", _labels(), affine)
    prediction = save_labels("p.nii.gz", _labels()[::-1], flipped)
    table = evaluate_cases([Pair("a", "", reference, prediction)], SCHEME, EvaluateConfig(workers=1)).per_case
    assert list(table["dice"]) == [1, 1]


def test_worker_processes_give_the_same_table(save_labels):
    paths = [save_labels(f"{i}.nii.gz", np.roll(_labels(), i, 1)) for i in range(3)]
    pairs = [Pair(str(i), "", paths[0], path) for i, path in enumerate(paths)]
    one, two = (evaluate_cases(pairs, SCHEME, EvaluateConfig(workers=n)) for n in (1, 2))
    assert one.per_case.equals(two.per_case)


def test_pictures_and_stated_spacing(tmp_path):
    array = np.zeros((20, 30), np.uint8)
    array[4:14, 5:15] = 1
    path = tmp_path / "a.png"
    Image.fromarray(array).save(path)
    pairs, settings = [Pair("a", "", path, path)], EvaluateConfig(metrics=["reference_volume", "hd95"], workers=1)
    pixels = evaluate_cases(pairs, SCHEME, settings).per_case
    assert list(pixels.columns[3:-1]) == ["reference_area_px", "hd95_px"]
    assert pixels["reference_area_px"][0] == 100
    stated = evaluate_cases(pairs, SCHEME, settings, spacing_mm=(0.5, 0.5, 1)).per_case
    assert stated["reference_area_mm2"][0] == pytest.approx(25)


def test_physical_and_other_cases_are_not_mixed(save_labels, tmp_path):
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "a.png")
    pairs = [Pair("picture", "", tmp_path / "a.png", None), Pair("scan", "", save_labels("b.nii.gz", _labels()), None)]
    with pytest.raises(ConfigError, match=r"such as picture.*such as.*scan.*spacing_mm"):
        evaluate_cases(pairs, SCHEME, EvaluateConfig(workers=1))


def test_a_slice_among_volumes_is_measured_as_a_volume(save_labels):
    paths = [save_labels("a.nii.gz", _labels()), save_labels("b.nii.gz", _labels()[:, :, 2:3])]
    table = evaluate_cases([Pair(p.name, "", p, p) for p in paths], SCHEME, EvaluateConfig(workers=1)).per_case
    assert "reference_volume_ml" in table and list(table["dice"]) == [1] * 4


def test_a_fault_of_ours_counts_as_unreadable_and_never_as_absent(save_labels, monkeypatch):
    path = save_labels("a.nii.gz", _labels())
    monkeypatch.setattr("medseg.evaluation.case.pair_structures", lambda *a: 1 / 0)
    evaluation = evaluate_cases([Pair("a", "", path, path)], SCHEME, EvaluateConfig(workers=1))
    assert set(evaluation.per_case["status"]) == {"unreadable"}
    assert "ZeroDivisionError" in evaluation.cases["reason"][0]
    assert evaluation.cases["diagonal"][0] == pytest.approx(DIAGONAL)


def test_written_tables_read_back(evaluation, tmp_path):
    write_evaluation(tmp_path, evaluation)
    StageRecord(tmp_path, {}).write("evaluate", measures=[m.as_dict() for m in evaluation.measures])
    loaded = load_evaluation(tmp_path)
    assert loaded.measures == evaluation.measures and loaded.counts == evaluation.counts
    for ours, theirs in ((evaluation.per_case, loaded.per_case), (evaluation.cases, loaded.cases)):
        assert list(ours.columns) == list(theirs.columns)
    assert np.allclose(loaded.per_case["dice"], evaluation.per_case["dice"], equal_nan=True)
    assert "diagonal_mm" in (tmp_path / "cases.csv").read_text()


def test_a_folder_without_an_evaluation_is_refused(tmp_path):
    with pytest.raises(StageError, match="no finished evaluation"):
        load_evaluation(tmp_path)


def test_settings():
    from medseg.core.config import parse

    with pytest.raises(ConfigError, match="no metric `dise`"):
        parse(EvaluateConfig, {"metrics": ["dise"]}, "quickstart.yaml: evaluate")
    with pytest.raises(ConfigError, match="at least 0"):
        parse(EvaluateConfig, {"surface_tolerance": -1}, "quickstart.yaml: evaluate")
    with pytest.raises(ConfigError, match="no tolerance for `tumour`"):
        EvaluateConfig(surface_tolerance={"liver": 1}).tolerances(SCHEME.names)
    assert EvaluateConfig(surface_tolerance={"tumour": 2, "liver": 1}).tolerances(SCHEME.names) == {"liver": 1, "tumour": 2}
    assert EvaluateConfig().processes(4) == 1


REGIONS = LabelScheme(
    structures=[{"name": "liver", "id": 1}, {"name": "tumour", "id": 2}],
    regions=[{"name": "organ", "structures": ["liver", "tumour"]}, {"name": "tumour", "structures": ["tumour"]}],
)


def test_regions_are_rows(save_labels):
    reference = _labels()
    prediction = np.where(reference == 1, 2, reference)  # all of the liver taken for tumour: the organ is right
    reference[8:10] = 0  # and there the tumour is invented
    pairs = [
        Pair("a", "p1", save_labels("ref.nii.gz", reference), save_labels("pred.nii.gz", prediction)),
        Pair("b", "p2", save_labels("ref2.nii.gz", reference), None, "out of memory"),
    ]
    settings = EvaluateConfig(workers=1, surface_tolerance={"organ": 1, "tumour": 3})
    table = evaluate_cases(pairs, REGIONS, settings).per_case.set_index(["case_id", "structure"])
    assert list(table.index) == [("a", "organ"), ("a", "tumour"), ("b", "organ"), ("b", "tumour")]
    liver, invented = int((reference == 1).sum()), int((prediction[8:10] > 0).sum())
    assert table.loc[("a", "organ"), "dice"] == pytest.approx(2 * liver / (2 * liver + invented))
    assert list(table["status"]) == ["ok", "reference_empty", "prediction_missing", "prediction_missing"]
    assert table.loc[("b", "organ"), "reference_volume_ml"] == pytest.approx(liver * 1 * 1.5 * 2.5 / 1000)
    assert math.isnan(table.loc[("a", "tumour"), "surface_dice_1mm"])
    assert table.loc[("a", "organ"), "surface_dice_1mm"] > 0.5


def test_tolerances_are_those_of_the_regions(save_labels):
    path = save_labels("ref.nii.gz", _labels())
    with pytest.raises(ConfigError, match="`surface_tolerance` names no tolerance for `organ`"):
        evaluate_cases([Pair("a", "", path, path)], REGIONS, EvaluateConfig(workers=1, surface_tolerance={"tumour": 2}))
