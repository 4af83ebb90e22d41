"""The counted cost of a training step against real ones."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from medseg.models.cost import overhangs, step_cost
from medseg.models.registry import build_network

CASES = [
    ("unet", {"features": [8, 16, 32]}, 1, 3, (32, 32, 32)),
    ("unet", {"features": [32, 64]}, 2, 2, (16, 32, 24)),
    ("unet", {}, 1, 2, (64, 64, 1)),
    ("fcn8s", {"width": 0.125, "head_width": 128}, 1, 3, (32, 32, 32)),
    ("fcn8s", {"width": 0.25, "head_width": 256, "head_kernel": 3}, 3, 2, (96, 96, 1)),
]


def real_peak(architecture, options, channels, n_outputs, patch, batch, tmp_path) -> float:
    """Peak bytes of a training step with Dice and cross-entropy under AdamW, from the profiler's record of every allocation."""
    network = build_network(architecture, options, in_channels=channels, n_classes=n_outputs, patch_voxels=patch).train()
    optimizer = torch.optim.AdamW(network.parameters())
    picture, classes = torch.randn((batch, channels, *patch)), torch.randint(0, n_outputs, (batch, *patch))

    def loss_of(logits: torch.Tensor) -> torch.Tensor:
        part = classes[(slice(None), *(slice(0, n) for n in logits.shape[2:]))]
        share, truth = logits.softmax(1), F.one_hot(part, n_outputs).movedim(-1, 1).float()
        dice = 2 * (share * truth).sum((0, 2, 3, 4)) / (share + truth).sum((0, 2, 3, 4))
        return F.cross_entropy(logits, part) - dice.mean()

    def step() -> None:
        optimizer.zero_grad()
        sum(map(loss_of, network(picture))).backward()
        optimizer.step()

    step()  # makes the gradients and moments
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    profile.export_chrome_trace(str(tmp_path / "trace.json"))
    events = [e for e in json.loads((tmp_path / "trace.json").read_text())["traceEvents"] if e.get("name") == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e["ts"]):
        held += event["args"]["Bytes"]
        peak = max(peak, held)
    return peak + 16 * sum(p.numel() for p in network.parameters())  # with gradients, which the step first frees


@pytest.mark.parametrize(("architecture", "options", "channels", "n_outputs", "patch"), CASES)
def test_memory_is_within_half_of_the_real_peak(architecture, options, channels, n_outputs, patch, tmp_path):
    cost = step_cost(architecture, options, in_channels=channels, n_outputs=n_outputs, patch_voxels=patch)
    real = real_peak(architecture, options, channels, n_outputs, patch, 2, tmp_path)
    assert real / 1.5 < 1e9 * cost.memory_gb(2) < 1.5 * real


def test_operations_of_one_convolution_are_those_of_the_formula():
    """First stage of two 3x3x3 convolutions, second of two with stride 2, a transposed one, two more, and the 1x1x1 head."""
    cost = step_cost("unet", {"features": [4, 8]}, in_channels=1, n_outputs=3, patch_voxels=(16, 16, 16))
    n = 16**3
    fine = 27 * (1 * 4 + 4 * 4) + 27 * (8 * 4 + 4 * 4) + 4 * 3
    coarse = 27 * (4 * 8 + 8 * 8) / 8 + 8 * 4
    assert cost.patch_operations == pytest.approx(3 * 2 * n * (fine + coarse))
    network = build_network("unet", {"features": [4, 8]}, in_channels=1, n_classes=3, patch_voxels=(16, 16, 16))
    assert cost.parameters == sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize("patch", [(8, 8, 1), (8, 8, 8)])
def test_a_network_that_ends_in_one_voxel_is_counted(patch):
    """Its batch norm has something to train with in a batch of two."""
    assert step_cost("fcn8s", {"width": 0.125}, in_channels=1, n_outputs=2, patch_voxels=patch).patch_bytes > 0


def test_memory_grows_with_the_batch_and_the_patch():
    small, large = (step_cost("unet", {"features": [4, 8]}, in_channels=1, n_outputs=2, patch_voxels=(n, n, n)) for n in (16, 32))
    assert large.patch_bytes == pytest.approx(8 * small.patch_bytes, rel=0.01)
    assert small.memory_gb(4) - small.memory_gb(2) == pytest.approx(2 * small.patch_bytes / 1e9)


@pytest.mark.parametrize(
    ("architecture", "options", "patch", "expected"),
    [
        ("unet", {}, (64, 64, 64), False),
        ("unet", {}, (8, 64, 64), False),
        ("unet", {}, (2, 64, 64), True),  # kernels of 3 over 2 voxels
        ("unet", {}, (64, 64, 1), False),
        ("fcn8s", {"width": 0.125}, (64, 64, 64), True),  # kernels of 3 over 2 voxels
        ("fcn8s", {"width": 0.125}, (64, 64, 1), False),  # of 7, but in a plane and without steps
    ],
)
def test_which_networks_have_kernels_longer_than_their_pictures(architecture, options, patch, expected):
    assert step_cost(architecture, options, in_channels=1, n_outputs=2, patch_voxels=patch).overhangs is expected


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 1), (7, 1), ((1, 3, 3), 1), ((1, 3, 3), (1, 2, 2))])
@pytest.mark.parametrize("more", [(0, 0, 0), (1, 0, 0), (0, 1, 3), (5, 2, 0)])
def test_gradients_in_bfloat16_are_right_where_kernels_do_not_overhang(kernel, stride, more):
    """oneDNN's are not where they do: then they may even end the process, so that cannot be shown here."""
    torch.manual_seed(0)
    shape = kernel if isinstance(kernel, tuple) else (kernel,) * 3
    convolution = nn.Conv3d(16, 16, kernel, stride, [k // 2 for k in shape], bias=False)
    picture = torch.randn(2, 16, *(k + m for k, m in zip(shape, more, strict=True)))
    assert not overhangs(convolution, picture.shape[2:]) and overhangs(convolution, (1, 1, 1))
    gradients = []
    for dtype in (torch.float32, torch.bfloat16):
        convolution.zero_grad()
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            answer = convolution(picture)
        (answer.float() ** 2).mean().backward()
        gradients.append(convolution.weight.grad.clone())
    assert (gradients[0] - gradients[1]).norm() < 0.02 * gradients[0].norm()
