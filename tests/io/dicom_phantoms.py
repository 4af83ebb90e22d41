"""Small DICOM series with known voxels, written by pydicom and compressed by real encoders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
from io_phantoms import rotation
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels.encoders import RLELosslessEncoder
from pydicom.sequence import Sequence as Items

from medseg.io.series import Series, find_series, is_dicom

SIZE = (7, 6, 5)  # columns, rows, slices
SPACING = (0.7, 0.4, 2.5)  # of columns, of rows, of slices
ORIGIN = (-12.25, 30.5, -101.0)
INTERCEPT = -1024

# The frame (rows, columns[, 3]) as one compressed frame.
ENCODERS: dict[str, Callable[[np.ndarray], bytes]] = {
    uid.JPEGBaseline8Bit: lambda a: imagecodecs.jpeg8_encode(a, level=98),
    uid.JPEGExtended12Bit: lambda a: imagecodecs.jpeg8_encode(a, level=98, bitspersample=12),
    uid.JPEGLossless: lambda a: imagecodecs.jpeg8_encode(a, lossless=True, predictor=4, bitspersample=16),
    uid.JPEGLosslessSV1: lambda a: imagecodecs.jpeg8_encode(a, lossless=True, predictor=1, bitspersample=16),
    uid.JPEGLSLossless: lambda a: imagecodecs.jpegls_encode(a),
    uid.JPEGLSNearLossless: lambda a: imagecodecs.jpegls_encode(a, level=2),
    uid.JPEG2000Lossless: lambda a: imagecodecs.jpeg2k_encode(a, codecformat="j2k", reversible=True, level=0),
    uid.JPEG2000: lambda a: imagecodecs.jpeg2k_encode(a, codecformat="j2k", level=90),
    uid.HTJ2KLossless: lambda a: imagecodecs.htj2k_encode(a),
}


def stored(size: Sequence[int] = SIZE) -> np.ndarray:
    """(X, Y, Z) uint16 that all differ, within 12 bits."""
    return (np.arange(np.prod(size), dtype=np.uint16) * 7 % 4096).reshape(size)


def smooth(size: Sequence[int] = (64, 48, 3)) -> np.ndarray:
    """(X, Y, Z) uint16 within 12 bits, without edges: what lossy codecs keep."""
    x, y, z = np.meshgrid(*(np.linspace(0, 1, n) for n in size), indexing="ij")
    return np.round(1500 + 1200 * np.sin(3 * x + z) * np.cos(2 * y)).astype(np.uint16)


def slice_of(pixels: np.ndarray, k: int, turn: np.ndarray | None = None, **values: Any) -> Dataset:
    """The data set of slice `k` of a CT, from (rows, columns[, 3]) pixels; `values` replaces or, where None, removes elements."""
    turn = rotation() if turn is None else turn
    data = Dataset()
    data.SOPClassUID, data.Modality = uid.CTImageStorage, "CT"
    data.PatientName, data.PatientID, data.StudyInstanceUID = "Phantom", "P1", "1.2.3.1"
    data.SeriesInstanceUID, data.SeriesNumber, data.InstanceNumber = "1.2.3.2", 4, k + 1
    data.SOPInstanceUID, data.FrameOfReferenceUID = f"1.2.3.4.{k + 1}", "1.2.3.3"
    data.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    data.ImageOrientationPatient = [f"{v:.10f}" for v in turn[:, :2].T.ravel()]
    data.ImagePositionPatient = [f"{v:.9f}" for v in np.array(ORIGIN) + k * SPACING[2] * turn[:, 2]]
    data.PixelSpacing, data.SliceThickness = [SPACING[1], SPACING[0]], 99
    data.Rows, data.Columns, data.SamplesPerPixel = *pixels.shape[:2], 1 if pixels.ndim == 2 else 3
    data.PhotometricInterpretation = "MONOCHROME2" if pixels.ndim == 2 else "RGB"
    if pixels.ndim == 3:
        data.PlanarConfiguration = 0
    data.BitsAllocated = 8 * pixels.dtype.itemsize
    data.BitsStored = 12 if pixels.dtype == np.uint16 else data.BitsAllocated
    data.HighBit, data.PixelRepresentation = data.BitsStored - 1, int(pixels.dtype.kind == "i")
    data.RescaleSlope, data.RescaleIntercept = 1, INTERCEPT
    for keyword, value in values.items():
        if value is None:
            del data[keyword]
        else:
            setattr(data, keyword, value)
    data.PixelData = pixels.tobytes()
    data["PixelData"].VR = "OW" if pixels.dtype.itemsize > 1 else "OB"
    return data


def write(path: Path, data: Dataset, syntax: str = uid.ExplicitVRLittleEndian, frames: Sequence[np.ndarray] = ()) -> Path:
    """A DICOM file; compressed syntaxes compress `frames`."""
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = uid.UID(syntax)
    data.file_meta.MediaStorageSOPClassUID = data.get("SOPClassUID", uid.CTImageStorage)
    data.file_meta.MediaStorageSOPInstanceUID = data.get("SOPInstanceUID", "1.2.3")
    if syntax == uid.ExplicitVRBigEndian:
        data.PixelData = b"".join(np.ascontiguousarray(f).astype(f.dtype.newbyteorder(">")).tobytes() for f in frames)
    elif uid.UID(syntax).is_encapsulated:
        data.PixelData = encapsulate([_compressed(frame, syntax, data) for frame in frames])
        data["PixelData"].VR, data["PixelData"].is_undefined_length = "OB", True
    path.parent.mkdir(parents=True, exist_ok=True)
    implicit, little = syntax == uid.ImplicitVRLittleEndian, syntax != uid.ExplicitVRBigEndian
    data.save_as(path, enforce_file_format=True, implicit_vr=implicit, little_endian=little)
    return path


def _compressed(frame: np.ndarray, syntax: str, data: Dataset) -> bytes:
    if syntax != uid.RLELossless:
        return ENCODERS[syntax](np.ascontiguousarray(frame))
    return RLELosslessEncoder.encode(
        frame.tobytes(),
        rows=data.Rows,
        columns=data.Columns,
        samples_per_pixel=data.SamplesPerPixel,
        bits_allocated=data.BitsAllocated,
        bits_stored=data.BitsStored,
        pixel_representation=data.PixelRepresentation,
        photometric_interpretation=data.PhotometricInterpretation,
        number_of_frames=1,
        planar_configuration=0,
    )


def ct(folder: Path, voxels: np.ndarray | None = None, syntax: str = uid.ExplicitVRLittleEndian, **values: Any) -> list[Path]:
    """A CT series of (X, Y, Z) voxels in files that are not in the order of the slices; an element given as a function of k
    differs between the slices."""
    voxels = stored() if voxels is None else voxels
    turn = values.pop("turn", None)
    paths = []
    for k in range(voxels.shape[2]):
        pixels = np.ascontiguousarray(voxels[:, :, k].T)
        given = {keyword: value(k) if callable(value) else value for keyword, value in values.items()}
        paths.append(write(folder / f"{k * 3 % voxels.shape[2]}{k}", slice_of(pixels, k, turn, **given), syntax, [pixels]))
    return paths


def enhanced(path: Path, voxels: np.ndarray | None = None, syntax: str = uid.ExplicitVRLittleEndian, **values: Any) -> Path:
    """The same as one enhanced file whose frames are in reverse order; `frame(k, item)` may change the groups of slice k."""
    voxels = stored() if voxels is None else voxels
    change = values.pop("frame", lambda k, item: None)
    frames = [np.ascontiguousarray(voxels[:, :, k].T) for k in reversed(range(voxels.shape[2]))]
    removed = dict.fromkeys(
        ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept")
    )
    data = slice_of(frames[0], 0, **removed, SOPClassUID=uid.EnhancedCTImageStorage, NumberOfFrames=len(frames), **values)
    turn = rotation()
    shared = Dataset()
    shared.PlaneOrientationSequence = Items([_item(ImageOrientationPatient=[f"{v:.10f}" for v in turn[:, :2].T.ravel()])])
    shared.PixelMeasuresSequence = Items([_item(PixelSpacing=[SPACING[1], SPACING[0]], SliceThickness=99)])
    data.SharedFunctionalGroupsSequence = Items([shared])
    items = []
    for k in reversed(range(voxels.shape[2])):
        item = Dataset()
        position = [f"{v:.9f}" for v in np.array(ORIGIN) + k * SPACING[2] * turn[:, 2]]
        item.PlanePositionSequence = Items([_item(ImagePositionPatient=position)])
        item.PixelValueTransformationSequence = Items([_item(RescaleSlope=1, RescaleIntercept=INTERCEPT)])
        item.FrameContentSequence = Items([_item(StackID="1")])
        change(k, item)
        items.append(item)
    data.PerFrameFunctionalGroupsSequence = Items(items)
    data.PixelData = b"".join(frame.tobytes() for frame in frames)
    return write(path, data, syntax, frames)


def only(folder: Path) -> Series:
    """The one series below a folder."""
    (series,) = find_series(path for path in folder.rglob("*") if path.is_file() and is_dicom(path))
    return series


def affine() -> np.ndarray:
    """The RAS affine of `ct` and `enhanced`, from its definition."""
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = rotation() * SPACING, ORIGIN
    return np.diag([-1.0, -1, 1, 1]) @ matrix


def _item(**values: Any) -> Dataset:
    item = Dataset()
    for keyword, value in values.items():
        setattr(item, keyword, value)
    return item
