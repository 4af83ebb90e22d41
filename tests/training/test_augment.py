from __future__ import annotations

import numpy as np
import pytest
import torch

from medseg.training.augment import rotation_degrees, slice_axis, training_transforms
from medseg.training.config import AugmentationConfig

NOTHING = {
    name: {"probability": 0}
    for name in ("elastic", "rotation", "scaling", "shear", "noise", "blur", "brightness", "contrast", "low_resolution")
} | {"gamma": {"probability": 0}, "inverted_gamma": {"probability": 0}}


def data() -> dict:
    rng = np.random.default_rng(0)
    image = rng.normal(size=(2, 20, 18, 14)).astype(np.float32)
    return {"image": image, "classes": (image[:1] > 0.5).astype(np.uint8), "centre": (10, 9, 7)}


def test_flips_stay_on_the_axes_that_are_allowed():
    transforms = training_transforms(AugmentationConfig(**NOTHING, flip=1), (8, 8, 8), (1, 1, 1), flips=[1])
    result = transforms(data())
    np.testing.assert_array_equal(result["image"], data()["image"][:, 6:14, 5:13, 3:11][:, :, ::-1])
    np.testing.assert_array_equal(result["classes"], data()["classes"][:, 6:14, 5:13, 3:11][:, :, ::-1])


@pytest.mark.parametrize("patch", [(12, 12, 8), (16, 16, 1)])
def test_the_whole_recipe_gives_patches_that_differ(patch):
    everything = AugmentationConfig(**{name: {"probability": 1} for name in NOTHING})
    transforms = training_transforms(everything, patch, (1, 1, 1), [0, 1])
    first, second = (transforms.set_random_state(seed)(data()) for seed in (0, 1))
    assert first["image"].shape == (2, *patch) and first["classes"].shape == (1, *patch)
    assert first["image"].dtype == torch.float32 and first["classes"].dtype == torch.uint8
    assert first["image"].isfinite().all() and not torch.equal(first["image"], second["image"])


def test_angles_follow_the_plan():
    config = AugmentationConfig()
    still, wide, narrow = (0.0, 0.0), (-180.0, 180.0), (-30.0, 30.0)
    assert rotation_degrees(config, (64, 64, 64), (1, 1, 1), [0, 1, 2]) == [narrow] * 3
    assert rotation_degrees(config, (64, 64, 1), (1, 1, 1), [0, 1]) == [still, still, wide]
    assert rotation_degrees(config, (64, 64, 16), (1, 1, 5), [0, 1, 2]) == [still, still, wide]
    # Half a turn would put left where right is, which the plan forbids.
    assert rotation_degrees(config, (64, 64, 1), (1, 1, 1), [1]) == [still, still, narrow]
    stated = AugmentationConfig(rotation={"degrees": [-5, 5]})
    assert rotation_degrees(stated, (64, 64, 16), (1, 1, 5), [0, 1, 2]) == [still, still, (-5.0, 5.0)]


def test_half_turns_need_axes_whose_ends_are_alike():
    half = {"rotation": {"probability": 1}}
    angles = {}
    for swaps in ((), ((1, 2),)):
        spatial = training_transforms(AugmentationConfig(**half), (64, 64, 1), (1, 1, 1), [0, 1], swaps).transforms[0]
        angles[swaps] = spatial.rotation[1][2].tolist()
    assert angles == {(): [-180, 180], ((1, 2),): [-30, 30]}


def test_left_and_right_change_places_where_x_is_mirrored():
    classes = np.repeat(np.repeat(np.array([1] * 6 + [2] * 6, np.uint8)[:, None, None], 8, 1), 8, 2)[None]
    picture = {"image": classes.astype(np.float32), "classes": classes, "centre": (6, 4, 4)}
    for flips, left in (([0], 1), ([1], 1), ([0, 1, 2], 1)):
        transforms = training_transforms(AugmentationConfig(**NOTHING, flip=1), (12, 8, 8), (1, 1, 1), flips, swaps=[(1, 2)])
        result = transforms(picture)
        assert (result["classes"][0, :6] == left).all() and (result["classes"][0, 6:] == 3 - left).all()
        assert (result["image"][0, :6] == (2 if 0 in flips else 1)).all()


def test_cubic_is_asked_for_by_name():
    modes = [
        training_transforms(AugmentationConfig(interpolation=i), (8, 8, 1), (1, 1, 1), []).transforms[0].modes
        for i in ("linear", "cubic")
    ]
    assert modes == [{"image": "bilinear", "classes": "nearest"}, {"image": "bicubic", "classes": "nearest"}]


def test_the_axis_across_slices():
    assert slice_axis((64, 64, 1), (1, 1, 1)) == [2] and slice_axis((1, 64, 64), (1, 1, 9)) == [0]
    assert slice_axis((64, 64, 16), (0.5, 0.5, 2)) == [2] and slice_axis((64, 64, 16), (1, 1, 3)) == []
