"""The FCN family: convolutionalized classifiers, upsampling, skips, and published weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from medseg.core.errors import ConfigError, ModelFileError
from medseg.models.layers import linear_upsampling
from medseg.models.registry import build_network
from medseg.models.vgg import VGGClassifier, convolutionalize

FAMILY = ("fcn32s", "fcn16s", "fcn8s")
SMALL = {"width": 1 / 16, "depth": 11, "head_width": 16}
# Layers of torchvision's VGG-11: index in `features`, channels in and out at a sixteenth of the width.
VGG11 = {0: (3, 4), 3: (4, 8), 6: (8, 16), 8: (16, 16), 11: (16, 32), 13: (32, 32), 16: (32, 32), 18: (32, 32)}


def fcn(name, patch, n_classes=3, in_channels=1, **options):
    torch.manual_seed(0)
    return build_network(name, {**SMALL, **options}, in_channels=in_channels, n_classes=n_classes, patch_voxels=patch)


def published(head_kernel=3) -> dict[str, torch.Tensor]:
    """Weights as torchvision names and shapes them, of a small VGG-11."""
    generator = torch.Generator().manual_seed(1)
    shapes = {f"features.{i}": (b, a, 3, 3) for i, (a, b) in VGG11.items()}
    shapes |= {"classifier.0": (16, 32 * head_kernel**2), "classifier.3": (16, 16), "classifier.6": (1000, 16)}
    tensors = {}
    for name, shape in shapes.items():
        fan_in = torch.Size(shape[1:]).numel()
        tensors[f"{name}.weight"] = torch.randn(shape, generator=generator) * (2 / fan_in) ** 0.5
        tensors[f"{name}.bias"] = 0.1 * torch.randn(shape[0], generator=generator)
    return tensors


@pytest.mark.parametrize(("dims", "kernel"), [(2, 7), (2, 3), (3, 3)])
@pytest.mark.parametrize("norm", [True, False])
def test_convolutionalized_classifier_gives_the_same_scores(dims, kernel, norm):
    torch.manual_seed(0)
    classifier = VGGClassifier(11, 1 / 32, dims, 2, 5, norm=norm, head_width=8, head_kernel=kernel).eval()
    network = convolutionalize(classifier).eval()
    x = torch.randn(1, 2, *(classifier.training_size,) * dims)
    with torch.no_grad():
        scores = classifier(x)
        assert scores.shape == (1, 5)
        assert scores.abs().max() > 1e-3
        torch.testing.assert_close(network(x).flatten(1), scores)


def test_a_larger_picture_gives_a_heat_map():
    torch.manual_seed(0)
    classifier = VGGClassifier(11, 1 / 32, 2, 1, 5, head_width=8).eval()
    network = convolutionalize(classifier).eval()
    with torch.no_grad():
        assert network(torch.randn(1, 1, 320, 288)).shape == (1, 5, 4, 3)
        assert convolutionalize(classifier, same=True).eval()(torch.randn(1, 1, 320, 288)).shape == (1, 5, 10, 9)
    # Far from the borders a heat map voxel sees what the classifier would: a constant picture has a constant middle.
    heat = network(torch.ones(1, 1, 544, 544))
    torch.testing.assert_close(heat[0, :, 4, 4], heat[0, :, 5, 5])


def test_classifier_sizes_as_published():
    with torch.device("meta"):
        classifier = VGGClassifier(16, norm=False)
    assert classifier.training_size == 224
    assert sum(p.numel() for p in classifier.parameters()) == 138_357_544  # VGG-16 of Simonyan and Zisserman
    with torch.device("meta"):
        normed = VGGClassifier(19)
    assert sum(p.numel() for p in normed.parameters()) == 143_678_248  # torchvision's vgg19_bn


@pytest.mark.parametrize("factor", [2, 8, 16])
@pytest.mark.parametrize("dims", [2, 3])
def test_upsampling_interpolates_a_ramp_exactly(factor, dims):
    """Voxel centres of the fine grid lie at (i + 0.5) / factor - 0.5 on the coarse one."""
    n = 4
    slopes = torch.tensor([1.0, -2.0, 0.5])[:dims]
    coarse = torch.meshgrid(*[torch.arange(n, dtype=torch.float32)] * dims, indexing="ij")
    fine = torch.meshgrid(*[(torch.arange(n * factor) + 0.5) / factor - 0.5] * dims, indexing="ij")
    ramp, expected = (sum(s * axis for s, axis in zip(slopes, grid, strict=True)) + 3 for grid in (coarse, fine))
    with torch.no_grad():
        output = linear_upsampling(2, factor, dims)(torch.stack([ramp, -ramp])[None])
    assert output.shape == (1, 2, *(n * factor,) * dims)
    inside = (slice(factor // 2, -(factor // 2)),) * dims
    torch.testing.assert_close(output[0, 0][inside], expected[inside])
    torch.testing.assert_close(output[0, 1][inside], -expected[inside])


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("patch", [(64, 64, 1), (1, 45, 70), (40, 24, 24), (33, 20, 17)])
def test_training_output(name, patch):
    network = fcn(name, patch, in_channels=2)
    outputs = network(torch.randn(2, 2, *patch))
    assert [output.shape for output in outputs] == [(2, 3, *patch)]
    assert network.deep_supervision_weights == [1.0]


@pytest.mark.parametrize("size", [(32, 32, 32), (1, 1, 1), (5, 40, 9)])
def test_evaluation_at_any_size(size):
    output = fcn("fcn8s", (32, 32, 32)).eval()(torch.randn(1, 1, *size))
    assert output.shape == (1, 3, *size)
    assert torch.isfinite(output).all()


@pytest.mark.parametrize("name", FAMILY)
def test_nothing_is_shifted(name):
    """With symmetric kernels the mirrored picture gives the mirrored logits, which any shift on the way would break."""
    network = fcn(name, (64, 96, 1)).eval()
    for parameter in network.parameters():
        if parameter.ndim == 4:
            parameter.data = (parameter.data + parameter.data.flip(2, 3)) / 2
    x = torch.randn(1, 1, 64, 96, 1)
    with torch.no_grad():
        logits = network(x)
        assert logits.std() > 1e-3
        torch.testing.assert_close(network(x.flip(2, 3)), logits.flip(2, 3), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("patch", [(64, 64, 1), (32, 32, 32)])
def test_gradient_reaches_every_parameter(name, patch):
    network = fcn(name, patch, depth=16, dropout=0)
    (network(torch.randn(2, 1, *patch))[0] ** 2).mean().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in network.parameters())


def test_small_patches_train_with_batch_norm():
    fcn("fcn8s", (16, 16, 16))(torch.randn(2, 1, 16, 16, 16))[0].mean().backward()
    fcn("fcn8s", (17, 16, 16))(torch.randn(1, 1, 17, 16, 16))[0].mean().backward()


def test_bfloat16_autocast():
    network = fcn("fcn8s", (32, 32, 32))
    with torch.autocast("cpu", torch.bfloat16):
        output = network(torch.randn(2, 1, 32, 32, 32))[0]
        output.float().mean().backward()
    assert torch.isfinite(output).all()


def test_traces_without_a_graph_break():
    explanation = torch._dynamo.explain(fcn("fcn8s", (64, 64, 1)))(torch.randn(2, 1, 64, 64, 1))
    assert explanation.graph_break_count == 0


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_round_trip(tmp_path, suffix):
    """The published network on a picture of (row, column) is ours on the same picture as (X, Y) = (column, row)."""
    tensors = published()
    path = tmp_path / f"vgg{suffix}"
    save_file(tensors, path) if suffix == ".safetensors" else torch.save(tensors, path)
    network = fcn("fcn8s", (64, 96, 1), in_channels=3, head_kernel=3, weights=str(path)).eval()
    assert not any(isinstance(layer, torch.nn.BatchNorm2d) for layer in network.modules())

    rows_columns = torch.randn(1, 3, 96, 64)
    x = rows_columns
    poolings = (0, 3, 8, 13, 18)  # VGG-11 pools after these
    for index in VGG11:
        x = torch.relu(torch.conv2d(x, tensors[f"features.{index}.weight"], tensors[f"features.{index}.bias"], padding=1))
        if index in poolings:
            x = torch.max_pool2d(x, 2)
    x = torch.conv2d(x, tensors["classifier.0.weight"].view(16, 32, 3, 3), tensors["classifier.0.bias"], padding=1).relu()
    x = torch.conv2d(x, tensors["classifier.3.weight"].view(16, 16, 1, 1), tensors["classifier.3.bias"]).relu()

    inner = network.network
    ours = rows_columns.transpose(2, 3)
    with torch.no_grad():
        for stage in inner.stages:
            ours = stage(ours)
        torch.testing.assert_close(inner.head(ours), x.transpose(2, 3))
        # Score layers start at zero, as published.
        assert (network(rows_columns.transpose(2, 3)[..., None]) == 0).all()


@pytest.mark.parametrize("in_channels", [1, 2, 4])
def test_weights_for_other_channels_see_grey_as_grey(tmp_path, in_channels):
    path = tmp_path / "vgg.safetensors"
    save_file(published(), path)
    grey = torch.randn(1, 1, 64, 64)
    outputs = []
    for channels in (3, in_channels):
        network = fcn("fcn32s", (64, 64, 1), in_channels=channels, head_kernel=3, weights=str(path)).eval()
        with torch.no_grad():
            outputs.append(network.network.stages[0](grey.expand(-1, channels, -1, -1)))
    torch.testing.assert_close(*outputs)


def test_a_model_file_needs_no_weights_file(tmp_path):
    path = tmp_path / "vgg.safetensors"
    save_file(published(), path)
    options = {**SMALL, "head_kernel": 3, "weights": str(path)}
    shape = {"in_channels": 1, "n_classes": 2, "patch_voxels": (64, 64, 1)}
    trained = build_network("fcn8s", options, **shape)
    path.unlink()
    again = build_network("fcn8s", options, **shape, pretrained=False)
    again.load_state_dict(trained.state_dict())


def broken(tmp_path: Path, change) -> Path:
    tensors = published()
    change(tensors)
    path = tmp_path / "vgg.safetensors"
    save_file(tensors, path)
    return path


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("features.8.bias"), "has no `features.8.bias`"),
        (lambda t: t.update({"features.1.running_mean": torch.zeros(4)}), "holds `features.1.running_mean`"),
        (lambda t: t.update({"features.3.weight": torch.zeros(8, 5, 3, 3)}), r"\(8, 5, 3, 3\).*\(8, 4, 3, 3\)"),
        (lambda t: t.update({"classifier.0.weight": torch.zeros(16, 32 * 49)}), "head_kernel"),
    ],
)
def test_weights_that_do_not_fit(tmp_path, change, words):
    with pytest.raises(ModelFileError, match=words):
        fcn("fcn8s", (64, 64, 1), head_kernel=3, weights=str(broken(tmp_path, change)))


def test_weights_that_are_no_weights(tmp_path):
    text = tmp_path / "vgg.pth"
    text.write_text("no weights")
    number = tmp_path / "number.pth"
    torch.save(3, number)
    for path, words in ((text, "not a readable"), (number, "no table"), (tmp_path / "none.pth", "does not exist")):
        with pytest.raises(ModelFileError, match=words):
            fcn("fcn8s", (64, 64, 1), weights=str(path))


def test_a_pickle_that_runs_code_is_refused(tmp_path):
    class Attack:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "attacked",))

    torch.save({"features.0.weight": Attack()}, tmp_path / "vgg.pth")
    with pytest.raises(ModelFileError, match="not a readable"):
        fcn("fcn8s", (64, 64, 1), weights=str(tmp_path / "vgg.pth"))
    assert not (tmp_path / "attacked").exists()


def test_weights_are_refused_in_3d():
    with pytest.raises(ConfigError, match="3D"):
        fcn("fcn8s", (32, 32, 32), weights="vgg.pth")


@pytest.mark.parametrize(("options", "words"), [({"depth": 12}, "depth"), ({"head_kernel": 4}, "odd"), ({"width": 0}, "width")])
def test_wrong_settings(options, words):
    with pytest.raises(ConfigError, match=words):
        fcn("fcn8s", (64, 64, 1), **options)
