"""DICOM RT Structure Sets (https://dicom.nema.org/medical/dicom/current/output/html/part03.html#sect_A.19), by pydicom."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import numpy as np
from pydicom import DataElement, Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.sr.coding import Code
from pydicom.tag import Tag
from pydicom.uid import ImplicitVRLittleEndian, RTStructureSetStorage
from scipy import ndimage

from medseg.core.errors import UnreadableError
from medseg.core.labels import LabelScheme, Structure
from medseg.drawing.style import structure_colour
from medseg.io.coded_terms import find_terms
from medseg.io.derived import (
    LONG,
    SHORT,
    MadeBy,
    Source,
    describe,
    number_structures,
    object_uids,
    read_source,
    referring,
    shorten,
    sop_class,
    source_date,
)
from medseg.io.dicom_header import Header, Plane
from medseg.io.outline import outline
from medseg.io.picture import Array
from medseg.io.series import Series

SERIES_NUMBER = 2000  # added to the source's
STUDY_MANAGEMENT = "1.2.840.10008.3.1.2.3.1"  # the class that stands for a study where one is referred to
CONTOUR_DATA = Tag("ContourData")
FINENESS = 1e-4  # of a voxel: coordinates are rounded to it, a hundredth of what outlines keep clear of the voxel's edges
MOST_DECIMALS = 8  # a number has 16 characters


def encode_rtstruct(labels: Array, series: Series, scheme: LabelScheme, made_by: MadeBy) -> bytes:
    """An RT Structure Set with closed planar contours on the slices of its series.

    A voxel's centre is inside the contours of a structure exactly where the label map has its id. Holes are keyholes: the
    standard's way for CLOSED_PLANAR, which readers that unite contours, XOR them or fill them by even-odd all read alike, while
    CLOSEDPLANAR_XOR is passed over by many. ROI numbers are the ids of the scheme; one ROI for each structure that occurs;
    where none occurs, one without contours for each structure of the scheme. It carries the patient and study of its source.
    Equal arguments give equal bytes: UIDs are hashes, and the date is the source's (acquisition, content, series or study).

    Args:
        labels: (X, Y, Z) uint8 or uint16 ids of the scheme, Z in the order of the slices of the series.
    Raises: GridMismatchError, LabelError; UnreadableError where the headers do not say where the slices lie; ConfigError for a
        code without a part. No message holds a value of a header.
    """
    with referring("an RTSTRUCT"):
        source = read_source(series)
        _check_place(source)
        structures, numbers = number_structures(labels, scheme, source)
        rois = structures or scheme.structures
        target = _object(source, made_by, object_uids("RTSTRUCT", numbers, source, scheme, made_by))
        target.FrameOfReferenceUID = source.frame_of_reference
        target.ReferencedFrameOfReferenceSequence = [_referenced(source)]
        target.StructureSetROISequence = [_roi(structure, source) for structure in rois]
        contours = _contours(numbers, source, len(rois))
        target.ROIContourSequence = [
            _drawn(structure, scheme.names.index(structure.name), found) for structure, found in zip(rois, contours, strict=True)
        ]
        target.RTROIObservationsSequence = [_observed(structure) for structure in rois]
        buffer = io.BytesIO()
        # Implicit VR: in the explicit one a contour of more than some 2000 corners would not fit its length field.
        target.save_as(buffer, implicit_vr=True, little_endian=True, enforce_file_format=True)
        return buffer.getvalue()


def _check_place(source: Source) -> None:
    planes = [header.planes[frame] for header, frame in source.slices]
    if not source.frame_of_reference or any(None in (p.position, p.orientation, p.spacing_mm) for p in planes):
        raise UnreadableError(
            "The series does not say where its slices lie in the patient, so no RTSTRUCT can be drawn; write NIfTI instead."
        )


def _object(source: Source, made_by: MadeBy, uids: tuple[str, str]) -> Dataset:
    target = Dataset()
    target.file_meta = FileMetaDataset()
    target.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    target.SOPClassUID, target.SOPInstanceUID = RTStructureSetStorage, uids[1]
    target.Modality = "RTSTRUCT"
    target.SeriesInstanceUID = uids[0]
    target.OperatorsName = ""
    target.StructureSetLabel = shorten(made_by.model, SHORT)
    target.StructureSetDate, target.StructureSetTime = source_date(source)
    target.ApprovalStatus = "UNAPPROVED"
    describe(target, source, made_by, SERIES_NUMBER, "structures")
    return target


def _referenced(source: Source) -> Dataset:
    """The frame of reference, with the study, the series and every image in it."""
    series, study, place = Dataset(), Dataset(), Dataset()
    series.SeriesInstanceUID = source.series
    series.ContourImageSequence = [_image(header, frame) for header, frame in source.slices]
    study.ReferencedSOPClassUID = STUDY_MANAGEMENT
    study.ReferencedSOPInstanceUID = source.study
    study.RTReferencedSeriesSequence = [series]
    place.FrameOfReferenceUID = source.frame_of_reference
    place.RTReferencedStudySequence = [study]
    return place


def _image(header: Header, frame: int) -> Dataset:
    image = Dataset()
    image.ReferencedSOPClassUID = sop_class(header)
    image.ReferencedSOPInstanceUID = header.sop_instance
    if header.frames > 1:
        image.ReferencedFrameNumber = frame + 1
    return image


def _roi(structure: Structure, source: Source) -> Dataset:
    roi = Dataset()
    roi.ROINumber = structure.id
    roi.ReferencedFrameOfReferenceUID = source.frame_of_reference
    roi.ROIName = shorten(structure.name, LONG)
    roi.ROIGenerationAlgorithm = "AUTOMATIC"
    return roi


def _observed(structure: Structure) -> Dataset:
    terms, observed = find_terms(structure), Dataset()
    observed.ObservationNumber = structure.id
    observed.ReferencedROINumber = structure.id
    kind = _coded(terms.kind)
    if terms.side is not None:
        kind.SegmentedPropertyTypeModifierCodeSequence = [_coded(terms.side)]
    observed.SegmentedPropertyCategoryCodeSequence = [_coded(terms.category)]
    observed.RTROIIdentificationCodeSequence = [kind]
    observed.RTROIInterpretedType = ""
    observed.ROIInterpreter = ""
    return observed


def _coded(code: Code) -> Dataset:
    from highdicom.sr import CodedConcept

    return CodedConcept.from_code(code)


def _drawn(structure: Structure, place: int, contours: Sequence[Dataset]) -> Dataset:
    drawn = Dataset()
    drawn.ReferencedROINumber = structure.id
    drawn.ROIDisplayColor = list(bytes.fromhex(structure_colour(place)[1:]))
    if contours:
        for number, contour in enumerate(contours, start=1):
            contour.ContourNumber = number
        drawn.ContourSequence = contours
    return drawn


def _contours(numbers: Array, source: Source, count: int) -> list[list[Dataset]]:
    """The contours of each structure, slice by slice. `numbers`: (Z, Y, X), k for the k-th of the structures."""
    found: list[list[Dataset]] = [[] for _ in range(count)]
    for (header, frame), slice_ in zip(source.slices, numbers, strict=True):
        for number, box in enumerate(ndimage.find_objects(slice_), start=1):
            if box is not None:
                rows, columns = box
                for corners in outline((slice_[box] == number).T):
                    found[number - 1].append(_contour(corners + (columns.start, rows.start), header, frame))
    return found


def _contour(corners: Array, header: Header, frame: int) -> Dataset:
    contour = Dataset()
    contour.ContourImageSequence = [_image(header, frame)]
    contour.ContourGeometricType = "CLOSED_PLANAR"
    contour.NumberOfContourPoints = len(corners)
    # Bytes are written as they stand, and implicit VR does not say their type; of text, pydicom would make an object a number.
    contour[CONTOUR_DATA] = DataElement(CONTOUR_DATA, "OB", _decimals(corners, header.planes[frame]))
    return contour


def _decimals(corners: Array, plane: Plane) -> bytes:
    """The text of (corners, 2) places in a slice, in voxels along X and Y, as LPS mm."""
    spacing, directions = np.array(plane.spacing_mm)[::-1], np.array(plane.orientation).reshape(2, 3)
    decimals = min(max(0, math.ceil(-math.log10(spacing.min() * FINENESS))), MOST_DECIMALS)
    places = np.round(plane.position + corners * spacing @ directions, decimals) + 0.0  # no minus zero
    text = "\\".join([f"%.{decimals}f"] * places.size) % tuple(places.ravel())
    return (text + " " * (len(text) % 2)).encode()
