"""summary.csv against numbers worked out by hand."""

from __future__ import annotations

import nibabel
import numpy as np
import pandas as pd
import pytest

from medseg.core.labels import LabelScheme
from medseg.evaluation.config import EvaluateConfig
from medseg.evaluation.console import summary_text
from medseg.evaluation.pairs import Pair
from medseg.evaluation.summary import SUMMARY_COLUMNS, gains_of_defined, summarise, under_worst
from medseg.evaluation.table import Evaluation, evaluate_cases
from medseg.metrics.measures import measures_for
from medseg.metrics.pair import Frame

NAN = float("nan")
SETTINGS = EvaluateConfig(bootstrap_resamples=500)
MEASURES = tuple(measures_for(["dice", "hd95", "reference_volume", "predicted_volume"], Frame(True, False), {"liver": 2.0}))


def _evaluation(rows, diagonal=100.0) -> Evaluation:
    """rows: (case_id, status, dice, hd95, reference_volume, predicted_volume[, diagonal])."""
    cases = pd.DataFrame(
        [
            {"case_id": r[0], "patient_id": "", "status": r[1], "reason": "", "diagonal": r[6] if len(r) > 6 else diagonal}
            for r in rows
        ]
    )
    columns = ["case_id", "patient_id", "structure", *(m.column for m in MEASURES), "status"]
    per_case = pd.DataFrame([(r[0], "", "liver", *r[2:6], r[1]) for r in rows], columns=columns)
    return Evaluation(per_case, cases, MEASURES, "mm")


ROWS = [
    ("a", "ok", 0.9, 2.0, 1.0, 1.1),
    ("b", "ok", 0.7, 4.0, 2.0, 2.2),
    ("c", "prediction_empty", 0.0, NAN, 3.0, 0.0),
    ("d", "prediction_missing", NAN, NAN, 4.0, NAN, 60.0),
    ("e", "both_empty", NAN, NAN, 0.0, 0.0),
    ("f", "reference_empty", 0.0, NAN, 0.0, 0.5),
    ("g", "grid_mismatch", NAN, NAN, 5.0, NAN),
    ("h", "unreadable", NAN, NAN, 6.0, NAN),  # the prediction
    ("i", "unreadable", NAN, NAN, NAN, NAN, NAN),  # the reference
]


def _row(table, metric, convention):
    (row,) = table[(table["metric"] == metric) & (table["convention"] == convention)].to_dict("records")
    return row


def test_worst_and_defined():
    table = summarise(_evaluation(ROWS), SETTINGS, seed=0)
    assert list(table.columns) == SUMMARY_COLUMNS
    assert list(table["convention"]) == ["worst"] * 4 + ["defined"] * 4
    dice = _row(table, "dice", "worst")
    assert (dice["n"], dice["n_undefined"], dice["unit"]) == (8, 1, "")
    assert dice["mean"] == pytest.approx((0.9 + 0.7 + 0 + 0 + 1 + 0 + 0 + 0) / 8)
    dice = _row(table, "dice", "defined")
    assert (dice["n"], dice["n_undefined"]) == (4, 5)
    assert dice["mean"] == pytest.approx(1.6 / 4)
    hd95 = _row(table, "hd95_mm", "worst")
    assert (hd95["n"], hd95["unit"]) == (8, "mm")
    assert hd95["mean"] == pytest.approx((2 + 4 + 100 + 60 + 0 + 100 + 100 + 100) / 8)
    assert _row(table, "hd95_mm", "defined")["mean"] == pytest.approx(3)
    assert (_row(table, "hd95_mm", "defined")["q1"], _row(table, "hd95_mm", "defined")["q3"]) == (2.5, 3.5)
    assert _row(table, "hd95_mm", "defined")["median"] == 3


def test_sizes_have_no_worst_but_a_missing_prediction_is_of_size_0():
    table = summarise(_evaluation(ROWS), SETTINGS, seed=0)
    assert _row(table, "reference_volume_ml", "worst")["mean"] == pytest.approx(21 / 8)
    assert _row(table, "predicted_volume_ml", "worst")["mean"] == pytest.approx(3.8 / 8)
    assert _row(table, "predicted_volume_ml", "defined")["mean"] == pytest.approx(3.8 / 5)


def test_counts_of_what_the_masks_hold():
    table = summarise(_evaluation(ROWS), SETTINGS, seed=0)
    assert list(table.columns[:12]) == [
        *("structure", "metric", "unit", "convention", "n", "n_undefined", "mean", "ci_low", "ci_high", "median", "q1", "q3")
    ]
    # c, d, g and h are missed; e is empty in both; f in the reference alone; i has no readable reference.
    assert set(zip(table["n_true_negative"], table["n_missed"], table["n_false_positive"], strict=True)) == {(1, 4, 1)}
    assert _row(table, "dice", "worst")["n_filled"] == 3  # d, g, h: the Dice of c and of f is 0 as defined
    assert _row(table, "hd95_mm", "defined")["n_filled"] == 5


def test_where_defined_looks_better_than_worst():
    evaluation = _evaluation(ROWS)
    table = summarise(evaluation, SETTINGS, seed=0)
    better = {m.column: m.better for m in MEASURES}
    hd95, dice = gains_of_defined(table, better).to_dict("records")
    assert (hd95["metric"], hd95["n_filled"], hd95["n"]) == ("hd95_mm", 5, 8)
    assert (hd95["defined"], hd95["worst"]) == (pytest.approx(3), pytest.approx(466 / 8))
    assert hd95["gain"] == pytest.approx(466 / 8 - 3)
    assert (dice["metric"], dice["n_filled"], dice["gain"]) == ("dice", 3, pytest.approx(1.6 / 4 - 2.6 / 8))
    said = summary_text("evaluate", evaluation, table)
    assert "hd95_mm: 3.000 under `defined`, 58.250 under `worst`; `defined` looks better by 55.250 mm" in said
    assert "it leaves out 5 of 8 cases" in said


def test_the_gains_can_be_read_from_the_file(tmp_path):
    table = summarise(_evaluation(ROWS), SETTINGS, seed=0)
    better = {m.column: m.better for m in MEASURES}
    table.to_csv(tmp_path / "summary.csv", index=False, float_format="%.8g")
    again = gains_of_defined(pd.read_csv(tmp_path / "summary.csv"), better)
    assert again["n_filled"].tolist() == [5, 3] and again["unit"].tolist() == ["mm", ""]


def test_the_gains_on_real_scans(real_data, tmp_path):
    # Masks one voxel off, of which one has lost its posterior part and another is not there at all.
    scheme = LabelScheme(structures=[{"name": "anterior", "id": 1}, {"name": "posterior", "id": 2}])
    paths, pairs, dice = sorted((real_data / "hippocampus" / "labels").glob("*.nii.gz"))[:7], [], []
    for place, path in enumerate(paths):
        image = nibabel.load(path)
        reference = np.asarray(image.dataobj).astype(np.uint8)
        mask = np.roll(reference, 1, axis=0)
        mask[mask == 2] *= place != 1
        nibabel.save(nibabel.Nifti1Image(mask, image.affine), tmp_path / path.name)
        pairs.append(Pair(path.name, "", path, tmp_path / path.name if place else None))
        dice.append([2 * ((mask == s) & (reference == s)).sum() / ((mask == s).sum() + (reference == s).sum()) for s in (1, 2)])
    evaluation = evaluate_cases(pairs, scheme, EvaluateConfig(workers=1, metrics=["dice", "hd95"]))
    gains = gains_of_defined(summarise(evaluation, SETTINGS, seed=0), {m.column: m.better for m in evaluation.measures})
    found = gains.set_index(["structure", "metric"])
    anterior, posterior = np.array(dice).T
    assert found["n_filled"].to_dict() == {
        ("posterior", "hd95_mm"): 2,  # without a surface; its Dice is 0 as defined
        ("posterior", "dice"): 1,
        ("anterior", "dice"): 1,
        ("anterior", "hd95_mm"): 1,
    }
    assert (found["n"] == 7).all() and gains["metric"].iloc[0] == "hd95_mm"
    assert found["gain"][("anterior", "dice")] == pytest.approx(anterior[1:].mean() * (1 - 6 / 7))
    assert found["gain"][("posterior", "dice")] == pytest.approx(posterior[1:].mean() * (1 - 6 / 7))
    diagonals = evaluation.cases["diagonal"].to_numpy()
    near = evaluation.per_case[evaluation.per_case["structure"] == "posterior"]["hd95_mm"].to_numpy()[2:]
    worst = (near.sum() + diagonals[:2].sum()) / 7
    assert found["gain"][("posterior", "hd95_mm")] == pytest.approx(worst - near.mean())


def test_true_negatives_alone_are_no_gain_of_defined():
    rows = [("a", "ok", 0.5, 9.0, 1.0, 1.0), ("b", "both_empty", NAN, NAN, 0.0, 0.0)]
    evaluation = _evaluation(rows)
    table = summarise(evaluation, SETTINGS, seed=0)
    assert gains_of_defined(table, {m.column: m.better for m in MEASURES}).empty  # `worst` counts b as perfect
    assert "looks better" not in summary_text("evaluate", evaluation, table)


@pytest.mark.parametrize("n", [5, 6])
def test_intervals_need_six_units(n):
    rows = [(str(i), "ok", 0.5 + i / 20, 1.0, 1.0, 1.0) for i in range(n)]
    row = _row(summarise(_evaluation(rows), SETTINGS, seed=0), "dice", "worst")
    assert np.isfinite([row["ci_low"], row["ci_high"]]).all() == (n == 6)
    if n == 6:
        assert row["ci_low"] < row["mean"] < row["ci_high"]


@pytest.mark.parametrize("status", ["prediction_empty", "prediction_missing", "unreadable", "grid_mismatch", "reference_empty"])
@pytest.mark.parametrize("metric", ["dice", "hd95_mm"])
def test_a_missed_structure_never_makes_a_mean_better(status, metric):
    base = [("a", "ok", 0.02, 99.0, 1.0, 1.0), ("b", "ok", 0.1, 90.0, 1.0, 1.0)]  # hardly better than nothing
    lost = ("c", status, NAN, NAN, 1.0, NAN)
    before, after = (
        _row(summarise(_evaluation(rows), SETTINGS, seed=0), metric, "worst")["mean"] for rows in (base, [*base, lost])
    )
    assert after <= before if metric == "dice" else after >= before


def test_a_structure_measured_at_another_tolerance_has_no_row_for_this_one():
    measures = tuple(measures_for(["surface_dice"], Frame(True, False), {"liver": 2.0, "tumour": 1.0}))
    rows = [("a", "", s, NAN, NAN, "prediction_missing") for s in ("liver", "tumour")]
    per_case = pd.DataFrame(rows, columns=["case_id", "patient_id", "structure", *(m.column for m in measures), "status"])
    cases = pd.DataFrame([{"case_id": "a", "patient_id": "", "status": "prediction_missing", "reason": "", "diagonal": 9.0}])
    evaluation = Evaluation(per_case, cases, measures, "mm")
    table = summarise(evaluation, SETTINGS, seed=0)
    assert set(zip(table["structure"], table["metric"], strict=True)) == {
        ("liver", "surface_dice_2mm"),
        ("tumour", "surface_dice_1mm"),
    }
    assert under_worst(evaluation)["surface_dice_1mm"].isna().tolist() == [True, False]
