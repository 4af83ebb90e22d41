"""The training transforms of a run, as one MONAI `Compose`."""

from __future__ import annotations

from collections.abc import Sequence

from monai.transforms.compose import Compose

from medseg.inference.window import LEFT_RIGHT
from medseg.losses.boundary import CLASSES as CLASSES
from medseg.training.config import AugmentationConfig
from medseg.training.elastic import RandElasticAffineCropd
from medseg.training.intensity import (
    OwnStream,
    RandBlurd,
    RandBrightnessd,
    RandContrastd,
    RandGammad,
    RandLowResolutiond,
    RandNoised,
)
from medseg.training.sampling import Size

IMAGE, CENTRE = "image", "centre"
ANISOTROPIC = 3.0  # nnU-Net's threshold: above it slices are so thick that they are only turned and coarsened within
MODES = {"linear": "bilinear", "cubic": "bicubic"}

Spacing = tuple[float, float, float]


def training_transforms(
    config: AugmentationConfig, patch: Size, spacing: Spacing, flips: Sequence[int], swaps: Sequence[tuple[int, int]] = ()
) -> Compose:
    """{"image": (C, X, Y, Z), "classes": (1, X, Y, Z), "centre": voxel} -> the same keys, augmented patches as tensors.

    Args:
        patch: voxels along X, Y, Z.
        spacing: voxel size of the prepared cases; only its ratios matter.
        flips: axes along which mirroring is allowed.
        swaps: class indices that change places where X, left and right, is mirrored.
    """
    image, across = [IMAGE], slice_axis(patch, spacing)
    # Half a turn puts left where right is, and no names are swapped for that.
    turns = [axis for axis in flips if not (swaps and axis == LEFT_RIGHT)]
    spatial = RandElasticAffineCropd(
        [IMAGE, CLASSES],
        patch,
        (MODES[config.interpolation], "nearest"),
        spacing,
        elastic=(config.elastic.probability, config.elastic.control_points, config.elastic.magnitude),
        rotation=(config.rotation.probability, rotation_degrees(config, patch, spacing, turns)),
        scaling=(config.scaling.probability, config.scaling.factor),
        shear=(config.shear.probability, config.shear.tangent),
        flip=[config.flip if axis in flips else 0.0 for axis in range(3)],
        swap=(LEFT_RIGHT, swaps),
        centre_key=CENTRE,
    )
    # nnU-Net's order.
    intensity = [
        RandNoised(image, config.noise.probability, config.noise.range),
        RandBlurd(image, config.blur.probability, config.blur.range),
        RandBrightnessd(image, config.brightness.probability, config.brightness.range),
        RandContrastd(image, config.contrast.probability, config.contrast.range),
        RandLowResolutiond(image, config.low_resolution.probability, config.low_resolution.range, still=across),
        RandGammad(image, config.inverted_gamma.probability, config.inverted_gamma.range, invert=True),
        RandGammad(image, config.gamma.probability, config.gamma.range),
    ]
    return Compose([spatial, OwnStream(intensity)])


def slice_axis(patch: Size, spacing: Spacing) -> list[int]:
    """The axis across slices: along which the patch is flat, or voxels are over three times longer; none where both are not."""
    flat = [axis for axis in range(3) if patch[axis] == 1]
    coarse = max(range(3), key=lambda axis: spacing[axis])
    others = [size for axis, size in enumerate(spacing) if axis != coarse]
    return flat or ([coarse] if spacing[coarse] > ANISOTROPIC * max(others) else [])


def rotation_degrees(config: AugmentationConfig, patch: Size, spacing: Spacing, free: Sequence[int]) -> list[tuple[float, float]]:
    """Least and greatest angle about each axis. Half a turn changes the ends of two axes, which must both be `free` for it."""
    across = slice_axis(patch, spacing)
    any_angle = bool(across) and all(axis in free for axis in range(3) if axis not in across)
    widest = config.rotation.degrees or ((-180.0, 180.0) if any_angle else (-30.0, 30.0))
    return [widest if not across or axis in across else (0.0, 0.0) for axis in range(3)]
