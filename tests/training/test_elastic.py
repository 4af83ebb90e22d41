"""Deformations whose result is known, and the transform in other people's pipelines."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, EnsureTyped, NormalizeIntensityd, RandAdjustContrastd
from phantoms import ball

from medseg.training.elastic import RandElasticAffineCropd, affine_control, affine_matrix, swap_values
from medseg.training.sampling import spline_field

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


def test_the_field_of_an_affine_map_is_that_map():
    rng = np.random.default_rng(1)
    matrix = rng.normal(size=(3, 3))
    field = spline_field(torch.from_numpy(affine_control(matrix, (5, 6, 7), (2, 1, 3))), (5, 6, 7)).numpy()
    middle = np.array([2, 2.5, 3])
    expected = (np.stack(np.indices((5, 6, 7)), -1) - middle) @ matrix.T + middle
    np.testing.assert_allclose(field, expected, atol=1e-4)


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
        control = torch.from_numpy(drawn.draw((40, 40, 40), (20, 20, 20)).control)
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
    with pytest.raises(ValueError, match="one shape"):
        transform((32, 24))({"image": image, "label": image[:, 1:]})
    with pytest.raises(ValueError, match="`cubic` is none of"):
        transform((32, 24), mode="cubic")


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


def hands(size=30):
    """Two balls of one size: the one of low X is 1 (left), that of high X is 2 (right)."""
    left, right = (ball((size, 24, 20), (x, 12, 10), 5)[None] for x in (7, size - 8))
    return (left + 2 * right).astype(np.uint8)


@pytest.mark.parametrize("options", [{}, {"scaling": (1, (1.05, 1.05))}, {"rotation": (1, (-10, 10)), "elastic": ALL["elastic"]}])
def test_what_is_left_is_left_after_a_flip(options):
    label = hands()
    data = {"image": label.astype(np.float32), "label": label, "centre": (15, 12, 10)}
    for swap, on_the_left, on_the_right in (((0, [(1, 2)]), 1, 2), ((0, ()), 2, 1), ((1, [(1, 2)]), 2, 1)):
        result = transform((30, 24, 20), seed=1, flip=(1, 0, 0), swap=swap, **options)(data)
        assert set(result["label"][:, :15].unique().tolist()) == {0, on_the_left}
        assert set(result["label"][:, 15:].unique().tolist()) == {0, on_the_right}
        assert result["image"][:, :15].max() > 1.5 > result["image"][:, 15:].max()  # intensities are not names
    unmirrored = transform((30, 24, 20), seed=1, flip=(0, 0, 0), swap=(0, [(1, 2)]), **options)(data)
    assert set(unmirrored["label"][:, :15].unique().tolist()) == {0, 1}


def test_values_change_places():
    labels = torch.tensor([[0, 1, 2, 3, 4, 255]], dtype=torch.uint8)
    assert swap_values(labels, [(1, 2), (4, 3)]).tolist() == [[0, 2, 1, 4, 3, 255]]
    assert labels.tolist() == [[0, 1, 2, 3, 4, 255]]


def test_ignored_voxels_stay_ignored_and_outside_is_background():
    label = np.full((1, 20, 20, 20), 255, np.uint8)
    data = {"image": np.ones((1, 20, 20, 20), np.float32), "label": label, "centre": (0, 10, 10)}
    for options in ({}, {"scaling": (1, (1, 1))}):
        result = transform((8, 8, 8), **options)(data)["label"]
        assert (result[:, :4] == 0).all() and (result[:, 4:] == 255).all()


def rings(x, y):
    return np.sin(2 * np.pi * x / 7) * np.cos(2 * np.pi * y / 9)


@pytest.mark.parametrize("patch", [(40, 36, 1), (40, 36)])
def test_cubic_is_nearer_the_truth_than_linear_in_2d(patch):
    picture = rings(*np.indices((90, 80)))[None].astype(np.float32)
    picture = picture if len(patch) == 2 else np.repeat(picture[..., None], 5, -1)
    centre = (45, 40, 3)[: len(patch)]
    errors = {}
    for mode in ("bilinear", "bicubic"):
        drawn = RandElasticAffineCropd(
            ["image"], patch, mode, elastic=(1, (3, 6), (0.1, 0.1)), rotation=(1, (20, 20)), flip=(0,) * 3
        )
        result = drawn.set_random_state(3)({"image": picture, "centre": centre})["image"].numpy().reshape(40, 36)
        control = drawn.set_random_state(3).draw((90, 80, picture.shape[-1] if len(patch) == 3 else 1), centre).control
        x, y, _ = np.moveaxis(spline_field(torch.from_numpy(control), (40, 36, 1)).numpy()[:, :, 0], -1, 0)
        errors[mode] = np.sqrt(np.mean((result - rings(x, y)) ** 2))
    assert errors["bicubic"] < 0.6 * errors["bilinear"]


def test_cubic_reads_what_it_needs_and_keeps_labels_whole():
    rng = np.random.default_rng(0)
    image, label = rng.normal(size=(1, 80, 70, 1)).astype(np.float32), rng.choice([0, 3, 7], (1, 80, 70, 1)).astype(np.uint8)
    for seed in range(10):
        drawn = transform((24, 20, 1), mode=("bicubic", "nearest"), **ALL).set_random_state(seed)
        data = {"image": image, "label": label, "centre": (40, 35, 0)}
        _, where = drawn.place(data)
        everything = where._replace(box=(slice(0, 80), slice(0, 70), slice(0, 1)))
        size, low = np.array([[part.stop - part.start, part.start] for part in where.box[1::-1]]).T
        scale, shift = size / [70, 80], (2 * low + size) / [70, 80] - 1
        everything = everything._replace(control=where.control * torch.tensor(scale).float() + torch.tensor(shift).float())
        ours, whole = (drawn.take({k: drawn.read(data[k], w) for k in ("image", "label")}, w) for w in (where, everything))
        assert (where.box[0].stop - where.box[0].start) < 60
        np.testing.assert_allclose(ours["image"], whole["image"], atol=1e-3)
        assert set(ours["label"].unique().tolist()) <= {0, 3, 7}


def test_thick_patches_are_linear_always(pictures):
    image, label = pictures
    data = {"image": image, "label": label, "centre": (10, 9, 8)}
    linear, cubic = (transform(mode=(mode, "nearest"), **ALL)(data) for mode in ("bilinear", "bicubic"))
    assert torch.equal(linear["image"], cubic["image"])


def monai_chain(**options):
    keys = ["image", "label"]
    return Compose(
        [
            EnsureTyped(keys, track_meta=options.pop("track_meta")),
            NormalizeIntensityd("image"),
            RandElasticAffineCropd(keys, (12, 10, 8), **(ALL | options)),
            RandAdjustContrastd("image", prob=1),
        ]
    )


def test_in_a_monai_pipeline_arrays_tensors_and_meta_tensors_are_the_same(pictures):
    image, label = pictures
    kinds = {
        "array": {"image": image, "label": label},
        "tensor": {"image": torch.from_numpy(image), "label": torch.from_numpy(label)},
        "meta": {"image": MetaTensor(image, affine=np.diag([2.0, 2, 3, 1])), "label": MetaTensor(label)},
    }
    alone = {k: RandElasticAffineCropd(["image", "label"], (12, 10, 8), **ALL).set_random_state(2)(v) for k, v in kinds.items()}
    for result in alone.values():
        assert torch.equal(torch.as_tensor(result["image"]), alone["array"]["image"])
        assert torch.equal(torch.as_tensor(result["label"]), alone["array"]["label"])
    assert isinstance(alone["meta"]["image"], MetaTensor) and type(alone["tensor"]["image"]) is torch.Tensor
    chained = [monai_chain(track_meta=track).set_random_state(4)(kinds[k]) for k, track in (("array", False), ("meta", True))]
    np.testing.assert_allclose(chained[0]["image"], chained[1]["image"].as_tensor(), atol=1e-6)
    assert chained[1]["image"].shape == (2, 12, 10, 8) and chained[1]["label"].dtype == torch.uint8
    assert isinstance(chained[1]["image"], MetaTensor)


@pytest.mark.parametrize("planar", [False, True])
def test_a_meta_tensors_affine_says_where_the_patch_lies(planar):
    """The picture holds its own world coordinates, so that a patch that is not bent holds those that its affine gives."""
    shape, patch = ((40, 36), (12, 10)) if planar else ((40, 36, 32), (12, 10, 8))
    n = len(shape)
    rng = np.random.default_rng(1)
    affine = np.eye(n + 1)
    affine[:n] = rng.normal(size=(n, n + 1))
    world = np.einsum("ij,j...->i...", affine, np.stack([*np.indices(shape), np.ones(shape)]))[:n].astype(np.float32)
    picture = MetaTensor(world, affine=affine, meta={"subject": "a"})
    options = {"rotation": (1, (-20, 20)), "shear": (1, 0.1), "flip": (0.5,) * n}
    for seed in range(5):
        drawn = RandElasticAffineCropd(["image"], patch, "bilinear", **(OFF | (options if seed else {"flip": (1,) * n})))
        result = drawn.set_random_state(seed)({"image": picture, "centre": [s // 2 for s in shape]})["image"]
        voxels = np.stack([*np.indices(patch), np.ones(patch)])
        expected = np.einsum("ij,j...->i...", result.affine.numpy(), voxels)[:n]
        np.testing.assert_allclose(result.as_tensor(), expected, atol=2e-2)
        assert result.meta["subject"] == "a"


def test_the_patch_does_not_share_memory_with_the_picture():
    picture = torch.zeros(1, 6, 6, 6)
    transform((6, 6, 6), mode="nearest")({"image": picture, "label": picture})["image"].fill_(1)
    assert picture.sum() == 0


def test_keys_may_be_missing_where_that_is_allowed(pictures):
    drawn = transform(allow_missing_keys=True)
    assert set(drawn({"image": pictures[0]})) == {"image"} and drawn({"other": 1}) == {"other": 1}
    with pytest.raises(KeyError):
        transform()({"image": pictures[0]})
