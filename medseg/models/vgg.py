"""The VGG classifiers in 2D and 3D, and how a classifier becomes fully convolutional."""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from medseg.core.errors import ModelFileError
from medseg.models.layers import BATCH_NORM, CONVOLUTION, Halving, start_he

CONVOLUTIONS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}  # a stage, by depth
WIDTHS = (64, 128, 256, 512, 512)
HEAD_WIDTH = 4096
HEAD_KERNEL = {2: 7, 3: 3}
TOTAL_STRIDE = 32
FIRST_KERNEL = "features.0.weight"
LAST_LAYER = "classifier.6."


class VGGClassifier(nn.Module):
    """The classifier of Simonyan and Zisserman 2015, its layers named as torchvision names them.

    Pooling rounds up, as in Caffe, where it was published: sizes that are no multiple of 32 lose no voxels. There is no
    norm in the fully connected layers (as in torchvision's VGG with batch norm): a small patch has few or single voxels
    there, which a batch norm could not normalise.

    Args:
        depth: 11, 13, 16 or 19 layers with weights.
        width: multiplies the published widths.
        norm: batch norm after each convolution.
        head_width: of the two fully connected layers; by default 4096 * width.
        head_kernel: voxels along each axis of the last pooling at the training size; by default 7 in 2D and 3 in 3D.
    Attributes:
        training_size: voxels along each axis that the fully connected layers take: 32 * head_kernel (224 in 2D).
    """

    def __init__(
        self,
        depth: int = 16,
        width: float = 1.0,
        spatial_dims: int = 2,
        in_channels: int = 3,
        n_classes: int = 1000,
        norm: bool = True,
        head_width: int | None = None,
        head_kernel: int | None = None,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.spatial_dims = spatial_dims
        self.widths = [max(1, round(w * width)) for w in WIDTHS]
        self.head_width = head_width or max(1, round(HEAD_WIDTH * width))
        self.head_kernel = head_kernel or HEAD_KERNEL[spatial_dims]
        self.training_size = TOTAL_STRIDE * self.head_kernel
        layers: list[nn.Module] = []
        for (channels_in, channels), repeats in zip(pairwise([in_channels, *self.widths]), CONVOLUTIONS[depth], strict=True):
            for i in range(repeats):
                layers += _convolution(spatial_dims, channels if i else channels_in, channels, norm)
            layers.append(Halving())
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Linear(self.widths[-1] * self.head_kernel**spatial_dims, self.head_width),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(self.head_width, self.head_width),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(self.head_width, n_classes),
        )
        start_he(self)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores (B, n_classes) of pictures (B, C, ...) of the training size."""
        scores: Tensor = self.classifier(self.features(x).flatten(1))
        return scores


def _convolution(spatial_dims: int, channels_in: int, channels_out: int, norm: bool) -> list[nn.Module]:
    convolution = CONVOLUTION[spatial_dims](channels_in, channels_out, 3, padding=1)
    return [convolution, *([BATCH_NORM[spatial_dims](channels_out)] if norm else []), nn.ReLU(inplace=True)]


def convolutionalize(classifier: VGGClassifier, same: bool = False) -> nn.Sequential:
    """The classifier with its fully connected layers turned into convolutions (Long et al. 2015, section 3.1).

    At the training size it gives the classifier's scores, as one voxel; a larger picture gives a heat map.

    Args:
        classifier: its layers and weights are shared, not copied.
        same: pad fc6 so that the heat map has the size of the last pooling; in the published networks 100 voxels of
            padding around the picture do that.
    Returns: a sequence of two, `features` (those of the classifier) and `head` (fc6, ReLU, dropout, fc7, ReLU, dropout, fc8).
    """
    dims, kernel = classifier.spatial_dims, classifier.head_kernel
    fc6, *others = classifier.classifier
    head = [_as_convolution(fc6, dims, kernel, kernel // 2 if same else 0)]
    head += [_as_convolution(layer, dims, 1, 0) if isinstance(layer, nn.Linear) else layer for layer in others]
    return nn.Sequential(OrderedDict(features=classifier.features, head=nn.Sequential(*head)))


def _as_convolution(layer: nn.Module, spatial_dims: int, size: int, padding: int) -> nn.Module:
    weight = layer.get_parameter("weight").detach()
    weight = weight.view(len(weight), -1, *(size,) * spatial_dims)
    channels_out, channels_in = weight.shape[:2]
    # On `meta` it has no storage of its own: fc6 of the published width would be 400 MB of random numbers for nothing.
    convolution: nn.Module = CONVOLUTION[spatial_dims](channels_in, channels_out, size, padding=padding, device="meta")
    convolution.register_parameter("weight", nn.Parameter(weight))
    convolution.register_parameter("bias", layer.get_parameter("bias"))
    return convolution


def load_vgg_weights(classifier: VGGClassifier, path: Path) -> None:
    """Put published VGG weights into `classifier` (2D, without norm); its last layer keeps its starting values.

    Kernels are transposed: our pictures run along X, then Y (columns, then rows), the published ones along rows, then
    columns. The published networks expect RGB with zero mean and unit deviation in each channel. For another number of
    channels the first kernels are their mean over RGB, replicated and scaled so that a grey picture in every channel
    gives what it gives as RGB.

    Args:
        path: .safetensors or .pth, named as torchvision names VGG weights: `features.0.weight`, `classifier.0.weight`, ...
    Raises: ModelFileError where the file cannot be read or does not fit the classifier.
    """
    found = {name: value for name, value in _read_tensors(path).items() if not name.startswith(LAST_LAYER)}
    expected = {name: value for name, value in classifier.state_dict().items() if not name.startswith(LAST_LAYER)}
    if odd := sorted(found.keys() ^ expected.keys()):
        problem = f"has no `{odd[0]}`" if odd[0] in expected else f"holds `{odd[0]}`, which the network has not"
        raise ModelFileError(
            f"{path} {problem}; give VGG weights without batch norm, named as torchvision does, and set `depth` to theirs."
        )
    found[FIRST_KERNEL] = _for_channels(found[FIRST_KERNEL], expected[FIRST_KERNEL].shape[1])
    for name, value in expected.items():
        if found[name].shape != value.shape:
            raise ModelFileError(
                f"{path}: `{name}` has shape {tuple(found[name].shape)}, the network needs {tuple(value.shape)}; "
                "set `width`, `head_width` and `head_kernel` to those of the file."
            )
        if value.ndim == 4:
            found[name] = found[name].transpose(2, 3)
    size = classifier.head_kernel
    fc6 = found["classifier.0.weight"].reshape(classifier.head_width, -1, size, size)
    found["classifier.0.weight"] = fc6.transpose(2, 3).flatten(1)
    classifier.load_state_dict(found, strict=False)


def _for_channels(kernels: Tensor, in_channels: int) -> Tensor:
    """RGB kernels (N, 3, h, w) for pictures of `in_channels`."""
    if kernels.ndim != 4 or kernels.shape[1] != 3 or in_channels == 3:
        return kernels
    return kernels.sum(1, keepdim=True).expand(-1, in_channels, -1, -1) / in_channels


def _read_tensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ModelFileError(f"{path} does not exist; give a file of VGG weights, or leave `weights` out.")
    try:
        content = load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # two formats, many kinds of error, one meaning to the user
        raise ModelFileError(f"{path} is not a readable .safetensors or .pth file; give another file of VGG weights.") from error
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ModelFileError(f"{path} is no table of tensors; give the state dict of a VGG network.")
    return dict(content)
