"""Bootstrap intervals: scipy as an oracle, and whom they resample."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from medseg.evaluation.intervals import mean_intervals

SKEWED = np.random.default_rng(2).beta(8, 1.5, 30)


def _one(values, units=None, **options):
    units = [f"p{i}" for i in range(len(values))] if units is None else units
    options = {"resamples": 10_000, "confidence": 0.95, "seed": 1} | options
    return mean_intervals(np.asarray(values, float)[:, None], units, **options)[0]


def test_agrees_with_the_bca_interval_of_scipy():
    oracle = stats.bootstrap((SKEWED,), np.mean, n_resamples=10_000, method="BCa", rng=np.random.default_rng(5))
    assert _one(SKEWED) == pytest.approx(list(oracle.confidence_interval), abs=0.003)
    oracle = stats.bootstrap((SKEWED,), np.mean, confidence_level=0.8, method="BCa", rng=np.random.default_rng(5))
    assert _one(SKEWED, confidence=0.8) == pytest.approx(list(oracle.confidence_interval), abs=0.003)


def test_agrees_with_scipy_on_a_paired_difference():
    generator = np.random.default_rng(8)
    first, second = generator.beta(8, 1.5, (2, 25))
    oracle = stats.bootstrap((first - second,), np.mean, n_resamples=10_000, method="BCa", rng=np.random.default_rng(5))
    assert _one(first - second) == pytest.approx(list(oracle.confidence_interval), abs=0.003)
    assert _one(second - first)[::-1] == pytest.approx(-_one(first - second), abs=0.003)


def test_patients_are_resampled_and_not_cases():
    # Ten patients with twenty identical scans each carry the information of ten.
    patients = SKEWED[:10]
    scans, units = np.repeat(patients, 20), np.repeat([f"p{i}" for i in range(10)], 20)
    assert _one(scans, units) == pytest.approx(_one(patients))
    as_if_independent = _one(scans)
    assert np.ptp(_one(scans, units)) > 3 * np.ptp(as_if_independent)


@pytest.mark.parametrize("seed", range(3))
def test_unequal_scans_are_what_scipy_makes_of_the_ratio_of_patients_sums(seed):
    generator = np.random.default_rng(seed)
    counts = generator.integers(1, 9, 15)
    units = np.repeat([f"p{i:02d}" for i in range(15)], counts)
    values = np.repeat(generator.beta(8, 1.5, 15), counts) + generator.normal(0, 0.02, len(units))
    sums = np.array([values[units == u].sum() for u in np.unique(units)])

    def mean_over_cases(chosen):
        return sums[chosen].sum() / counts[chosen].sum()

    oracle = stats.bootstrap((np.arange(15),), mean_over_cases, vectorized=False, method="BCa", rng=np.random.default_rng(5))
    assert _one(values, units) == pytest.approx(list(oracle.confidence_interval), abs=0.005)


def test_patients_with_more_scans_weigh_more_in_the_mean_over_cases():
    values, units = [0.0] * 50 + [1.0] * 9, ["many"] * 50 + [f"p{i}" for i in range(9)]
    low, high = _one(values, units)
    assert low < 9 / 59 < high


def test_below_six_units_there_is_no_interval():
    assert np.isnan(_one(SKEWED[:5])).all()
    assert np.isfinite(_one(SKEWED[:6])).all()
    assert np.isnan(_one(SKEWED[:20], ["a", "b", "c", "d", "e"] * 4)).all()
    assert np.isnan(_one([*SKEWED[:5], np.nan, np.nan])).all()


def test_undefined_values_are_left_out_column_by_column():
    values = np.stack([SKEWED, SKEWED], axis=1)
    values[:12, 1] = np.nan
    units = [f"p{i:02d}" for i in range(30)]
    both = mean_intervals(values, units, 2000, 0.95, 7)
    assert both[0] == pytest.approx(_one(SKEWED, units, resamples=2000, seed=7))
    assert both[1] == pytest.approx(_one(SKEWED[12:], units[12:], resamples=2000, seed=7))


def test_equal_values_have_an_interval_without_width():
    assert _one([0.7] * 8) == pytest.approx([0.7, 0.7])


def test_the_seed_decides_and_the_order_of_rows_does_not():
    units = [f"p{i}" for i in range(30)]
    assert (_one(SKEWED, units) == _one(SKEWED, units)).all()
    assert (_one(SKEWED, units, seed=2) != _one(SKEWED, units)).any()
    assert _one(SKEWED[::-1], units[::-1]) == pytest.approx(_one(SKEWED, units))


def test_drawing_in_pieces(monkeypatch):
    whole = _one(SKEWED)
    monkeypatch.setattr("medseg.evaluation.intervals.DRAWN_AT_ONCE", 1000)
    assert _one(SKEWED) == pytest.approx(whole, abs=0.003)


def test_coverage_is_about_what_it_says():
    generator = np.random.default_rng(0)
    inside = 0
    for seed in range(200):
        low, high = _one(generator.normal(0, 1, 25), resamples=500, seed=seed)
        inside += low <= 0 <= high
    assert 0.87 <= inside / 200 <= 0.98
