"""Adapted Rand error: its rules, and scikit-image on the same cells."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import ndimage

from medseg.metrics.rand import adapted_rand_error


def _two_cells(gap: int | None = None) -> np.ndarray:
    membrane = np.zeros((20, 10), bool)
    membrane[10] = True
    if gap is not None:
        membrane[10, gap] = False
    return membrane


def test_same_cells_have_no_error_even_with_a_thicker_membrane_in_the_reference():
    thick = _two_cells()
    thick[9] = True
    assert adapted_rand_error(_two_cells(), _two_cells()) == 0
    assert adapted_rand_error(thick, _two_cells()) == 0


def test_a_gap_in_the_membrane_merges_two_cells():
    assert adapted_rand_error(_two_cells(), _two_cells(gap=4)) > 0.3


def test_cells_that_touch_at_a_corner_are_two():
    membrane = np.ones((4, 4), bool)
    membrane[:2, :2] = membrane[2:, 2:] = False
    merged = np.ones((4, 4), bool)
    merged[:2, :2] = merged[2:, 2:] = merged[1:3, 1:3] = False
    assert adapted_rand_error(membrane, membrane) == 0
    assert adapted_rand_error(membrane, merged) > 0


def test_agrees_with_scikit_image_on_the_same_cells():
    metrics = pytest.importorskip("skimage.metrics")
    reference, prediction = ndimage.gaussian_filter(np.random.default_rng(0).random((2, 60, 60)), (0, 2, 2)) > 0.52
    cells = [ndimage.label(~mask)[0] for mask in (reference, prediction)]
    assert adapted_rand_error(reference, prediction) == pytest.approx(metrics.adapted_rand_error(*cells)[0])


def test_ignored_pixels_are_left_out():
    ignored = np.zeros((20, 10), bool)
    ignored[11:] = True
    assert adapted_rand_error(_two_cells(), _two_cells(gap=4), ignored) == 0


def test_ignored_pixels_join_no_predicted_cells():
    # Under ignored pixels a prediction holds no membrane; the cells on both sides must not become one there.
    ignored, prediction = np.zeros((20, 10), bool), _two_cells()
    ignored[:, 4:6], prediction[:, 4:6] = True, False
    assert adapted_rand_error(_two_cells(), prediction, ignored) == 0


def test_a_reference_without_cells_has_no_figure():
    assert math.isnan(adapted_rand_error(np.ones((3, 3), bool), np.zeros((3, 3), bool)))
