"""Losses against MONAI's, against hand-made numbers, and where classes or voxels are missing."""

from __future__ import annotations

import math

import pytest
import torch
from monai.losses import DiceCELoss, DiceLoss, FocalLoss

from medseg.core.errors import ConfigError
from medseg.losses.registry import LOSSES, build_loss
from medseg.losses.supervised import downsample, supervised

K = 4
SIZE = (6, 5, 4)


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(2, K, *SIZE, generator=generator)
    return logits, torch.randint(0, K, (2, *SIZE), generator=generator, dtype=torch.uint8)


def with_gradient(loss, logits, classes):
    logits = logits.clone().requires_grad_()
    value = loss(logits, classes)
    value.backward()
    return value.detach(), logits.grad


@pytest.mark.parametrize("batch", [True, False])
@pytest.mark.parametrize("background", [True, False])
def test_dice_is_monais(pair, batch, background):
    ours = build_loss("dice", {"batch": batch, "background": background}, K)
    monai = DiceLoss(include_background=background, to_onehot_y=True, softmax=True, batch=batch, smooth_nr=1e-5, smooth_dr=1e-5)
    value, gradient = with_gradient(ours, *pair)
    expected, expected_gradient = with_gradient(lambda x, y: monai(x, y[:, None].long()), *pair)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient, expected_gradient)


def test_dice_ce_is_monais(pair):
    monai = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)
    value, gradient = with_gradient(build_loss("dice_ce", {}, K), *pair)
    expected, expected_gradient = with_gradient(lambda x, y: monai(x, y[:, None].long()), *pair)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient, expected_gradient)


def test_focal_is_monais_times_the_number_of_classes(pair):
    # MONAI divides by voxels times classes, the paper by voxels.
    monai = FocalLoss(to_onehot_y=True, use_softmax=True, gamma=2.0)
    value, gradient = with_gradient(build_loss("dice_focal", {"dice_weight": 0}, K), *pair)
    expected, expected_gradient = with_gradient(lambda x, y: K * monai(x, y[:, None].long()), *pair)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient, expected_gradient)


def test_cross_entropy_is_torchs_without_ignored_voxels(pair):
    logits, classes = pair
    classes[0, :3] = 255
    value, gradient = with_gradient(build_loss("ce", {}, K), logits, classes)
    expected, expected_gradient = with_gradient(
        lambda x, y: torch.nn.functional.cross_entropy(x, y.long(), ignore_index=255), logits, classes
    )
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient, expected_gradient)


@pytest.mark.parametrize("name", LOSSES)
def test_ignored_voxels_change_nothing(pair, name):
    logits, classes = pair
    classes[:, 4:] = 255
    other = logits.clone()
    other[:, :, 4:] += torch.randn_like(other[:, :, 4:])
    loss = build_loss(name, {}, K)
    value, gradient = with_gradient(loss, logits, classes)
    torch.testing.assert_close(value, loss(other, classes))
    torch.testing.assert_close(value, loss(logits[:, :, :4], classes[:, :4]))
    assert (gradient[:, :, 4:] == 0).all()
    assert (gradient[:, :, :4] != 0).any()


@pytest.mark.parametrize("name", LOSSES)
def test_a_perfect_prediction_costs_nothing_and_a_wrong_one_much(pair, name):
    classes = pair[1]
    right = 40.0 * torch.nn.functional.one_hot(classes.long(), K).movedim(-1, 1)
    loss = build_loss(name, {}, K)
    assert loss(right, classes) == pytest.approx(0, abs=1e-4)
    assert loss(right.roll(1, 1), classes) > 0.9


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("fill", [0, 255], ids=["only background", "all ignored"])
@pytest.mark.parametrize("scale", [1.0, 1e3], ids=["unsure", "certain"])
def test_finite_without_structures(pair, name, fill, scale):
    logits, classes = pair
    value, gradient = with_gradient(build_loss(name, {}, K), scale * logits, torch.full_like(classes, fill))
    assert torch.isfinite(value)
    assert torch.isfinite(gradient).all()
    assert gradient.abs().max() <= 1


def test_an_absent_class_does_not_hide_a_present_one():
    classes = torch.zeros(1, 8, 8, 1, dtype=torch.uint8)
    classes[:, :4] = 1
    logits = torch.zeros(1, 3, 8, 8, 1)
    _, gradient = with_gradient(build_loss("dice", {}, 3), logits, classes)
    assert (gradient[:, 1, :4] < 0).all()  # descending raises class 1 where it is
    assert (gradient[:, 1, 4:] > 0).all()


def test_dice_over_the_batch_differs_from_a_mean_of_samples(pair):
    logits, classes = pair
    classes[1] = 0
    whole = build_loss("dice", {}, K)(logits, classes)
    single = build_loss("dice", {"batch": False}, K)
    torch.testing.assert_close(single(logits, classes), (single(logits[:1], classes[:1]) + single(logits[1:], classes[1:])) / 2)
    assert whole < single(logits, classes)


def test_weights_of_the_terms(pair):
    dice, ce = (build_loss(name, {}, K)(*pair) for name in ("dice", "ce"))
    torch.testing.assert_close(build_loss("dice_ce", {"dice_weight": 0.25, "ce_weight": 3}, K)(*pair), 0.25 * dice + 3 * ce)


def test_focal_by_hand():
    logits = torch.tensor([0.0, math.log(3.0)]).view(1, 2, 1, 1, 1)  # p = 1/4, 3/4
    loss = build_loss("dice_focal", {"dice_weight": 0}, 2)
    assert loss(logits, torch.ones(1, 1, 1, 1, dtype=torch.uint8)) == pytest.approx(-(0.25**2) * math.log(0.75))


@pytest.mark.parametrize("name", LOSSES)
def test_float32_under_autocast(pair, name):
    logits, classes = pair
    with torch.autocast("cpu", torch.bfloat16):
        value = build_loss(name, {}, K)(logits.bfloat16(), classes)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, build_loss(name, {}, K)(logits.bfloat16().float(), classes))


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("tversky", {}, "dice_ce"),
        ("dice", {"smoth": 1}, "smoth"),
        ("dice", {"smooth": 0}, "smooth"),
        ("dice_ce", {"dice_weight": 0, "ce_weight": 0}, "both 0"),
    ],
)
def test_wrong_settings_are_one_sentence(name, options, words):
    with pytest.raises(ConfigError, match=words):
        build_loss(name, options, K)


def test_one_class_is_refused():
    with pytest.raises(ConfigError, match="structure"):
        build_loss("dice", {}, 1)


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_downsample_takes_the_nearest_voxel(factor):
    classes = torch.randint(0, 9, (2, 16, 24, 8), dtype=torch.uint8)
    size = [n // factor for n in classes.shape[1:]]
    expected = torch.nn.functional.interpolate(classes[:, None].float(), size=size, mode="nearest-exact")[:, 0]
    torch.testing.assert_close(downsample(classes, size).float(), expected)


@pytest.mark.parametrize(("full", "factor"), [(7, 2), (9, 4), (5, 8), (17, 4), (1, 1)])
def test_downsample_of_sizes_that_do_not_divide(full, factor):
    classes = torch.arange(full, dtype=torch.uint8).view(1, full, 1, 1)
    coarse = -(-full // factor)
    result = downsample(classes, (coarse, 1, 1)).flatten().tolist()
    assert len(result) == coarse
    assert all(abs(voxel - (i + 0.5) * full / coarse) <= factor / 2 + 0.5 for i, voxel in enumerate(result))


def test_supervised_is_the_weighted_sum(pair):
    logits, classes = pair
    ce = build_loss("ce", {}, K)
    coarse = logits[:, :, ::2, ::2, ::2]
    expected = 0.75 * ce(logits, classes) + 0.25 * ce(coarse, downsample(classes, coarse.shape[2:]))
    torch.testing.assert_close(supervised(ce, [0.75, 0.25])([logits, coarse], classes), expected)


def test_supervised_needs_a_weight_for_each_output(pair):
    logits, classes = pair
    with pytest.raises(ValueError, match="zip"):
        supervised(build_loss("ce", {}, K), [0.5, 0.5])([logits], classes)
