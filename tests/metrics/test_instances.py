"""Objects one by one: worked examples, loops over every pair, StarDist's rule, scikit-image and panoptica."""

from __future__ import annotations

import math
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage
from scipy.optimize import linear_sum_assignment

from medseg.core.components import number_components
from medseg.metrics import instances
from medseg.metrics.instances import (
    THRESHOLDS,
    Panoptic,
    aggregated_jaccard,
    average_precision,
    count_overlaps,
    match_objects,
    mean_average_precision,
    panoptic,
)

EMPTY = np.zeros((6, 6), np.uint8)


def _row(*numbers):
    return np.repeat(*np.array(numbers).T)


def _random_objects(seed, shape=(14, 13), n=9):
    """Two label arrays whose objects overlap in every way, in several pieces too, with numbers far apart."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, n, tuple(-(-s // 3) for s in shape))
    reference = coarse.repeat(3, 0).repeat(3, 1)[: shape[0], : shape[1]]
    prediction = np.where(generator.random(shape) < 0.3, generator.integers(0, n, shape), np.roll(reference, 1, axis=seed % 2))
    return reference * 1000, np.where(prediction > 4, -prediction, prediction).astype(np.int8)


def _blobs(seed=7, shape=(40, 40, 12)):
    base, noise = ndimage.gaussian_filter(np.random.default_rng(seed).random((2, *shape)), (0, 2, 2, 2))
    return number_components(base > 0.53)[0], number_components(0.85 * base + 0.15 * noise > 0.53)[0]


def _iou_table(reference, prediction):
    """IoU of every object with every object, by loops."""
    rows = [reference == k for k in np.unique(reference) if k]
    columns = [prediction == k for k in np.unique(prediction) if k]
    return np.array([[(a & b).sum() / (a | b).sum() for b in columns] for a in rows]).reshape(len(rows), len(columns))


def _stardist(iou, threshold):
    """Pairs and their sum of IoU by the rule that StarDist publishes."""
    n = min(iou.shape)
    if not n:
        return 0, 0.0
    chosen = linear_sum_assignment(-(iou >= threshold).astype(float) - iou / (2 * n))
    matched = iou[chosen][iou[chosen] >= threshold]
    return len(matched), matched.sum()


def _kumar(reference, prediction):
    """Algorithm 1 of Kumar et al. 2017, by loops."""
    shared, union, used = 0, 0, set()
    predicted = [k for k in np.unique(prediction) if k]
    for k in np.unique(reference):
        if k == 0:
            continue
        here = reference == k
        scores = {j: (here & (prediction == j)).sum() / (here | (prediction == j)).sum() for j in predicted}
        best = max(scores, key=scores.__getitem__, default=0)
        if not scores or scores[best] == 0:
            union += here.sum()
            continue
        used.add(best)
        shared += (here & (prediction == best)).sum()
        union += (here | (prediction == best)).sum()
    return shared / (union + sum((prediction == j).sum() for j in predicted if j not in used))


def test_worked_example():
    # Three nuclei: one found with IoU 3/5, one cut into halves, one missed; and one invented.
    reference = _row((1, 4), (0, 2), (7, 4), (0, 2), (9, 3), (0, 3))
    prediction = _row((0, 1), (5, 4), (0, 1), (2, 2), (3, 2), (0, 5), (8, 2), (0, 1))
    overlaps = count_overlaps(reference, prediction)
    assert overlaps.reference.tolist() == [4, 4, 3] and overlaps.prediction.tolist() == [2, 2, 4, 2]
    assert overlaps.pairs.tolist() == [[0, 2], [1, 0], [1, 1]] and overlaps.shared.tolist() == [3, 2, 2]
    assert overlaps.iou.tolist() == [3 / 5, 1 / 2, 1 / 2]
    assert panoptic(overlaps) == Panoptic(reference=3, prediction=4, matched=2, iou_sum=1.1)
    assert panoptic(overlaps).segmentation_quality == pytest.approx(0.55)
    assert panoptic(overlaps).recognition_quality == pytest.approx(2 / (2 + 2 / 2 + 1 / 2))
    assert panoptic(overlaps).quality == pytest.approx(0.55 * 4 / 7)
    assert [average_precision(overlaps, t) for t in (0.5, 0.6, 0.61)] == [2 / 5, 1 / 6, 0]
    assert mean_average_precision(overlaps) == pytest.approx((2 / 5 + 2 / 6) / 9)
    assert aggregated_jaccard(overlaps) == (3 + 2) / (5 + 4 + 3 + 2 + 2)  # pairs, missed, two that none took


def test_an_object_takes_one_partner_so_that_more_find_one():
    # The second object has two partners to choose from; the one it likes better is the only one of the first.
    reference = _row((1, 4), (2, 8))
    prediction = _row((0, 2), (1, 7), (2, 3))
    overlaps = count_overlaps(reference, prediction)
    assert overlaps.iou.tolist() == [2 / 9, 5 / 10, 3 / 8]
    assert match_objects(overlaps, 0.2).tolist() == [0, 2]
    assert match_objects(overlaps, 0.3).tolist() == [1]
    assert match_objects(overlaps, 0.5).tolist() == [1]


def test_two_weak_pairs_come_before_a_strong_one():
    overlaps = count_overlaps(_row((1, 10), (2, 10)), _row((1, 1), (2, 10), (0, 9)))
    assert overlaps.iou.tolist() == [1 / 10, 9 / 11, 1 / 19]
    assert match_objects(overlaps, 0).tolist() == [0, 2]
    assert match_objects(overlaps, 0.1).tolist() == [1]


def test_half_of_an_object_matches_once():
    # At an IoU of exactly 0.5 both halves reach the threshold: it counts, but one of them only.
    overlaps = count_overlaps(_row((1, 4)), _row((1, 2), (2, 2)))
    assert panoptic(overlaps) == Panoptic(reference=1, prediction=2, matched=1, iou_sum=0.5)


@pytest.mark.parametrize("seed", range(12))
def test_agrees_with_loops_over_every_pair(seed):
    reference, prediction = _random_objects(seed)
    table, overlaps = _iou_table(reference, prediction), count_overlaps(reference, prediction)
    found = np.zeros_like(table)
    found[tuple(overlaps.pairs.T)] = overlaps.iou
    assert found == pytest.approx(table)
    assert aggregated_jaccard(overlaps) == pytest.approx(_kumar(reference, prediction))
    for threshold in (1e-9, 0.05, 0.1, 0.2, 0.35, *THRESHOLDS):
        matched, iou_sum = _stardist(table, threshold)
        figures = panoptic(overlaps, threshold)
        assert figures.matched == matched and figures.iou_sum == pytest.approx(iou_sum)
        assert average_precision(overlaps, threshold) == pytest.approx(matched / (sum(table.shape) - matched))
        assert figures.quality == pytest.approx(iou_sum / (matched + (sum(table.shape) - 2 * matched) / 2))
        assert figures.quality == pytest.approx(figures.segmentation_quality * figures.recognition_quality)
        pairs = overlaps.pairs[match_objects(overlaps, threshold)]
        assert all(len(set(side)) == len(pairs) for side in pairs.T)


def test_counting_in_pieces_changes_nothing(monkeypatch):
    reference, prediction = _random_objects(3)
    whole = count_overlaps(reference, prediction)
    monkeypatch.setattr(instances, "CHUNK_VOXELS", 17)
    pieces = count_overlaps(np.asfortranarray(reference), prediction)
    for name in ("reference", "prediction", "pairs", "shared"):
        assert (getattr(pieces, name) == getattr(whole, name)).all()


def test_overlaps_and_components_agree_with_scikit_image():
    measure, metrics = pytest.importorskip("skimage.measure"), pytest.importorskip("skimage.metrics")
    for shape in ((40, 50), (20, 18, 16)):
        masks = np.random.default_rng(1).random((2, *shape)) < 0.25
        reference, prediction = (number_components(mask)[0] for mask in masks)
        assert (reference == measure.label(masks[0], connectivity=len(shape))).all()
        counted = metrics.contingency_table(reference, prediction).toarray()
        overlaps = count_overlaps(reference, prediction)
        assert (counted.sum(1)[1:] == overlaps.reference).all() and (counted.sum(0)[1:] == overlaps.prediction).all()
        assert (counted[1:, 1:][tuple(overlaps.pairs.T)] == overlaps.shared).all()
        assert counted[1:, 1:].sum() == overlaps.shared.sum()


def test_numbers_and_their_types_do_not_matter():
    reference, prediction = _blobs()
    expected = panoptic(count_overlaps(reference, prediction))
    shuffled = np.random.default_rng(0).permutation(2**40 + np.arange(reference.max() + 1))
    shuffled[0] = 0
    far = prediction.astype(np.uint64) * 2**55
    assert panoptic(count_overlaps(shuffled[reference], far)) == expected
    assert panoptic(count_overlaps(-reference, prediction.astype(np.uint16))) == expected
    assert panoptic(count_overlaps(reference > 0, reference > 0)) == Panoptic(1, 1, 1, 1.0)


def test_empty_masks():
    full = EMPTY + np.uint8(3)
    both, missed, invented = (count_overlaps(*pair) for pair in ((EMPTY, EMPTY), (full, EMPTY), (EMPTY, full)))
    for figure in (lambda o: average_precision(o, 0.5), mean_average_precision, aggregated_jaccard):
        assert math.isnan(figure(both))
        assert figure(missed) == figure(invented) == 0
    for name, one_empty in (("segmentation_quality", math.nan), ("recognition_quality", 0), ("quality", 0)):
        assert math.isnan(getattr(panoptic(both), name))
        assert [getattr(panoptic(o), name) for o in (missed, invented)] == pytest.approx([one_empty] * 2, nan_ok=True)
    without_voxels = count_overlaps(np.zeros((0, 3), int), np.zeros((0, 3), int))
    assert math.isnan(aggregated_jaccard(without_voxels))


def test_objects_that_never_match_have_the_worst_outline():
    figures = panoptic(count_overlaps(_row((1, 2), (0, 2)), _row((0, 2), (1, 2))))
    assert (figures.segmentation_quality, figures.recognition_quality, figures.quality) == (0, 0, 0)


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match="different shapes"):
        count_overlaps(EMPTY, EMPTY[1:])
    with pytest.raises(ValueError, match="prediction are numbered by float64"):
        count_overlaps(EMPTY, EMPTY * 1.0)
    with pytest.raises(ValueError, match="an IoU of 50"):
        match_objects(count_overlaps(EMPTY, EMPTY), 50)


def test_two_giants_that_touch_everything_are_matched_too():
    # As in a noisy mask: one component meets nearly all of the other side, and one of those nearly all of its own.
    reference, prediction = np.zeros((2, 2, 3000), int)
    reference[0], prediction[0, 1::2] = 1, np.arange(2, 1502)
    prediction[1], reference[1, 1::2] = 1, np.arange(2, 1502)
    started = time.perf_counter()
    figures = panoptic(count_overlaps(reference, prediction), 0)
    assert figures.matched == 2
    assert time.perf_counter() - started < 5


def test_a_thousand_nuclei_take_a_moment():
    generator = np.random.default_rng(0)
    field, noise = ndimage.gaussian_filter(generator.random((2, 1024, 1024)), (0, 4, 4))
    reference, prediction = (number_components(m)[0] for m in (field > 0.51, 0.8 * field + 0.2 * noise > 0.51))
    started = time.perf_counter()
    overlaps = count_overlaps(reference, prediction)
    assert len(overlaps.reference) > 900
    panoptic(overlaps), panoptic(overlaps, 0), mean_average_precision(overlaps), aggregated_jaccard(overlaps)
    assert time.perf_counter() - started < 2  # 0.05 s on a free machine; a loop over pairs of masks takes minutes


# (matched, segmentation, recognition, panoptic quality) that panoptica 2.1.7 finds in `_blobs()`, at each IoU
PANOPTICA = {
    0.5: (14, 0.7260055183590685, 0.6086956521739131, 0.441916402479433),
    0.1: (21, 0.6010777357859277, 0.9130434782608695, 0.5488101065871513),
}


def _figures(found):
    return found.matched, found.segmentation_quality, found.recognition_quality, found.quality


@pytest.mark.parametrize("iou", PANOPTICA)
def test_agrees_with_figures_of_panoptica(iou):
    assert _figures(panoptic(count_overlaps(*_blobs()), iou)) == pytest.approx(PANOPTICA[iou])


@pytest.mark.parametrize("iou", PANOPTICA)
@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_panoptica(seed, iou):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        panoptica = pytest.importorskip("panoptica")
        from panoptica.instance_matcher import MaxBipartiteMatching
        from panoptica.metrics import Metric

        reference, prediction = (numbers.astype(np.uint16) for numbers in _blobs(seed))
        evaluator = panoptica.Panoptica_Evaluator(
            expected_input=panoptica.InputType.UNMATCHED_INSTANCE,
            instance_matcher=MaxBipartiteMatching(matching_threshold=iou),
            instance_metrics=[Metric.IOU],
            global_metrics=[],
        )
        (result,) = evaluator.evaluate(prediction, reference).values()
        expected = result.tp, result.sq, result.rq, result.pq
    assert _figures(panoptic(count_overlaps(reference, prediction), iou)) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["mask2d.tif", "mask3d.tif"])
def test_real_nuclei(real_data: Path, name: str):
    import tifffile

    path = real_data / "stardist_small" / name
    if not path.is_file():
        pytest.skip("no labelled nuclei there")
    reference = tifffile.imread(path)[..., :256, :256]
    moved = np.roll(reference, 3, axis=-1)
    overlaps = count_overlaps(reference, moved)
    table = _iou_table(reference, moved)
    assert len(overlaps.reference) == len(np.unique(reference)) - 1 > 20
    for threshold in (1e-9, 0.5, 0.7):
        assert panoptic(overlaps, threshold).matched == _stardist(table, threshold)[0]
    assert aggregated_jaccard(overlaps) == pytest.approx(_kumar(reference, moved))
