"""The U-Net: shapes, strides, deep supervision and learning."""

from __future__ import annotations

import pytest
import torch

from medseg.core.errors import ConfigError
from medseg.models.layers import instance_norm, to_channels_last
from medseg.models.registry import build_network
from medseg.models.unet import features_for, strides_for


def unet(patch, n_classes=3, in_channels=1, **options):
    torch.manual_seed(0)
    return build_network("unet", options, in_channels=in_channels, n_classes=n_classes, patch_voxels=patch)


@pytest.mark.parametrize(
    ("patch", "strides"),
    [
        ((40, 56, 40), [(1, 1, 1)] + [(2, 2, 2)] * 3),
        ((128, 128), [(1, 1)] + [(2, 2)] * 5),
        ((64, 64, 64), [(1, 1, 1)] + [(2, 2, 2)] * 4),
        ((160, 160, 16), [(1, 1, 1), (2, 2, 1), (2, 2, 1), (2, 2, 1), (2, 2, 2), (2, 2, 2)]),
        ((64, 64, 6), [(1, 1, 1)] + [(2, 2, 1)] * 4),
        ((7, 7, 7), [(1, 1, 1)]),
        ((9, 8), [(1, 1), (2, 2)]),
    ],
)
def test_strides(patch, strides):
    assert strides_for(patch) == strides


@pytest.mark.parametrize("patch", [(40, 56, 40), (512, 64), (33, 100, 12), (8, 8, 200)])
def test_strides_leave_at_least_four_voxels(patch):
    size = list(patch)
    for stride in strides_for(patch, most_stages=9):
        size = [-(-n // s) for n, s in zip(size, stride, strict=True)]
    assert all(after >= min(before, 4) for after, before in zip(size, patch, strict=True))


def test_features_for():
    assert features_for((512, 512)) == [32, 64, 128, 256, 512, 512]
    assert features_for((128, 128, 128)) == [32, 64, 128, 256, 320, 320]
    assert features_for((40, 56, 40)) == [32, 64, 128, 256]


@pytest.mark.parametrize(
    ("patch", "coarser"),
    [((16, 24, 16), (8, 12, 8)), ((19, 16, 17), (10, 8, 9)), ((32, 32, 1), (16, 16, 1)), ((1, 33, 32), (1, 17, 16))],
)
def test_training_outputs(patch, coarser):
    network = unet(patch, features=[4, 8, 12] if 1 not in patch else [4, 8, 12, 16], in_channels=2)
    outputs = network(torch.randn(2, 2, *patch))
    weights = network.deep_supervision_weights
    assert len(outputs) == len(weights)
    assert sum(weights) == pytest.approx(1)
    assert outputs[0].shape == (2, 3, *patch)
    for output in outputs[1:2]:
        assert output.shape == (2, 3, *coarser)
        assert weights[0] == 2 * weights[1]


@pytest.mark.parametrize(("stages", "outputs"), [(2, 1), (3, 1), (4, 2), (5, 3)])
def test_deep_supervision_leaves_out_the_two_lowest_resolutions(stages, outputs):
    patch = (64, 64, 1)
    x = torch.randn(1, 1, *patch)
    assert len(unet(patch, features=[4] * stages)(x)) == outputs
    assert len(unet(patch, features=[4] * stages, deep_supervision=False)(x)) == 1


@pytest.mark.parametrize("size", [(16, 16, 16), (1, 1, 1), (5, 23, 9), (40, 3, 2)])
def test_evaluation_at_any_size(size):
    network = unet((16, 16, 16), features=[4, 8, 12]).eval()
    output = network(torch.randn(1, 1, *size))
    assert output.shape == (1, 3, *size)
    assert torch.isfinite(output).all()


def test_padding_does_not_shift():
    """A picture cropped at its far end gives nearly the same answer far from that end."""
    network = unet((32, 32, 1), features=[4, 8]).eval()
    x = torch.zeros(1, 1, 32, 31, 1)
    x[:, :, 5, 6] = 100
    whole = network(torch.nn.functional.pad(x, (0, 0, 0, 1)))
    torch.testing.assert_close(network(x), whole[:, :, :, :31])


@pytest.mark.parametrize("patch", [(32, 16, 16), (32, 32, 1)])
@pytest.mark.parametrize("options", [{}, {"dropout": 0.2, "convs_per_stage": 1}])
def test_gradient_reaches_every_parameter(patch, options):
    network = unet(patch, features=[4, 8, 12], **options)
    sum((output**2).mean() for output in network(torch.randn(2, 1, *patch))).backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in network.parameters())


def test_instance_norm_is_torchs():
    x = 3 * torch.randn(2, 5, 4, 6, 3) + 1
    ours, torchs = instance_norm(5), torch.nn.InstanceNorm3d(5, affine=True)
    with torch.no_grad():
        for layer in (ours, torchs):
            layer.weight.copy_(torch.arange(5.0))
            layer.bias.copy_(torch.arange(5.0))
    torch.testing.assert_close(ours(x), torchs(x))


def test_bfloat16_autocast():
    network = unet((16, 16, 16), features=[4, 8, 12])
    with torch.autocast("cpu", torch.bfloat16):
        outputs = network(torch.randn(2, 1, 16, 16, 16))
        outputs[0].float().mean().backward()
    assert torch.isfinite(outputs[0]).all()


@pytest.mark.parametrize("patch", [(16, 16, 16), (32, 32, 1)])
def test_channels_last_gives_the_same(patch):
    network = unet(patch, features=[4, 8, 12]).eval()
    x = torch.randn(1, 1, *patch)
    expected = network(x)
    to_channels_last(network)
    kernel = next(parameter for parameter in network.parameters() if parameter.ndim > 3 and parameter.shape[1] > 1)
    assert not kernel.is_contiguous()
    torch.testing.assert_close(network(x), expected, atol=1e-4, rtol=1e-4)


def test_traces_without_a_graph_break():
    network = unet((16, 16, 16), features=[4, 8, 12])
    explanation = torch._dynamo.explain(network)(torch.randn(2, 1, 16, 16, 16))
    assert explanation.graph_break_count == 0


@pytest.mark.parametrize(
    ("patch", "options", "words"),
    [
        ((40, 56, 40), {"features": [4] * 5}, "allows 4 stage"),
        ((6, 6, 6), {}, "allows 1 stage"),
        ((16, 16, 16), {"features": [8]}, "features"),
        ((16, 16, 16), {"features": [8, 0]}, "features"),
        ((16, 16, 16), {"feature": [8, 8]}, "unknown key `feature`"),
        ((16, 1, 1), {}, "16 x 1 x 1"),
    ],
)
def test_wrong_settings(patch, options, words):
    with pytest.raises(ConfigError, match=words):
        unet(patch, **options)
