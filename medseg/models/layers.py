"""What every architecture is made of: layers by number of spatial axes, starting values, and crops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

CONVOLUTION: dict[int, Any] = {2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED: dict[int, Any] = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
BATCH_NORM: dict[int, Any] = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


class Network(nn.Module):
    """A segmentation network: in evaluation it gives logits of the input's size, in training a list of them.

    Attributes:
        deep_supervision_weights: weight in the loss of each output of the training list, summing to 1.
    """

    deep_supervision_weights: list[float]


class Halving(nn.Module):
    """Max pooling by 2 that keeps the last row of an odd picture."""

    def forward(self, x: Tensor) -> Tensor:
        # Along an axis of one voxel there is nothing to pool; other programs refuse a kernel that is longer than its picture.
        kernel = [1 if n == 1 else 2 for n in x.shape[2:]]
        pool = functional.max_pool2d if len(kernel) == 2 else functional.max_pool3d
        return pool(x, kernel, stride=2, ceil_mode=True)


def instance_norm(channels: int) -> nn.GroupNorm:
    """Affine instance norm (Ulyanov et al. 2016): group norm with one group a channel, which is the same function.

    On a CPU torch's group norm is two to six times as fast as its instance norm, and it keeps a channels-last layout.
    """
    return nn.GroupNorm(channels, channels)


def start_he(module: nn.Module, slope: float = 0.0) -> None:
    """He initialisation (He et al. 2015) of every convolution and linear layer in `module`; biases start at 0.

    Args:
        slope: of the leaky ReLU that follows; 0 for a plain ReLU.
    """
    weighted = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)
    for layer in module.modules():
        if isinstance(layer, weighted):
            nn.init.kaiming_normal_(layer.weight, a=slope)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def crop(x: Tensor, size: Sequence[int]) -> Tensor:
    """The first `size` voxels along each spatial axis of (B, C, ...); the tensor itself where nothing is cut."""
    for axis, wanted in enumerate(size, start=2):
        if x.shape[axis] != wanted:
            x = x.narrow(axis, 0, wanted)
    return x


def linear_kernel(factor: int, spatial_dims: int) -> Tensor:
    """The transposed-convolution kernel that interpolates linearly by `factor` (2 * factor voxels along each axis)."""
    centre = factor - 0.5
    line = 1 - (torch.arange(2 * factor) - centre).abs() / factor
    kernel = line
    for _ in range(spatial_dims - 1):
        kernel = kernel[..., None] * line
    return kernel


def linear_upsampling(channels: int, factor: int, spatial_dims: int) -> nn.Module:
    """A transposed convolution, one filter a channel, that starts as (bi-, tri-)linear interpolation by an even `factor`."""
    layer: nn.Module = TRANSPOSED[spatial_dims](
        channels, channels, 2 * factor, stride=factor, padding=factor // 2, groups=channels, bias=False
    )
    with torch.no_grad():
        layer.get_parameter("weight").copy_(linear_kernel(factor, spatial_dims))
    return layer


def to_channels_last(network: nn.Module) -> None:
    """Lay the kernels out channels last, in place, which most machines compute faster; inputs may stay as they are."""
    layouts = {4: torch.channels_last, 5: torch.channels_last_3d}
    for parameter in network.parameters():
        if parameter.ndim in layouts:
            parameter.data = parameter.data.contiguous(memory_format=layouts[parameter.ndim])
