"""The fully convolutional networks of Long, Shelhamer and Darrell 2015, in 2D and 3D."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator
from torch import Tensor, nn

from medseg.core.config import Section
from medseg.core.errors import ConfigError
from medseg.models.layers import CONVOLUTION, Halving, Network, crop, linear_upsampling, start_he
from medseg.models.vgg import VGGClassifier, convolutionalize, load_vgg_weights

CITE = "Long, Shelhamer and Darrell 2015 (FCN); Simonyan and Zisserman 2015 (VGG)"
DEFAULT_WIDTH = {2: 1.0, 3: 0.375}  # in 3D a step then costs about that of a U-Net of widths 16 to 128
NARROWER = (1, 0.75, 0.5, 0.375, 0.25)  # shares of the width, for machines that have less time or memory
SKIPS = {32: [], 16: [3], 8: [3, 2]}  # stages whose pooling is scored too (0 is pool1), coarsest first


class FCNConfig(Section):
    """Settings of the FCN family.

    Args:
        width: multiplies the widths of VGG; by default 1 in 2D (as published) and 0.375 in 3D.
        depth: which VGG.
        head_width: of fc6 and fc7; by default 4096 * width.
        head_kernel: odd size of fc6; by default 7 in 2D (as published) and 3 in 3D.
        dropout: after fc6 and fc7.
        weights: local file of VGG weights (.safetensors or .pth, torchvision's names), 2D only. With it the network is VGG
            without batch norm, as published; without it, VGG with batch norm from He initialisation.
    """

    width: float | None = Field(default=None, gt=0, le=4)
    depth: Literal[11, 13, 16, 19] = 16
    head_width: int | None = Field(default=None, ge=1)
    head_kernel: int | None = Field(default=None, ge=1)
    dropout: float = Field(default=0.5, ge=0, lt=1)
    weights: Path | None = None

    @field_validator("head_kernel")
    @classmethod
    def _odd(cls, value: int | None) -> int | None:
        if value is not None and value % 2 == 0:
            raise ValueError("must be odd, so that fc6 has a centre")
        return value


def fcn_sizes(config: FCNConfig, patch: Sequence[int]) -> list[FCNConfig]:
    """The FCNs that may be planned for a patch, widest first: one where `width` or pretrained weights are stated."""
    if config.width is not None or config.weights is not None:
        return [config]
    return [config.model_copy(update={"width": DEFAULT_WIDTH[len(patch)] * share}) for share in NARROWER]


def describe_fcn(config: FCNConfig) -> str:
    return f"VGG-{config.depth} at {config.width or 1:g} of its published width"


class FCN(Network):
    """FCN-32s, FCN-16s or FCN-8s: a convolutionalized classifier, scores of finer poolings added, upsampled to the input.

    What differs from the published networks: fc6 is padded to 'same' in place of 100 voxels around the picture; each
    class has an upsampling filter of its own (the published ones are diagonal: the same) and all of them are learned, the
    last one too; trained from scratch, the score layers start from random numbers (He). They start at zero, as published,
    only where VGG weights are given: then the coarse scores work from the beginning and the finer ones are corrections.
    Poolings round up as in Caffe, so an input of any size needs no padding, only a crop after each upsampling.

    Args:
        classifier: a VGG; its last layer is replaced by a score of `n_classes`.
        stride: 32, 16 (adds scores of pool4) or 8 (adds scores of pool4 and pool3).
        zero_scores: start the score layers at zero.
    """

    def __init__(self, classifier: VGGClassifier, n_classes: int, stride: int, zero_scores: bool) -> None:
        super().__init__()
        dims = classifier.spatial_dims
        network = convolutionalize(classifier, same=True)
        self.stages = nn.ModuleList(_split_after_poolings(network.get_submodule("features")))
        self.head = nn.Sequential(*network.get_submodule("head").children())[:-1]
        self.skips = SKIPS[stride]
        widths = [classifier.head_width, *(classifier.widths[stage] for stage in self.skips)]
        self.scores = nn.ModuleList(CONVOLUTION[dims](width, n_classes, 1) for width in widths)
        factors = [2] * len(self.skips) + [stride]
        self.upsample = nn.ModuleList(linear_upsampling(n_classes, factor, dims) for factor in factors)
        self.deep_supervision_weights = [1.0]
        start_he(self.scores, slope=1.0)  # no ReLU follows
        if zero_scores:
            for parameter in self.scores.parameters():
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Logits (B, K, ...) of an input (B, C, ...) of any size; in training a list of one."""
        size = x.shape[2:]
        pooled = []
        for stage in self.stages:
            x = stage(x)
            pooled.append(x)
        logits = self.scores[0](self.head(x))
        *to_skips, to_input = self.upsample
        for up, score, stage_index in zip(to_skips, self.scores[1:], self.skips, strict=True):
            finer = pooled[stage_index]
            logits = score(finer) + crop(up(logits), finer.shape[2:])
        logits = crop(to_input(logits), size)
        return [logits] if self.training else logits


def _split_after_poolings(layers: nn.Module) -> list[nn.Sequential]:
    stages: list[list[nn.Module]] = [[]]
    for layer in layers.children():
        stages[-1].append(layer)
        if isinstance(layer, Halving):
            stages.append([])
    return [nn.Sequential(*stage) for stage in stages if stage]


def build_fcn(
    config: FCNConfig, *, stride: int, in_channels: int, n_classes: int, patch: Sequence[int], pretrained: bool = True
) -> FCN:
    """The FCN with predictions at `stride` (32, 16 or 8) for a patch of 2 or 3 axes.

    Args:
        pretrained: False makes the same network without reading `config.weights`, to be filled from a model file.
    Raises: ConfigError for VGG weights in 3D, ModelFileError where they do not fit.
    """
    dims = len(patch)
    if config.weights is not None and dims == 3:
        raise ConfigError(
            "VGG weights are for 2D networks and this patch is 3D; leave `weights` out, or use a patch one voxel thick."
        )
    classifier = VGGClassifier(
        depth=config.depth,
        width=config.width or DEFAULT_WIDTH[dims],
        spatial_dims=dims,
        in_channels=in_channels,
        n_classes=n_classes,
        norm=config.weights is None,
        head_width=config.head_width,
        head_kernel=config.head_kernel,
        dropout=config.dropout,
    )
    if config.weights is not None and pretrained:
        load_vgg_weights(classifier, config.weights)
    return FCN(classifier, n_classes, stride, zero_scores=config.weights is not None)
