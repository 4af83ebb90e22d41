from __future__ import annotations

import numpy as np
import pytest
import torch

from medseg.training.augment import rotation_degrees, training_transforms
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
