"""Effect size, verdict and mixed model against worked examples and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from medseg.evaluation.paired import MixedEstimate, judge, mixed_difference, rank_biserial, wilcoxon

NAN = float("nan")
# Darwin's maize, cross- minus self-fertilised, in eighths of an inch, as scipy's page of `wilcoxon` works it out.
MAIZE = np.array([6, 8, 14, 16, 23, 24, 28, 29, 41, -48, 49, 56, 60, -67, 75], float)
# The usual worked example of the signed rank test: ranks in favour 27, against 18, of 45; Kerby's difference is 0.6 - 0.4.
BEFORE_AFTER = np.array([15, -7, 5, 20, 0, -9, 17, -12, 5, -10], float)


def _names(values) -> list[str]:
    return [f"p{i:03d}" for i in range(len(values))]


def test_wilcoxon_of_darwins_maize():
    assert wilcoxon(MAIZE, _names(MAIZE)) == pytest.approx(0.041259765625)
    assert rank_biserial(MAIZE, _names(MAIZE)) == pytest.approx((120 - 2 * 24) / 120)  # the statistic is 24, of 120


def test_wilcoxon_heeds_units():
    differences = np.array([0.3, -0.1, 0.25, 0.4, 0.05, 0.6, 0.7])
    names = list("abcdefg")
    assert wilcoxon(differences, names) == pytest.approx(stats.wilcoxon(differences).pvalue)
    assert wilcoxon(np.repeat(differences, 3), np.repeat(names, 3)) == pytest.approx(stats.wilcoxon(differences).pvalue)
    assert np.isnan(wilcoxon(differences[:5], names[:5]))


def test_wilcoxon_where_few_of_many_patients_differ():
    # Five differences that all point one way are as likely as 2 in 2 ** 5, however many patients have none; the normal
    # approximation says 0.025.
    assert wilcoxon(np.array([1.0] * 5 + [0.0] * 35), _names(range(40))) == pytest.approx(2 / 2**5)
    assert wilcoxon(np.array([1.0] + [0.0] * 35), _names(range(36))) == 1
    assert wilcoxon(np.zeros(36), _names(range(36))) == 1


@pytest.mark.parametrize("seed", range(5))
def test_wilcoxon_with_ties_and_zeros_counts_all_signs(seed):
    differences = np.random.default_rng(seed).normal(0.5, 1, 15).round()
    ranks = np.where(differences == 0, 0, stats.rankdata(np.abs(differences)))
    signs = (np.arange(2**15)[:, None] >> np.arange(15)) & 1
    off_middle = np.abs(signs @ ranks - ranks.sum() / 2)
    observed = abs(ranks[differences > 0].sum() - ranks.sum() / 2)
    assert wilcoxon(differences, _names(differences)) == pytest.approx((off_middle >= observed - 1e-9).mean())


def test_wilcoxon_of_many_is_scipys():
    generator = np.random.default_rng(0)
    for size, method in ((50, "exact"), (51, "asymptotic")):
        differences = generator.normal(0.3, 1, size)
        assert wilcoxon(differences, _names(differences)) == pytest.approx(stats.wilcoxon(differences, method=method).pvalue)


def test_rank_biserial_is_the_difference_of_the_shares_of_ranks():
    assert rank_biserial(BEFORE_AFTER, _names(BEFORE_AFTER)) == pytest.approx(0.20)
    assert rank_biserial(-BEFORE_AFTER, _names(BEFORE_AFTER)) == pytest.approx(-0.20)
    assert rank_biserial(np.arange(1.0, 8), _names(range(7))) == 1
    assert rank_biserial(np.zeros(7), _names(range(7))) == 0
    assert np.isnan(rank_biserial(BEFORE_AFTER[:5], _names(range(5))))
    patients = np.repeat(_names(BEFORE_AFTER), 2)
    assert rank_biserial(np.repeat(BEFORE_AFTER, 2), patients) == pytest.approx(0.20)


def test_rank_biserial_is_the_sum_of_signed_ranks():
    gains = np.random.default_rng(3).normal(0.3, 1, 40)
    against = stats.wilcoxon(gains, alternative="greater").statistic  # ranks in favour
    assert rank_biserial(gains, _names(gains)) == pytest.approx(2 * against / (40 * 41 / 2) - 1)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.001, 0.03, "superior"),
        (0.0, 0.03, "non-inferior"),
        (-0.019, -0.001, "non-inferior"),  # worse, but by less than matters
        (-0.02, 0.03, "inconclusive"),  # the margin itself is not excluded
        (-0.05, -0.01, "inconclusive"),
        (-0.05, -0.021, "inferior"),
        (NAN, NAN, ""),
    ],
)
def test_verdicts(low, high, verdict):
    assert judge(low, high, 0.02) == verdict
    assert judge(low, high, NAN) == ""


def _scans(counts, seed=0, between=1.0, within=0.5):
    generator = np.random.default_rng(seed)
    units = np.repeat(_names(counts), counts)
    return np.repeat(generator.normal(0.2, between, len(counts)), counts) + generator.normal(0, within, len(units)), units


def test_with_as_many_scans_each_the_mixed_model_is_the_t_test_of_patients_means():
    differences, units = _scans([3] * 12)
    found = mixed_difference(differences, units, 0.95)
    means = differences.reshape(12, 3).mean(1)
    expected = stats.ttest_1samp(means, 0).confidence_interval(0.95)
    assert found.difference == pytest.approx(means.mean(), abs=1e-9)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-6)
    assert found.note == ""


@pytest.mark.parametrize("seed", range(12))
def test_patients_who_do_not_differ_leave_the_mean_of_all_cases(seed):
    # With as many scans each the standard error is known: from the mean square between patients or, where that is below the one
    # within, from all cases alike (Searle et al. 1992).
    differences, units = _scans([3] * 10, seed, between=0.0)
    table = differences.reshape(10, 3)
    between, within = 3 * table.mean(1).var(ddof=1), table.var(axis=1, ddof=1).mean()
    error = np.sqrt((between if between > within else differences.var(ddof=1)) / 30)
    found = mixed_difference(differences, units, 0.95)
    assert found.note == "" and found.difference == pytest.approx(differences.mean(), abs=1e-6)
    assert (found.high - found.low) / 2 == pytest.approx(stats.t.ppf(0.975, 9) * error, rel=1e-6)


def test_the_unit_of_the_figures_does_not_matter():
    differences, units = _scans([1, 2, 3, 4, 2, 2, 5, 1], seed=4)
    big, small = mixed_difference(differences, units, 0.9), mixed_difference(differences * 1e-4, units, 0.9)
    assert [v * 1e-4 for v in (big.difference, big.low, big.high)] == pytest.approx([small.difference, small.low, small.high])


def test_a_patient_with_many_scans_weighs_less_than_in_the_mean_over_cases():
    differences, units = _scans([40, *[2] * 9], seed=1, within=0.1)
    differences[:40] += 5
    patients = np.array([differences[units == u].mean() for u in dict.fromkeys(units)])
    found = mixed_difference(differences, units, 0.95)
    assert abs(found.difference - patients.mean()) < 0.05 < abs(found.difference - differences.mean())


# Yields of five preparations from each of six batches (Davies & Goldsmith 1972), and a second table made by Box & Tiao (1973)
# whose batches differ less than their preparations: Dyestuff and Dyestuff2 of lme4, which prints 1527.50, standard error 19.38,
# and 5.6656, standard error 0.6784, for `lmer(Yield ~ 1 + (1 | Batch))`.
DYESTUFF = """
1545 1440 1440 1520 1580 1540 1555 1490 1560 1495 1595 1550 1605 1510 1560
1445 1440 1595 1465 1545 1595 1630 1515 1635 1625 1520 1455 1450 1480 1445
"""
DYESTUFF_2 = """
7.298 3.846 2.434 9.566 7.99 5.22 6.556 0.608 11.788 -0.892 0.11 10.386 13.434 5.51 8.166
2.212 4.852 7.092 9.288 4.98 0.282 9.014 4.458 9.446 7.198 1.722 4.782 8.106 0.758 3.758
"""


@pytest.mark.parametrize(("yields", "mean", "error"), [(DYESTUFF, 1527.50, 19.38), (DYESTUFF_2, 5.6656, 0.6784)])
def test_the_mixed_model_as_published(yields, mean, error):
    found = mixed_difference(np.array(yields.split(), float), np.repeat(list("ABCDEF"), 5), 0.95)
    assert found.difference == pytest.approx(mean, rel=1e-5)
    assert (found.high - found.low) / 2 / stats.t.ppf(0.975, 5) == pytest.approx(error, rel=5e-4)


@pytest.mark.parametrize("seed", range(8))
def test_with_unequal_scans_it_is_generalised_least_squares_with_the_variances_of_statsmodels(seed):
    from statsmodels.regression.mixed_linear_model import MixedLM

    counts = np.random.default_rng(seed).integers(1, 7, 12)
    differences, units = _scans(counts, seed)
    fit = MixedLM(differences, np.ones(len(units)), groups=units).fit(reml=True)
    same = units[:, None] == units
    weights = np.linalg.inv(float(fit.cov_re[0, 0]) * same + fit.scale * np.eye(len(units))).sum(0)
    found = mixed_difference(differences, units, 0.95)
    assert found.difference == pytest.approx((weights @ differences) / weights.sum(), abs=1e-4)
    assert (found.high - found.low) / 2 == pytest.approx(stats.t.ppf(0.975, 11) / np.sqrt(weights.sum()), rel=1e-3)


def test_scans_that_hardly_differ_leave_the_t_test_of_patients_means():
    means, counts = np.random.default_rng(2).normal(0.1, 0.05, 8), [1, 2, 3, 4, 2, 2, 5, 1]
    units = np.repeat(_names(counts), counts)
    found = mixed_difference(np.repeat(means, counts) + 1e-10 * np.random.default_rng(3).normal(size=20), units, 0.95)
    expected = stats.ttest_1samp(means, 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-8)


def test_where_there_is_no_mixed_model_the_note_says_why():
    differences, units = _scans([2] * 8)
    assert np.isnan(mixed_difference(differences[::2], units[::2], 0.95).difference)
    assert mixed_difference(differences[::2], units[::2], 0.95).note == ""  # a scan each: nothing to mix
    assert "fewer than 6" in mixed_difference(differences[:10], units[:10], 0.95).note
    assert "do not differ" in mixed_difference(np.repeat(differences[::2], 2), units, 0.95).note
    assert "do not differ" in mixed_difference(np.zeros(16), units, 0.95).note
    with_holes = np.where(np.arange(16) == 3, NAN, differences)
    assert np.isfinite(mixed_difference(with_holes, units, 0.95).difference)
    assert mixed_difference(np.full(16, NAN), units, 0.95).note == ""


@pytest.mark.parametrize("seed", range(6))
def test_a_hard_fit_is_a_figure_or_a_note_and_never_an_error(seed):
    generator = np.random.default_rng(seed)
    units = np.repeat(_names(range(7)), 2)
    values = [generator.normal(0, 1, 14) * (generator.random(14) > 0.8), np.tile([1.0, -1.0], 7), generator.normal(0, 1, 14) ** 9]
    for differences in values:
        found = mixed_difference(differences, units, 0.95)
        assert isinstance(found, MixedEstimate)
        assert bool(found.note) == bool(np.isnan(found.difference))
        assert bool(found.note) or found.low < found.difference < found.high
