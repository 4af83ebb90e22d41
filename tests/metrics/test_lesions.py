"""Lesions found, missed and invented: worked examples, and BraTS 2023's rule by loops over lesions."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import maximum_bipartite_matching

from medseg.metrics.instances import match_objects
from medseg.metrics.lesions import Detection, brats_lesion_dice, component_overlaps, detection, lesion_dice

EMPTY, CUBE = np.zeros((2, 12, 12, 12), bool)
CUBE[3:6, 3:6, 3:6] = True


def _cubes(shape, *places, size=4):
    mask = np.zeros(shape, bool)
    for place in places:
        mask[tuple(slice(p, p + size) for p in place)] = True
    return mask


def _random_masks(seed, shape=(26, 24, 22)):
    base, noise = ndimage.gaussian_filter(np.random.default_rng(seed).random((2, *shape)), (0, *(1.5,) * len(shape)))
    return base > np.quantile(base, 0.94), 0.7 * base + 0.3 * noise > np.quantile(0.7 * base + 0.3 * noise, 0.93)


def _brats(reference, prediction, dilation, larger_than):
    """The steps of BraTS 2023's script, a lesion at a time."""
    around = ndimage.generate_binary_structure(reference.ndim, 2)
    touching = np.ones((3,) * reference.ndim)

    def dilate(mask):
        return ndimage.binary_dilation(mask, around, iterations=dilation) if dilation else mask

    merged, n = ndimage.label(dilate(reference), touching)
    predicted, n_predicted = ndimage.label(prediction, touching)
    scores, used = [], set()
    for k in range(1, n + 1):
        lesion = (merged == k) & reference
        near = set(predicted[dilate(lesion)]) - {0}
        used |= near
        belonging = np.isin(predicted, list(near))
        if lesion.sum() > larger_than:
            scores.append(2 * (belonging & lesion).sum() / (belonging.sum() + lesion.sum()))
    invented = n_predicted - len(used)
    return scores, invented, sum(scores) / (len(scores) + invented) if len(scores) + invented else math.nan


def test_found_missed_and_invented():
    reference = _cubes((40, 20, 20), (2, 2, 2), (12, 2, 2), (22, 2, 2))
    prediction = _cubes((40, 20, 20), (2, 2, 2), (13, 3, 2), (32, 12, 12), (22, 12, 2))
    overlaps = component_overlaps(reference, prediction)
    found = detection(overlaps)
    assert found == Detection(reference=3, prediction=4, matched=2)
    assert (found.sensitivity, found.precision, found.f1) == (2 / 3, 2 / 4, 4 / 7)
    assert found.false_positives == 2
    # The second is moved by a voxel along two axes: 3 * 3 * 4 = 36 of 92 voxels are shared.
    assert detection(overlaps, 36 / 92).matched == 2 and detection(overlaps, 0.4).matched == 1
    dice = lesion_dice(overlaps)
    assert dice.voxels.tolist() == [64, 64, 64]
    assert dice.dice == pytest.approx([1, 36 / 64, 0]) and dice.false_positives == 2
    assert dice.mean == pytest.approx((1 + 36 / 64) / 5)


def test_one_blob_over_two_lesions_finds_one():
    reference = _cubes((20, 8, 8), (2, 2, 2), (10, 2, 2))
    blob = np.zeros_like(reference)
    blob[2:14, 2:6, 2:6] = True
    overlaps = component_overlaps(reference, blob)
    assert detection(overlaps) == Detection(reference=2, prediction=1, matched=1)
    assert lesion_dice(overlaps).dice == pytest.approx([2 * 64 / (64 + 192)] * 2)  # the blob is counted for both
    assert detection(component_overlaps(blob, reference)) == Detection(reference=1, prediction=2, matched=1)
    assert lesion_dice(component_overlaps(blob, reference)).mean == pytest.approx(2 * 128 / (192 + 128))


def test_voxels_that_touch_at_a_corner_are_one_lesion():
    for ndim in (2, 3):
        mask = np.zeros((4,) * ndim, bool)
        mask[(0,) * ndim] = mask[(1,) * ndim] = mask[(3,) * ndim] = True
        assert detection(component_overlaps(mask, mask)) == Detection(2, 2, 2)


def test_empty_masks():
    both, missed, invented = (component_overlaps(*p) for p in ((EMPTY, EMPTY), (CUBE, EMPTY), (EMPTY, CUBE)))
    expected = {
        "sensitivity": (math.nan, 0, math.nan),
        "precision": (math.nan, math.nan, 0),
        "f1": (math.nan, 0, 0),
        "false_positives": (0, 0, 1),
    }
    for name, values in expected.items():
        found = [getattr(detection(o), name) for o in (both, missed, invented)]
        assert found == pytest.approx(values, nan_ok=True), name
    assert [lesion_dice(o).mean for o in (both, missed, invented)] == pytest.approx([math.nan, 0, 0], nan_ok=True)
    masks = ((EMPTY, EMPTY), (CUBE, EMPTY), (EMPTY, CUBE))
    for larger_than, missed_lesion in ((0, 0), (27, math.nan)):  # of 27 voxels: too small, so nothing is left to miss
        means = [brats_lesion_dice(*pair, larger_than=larger_than).mean for pair in masks]
        assert means == pytest.approx([math.nan, missed_lesion, 0], nan_ok=True)


def test_brats_joins_what_is_near_and_leaves_out_what_is_small():
    reference = _cubes((40, 12, 12), (2, 2, 2), (10, 2, 2), (30, 2, 2))  # 4 voxels between the first two
    prediction = _cubes((40, 12, 12), (2, 2, 2))
    prediction[36, 3, 3] = True  # 2 voxels beside the third lesion
    joined = brats_lesion_dice(reference, prediction)
    assert joined.voxels.tolist() == [128, 64] and joined.false_positives == 0
    assert joined.dice == pytest.approx([2 * 64 / (128 + 64), 0])  # it belongs to the third and shares no voxel with it
    apart = brats_lesion_dice(reference, prediction, dilation=1)
    assert apart.dice == pytest.approx([1, 0, 0]) and apart.false_positives == 1
    small = brats_lesion_dice(reference, prediction, larger_than=64)
    assert small.voxels.tolist() == [128] and small.mean == pytest.approx(2 / 3)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("dilation", "larger_than"), [(3, 50), (1, 50), (1, 2), (0, 0)])
def test_agrees_with_the_rule_of_brats_lesion_by_lesion(seed, dilation, larger_than):
    masks = _random_masks(seed) if seed < 4 else _random_masks(seed, (60, 50))
    scores, invented, mean = _brats(*masks, dilation, larger_than)
    found = brats_lesion_dice(*masks, dilation, larger_than)
    assert found.dice == pytest.approx(scores) and found.false_positives == invented
    assert found.mean == pytest.approx(mean, nan_ok=True)
    if not dilation:
        assert lesion_dice(component_overlaps(*masks)).mean == pytest.approx(mean)


@pytest.mark.parametrize("seed", range(4))
def test_cropping_to_the_common_box_changes_nothing(seed):
    masks = _random_masks(seed)
    (box,) = ndimage.find_objects((masks[0] | masks[1]).astype(np.uint8))
    cropped, padded = [m[box] for m in masks], [np.pad(m, 5) for m in masks]
    for dilation in (1, 2, 3):
        one, other = (brats_lesion_dice(*pair, dilation, 2) for pair in (cropped, padded))
        assert one.dice.tolist() == other.dice.tolist() and one.false_positives == other.false_positives
    assert detection(component_overlaps(*cropped)) == detection(component_overlaps(*padded))


def test_any_overlap_matches_as_many_as_can_be():
    for seed in range(6):
        overlaps = component_overlaps(*np.random.default_rng(seed).random((2, 40, 40)) < 0.3)
        shape = len(overlaps.reference), len(overlaps.prediction)
        graph = coo_array((np.ones(len(overlaps.pairs)), tuple(overlaps.pairs.T)), shape=shape).tocsr()
        most = (maximum_bipartite_matching(graph, perm_type="column") >= 0).sum()
        assert detection(overlaps).matched == len(match_objects(overlaps, 0)) == most


def test_real_tumours_moved_by_two_voxels(real_data: Path):
    import SimpleITK as sitk  # noqa: N813

    paths = sorted((real_data / "brats2015" / "labels").glob("*.nii.gz"))
    if not paths:
        pytest.skip("no tumours there")
    reference = sitk.GetArrayFromImage(sitk.ReadImage(paths[0])) > 0
    moved = np.roll(reference, 2, axis=0)
    scores, invented, mean = _brats(reference, moved, 3, 50)
    found = brats_lesion_dice(reference, moved)
    assert found.dice == pytest.approx(scores) and found.false_positives == invented and found.mean == pytest.approx(mean)
