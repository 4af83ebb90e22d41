"""The MONAI transforms that every scan goes through: prepare, predict and segment use this one `Compose`."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from monai.transforms.compose import Compose
from monai.transforms.transform import MapTransform

from medseg.core.errors import GridMismatchError, MedsegError
from medseg.core.grid import Grid
from medseg.core.labels import LabelScheme
from medseg.core.volume import Volume
from medseg.data.preprocess import Preprocessing, preprocess, resample_classes
from medseg.io.formats import read_channels, read_labels


class LoadVolumed(MapTransform):  # type: ignore[misc]
    """File paths -> MetaTensor (C, X, Y, Z) float32 with its affine, through medseg's own readers.

    Adds `<key>_grid`, the scan's own `Grid`. A key listed in `label_keys` is read as labels with `scheme`: class indices
    (1, X, Y, Z) uint8, checked to lie on the grid of the first key.
    """

    def __init__(
        self,
        keys: list[str],
        label_keys: tuple[str, ...] = (),
        scheme: LabelScheme | None = None,
        spacing_mm: tuple[float, float, float] | None = None,
    ) -> None:
        super().__init__(keys)
        self.label_keys, self.scheme, self.spacing_mm = label_keys, scheme, spacing_mm

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        for key in self.keys:
            result[key], result[f"{key}_grid"] = self._labels(data[key]) if key in self.label_keys else self._image(data[key])
        first = self.keys[0]
        for key in self.label_keys:
            if difference := result[f"{first}_grid"].difference(result[f"{key}_grid"]):
                raise GridMismatchError(
                    f"{data[key]}: label grid differs from image grid: {difference}; resample the label or remove the row."
                )
        return result

    def _image(self, paths: Any) -> tuple[MetaTensor, Grid]:
        volume = read_channels(paths, spacing_mm=self.spacing_mm)
        return _tensor(volume.array, volume.grid), volume.grid

    def _labels(self, path: Any) -> tuple[MetaTensor, Grid]:
        assert self.scheme is not None
        labels = read_labels(path, spacing_mm=self.spacing_mm)
        return _tensor(self.scheme.encode(labels.array, str(path))[None], labels.grid), labels.grid


class Preprocessd(MapTransform):  # type: ignore[misc]
    """MetaTensor on the scan's grid -> MetaTensor on the prepared grid (`Preprocessing`); adds the `Grid` as `grid`.

    The scan's own voxels are used up: a large volume is held once.

    Keys in `label_keys` follow the first key onto its prepared grid.
    """

    def __init__(self, keys: list[str], preprocessing: Preprocessing, label_keys: tuple[str, ...] = ()) -> None:
        super().__init__(keys)
        self.preprocessing, self.label_keys = preprocessing, label_keys

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        first = self.keys[0]
        scan = Volume(np.asarray(data[first]), data[f"{first}_grid"])
        prepared = preprocess(scan, self.preprocessing, str(data.get("case_id", "scan")), use_up=True)
        result[first], result["grid"] = _tensor(prepared.array, prepared.grid), prepared.grid
        for key in self.label_keys:
            classes = resample_classes(np.asarray(data[key])[0], data[f"{key}_grid"], prepared.grid)
            result[key] = _tensor(classes[None], prepared.grid)
        return result


class LookAtd(MapTransform):  # type: ignore[misc]
    """Adds what a function finds in the scan (`Volume`) of a key before it is used up, under another name."""

    def __init__(self, key: str, name: str, look: Callable[[Volume], Any]) -> None:
        super().__init__([key])
        self.name, self.look = name, look

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        key = self.keys[0]
        return dict(data) | {self.name: self.look(Volume(np.asarray(data[key]), data[f"{key}_grid"]))}


def scan_transform(
    preprocessing: Preprocessing, spacing_mm: tuple[float, float, float] | None = None, look: LookAtd | None = None
) -> Compose:
    """{"image": paths, "case_id"} -> "image" MetaTensor prepared, "grid" its Grid, "image_grid" the scan's own Grid.

    Args:
        look: a transform that looks at the scan as it was read.
    """
    steps = [LoadVolumed(["image"], spacing_mm=spacing_mm), look, Preprocessd(["image"], preprocessing)]
    return Compose([step for step in steps if step is not None])


def training_transform(
    preprocessing: Preprocessing, scheme: LabelScheme, spacing_mm: tuple[float, float, float] | None = None
) -> Compose:
    """As `scan_transform`, with "label" (a path) -> class indices (1, X, Y, Z) uint8 on the same prepared grid."""
    keys, labels = ["image", "label"], ("label",)
    return Compose([LoadVolumed(keys, labels, scheme, spacing_mm), Preprocessd(keys, preprocessing, labels)])


def apply(transform: Compose, data: dict[str, Any]) -> dict[str, Any]:
    """The transform's result; an error of the case is raised as itself, not as the RuntimeError that MONAI wraps it in."""
    try:
        return dict(transform(data))
    except RuntimeError as error:
        if isinstance(error.__cause__, (MedsegError, MemoryError)):
            raise error.__cause__ from None
        raise


def _tensor(array: Any, grid: Grid) -> MetaTensor:
    return MetaTensor(torch.from_numpy(np.ascontiguousarray(array)), affine=torch.from_numpy(grid.affine.copy()))
