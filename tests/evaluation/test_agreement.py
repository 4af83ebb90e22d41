"""Agreement of two measurements, against published worked examples; intervals by what they promise."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from medseg.evaluation.agreement import (
    AGREEMENT_COLUMNS,
    Estimate,
    agreement_table,
    bland_altman,
    deming,
    intraclass_correlation,
    passing_bablok,
    unit_means,
    volume_agreement,
    within_subject_cv,
)
from medseg.evaluation.table import Evaluation
from medseg.metrics.measures import measures_for
from medseg.metrics.pair import Frame

# Peak expiratory flow (l/min) of 17 subjects, first readings with a large and a mini meter (Bland & Altman, Lancet 1986).
LARGE = [494, 395, 516, 434, 476, 557, 413, 442, 650, 433, 417, 656, 267, 478, 178, 423, 427]
MINI = [512, 430, 520, 428, 500, 600, 364, 380, 658, 445, 432, 626, 260, 477, 259, 350, 451]

# Six targets rated by four judges (Shrout & Fleiss, Psychological Bulletin 1979, table 2).
JUDGES = [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]]

# Eight wines rated by four judges (C. Zaiontz, Real Statistics; the data set `icc` of pingouin and the example of its page).
WINES = [[1, 2, 0, 1], [1, 3, 3, 2], [3, 8, 1, 4], [6, 4, 3, 3], [6, 5, 5, 6], [7, 5, 6, 2], [8, 7, 7, 9], [9, 9, 9, 8]]

# NCSS Statistical Software, chapter 303 (Deming regression), example 1: error variances 0.032 of X and 0.008 of Y.
DEMING_X = [7, 8.3, 10.5, 9, 5.1, 8.2, 10.2, 10.3, 7.1, 5.9]
DEMING_Y = [7.9, 8.2, 9.6, 9, 6.5, 7.3, 10.2, 10.6, 6.3, 5.2]

# Creatinine in serum and plasma of 108 patients (1/100 mg/dl), the example of the R package mcr, as printed with its
# Passing-Bablok fit by R. Wicklin, "Passing-Bablok regression in SAS", 2022. Many ties, also in one of the two only.
CREATININE = """
82 79 183 162 139 136 81 130 172 188 323 335 123 106 137 134 172 156 96 94 76 69 115 116 95 71 100 83 152 144 156 126 245 236
185 190 89 95 82 77 101 82 96 88 338 342 131 115 110 96 126 112 115 102 120 129 101 87 133 113 87 82 166 133 141 114 108 93
117 109 177 189 133 157 123 129 121 113 120 111 149 161 89 79 109 119 103 96 107 125 89 87 139 136 96 86 106 103 117 86 90 80
139 122 91 86 228 225 90 87 134 130 132 104 102 92 104 101 127 121 108 111 110 121 139 154 107 99 79 79 102 106 94 102 199 215
70 56 84 101 66 59 110 117 90 82 206 209 131 144 103 122 161 177 152 160 111 113 85 106 120 138 109 124 127 129 206 208 121 131
77 82 106 128 102 115 100 104 147 151 97 113 170 184 178 194 93 132 92 136 159 188 68 73 70 78 108 101 83 90 117 130 98 96
77 61 91 127 110 105 80 112 85 72 82 87
"""
SERUM, PLASMA = (np.array(CREATININE.split(), float) / 100).reshape(-1, 2).T


def _triple(estimate: Estimate) -> list[float]:
    return [estimate.value, estimate.low, estimate.high]


def test_bland_altman_as_published():
    # Lancet 1986: mean -2.1, s 38.8; bias -22.0 to 17.8; with 2 s, limits -79.7 (-114.3 to -45.1) and 75.5 (40.9 to 110.1).
    two_s = 2 * stats.norm.cdf(2) - 1
    found = bland_altman(MINI, LARGE, share=two_s, interval="approximate")
    assert found.n == 17
    assert _triple(found.bias) == pytest.approx([-2.1, -22.0, 17.8], abs=0.06)
    assert found.sd == pytest.approx(38.8, abs=0.05)
    assert found.lower.value == pytest.approx(-79.7, abs=0.1)
    assert found.upper.value == pytest.approx(75.5, abs=0.1)
    # The 1986 paper rounds the standard error of a limit to that of 3 s squared over n, the 1999 one has 1/n + z^2 / 2(n - 1).
    assert _triple(found.lower)[1:] == pytest.approx([-114.3, -45.1], abs=0.8)
    assert _triple(found.upper)[1:] == pytest.approx([40.9, 110.1], abs=0.8)
    assert bland_altman(MINI, LARGE).lower.value == pytest.approx(-2.118 - 1.96 * 38.765, abs=0.01)


def test_exact_limits_are_one_sided_tolerance_limits():
    # NIST/SEMATECH e-Handbook 7.2.6.3: 43 wafers, mean 97.07, s 0.0268; with 99 % confidence 90 % lie below 97.07 + 1.8752 s by
    # Natrella's approximation, 1.8740 s by the non-central t distribution.
    values = np.random.default_rng(0).normal(size=43)
    wafers = 97.07 + 0.0268 * (values - values.mean()) / values.std(ddof=1)
    found = bland_altman(np.zeros(43), wafers, confidence=0.98, share=0.8)
    assert found.upper.high == pytest.approx(97.07 + 1.8740 * 0.0268, abs=5e-6)
    assert found.lower.low == pytest.approx(97.07 - 1.8740 * 0.0268, abs=5e-6)


def test_exact_intervals_of_limits_cover_as_they_say():
    generator, limit, inside = np.random.default_rng(1), 5 + 1.959964 * 2, []
    for _ in range(1000):
        differences = generator.normal(5, 2, 8)
        upper = bland_altman(np.zeros(8), differences).upper
        inside.append(upper.low <= limit <= upper.high)
    assert np.mean(inside) == pytest.approx(0.95, abs=0.02)


def test_the_slope_of_a_proportional_bias():
    reference = np.linspace(10, 100, 12)
    found = bland_altman(reference, 1.1 * reference)
    assert _triple(found.slope) == pytest.approx([0.1 / 1.05] * 3)
    x, y = (SERUM + PLASMA) / 2, PLASMA - SERUM
    oracle = stats.linregress(x, y)
    half = stats.t.ppf(0.975, len(x) - 2) * oracle.stderr
    expected = [oracle.slope, oracle.slope - half, oracle.slope + half]
    assert _triple(bland_altman(SERUM, PLASMA).slope) == pytest.approx(expected)


def test_intraclass_correlation_as_published():
    # Shrout & Fleiss 1979, table 4: ICC(2,1) .29 and ICC(3,1) .71. Intervals as printed by psych::ICC (R) for these data in
    # D. Wollschlaeger's "R examples", inter-rater agreement: 0.019 to 0.76 and 0.342 to 0.95.
    found = intraclass_correlation(JUDGES)
    assert (found.n, found.n_raters) == (6, 4)
    assert _triple(found.agreement)[::2] == pytest.approx([0.29, 0.76], abs=0.005)
    assert _triple(found.consistency)[::2] == pytest.approx([0.71, 0.95], abs=0.005)
    assert [found.agreement.low, found.consistency.low] == pytest.approx([0.019, 0.342], abs=0.0005)


@pytest.mark.parametrize(
    ("values", "agreement", "consistency"),
    [
        (WINES, [0.727689, 0.434490, 0.926709], [0.729487, 0.426146, 0.927895]),
        (np.stack([LARGE, MINI], 1), [0.945928, 0.857411, 0.980079], [0.942913, 0.849908, 0.978943]),
    ],
)
def test_intraclass_correlation_as_pingouin_has_it(values, agreement, consistency):
    # ICC(A,1) and ICC(C,1) of pingouin 0.7.0, limits with six digits.
    found = intraclass_correlation(values)
    assert _triple(found.agreement) == pytest.approx(agreement, abs=1e-6)
    assert _triple(found.consistency) == pytest.approx(consistency, abs=1e-6)


@pytest.mark.parametrize("apart", [3e-8, 1e-8, 1e-10])
def test_intraclass_correlation_of_values_that_differ_in_the_last_digits(apart):
    values = np.arange(1.0, 9.0)
    for other in (values + apart, values + apart * np.array([1, -1, 2, 0, 1, -2, 1, 1])):
        found = intraclass_correlation(np.stack([values, other], 1))
        assert _triple(found.agreement) == pytest.approx([1, 1, 1]) and _triple(found.consistency) == pytest.approx([1, 1, 1])


def test_units_that_do_not_differ_have_an_intraclass_correlation_without_an_interval():
    # The formulas would give one without width, whatever is measured.
    for values in ([[1, 2], [2, 1]] * 3, np.stack([np.arange(8.0), -np.arange(8.0)], 1)):
        found = intraclass_correlation(values)
        assert found.consistency.value == -1 and found.agreement.value < 0
        assert np.isnan([found.agreement.low, found.agreement.high, found.consistency.low, found.consistency.high]).all()


def test_intraclass_correlation_of_equal_shifted_and_constant_values():
    values = np.arange(8.0)
    equal = intraclass_correlation(np.stack([values, values], 1))
    assert _triple(equal.agreement) == _triple(equal.consistency) == [1, 1, 1]
    shifted = intraclass_correlation(np.stack([values, values + 3], 1))
    assert _triple(shifted.consistency) == [1, 1, 1]
    assert 0 <= shifted.agreement.low < shifted.agreement.value < 0.6
    constant = intraclass_correlation(np.full((8, 2), 0.1))
    assert np.isnan([*_triple(constant.agreement), *_triple(constant.consistency)]).all()


def test_deming_as_published():
    line = deming(DEMING_X, DEMING_Y, error_ratio=0.032 / 0.008)
    assert _triple(line.slope) == pytest.approx([1.0011942, 0.5695632, 1.4328253], abs=5e-7)
    assert _triple(line.intercept) == pytest.approx([-0.0897449, -4.06065, 3.88117], abs=5e-6)
    # Creatinine: -0.05891341 + 1.054539 x in the unit tests of mcr.
    line = deming(SERUM, PLASMA)
    assert [line.intercept.value, line.slope.value] == pytest.approx([-0.05891341, 1.054539], abs=5e-7)


def test_deming_is_the_principal_axis_where_errors_are_equal():
    # Errors of X with twice the standard deviation: in units of X / 2 they are equal.
    points = np.stack([np.array(DEMING_X) / 2, DEMING_Y], axis=1)
    axis = np.linalg.svd(points - points.mean(0))[2][0]
    assert deming(DEMING_X, DEMING_Y, error_ratio=4).slope.value == pytest.approx(axis[1] / axis[0] / 2)


def test_passing_bablok_as_published():
    # mcr: intercept -0.1171729 (-0.2001149 to -0.0200000), slope 1.0880089 (1.0000000 to 1.173005).
    line = passing_bablok(SERUM, PLASMA)
    assert line.n == 108
    assert _triple(line.slope) == pytest.approx([1.0880089, 1.0, 1.173005], abs=1e-4)
    assert _triple(line.intercept) == pytest.approx([-0.1171729, -0.2001149, -0.02], abs=1e-4)


def test_passing_bablok_does_not_mind_which_is_which_nor_an_outlier():
    line, other = passing_bablok(SERUM, PLASMA), passing_bablok(PLASMA, SERUM)
    assert line.slope.value * other.slope.value == pytest.approx(1, abs=1e-3)
    worse = passing_bablok([*SERUM, 3.0], [*PLASMA, 30.0])
    assert worse.slope.value == pytest.approx(line.slope.value, abs=0.02)
    assert deming([*SERUM, 3.0], [*PLASMA, 30.0]).slope.value > 2


def test_lines_through_points_on_a_line_and_through_nothing():
    x = np.arange(1.0, 9.0)
    for line in (deming(x, 2 * x + 1), passing_bablok(x, 2 * x + 1)):
        assert _triple(line.slope) == pytest.approx([2, 2, 2])
        assert _triple(line.intercept) == pytest.approx([1, 1, 1], abs=1e-9)
    for fit in (deming, passing_bablok):
        assert math.isnan(fit([3.0] * 8, [3.0] * 8).slope.value)
        assert math.isnan(fit([], []).slope.value)
        assert math.isnan(fit([3.0] * 8, x).slope.value)
    assert math.isnan(passing_bablok(x, -2 * x).slope.value)


def test_within_subject_cv():
    # One unit: values 9 and 11 have s^2 = 2 and mean 10. Bland & Altman's duplicates: root of the mean of s^2 / mean^2.
    assert within_subject_cv([9], [11]).cv.value == pytest.approx(math.sqrt(2) / 10)
    squares = (np.array(LARGE) - MINI) ** 2 / 2 / ((np.array(LARGE) + MINI) / 2) ** 2
    assert within_subject_cv(LARGE, MINI).cv.value == pytest.approx(math.sqrt(squares.mean()))
    both_empty = within_subject_cv([9, 0], [11, 0])
    assert both_empty.n == 1


def test_the_interval_of_the_within_subject_cv_covers_as_it_says():
    # The simulation of Bland 2006: values of mean 6, errors of a twentieth of the value.
    generator, inside, found = np.random.default_rng(3), [], []
    for _ in range(500):
        true = 6 + generator.normal(size=100)
        first, second = true + generator.normal(size=(2, 100)) * true / 20
        cv = within_subject_cv(first, second).cv
        found.append(cv.value)
        inside.append(cv.low <= 0.05 <= cv.high)
    assert np.mean(found) == pytest.approx(0.05, abs=0.001)
    assert np.mean(inside) == pytest.approx(0.95, abs=0.025)


def test_below_six_units_there_are_estimates_and_no_intervals():
    five, six = (volume_agreement(LARGE[:n], MINI[:n], [f"p{i}" for i in range(n)]) for n in (5, 6))
    for found, has_interval in ((five, False), (six, True)):
        estimates = [found.bland_altman.bias, found.bland_altman.upper, found.icc.agreement, found.icc.consistency]
        estimates += [found.passing_bablok.slope, found.deming.slope, found.deming.intercept, found.variation.cv]
        assert all(np.isfinite(e.value) for e in estimates)
        assert [np.isfinite([e.low, e.high]).all() for e in estimates] == [has_interval] * len(estimates)


def test_scans_of_a_patient_are_averaged_first():
    units = [f"p{i}" for i in range(17)]
    once = volume_agreement(LARGE, MINI, units)
    assert volume_agreement(LARGE * 3, MINI * 3, units * 3) == once
    spread = volume_agreement([v + d for d in (-5, 5) for v in LARGE], [*MINI, *MINI], units * 2)
    assert spread.bland_altman.bias == once.bland_altman.bias
    assert unit_means([[1, 2], [3, 6], [5, np.nan]], ["b", "b", "a"]) == pytest.approx(
        np.array([[np.nan, np.nan], [2, 4]]), nan_ok=True
    )


def test_undefined_values_are_left_out_and_counted():
    found = volume_agreement([*LARGE, np.nan, 400], [*MINI, 300, np.nan], [f"p{i:02d}" for i in range(19)])
    assert (found.n, found.n_undefined) == (17, 2)
    assert found.bland_altman == bland_altman(LARGE, MINI)
    nothing = volume_agreement([], [], [])
    assert (nothing.n, nothing.n_undefined) == (0, 0)
    assert math.isnan(nothing.bland_altman.bias.value)


def _evaluation() -> Evaluation:
    measures = tuple(measures_for(["dice", "reference_volume", "predicted_volume"], Frame(True, False), {"liver": 2.0}))
    ids = [f"c{i}" for i in range(8)]
    statuses = ["ok"] * 6 + ["prediction_missing", "unreadable"]
    sizes = {"reference_volume_ml": [*range(10, 17), np.nan], "predicted_volume_ml": [*range(11, 17), np.nan, np.nan]}
    per_case = pd.DataFrame({"case_id": ids, "patient_id": "", "structure": "liver", "dice": 0.9, **sizes, "status": statuses})
    cases = pd.DataFrame({"case_id": ids, "patient_id": "", "status": statuses, "reason": "", "diagonal": [9.0] * 7 + [np.nan]})
    return Evaluation(per_case, cases, measures, "mm")


def test_the_table_counts_a_missing_prediction_as_nothing_found():
    table = agreement_table(_evaluation())
    assert list(table.columns) == AGREEMENT_COLUMNS
    bias = table[table["statistic"] == "bias"].iloc[0]
    assert (bias["structure"], bias["unit"], bias["n"], bias["n_undefined"]) == ("liver", "ml", 7, 1)
    assert bias["value"] == pytest.approx((6 * 1 - 16) / 7)
    assert set(table.loc[table["unit"] == "ml", "statistic"]) == {
        *("bias", "limit_lower", "limit_upper", "passing_bablok_intercept", "deming_intercept")
    }


def test_without_sizes_the_table_is_empty():
    evaluation = _evaluation()
    without = Evaluation(evaluation.per_case, evaluation.cases, evaluation.measures[:1], "mm")
    assert agreement_table(without).empty
