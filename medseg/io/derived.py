"""What DICOM objects made from a series have in common: the headers of the series, the patient, UIDs and dates."""

from __future__ import annotations

import copy
import hashlib
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom import Dataset, dcmread
from pydicom.valuerep import PersonName

from medseg.core.errors import GridMismatchError, LabelError, MedsegError, UnreadableError
from medseg.core.labels import LabelScheme, Structure
from medseg.io.dicom_geometry import stack
from medseg.io.dicom_header import Header, read_headers
from medseg.io.dicom_values import quiet, text
from medseg.io.picture import Array
from medseg.io.series import Series

NEVER_ABSENT = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate", "StudyTime", "AccessionNumber",
    "ReferringPhysicianName", "PositionReferenceIndicator",
)  # fmt: skip
COPIED_KEYWORDS = (
    *NEVER_ABSENT, "StudyDescription", "IssuerOfPatientID", "TypeOfPatientID",
    "OtherPatientIDsSequence", "PatientAge", "PatientSize", "PatientWeight",
    "PatientIdentityRemoved", "DeidentificationMethod", "DeidentificationMethodCodeSequence", "PatientSpeciesDescription",
    "PatientSpeciesCodeSequence", "PatientBreedDescription", "PatientBreedCodeSequence", "BreedRegistrationSequence",
    "ResponsiblePerson", "ResponsiblePersonRole", "ResponsibleOrganization", "PatientSexNeutered",
    "ClinicalTrialSponsorName", "ClinicalTrialProtocolID", "ClinicalTrialProtocolName", "ClinicalTrialSiteID",
    "ClinicalTrialSiteName", "ClinicalTrialSubjectID", "ClinicalTrialSubjectReadingID", "ClinicalTrialTimePointID",
    "ClinicalTrialTimePointDescription",
)  # fmt: skip
DATES = ("Acquisition", "Content", "Series", "Study")
IMAGE_STORAGE = {"CT": "1.2.840.10008.5.1.4.1.1.2", "MR": "1.2.840.10008.5.1.4.1.1.4", "PT": "1.2.840.10008.5.1.4.1.1.128"}
CHUNK, PLANES = 1 << 20, 64  # voxels, or slices, worked on at once: few, for memory, and many, for the processor's caches
SHORT, LONG = 16, 64  # characters that DICOM grants a SH and a LO value


@dataclass(frozen=True)
class MadeBy:
    """What made a segmentation: a model's name, the sha256 of its file (64 hex digits), and the version of the software."""

    model: str
    model_sha256: str
    software: str


@dataclass(frozen=True, eq=False)
class Source:
    """A series without its voxels.

    Args:
        series, study, frame_of_reference: UIDs; those of series and study are made from others where the files state none, the
            last is empty where they state none.
        header: all that the first file states.
        slices: along the voxel axis Z, the header that a slice has and its frame in that file, from 0.
        shape: voxels along X, Y, Z.
    """

    series: str
    study: str
    frame_of_reference: str
    header: Dataset
    slices: tuple[tuple[Header, int], ...]
    shape: tuple[int, int, int]

    @property
    def enhanced(self) -> bool:
        """True where one file holds the slices as frames."""
        return "PerFrameFunctionalGroupsSequence" in self.header


def read_source(series: Series) -> Source:
    """The headers of a series. Raises: UnreadableError where it cannot be used, or refers to no file by a name of its own."""
    headers = read_headers(series.files)
    if reason := series.reason or next((header.problem for header in headers if header.problem), ""):
        raise UnreadableError(f"The series cannot be used: {reason}.")
    found = stack(headers)
    instances = [header.sop_instance for header in headers]
    if "" in instances or len(set(instances)) < len(instances):
        raise UnreadableError("The files of the series have no UIDs of their own to refer to them by; write NIfTI instead.")
    header = dcmread(series.files[0], stop_before_pixels=True, force=True)
    frame_of_reference = headers[0].frame_of_reference
    study = series.study or derive_uid("study", frame_of_reference or instances[0])
    return Source(series.uid, study, frame_of_reference, header, found.slices, found.grid.shape)


def sop_class(header: Header) -> str:
    """What kind of image a file is: as stated, else by its modality, for de-identified files that have lost it."""
    return header.sop_class or IMAGE_STORAGE[header.modality]


def number_structures(labels: Array, scheme: LabelScheme, source: Source) -> tuple[list[Structure], npt.NDArray[np.uint8]]:
    """The structures that occur, in the order of the scheme, and where: 1 for the first of them, 2 for the second, ...

    Args:
        labels: (X, Y, Z) uint8 or uint16 ids.
    Returns: the structures; (Z, Y, X) uint8.
    Raises: GridMismatchError where the series has other voxels; LabelError for a value that is no structure's id.
    """
    if labels.shape != source.shape:
        ours, theirs = (" x ".join(map(str, shape)) for shape in (labels.shape, source.shape))
        raise GridMismatchError(f"The label map has {ours} voxels and the series {theirs}; segment the series again.")
    voxels = labels.ravel(order="K")
    chunks = range(0, len(voxels), CHUNK)
    present = np.flatnonzero(sum(np.bincount(voxels[first : first + CHUNK], minlength=65536) for first in chunks))
    if unknown := sorted({int(value) for value in present} - {0, *(s.id for s in scheme.structures)}):
        raise LabelError(f"The label map holds the value {unknown[0]}, which is no structure's id; correct the label scheme.")
    structures = [structure for structure in scheme.structures if structure.id in present]
    table = np.zeros(65536, np.uint8)
    table[[structure.id for structure in structures]] = np.arange(1, len(structures) + 1)
    numbers = np.empty(labels.shape[::-1], np.uint8)
    for first in range(0, len(numbers), PLANES):
        numbers[first : first + PLANES] = table[labels[..., first : first + PLANES]].transpose(2, 1, 0)
    return structures, numbers


def derive_uid(*parts: str) -> str:
    """A UID that is a function of these texts alone: a UUID of version 5 under 2.25 (DICOM PS3.5 B.2)."""
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, digest).int}"


def object_uids(kind: str, numbers: Array, source: Source, scheme: LabelScheme, made_by: MadeBy) -> tuple[str, str]:
    """UIDs of the series and of the instance: equal labels, series, scheme and model give equal ones.

    All objects of one kind that one model makes from one series are instances of one series.
    """
    instances = [header.sop_instance for header, _ in source.slices]
    series = derive_uid(kind, source.series, *instances, scheme.model_dump_json(), repr(made_by))
    voxels = hashlib.sha256(numbers.data).hexdigest()
    return series, derive_uid(series, voxels)


def describe(target: Dataset, source: Source, made_by: MadeBy, series_number: int, what: str) -> None:
    """Write into `target` who the patient is, as the source says, and what made the object. Text becomes UTF-8."""
    header = source.header
    for keyword in NEVER_ABSENT:
        setattr(target, keyword, "")
    for keyword in COPIED_KEYWORDS:
        _copy(header, target, keyword)
    target.StudyInstanceUID = source.study
    target.SpecificCharacterSet = "ISO_IR 192"
    target.SeriesNumber = series_number + max(0, _whole(header.get("SeriesNumber")))
    target.SeriesDescription = shorten(f"{made_by.model} {what}", LONG)
    target.InstanceNumber = 1
    target.Manufacturer = "medseg"
    target.ManufacturerModelName = shorten(made_by.model, LONG)
    target.DeviceSerialNumber = shorten(made_by.model_sha256, LONG)
    target.SoftwareVersions = shorten(made_by.software, LONG)


def source_date(source: Source) -> tuple[str, str]:
    """Date and time that the source states for its acquisition, content, series or study, whichever is first; or "", ""."""
    header = source.header
    for when in DATES:
        date, time = (text(header, f"{when}{part}") for part in ("Date", "Time"))
        if re.fullmatch(r"\d{8}", date):
            return date, time if re.fullmatch(r"\d{6}(\.\d{1,6})?", time) else "000000"
    return "", ""


def shorten(text: str, most: int) -> str:
    """`text` as a DICOM string: no backslash, which would part it, nothing unprintable, and no longer than allowed."""
    return "".join(c if c.isprintable() and c != "\\" else "/" for c in text).strip()[:most].strip() or "unnamed"


@contextmanager
def referring(kind: str) -> Iterator[None]:
    """What goes wrong with the headers of a source leaves as one sentence without a value of theirs, and nothing is warned of.

    Raises: UnreadableError.
    """
    try:
        with quiet():
            yield
    except (MedsegError, MemoryError):
        raise
    except Exception as error:  # the libraries raise almost anything on strange headers, and quote them
        raise UnreadableError(
            f"The headers of the series do not allow {kind} that refers to it ({type(error).__name__}); write NIfTI instead."
        ) from None


def _copy(header: Dataset, target: Dataset, keyword: str) -> None:
    try:
        if not header.get(keyword):
            return
        element = copy.deepcopy(header[keyword])
        if element.VR == "PN":
            element.value = PersonName(str(element.value))  # without its bytes, which are in the source's character set
        for item in element.value if element.VR == "SQ" else ():
            item.decode()
    except Exception:  # a value that is none of its kind is left out
        return
    target.add(element)


def _whole(value: Any) -> int:
    try:
        return min(int(value), 10**6)
    except (TypeError, ValueError):
        return 0
