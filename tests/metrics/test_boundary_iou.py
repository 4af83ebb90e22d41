"""Boundary IoU on rectangles with known rims, and against erosions by scikit-image and by the authors' rule."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import ndimage

from medseg.metrics import boundary
from medseg.metrics.boundary import boundary_distance, boundary_iou, rim


def _rectangle(shape, *sides):
    mask = np.zeros(shape, bool)
    mask[tuple(slice(*side) for side in sides)] = True
    return mask


@pytest.mark.parametrize(("distance", "voxels"), [(1, 136), (2, 136 + 128), (0.1, 136), (50, 40 * 30)])
def test_rim_of_a_rectangle(distance, voxels):
    mask = _rectangle((60, 60), (8, 48), (20, 50))
    assert rim(mask, (1.0, 1.0), distance).sum() == voxels  # 0.1 is below a voxel: its outermost voxels are the least


def test_rim_is_as_wide_in_mm_along_each_axis():
    mask = _rectangle((40, 40, 12), (5, 35), (5, 35), (1, 11))
    inner = mask & ~rim(mask, (1.0, 1.0, 3.0), 4.0)
    assert [(k.min(), k.max()) for k in np.nonzero(inner)] == [(9, 30), (9, 30), (2, 9)]  # 4 voxels, and 1 of 3 mm


def test_a_border_one_pixel_off_is_hidden_by_the_bulk_and_seen_in_the_rim():
    reference, prediction = _rectangle((40, 40), (10, 30), (10, 30)), _rectangle((40, 40), (9, 31), (9, 31))
    assert (reference & prediction).sum() / (reference | prediction).sum() == pytest.approx(400 / 484)
    assert boundary_iou(reference, prediction, (1.0, 1.0), 1.0) == 0
    # Rims of 2 pixels share the outer pixels of the smaller square: 76 of 144 + 160 - 76.
    assert boundary_iou(reference, prediction, (1.0, 1.0), 2.0) == pytest.approx(76 / 228)
    assert boundary_iou(reference, prediction, (1.0, 1.0), 99.0) == pytest.approx(400 / 484)


def test_empty_masks():
    empty, box = np.zeros((9, 9, 9), bool), _rectangle((9, 9, 9), (2, 5), (2, 5), (2, 5))
    assert math.isnan(boundary_iou(empty, empty, (1.0,) * 3, 1.0))
    assert boundary_iou(empty, box, (1.0,) * 3, 1.0) == boundary_iou(box, empty, (1.0,) * 3, 1.0) == 0
    assert boundary_iou(box, box, (1.0,) * 3, 1.0) == 1


@pytest.mark.parametrize("distance", [1, 2, 3, 5])
def test_agrees_with_scikit_image(distance):
    morphology = pytest.importorskip("skimage.morphology")
    masks = ndimage.gaussian_filter(np.random.default_rng(2).normal(size=(2, 40, 36, 30)), (0, 3, 3, 3)) > 0
    for mask in (masks[0], masks[0, :, :, 15]):
        footprint = morphology.ball(distance) if mask.ndim == 3 else morphology.disk(distance)
        padded = np.pad(mask, distance)
        eroded = ndimage.binary_erosion(padded, footprint)[(slice(distance, -distance),) * mask.ndim]
        assert (rim(mask, (1.0,) * mask.ndim, distance) == (mask & ~eroded)).all()


@pytest.mark.parametrize("iterations", [1, 3])
def test_agrees_with_the_rule_of_its_authors_on_rectangles(iterations):
    # They erode by 3 x 3 pixels so many times. Beside straight sides that is the same as a Euclidean distance.
    masks = _rectangle((30, 50), (0, 18), (6, 50)), _rectangle((30, 50), (2, 20), (9, 45))
    theirs = [m & ~ndimage.binary_erosion(m, np.ones((3, 3)), iterations, border_value=0) for m in masks]
    expected = (theirs[0] & theirs[1]).sum() / (theirs[0] | theirs[1]).sum()
    assert boundary_iou(*masks, (1.0, 1.0), iterations) == pytest.approx(expected)


def test_working_slab_by_slab_and_cropping_change_nothing(monkeypatch):
    masks = ndimage.gaussian_filter(np.random.default_rng(4).normal(size=(2, 50, 30, 26)), (0, 4, 4, 4)) > 0.02
    whole = boundary_iou(*masks, (0.8, 1.0, 1.5), 3.0)
    assert 0 < whole < 1
    assert boundary_iou(*(np.pad(mask, 5) for mask in masks), (0.8, 1.0, 1.5), 3.0) == whole
    monkeypatch.setattr(boundary, "SLAB_VOXELS", 1)
    assert boundary_iou(*masks, (0.8, 1.0, 1.5), 3.0) == whole
    assert boundary_iou(*map(np.asfortranarray, masks), (0.8, 1.0, 1.5), 3.0) == whole


def test_width_is_a_share_of_the_diagonal():
    assert boundary_distance((30, 40), (1.0, 1.0)) == pytest.approx(1)  # 2 % of 50
    assert boundary_distance((30, 40, 60), (2.0, 2.0, 2.0), 0.005) == pytest.approx(0.005 * 2 * math.sqrt(30**2 + 40**2 + 60**2))
