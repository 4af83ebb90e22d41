"""Overlap figures against hand counts and MONAI."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest

from medseg.metrics import overlap
from medseg.metrics.overlap import Counts, confusion_matrix, counts_of


def test_confusion_matrix_counts_pairs_of_classes():
    reference = np.array([0, 0, 1, 1, 1, 2], np.uint8).reshape(6, 1, 1)
    prediction = np.array([0, 1, 1, 1, 2, 0], np.uint8).reshape(6, 1, 1)
    assert confusion_matrix(reference, prediction, 3).tolist() == [[1, 1, 0], [0, 2, 1], [1, 0, 0]]


def test_ignored_voxels_are_left_out_and_an_ignored_prediction_is_background():
    reference = np.array([255, 255, 1, 1], np.uint8).reshape(4, 1, 1)
    prediction = np.array([1, 0, 1, 255], np.uint8).reshape(4, 1, 1)
    counts = counts_of(confusion_matrix(reference, prediction, 2), [1])
    assert counts == Counts(true_positive=1, false_positive=0, false_negative=1, total=2)


def test_counting_in_pieces_changes_nothing(monkeypatch):
    generator = np.random.default_rng(0)
    reference, prediction = generator.integers(0, 5, (2, 13, 7, 5), np.uint8)
    whole = confusion_matrix(reference, prediction, 5)
    monkeypatch.setattr(overlap, "CHUNK_VOXELS", 17)
    assert (confusion_matrix(reference, np.asfortranarray(prediction), 5) == whole).all()
    assert whole.sum() == reference.size
    assert whole[3, 4] == ((reference == 3) & (prediction == 4)).sum()


def test_a_scan_that_is_mostly_background_is_counted_in_full():
    reference, prediction = np.zeros((2, 30, 20, 10), np.uint8)
    reference[3:9, 4:8], prediction[5:9, 4:9], prediction[20, 3] = 1, 2, 255
    reference[25:27] = 255
    matrix = confusion_matrix(reference, prediction, 3)
    assert matrix.sum() == (reference != 255).sum()
    for k in (1, 2):
        for j in range(3):
            assert matrix[k, j] == ((reference == k) & (prediction == j)).sum()
    assert matrix[0, 2] == ((reference == 0) & (prediction == 2)).sum()


def test_most_structures_fit():
    reference = np.arange(255, dtype=np.uint8).reshape(255, 1, 1)
    assert (confusion_matrix(reference, reference, 255) == np.eye(255)).all()


def test_a_region_is_counted_as_the_union_of_its_classes():
    reference, prediction = np.random.default_rng(2).integers(0, 5, (2, 6, 5, 4), np.uint8)
    reference[0] = 255
    matrix = confusion_matrix(reference, prediction, 5)
    valid = reference != 255
    for classes in ([1, 3, 4], [2], [1, 2, 3, 4]):
        there, found = np.isin(reference, classes) & valid, np.isin(prediction, classes) & valid
        expected = Counts(int((there & found).sum()), int((found & ~there).sum()), int((there & ~found).sum()), int(valid.sum()))
        assert counts_of(matrix, classes) == expected


def test_known_figures():
    counts = Counts(true_positive=6, false_positive=2, false_negative=4, total=100)
    assert overlap.dice(counts) == pytest.approx(12 / 18)
    assert overlap.iou(counts) == pytest.approx(6 / 12)
    assert overlap.precision(counts) == pytest.approx(6 / 8)
    assert overlap.sensitivity(counts) == pytest.approx(6 / 10)


@pytest.mark.parametrize(
    ("counts", "dice", "precision", "sensitivity"),
    [
        (Counts(0, 0, 0, 9), math.nan, math.nan, math.nan),  # both empty
        (Counts(0, 3, 0, 9), 0, 0, math.nan),  # reference empty
        (Counts(0, 0, 3, 9), 0, math.nan, 0),  # prediction empty
    ],
)
def test_empty_masks(counts, dice, precision, sensitivity):
    assert overlap.dice(counts) == pytest.approx(dice, nan_ok=True)
    assert overlap.iou(counts) == pytest.approx(dice, nan_ok=True)
    assert overlap.precision(counts) == pytest.approx(precision, nan_ok=True)
    assert overlap.sensitivity(counts) == pytest.approx(sensitivity, nan_ok=True)


def test_masks_that_lie_in_another_order_in_memory_are_counted_alike():
    reference, prediction = np.random.default_rng(5).integers(0, 5, (2, 9, 8, 7), np.uint8)
    whole = confusion_matrix(reference, prediction, 5)
    for one in (reference, np.asfortranarray(reference)):
        for other in (prediction, np.asfortranarray(prediction)):
            assert (confusion_matrix(one, other, 5) == whole).all()


def test_specificity_and_sizes_of_a_hand_counted_structure():
    counts = Counts(true_positive=6, false_positive=2, false_negative=4, total=20)
    assert counts.true_negative == 8
    assert overlap.specificity(counts) == pytest.approx(8 / 10)
    assert overlap.volume_similarity(counts) == pytest.approx(1 - 2 / 18)
    assert overlap.volume_difference(counts) == -2
    assert overlap.absolute_volume_difference(counts) == 2
    assert overlap.relative_volume_difference(counts) == pytest.approx(-0.2)
    assert overlap.absolute_relative_volume_difference(counts) == pytest.approx(0.2)


def test_masks_of_one_size_are_of_similar_volume_wherever_they_lie():
    assert overlap.volume_similarity(Counts(0, 7, 7, 40)) == 1


@pytest.mark.parametrize(
    ("counts", "specificity", "similarity", "difference", "relative"),
    [
        (Counts(0, 0, 0, 9), 1, math.nan, 0, math.nan),  # both empty
        (Counts(0, 3, 0, 9), 6 / 9, 0, 3, math.nan),  # reference empty
        (Counts(0, 0, 3, 9), 1, 0, -3, -1),  # prediction empty
        (Counts(9, 0, 0, 9), math.nan, 1, 0, 0),  # the reference fills the scan
    ],
)
def test_sizes_of_empty_masks(counts, specificity, similarity, difference, relative):
    assert overlap.specificity(counts) == pytest.approx(specificity, nan_ok=True)
    assert overlap.volume_similarity(counts) == pytest.approx(similarity, nan_ok=True)
    assert overlap.volume_difference(counts) == difference
    assert overlap.absolute_volume_difference(counts) == abs(difference)
    assert overlap.relative_volume_difference(counts) == pytest.approx(relative, nan_ok=True)
    assert overlap.absolute_relative_volume_difference(counts) == pytest.approx(abs(relative), nan_ok=True)


def test_figures_agree_with_simpleitk():
    reference, prediction = np.random.default_rng(7).integers(0, 4, (2, 9, 8, 7), np.uint8)
    prediction[reference == 2] = 2  # a structure that is found well, and too large
    sitk = pytest.importorskip("SimpleITK")
    matrix, theirs = confusion_matrix(reference, prediction, 4), sitk.LabelOverlapMeasuresImageFilter()
    theirs.Execute(*(sitk.GetImageFromArray(labels) for labels in (prediction, reference)))  # the second is its truth
    for k in (1, 2, 3):
        counts = counts_of(matrix, [k])
        assert overlap.dice(counts) == pytest.approx(theirs.GetDiceCoefficient(k))
        assert overlap.iou(counts) == pytest.approx(theirs.GetJaccardCoefficient(k))
        # ITK's volume similarity is 2 (first - second) / (first + second): signed, 0 for masks of one size.
        assert overlap.volume_similarity(counts) == pytest.approx(1 - abs(theirs.GetVolumeSimilarity(k)) / 2)
        assert 1 - overlap.sensitivity(counts) == pytest.approx(theirs.GetFalseNegativeError(k))
        assert 1 - overlap.precision(counts) == pytest.approx(theirs.GetFalseDiscoveryRate(k))
        assert 1 - overlap.specificity(counts) == pytest.approx(theirs.GetFalsePositiveError(k))


def test_specificity_agrees_with_monai():
    torch = pytest.importorskip("torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from monai.metrics.confusion_matrix import compute_confusion_matrix_metric, get_confusion_matrix
    reference, prediction = np.random.default_rng(6).integers(0, 4, (2, 9, 8, 7), np.uint8)
    matrix = confusion_matrix(reference, prediction, 4)
    one_hot = [torch.from_numpy(np.stack([a == k for k in range(4)])[None]).float() for a in (prediction, reference)]
    theirs = compute_confusion_matrix_metric("specificity", get_confusion_matrix(*one_hot, include_background=False))
    ours = [overlap.specificity(counts_of(matrix, [k])) for k in (1, 2, 3)]
    assert ours == pytest.approx(theirs[0].tolist(), abs=1e-6)


def test_dice_and_iou_agree_with_monai():
    torch = pytest.importorskip("torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from monai.metrics import compute_dice, compute_iou
    reference, prediction = np.random.default_rng(1).integers(0, 4, (2, 9, 8, 7), np.uint8)
    matrix = confusion_matrix(reference, prediction, 4)
    one_hot = [torch.from_numpy(np.stack([a == k for k in range(4)])[None]).float() for a in (prediction, reference)]
    for function, oracle in ((overlap.dice, compute_dice), (overlap.iou, compute_iou)):
        ours = [function(counts_of(matrix, [k])) for k in (1, 2, 3)]
        assert ours == pytest.approx(oracle(*one_hot, include_background=False)[0].tolist(), abs=1e-6)
