"""Losses against MONAI's, against hand-made numbers, and where classes or voxels are missing."""

from __future__ import annotations

import math

import pytest
import torch
from monai.losses import DiceCELoss, DiceLoss, FocalLoss, TverskyLoss

from medseg.core.errors import ConfigError
from medseg.core.labels import LabelScheme, Region, Structure
from medseg.losses import dice, focal
from medseg.losses.registry import LOSSES, build_loss
from medseg.losses.supervised import downsample, supervised

K = 4
SIZE = (6, 5, 4)


def labels_of(n, **rest):
    return LabelScheme(structures=[Structure(name=f"s{k}", id=k) for k in range(1, n + 1)], **rest)


LABELS = labels_of(K - 1)
# s1 to s3, s1 and s3, s3: as BraTS' whole tumour, core and enhancing part.
NESTED = [Region(name="whole", structures=["s1", "s2", "s3"]), Region(name="core", structures=["s1", "s3"])]
REGIONS = labels_of(K - 1, regions=[*NESTED, Region(name="inner", structures=["s3"])])
MEMBERS = [(1, 2, 3), (1, 3), (3,)]


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
    ours = build_loss("dice", {"batch": batch, "background": background}, LABELS)
    monai = DiceLoss(include_background=background, to_onehot_y=True, softmax=True, batch=batch, smooth_nr=1e-5, smooth_dr=1e-5)
    value, gradient = with_gradient(ours, *pair)
    expected, expected_gradient = with_gradient(lambda x, y: monai(x, y[:, None].long()), *pair)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient, expected_gradient)


def test_dice_ce_is_monais(pair):
    monai = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)
    value, gradient = with_gradient(build_loss("dice_ce", {}, LABELS), *pair)
    expected, expected_gradient = with_gradient(lambda x, y: monai(x, y[:, None].long()), *pair)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient, expected_gradient)


def test_focal_is_monais_times_the_number_of_classes(pair):
    # MONAI divides by voxels times classes, the paper by voxels.
    monai = FocalLoss(to_onehot_y=True, use_softmax=True, gamma=2.0)
    value, gradient = with_gradient(build_loss("dice_focal", {"dice_weight": 0}, LABELS), *pair)
    expected, expected_gradient = with_gradient(lambda x, y: K * monai(x, y[:, None].long()), *pair)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient, expected_gradient)


def test_cross_entropy_is_torchs_without_ignored_voxels(pair):
    logits, classes = pair
    classes[0, :3] = 255
    value, gradient = with_gradient(build_loss("ce", {}, LABELS), logits, classes)
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
    loss = build_loss(name, {}, LABELS)
    value, gradient = with_gradient(loss, logits, classes)
    torch.testing.assert_close(value, loss(other, classes))
    torch.testing.assert_close(value, loss(logits[:, :, :4], classes[:, :4]))
    assert (gradient[:, :, 4:] == 0).all()
    assert (gradient[:, :, :4] != 0).any()


@pytest.mark.parametrize("name", LOSSES)
def test_a_perfect_prediction_costs_nothing_and_a_wrong_one_much(pair, name):
    classes = pair[1]
    right = 40.0 * torch.nn.functional.one_hot(classes.long(), K).movedim(-1, 1)
    loss = build_loss(name, {}, LABELS)
    assert loss(right, classes) == pytest.approx(0, abs=1e-4)
    assert loss(right.roll(1, 1), classes) > 0.9


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("fill", [0, 255], ids=["only background", "all ignored"])
@pytest.mark.parametrize("scale", [1.0, 1e3], ids=["unsure", "certain"])
def test_finite_without_structures(pair, name, fill, scale):
    logits, classes = pair
    value, gradient = with_gradient(build_loss(name, {}, LABELS), scale * logits, torch.full_like(classes, fill))
    assert torch.isfinite(value)
    assert torch.isfinite(gradient).all()
    assert gradient.abs().max() <= 1


def test_an_absent_class_does_not_hide_a_present_one():
    classes = torch.zeros(1, 8, 8, 1, dtype=torch.uint8)
    classes[:, :4] = 1
    logits = torch.zeros(1, 3, 8, 8, 1)
    _, gradient = with_gradient(build_loss("dice", {}, labels_of(2)), logits, classes)
    assert (gradient[:, 1, :4] < 0).all()  # descending raises class 1 where it is
    assert (gradient[:, 1, 4:] > 0).all()


def test_dice_over_the_batch_differs_from_a_mean_of_samples(pair):
    logits, classes = pair
    classes[1] = 0
    whole = build_loss("dice", {}, LABELS)(logits, classes)
    single = build_loss("dice", {"batch": False}, LABELS)
    torch.testing.assert_close(single(logits, classes), (single(logits[:1], classes[:1]) + single(logits[1:], classes[1:])) / 2)
    assert whole < single(logits, classes)


def test_weights_of_the_terms(pair):
    overlap, ce = (build_loss(name, {}, LABELS)(*pair) for name in ("dice", "ce"))
    torch.testing.assert_close(
        build_loss("dice_ce", {"dice_weight": 0.25, "ce_weight": 3}, LABELS)(*pair), 0.25 * overlap + 3 * ce
    )


def test_focal_by_hand():
    logits = torch.tensor([0.0, math.log(3.0)]).view(1, 2, 1, 1, 1)  # p = 1/4, 3/4
    loss = build_loss("dice_focal", {"dice_weight": 0}, labels_of(1))
    assert loss(logits, torch.ones(1, 1, 1, 1, dtype=torch.uint8)) == pytest.approx(-(0.25**2) * math.log(0.75))


@pytest.mark.parametrize("name", LOSSES)
def test_float32_under_autocast(pair, name):
    logits, classes = pair
    with torch.autocast("cpu", torch.bfloat16):
        value = build_loss(name, {}, LABELS)(logits.bfloat16(), classes)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, build_loss(name, {}, LABELS)(logits.bfloat16().float(), classes))


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("lovasz", {}, "dice_ce"),
        ("dice", {"smoth": 1}, "smoth"),
        ("dice", {"smooth": 0}, "smooth"),
        ("dice_ce", {"dice_weight": 0, "ce_weight": 0}, "both 0"),
        ("tversky", {"alpha": 0, "beta": 0}, "both 0"),
        ("dice_boundary_ce", {"objects": "cells"}, "background"),
    ],
)
def test_wrong_settings_are_one_sentence(name, options, words):
    with pytest.raises(ConfigError, match=words):
        build_loss(name, options, LABELS)


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
    ce = build_loss("ce", {}, LABELS)
    coarse = logits[:, :, ::2, ::2, ::2]
    expected = 0.75 * ce(logits, classes) + 0.25 * ce(coarse, downsample(classes, coarse.shape[2:]))
    torch.testing.assert_close(supervised(ce, [0.75, 0.25])([logits, coarse], classes), expected)


def test_supervised_needs_a_weight_for_each_output(pair):
    logits, classes = pair
    with pytest.raises(ValueError, match="zip"):
        supervised(build_loss("ce", {}, LABELS), [0.5, 0.5])([logits], classes)


@pytest.mark.parametrize("batch", [True, False])
def test_tversky_is_monais(pair, batch):
    ours = build_loss("tversky", {"alpha": 0.2, "beta": 0.9, "batch": batch}, LABELS)
    monai = TverskyLoss(
        include_background=False, to_onehot_y=True, softmax=True, alpha=0.2, beta=0.9, batch=batch, smooth_nr=1e-5, smooth_dr=1e-5
    )
    value, gradient = with_gradient(ours, *pair)
    expected, expected_gradient = with_gradient(lambda x, y: monai(x, y[:, None].long()), *pair)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient, expected_gradient)


def test_tversky_with_equal_weights_is_dice(pair):
    even = build_loss("tversky", {"alpha": 0.5, "beta": 0.5, "smooth": 1e-6}, LABELS)
    torch.testing.assert_close(even(*pair), build_loss("dice", {"smooth": 2e-6}, LABELS)(*pair))


def test_a_missed_voxel_costs_more_than_an_invented_one():
    truth = torch.tensor([1, 1, 0, 0], dtype=torch.uint8).view(1, 4, 1, 1)
    tversky = build_loss("tversky", {}, labels_of(1))

    def cost(predicted):
        return tversky(40.0 * torch.nn.functional.one_hot(torch.tensor(predicted), 2).T.view(1, 2, 4, 1, 1), truth)

    assert cost([1, 0, 0, 0]) == pytest.approx(1 - 1 / 1.7, abs=1e-4)
    assert cost([1, 1, 1, 0]) == pytest.approx(1 - 2 / 2.3, abs=1e-4)


def test_focal_tversky_is_the_root_of_each_class(pair):
    logits, classes = pair
    p = logits.softmax(1)
    expected = []
    for k in range(1, K):
        t = (classes == k).float()
        found, invented, missed = (p[:, k] * t).sum(), (p[:, k] * (1 - t)).sum(), ((1 - p[:, k]) * t).sum()
        expected.append((1 - found / (found + 0.3 * invented + 0.7 * missed)) ** 0.75)
    focal = build_loss("tversky", {"gamma": 4 / 3}, LABELS)
    torch.testing.assert_close(focal(logits, classes), torch.stack(expected).mean())
    right = 1e3 * torch.nn.functional.one_hot(classes.long(), K).movedim(-1, 1)
    assert torch.isfinite(with_gradient(focal, right, classes)[1]).all()


@pytest.mark.parametrize("name", ["ce", "boundary_ce", "dice_ce"])
def test_class_weights_are_torchs(pair, name):
    logits, classes = pair
    classes[0, :3] = 255
    weights = [0.2, 1.0, 3.5, 7.0]
    value, gradient = with_gradient(build_loss(name, {}, LABELS, weights), logits, classes)

    def reference(x, y):
        ce = torch.nn.functional.cross_entropy(x, y.long(), weight=torch.tensor(weights), ignore_index=255)
        return ce + build_loss("dice", {}, LABELS)(x, y) if name == "dice_ce" else ce

    expected, expected_gradient = with_gradient(reference, logits, classes)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient, expected_gradient)


def test_class_weights_of_focal_are_its_alpha(pair):
    logits, classes = pair
    weights = torch.tensor([0.5, 1.0, 2.0, 4.0])
    p = logits.softmax(1).gather(1, classes[:, None].long())
    w = weights[classes[:, None].long()]
    expected = (w * -((1 - p) ** 2) * p.log()).sum() / w.sum()
    loss = build_loss("dice_focal", {"dice_weight": 0}, LABELS, weights.tolist())
    torch.testing.assert_close(loss(logits, classes), expected)


@pytest.mark.parametrize(("name", "labels"), [("dice", LABELS), ("tversky", LABELS), ("ce", REGIONS)])
def test_class_weights_that_could_not_count_are_refused(name, labels):
    with pytest.raises(ConfigError, match=r"training\.class_weights"):
        build_loss(name, {}, labels, [1.0] * K)


def test_a_map_is_added_to_the_class_weights(pair):
    logits, classes = pair
    classes[0, :2] = 255
    weights, extra = torch.tensor([1.0, 2.0, 3.0, 4.0]), 9 * torch.rand(classes.shape)
    losses = torch.nn.functional.cross_entropy(logits, classes.long(), ignore_index=255, reduction="none")
    w = (weights[classes.clamp(max=3).long()] + extra) * (classes != 255)
    value = build_loss("boundary_ce", {}, LABELS, weights.tolist())(logits, classes, extra)
    torch.testing.assert_close(value, (w * losses).sum() / w.sum())


def test_deep_supervision_takes_the_map_down_like_the_classes(pair):
    logits, classes = pair
    extra = torch.rand(classes.shape)
    loss = build_loss("dice_boundary_ce", {}, LABELS)
    coarse = logits[:, :, ::2, ::2, ::2]
    size = coarse.shape[2:]
    expected = 0.5 * loss(logits, classes, extra) + 0.5 * loss(coarse, downsample(classes, size), downsample(extra, size))
    torch.testing.assert_close(supervised(loss, [0.5, 0.5])([logits, coarse], classes, extra), expected)


@pytest.fixture
def region_pair(pair):
    logits, classes = pair
    return logits[:, :3], classes


def regions_of(classes):
    return torch.stack([torch.isin(classes, torch.tensor(m, dtype=torch.uint8)) for m in MEMBERS], 1)


@pytest.mark.parametrize("batch", [True, False])
def test_dice_of_regions_is_monais_with_sigmoid(region_pair, batch):
    logits, classes = region_pair
    monai = DiceLoss(sigmoid=True, batch=batch, smooth_nr=1e-5, smooth_dr=1e-5)
    value, gradient = with_gradient(build_loss("dice", {"batch": batch}, REGIONS), logits, classes)
    expected, expected_gradient = with_gradient(lambda x, y: monai(x, regions_of(y).float()), logits, classes)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient, expected_gradient)


def test_cross_entropy_of_regions_is_torchs_binary_one_without_ignored_voxels(region_pair):
    logits, classes = region_pair
    classes[0, :3] = 255
    valid = (classes != 255)[:, None].expand(-1, 3, -1, -1, -1)

    def reference(x, y):
        return torch.nn.functional.binary_cross_entropy_with_logits(x[valid], regions_of(y)[valid].float())

    value, gradient = with_gradient(build_loss("ce", {}, REGIONS), logits, classes)
    expected, expected_gradient = with_gradient(reference, logits, classes)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient, expected_gradient)


def test_focal_of_regions_is_monais(region_pair):
    logits, classes = region_pair
    monai = FocalLoss(gamma=2.0)
    value = build_loss("dice_focal", {"dice_weight": 0}, REGIONS)(logits, classes)
    torch.testing.assert_close(value, monai(logits, regions_of(classes).float()))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("fill", [0, 255], ids=["only background", "all ignored"])
def test_regions_are_finite_without_structures(region_pair, name, fill):
    logits, classes = region_pair
    value, gradient = with_gradient(build_loss(name, {}, REGIONS), 1e3 * logits, torch.full_like(classes, fill))
    assert torch.isfinite(value)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("name", LOSSES)
def test_right_regions_cost_nothing_and_wrong_ones_much(region_pair, name):
    classes = region_pair[1]
    right = 80.0 * regions_of(classes) - 40
    loss = build_loss(name, {}, REGIONS)
    assert loss(right, classes) == pytest.approx(0, abs=1e-4)
    assert loss(-right, classes) > 0.9


@pytest.mark.parametrize("labels", [LABELS, REGIONS], ids=["classes", "regions"])
@pytest.mark.parametrize("name", LOSSES)
def test_sums_over_processes_give_the_loss_of_the_global_batch(pair, labels, name, monkeypatch):
    """Two processes with half a batch each; their sums, in the order in which they come, are those of the whole batch."""
    logits, classes = pair[0][:, : labels.n_outputs], pair[1]
    classes[1, 2:] = 255
    options = {"batch": False} if name not in ("ce", "boundary_ce") else {}
    loss = build_loss(name, options, labels)
    sums = [[], []]
    for half in (0, 1):
        for module in (dice, focal):
            monkeypatch.setattr(module, "total", lambda values, half=half: sums[half].append(values) or values)
        loss(logits[half : half + 1], classes[half : half + 1])
    together = iter([a + b for a, b in zip(*sums, strict=True)])
    for module in (dice, focal):
        monkeypatch.setattr(module, "total", lambda _: next(together))
    distributed = loss(logits[:1], classes[:1])
    monkeypatch.undo()
    torch.testing.assert_close(distributed, loss(logits, classes))


def test_focal_with_a_root_has_a_gradient_where_all_is_certain():
    logits = torch.tensor([0.0, 50.0]).view(1, 2, 1, 1, 1).repeat(1, 1, 2, 1, 1)
    classes = torch.ones(1, 2, 1, 1, dtype=torch.uint8)
    loss = build_loss("dice_focal", {"dice_weight": 0, "gamma": 0.5}, labels_of(1))
    assert torch.isfinite(with_gradient(loss, logits, classes)[1]).all()
