"""The `models:` section, the planar wrapper, and that every architecture learns."""

from __future__ import annotations

import pytest
import torch

from medseg.core.errors import ConfigError
from medseg.core.labels import LabelScheme, Structure
from medseg.losses.registry import build_loss
from medseg.losses.supervised import supervised
from medseg.models.fcn import FCNConfig
from medseg.models.layers import Network
from medseg.models.planar import Planar
from medseg.models.registry import MODELS, ModelSettings, build_network, parse_models
from medseg.models.unet import UNetConfig


def test_a_list_of_architectures():
    assert parse_models(["unet", "fcn8s"], "c.yaml: models") == {
        "unet": ModelSettings("unet", UNetConfig()),
        "fcn8s": ModelSettings("fcn8s", FCNConfig()),
    }


def test_models_with_names_and_settings():
    models = parse_models(
        {"unet": {"features": [16, 32]}, "small": {"architecture": "unet", "dropout": 0.1}, "fcn16s": None}, "models"
    )
    assert models["unet"] == ModelSettings("unet", UNetConfig(features=[16, 32]))
    assert models["small"] == ModelSettings("unet", UNetConfig(dropout=0.1))
    assert models["fcn16s"].architecture == "fcn16s"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (["vnet"], "no architecture `vnet`; use one of unet, fcn32s, fcn16s, fcn8s"),
        ({"mine": {}}, "no architecture `mine`"),
        ({"mine": {"architecture": "vnet"}}, "no architecture `vnet`"),
        (["unet", "unet"], "named twice"),
        ({"unet": {"widths": [3]}}, r"models\.unet: unknown key `widths`"),
        ({"unet": 3}, "mapping"),
        ({"../up": {"architecture": "unet"}}, "folder"),
        ({"a/b": {"architecture": "unet"}}, "folder"),
        ([], "at least one"),
        (None, "at least one"),
        ("unet", "at least one"),
        ([{"unet": {}}], "at least one"),
    ],
)
def test_wrong_models(value, words):
    with pytest.raises(ConfigError, match=words):
        parse_models(value, "c.yaml: models")


def test_unknown_architecture_of_a_plan():
    with pytest.raises(ConfigError, match="no architecture `vnet`"):
        build_network("vnet", {}, in_channels=1, n_classes=2, patch_voxels=(16, 16, 16))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_planes_of_a_thick_input_are_taken_one_by_one(axis):
    patch = [32, 32, 32]
    patch[axis] = 1
    network = build_network("unet", {"features": [4, 8]}, in_channels=2, n_classes=3, patch_voxels=tuple(patch)).eval()
    assert isinstance(network, Planar)
    size = [20, 30, 40]
    size[axis] = 3
    x = torch.randn(2, 2, *size)
    stacked = torch.cat([network(plane) for plane in x.split(1, dim=2 + axis)], dim=2 + axis)
    torch.testing.assert_close(network(x), stacked)


class Identity(Network):
    deep_supervision_weights = [1.0]

    def forward(self, x):
        return [x, x[:, :, ::2, ::2]] if self.training else x


def test_planar_keeps_every_voxel_in_its_place():
    x = torch.randn(2, 3, 4, 5, 6)
    for axis in range(3):
        torch.testing.assert_close(Planar(Identity().eval(), axis).eval()(x), x)
    outputs = Planar(Identity(), 1)(x)
    torch.testing.assert_close(outputs[1], x[:, :, ::2, :, ::2])


def blobs(patch, n=2):
    """Bright balls on noise, and where they are."""
    generator = torch.Generator().manual_seed(0)
    axes = torch.meshgrid(*[torch.arange(size, dtype=torch.float32) for size in patch], indexing="ij")
    classes = torch.zeros(n, *patch, dtype=torch.uint8)
    for sample in classes:
        for _ in range(3):
            centre = [torch.randint(size, (), generator=generator) for size in patch]
            sample[sum((a - c) ** 2 for a, c in zip(axes, centre, strict=True)) < (max(patch) / 5) ** 2] = 1
    return classes[:, None].float() + 0.3 * torch.randn(n, 1, *patch, generator=generator), classes


@pytest.mark.parametrize(
    ("architecture", "options", "patch", "steps"),
    [
        ("unet", {"features": [8, 16, 16]}, (16, 16, 16), 30),
        ("unet", {"features": [8, 16, 16]}, (32, 32, 1), 30),
        ("fcn8s", {"width": 1 / 8, "depth": 11, "head_width": 64}, (64, 64, 1), 60),
        ("fcn8s", {"width": 1 / 8, "depth": 11, "head_width": 64}, (32, 32, 32), 60),
    ],
)
def test_learns_one_batch(architecture, options, patch, steps):
    torch.manual_seed(0)
    network = build_network(architecture, options, in_channels=1, n_classes=2, patch_voxels=patch)
    images, classes = blobs(patch)
    loss = supervised(
        build_loss("dice_ce", {}, LabelScheme(structures=[Structure(name="a", id=1)])), network.deep_supervision_weights
    )
    optimiser = torch.optim.AdamW(network.parameters(), 3e-3)
    for _ in range(steps):
        optimiser.zero_grad()
        loss(network(images), classes).backward()
        optimiser.step()
    with torch.no_grad():
        found = network(images)[0].argmax(1)
    dice = 2 * (found * classes).sum() / (found.sum() + classes.sum())
    assert dice > 0.85, dice


def test_every_row_is_complete():
    for name, row in MODELS.items():
        assert row.cite
        patch = (32, 32, 1)
        options = {} if name == "unet" else {"width": 1 / 32}
        with torch.no_grad():
            network = build_network(name, options, in_channels=1, n_classes=2, patch_voxels=patch).eval()
            assert network(torch.randn(1, 1, *patch)).shape == (1, 2, *patch)
