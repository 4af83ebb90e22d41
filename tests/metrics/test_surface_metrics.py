"""HD95 and surface Dice on phantoms with known answers, and against surface-distance and MONAI."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest

from medseg.metrics.surface import hausdorff, surface_dice, surface_distances


def _ball(shape, centre, radius, spacing):
    axes = np.indices(shape).reshape(len(shape), *shape)
    offsets = [(a - c) * s for a, c, s in zip(axes, centre, spacing, strict=True)]
    return sum(o**2 for o in offsets) <= radius**2


def _oracle(reference, prediction, spacing):
    import surface_distance

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it uses a namespace that scipy deprecates
        return surface_distance.compute_surface_distances(reference, prediction, spacing), surface_distance


PHANTOMS = {
    "balls": (_ball((30, 28, 26), (14, 14, 12), 9, (1, 1, 1)), _ball((30, 28, 26), (16, 13, 12), 8, (1, 1, 1)), (1.0, 1.0, 1.0)),
    "anisotropic": (
        _ball((40, 30, 12), (20, 15, 6), 9, (0.6, 1, 3)),
        _ball((40, 30, 12), (23, 15, 5), 10, (0.6, 1, 3)),
        (0.6, 1.0, 3.0),
    ),
    "touching the border": (np.ones((6, 7, 8), bool), _ball((6, 7, 8), (0, 0, 0), 5, (1, 1, 1)), (1.0, 2.0, 1.5)),
    "one voxel": (_ball((9, 9, 9), (1, 1, 1), 0.5, (1, 1, 1)), _ball((9, 9, 9), (6, 4, 1), 0.5, (1, 1, 1)), (1.0, 1.0, 1.0)),
    "planar": (_ball((50, 40), (20, 20), 12, (1, 0.5)), _ball((50, 40), (23, 18), 12, (1, 0.5)), (1.0, 0.5)),
}
NOISE = np.random.default_rng(3).random((2, 12, 11, 10)) > 0.6
PHANTOMS["noise"] = (NOISE[0], NOISE[1], (1.0, 1.3, 0.7))


@pytest.mark.parametrize("name", PHANTOMS)
def test_agrees_with_surface_distance(name):
    pytest.importorskip("surface_distance")
    reference, prediction, spacing = PHANTOMS[name]
    ours = surface_distances(reference, prediction, spacing)
    theirs, oracle = _oracle(reference, prediction, spacing)
    assert ours.reference_sizes.sum() == pytest.approx(theirs["surfel_areas_gt"].sum())
    for percentile in (50, 95, 100):
        assert hausdorff(ours, percentile) == pytest.approx(oracle.compute_robust_hausdorff(theirs, percentile))
    for tolerance in (0.0, 0.8, 2.0):
        assert surface_dice(ours, tolerance) == pytest.approx(oracle.compute_surface_dice_at_tolerance(theirs, tolerance))


@pytest.mark.parametrize("name", ["balls", "anisotropic"])
def test_hd95_agrees_with_monai_within_a_voxel(name):
    # MONAI takes voxels of the surface where we take corners between voxels, and does not weigh by area.
    torch = pytest.importorskip("torch")
    reference, prediction, spacing = PHANTOMS[name]
    masks = [torch.from_numpy(m[None, None]).float() for m in (prediction, reference)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MONAI deprecates what it calls itself
        from monai.metrics import compute_hausdorff_distance

        theirs = compute_hausdorff_distance(*masks, include_background=True, percentile=95, spacing=spacing)
    assert hausdorff(surface_distances(reference, prediction, spacing), 95) == pytest.approx(float(theirs), abs=max(spacing))


def test_cube_shifted_by_3_mm():
    reference = np.zeros((40, 30, 30), bool)
    prediction = reference.copy()
    reference[8:28, 5:25, 5:25], prediction[10:30, 5:25, 5:25] = True, True  # 2 voxels of 1.5 mm
    distances = surface_distances(reference, prediction, (1.5, 1.0, 1.0))
    assert hausdorff(distances, 95) == pytest.approx(3)
    assert hausdorff(distances, 100) == pytest.approx(3)
    assert surface_dice(distances, 3.0) == 1
    assert surface_dice(distances, 2.9) < 1


def test_pixel_shifted_in_the_plane():
    reference, prediction = np.zeros((2, 9, 9), bool)
    reference[1, 1], prediction[4, 5] = True, True
    distances = surface_distances(reference, prediction, (1.0, 1.0))
    assert hausdorff(distances, 100) == pytest.approx(5)  # 3 and 4 pixels
    assert surface_dice(distances, 1) == 0
    assert distances.reference_sizes.sum() == pytest.approx(2 * math.sqrt(2))  # the contour of a pixel is a diamond


def test_cropping_to_the_common_box_changes_nothing():
    reference, prediction, spacing = PHANTOMS["balls"]
    padded = [np.pad(mask, 7) for mask in (reference, prediction)]
    assert hausdorff(surface_distances(*padded, spacing), 95) == hausdorff(surface_distances(reference, prediction, spacing), 95)


def test_percentile_weighs_elements_by_area():
    # A far speck of 1 voxel on a large ball is less than 5 % of the surface, however many elements it has.
    reference = _ball((40, 30, 30), (14, 14, 14), 10, (1, 1, 1))
    prediction = reference.copy()
    prediction[38, 28, 28] = True
    distances = surface_distances(reference, prediction, (1.0, 1.0, 1.0))
    assert hausdorff(distances, 95) == 0
    assert hausdorff(distances, 100) > 10
