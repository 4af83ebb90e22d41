"""What one DICOM file states, as plain values (https://dicom.nema.org/medical/dicom/current/output/html/part03.html)."""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import pydicom
from pydicom.dataset import Dataset
from pydicom.filereader import read_partial
from pydicom.tag import BaseTag, Tag
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from medseg.core.errors import UnreadableError
from medseg.io.dicom_codecs import can_decode
from medseg.io.dicom_values import many, numbers, quiet, text, value, whole

THREADS = 4  # parsing is one core's work; on a network drive the others wait for files meanwhile
UNDEFINED_LENGTH = 0xFFFFFFFF
PIXEL_DATA = 0x7FE00010
PIXEL_TAGS = frozenset({PIXEL_DATA, 0x7FE00008, 0x7FE00009})  # whole numbers, floats, doubles
PROJECTIONS = frozenset({"CR", "DX", "IO", "MG", "PX", "RF", "RG", "XA"})  # radiographs: one picture of all depths
# A modality is shown, so only a known word is taken from a header.
MODALITIES = PROJECTIONS | {
    "BI", "CT", "DG", "DOC", "ECG", "ES", "GM", "HC", "IVOCT", "IVUS", "KO", "LS", "M3D", "MR", "NM", "OCT", "OP", "OPT", "OPV",
    "PLAN", "PR", "PT", "REG", "RTDOSE", "RTIMAGE", "RTPLAN", "RTRECORD", "RTSTRUCT", "RWV", "SC", "SEG", "SM", "SR", "ST", "TG",
    "US", "XC",
}  # fmt: skip

GROUPS = (
    "PlanePositionSequence",
    "PlaneOrientationSequence",
    "PixelMeasuresSequence",
    "PixelValueTransformationSequence",
    "FrameContentSequence",
    "MREchoSequence",
    "MRDiffusionSequence",
)
# What tells two pictures of one place apart, and where it stands in classic and in enhanced files.
KINDS = (
    ("stacks", "FrameContentSequence", "StackID"),
    ("time points", "FrameContentSequence", "TemporalPositionIndex"),
    ("time points", "FrameContentSequence", "TemporalPositionIdentifier"),
    ("echo times", "MREchoSequence", "EffectiveEchoTime"),
    ("echo times", "MREchoSequence", "EchoTime"),
    ("b-values", "MRDiffusionSequence", "DiffusionBValue"),
    ("acquisitions", "FrameContentSequence", "AcquisitionNumber"),
    ("kinds of image", "FrameContentSequence", "ImageType"),
)
_PALETTE = [
    f"{kind}{colour}PaletteColorLookupTable{part}"
    for kind, part in (("", "Descriptor"), ("", "Data"), ("Segmented", "Data"))
    for colour in ("Red", "Green", "Blue")
]
_KEYWORDS = [
    "SpecificCharacterSet", "ImageType", "SOPClassUID", "SOPInstanceUID", "Modality", "PatientName", "PatientID",
    "IssuerOfPatientID", "StudyInstanceUID", "SeriesInstanceUID", "SeriesNumber", "AcquisitionNumber", "FrameOfReferenceUID",
    "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "ImagerPixelSpacing", "SliceThickness", "EchoTime",
    "TemporalPositionIdentifier", "DiffusionBValue", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration",
    "NumberOfFrames", "Rows", "Columns", "BitsAllocated", "BitsStored", "PixelRepresentation", "RescaleSlope", "RescaleIntercept",
    "ModalityLUTSequence", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths",
]  # fmt: skip
_TAGS: list[BaseTag | int] = [Tag(keyword) for keyword in [*_KEYWORDS, *_PALETTE]]


@dataclass(frozen=True)
class Plane:
    """One picture of a file and where it lies, in LPS mm; None for what is not stated or no number.

    Args:
        orientation: the direction along a row, then the one down a column.
        spacing_mm: distance of rows, distance of columns, as DICOM has it.
        kinds: the values that KINDS names.
    """

    position: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    spacing_mm: tuple[float, ...] | None
    thickness_mm: float | None
    slope: float | None
    intercept: float | None
    kinds: tuple[str, ...]


@dataclass(frozen=True, repr=False)
class Header:
    """What a file states. It names people, so it is never shown.

    Args:
        problem: why the file cannot be read, in words that name nobody; empty where it can.
        planes: one, or one for each described frame of a multi-frame file.
        pixels: the description of the pixels, as the decoders of pydicom take it.
        pixel_start, pixel_length: where their bytes stand; None where there are none.
        palette: the data set where its palette stands, for pixels that have one.
        at_detector: True where the spacing is that on the detector, larger than in the patient.
    """

    path: Path
    problem: str = ""
    syntax: str = ""
    sop_class: str = ""
    sop_instance: str = ""
    series: str = ""
    study: str = ""
    frame_of_reference: str = ""
    patient: str = ""
    name: str = ""
    number: int | None = None
    modality: str = "OT"
    image_type: tuple[str, ...] = ()
    planes: tuple[Plane, ...] = ()
    pixels: dict[str, Any] = field(default_factory=dict)
    pixel_start: int | None = None
    pixel_length: int = 0
    palette: Dataset | None = None
    at_detector: bool = False

    @property
    def frames(self) -> int:
        return int(self.pixels.get("number_of_frames", 1))

    @property
    def colour(self) -> bool:
        """True for pixels that are colours once they are decoded."""
        return self.pixels["samples_per_pixel"] == 3 or self.pixels["photometric_interpretation"] == "PALETTE COLOR"


def read_headers(files: Sequence[Path]) -> list[Header]:
    """The header of each file, in the order of the files; what is wrong with one stands in its `problem`."""
    with quiet(), ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(_read_header, files))


def check_intact(headers: Sequence[Header]) -> None:
    """Raise UnreadableError, with a phrase that names no file, where some cannot be used."""
    broken = [header.problem for header in headers if header.problem]
    if broken and len(headers) == 1:
        raise UnreadableError(f"its file {broken[0]}")
    if broken:
        raise UnreadableError(
            f"{len(broken)} of its {len(headers)} files cannot be used: one {max(set(broken), key=broken.count)}"
        )


def open_pixels(header: Header) -> BinaryIO:
    """The file, at the first byte of its pixels. Raises: OSError and what pydicom raises."""
    if header.syntax == DeflatedExplicitVRLittleEndian:
        return io.BytesIO(pydicom.dcmread(header.path).PixelData)
    file = header.path.open("rb")
    file.seek(header.pixel_start or 0)
    return file


def _read_header(path: Path) -> Header:
    try:
        with path.open("rb") as file:
            return _parsed(path, file)
    except PermissionError:
        return Header(path, "may not be read; give yourself permission to read it")
    except Exception:  # pydicom raises almost anything on damaged bytes, with header values in its words
        return Header(path, "is damaged; replace it with an intact copy")


def _parsed(path: Path, file: BinaryIO) -> Header:
    found: list[tuple[int, str | None, int]] = []

    def at_pixels(tag: BaseTag, vr: str | None, length: int) -> bool:
        if int(tag) in PIXEL_TAGS:  # an int, for tags compare slowly
            found.append((int(tag), vr, length))
        return bool(found)

    data: Any = read_partial(file, at_pixels, force=True, specific_tags=_TAGS)
    tag, vr, length = found[0] if found else (0, None, 0)
    # The element's own header is longer where it names its type.
    start = file.tell() + (8 if data.original_encoding[0] else 12) if tag == PIXEL_DATA else None
    header = replace(_stated(path, data, _pixels(data, vr)), pixel_start=start, pixel_length=length)
    if tag in PIXEL_TAGS and tag != PIXEL_DATA:
        return replace(header, problem="holds real numbers for pixels, which is not supported; export it with whole numbers")
    if value(data, "ModalityLUTSequence"):
        return replace(header, problem="maps its values through a table, which is not supported; export it with a linear scale")
    return replace(header, problem=_problem(header, path.stat().st_size))


def _stated(path: Path, data: Any, pixels: dict[str, Any]) -> Header:
    patient, modality = text(data, "PatientID"), text(data, "Modality").upper()
    at_detector = modality in PROJECTIONS and value(data, "PixelSpacing") is None
    return Header(
        path=path,
        syntax=_syntax(data),
        sop_class=text(data, "SOPClassUID") or text(data.file_meta, "MediaStorageSOPClassUID"),
        sop_instance=text(data, "SOPInstanceUID") or text(data.file_meta, "MediaStorageSOPInstanceUID"),
        series=text(data, "SeriesInstanceUID"),
        study=text(data, "StudyInstanceUID"),
        frame_of_reference=text(data, "FrameOfReferenceUID"),
        patient=f"{patient}\\{text(data, 'IssuerOfPatientID')}" if patient else "",
        name=text(data, "PatientName"),
        number=whole(data, "SeriesNumber"),
        modality=modality if modality in MODALITIES else "OT",
        image_type=tuple(str(word).strip().upper() for word in many(data, "ImageType")),
        planes=_planes(data, "ImagerPixelSpacing" if at_detector else "PixelSpacing"),
        pixels=pixels,
        palette=data if pixels["photometric_interpretation"] == "PALETTE COLOR" else None,
        at_detector=at_detector and value(data, "ImagerPixelSpacing") is not None,
    )


def _syntax(data: Any) -> str:
    if stated := text(data.file_meta, "TransferSyntaxUID"):
        return stated
    implicit, little = data.original_encoding
    return str(ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian)


def _pixels(data: Dataset, vr: str | None) -> dict[str, Any]:
    allocated = whole(data, "BitsAllocated") or 0
    offsets, lengths = value(data, "ExtendedOffsetTable"), value(data, "ExtendedOffsetTableLengths")
    return {
        "rows": whole(data, "Rows") or 0,
        "columns": whole(data, "Columns") or 0,
        "samples_per_pixel": whole(data, "SamplesPerPixel") or 1,
        "photometric_interpretation": text(data, "PhotometricInterpretation").upper() or "MONOCHROME2",
        "planar_configuration": whole(data, "PlanarConfiguration") or 0,
        "number_of_frames": max(1, whole(data, "NumberOfFrames") or 1),
        "bits_allocated": allocated,
        "bits_stored": whole(data, "BitsStored") or allocated,
        "pixel_representation": int(whole(data, "PixelRepresentation") == 1),
        "pixel_keyword": "PixelData",
        "pixel_vr": vr or "OW",
    } | ({"extended_offsets": (offsets, lengths)} if offsets and lengths else {})


def _problem(header: Header, file_size: int) -> str:
    """Why the pixels cannot be had, as far as the header tells."""
    pixels = header.pixels
    rows, columns, samples, allocated = (pixels[k] for k in ("rows", "columns", "samples_per_pixel", "bits_allocated"))
    if header.pixel_start is None:
        return "holds no pixels, or is cut off before them; replace it with an intact copy"
    if not can_decode(header.syntax):
        return "is compressed in a way that cannot be read here; export it uncompressed"
    sound = (
        rows > 0
        and columns > 0
        and samples in (1, 3)
        and allocated in (8, 16, 32)
        and pixels["bits_stored"] in range(1, allocated + 1)
    )
    if not sound:
        return "states pixels of a kind that is not supported; export it as grey or RGB of 8, 16 or 32 bits"
    if header.pixel_length == UNDEFINED_LENGTH:
        return ""
    expected = rows * columns * samples * allocated // 8 * header.frames
    if pixels["photometric_interpretation"] == "YBR_FULL_422":
        expected = expected * 2 // 3
    held = header.pixel_length
    if header.syntax != DeflatedExplicitVRLittleEndian:
        held = min(held, file_size - header.pixel_start)
    return "is truncated; replace it with an intact copy" if held < expected else ""


def _planes(data: Dataset, spacing: str) -> tuple[Plane, ...]:
    frames = many(data, "PerFrameFunctionalGroupsSequence")
    if not frames:
        return (_plane(data, dict.fromkeys(GROUPS, data), spacing),)
    shared = [item for item in many(data, "SharedFunctionalGroupsSequence") if isinstance(item, Dataset)]
    return tuple(_plane(data, {name: _group([frame, *shared], name) for name in GROUPS}, spacing) for frame in frames)


def _group(places: Sequence[Dataset], name: str) -> Dataset:
    """The functional group of a frame, its own or the one that all frames share; empty where there is none."""
    for place in places:
        if items := many(place, name):
            return items[0]
    return Dataset()


def _plane(data: Dataset, groups: dict[str, Dataset], spacing: str) -> Plane:
    measures, scale = groups["PixelMeasuresSequence"], groups["PixelValueTransformationSequence"]
    if value(scale, "RescaleSlope") is None:
        scale = data
    thickness = numbers(measures, "SliceThickness", 1)
    sizes = numbers(measures, spacing, 2)
    return Plane(
        numbers(groups["PlanePositionSequence"], "ImagePositionPatient", 3),
        numbers(groups["PlaneOrientationSequence"], "ImageOrientationPatient", 6),
        sizes if sizes and min(sizes) > 0 else None,
        thickness[0] if thickness and thickness[0] > 0 else None,
        _scale(scale, "RescaleSlope", 1.0) or None,
        _scale(scale, "RescaleIntercept", 0.0),
        tuple(text(groups[group], keyword) for _, group, keyword in KINDS),
    )


def _scale(data: Dataset, keyword: str, default: float) -> float | None:
    """A stated number, the default where none is stated, None where what is stated is no number."""
    if keyword not in data or data.get_item(keyword).value in (None, b"", ""):
        return default
    found = numbers(data, keyword, 1)
    return found[0] if found else None
