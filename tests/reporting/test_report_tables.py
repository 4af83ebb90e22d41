from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest

from medseg.core.errors import StageError
from medseg.core.manifest import Case
from medseg.reporting import cases, tables
from medseg.reporting.collect import Facts, ModelResults, ReportData, collect_folders
from medseg.reporting.inputs import read_table
from medseg.reporting.provenance import commit_text, duration
from medseg.reporting.statistics import statistics_tables
from medseg.reporting.words import describe, find_metric, format_number


def rows(*statuses, structure="a", dice=0.9):
    return [
        {"case_id": f"c{i}", "patient_id": "", "structure": structure, "dice": dice if s == "ok" else math.nan, "status": s}
        for i, s in enumerate(statuses)
    ]


def summary(**changes):
    row = {"structure": "a", "metric": "dice", "unit": "", "convention": "worst", "n": 8, "n_undefined": 0, "mean": 0.9}
    return pd.DataFrame([row | {"ci_low": 0.85, "ci_high": 0.95, "median": 0.91, "q1": 0.88, "q3": 0.93} | changes])


def model(name="unet", per_case=None, **more):
    return ModelResults(
        name, pd.DataFrame(rows(*["ok"] * 8) if per_case is None else per_case), more.pop("summary", summary()), **more
    )


def report(*models, **more):
    return ReportData("run", more.pop("facts", Facts()), models or (model(),), **more)


@pytest.mark.parametrize(
    ("column", "label", "text"),
    [
        ("dice", "Dice", "0.900"),
        ("hd95_mm", "HD95 (mm)", "0.90"),
        ("hd95_px", "HD95 (px)", "0.90"),
        ("reference_volume_ml", "Reference volume (ml)", "0.900"),
        ("predicted_area_mm2", "Predicted area (mm²)", "0.900"),
        ("surface_dice_1.5mm", "Surface Dice at 1.5 mm", "0.900"),
        ("adapted_rand_error", "Adapted Rand error", "0.900"),
        ("lesions_found", "lesions found", "0.900"),
    ],
)
def test_metrics_in_words(column, label, text):
    described = describe(column)
    assert described.label.replace("\u00a0", " ") == label
    assert described.format(0.9) == text


def test_better_comes_from_the_metrics_table():
    assert [describe(c).better for c in ("dice", "hd95_mm", "reference_volume_ml")] == ["higher", "lower", ""]


@pytest.mark.parametrize(
    ("value", "decimals", "text"),
    [(0.12345, 3, "0.123"), (-1.5, 2, "−1.50"), (math.nan, 3, "–"), (None, 3, "–"), (12345.0, 0, "12\u202f345"),
     (1234.56, None, "1\u202f235"), (0.01234, None, "0.012"),
     (0, None, "0.00"), ("ok", 3, "ok"), (np.int64(7), 0, "7"), (math.inf, 3, "–")],
)  # fmt: skip
def test_numbers(value, decimals, text):
    assert format_number(value, decimals) == text


def test_read_table_keeps_names_as_text_and_empty_cells_as_undefined(tmp_path):
    path = tmp_path / "per_case.csv"
    path.write_text("case_id,patient_id,structure,dice,status\n007,NA,None,,prediction_missing\n008,,nan,0.5,ok\n")
    table = read_table(path)
    assert table["case_id"].tolist() == ["007", "008"]
    assert table["patient_id"].tolist() == ["NA", ""] and table["structure"].tolist() == ["None", "nan"]
    assert math.isnan(table["dice"][0]) and table["dice"][1] == 0.5


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe\x00bad"])
def test_a_missing_or_broken_table_is_one_sentence(tmp_path, content):
    path = tmp_path / "summary.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(StageError, match=r"summary\.csv .*run `medseg evaluate`"):
        read_table(path)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "per_case.csv",
            "case_id,patient_id,structure,dice\nc0,,a,1\n",
            r"per_case\.csv has no column status; run `medseg evaluate` again",
        ),
        ("predictions.csv", "case_id,output\nc0,x\n", r"predictions\.csv has no column status, reason; run `medseg predict`"),
    ],
)
def test_a_table_without_a_needed_column_is_one_sentence(tmp_path, name, content, said):
    (tmp_path / name).write_text(content)
    with pytest.raises(StageError, match=said):
        read_table(tmp_path / name)


def evaluation_folder(folder, **inputs):
    folder.mkdir()
    pd.DataFrame(rows(*["ok"] * 8)).to_csv(folder / "per_case.csv", index=False)
    summary().to_csv(folder / "summary.csv", index=False)
    (folder / "stage.json").write_text(json.dumps({"inputs": inputs}))
    return folder


def test_evaluations_whose_intervals_differ_in_kind_are_not_put_under_one_heading(tmp_path):
    at = {"evaluate": {"confidence": 0.9}}
    a, b = (evaluation_folder(tmp_path / n, sampling_unit="tile", **at) for n in "ab")
    facts = collect_folders([a, b]).facts
    assert (facts.sampling_unit, facts.confidence) == ("tile", 0.9)
    with pytest.raises(StageError, match=r"sampling unit \(a: tile, c: patient\)"):
        collect_folders([a, evaluation_folder(tmp_path / "c", sampling_unit="patient", **at)])
    with pytest.raises(StageError, match=r"confidence \(a: 0.9, d: 0.95\)"):
        collect_folders([a, evaluation_folder(tmp_path / "d", sampling_unit="tile", evaluate={"confidence": 0.95})])


def test_folders_without_an_evaluation_are_named(tmp_path):
    with pytest.raises(StageError, match=r"holds no per_case\.csv"):
        collect_folders([tmp_path])


def test_intervals_are_named_after_the_sampling_unit():
    assert "over tiles (8 tiles" in tables.interval_note(report(facts=Facts(sampling_unit="tile")))
    assert "over patients" in tables.interval_note(report())


def test_below_six_units_there_is_no_interval_and_the_report_says_so():
    few = model(per_case=rows(*["ok"] * 5), summary=summary(ci_low=math.nan, ci_high=math.nan))
    note = tables.interval_note(report(few))
    assert note.startswith("No confidence intervals") and "5 patients" in note
    assert tables.summary_blocks(report(few), "worst")[0].metrics[0][1][0].interval == "–"


def test_several_cases_of_one_patient_are_one_unit():
    per_case = [row | {"patient_id": f"p{i // 4}"} for i, row in enumerate(rows(*["ok"] * 8))]
    assert "2 patients" in tables.interval_note(report(model(per_case=per_case)))


def test_the_summary_shows_mean_n_and_undefined_of_its_convention_only():
    both = pd.concat([summary(), summary(convention="defined", mean=0.99, n=7, n_undefined=1)])
    data = report(model(summary=both))
    (worst,), (defined,) = (tables.summary_blocks(data, c)[0].metrics[0][1] for c in ("worst", "defined"))
    assert (worst.mean, worst.n, worst.n_undefined) == ("0.900", "8", "0")
    assert (defined.mean, defined.n, defined.n_undefined) == ("0.990", "7", "1")
    assert (worst.interval, worst.quartiles) == ("0.850 to 0.950", "0.880 to 0.930")


def test_models_stand_beside_one_another_and_an_absent_structure_is_a_gap():
    other = model("fcn8s", per_case=rows("ok", structure="b"), summary=summary(structure="b", mean=0.5))
    data = report(model(), other)
    headline = tables.side_by_side(data, ["dice"])
    assert [(s, [c and c.mean for c in cells]) for s, cells in headline.rows] == [("a", ["0.900", None]), ("b", [None, "0.500"])]


@pytest.mark.parametrize(
    ("metric", "low", "high", "favours"),
    [("dice", 0.1, 0.3, "unet"), ("dice", -0.3, -0.1, "fcn8s"), ("hd95_mm", 0.1, 0.3, "fcn8s"), ("hd95_mm", -3, -1, "unet"),
     ("dice", -0.1, 0.3, "–"), ("dice", math.nan, math.nan, "–")],
)  # fmt: skip
def test_the_comparison_favours_the_model_that_is_clearly_better(metric, low, high, favours):
    row = {"structure": "a", "metric": metric, "unit": "", "model_a": "unet", "model_b": "fcn8s", "n": 8, "n_missing": 0}
    row |= {"n_undefined": 0, "mean_difference": (low + high) / 2, "ci_low": low, "ci_high": high}
    row |= {"wins": 5, "ties": 1, "losses": 2, "p_holm": 2e-4}
    ((structure, (found,)),) = tables.comparison_groups(report(comparison_summary=pd.DataFrame([row])))
    assert structure == "a" and found.favours == favours and found.wins == "5 / 1 / 2" and found.p == "< 0.001"


@pytest.mark.parametrize(
    ("more", "shown"),
    [
        (
            {"rank_biserial": 0.25, "margin": 0.02, "verdict_a": "non-inferior", "verdict_b": "inconclusive"},
            {"effect": "0.25", "margin": "0.020", "verdict": "unet: non-inferior; fcn: inconclusive"},
        ),
        (
            {"rank_biserial": math.nan, "margin": 0.02, "verdict_a": "", "verdict_b": ""},
            {"effect": "–", "margin": "0.020", "verdict": "unet: no interval; fcn: no interval"},
        ),
        ({"rank_biserial": -1.0, "margin": math.nan, "verdict_a": ""}, {"effect": "−1.00", "margin": "", "verdict": ""}),
        ({"mixed_difference": 0.01, "mixed_low": -0.02, "mixed_high": 0.04}, {"mixed": "+0.010 [−0.020 to +0.040]"}),
        ({"mixed_difference": math.nan, "mixed_low": math.nan, "mixed_high": math.nan}, {"mixed": ""}),
        ({"n_missing": 2, "n_undefined": 1}, {"n": "8 [2 missing, 1 undefined]"}),
        ({}, {"n": "8", "effect": "–", "mixed": "", "margin": "", "verdict": ""}),  # a table that an earlier version wrote
    ],
)
def test_the_comparison_tells_effects_mixed_models_and_verdicts(more, shown):
    row = {"structure": "a", "metric": "dice", "model_a": "unet", "model_b": "fcn", "n": 8, "n_missing": 0, "n_undefined": 0}
    row |= {"mean_difference": 0.01, "ci_low": -0.01, "ci_high": 0.02, "wins": 5, "ties": 0, "losses": 3, "p_holm": 0.5}
    ((_, (found,)),) = tables.comparison_groups(report(comparison_summary=pd.DataFrame([row | more])))
    assert {name: getattr(found, name) for name in shown} == shown


def test_the_comparison_leaves_out_columns_that_say_nothing_and_says_why_there_is_no_mixed_model():
    row = {"structure": "a", "metric": "dice", "model_a": "unet", "model_b": "fcn", "n": 8, "n_missing": 0, "n_undefined": 0}
    row |= {"mean_difference": 0.01, "ci_low": -0.01, "ci_high": 0.02, "wins": 5, "ties": 0, "losses": 3, "p_holm": 0.5}
    row |= {"rank_biserial": math.nan, "mixed_note": "fewer than 6 patients or units"}
    other = {"model_b": "dpt", "margin": 0.1, "verdict_a": "superior", "verdict_b": "inferior"}
    one, two = (report(comparison_summary=pd.DataFrame(rows)) for rows in ([row], [row, row | other]))
    assert [c.field for c in tables.comparison_columns(one)] == ["difference", "wins", "n", "p"]
    assert [c.field for c in tables.comparison_columns(two)] == ["pair", "difference", "wins", "n", "p", "margin", "verdict"]
    assert tables.comparison_columns(one)[0].header == "Mean [95 % interval]"
    first, second = tables.comparison_notes(one)
    assert first == "Differences are unet − fcn." and second == "No mixed model in 1 row: fewer than 6 patients or units."
    assert tables.comparison_notes(two)[0] == "No mixed model in 2 rows: fewer than 6 patients or units."


def test_what_was_measured_with_a_reservation_is_told():
    table = pd.DataFrame(
        {"case_id": ["a", "b", "c"], "status": ["ok", "ok", "unreadable"], "reason": ["resampled by nearest", "", "damaged"]}
    )
    (found,) = cases.reservations(report(model(cases=table), model("fcn")))
    assert (found.case_id, found.model, found.reason) == ("a", "unet", "resampled by nearest")


def test_the_comparison_follows_the_order_of_the_structures():
    row = {"metric": "dice", "model_a": "unet", "model_b": "fcn8s", "n": 8, "n_missing": 0, "n_undefined": 0, "p_holm": 1.0}
    row |= {"mean_difference": 0.0, "ci_low": -0.1, "ci_high": 0.1, "wins": 4, "ties": 0, "losses": 4}
    table = pd.DataFrame([{"structure": s, **row} for s in ("liver", "artery")])
    both = model(per_case=rows("ok", structure="liver") + rows("ok", structure="artery"))
    assert [structure for structure, _ in tables.comparison_groups(report(both, comparison_summary=table))] == ["liver", "artery"]


def manifest_cases(n=8):
    return tuple(Case(f"c{i}", (), split="test") for i in range(n)) + (Case("t0", (), split="train"), Case("v0", (), split="val"))


def predictions(**reasons):
    return pd.DataFrame(
        [
            {
                "case_id": f"c{i}",
                "status": "failed" if f"c{i}" in reasons else "done",
                "reason": reasons.get(f"c{i}", ""),
                "output": "x",
            }
            for i in range(8)
        ]
    )


def test_the_flow_counts_every_case_once():
    per_case = rows(
        "ok", "ok", "prediction_missing", "prediction_missing", "grid_mismatch", "prediction_empty", "ok", "unreadable"
    )
    measured = pd.DataFrame({"case_id": [f"c{i}" for i in range(8)], "diagonal_mm": [9.0] * 7 + [math.nan]})
    made = predictions(c2="c2.nii.gz is truncated; copy it again", c3="unexpected KeyError: 'x'")
    data = report(model(per_case=per_case, predictions=made, cases=measured), cases=manifest_cases())
    train, val, test = cases.flow_rows(data)
    assert (train.split, train.given, train.readable) == ("train", "1", "–") and val.split == "val"
    # The scan of c2 and the reference of c7 cannot be read; c3 failed through no fault of its own; c4's mask does not fit.
    flow = cases.case_flow(data)
    assert [(b.text, b.n, b.left) for b in flow.trunk] == [
        ("Cases in the manifest", 10, ()),
        ("Test cases given", 8, ("1 used for training", "1 used for validation")),
    ]
    (column,) = flow.columns
    assert column.title == "" and [(b.text, b.n, b.left) for b in column.boxes] == [
        ("Readable", 6, ("1 reference cannot be read", "1 scan cannot be read")),
        ("Segmented", 5, ("1 failed while segmented",)),
        ("Evaluated", 4, ("1 grids differ",)),
    ]
    assert (test.given, test.readable, test.segmented, test.evaluated) == ("8", "6", "5", "4")
    assert test.lost


def test_the_flow_says_readable_where_check_has_looked():
    columns = ["case_id", "file", "severity", "problem", "what_to_do"]
    checks = pd.DataFrame(
        [["t0", "t0.nii", "error", "is truncated", "copy it again"], ["v0", "", "warning", "odd", "look"]], columns=columns
    )
    data = report(cases=manifest_cases(), checks=checks)
    train, val, _ = cases.flow_rows(data)
    assert (train.readable, val.readable, train.lost, val.lost) == ("0", "1", True, False)
    assert cases.failures(data)[0].reason == "is truncated; copy it again"
    assert [w.reason for w in cases.check_warnings(data)] == ["odd; look"]


def test_a_foreign_evaluation_counts_what_its_table_holds():
    (row,) = cases.flow_rows(report(model(per_case=rows("ok", "prediction_missing", "unreadable"))))
    assert (row.split, row.given, row.readable, row.segmented, row.evaluated) == ("", "3", "2", "1", "1")


def test_failures_give_the_first_reason_and_missed_structures_are_not_failures():
    per_case = rows("ok", "prediction_missing", "grid_mismatch", "prediction_empty")
    known = pd.DataFrame({"case_id": ["c2"], "reason": ["spacing 1 against 2 mm"], "diagonal_mm": [9.0]})
    data = report(model(per_case=per_case, predictions=predictions(c1="too large"), cases=known))
    assert [(f.case_id, f.stage, f.reason) for f in cases.failures(data)] == [
        ("c1", "predict", "too large"),
        ("c2", "evaluate", "spacing 1 against 2 mm"),
    ]
    assert [f.case_id for f in cases.missed(data)] == ["c3"]


def test_the_case_table_sorts_by_the_full_figure_and_leaves_undefined_empty():
    table = cases.per_case_table(report(model(per_case=rows("ok", "prediction_missing", dice=0.123456))))
    assert table.headers == ["Case", "Model", "Structure", "Dice", "Status"]
    assert [(c.text, c.value) for c in (table.rows[0][3], table.rows[1][3])] == [("0.123", 0.123456), ("–", None)]


def test_patients_are_shown_where_they_are_named_and_asked_for():
    per_case = [row | {"patient_id": "anna"} for row in rows("ok")]
    data = report(model(per_case=per_case))
    assert cases.per_case_table(data, patients=True).headers[1] == "Patient"
    assert "Patient" not in cases.per_case_table(data).headers


def test_the_metric_column_is_found_with_any_unit():
    data = report(model(per_case=[row | {"hd95_px": 1.0} for row in rows("ok")]))
    assert find_metric(data, "hd95") == "hd95_px" and find_metric(data, "iou") is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(3.42, "3.4 s"), (48, "48 s"), (99.7, "1 min 40 s"), (725, "12 min 05 s"), (12000, "3 h 20 min"), (None, "–")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_commits():
    assert commit_text("0123+") == "0123 (with uncommitted changes)" and commit_text(None) == "–"


def gains(data):
    return next((t for t in statistics_tables(data, ["dice"]) if t.name == "gains_of_defined"), None)


def test_models_whose_cases_fared_alike_share_a_branch_of_the_flow():
    lost = model("c", per_case=rows("ok", "prediction_missing"))
    data = report(model("a", per_case=rows("ok", "ok")), model("b", per_case=rows("ok", "ok")), lost)
    assert [(c.title, [b.n for b in c.boxes]) for c in cases.case_flow(data).columns] == [("a, b", [2, 2, 2]), ("c", [2, 1, 1])]


def test_the_abstract_gives_what_n_and_the_headline_with_intervals():
    assert tables.abstract(report(facts=Facts(name="livers")), ["dice"]) == (
        "unet was evaluated on 8 cases of livers for the structure a: mean Dice 0.900 [0.850 to 0.950]; "
        "what was missed counts as worst. In brackets are 95 % intervals over patients."
    )


def test_the_abstract_of_many_structures_gives_the_range():
    names = {"a": 0.9, "b": 0.5, "c": 0.7}
    per_case = [row for s in names for row in rows("ok", structure=s)]
    found = pd.concat([summary(structure=s, mean=m, ci_low=math.nan) for s, m in names.items()])
    text = tables.abstract(report(model(per_case=per_case, summary=found)), ["dice"])
    assert "for 3 structures: mean Dice from 0.500 (b) to 0.900 (a);" in text


def test_several_patients_cases_are_counted_apart_in_the_abstract():
    per_case = [row | {"patient_id": f"p{i // 4}"} for i, row in enumerate(rows(*["ok"] * 8))]
    assert "8 cases (2 patients)" in tables.abstract(report(model(per_case=per_case)), ["dice"])


@pytest.mark.parametrize(("metric", "worst", "defined", "gain"), [("dice", 0.7, 0.9, "0.200"), ("hd95_mm", 9.0, 2.0, "7.00")])
def test_where_leaving_out_flatters_is_said_with_the_amount_and_the_cases(metric, worst, defined, gain):
    # Of three undefined figures one is of a structure in neither mask, which counts as perfect.
    left_out = {"convention": "defined", "n": 5, "n_undefined": 3, "n_filled": 2}
    both = [summary(metric=metric, mean=worst, n_filled=2), summary(metric=metric, mean=defined, **left_out)]
    (found,) = gains(report(model(summary=pd.concat(both)))).rows
    assert found[:3] == ["a", describe(metric).label, "unet"] and found[5:] == [gain, "2 of 8"]


def test_nothing_flatters_where_the_conventions_agree_as_printed_or_defined_is_the_worse():
    for mean in (0.9, 0.8, 0.90001):
        both = pd.concat([summary(n_filled=0), summary(convention="defined", mean=mean, n_filled=0)])
        assert gains(report(model(summary=both))) is None


def test_masks_without_a_reference_are_told_and_stand_in_the_flow():
    lost = [("c0", "prediction"), *((f"x{i}", "reference") for i in range(7))]
    unmatched = pd.DataFrame([{"case_id": c, "missing": m, "file": f"{c}.nii"} for c, m in lost])
    one = unmatched[:2]
    data = report(model("a", unmatched=unmatched), model("b", unmatched=unmatched), model("c", unmatched=one), model("d"))
    assert cases.not_measured(data) == [
        "7 masks each of a and b have no reference and were not evaluated: "
        "x0, x1, x2, x3, x4 and 2 more, all in tables/unmatched.csv.",
        "1 mask of c has no reference and was not evaluated: x0.",
    ]
    flow = cases.case_flow(data)
    assert [(b.text, b.n, b.left) for b in flow.trunk] == [
        ("Cases found", 15, ()),
        ("Cases given", 8, ("7 without a reference",)),
    ]
    assert cases.not_measured(report()) == [] and len(cases.case_flow(report()).trunk) == 1


def test_counts_of_empty_masks_are_shown_where_the_summary_has_them():
    counts = {"n_true_negative": 1, "n_missed": 2, "n_false_positive": 3}
    data = report(model(summary=summary(**counts)))
    assert tables.counted(data) == list(counts) and tables.counted(report()) == []
    assert tables.summary_blocks(data, "worst")[0].metrics[0][1][0].counts == ("1", "2", "3")


def agreement(**values):
    line = {"structure": "a", "n": 8, "n_undefined": 0, "ci_low": math.nan, "ci_high": math.nan}
    sized = {"bias", "deming_intercept"}
    return pd.DataFrame([line | {"statistic": s, "value": v, "unit": "ml" if s in sized else ""} for s, v in values.items()])


def test_sizes_are_a_row_a_statistic_and_a_column_a_model():
    models = [model("unet", agreement=agreement(bias=0.5, deming_slope=1.25)), model("fcn8s", agreement=agreement(bias=-2.0))]
    (table,) = [t for t in statistics_tables(report(*models), ["dice"]) if t.name == "agreement"]
    assert table.headers == ["Structure", "Statistic", "unet", "fcn8s"]
    assert [list(row) for row in table.rows] == [
        ["a", "Bias (ml)", "0.500", "−2.00"],
        ["a", "Deming slope", "1.25", "–"],
        ["a", "n", "8", "8"],
    ]
    assert [(first, len(found)) for first, found in table.groups] == [("a", 3)] and "averaged" not in table.caption


def test_where_patients_have_several_cases_the_table_of_sizes_says_what_one_value_is():
    twice = [row | {"patient_id": f"p{i // 2}"} for i, row in enumerate(rows(*["ok"] * 8))]
    (table,) = statistics_tables(report(model(per_case=twice, agreement=agreement(bias=0.5))), ["dice"])
    assert "the cases of each of the patients are averaged first" in table.caption


@pytest.mark.parametrize(("value", "text"), [(0.0004, "0.000"), (-0.0004, "0.000"), (0.0006, "+0.001"), (-0.0006, "−0.001")])
def test_a_difference_that_prints_as_zero_has_no_sign(value, text):
    assert tables._signed(describe("dice"), value) == text
