from __future__ import annotations

import numpy as np
import pytest

from medseg.core.errors import IntensityError
from medseg.data.normalise import MOST_VOXELS_FOR_PERCENTILES, CaseNormalisation, FixedNormalisation, normalise, thinned


def picture(channels: int = 1) -> np.ndarray:
    return np.random.default_rng(0).normal(50, 7, (channels, 9, 8, 7)).astype(np.float32)


def test_a_case_is_centred_and_scaled_whatever_its_scale():
    one = normalise(picture(), [CaseNormalisation()])
    other = normalise(picture() * 1000 + 5, [CaseNormalisation()])
    assert abs(one.mean()) < 1e-5 and abs(one.std() - 1) < 1e-5
    np.testing.assert_allclose(one, other, atol=1e-3)


def test_fixed_normalisation_keeps_hounsfield_units_comparable():
    image = np.array([-2000.0, 0.0, 100.0, 5000.0], np.float32).reshape(1, 4, 1, 1)
    result = normalise(image, [FixedNormalisation(low=-100, high=300, mean=100, std=50)])
    assert result.ravel().tolist() == [-4.0, -2.0, 0.0, 4.0]


def test_zeros_outside_a_mask_stay_zero_and_do_not_count():
    image = picture()
    image[:, :4] = 0
    result = normalise(image, [CaseNormalisation(nonzero=True)])
    assert (result[:, :4] == 0).all() and abs(result[:, 4:].mean()) < 1e-5


def test_a_hot_pixel_does_not_flatten_a_clipped_picture():
    image = picture()
    image[0, 0, 0, 0] = 1e6
    assert normalise(image, [CaseNormalisation(clip=True)])[0, 1:].std() > 0.5
    assert normalise(image, [CaseNormalisation()])[0, 1:].std() < 0.01


def test_joint_normalisation_keeps_the_order_of_colours():
    image = picture(3) + np.array([0, 20, 40], np.float32).reshape(3, 1, 1, 1)
    result = normalise(image, [CaseNormalisation(joint=True)] * 3)
    assert result[0].mean() < result[1].mean() < result[2].mean()


@pytest.mark.parametrize("dye_first", [False, True])
def test_colours_are_scaled_together_and_a_dye_beside_them_alone(dye_first):
    colours, dye = picture(3) + np.array([0, 20, 40], np.float32).reshape(3, 1, 1, 1), picture() * 1000
    joint, own = CaseNormalisation(joint=True), CaseNormalisation()
    parts, rules = ([dye, colours], [own, joint, joint, joint]) if dye_first else ([colours, dye], [joint, joint, joint, own])
    result = normalise(np.concatenate(parts), rules)
    np.testing.assert_array_equal(result[1:] if dye_first else result[:3], normalise(colours, [joint] * 3))
    np.testing.assert_array_equal(result[:1] if dye_first else result[3:], normalise(dye, [own]))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_voxels_that_are_no_numbers_are_refused(bad):
    image = picture()
    image[0, 1, 2, 3] = bad
    with pytest.raises(IntensityError, match=r"p01 holds 1 NaN or infinite"):
        normalise(image, [CaseNormalisation()], "p01")


@pytest.mark.parametrize(
    "rule",
    [
        CaseNormalisation(),
        CaseNormalisation(joint=True),
        CaseNormalisation(nonzero=True),
        FixedNormalisation(low=0, high=9, mean=5, std=2),
    ],
)
def test_a_constant_image_is_refused(rule):
    with pytest.raises(IntensityError, match="p01 is constant: every voxel"):
        normalise(np.full((2, 4, 4, 4), 3, np.float32), [rule] * 2, "p01")


def test_a_scan_of_one_value_and_zero_cannot_be_scaled_by_its_non_zero_voxels():
    image = np.zeros((1, 4, 4, 4), np.float32)
    image[:, :2] = 7
    with pytest.raises(IntensityError, match="p01 is constant where it is not 0"):
        normalise(image, [CaseNormalisation(nonzero=True)], "p01")


@pytest.mark.parametrize("rule", [CaseNormalisation(clip=True), CaseNormalisation(nonzero=True)])
@pytest.mark.parametrize("value", [0, 5])
def test_an_empty_dye_beside_a_full_one_is_zero(rule, value):
    image = np.concatenate([picture(), np.full((1, 9, 8, 7), value, np.float32)])
    result = normalise(image, [rule] * 2)
    assert (result[1] == 0).all() and result[1].dtype == np.float32
    np.testing.assert_array_equal(result[:1], normalise(image[:1], [rule]))


@pytest.mark.parametrize("shape", [(512, 512, 24), (256, 256, 64), (10, 10), (0,)])
def test_thinning_takes_some_of_every_slice(shape):
    slices = thinned(np.broadcast_to(np.arange(shape[-1], dtype=np.uint8), shape))
    assert slices.size <= MOST_VOXELS_FOR_PERCENTILES
    counts = np.bincount(slices, minlength=shape[-1])
    assert counts.max(initial=0) - counts.min(initial=10**9) <= 1 or shape == (0,)


def test_a_missing_channel_is_refused():
    with pytest.raises(IntensityError, match="has 1 channels where the plan expects 2"):
        normalise(picture(1), [CaseNormalisation()] * 2)
