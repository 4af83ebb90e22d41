"""DICOM Segmentation objects (https://dicom.nema.org/medical/dicom/current/output/html/part03.html#sect_A.51), by highdicom."""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from pydicom import Dataset

from medseg.core.errors import UnreadableError
from medseg.core.labels import LabelScheme, Structure
from medseg.drawing.style import structure_colour
from medseg.io.coded_terms import find_terms
from medseg.io.derived import (
    LONG,
    MadeBy,
    Source,
    derive_uid,
    describe,
    number_structures,
    object_uids,
    read_source,
    referring,
    shorten,
    sop_class,
    source_date,
)
from medseg.io.dicom_header import Header
from medseg.io.dicom_values import value
from medseg.io.picture import Array
from medseg.io.series import Series

if TYPE_CHECKING:
    from highdicom.seg import Segmentation, SegmentDescription

logging.getLogger("highdicom").setLevel(logging.CRITICAL + 1)  # what it logs holds header values

SERIES_NUMBER = 1000  # added to the source's
NO_DATE = ("19000101", "000000")  # a SEG must state when its content was made; so says one whose source has no date
FILE_KEYWORDS = (
    "NumberOfFrames", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "LossyImageCompression",
    "LossyImageCompressionRatio", "LossyImageCompressionMethod",
)  # fmt: skip
PATIENT = ["PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate", "StudyTime"]


def encode_seg(labels: Array, series: Series, scheme: LabelScheme, made_by: MadeBy) -> bytes:
    """A DICOM SEG (BINARY, uncompressed, frames that hold something) that refers to every image of its series.

    One segment for each structure that occurs, in the order of the scheme; where none occurs, one for each structure of the
    scheme with one empty frame: an absent structure was looked for. It carries the patient and study of its source. Equal
    arguments give equal bytes: UIDs are hashes, and the content date is the source's (acquisition, content, series or study).

    Args:
        labels: (X, Y, Z) uint8 or uint16 ids of the scheme, Z in the order of the slices of the series.
    Raises: GridMismatchError, LabelError; UnreadableError where the headers allow no SEG; ConfigError for a code without a
        part. No message holds a value of a header.
    """
    with referring("a DICOM SEG"):
        source = read_source(series)
        if not source.frame_of_reference and len(source.slices) > 1:
            raise UnreadableError("The series states no frame of reference, which a DICOM SEG must share; write NIfTI instead.")
        structures, numbers = number_structures(labels, scheme, source)
        uids = object_uids("SEG", numbers, source, scheme, made_by)
        segments = _segments(structures or scheme.structures, scheme, made_by)
        segmentation = _segmentation(numbers, bool(structures), source, segments, uids)
        _settle(segmentation, source, made_by)
        buffer = io.BytesIO()
        segmentation.save_as(buffer)
        return buffer.getvalue()


def _segments(structures: Sequence[Structure], scheme: LabelScheme, made_by: MadeBy) -> list[SegmentDescription]:
    return [
        _segment(n, structure, scheme.names.index(structure.name), made_by) for n, structure in enumerate(structures, start=1)
    ]


def _segment(number: int, structure: Structure, place: int, made_by: MadeBy) -> SegmentDescription:
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.color import CIELabColor
    from highdicom.seg import SegmentDescription
    from highdicom.sr import CodedConcept
    from pydicom.sr.codedict import codes

    terms, colour = find_terms(structure), structure_colour(place)
    model = AlgorithmIdentificationSequence(
        name=shorten(made_by.model, LONG), family=codes.DCM.ArtificialIntelligence, version=shorten(made_by.model_sha256, LONG)
    )
    segment = SegmentDescription(
        segment_number=number,
        segment_label=shorten(structure.name, LONG),
        segmented_property_category=terms.category,
        segmented_property_type=terms.kind,
        algorithm_type="AUTOMATIC",
        algorithm_identification=model,
        display_color=CIELabColor.from_rgb(*bytes.fromhex(colour[1:])),
    )
    if terms.side is not None:
        kind = segment.SegmentedPropertyTypeCodeSequence[0]
        kind.SegmentedPropertyTypeModifierCodeSequence = [CodedConcept.from_code(terms.side)]
    return segment


def _segmentation(
    numbers: Array, occupied: bool, source: Source, segments: list[SegmentDescription], uids: tuple[str, str]
) -> Segmentation:
    from highdicom import PlanePositionSequence
    from highdicom.seg import Segmentation

    headers, places = [header for header, _ in source.slices], None
    if source.enhanced:
        headers, numbers = headers[:1], numbers[np.argsort([frame for _, frame in source.slices])]  # as they stand in the file
    if not occupied and (position := headers[0].planes[0].position):
        numbers, places = numbers[:1], [PlanePositionSequence("PATIENT", position)]
    return Segmentation(
        source_images=[_image(header, source) for header in headers],
        pixel_array=numbers,
        segmentation_type="BINARY",
        segment_descriptions=segments,
        series_instance_uid=uids[0],
        sop_instance_uid=uids[1],
        series_number=1,
        instance_number=1,
        manufacturer="medseg",
        manufacturer_model_name="medseg",
        software_versions="medseg",
        device_serial_number="medseg",
        content_label="SEGMENTATION",
        plane_positions=places,
        omit_empty_frames=occupied,
    )


def _image(header: Header, source: Source) -> Dataset:
    """What highdicom needs of an image, and nothing of the patient: it checks and repeats what it is given."""
    image, plane = Dataset(), header.planes[0]
    image.SOPClassUID, image.SOPInstanceUID = sop_class(header), header.sop_instance
    image.StudyInstanceUID, image.SeriesInstanceUID = source.study, source.series
    image.Modality, image.Rows, image.Columns = header.modality, header.pixels["rows"], header.pixels["columns"]
    for keyword in PATIENT:
        setattr(image, keyword, "")
    for keyword in FILE_KEYWORDS:
        if value(source.header, keyword) is not None:
            image[keyword] = source.header[keyword]
    if source.frame_of_reference:
        image.FrameOfReferenceUID = source.frame_of_reference
    if not source.enhanced and plane.position and plane.orientation and plane.spacing_mm:
        image.ImagePositionPatient, image.ImageOrientationPatient = list(plane.position), list(plane.orientation)
        image.PixelSpacing, image.SliceThickness = list(plane.spacing_mm), plane.thickness_mm
    return image


def _settle(segmentation: Segmentation, source: Source, made_by: MadeBy) -> None:
    """Put the patient in, and a hash or the source's date wherever highdicom put a random UID or the time of day."""
    describe(segmentation, source, made_by, SERIES_NUMBER, "segmentation")
    date, time = source_date(source)
    for keyword, when in zip(("ContentDate", "ContentTime"), (date, time) if date else NO_DATE, strict=True):
        setattr(segmentation, keyword, when)
    segmentation.ContentCreatorName = ""
    del segmentation.InstanceCreationDate, segmentation.InstanceCreationTime
    for item in segmentation.ContributingEquipmentSequence:
        item.pop("ContributionDateTime", None)
    organization = derive_uid(segmentation.SOPInstanceUID, "dimensions")
    for item in [*segmentation.DimensionOrganizationSequence, *segmentation.DimensionIndexSequence]:
        item.DimensionOrganizationUID = organization
