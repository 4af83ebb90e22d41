"""Random changes of intensity, one class each, as MONAI dictionary transforms. Magnitudes: `medseg.training.config`.

They work on the device where the picture is and never wait for it: numbers are drawn on the CPU, sums stay on the device.

MONAI's own either take all channels together (brightness, contrast, gamma), which for several MR sequences or dyes mixes their
scales, or are slower (noise 6 times, blur 3 times), or cannot take pictures one voxel thick (low resolution).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.transforms.transform import MapTransform, Randomizable, RandomizableTransform, Transform

Range = tuple[float, float]


class RandIntensityd(RandomizableTransform, MapTransform):  # type: ignore[misc]
    """Base of the transforms here: pictures are float tensors (C, X, Y, Z) or (C, X, Y); all keys draw their own numbers."""

    def __init__(self, keys: Sequence[str], prob: float) -> None:
        RandomizableTransform.__init__(self, prob)
        MapTransform.__init__(self, keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        self.randomize(None)
        if self._do_transform:
            for key in self.keys:
                result[key] = self.change(data[key])
        return result

    @abstractmethod
    def change(self, image: torch.Tensor) -> torch.Tensor:
        """A changed copy of the image."""


class OwnStream(Randomizable, Transform):  # type: ignore[misc]
    """Transforms that draw from a stream of random numbers of their own.

    The stream's seed is drawn first, so that it is all that must be known to make the same changes later and elsewhere
    (`medseg.training.on_device`).
    """

    def __init__(self, transforms: Sequence[RandIntensityd]) -> None:
        self.transforms = list(transforms)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        return self.change(data, draw_seed(self.R))

    def change(self, data: Mapping[Hashable, Any], seed: int) -> dict[Hashable, Any]:
        """The data with the changes that this seed decides."""
        stream, result = np.random.RandomState(seed), dict(data)
        for transform in self.transforms:
            result = transform.set_random_state(state=stream)(result)
        return result


def draw_seed(random: np.random.RandomState) -> int:
    return int(random.randint(2**31))


class RandNoised(RandIntensityd):
    """Adds Gaussian noise; its standard deviation is drawn from `deviation`."""

    def __init__(self, keys: Sequence[str], prob: float, deviation: Range) -> None:
        super().__init__(keys, prob)
        self.deviation = deviation

    def change(self, image: torch.Tensor) -> torch.Tensor:
        generator = torch.Generator(image.device).manual_seed(draw_seed(self.R))
        noise = torch.randn(image.shape, generator=generator, device=image.device)
        return noise.mul_(self.R.uniform(*self.deviation)).add_(image)


class RandBlurd(RandIntensityd):
    """Gaussian blur of each channel with probability `channel_prob`; its sigma in voxels is drawn from `sigma` for each axis."""

    def __init__(self, keys: Sequence[str], prob: float, sigma: Range, channel_prob: float = 0.5) -> None:
        super().__init__(keys, prob)
        self.sigma, self.channel_prob = sigma, channel_prob

    def change(self, image: torch.Tensor) -> torch.Tensor:
        channels = [
            gaussian_blur(channel, self.R.uniform(*self.sigma, channel.ndim)) if self.R.rand() < self.channel_prob else channel
            for channel in image
        ]
        return torch.stack(channels)


class RandBrightnessd(RandIntensityd):
    """Multiplies each channel by a factor drawn from `factor`."""

    def __init__(self, keys: Sequence[str], prob: float, factor: Range) -> None:
        super().__init__(keys, prob)
        self.factor = factor

    def change(self, image: torch.Tensor) -> torch.Tensor:
        return torch.stack([channel * self.R.uniform(*self.factor) for channel in image])


class RandContrastd(RandIntensityd):
    """Stretches each channel about its mean by a factor drawn from `factor`, and keeps it within its range."""

    def __init__(self, keys: Sequence[str], prob: float, factor: Range) -> None:
        super().__init__(keys, prob)
        self.factor = factor

    def change(self, image: torch.Tensor) -> torch.Tensor:
        return torch.stack([self._stretch(channel, self.R.uniform(*self.factor)) for channel in image])

    @staticmethod
    def _stretch(channel: torch.Tensor, factor: float) -> torch.Tensor:
        low, high = channel.aminmax()
        return (channel * factor).add_(channel.mean() * (1 - factor)).clamp_(low, high)


class RandGammad(RandIntensityd):
    """Raises each channel, scaled to 0..1, to a power; mean and deviation stay as they were.

    Args:
        gamma: the power's range; half of the draws are below 1, half above.
        invert: work on the negative picture, so that the bright end is stretched in place of the dark one.
    """

    def __init__(self, keys: Sequence[str], prob: float, gamma: Range, invert: bool = False) -> None:
        super().__init__(keys, prob)
        self.gamma, self.sign = gamma, -1.0 if invert else 1.0

    def change(self, image: torch.Tensor) -> torch.Tensor:
        return torch.stack([self._power(channel * self.sign) * self.sign for channel in image])

    def _power(self, channel: torch.Tensor) -> torch.Tensor:
        low, high = self.gamma
        below = low < 1 and (high <= 1 or self.R.rand() < 0.5)
        gamma = self.R.uniform(low, min(high, 1.0)) if below else self.R.uniform(max(low, 1.0), high)
        darkest, brightest = channel.aminmax()
        mean = channel.mean()
        result = (channel - darkest).div_((brightest - darkest).clamp_min(1e-7))
        result.log2_().mul_(gamma).exp2_()  # the power, three times as fast
        result.sub_(result.mean())
        spread = torch.linalg.vector_norm(channel - mean) / torch.linalg.vector_norm(result).clamp_min(1e-7)
        return result.mul_(spread).add_(mean)


class RandLowResolutiond(RandIntensityd):
    """Takes every n-th voxel of a channel and interpolates between them: a picture from a coarser scanner.

    Args:
        zoom: range of the share of voxels kept along each axis. channel_prob: of each channel.
        still: axes whose voxels are all kept, such as the one across thick slices, which is coarse already.
    """

    def __init__(
        self, keys: Sequence[str], prob: float, zoom: Range, channel_prob: float = 0.5, still: Sequence[int] = ()
    ) -> None:
        super().__init__(keys, prob)
        self.zoom, self.channel_prob, self.still = zoom, channel_prob, still

    def change(self, image: torch.Tensor) -> torch.Tensor:
        channels = [
            coarsen(channel, self.R.uniform(*self.zoom), self.still) if self.R.rand() < self.channel_prob else channel
            for channel in image
        ]
        return torch.stack(channels)


def gaussian_blur(picture: torch.Tensor, sigmas: Sequence[float]) -> torch.Tensor:
    """Gaussian filter along every axis longer than 1, the edge repeated; sigmas in voxels, one an axis."""
    for axis, (size, sigma) in enumerate(zip(picture.shape, sigmas, strict=True)):
        if size == 1:
            continue
        radius = max(1, math.ceil(3 * sigma))
        taps = [math.exp(-0.5 * (k / sigma) ** 2) for k in range(-radius, radius + 1)]
        index = torch.arange(-radius, size + radius, device=picture.device).clamp_(0, size - 1)
        padded = picture.index_select(axis, index)
        picture = padded.narrow(axis, 0, size) * (taps[0] / sum(taps))
        for k, tap in enumerate(taps[1:], start=1):
            picture.add_(padded.narrow(axis, k, size), alpha=tap / sum(taps))
    return picture


def coarsen(picture: torch.Tensor, zoom: float, still: Sequence[int] = ()) -> torch.Tensor:
    """Nearest sampling down by `zoom`, linear sampling back up; not along the axes `still`."""
    small = [n if axis in still else max(1, round(n * zoom)) for axis, n in enumerate(picture.shape)]
    mode = "trilinear" if picture.ndim == 3 else "bilinear"
    down = F.interpolate(picture[None, None], size=small, mode="nearest-exact")
    return F.interpolate(down, size=list(picture.shape), mode=mode, align_corners=False)[0, 0]
