"""Planning: cases for an interval's width, against published numbers and against what intervals come out."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from medseg.core.errors import ConfigError, StageError
from medseg.core.record import StageRecord
from medseg.evaluation.sample_size import (
    NEEDED_COLUMNS,
    cases_for_width,
    cases_needed_from_pilot,
    cautious_sd,
    check_by_bootstrap,
)
from medseg.evaluation.table import Evaluation, write_evaluation
from medseg.metrics.measures import measures_for
from medseg.metrics.pair import Frame
from pipelines.cases_needed import cases_needed

MEASURES = tuple(measures_for(["dice", "hd95"], Frame(True, False), {"liver": 2.0, "tumour": 2.0}))


def _evaluation(dice: list[float], patients: list[str] | None = None) -> Evaluation:
    ids = [f"c{i}" for i in range(len(dice))]
    names = patients or [""] * len(ids)
    rows = [
        {"case_id": c, "patient_id": p, "structure": s, "dice": d * f, "hd95_mm": 3 + 10 * (1 - d), "status": "ok"}
        for s, f in (("liver", 1.0), ("tumour", 0.5))
        for c, p, d in zip(ids, names, dice, strict=True)
    ]
    cases = pd.DataFrame({"case_id": ids, "patient_id": names, "status": "ok", "reason": "", "diagonal": 50.0})
    return Evaluation(pd.DataFrame(rows), cases, MEASURES, "mm")


def test_cases_as_published():
    # Example of prec_mean in the R package presize (Haynes et al., J Open Source Softw 2021): with a standard deviation of 2.5,
    # 20 cases give an interval 2.34 wide.
    assert cases_for_width(2.5, 2.3401).n_t == 20
    # The formula for a known standard deviation, as in textbooks: 15 and a margin of 2 on either side need 217.
    assert cases_for_width(15, 4).n_normal == 217


@pytest.mark.parametrize(("sd", "width", "confidence"), [(0.1, 0.05, 0.95), (3, 1.5, 0.9), (1, 1.9, 0.99), (12, 0.5, 0.95)])
def test_no_fewer_cases_would_do(sd, width, confidence):
    needed = cases_for_width(sd, width, confidence)

    def widths(n):
        return 2 * sd / math.sqrt(n) * np.array([stats.norm.ppf((1 + confidence) / 2), stats.t.ppf((1 + confidence) / 2, n - 1)])

    assert widths(needed.n_t)[1] <= width < widths(needed.n_t - 1)[1]
    assert widths(needed.n_normal)[0] <= width < widths(needed.n_normal - 1)[0]


def test_a_width_that_needs_no_rounding_is_not_rounded_up():
    width = 2 * stats.norm.ppf(0.975) * 0.1 / math.sqrt(64)
    assert cases_for_width(0.1, width).n_normal == 64


def test_six_are_the_fewest():
    assert cases_for_width(0.001, 1).n_t == 6
    assert cases_for_width(0, 1).n_t == 6


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((1e200, 1e-200), "out of any study's reach"),
        ((0.1, 0), "--width above 0"),
        ((-1, 1), "no standard deviation"),
        ((math.nan, 1), "--sd"),
        ((1, 1, 95), "such as 0.95"),
    ],
)
def test_what_cannot_be_planned_for_is_said(arguments, text):
    with pytest.raises(ConfigError, match=text):
        cases_for_width(*arguments)


def test_a_small_pilot_is_read_with_caution():
    # Four of five pilots of ten have a limit above the true value.
    generator = np.random.default_rng(0)
    above = [cautious_sd(generator.normal(size=10).std(ddof=1), 10) > 1 for _ in range(2000)]
    assert np.mean(above) == pytest.approx(0.8, abs=0.03)
    assert math.isnan(cautious_sd(1.0, 1))


def test_the_bootstrap_agrees_where_values_are_normal():
    pilot = stats.norm.ppf((np.arange(200) + 0.5) / 200) * 0.1
    n = cases_for_width(pilot.std(ddof=1), 0.05).n_t
    check = check_by_bootstrap(pilot, n, 0.05)
    assert check.n == n
    assert check.width == pytest.approx(0.05, rel=0.06)
    assert 0.3 < check.share < 0.9
    assert check_by_bootstrap(pilot, n, 0.05) == check
    assert check_by_bootstrap(pilot, 4 * n, 0.05).share == 1


def test_the_bootstrap_says_nothing_of_fewer_than_six():
    assert math.isnan(check_by_bootstrap([0.1] * 5, 20, 0.1).width)
    assert math.isnan(check_by_bootstrap(np.arange(9), 5, 0.1).width)
    assert check_by_bootstrap([0.1] * 5 + [math.nan, 0.1], 20, 0.1).width == pytest.approx(0)


DICE = [0.9, 0.8, 0.85, 0.7, 0.95, 0.6, 0.9, 0.88]


def test_from_a_pilot_evaluation():
    table = cases_needed_from_pilot(_evaluation(DICE), "dice", 0.1)
    assert list(table.columns) == NEEDED_COLUMNS
    liver, tumour = table.to_dict("records")
    assert (liver["structure"], tumour["structure"], liver["n_pilot"]) == ("liver", "tumour", 8)
    assert liver["sd"] == pytest.approx(np.std(DICE, ddof=1))
    assert liver["n_t"] == cases_for_width(np.std(DICE, ddof=1), 0.1).n_t > tumour["n_t"]
    assert liver["n_cautious"] > liver["n_t"] >= liver["n_normal"]
    assert liver["bootstrap_width"] == pytest.approx(0.1, rel=0.2)
    assert cases_needed_from_pilot(_evaluation(DICE), "hd95", 2).iloc[0]["metric"] == "hd95_mm"


def test_scans_of_a_patient_are_one_unit():
    patients = [f"p{i}" for i in range(8)]
    table = cases_needed_from_pilot(_evaluation(DICE * 3, patients * 3), "dice", 0.1)
    expected = cases_needed_from_pilot(_evaluation(DICE, patients), "dice", 0.1)
    pd.testing.assert_frame_equal(table, expected)


def test_an_evaluation_that_cannot_tell():
    with pytest.raises(ConfigError, match=r"has no metric `asd` \(it has dice, hd95_mm\)"):
        cases_needed_from_pilot(_evaluation(DICE), "asd", 0.1)
    for few in (DICE[:1], [0.9] * 8):
        with pytest.raises(ConfigError, match="two patients that differ"):
            cases_needed_from_pilot(_evaluation(few), "dice", 0.1)


def test_the_stage_prints_a_table(tmp_path, capsys):
    folder, output = tmp_path / "evaluate", tmp_path / "needed.csv"
    evaluation = _evaluation(DICE)
    write_evaluation(folder, evaluation)
    StageRecord(folder, {}).write("evaluate", 0, {}, measures=[m.as_dict() for m in MEASURES])
    assert cases_needed(folder, width=0.1, output=output) == 0
    printed = capsys.readouterr().err
    assert "95 % interval of the mean that is 0.1 wide" in printed and "tumour" in printed
    assert list(pd.read_csv(output).columns) == NEEDED_COLUMNS
    assert cases_needed(sd=15, width=4) == 0
    assert "217" in capsys.readouterr().err


def test_a_structure_without_spread_is_named(tmp_path, capsys):
    evaluation = _evaluation(DICE)
    evaluation.per_case.loc[evaluation.per_case["structure"] == "tumour", "dice"] = 1.0
    write_evaluation(tmp_path, evaluation)
    StageRecord(tmp_path, {}).write("evaluate", 0, {}, measures=[m.as_dict() for m in MEASURES])
    assert cases_needed(tmp_path, width=0.1) == 0
    assert "of tumour the pilot cannot tell" in " ".join(capsys.readouterr().err.split())


def test_the_stage_wants_a_folder_or_a_standard_deviation(tmp_path):
    for arguments in ({}, {"evaluation": tmp_path, "sd": 0.1}):
        with pytest.raises(ConfigError, match="one of the two"):
            cases_needed(width=0.1, **arguments)
    with pytest.raises(ConfigError, match="--output is for"):
        cases_needed(width=0.1, sd=1.0, output=tmp_path / "x.csv")
    with pytest.raises(StageError, match=r"has no per_case\.csv"):
        cases_needed(tmp_path, width=0.1)
