"""The one resampling: against scipy, and against deformations whose result is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.transforms.compose import Compose
from phantoms import ball
from scipy import ndimage

from medseg.training.elastic import (
    RandElasticAffineCropd,
    affine_control,
    affine_matrix,
    bezier_points,
    bspline_weights,
    crop,
    sample,
    sampling,
    spline_field,
)

OFF = {"elastic": (0, (3, 6), (0, 0)), "rotation": (0, (0, 0)), "scaling": (0, (1, 1)), "shear": (0, 0), "flip": (0, 0, 0)}
ALL = {
    "elastic": (1, (3, 6), (0.05, 0.1)),
    "rotation": (1, (-30, 30)),
    "scaling": (1, (0.7, 1.4)),
    "shear": (1, 0.1),
    "flip": (0.5, 0.5, 0.5),
}
SHAPE = (22, 19, 17)


@pytest.fixture
def pictures():
    rng = np.random.default_rng(0)
    return rng.normal(size=(2, *SHAPE)).astype(np.float32), rng.integers(0, 4, (1, *SHAPE)).astype(np.uint8)


def transform(patch=(12, 10, 8), seed=0, **options):
    result = RandElasticAffineCropd(["image", "label"], patch, **(OFF | options))
    result.set_random_state(seed)
    return result


def test_bspline_weights_reproduce_lines_and_add_up_to_one():
    weights = bspline_weights(11, 4).numpy()
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-6)
    np.testing.assert_allclose(weights @ (np.arange(-1, 6) / 4 * 10), np.arange(11), atol=1e-5)


def test_the_field_of_an_affine_map_is_that_map():
    rng = np.random.default_rng(1)
    matrix = rng.normal(size=(3, 3))
    field = spline_field(affine_control(matrix, (5, 6, 7), (2, 1, 3)), (5, 6, 7)).numpy()
    middle = np.array([2, 2.5, 3])
    expected = (np.stack(np.indices((5, 6, 7)), -1) - middle) @ matrix.T + middle
    np.testing.assert_allclose(field, expected, atol=1e-4)


@pytest.mark.parametrize(("mode", "order"), [("bilinear", 1), ("nearest", 0)])
def test_sampling_agrees_with_scipy(pictures, mode, order):
    drawn = transform(**ALL)
    patch = drawn.patch
    control = drawn._draw_deformation(np.array([True, False, False])) + np.array([9, 3, 4])
    where = sampling(control, patch, SHAPE)
    positions = spline_field(control, patch).numpy()
    for picture in pictures:
        ours = sample(picture, where, mode).numpy()
        theirs = np.stack(
            [ndimage.map_coordinates(c, np.moveaxis(positions, -1, 0), order=order, mode="grid-constant") for c in picture]
        )
        if order:
            np.testing.assert_allclose(ours, theirs.astype(np.float32), atol=0.5 if picture.dtype == np.uint8 else 2e-4)
        else:
            # Positions half-way between two voxels may round either way.
            assert (ours == theirs).mean() > 0.999


def test_without_a_draw_the_patch_is_an_exact_copy(pictures):
    image, label = pictures
    result = transform()({"image": image, "label": label, "centre": (10, 9, 8), "other": 1})
    np.testing.assert_array_equal(result["image"], image[:, 4:16, 4:14, 4:12])
    np.testing.assert_array_equal(result["label"], label[:, 4:16, 4:14, 4:12])
    assert result["label"].dtype == torch.uint8 and result["other"] == 1


def test_the_identity_resampled_is_the_copy(pictures):
    image, label = pictures
    resampled = transform(scaling=(1, (1, 1)))({"image": image, "label": label, "centre": (10, 9, 8)})
    np.testing.assert_allclose(resampled["image"], image[:, 4:16, 4:14, 4:12], atol=1e-4)
    np.testing.assert_array_equal(resampled["label"], label[:, 4:16, 4:14, 4:12])


def test_flips_are_the_same_copied_and_resampled(pictures):
    image, label = pictures
    data = {"image": image, "label": label, "centre": (10, 9, 8)}
    copied = transform(flip=(1, 0, 1))(data)
    np.testing.assert_array_equal(copied["label"], label[:, 4:16, 4:14, 4:12][:, ::-1, :, ::-1])
    resampled = transform(flip=(1, 0, 1), scaling=(1, (1, 1)))(data)
    np.testing.assert_allclose(resampled["image"], copied["image"], atol=1e-4)


def test_a_quarter_turn_is_a_quarter_turn(pictures):
    image, label = pictures
    data = {"image": image, "label": label, "centre": (10, 9, 8)}
    turned = transform((9, 9, 5), rotation=(1, [(0, 0), (0, 0), (90, 90)]))(data)
    straight = transform((9, 9, 5))(data)
    np.testing.assert_allclose(turned["image"], torch.rot90(straight["image"], -1, (1, 2)), atol=1e-4)


def test_rotation_is_rigid_in_millimetres():
    spacing = np.array([1.0, 1.0, 3.0])
    matrix = affine_matrix(np.deg2rad([20.0, 50, 70]), 1.0, np.zeros(3), spacing, np.ones(3, bool))
    in_mm = matrix * spacing[:, None] / spacing
    np.testing.assert_allclose(in_mm @ in_mm.T, np.eye(3), atol=1e-12)


def test_a_factor_above_one_enlarges():
    label = ball((41, 41, 41), (20, 20, 20), 8)[None].astype(np.uint8)
    data = {"image": label.astype(np.float32), "label": label, "centre": (20, 20, 20)}
    result = transform((41, 41, 41), scaling=(1, (1.25, 1.25)))(data)
    assert result["label"].sum().item() / label.sum() == pytest.approx(1.25**3, rel=0.03)


def test_elastic_displacement_has_the_stated_size_and_never_folds():
    sizes = []
    for seed in range(20):
        drawn = transform((40, 40, 40), seed, elastic=(1, (4, 4), (0.1, 0.1)))
        control = drawn._draw_deformation(np.zeros(3, bool))
        field = spline_field(control, drawn.patch).numpy() - np.moveaxis(np.indices((40, 40, 40)), 0, -1)
        sizes.append(field.std())
        jacobian = np.stack([np.stack(np.gradient(field[..., i]), -1) for i in range(3)], -2) + np.eye(3)
        assert np.linalg.det(jacobian).min() > 0
    # A tenth of the 13 voxels between control points; cutting what could fold takes some away.
    assert 0.75 * 1.3 < np.mean(sizes) < 1.1 * 1.3


def test_image_and_label_move_together():
    label = ball((40, 40, 40), (20, 18, 22), 9)[None].astype(np.uint8)
    result = transform((32, 32, 32), seed=3, **ALL)({"image": label.astype(np.float32), "label": label, "centre": (20, 20, 20)})
    assert ((result["image"] > 0.5) == (result["label"] > 0)).float().mean() > 0.995


def test_outside_of_the_picture_are_zeros(pictures):
    image, label = pictures
    for options in ({}, {"scaling": (1, (1, 1))}):
        result = transform((6, 6, 6), **options)({"image": image + 5, "label": label, "centre": (0, 9, 8)})
        assert (result["image"][:, :3].abs() < 1e-4).all() and (result["image"][:, 3:].abs() > 0.1).all()
        far = transform((6, 6, 6), **options)({"image": image + 5, "label": label, "centre": (-90, 9, 8)})
        assert (far["image"].abs() < 1e-4).all() and far["image"].shape == (2, 6, 6, 6)


def test_a_flat_patch_stays_in_its_plane(pictures):
    image, label = pictures
    label = np.broadcast_to(np.arange(SHAPE[2], dtype=np.uint8), (1, *SHAPE))
    for seed in range(5):
        result = transform((12, 10, 1), seed, **ALL)({"image": image, "label": label, "centre": (10, 9, 8)})
        assert result["image"].shape == (2, 12, 10, 1)
        assert set(result["label"].unique().tolist()) <= {0, 8}
        assert (result["label"] == 8).float().mean() > 0.5


def test_pictures_with_two_axes():
    image = np.random.default_rng(0).normal(size=(3, 50, 40)).astype(np.float32)
    result = transform((32, 24), **ALL)({"image": image, "label": (image[:1] > 0).astype(np.uint8), "centre": (25, 20)})
    assert result["image"].shape == (3, 32, 24) and result["label"].shape == (1, 32, 24)
    with pytest.raises(ValueError, match="expected"):
        transform((32, 24))({"image": image[..., None], "label": image[..., None]})


def test_the_seed_decides_and_compose_passes_it_on(pictures):
    image, label = pictures
    data = {"image": image, "label": label}
    chain = Compose([transform(**ALL)])
    results = [chain.set_random_state(seed)(data)["image"] for seed in (5, 5, 6)]
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


def test_without_a_centre_the_patch_lies_in_the_picture(pictures):
    image, label = pictures
    drawn = transform((12, 10, 8))
    assert all((drawn({"image": image + 9, "label": label})["image"] != 0).all() for _ in range(20))


def test_the_hull_holds_the_field_tightly():
    for seed in range(10):
        drawn = transform((24, 20, 16), seed, **ALL)
        control = drawn._draw_deformation(np.zeros(3, bool))
        field, hull = spline_field(control, drawn.patch).numpy().reshape(-1, 3), bezier_points(control).reshape(-1, 3)
        assert (hull.min(0) <= field.min(0) + 1e-3).all() and (hull.max(0) >= field.max(0) - 1e-3).all()
        assert (np.ptp(hull, axis=0) < 1.15 * np.ptp(field, axis=0)).all()


def test_only_the_box_that_is_needed_is_read():
    class Watched:
        """A picture that remembers how many voxels were read."""

        shape, ndim, read = (1, 200, 200, 200), 4, 0

        def __getitem__(self, key):
            part = np.zeros((1, 200, 200, 200), np.uint8)[key]
            self.read = max(self.read, part.size)
            return part

    watched = Watched()
    transform((16, 16, 16), **ALL)({"image": watched, "label": watched, "centre": (100, 100, 100)})
    assert 0 < watched.read < 60**3


def test_crop_beyond_every_side():
    picture = np.ones((1, 3, 3, 3), np.uint8)
    result = crop(picture, np.array([-1, -2, -3]), (5, 7, 9))
    assert result.shape == (1, 5, 7, 9) and result.sum() == 27
