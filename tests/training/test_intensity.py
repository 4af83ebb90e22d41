from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from medseg.training.intensity import (
    OwnStream,
    RandBlurd,
    RandBrightnessd,
    RandContrastd,
    RandGammad,
    RandLowResolutiond,
    RandNoised,
    coarsen,
    gaussian_blur,
)

EVERY = [
    RandNoised("image", 1, (0.1, 0.1)),
    RandBlurd("image", 1, (1, 1), channel_prob=1),
    RandBrightnessd("image", 1, (0.5, 0.5)),
    RandContrastd("image", 1, (0.5, 0.5)),
    RandGammad("image", 1, (2, 2)),
    RandGammad("image", 1, (2, 2), invert=True),
    RandLowResolutiond("image", 1, (0.5, 0.5), channel_prob=1),
]


@pytest.fixture
def image() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).normal(1, 2, (2, 12, 14, 10)).astype(np.float32))


@pytest.mark.parametrize("transform", EVERY, ids=lambda t: type(t).__name__)
@pytest.mark.parametrize("shape", [(2, 12, 14, 10), (3, 16, 12, 1), (1, 9, 8)])
def test_shape_and_type_stay_and_the_input_is_left_alone(transform, shape):
    image = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    before = image.clone()
    result = transform.set_random_state(0)({"image": image, "classes": 1})
    assert result["image"].shape == shape and result["image"].dtype == torch.float32 and result["classes"] == 1
    assert torch.equal(image, before) and not torch.equal(result["image"], before)
    again = transform.set_random_state(0)({"image": image})
    assert torch.equal(again["image"], result["image"])


@pytest.mark.parametrize("transform", EVERY, ids=lambda t: type(t).__name__)
def test_a_constant_picture_stays_finite(transform):
    assert transform({"image": torch.ones(1, 8, 8, 8)})["image"].isfinite().all()


def test_probability_zero_changes_nothing(image):
    assert RandNoised("image", 0, (1, 1))({"image": image})["image"] is image


def test_noise_has_the_stated_deviation(image):
    noise = RandNoised("image", 1, (0.3, 0.3))({"image": image})["image"] - image
    assert noise.std().item() == pytest.approx(0.3, rel=0.05) and abs(noise.mean().item()) < 0.02


def test_blur_agrees_with_scipy(image):
    theirs = ndimage.gaussian_filter(image[0].numpy(), (0.8, 0.5, 1), mode="nearest", radius=(3, 2, 3))
    np.testing.assert_allclose(gaussian_blur(image[0], (0.8, 0.5, 1)), theirs, atol=1e-5)


def test_brightness_and_contrast_are_their_formulas(image):
    assert torch.allclose(RandBrightnessd("image", 1, (1.2, 1.2))({"image": image})["image"], image * 1.2)
    result = RandContrastd("image", 1, (1.5, 1.5))({"image": image})["image"]
    for before, after in zip(image, result, strict=True):
        expected = ((before - before.mean()) * 1.5 + before.mean()).clamp(before.min(), before.max())
        assert torch.allclose(after, expected, atol=1e-5)


@pytest.mark.parametrize("invert", [False, True])
def test_gamma_keeps_mean_and_deviation_and_order(image, invert):
    result = RandGammad("image", 1, (1.5, 1.5), invert)({"image": image})["image"]
    for before, after in zip(image, result, strict=True):
        assert after.mean().item() == pytest.approx(before.mean().item(), abs=1e-4)
        assert after.std().item() == pytest.approx(before.std().item(), rel=1e-4)
        assert torch.equal(after.flatten()[before.flatten().argsort()].sort().values, after.flatten().sort().values)
        order = before.flatten().argsort()
        assert (after.flatten()[order].diff() >= -1e-5).all()


def test_gamma_stretches_the_dark_end_and_its_inversion_the_bright_end():
    ramp = torch.linspace(0, 1, 64).view(1, 4, 4, 4)
    for invert, dark_is_flatter in ((False, True), (True, False)):
        steps = RandGammad("image", 1, (1.5, 1.5), invert)({"image": ramp})["image"].flatten().diff()
        assert (steps[0] < steps[-1]).item() is dark_is_flatter


def test_low_resolution_loses_the_finest_detail():
    stripes = (torch.arange(16) % 2).float().expand(16, 16, 16)
    result = coarsen(stripes, 0.5)
    assert result.diff(dim=2).abs().max() < 0.01 and result.shape == stripes.shape
    smooth = torch.linspace(0, 1, 32).expand(4, 4, 32)
    assert (coarsen(smooth, 0.5) - smooth).abs().max() < 0.05


def test_low_resolution_leaves_axes_that_are_coarse_already():
    picture = torch.from_numpy(np.random.default_rng(0).normal(size=(16, 16, 6)).astype(np.float32))
    across = (torch.arange(6) % 2).float().expand(1, 16, 16, 6)
    assert torch.equal(RandLowResolutiond("image", 1, (0.5, 0.5), 1, still=[2])({"image": across})["image"], across)
    each = torch.stack([coarsen(picture[..., i], 0.5) for i in range(6)], -1)
    assert torch.allclose(coarsen(picture, 0.5, still=[2]), each, atol=1e-6)


def test_gamma_is_its_formula():
    image = torch.linspace(-1, 3, 60).view(1, 3, 4, 5)
    share = (image - image.min()) / (image.max() - image.min())
    expected = share.double() ** 1.3
    expected = (expected - expected.mean()) / expected.std() * image.std() + image.mean()
    np.testing.assert_allclose(RandGammad("image", 1, (1.3, 1.3))({"image": image})["image"], expected, atol=1e-5)


def test_a_stream_of_its_own_is_decided_by_its_seed(image):
    stream = OwnStream([RandNoised("image", 1, (0.1, 0.1)), RandBrightnessd("image", 0.5, (0.5, 1.5))])
    first, again, other = (stream.set_random_state(seed)({"image": image})["image"] for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(stream.change({"image": image}, 7)["image"], stream.change({"image": image}, 7)["image"])
    # The changes take one number from the stream that seeds them, however many they draw.
    state = np.random.RandomState(3)
    stream.set_random_state(state=state)({"image": image})
    assert state.randint(2**31) == np.random.RandomState(3).randint(2**31, size=2)[1]


@pytest.mark.parametrize("transform", EVERY, ids=lambda t: type(t).__name__)
def test_nothing_asks_the_device_for_a_value(transform):
    """On the meta device no value can be read back: what waits for a GPU raises here."""
    if isinstance(transform, RandNoised):
        pytest.skip("the meta device has no generator")
    result = transform({"image": torch.ones(2, 8, 8, 8, device="meta")})["image"]
    assert result.device.type == "meta" and result.shape == (2, 8, 8, 8)
