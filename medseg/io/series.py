"""The series in a heap of DICOM files: which files are one scan, in which order, and what is no scan at all."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from struct import unpack

from medseg.core.errors import UnreadableError
from medseg.io.dicom_geometry import stack
from medseg.io.dicom_header import Header, check_intact, open_pixels, read_headers
from medseg.io.dicom_values import quiet

PREAMBLE = 128
LONG_TYPES = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
SHORT_TYPES = frozenset(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())
FIRST_GROUPS = (0x0002, 0x0008)
ELEMENTS_LOOKED_AT = 3

_STORAGE = "1.2.840.10008.5.1.4.1.1."
# What is no scan, by the start of its SOP class; of two that fit, the longer one stands first.
NO_SCANS: dict[str, str] = {
    "1.2.840.10008.1.3.10": "a DICOMDIR, which only lists files",
    f"{_STORAGE}7": "a secondary capture (a screenshot or scanned page)",
    f"{_STORAGE}9": "a waveform",
    f"{_STORAGE}11": "a presentation state",
    f"{_STORAGE}4.2": "spectroscopy",
    f"{_STORAGE}30": "a parametric map",
    f"{_STORAGE}66.1": "a spatial registration",
    f"{_STORAGE}66.2": "spatial fiducials",
    f"{_STORAGE}66.3": "a spatial registration",
    f"{_STORAGE}66.4": "a segmentation (SEG)",
    f"{_STORAGE}66.5": "a segmentation (surfaces)",
    f"{_STORAGE}66.6": "tractography results",
    f"{_STORAGE}66.7": "a segmentation (SEG)",
    f"{_STORAGE}66": "raw data",
    f"{_STORAGE}67": "a mapping of values",
    f"{_STORAGE}77.1.6": "a whole-slide image in tiles, which is read from TIFF only",
    f"{_STORAGE}77.1.1.1": "a video",
    f"{_STORAGE}77.1.2.1": "a video",
    f"{_STORAGE}77.1.4.1": "a video",
    f"{_STORAGE}88.59": "a key object selection",
    f"{_STORAGE}88": "a structured report",
    f"{_STORAGE}104.1": "a document (PDF)",
    f"{_STORAGE}104": "a document",
    f"{_STORAGE}481.1": "a radiotherapy image",
    f"{_STORAGE}481.2": "a radiotherapy dose",
    f"{_STORAGE}481.3": "a radiotherapy structure set (contours)",
    f"{_STORAGE}481": "a radiotherapy plan or record",
    "1.2.840.10008.5.1.4.34": "a radiotherapy plan or record",
    "1.2.840.10008.5.1.4.38": "a hanging protocol",
    "1.2.840.10008.5.1.4.39": "a colour palette",
    "1.2.840.10008.5.1.4.43": "an implant template",
    "1.3.12.2.1107.5.9.1": "a manufacturer's private data",
}
# For files that state no class.
NO_SCAN_MODALITIES: dict[str, str] = {
    "SEG": NO_SCANS[f"{_STORAGE}66.4"],
    "RTSTRUCT": NO_SCANS[f"{_STORAGE}481.3"],
    "RTDOSE": NO_SCANS[f"{_STORAGE}481.2"],
    "RTPLAN": NO_SCANS[f"{_STORAGE}481"],
    "RTRECORD": NO_SCANS[f"{_STORAGE}481"],
    "RTIMAGE": NO_SCANS[f"{_STORAGE}481.1"],
    "SR": NO_SCANS[f"{_STORAGE}88"],
    "KO": NO_SCANS[f"{_STORAGE}88.59"],
    "PR": NO_SCANS[f"{_STORAGE}11"],
    "REG": NO_SCANS[f"{_STORAGE}66.1"],
    "DOC": NO_SCANS[f"{_STORAGE}104"],
}
LOCALIZER = "a localizer"


@dataclass(frozen=True)
class Series:
    """One DICOM series: a scan, a reason why it cannot be one, or something that is no scan.

    Its repr names nobody; `files`, `uid`, `patient`, `name` and `study` are never shown.

    Args:
        files: one a slice in the order of the voxel axis Z, or the one file of an enhanced series; where there is a reason,
            in the order of their paths.
        uid: SeriesInstanceUID; one made from the contents where the files state none.
        patient: tells patients apart: PatientID with its issuer, else StudyInstanceUID.
        name: PatientName, for a linkage table only.
        reason: why it cannot be segmented, or is skipped.
        skipped: True where there is no scan to segment at all; nobody's failure.
        notes: what was left out of it, one sentence each.
    """

    files: tuple[Path, ...] = field(repr=False)
    uid: str = field(repr=False)
    number: int | None
    modality: str
    patient: str = field(repr=False)
    name: str = field(repr=False)
    study: str = field(repr=False)
    reason: str = ""
    skipped: bool = False
    notes: tuple[str, ...] = ()


def is_dicom(path: Path) -> bool:
    """True for a file whose content is DICOM, whatever its name: `DICM` at byte 128, or the bare data set of an old scanner."""
    try:
        with path.open("rb") as file:
            start = file.read(4096)
    except OSError:
        return False
    return start[PREAMBLE : PREAMBLE + 4] == b"DICM" or _is_bare(start)


def find_series(files: Iterable[Path]) -> list[Series]:
    """The series that DICOM files make up, in the order of their first paths.

    Args:
        files: known to be DICOM, of any number of patients, studies and series. Files that state no series are taken
            together where they lie in one folder and share frame of reference and series number.
    """
    groups: dict[tuple[str, ...], list[Header]] = defaultdict(list)
    for header in read_headers(sorted(files)):
        groups[_key(header)].append(header)
    return [_series(headers) for headers in groups.values()]


def _key(header: Header) -> tuple[str, ...]:
    if header.series:
        return (header.series,)
    return (str(header.path.parent), header.study, header.frame_of_reference, str(header.number), _no_scan(header))


def _series(headers: list[Header]) -> Series:
    kinds = Counter(_no_scan(header) for header in headers)
    scans = [header for header in headers if not _no_scan(header)]
    if not scans:
        return _described(headers, f"{kinds.most_common(1)[0][0]}, no scan", skipped=True)
    notes = [f"{count} of its {len(headers)} files left out: {kind}." for kind, count in kinds.items() if kind]
    try:
        check_intact(scans)
        _check_one_patient(scans)
        kept = _without_copies(scans)
        slices = stack(kept).slices
    except UnreadableError as error:
        return _described(scans, str(error), notes=notes)
    if len(kept) < len(scans):
        notes.append(f"{len(scans) - len(kept)} of its {len(scans)} files left out: copies of others.")
    return _described([header for header, _ in slices], notes=notes)


def _described(headers: list[Header], reason: str = "", skipped: bool = False, notes: Sequence[str] = ()) -> Series:
    first = next((header for header in headers if header.series), headers[0])
    files = tuple(dict.fromkeys(header.path for header in headers))
    uid = first.series or _made_uid(headers)
    patient, study = first.patient or first.study or uid, first.study
    return Series(files, uid, first.number, first.modality, patient, first.name, study, reason, skipped, tuple(notes))


def _made_uid(headers: Sequence[Header]) -> str:
    """The same for the same files wherever they lie. UIDs under 2.25 are numbers of 128 bits."""
    stated = sorted(f"{h.sop_instance} {h.study} {h.frame_of_reference} {h.number} {h.pixel_start} {h.planes}" for h in headers)
    return f"2.25.{int.from_bytes(hashlib.sha256(chr(10).join(stated).encode()).digest()[:16])}"


def _no_scan(header: Header) -> str:
    """What the file is where it is no scan; empty where it is one, or is too damaged to tell."""
    if kind := next((words for start, words in NO_SCANS.items() if f"{header.sop_class}.".startswith(f"{start}.")), ""):
        return kind
    if not header.sop_class and header.modality in NO_SCAN_MODALITIES:
        return NO_SCAN_MODALITIES[header.modality]
    return LOCALIZER if "LOCALIZER" in header.image_type else ""


def _check_one_patient(headers: Sequence[Header]) -> None:
    if (count := len({(header.patient, header.study) for header in headers})) > 1:
        raise UnreadableError(f"its files state {count} patients or studies under one series; give each a series UID of its own")


def _without_copies(headers: list[Header]) -> list[Header]:
    """The headers without those of files that were copied: the same instance, the same place, the same pixels."""
    kept: dict[tuple[object, ...], Header] = {}
    result = []
    for header in headers:
        plane = header.planes[0]
        key = (header.sop_instance, plane.position, plane.orientation)
        if key in kept and _pixel_hash(header) == _pixel_hash(kept[key]):
            continue
        kept.setdefault(key, header)
        result.append(header)
    return result


def _pixel_hash(header: Header) -> str:
    try:
        with quiet(), open_pixels(header) as file:
            return hashlib.sha256(file.read()).hexdigest()
    except Exception:  # what it is will be said when the pixels are read
        return str(header.path)


def _is_bare(start: bytes) -> bool:
    """True where the bytes begin with a few well-formed elements of the first groups, in ascending order."""
    place, last = 0, (0, 0)
    for _ in range(ELEMENTS_LOOKED_AT):
        if len(start) < place + 12:
            return False
        group, element, kind, short = unpack("<HH2sH", start[place : place + 8])
        if group not in FIRST_GROUPS or ((group, element) <= last and last != (0, 0)):
            return False
        if kind in LONG_TYPES:
            place += 12 + unpack("<I", start[place + 8 : place + 12])[0]
        elif kind in SHORT_TYPES:
            place += 8 + short
        else:
            place += 8 + unpack("<I", start[place + 4 : place + 8])[0]
        last = (group, element)
    return True
