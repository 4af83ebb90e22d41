"""Membranes: pictures with known cells, pairs counted one by one, and scikit-image on the same cells."""

from __future__ import annotations

import itertools
import math
from dataclasses import astuple

import numpy as np
import pytest
from scipy import ndimage

from medseg.metrics.membranes import (
    BestScores,
    CellScores,
    adapted_rand_error,
    best_scores,
    find_cells,
    score_cells,
    score_cells_at,
    thin_membrane,
    warp,
    warping_error,
)

PERFECT = CellScores(1, 1, 1, 1, 1, 1)


def _two_cells(gap: int | None = None) -> np.ndarray:
    membrane = np.zeros((20, 10), bool)
    membrane[10] = True
    if gap is not None:
        membrane[10, gap] = False
    return membrane


def _random_membranes(size: int, seed: int = 0) -> np.ndarray:
    """Two pictures of lines that resemble each other."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal((3, size, size)), (0, 2, 2))
    return np.abs(noise[:2] + 2 * noise[2]) < 0.08


def _pieces(membrane: np.ndarray) -> tuple[int, int]:
    """Cells and membranes; beyond the border lies membrane, which joins those that reach it."""
    return ndimage.label(~membrane)[1], ndimage.label(np.pad(membrane, 1, constant_values=True), np.ones((3, 3)))[1]


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
    reference, prediction = _random_membranes(60)
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


def test_the_thickness_of_a_predicted_membrane_costs_nothing_once_it_is_thinned():
    thick = ndimage.binary_dilation(_two_cells(), iterations=3)
    thinned = score_cells(_two_cells(), thick)
    assert astuple(thinned) == pytest.approx(astuple(PERFECT))
    assert score_cells(_two_cells(), thick, thin=False).v_rand < 0.7


def test_a_merge_lowers_the_merge_part_and_a_split_the_split_part():
    # 20 x 10 pixels with a line at 10: cells of 100 and 90 pixels.
    merged = score_cells(_two_cells(), np.zeros((20, 10), bool))
    assert merged.rand_split == 1
    assert merged.rand_merge == pytest.approx((100**2 + 90**2) / 190**2)
    assert merged.v_info == 0 and merged.info_merge == 0 and math.isnan(merged.info_split)
    split = score_cells(np.zeros((20, 10), bool), _two_cells())
    # The line itself lies in the cell: ten segments of one pixel.
    assert split.rand_split == pytest.approx((100**2 + 90**2 + 10) / 200**2)
    assert split.rand_merge == 1 and math.isnan(split.info_merge)


def test_a_single_cell_on_both_sides_has_no_information_score_but_a_rand_score():
    scores = score_cells(np.zeros((4, 4), bool), np.zeros((4, 4), bool))
    assert (scores.v_rand, scores.rand_split, scores.rand_merge) == (1, 1, 1)
    assert math.isnan(scores.v_info)


@pytest.mark.parametrize("thin", [True, False])
def test_agrees_with_pairs_counted_one_by_one(thin):
    reference, prediction = _random_membranes(14, seed=3)
    cells = find_cells(reference)
    segments = thin_membrane(prediction) if thin else find_cells(prediction)
    pixels = np.argwhere(cells > 0)
    together = np.zeros(3)  # in both, in the reference, in the prediction; ordered pairs, a pixel with itself too
    for a, b in itertools.product(map(tuple, pixels), repeat=2):
        in_cell = cells[a] == cells[b]
        in_segment = a == b or (segments[a] == segments[b] and segments[a] > 0)
        together += (in_cell and in_segment, in_cell, in_segment)
    scores = score_cells(reference, prediction, thin=thin)
    assert 0.1 < scores.v_rand < 0.99
    assert scores.rand_split == pytest.approx(together[0] / together[1])
    assert scores.rand_merge == pytest.approx(together[0] / together[2])
    assert scores.v_rand == pytest.approx(2 * together[0] / (together[1] + together[2]))


def test_agrees_with_scikit_image_where_lone_pixels_are_numbered():
    metrics = pytest.importorskip("skimage.metrics")
    reference, prediction = _random_membranes(80)
    cells, segments = find_cells(reference), find_cells(prediction).astype(np.int64)
    lone = segments == 0
    segments[lone] = segments.max() + 1 + np.arange(lone.sum())
    scores, n = score_cells(reference, prediction, thin=False), (cells > 0).sum()
    # scikit-image takes pairs of different pixels, the challenge any two: each sum of squares is then larger by n.
    _, precision, recall = metrics.adapted_rand_error(cells, segments)
    of_cells, of_segments = (float((np.unique(x[cells > 0], return_counts=True)[1] ** 2.0).sum()) for x in (cells, segments))
    assert scores.rand_split == pytest.approx((precision * (of_cells - n) + n) / of_cells)
    assert scores.rand_merge == pytest.approx((recall * (of_segments - n) + n) / of_segments)
    split, merge = metrics.variation_of_information(cells[cells > 0], segments[cells > 0])
    of_cells, of_segments = (
        -sum(p * np.log2(p)) for p in (np.unique(x[cells > 0], return_counts=True)[1] / n for x in (cells, segments))
    )
    assert scores.info_split == pytest.approx(1 - split / of_segments)
    assert scores.info_merge == pytest.approx(1 - merge / of_cells)


def test_thinning_leaves_one_pixel_between_cells_and_keeps_their_number():
    membrane = _random_membranes(80)[0]
    thinned, cells = thin_membrane(membrane), find_cells(membrane)
    assert 0 < np.count_nonzero(thinned == 0) < membrane.sum() / 2
    assert np.array_equal(thinned[~membrane], cells[~membrane])
    for step in ((1, 0), (0, 1)):  # no two cells touch over an edge
        here, there = thinned[: 80 - step[0], : 80 - step[1]], thinned[step[0] :, step[1] :]
        assert not np.any((here != there) & (here > 0) & (there > 0))


def test_a_picture_that_is_membrane_all_over_is_one_cell():
    assert (thin_membrane(np.ones((4, 5), bool)) == 1).all()
    assert score_cells(_two_cells(), np.ones((20, 10), bool)).rand_split == 1


def test_a_stack_is_the_mean_of_its_slices_and_slices_without_cells_are_left_out():
    reference = np.stack([_two_cells(), _two_cells(), np.ones((20, 10), bool)], axis=-1)
    prediction = np.stack([_two_cells(), _two_cells(gap=4), _two_cells()], axis=-1)
    single = score_cells(_two_cells(), _two_cells(gap=4))
    assert score_cells(reference, prediction).v_rand == pytest.approx((1 + single.v_rand) / 2)


def test_ignored_pixels_are_neither_scored_nor_crossed():
    ignored, prediction = np.zeros((20, 10), bool), _two_cells()
    ignored[:, 4:6], prediction[:, 4:6] = True, False
    assert score_cells(_two_cells(), prediction, ignored).v_rand == pytest.approx(1)
    assert warping_error(_two_cells(), prediction, ignored) == 0


def test_no_reference_cell_is_undefined():
    assert all(math.isnan(value) for value in astuple(score_cells(np.ones((3, 3), bool), np.zeros((3, 3), bool))))


def test_the_best_threshold_is_found():
    # One pixel of the line is given 0.25: it is closed once a cell needs 1 - probability above 0.75.
    probability = np.where(_two_cells(), np.float32(0.6), np.float32(0.05))
    probability[10, 4] = 0.25
    scores = score_cells_at(_two_cells(), probability)
    assert [round(s.v_rand, 6) == 1 for s in scores] == [False] * 8 + [True, True, False]
    assert best_scores(scores) == BestScores(pytest.approx(1), 0.8, pytest.approx(1), 0.8)
    assert math.isnan(best_scores(score_cells_at(np.ones((3, 3), bool), np.ones((3, 3), np.float32))).v_rand)


def test_a_shifted_or_thicker_line_is_bent_without_error():
    shifted = np.roll(_two_cells(), 1, axis=0)
    assert np.array_equal(warp(_two_cells(), shifted), shifted)
    assert warping_error(_two_cells(), ndimage.binary_dilation(_two_cells(), iterations=3)) == 0


def test_a_line_is_not_followed_to_where_it_no_longer_touches():
    # The new line grows from both borders until one pixel would close a third cell; the old one stays.
    assert warping_error(_two_cells(), np.roll(_two_cells(), 4, axis=0)) == pytest.approx(11 / 200)


@pytest.mark.parametrize("gap", [0, 4])
def test_a_gap_costs_one_pixel(gap):
    assert warping_error(_two_cells(), _two_cells(gap)) == pytest.approx(1 / 200)
    assert warping_error(_two_cells(gap), _two_cells()) == pytest.approx(1 / 200)


def test_a_lost_and_an_invented_cell_cost_one_pixel_each():
    closed = np.ones((9, 9), bool)
    closed[2:7, 2:7] = False
    assert warping_error(closed, np.ones((9, 9), bool)) == pytest.approx(1 / 81)
    assert warping_error(np.ones((9, 9), bool), closed) == pytest.approx(25 / 81)  # nothing to grow it from


def test_warping_keeps_cells_and_membranes_as_many():
    for seed in range(10):
        reference, prediction = _random_membranes(40, seed)
        warped = warp(reference, prediction)
        assert np.count_nonzero(warped != prediction) < np.count_nonzero(reference != prediction) / 2
        assert _pieces(warped) == _pieces(reference)


def test_a_pixel_that_is_left_cannot_flip_without_a_change_of_topology():
    reference, prediction = _random_membranes(30, seed=1)
    warped = warp(reference, prediction)
    left = np.argwhere(warped != prediction)
    assert len(left) > 0
    for x, y in left:
        flipped = warped.copy()
        flipped[x, y] ^= True
        assert _pieces(flipped) != _pieces(warped), (x, y)


def test_warping_a_stack_is_the_mean_of_its_slices():
    reference = np.stack([_two_cells(), _two_cells()], axis=-1)
    prediction = np.stack([_two_cells(), _two_cells(gap=4)], axis=-1)
    assert warping_error(reference, prediction) == pytest.approx(0.5 / 200)
    assert math.isnan(warping_error(reference, prediction, np.ones_like(reference)))


def test_real_membranes_lose_nothing_when_thicker_and_merge_with_gaps(real_data):
    from skimage.io import imread

    membrane = imread(real_data / "isbi2012_em" / "labels" / "0.png") == 0
    # Drawn thicker only where no cell is closed off or swallowed: the warped reference is that, by construction.
    thicker = warp(membrane, ndimage.binary_dilation(membrane))
    assert thicker.sum() > 1.2 * membrane.sum()
    assert score_cells(membrane, thicker).v_rand > 0.999
    assert score_cells(membrane, thicker, thin=False).v_rand < 0.96
    assert warping_error(membrane, thicker) == 0
    gaps = membrane & ~ndimage.binary_dilation(np.random.default_rng(0).random(membrane.shape) > 0.998, iterations=4)
    scores = score_cells(membrane, gaps)
    assert scores.rand_merge < 0.5 < scores.rand_split
    assert 0 < warping_error(membrane, gaps) < np.mean(membrane != gaps)
