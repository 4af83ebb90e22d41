"""Augmentation a batch at a time on the training's device: workers draw and read, the device bends and changes.

Both roads draw the same numbers and make the same patches; only noise is another on a GPU, which draws it itself.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from monai.transforms.compose import Compose
from monai.transforms.transform import Randomizable, Transform

from medseg.training.elastic import RandElasticAffineCropd
from medseg.training.intensity import OwnStream, draw_seed
from medseg.training.sampling import Sampling

SAMPLING, SEED = "sampling", "seed"


def deferred(transforms: Compose) -> tuple[Compose, Applier]:
    """`training_transforms`, cut into what is done for each sample and what a device does for a batch of them.

    Args:
        transforms: a RandElasticAffineCropd, an OwnStream, and any others after them. The others get the labels (a loss's weight
            map does): where there are some, labels are bent before them and only the image is left to the device.
    Returns: what takes the place of `transforms` in a PatchDataset, and what makes patches of its batches.
    """
    spatial, stream, *others = transforms.transforms
    if not (isinstance(spatial, RandElasticAffineCropd) and isinstance(stream, OwnStream)):
        raise ValueError("only a RandElasticAffineCropd and an OwnStream after it can be left to the device")
    now = [key for key, mode in spatial.modes.items() if others and mode == "nearest"]
    left = [key for key in spatial.keys if key not in now]
    return Compose([ReadBoxd(spatial, now), DrawSeedd(), *others]), Applier(spatial, stream, left)


class ReadBoxd(Randomizable, Transform):  # type: ignore[misc]
    """Draws a patch and reads the boxes of voxels that it needs; how it comes out of them is added as "sampling".

    Args:
        now: keys of pictures whose patches are taken here.
    """

    def __init__(self, spatial: RandElasticAffineCropd, now: Sequence[Hashable]) -> None:
        self.spatial, self.now = spatial, now

    def set_random_state(self, seed: Any = None, state: Any = None) -> ReadBoxd:
        self.spatial.set_random_state(seed, state)
        return self

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        _, where = self.spatial.place(data)
        boxes = {key: self.spatial.read(data[key], where) for key in self.spatial.key_iterator(data)}
        taken = self.spatial.take({key: boxes[key] for key in self.now}, where) if self.now else {}
        return {**data, **boxes, **taken, SAMPLING: where}


class DrawSeedd(Randomizable, Transform):  # type: ignore[misc]
    """Adds the seed of the changes of intensity as "seed": the draw that `OwnStream` takes it from."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        return {**data, SEED: draw_seed(self.R)}


@dataclass(frozen=True)
class Applier:
    """Makes batches on a device out of what was read.

    Args:
        spatial, stream: of the transforms that were cut.
        left: keys of pictures whose patches are taken here.
    """

    spatial: RandElasticAffineCropd
    stream: OwnStream
    left: Sequence[Any]

    def __call__(self, batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
        """Patches of the batch, on the device. Nothing here waits for it: it may still be at the step before.

        Args:
            batch: under each key one value a sample: pictures as (C, *box) tensors, labels as (*box) ones, on the CPU (pinned
                where they are to be copied while the device works), "sampling" and "seed".
        Returns: pictures (B, C, X, Y, Z) float32, labels (B, X, Y, Z) and all other tensors on the device; other values as given.
        """
        others = {key: value for key, value in batch.items() if key not in (SAMPLING, SEED, *self.left)}
        result = {k: v.to(device, non_blocking=True) if isinstance(v, torch.Tensor) else v for k, v in others.items()}
        present = [key for key in self.left if key in batch]
        samples = zip(*(batch[key] for key in present), strict=True)
        patches = [
            self._finish({key: box.to(device, non_blocking=True) for key, box in zip(present, boxes, strict=True)}, where, seed)
            for boxes, where, seed in zip(samples, batch[SAMPLING], batch[SEED], strict=True)
        ]
        return result | {key: torch.stack([patch[key] for patch in patches]) for key in present}

    def _finish(self, boxes: dict[Hashable, torch.Tensor], where: Sampling, seed: int) -> dict[Hashable, torch.Tensor]:
        whole = {key: box if box.ndim == 4 else box[None] for key, box in boxes.items()}  # labels come without a channel
        patches = self.stream.change(self.spatial.take(whole, where), seed)
        return {key: patch if boxes[key].ndim == 4 else patch[0] for key, patch in patches.items()}
