"""Calibration: probabilities with known errors, scikit-learn and MONAI on the same voxels."""

from __future__ import annotations

import math

import numpy as np
import pytest

from medseg.metrics.calibration import (
    brier_score,
    calibration_box,
    expected_calibration_error,
    reliability,
)


def _case(seed: int, shape: tuple[int, ...] = (20, 21, 22)) -> tuple[np.ndarray, np.ndarray]:
    """A structure and probabilities that are too sure of themselves."""
    generator = np.random.default_rng(seed)
    probability = generator.random(shape, dtype=np.float32)
    return generator.random(shape) < 0.25 + probability / 2, probability


def test_known_errors():
    reference = np.array([[True, True, True, False], [False, False, False, False]])
    probability = np.array([[0.75] * 4, [0.25] * 4], np.float32)
    bins = reliability(reference, probability, n_bins=2)
    assert bins.counts.tolist() == [4, 4] and bins.hits.tolist() == [0, 3]
    assert bins.mean_confidence.tolist() == [0.25, 0.75] and bins.hit_rate.tolist() == [0, 0.75]
    assert expected_calibration_error(bins) == pytest.approx(0.25 / 2)
    assert brier_score(bins) == pytest.approx((4 * 0.25**2 + 3 * 0.25**2 + 0.75**2) / 8)


def test_certain_and_right_is_0_and_certain_and_wrong_is_1():
    reference = np.arange(12).reshape(3, 4) % 2 == 0
    for probability, expected in ((reference, 0), (~reference, 1)):
        bins = reliability(reference, probability.astype(np.float32))
        assert expected_calibration_error(bins) == brier_score(bins) == expected


def test_a_bin_holds_its_upper_edge():
    bins = reliability(np.zeros((1, 5), bool), np.array([[0, 0.25, 0.5, 0.75, 1]], np.float32), n_bins=4)
    assert bins.counts.tolist() == [2, 1, 1, 1]
    assert (
        bins.counts.sum() == 5 and np.isnan(reliability(np.zeros((1, 1), bool), np.zeros((1, 1), np.float32)).hit_rate[1:]).all()
    )


def test_agrees_with_scikit_learn():
    curve = pytest.importorskip("sklearn.calibration").calibration_curve
    brier = pytest.importorskip("sklearn.metrics").brier_score_loss
    reference, probability = _case(0)
    bins = reliability(reference, probability)
    hit_rate, confidence = curve(reference.ravel(), probability.ravel(), n_bins=15)
    assert bins.hit_rate == pytest.approx(hit_rate) and bins.mean_confidence == pytest.approx(confidence)
    assert brier_score(bins) == pytest.approx(brier(reference.ravel(), probability.ravel()))


def test_agrees_with_monai():
    import torch
    from monai.metrics.calibration import CalibrationErrorMetric, calibration_binning

    reference, probability = _case(1)
    bins = reliability(reference, probability)
    given, truth = (torch.from_numpy(a.astype(np.float32))[None, None] for a in (probability, reference))
    confidence, hit_rate, counts = (part.numpy()[0, 0] for part in calibration_binning(given, truth, num_bins=15))
    assert bins.counts.tolist() == counts.tolist()
    assert bins.mean_confidence == pytest.approx(confidence, rel=1e-4) and bins.hit_rate == pytest.approx(hit_rate, rel=1e-4)
    metric = CalibrationErrorMetric(num_bins=15, calibration_reduction="expected")
    metric(y_pred=given, y=truth)
    assert expected_calibration_error(bins) == pytest.approx(float(metric.aggregate()), rel=1e-3)
    assert expected_calibration_error(bins) > 0.1


def test_cases_add_up_to_their_voxels_together():
    cases = [_case(seed) for seed in range(3)]
    together = reliability(*(np.concatenate(parts) for parts in zip(*cases, strict=True)))
    total = sum((reliability(*case) for case in cases[1:]), reliability(*cases[0]))
    assert total.counts.tolist() == together.counts.tolist() and total.hits.tolist() == together.hits.tolist()
    assert total.confidence == pytest.approx(together.confidence)
    assert brier_score(total) == pytest.approx(brier_score(together))
    with pytest.raises(ValueError, match="15 and 10 bins do not add up"):
        reliability(*cases[0]) + reliability(*cases[1], n_bins=10)


def test_counting_in_pieces_changes_nothing(monkeypatch):
    reference, probability = _case(2)
    ignored = np.random.default_rng(0).random(reference.shape) < 0.3
    whole = reliability(reference, probability, ignored)
    monkeypatch.setattr("medseg.metrics.calibration.CHUNK_VOXELS", 101)
    pieces = reliability(reference, probability, ignored)
    assert pieces.counts.tolist() == whole.counts.tolist() and pieces.hits.tolist() == whole.hits.tolist()
    assert pieces.squared_error == pytest.approx(whole.squared_error)


def test_ignored_voxels_are_left_out():
    reference, probability = _case(3)
    ignored = np.zeros_like(reference)
    ignored[10:] = True
    kept = reliability(reference[:10], probability[:10])
    assert reliability(reference, probability, ignored).counts.tolist() == kept.counts.tolist()
    none = reliability(reference, probability, np.ones_like(reference))
    assert math.isnan(expected_calibration_error(none)) and math.isnan(brier_score(none))


@pytest.mark.parametrize("wrong", [1.5, -0.2, math.nan])
def test_what_is_no_probability_is_refused(wrong):
    reference, probability = _case(4, (4, 5))
    probability[2, 2] = wrong
    with pytest.raises(ValueError, match="not from 0 to 1"):
        reliability(reference, probability)


def test_a_rounded_probability_is_taken_as_1():
    bins = reliability(np.ones((2, 2), bool), np.full((2, 2), 1.0001, np.float32))
    assert expected_calibration_error(bins) == 0


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match="different shapes"):
        reliability(np.zeros((2, 3), bool), np.zeros((3, 2), np.float32))


def test_the_box_has_a_margin_in_mm_and_stays_in_the_scan():
    box = (slice(20, 30), slice(4, 8), slice(3, 5))
    assert calibration_box(box, (100, 100, 9), (1, 2.5, 4)) == (slice(10, 40), slice(0, 12), slice(0, 8))
    assert calibration_box(None, (100, 100, 9), (1, 1, 1)) is None


def test_in_the_box_the_error_does_not_fall_with_the_field_of_view():
    small = np.zeros((40, 40, 40), bool)
    small[15:25, 15:25, 15:25] = True
    box = (slice(15, 25),) * 3
    figures = []
    for wider in (0, 30):
        reference = np.pad(small, wider)
        probability = np.where(reference, 0.6, 0).astype(np.float32)
        place = calibration_box(tuple(slice(s.start + wider, s.stop + wider) for s in box), reference.shape, (1, 1, 1))
        assert place is not None
        figures.append(expected_calibration_error(reliability(reference[place], probability[place])))
    assert figures[0] == figures[1] == pytest.approx(0.4 * 1000 / 30**3)
