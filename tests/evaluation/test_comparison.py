"""Paired differences: signs, missing cases, tests."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from medseg.core.errors import ConfigError
from medseg.evaluation.compare import SUMMARY_COLUMNS, compare_evaluations, holm
from medseg.evaluation.config import EvaluateConfig
from medseg.evaluation.console import comparison_text, text_table
from medseg.evaluation.table import Evaluation
from medseg.metrics.measures import measures_for
from medseg.metrics.pair import Frame

NAN = float("nan")
SETTINGS = EvaluateConfig(bootstrap_resamples=500)
MEASURES = tuple(measures_for(["dice", "hd95", "reference_volume"], Frame(True, False), {"liver": 2.0}))
IDS = [f"c{i}" for i in range(8)]


def _evaluation(dice, hd95, ids=IDS, statuses=None, structures=("liver",), patients=None, diagonal=50.0):
    statuses, patients = statuses or ["ok"] * len(ids), patients or [""] * len(ids)
    rows = [
        {"case_id": c, "patient_id": p, "structure": s, "dice": d, "hd95_mm": h, "reference_volume_ml": 1.0, "status": status}
        for c, p, d, h, status in zip(ids, patients, dice, hd95, statuses, strict=True)
        for s in structures
    ]
    cases = pd.DataFrame({"case_id": ids, "patient_id": patients, "status": statuses, "reason": "", "diagonal": diagonal})
    return Evaluation(pd.DataFrame(rows), cases, MEASURES, "mm")


A = _evaluation([0.9, 0.8, 0.7, 0.9, 0.8, 0.9, 0.6, 0.9], [1, 2, 3, 1, 2, 1, 5, 1])
B = _evaluation([0.8, 0.8, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3], [2, 2, 2, 3, 4, 6, 9, 9])


def _row(comparison, metric):
    (row,) = comparison.summary[comparison.summary["metric"] == metric].to_dict("records")
    return row


def test_differences_are_first_minus_second_and_wins_heed_what_is_better():
    comparison = compare_evaluations({"unet": A, "fcn8s": B}, SETTINGS, seed=0)
    assert list(comparison.differences.columns) == [
        *("case_id", "patient_id", "structure", "metric", "unet", "fcn8s", "difference", "note")
    ]
    assert len(comparison.differences) == 16  # sizes are neither better nor worse and are not compared
    dice, hd95 = _row(comparison, "dice"), _row(comparison, "hd95_mm")
    assert dice["mean_difference"] == pytest.approx(1.6 / 8)
    assert (dice["wins"], dice["ties"], dice["losses"], dice["n"], dice["n_missing"]) == (6, 1, 1, 8, 0)
    assert dice["ci_low"] < dice["mean_difference"] < dice["ci_high"]
    assert hd95["mean_difference"] == pytest.approx(-21 / 8)
    assert (hd95["wins"], hd95["ties"], hd95["losses"]) == (6, 1, 1)
    expected = stats.wilcoxon([0.1, 0, -0.1, 0.2, 0.2, 0.4, 0.2, 0.6], zero_method="pratt").pvalue
    assert dice["p_wilcoxon"] == pytest.approx(expected)
    assert dice["p_holm"] >= dice["p_wilcoxon"]
    assert "unet - fcn8s" in comparison_text(comparison)


def test_a_case_that_one_model_lacks_counts_as_its_worst():
    partial = _evaluation([0.9, NAN], [1, NAN], IDS[:2], ["ok", "prediction_missing"])
    comparison = compare_evaluations({"a": A, "b": partial}, SETTINGS, seed=0)
    rows = comparison.differences.set_index(["metric", "case_id"])
    assert rows.loc[("dice", "c1"), "b"] == 0 and rows.loc[("hd95_mm", "c1"), "b"] == 50
    assert rows.loc[("dice", "c7"), "b"] == 0 and rows.loc[("hd95_mm", "c7"), "b"] == 50
    assert rows.loc[("dice", "c1"), "note"] == "b: prediction_missing, counted as worst"
    assert rows.loc[("dice", "c7"), "note"] == "b: absent, counted as worst"
    assert rows.loc[("dice", "c0"), "note"] == ""
    row = _row(comparison, "dice")
    assert (row["n"], row["n_missing"], row["n_undefined"]) == (8, 7, 0)
    assert (row["n_missing_a"], row["n_missing_b"]) == (0, 7)
    said = comparison_text(comparison)
    assert "7 cases have no usable prediction of b: they count as its worst" in said and "prediction of a" not in said


def test_a_missed_structure_is_noted_but_is_not_missing():
    missed = _evaluation([0.9] * 7 + [0.0], [1] * 7 + [NAN], statuses=["ok"] * 7 + ["prediction_empty"])
    comparison = compare_evaluations({"a": A, "b": missed}, SETTINGS, seed=0)
    assert comparison.differences["note"].iloc[7] == "b: prediction_empty"
    assert _row(comparison, "hd95_mm")["n_missing"] == 0
    assert comparison.differences.set_index(["metric", "case_id"]).loc[("hd95_mm", "c7"), "b"] == 50


def test_a_case_without_a_readable_reference_is_undefined_and_counted():
    lost = _evaluation([NAN] + [0.9] * 7, [NAN] + [1] * 7, statuses=["unreadable"] + ["ok"] * 7, diagonal=[NAN] + [50.0] * 7)
    row = _row(compare_evaluations({"a": lost, "b": lost}, SETTINGS, seed=0), "dice")
    assert (row["n"], row["n_undefined"], row["ties"]) == (7, 1, 7)
    assert row["p_wilcoxon"] == 1


def test_three_models_are_compared_pair_by_pair():
    comparison = compare_evaluations({"a": A, "b": B, "c": A}, SETTINGS, seed=0)
    assert [*comparison.differences.columns[-4:]] == ["difference_a_b", "difference_a_c", "difference_b_c", "note"]
    assert len(comparison.summary) == 6
    dice = comparison.summary[comparison.summary["metric"] == "dice"]
    assert list(zip(dice["model_a"], dice["model_b"], strict=True)) == [("a", "b"), ("a", "c"), ("b", "c")]


def test_what_cannot_be_compared_is_said_or_refused():
    two = _evaluation([0.9] * 8, [1] * 8, structures=("liver", "tumour"))
    assert compare_evaluations({"a": A, "b": two}, SETTINGS, seed=0).left_out == ["tumour"]
    with pytest.raises(ConfigError, match="two evaluations, not 1"):
        compare_evaluations({"a": A}, SETTINGS, seed=0)
    with pytest.raises(ConfigError, match="in common"):
        compare_evaluations({"a": A, "b": _evaluation([0.9], [1], ["other"])}, SETTINGS, seed=0)


def test_effect_size_speaks_for_the_first_model_whichever_way_is_better():
    comparison = compare_evaluations({"a": A, "b": B}, SETTINGS, seed=0)
    dice, hd95 = _row(comparison, "dice"), _row(comparison, "hd95_mm")
    # Dice: |0.1| twice and |0.2| three times, 0.4, 0.6 and a tie that has no rank: 1.5 of 28 against.
    assert dice["rank_biserial"] == pytest.approx(1 - 2 * 1.5 / 28)
    assert hd95["rank_biserial"] == pytest.approx(1 - 2 * 1.5 / 28)  # |1| twice, of which one against
    turned = compare_evaluations({"b": B, "a": A}, SETTINGS, seed=0)
    assert _row(turned, "dice")["rank_biserial"] == pytest.approx(-dice["rank_biserial"])
    assert list(comparison.summary.columns) == SUMMARY_COLUMNS


def test_verdicts_heed_the_margin_and_which_way_is_better():
    close = _evaluation([v - 0.01 for v in A.per_case["dice"]], [v + 0.5 for v in A.per_case["hd95_mm"]])
    margins = EvaluateConfig(bootstrap_resamples=500, non_inferiority_margin={"dice": 0.02, "hd95_mm": {"liver": 0.4}})
    comparison = compare_evaluations({"new": close, "old": A}, margins, seed=0)
    dice, hd95 = _row(comparison, "dice"), _row(comparison, "hd95_mm")
    assert (dice["margin"], dice["verdict_a"], dice["verdict_b"]) == (0.02, "non-inferior", "superior")
    assert (hd95["margin"], hd95["verdict_a"], hd95["verdict_b"]) == (0.4, "inferior", "superior")
    assert "non-inferior (margin 0.02)" in comparison_text(comparison)
    wide = compare_evaluations({"b": B, "a": A}, EvaluateConfig(non_inferiority_margin={"hd95": 3}), seed=0)
    assert _row(wide, "hd95_mm")["verdict_a"] == "inconclusive"
    assert _row(wide, "dice")["verdict_a"] == "" and np.isnan(_row(wide, "dice")["margin"])
    assert "verdict" not in comparison_text(compare_evaluations({"b": B, "a": A}, SETTINGS, seed=0))


def test_missing_cases_can_cost_non_inferiority():
    partial = _evaluation([*A.per_case["dice"][:5]], [*A.per_case["hd95_mm"][:5]], IDS[:5])
    settings = EvaluateConfig(non_inferiority_margin={"dice": 0.05})
    row = _row(compare_evaluations({"new": partial, "old": A}, settings, seed=0), "dice")
    assert row["verdict_a"] in ("inconclusive", "inferior") and row["n_missing_a"] == 3


def test_margins_that_fit_nothing_are_refused():
    for margins, named in (({"iou": 0.1}, "names `iou`"), ({"dice": {"spleen": 0.1}}, "names `spleen`")):
        with pytest.raises(ConfigError, match=named):
            compare_evaluations({"a": A, "b": B}, EvaluateConfig(non_inferiority_margin=margins), seed=0)
    for margins in ({"dicee": 0.1}, {"dice": 0}, {"dice": -1}, {"dice": {"liver": float("inf")}}):
        with pytest.raises(ValueError, match="margin"):
            EvaluateConfig(non_inferiority_margin=margins)


def test_several_scans_of_a_patient_are_viewed_mixed_too():
    patients = [f"p{i // 2}" for i in range(16)]
    generator = np.random.default_rng(0)
    ids = [f"c{i:02d}" for i in range(16)]
    a, b = (_evaluation(generator.uniform(0.5, 0.9, 16), generator.uniform(1, 9, 16), ids, patients=patients) for _ in "ab")
    row = _row(compare_evaluations({"a": a, "b": b}, SETTINGS, seed=0), "dice")
    assert row["mixed_difference"] == pytest.approx(row["mean_difference"])  # as many scans each
    assert row["mixed_low"] < row["mixed_difference"] < row["mixed_high"] and row["mixed_note"] == ""
    alone = _row(compare_evaluations({"a": A, "b": B}, SETTINGS, seed=0), "dice")
    assert np.isnan(alone["mixed_difference"]) and alone["mixed_note"] == ""


def test_patients_are_the_observations():
    patients = [f"p{i // 2}" for i in range(8)]
    a, b = (_evaluation(e.per_case["dice"], e.per_case["hd95_mm"], patients=patients) for e in (A, B))
    row = _row(compare_evaluations({"a": a, "b": b}, SETTINGS, seed=0), "dice")
    assert row["n"] == 8 and np.isnan(row["ci_low"]) and np.isnan(row["p_wilcoxon"])  # four patients
    assert np.isnan(row["rank_biserial"]) and np.isnan(row["mixed_difference"]) and "fewer than 6" in row["mixed_note"]


def test_holm():
    # Worked by hand: 4 x 0.005, then 3 x 0.01, 2 x 0.03 and 0.04, never below the one before.
    assert holm(np.array([0.01, 0.04, 0.03, 0.005])) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm(np.array([0.02, NAN, 0.9])) == pytest.approx([0.04, NAN, 0.9], nan_ok=True)


def test_names_in_brackets_are_not_markup():
    table = text_table("mean [interval]", ["name [b]"], [["[red]"]])
    assert all(text in table for text in ("mean [interval]", "name [b]", "[red]"))
