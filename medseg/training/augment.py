"""The training transforms of a run, as one MONAI `Compose`."""

from __future__ import annotations

from collections.abc import Sequence

from monai.transforms.compose import Compose

from medseg.training.config import AugmentationConfig
from medseg.training.elastic import RandElasticAffineCropd
from medseg.training.intensity import (
    RandBlurd,
    RandBrightnessd,
    RandContrastd,
    RandGammad,
    RandLowResolutiond,
    RandNoised,
)

IMAGE, CLASSES, CENTRE = "image", "classes", "centre"
ANISOTROPIC = 3.0  # nnU-Net's threshold: above it the coarse axis is turned and bent as little as a slice number


def training_transforms(
    config: AugmentationConfig, patch: tuple[int, int, int], spacing: tuple[float, float, float], flips: Sequence[int]
) -> Compose:
    """{"image": (C, X, Y, Z), "classes": (1, X, Y, Z), "centre": voxel} -> the same keys, augmented patches as tensors.

    Args:
        patch: voxels along X, Y, Z.
        spacing: voxel size of the prepared cases; only its ratios matter.
        flips: axes along which mirroring is allowed.
    """
    image = [IMAGE]
    spatial = RandElasticAffineCropd(
        [IMAGE, CLASSES],
        patch,
        ("bilinear", "nearest"),
        spacing,
        elastic=(config.elastic.probability, config.elastic.control_points, config.elastic.magnitude),
        rotation=(config.rotation.probability, rotation_degrees(config, patch, spacing, flips)),
        scaling=(config.scaling.probability, config.scaling.factor),
        shear=(config.shear.probability, config.shear.tangent),
        flip=[config.flip if axis in flips else 0.0 for axis in range(3)],
        centre_key=CENTRE,
    )
    # nnU-Net's order.
    return Compose(
        [
            spatial,
            RandNoised(image, config.noise.probability, config.noise.range),
            RandBlurd(image, config.blur.probability, config.blur.range),
            RandBrightnessd(image, config.brightness.probability, config.brightness.range),
            RandContrastd(image, config.contrast.probability, config.contrast.range),
            RandLowResolutiond(image, config.low_resolution.probability, config.low_resolution.range),
            RandGammad(image, config.inverted_gamma.probability, config.inverted_gamma.range, invert=True),
            RandGammad(image, config.gamma.probability, config.gamma.range),
        ]
    )


def rotation_degrees(
    config: AugmentationConfig, patch: tuple[int, int, int], spacing: tuple[float, float, float], flips: Sequence[int]
) -> list[tuple[float, float]]:
    """Least and greatest angle about each axis. Half a turn mirrors two axes, so it needs both to be free to flip."""
    flat = [axis for axis in range(3) if patch[axis] == 1]
    coarse = max(range(3), key=lambda axis: spacing[axis])
    if not flat and spacing[coarse] > ANISOTROPIC * min(spacing):
        flat = [coarse]
    turns = bool(flat) and all(axis in flips for axis in range(3) if axis not in flat)
    widest = config.rotation.degrees or ((-180.0, 180.0) if turns else (-30.0, 30.0))
    return [widest if not flat or axis in flat else (0.0, 0.0) for axis in range(3)]
