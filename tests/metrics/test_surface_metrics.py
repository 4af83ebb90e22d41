"""Distances between surfaces on phantoms with known answers, by brute force, and against surface-distance, MONAI and others."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest

from medseg.metrics import surface
from medseg.metrics.elements import element_sizes, neighbourhood_codes
from medseg.metrics.surface import (
    average_symmetric_surface_distance,
    directed_means,
    hausdorff,
    mean_surface_distance,
    median_surface_distance,
    surface_dice,
    surface_distances,
)


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
SPECK = _ball((60, 30, 30), (12, 14, 14), 10, (1, 1, 1))
SPECK[50:57, 25, 25] = True
PHANTOMS["a speck far away"] = (_ball((60, 30, 30), (13, 14, 14), 9, (1, 1, 1)), SPECK, (0.9, 1.0, 1.1))
APART = _ball((70, 21, 21), (10, 10, 10), 8, (1, 1, 1))
PHANTOMS["apart"] = (APART, np.roll(APART, 46, 0), (1.0, 1.3, 0.7))
PHANTOMS["thick slices"] = (
    _ball((60, 50, 4), (30, 25, 1), 20, (1, 1, 20)),
    _ball((60, 50, 4), (28, 25, 2), 20, (1, 1, 20)),
    (0.4, 0.4, 9.0),
)
PHANTOMS["one inside the other"] = (
    _ball((50,) * 3, (24,) * 3, 22, (1, 1, 1)),
    _ball((50,) * 3, (24,) * 3, 4, (1, 1, 1)),
    (1.0,) * 3,
)
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
    assert directed_means(ours) == pytest.approx(oracle.compute_average_surface_distance(theirs))


def _by_brute_force(here, there, spacing):
    """Distance and area of every element of one surface."""
    codes = [neighbourhood_codes(mask) for mask in (here, there)]
    borders = [(c > 0) & (c < len(element_sizes(spacing)) - 1) for c in codes]
    points = [np.argwhere(border) * spacing for border in borders]
    nearest = [np.sqrt(((points[1] - point) ** 2).sum(1)).min() for point in points[0]]
    return np.asarray(nearest), element_sizes(spacing)[codes[0][borders[0]]]


@pytest.mark.parametrize("way", ["by size", "tree", "transform", "transform at once"])
@pytest.mark.parametrize("name", PHANTOMS)
def test_agrees_with_brute_force_whichever_way_the_far_elements_are_found(name, way, monkeypatch):
    if way != "by size":
        monkeypatch.setattr(surface, "TRANSFORM_VOXELS", 0 if way == "tree" else 2**40)
    if way == "transform at once":
        monkeypatch.setattr(surface, "TRANSFORM_LOOKUPS", 0)
    reference, prediction, spacing = PHANTOMS[name]
    ours = surface_distances(reference, prediction, spacing)
    found = {
        "reference": (ours.from_reference, ours.reference_sizes, *_by_brute_force(reference, prediction, spacing)),
        "prediction": (ours.from_prediction, ours.prediction_sizes, *_by_brute_force(prediction, reference, spacing)),
    }
    for distances, sizes, nearest, areas in found.values():
        assert (np.diff(distances) >= 0).all()
        assert sizes.sum() == pytest.approx(areas.sum())
        for distance in np.unique(nearest.round(9)):
            within = areas[nearest <= distance + 1e-6].sum()
            assert sizes[distances <= distance + 1e-6].sum() == pytest.approx(within)
    means = [np.average(nearest, weights=areas) for _, _, nearest, areas in found.values()]
    every, area = (np.concatenate([each[k] for each in found.values()]) for k in (2, 3))
    assert directed_means(ours) == pytest.approx(means)
    assert mean_surface_distance(ours) == pytest.approx(np.mean(means))
    assert average_symmetric_surface_distance(ours) == pytest.approx(np.average(every, weights=area))
    median = median_surface_distance(ours)
    assert area[every <= median + 1e-6].sum() >= area.sum() / 2 >= area[every < median - 1e-6].sum()


@pytest.mark.parametrize("name", ["balls", "anisotropic", "planar", "apart"])
def test_masks_that_lie_in_another_order_in_memory_are_measured_alike(name):
    reference, prediction, spacing = PHANTOMS[name]
    expected = surface_distances(reference, prediction, spacing)
    for one in (reference, np.asfortranarray(reference), np.repeat(reference, 2, -1)[..., ::2]):
        for other in (prediction, np.asfortranarray(prediction)):
            found = surface_distances(one, other, spacing)
            for field in vars(expected):
                assert getattr(found, field) == pytest.approx(getattr(expected, field)), field


def test_hausdorff_distance_agrees_with_scikit_image():
    # Given the same points and no spacing, the greatest distance is no matter of convention.
    metrics = pytest.importorskip("skimage.metrics")
    reference, prediction, _ = PHANTOMS["anisotropic"]
    borders = [(c > 0) & (c < 255) for c in map(neighbourhood_codes, (reference, prediction))]
    ours = surface_distances(reference, prediction, (1.0, 1.0, 1.0))
    assert hausdorff(ours, 100) == pytest.approx(metrics.hausdorff_distance(*borders))


def test_hausdorff_distance_of_shifted_boxes_agrees_with_simpleitk():
    # SimpleITK measures between the masks' voxels, not their surfaces: the same for boxes, half a voxel apart elsewhere.
    sitk = pytest.importorskip("SimpleITK")
    reference, prediction = np.zeros((2, 30, 25, 20), bool)
    reference[4:14, 5:15, 6:12], prediction[7:17, 9:19, 6:12] = True, True
    images = [sitk.GetImageFromArray(mask.T.astype(np.uint8)) for mask in (reference, prediction)]
    for image in images:
        image.SetSpacing((1.5, 1.0, 2.0))
    theirs = sitk.HausdorffDistanceImageFilter()
    theirs.Execute(*images)
    assert hausdorff(surface_distances(reference, prediction, (1.5, 1.0, 2.0)), 100) == pytest.approx(
        theirs.GetHausdorffDistance()
    )


@pytest.mark.parametrize("name", ["balls", "anisotropic"])
def test_average_distance_agrees_with_monai_within_half_a_voxel(name):
    # MONAI pools both directions as we do, but over voxels of the surface, unweighted.
    torch = pytest.importorskip("torch")
    reference, prediction, spacing = PHANTOMS[name]
    masks = [torch.from_numpy(m[None, None]).float() for m in (prediction, reference)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from monai.metrics import compute_average_surface_distance

        theirs = compute_average_surface_distance(*masks, include_background=True, symmetric=True, spacing=spacing)
    ours = average_symmetric_surface_distance(surface_distances(reference, prediction, spacing))
    assert ours == pytest.approx(float(theirs), abs=max(spacing) / 2)


@pytest.mark.parametrize("name", [name for name in PHANTOMS if name != "planar"])
def test_surface_dice_agrees_with_monai_where_it_is_asked_for_elements(name):
    # Without `use_subvoxels` MONAI counts voxels of the surface, unweighted, and the figures differ by 0.1 and more.
    torch = pytest.importorskip("torch")
    reference, prediction, spacing = PHANTOMS[name]
    masks = [torch.from_numpy(np.ascontiguousarray(m)[None, None]).float() for m in (prediction, reference)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from monai.metrics import compute_surface_dice

        theirs = compute_surface_dice(*masks, [1.0], include_background=True, spacing=spacing, use_subvoxels=True)
    assert surface_dice(surface_distances(reference, prediction, spacing), 1.0) == pytest.approx(float(theirs), abs=1e-6)


@pytest.mark.parametrize(("ndim", "spacing"), [(3, (1.0, 1.0, 1.0)), (3, (0.7, 1.0, 1.6)), (2, (0.5, 0.5))])
def test_distance_between_concentric_balls(ndim, spacing):
    shape = tuple(int(52 / s) + 4 for s in spacing)
    centre = tuple(n // 2 for n in shape)
    small, large = (_ball(shape, centre, radius, spacing) for radius in (18, 24))
    for pair in ((small, large), (large, small)):
        distances = surface_distances(*pair, spacing)
        for figure in (average_symmetric_surface_distance, mean_surface_distance, median_surface_distance):
            # Corners of a rounded surface lie on steps, and the nearest is on the nearer step: half a voxel less.
            assert figure(distances) == pytest.approx(6 - min(spacing) / 2, abs=0.4)
        assert hausdorff(distances, 100) == pytest.approx(6, abs=1.5 * max(spacing))
    assert average_symmetric_surface_distance(distances) != mean_surface_distance(distances)


def test_the_larger_surface_weighs_more_in_the_mean_of_both_together():
    reference = _ball((60, 30, 30), (14, 14, 14), 9, (1, 1, 1))
    prediction = reference | _ball((60, 30, 30), (44, 14, 14), 9, (1, 1, 1))  # one more ball of the same size
    distances = surface_distances(reference, prediction, (1.0, 1.0, 1.0))
    to_prediction, to_reference = directed_means(distances)
    assert to_prediction == 0
    assert mean_surface_distance(distances) == pytest.approx(to_reference / 2)
    assert average_symmetric_surface_distance(distances) == pytest.approx(to_reference * 2 / 3)
    assert median_surface_distance(distances) == 0


def test_a_mask_compared_with_itself():
    reference, _, spacing = PHANTOMS["noise"]
    distances = surface_distances(reference, reference, spacing)
    for figure in (average_symmetric_surface_distance, mean_surface_distance, median_surface_distance):
        assert figure(distances) == 0
    assert (hausdorff(distances, 100), surface_dice(distances, 0)) == (0, 1)


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
