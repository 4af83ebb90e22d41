"""DICOM objects that mark structures in a scan: SEG is read, by highdicom; an RTSTRUCT is only recognised."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.uid import RTStructureSetStorage

from medseg.core.errors import LabelError, UnreadableError
from medseg.core.grid import Grid
from medseg.io.dicom_values import quiet
from medseg.io.named_masks import Mask, NamedMasks
from medseg.io.picture import LPS_TO_RAS, grid_of
from medseg.io.series import is_dicom

SEG_CLASSES = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")  # Segmentation, Label Map Segmentation

logging.getLogger("highdicom").setLevel(logging.CRITICAL + 1)  # what it logs holds header values


def is_mask_object(path: Path) -> bool:
    """True for a file that is a DICOM SEG or RTSTRUCT, whatever its name."""
    return path.is_file() and is_dicom(path) and _sop_class(path) in (*SEG_CLASSES, RTStructureSetStorage)


def _sop_class(path: Path) -> str:
    try:
        with quiet():
            header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["SOPClassUID"], force=True)
        return str(header.get("SOPClassUID", ""))
    except Exception:  # what is wrong with it is said when it is read
        return ""


def read(path: Path) -> NamedMasks:
    """The segments of a DICOM SEG by their labels, on the slices from its first frame to its last.

    Raises: UnreadableError for an RTSTRUCT and for probabilities; LabelError where two segments have one label; what highdicom
        raises.
    """
    if _sop_class(path) == RTStructureSetStorage:
        raise UnreadableError(
            f"{path} is an RTSTRUCT, and its contours are not read as masks; save it as a DICOM SEG or a label map in 3D Slicer."
        )
    from highdicom.seg import SegmentationTypeValues, segread

    with quiet():
        segmentation = segread(path)
        if segmentation.segmentation_type == SegmentationTypeValues.FRACTIONAL:
            raise UnreadableError(f"{path} holds probabilities and not masks; save it as a binary DICOM SEG.")
        numbers: dict[str, int] = {}
        for number in segmentation.segment_numbers:
            name = str(segmentation.get_segment_description(number).segment_label).strip()
            if name in numbers:
                raise LabelError(f"{path}: two segments are called `{name}`; give each its own name.")
            numbers[name] = number
        geometry = segmentation.get_volume_geometry(allow_missing_positions=True)
    if geometry is None:
        raise UnreadableError(f"{path}: its frames do not lie on evenly spaced slices; save it as a label map.")

    def mask(name: str) -> Mask:
        with quiet():
            volume = segmentation.get_volume(segment_numbers=[numbers[name]], allow_missing_positions=True)
        return np.ascontiguousarray(volume.array[..., 0].transpose(2, 1, 0) > 0)

    return NamedMasks(tuple(numbers), _grid(geometry, path), mask, one_file=True)


def _grid(geometry: Any, path: Path) -> Grid:
    """Of (slices, rows, columns) in LPS, with X along the columns."""
    affine = np.asarray(geometry.affine, float)[:, [2, 1, 0, 3]]
    affine[:3] *= LPS_TO_RAS[:, None]
    return grid_of(tuple(geometry.spatial_shape)[::-1], affine + 0.0, path)
