"""A plain U-Net in 2D and 3D, with the settings of nnU-Net."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from medseg.core.config import Section
from medseg.core.errors import ConfigError
from medseg.models.layers import CONVOLUTION, TRANSPOSED, Network, crop, instance_norm, start_he

CITE = "Ronneberger et al. 2015 (U-Net); Çiçek et al. 2016 (3D U-Net); Isensee et al. 2021 (nnU-Net)"
SLOPE = 0.01  # of the leaky ReLU
SMALLEST_TO_HALVE = 8  # voxels along an axis; the coarsest stage then keeps at least 4
MOST_STAGES = 6
FIRST_WIDTHS = (32, 24, 16, 12, 8)  # nnU-Net's, then narrower ones for machines that have less time or memory
MOST_WIDTH = {2: 512, 3: 320}


class UNetConfig(Section):
    """Settings of the U-Net.

    Args:
        features: width of each stage, finest first; None derives them from the patch (`features_for`).
        convs_per_stage: convolutions in each stage of the encoder and of the decoder.
        deep_supervision: in training, also score the outputs of the coarser decoder stages.
        dropout: share of channels dropped after each convolution.
    """

    features: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=2)] | None = None
    convs_per_stage: int = Field(default=2, ge=1, le=8)
    deep_supervision: bool = True
    dropout: float = Field(default=0.0, ge=0, lt=1)


def strides_for(patch: Sequence[int], most_stages: int = MOST_STAGES) -> list[tuple[int, ...]]:
    """Stride of each stage along each axis; the first stage keeps the resolution.

    An axis is halved while it has at least 8 voxels and more than half the voxels of the longest axis, so that the
    long axes of a flat patch come down first and the coarse stages are roughly isotropic (as in nnU-Net).

    Args:
        patch: voxels along each axis the network sees (2 or 3 of them).
    Returns: one tuple a stage, at most `most_stages`; a patch below 8 voxels gives the first alone.
    """
    size = list(patch)
    strides = [(1,) * len(size)]
    while len(strides) < most_stages:
        longest = max(size)
        stride = tuple(2 if n >= SMALLEST_TO_HALVE and 2 * n > longest else 1 for n in size)
        if max(stride) == 1:
            break
        strides.append(stride)
        size = [-(-n // s) for n, s in zip(size, stride, strict=True)]
    return strides


def features_for(patch: Sequence[int], first: int = FIRST_WIDTHS[0]) -> list[int]:
    """Widths from `first`, doubled at each stage that the patch allows, at most 512 in 2D and 320 in 3D (nnU-Net)."""
    return [min(first * 2**i, MOST_WIDTH[len(patch)]) for i in range(len(strides_for(patch)))]


def unet_sizes(config: UNetConfig, patch: Sequence[int]) -> list[UNetConfig]:
    """The U-Nets that may be planned for a patch, widest first: one where `features` are stated."""
    if config.features is not None:
        return [config]
    return [config.model_copy(update={"features": features_for(patch, first)}) for first in FIRST_WIDTHS]


def describe_unet(config: UNetConfig) -> str:
    return f"{len(config.features or ())} stages of {', '.join(map(str, config.features or ()))} features"


class ConvolutionBlock(nn.Sequential):
    """Convolution, dropout where asked for, instance norm, leaky ReLU.

    nnU-Net's convolutions have a bias; the norm subtracts it at once, so it is left out here: the same function.
    """

    def __init__(
        self, spatial_dims: int, channels_in: int, channels_out: int, stride: int | tuple[int, ...], dropout: float
    ) -> None:
        layers = [CONVOLUTION[spatial_dims](channels_in, channels_out, 3, stride=stride, padding=1, bias=False)]
        if dropout:
            layers.append({2: nn.Dropout2d, 3: nn.Dropout3d}[spatial_dims](dropout))
        super().__init__(*layers, instance_norm(channels_out), nn.LeakyReLU(SLOPE, inplace=True))


class UNet(Network):
    """Encoder and decoder of convolution blocks with strided and transposed convolutions between the stages.

    In training with deep supervision every decoder stage but the coarsest gives logits (all but the two lowest
    resolutions), weighted 1, 1/2, 1/4, ... and normalised to sum 1.

    Args:
        strides: one tuple a stage, the first all ones (`strides_for`).
    """

    def __init__(
        self, config: UNetConfig, in_channels: int, n_classes: int, features: Sequence[int], strides: Sequence[tuple[int, ...]]
    ) -> None:
        super().__init__()
        dims = len(strides[0])

        def stage(channels_in: int, channels_out: int, stride: int | tuple[int, ...]) -> nn.Sequential:
            first = ConvolutionBlock(dims, channels_in, channels_out, stride, config.dropout)
            rest = (
                ConvolutionBlock(dims, channels_out, channels_out, 1, config.dropout) for _ in range(config.convs_per_stage - 1)
            )
            return nn.Sequential(first, *rest)

        widths_in = [in_channels, *features]
        self.encoder = nn.ModuleList(stage(widths_in[i], width, strides[i]) for i, width in enumerate(features))
        # Decoder lists run from the coarsest stage to the finest, in the order of use.
        down = range(len(features) - 1, 0, -1)
        self.up = nn.ModuleList(TRANSPOSED[dims](features[i], features[i - 1], strides[i], stride=strides[i]) for i in down)
        self.decoder = nn.ModuleList(stage(2 * features[i - 1], features[i - 1], 1) for i in down)
        n_outputs = max(1, len(features) - 2) if config.deep_supervision else 1
        self.heads = nn.ModuleList(CONVOLUTION[dims](features[i], n_classes, 1) for i in range(n_outputs))
        self.deep_supervision_weights = [2.0 ** (n_outputs - 1 - i) / (2**n_outputs - 1) for i in range(n_outputs)]
        # How many input voxels one voxel of each stage spans.
        self.scales = [tuple(math.prod(s[axis] for s in strides[: i + 1]) for axis in range(dims)) for i in range(len(strides))]
        start_he(self, SLOPE)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Logits (B, K, ...) of an input (B, C, ...) of any size; in training a list of them, finest first."""
        size = x.shape[2:]
        features = self._decode(self._encode(self._pad(x)))
        if not self.training:
            return crop(self.heads[0](features[0]), size)
        return [
            crop(head(feature), [-(-n // s) for n, s in zip(size, scale, strict=True)])
            for head, feature, scale in zip(self.heads, features, self.scales, strict=False)
        ]

    def _pad(self, x: Tensor) -> Tensor:
        """`x` with zeros behind, up to whole voxels of the coarsest stage; at least two, or its norm would have no spread."""
        missing = [max(-(-n // s), 2) * s - n for n, s in zip(x.shape[2:], self.scales[-1], strict=True)]
        if not any(missing):
            return x
        return F.pad(x, [end for n in reversed(missing) for end in (0, n)])

    def _encode(self, x: Tensor) -> list[Tensor]:
        skips = []
        for stage in self.encoder:
            x = stage(x)
            skips.append(x)
        return skips

    def _decode(self, skips: list[Tensor]) -> list[Tensor]:
        """Features of every decoder stage, finest first."""
        x = skips.pop()
        features: list[Tensor] = []
        for up, stage in zip(self.up, self.decoder, strict=True):
            x = stage(torch.cat((up(x), skips.pop()), dim=1))
            features.insert(0, x)
        return features


def build_unet(config: UNetConfig, *, in_channels: int, n_classes: int, patch: Sequence[int], pretrained: bool = True) -> UNet:
    """The U-Net for a patch of 2 or 3 axes.

    Raises: ConfigError where the patch is too small for the stages asked for.
    """
    del pretrained  # there are no published weights for it
    allowed = strides_for(patch, len(config.features) if config.features else MOST_STAGES)
    features = config.features or features_for(patch)
    if len(features) < 2 or len(features) > len(allowed):
        shape = "x".join(str(n) for n in patch)
        raise ConfigError(
            f"unet: a patch of {shape} voxels allows {len(allowed)} stage(s) and `features` has {len(features)}; "
            "make the patch larger, or name fewer features (at least 2)."
        )
    return UNet(config, in_channels, n_classes, features, allowed)
