"""Segmentations of 3D Slicer, .seg.nrrd: segments by name, in one layer or in several where they overlap.

https://slicer.readthedocs.io/en/latest/developer_guide/modules/segmentations.html
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nrrd
import numpy as np

from medseg.core.errors import LabelError, UnreadableError
from medseg.core.grid import Grid
from medseg.io.named_masks import Mask, NamedMasks
from medseg.io.nrrd import TO_RAS
from medseg.io.picture import LPS_TO_RAS, Array, grid_of

START = b"NRRD"
Place = tuple[int, int]  # layer and value


def is_segmentation(path: Path) -> bool:
    """True for an NRRD file whose header names segments."""
    fields = _fields(path)
    return fields is not None and "Segment0_ID" in fields


def is_layered(path: Path) -> bool:
    """True for one that has an axis of layers, so that it is no label map."""
    fields = _fields(path)
    return fields is not None and "Segment0_ID" in fields and int(fields["dimension"]) == 4


def read(path: Path) -> NamedMasks:
    """The segments of a file. Raises: LabelError, UnreadableError and what pynrrd raises."""
    fields = nrrd.read_header(str(path))
    layers = int(fields["dimension"]) == 4
    places = _places(fields, path, layers)
    found: list[Array] = []

    def mask(name: str) -> Mask:
        if not found:
            found.append(_layers(path, layers, places))
        layer, value = places[name]
        return np.ascontiguousarray(found[0][layer] == value)

    return NamedMasks(tuple(places), _grid(fields, path, layers), mask, one_file=True)


def _fields(path: Path) -> Mapping[str, Any] | None:
    try:
        with open(path, "rb") as file:
            if file.read(4) != START:
                return None
        return nrrd.read_header(str(path))
    except Exception:  # what is wrong with it is said when it is read
        return None


def _places(fields: Mapping[str, Any], path: Path, layers: bool) -> dict[str, Place]:
    """Where each segment stands. Files of old versions have a layer for each segment and state neither layer nor value."""
    places: dict[str, Place] = {}
    number = 0
    while f"Segment{number}_ID" in fields:
        own = {key: fields.get(f"Segment{number}_{key}") for key in ("Name", "Layer", "LabelValue")}
        name = str(own["Name"] or fields[f"Segment{number}_ID"]).strip()
        place = int(own["Layer"] or (number if layers and own["LabelValue"] is None else 0)), int(own["LabelValue"] or 1)
        if name in places or place in places.values():
            raise LabelError(f"{path}: two segments are called `{name}` or share a value; give each its own and save it again.")
        places[name] = place
        number += 1
    return places


def _layers(path: Path, layers: bool, places: Mapping[str, Place]) -> Array:
    """(layers, X, Y, Z). Raises: LabelError where voxels belong to no segment."""
    data, _ = nrrd.read(str(path))
    array = data if layers else data[None]
    for layer, values in enumerate(array):
        if strange := sorted(set(np.unique(values).tolist()) - {0} - {value for at, value in places.values() if at == layer}):
            raise LabelError(f"{path}: voxels hold {strange[0]:g}, which is the value of no segment; save it again in 3D Slicer.")
    return array


def _grid(fields: Mapping[str, Any], path: Path, layers: bool) -> Grid:
    sizes = tuple(int(n) for n in fields["sizes"])[int(layers) :]
    if len(sizes) != 3 or "space directions" not in fields or "space origin" not in fields:
        raise UnreadableError(f"{path} does not say where its voxels lie; save the segmentation again in 3D Slicer.")
    affine = np.eye(4)
    affine[:3, :3] = np.asarray(fields["space directions"], float)[int(layers) :].T
    affine[:3, 3] = fields["space origin"]
    affine[:3] *= np.asarray(TO_RAS.get(str(fields.get("space", "")).lower(), LPS_TO_RAS), float)[:, None]
    return grid_of(sizes, affine + 0.0, path)
