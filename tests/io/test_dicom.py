"""Voxels and grids of DICOM series, against their definition and against SimpleITK; and that no message names anybody."""

from __future__ import annotations

import itertools
import logging
import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gdcm
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from dicom_phantoms import ENCODERS, INTERCEPT, SIZE, SPACING, affine, ct, enhanced, only, slice_of, smooth, stored, write
from pydicom import uid
from pydicom.dataset import Dataset

from medseg.core.errors import UnreadableError
from medseg.core.resample import resample
from medseg.io import dicom
from medseg.io.formats import read_grid, read_labels
from medseg.io.series import Series, find_series, is_dicom

UNCOMPRESSED = (
    uid.ImplicitVRLittleEndian,
    uid.ExplicitVRLittleEndian,
    uid.ExplicitVRBigEndian,
    uid.DeflatedExplicitVRLittleEndian,
)
MOST_OFF = {uid.JPEGBaseline8Bit: 3, uid.JPEGExtended12Bit: 3, uid.JPEGLSNearLossless: 2, uid.JPEG2000: 40}
GDCM_SYNTAXES = {
    uid.RLELossless: gdcm.TransferSyntax.RLELossless,
    uid.JPEGLossless: gdcm.TransferSyntax.JPEGLosslessProcess14,
    uid.JPEGLosslessSV1: gdcm.TransferSyntax.JPEGLosslessProcess14_1,
    uid.JPEGLSLossless: gdcm.TransferSyntax.JPEGLSLossless,
    uid.JPEG2000Lossless: gdcm.TransferSyntax.JPEG2000Lossless,
}


def itk(series: Series) -> tuple[np.ndarray, np.ndarray]:
    """(X, Y, Z[, C]) voxels and the RAS affine as SimpleITK sees them."""
    if len(series.files) == 1:
        image = sitk.ReadImage(str(series.files[0]))
    else:
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames([str(path) for path in series.files])
        image = reader.Execute()
    corner = np.array(image.TransformIndexToPhysicalPoint((0, 0, 0)))
    matrix = np.eye(4)
    for axis, index in enumerate(((1, 0, 0), (0, 1, 0), (0, 0, 1))):
        matrix[:3, axis] = np.array(image.TransformIndexToPhysicalPoint(index)) - corner
    matrix[:3, 3] = corner
    voxels = sitk.GetArrayFromImage(image)
    return voxels.transpose(2, 1, 0, *range(3, voxels.ndim)), np.diag([-1.0, -1, 1, 1]) @ matrix


def one(path: Path, pixels: np.ndarray, **values: Any) -> Series:
    """A series of one file."""
    write(path / "a", slice_of(pixels, 0, **values))
    return only(path)


@pytest.mark.parametrize("syntax", [*UNCOMPRESSED, uid.RLELossless, *ENCODERS])
def test_every_transfer_syntax_gives_the_same_voxels(tmp_path: Path, syntax: str) -> None:
    voxels = smooth() // 16 if syntax == uid.JPEGBaseline8Bit else smooth()
    voxels = voxels.astype(np.uint8) if syntax == uid.JPEGBaseline8Bit else voxels
    ct(tmp_path, voxels, syntax)
    series = only(tmp_path)
    array = dicom.read(series).array
    assert array.dtype == np.int16 and array.shape == (1, *voxels.shape)
    if syntax != uid.HTJ2KLossless:  # GDCM, of which SimpleITK's reader is made, does not know it
        assert np.abs(array[0] - itk(series)[0].astype(int)).max() <= 1
    assert np.abs(array[0] - (voxels.astype(int) + INTERCEPT)).max() <= MOST_OFF.get(syntax, 0)


@pytest.mark.parametrize("syntax", GDCM_SYNTAXES)
@pytest.mark.parametrize("kind", ["grey", "signed", "colour"])
def test_what_gdcm_compresses(tmp_path: Path, syntax: str, kind: str) -> None:
    rng = np.random.default_rng(0)
    pixels = {
        "grey": rng.integers(0, 4096, (20, 16)).astype(np.uint16),
        "signed": rng.integers(-2048, 2048, (20, 16)).astype(np.int16),
        "colour": rng.integers(0, 256, (20, 16, 3)).astype(np.uint8),
    }[kind]
    bits = 8 * pixels.dtype.itemsize
    values: dict[str, Any] = {"BitsStored": bits, "HighBit": bits - 1}
    if kind == "colour":
        values |= {"SOPClassUID": uid.UltrasoundImageStorage, "Modality": "US", "RescaleSlope": None, "RescaleIntercept": None}
    write(tmp_path / "plain", slice_of(pixels, 0, **values))
    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(tmp_path / "plain"))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(GDCM_SYNTAXES[syntax]))
    change.SetInput(reader.GetImage())
    if not change.Change():
        pytest.skip("GDCM does not compress colours so")
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    writer.SetFileName(str(tmp_path / "compressed"))
    assert writer.Write()
    plain, compressed = (dicom.read(find_series([tmp_path / name])[0]).array for name in ("plain", "compressed"))
    np.testing.assert_array_equal(compressed, plain)
    expected = pixels.transpose(2, 1, 0) if kind == "colour" else (pixels.astype(int).T + INTERCEPT)[None]
    np.testing.assert_array_equal(plain[..., 0], expected)


def test_colours_that_jpeg_2000_turned_into_others(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 16, 3)).astype(np.uint8)
    data = slice_of(pixels, 0, PhotometricInterpretation="YBR_RCT")
    write(tmp_path / "a", data, uid.JPEG2000Lossless, [pixels])
    np.testing.assert_array_equal(dicom.read(only(tmp_path)).array[..., 0], pixels.transpose(2, 1, 0))


def test_colours_of_baseline_jpeg(tmp_path: Path) -> None:
    pixels = (smooth((16, 20, 3)) // 16).astype(np.uint8)
    data = slice_of(pixels, 0, PhotometricInterpretation="YBR_FULL_422")
    write(tmp_path / "a", data, uid.JPEGBaseline8Bit, [pixels])
    array = dicom.read(only(tmp_path)).array[..., 0]
    assert np.abs(array.astype(int) - pixels.transpose(2, 1, 0)).max() < 12


def test_a_mix_of_syntaxes(tmp_path: Path) -> None:
    paths = ct(tmp_path)
    for k, syntax in enumerate([uid.JPEG2000Lossless, uid.RLELossless, uid.DeflatedExplicitVRLittleEndian]):
        pixels = np.ascontiguousarray(stored()[:, :, k].T)
        write(paths[k], slice_of(pixels, k), syntax, [pixels])
    np.testing.assert_array_equal(dicom.read(only(tmp_path)).array[0] - INTERCEPT, stored())


def test_grid_and_voxels_as_simpleitk_has_them(tmp_path: Path) -> None:
    ct(tmp_path)
    series = only(tmp_path)
    picture, (voxels, matrix) = dicom.read(series), itk(series)
    np.testing.assert_array_equal(picture.array[0], voxels)
    np.testing.assert_allclose(picture.grid.affine, affine(), atol=1e-8)
    np.testing.assert_allclose(picture.grid.affine, matrix, atol=1e-8)
    assert dicom.read_grid(series).affine.tobytes() == picture.grid.affine.tobytes()


TURNS = [
    np.array(signs) * np.eye(3)[:, list(axes)]
    for axes in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]


def test_all_24_ways_to_lie_in_a_scanner(tmp_path: Path) -> None:
    proper = [turn for turn in TURNS if np.linalg.det(turn) > 0]
    assert len(proper) == 24
    for i, turn in enumerate(proper):
        ct(tmp_path / str(i), turn=turn)
        series = only(tmp_path / str(i))
        voxels, matrix = itk(series)
        picture = dicom.read(series)
        np.testing.assert_allclose(picture.grid.affine, matrix, atol=1e-8)
        np.testing.assert_allclose(picture.grid.affine[:3, :3], np.diag([-1, -1, 1]) @ turn * SPACING, atol=1e-8)
        np.testing.assert_array_equal(picture.array[0], voxels)


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.JPEG2000Lossless, uid.RLELossless])
def test_enhanced_multi_frame(tmp_path: Path, syntax: str) -> None:
    enhanced(tmp_path / "a", syntax=syntax)
    series = only(tmp_path)
    picture = dicom.read(series)
    assert len(series.files) == 1 and picture.array.dtype == np.int16
    np.testing.assert_array_equal(picture.array[0] - INTERCEPT, stored())
    np.testing.assert_allclose(picture.grid.affine, affine(), atol=1e-8)


def test_slopes_that_differ_between_slices(tmp_path: Path) -> None:
    ct(tmp_path, Modality="PT", RescaleSlope=lambda k: 0.5 + k / 10, RescaleIntercept=-3)
    array = dicom.read(only(tmp_path)).array[0]
    assert array.dtype == np.float32
    np.testing.assert_allclose(array, stored() * (0.5 + np.arange(SIZE[2]) / 10) - 3, rtol=1e-6)
    np.testing.assert_allclose(array, itk(only(tmp_path))[0], rtol=1e-6)


@pytest.mark.parametrize(
    ("bits", "dtype", "slope", "intercept", "expected"),
    [
        (12, np.uint16, 1, -1024, np.int16),
        (12, np.uint16, 1, 0, np.uint16),
        (16, np.uint16, 1, -1024, np.float32),
        (16, np.int16, 1, 0, np.int16),
        (12, np.uint16, 2, 0, np.uint16),
        (12, np.uint16, 0.5, 0, np.float32),
        (12, np.uint16, 2.0**70, 0, np.float32),
        (8, np.uint8, 1, 0, np.uint8),
        (32, np.uint32, 1, 0, np.uint32),
    ],
)
def test_the_type_holds_every_value(tmp_path: Path, bits: int, dtype: Any, slope: float, intercept: int, expected: Any) -> None:
    info = np.iinfo(dtype)
    pixels = np.array([[0, 1], [min(info.max, 2**bits - 1), info.min]], dtype)
    values = {"BitsStored": bits, "HighBit": bits - 1, "RescaleSlope": slope, "RescaleIntercept": intercept}
    array = dicom.read(one(tmp_path, pixels, **values)).array
    assert array.dtype == expected
    np.testing.assert_array_equal(array[0, :, :, 0], pixels.T.astype(float) * slope + intercept)


def test_bits_beyond_those_stored_are_no_values(tmp_path: Path) -> None:
    pixels = np.array([[0x0123, 0xF123]], np.uint16)  # overlays once stood in the upper bits
    series = one(tmp_path, pixels)
    np.testing.assert_array_equal(dicom.read(series).array.ravel(), [0x123 + INTERCEPT] * 2)
    np.testing.assert_array_equal(itk(series)[0].ravel(), [0x123 + INTERCEPT] * 2)


def test_monochrome1_is_turned_over_for_radiographs_only(tmp_path: Path) -> None:
    pixels = np.array([[0, 100, 4095]], np.uint16)
    values = {"PhotometricInterpretation": "MONOCHROME1", "RescaleIntercept": 0}
    assert dicom.read(one(tmp_path, pixels, **values)).array.ravel().tolist() == [0, 100, 4095]
    values |= {"Modality": "DX", "SOPClassUID": uid.DigitalXRayImageStorageForPresentation}
    series = one(tmp_path, pixels, **values)
    assert dicom.read(series).array.ravel().tolist() == [4095, 3995, 0]
    assert dicom.read(series, as_labels=True).array.ravel().tolist() == [0, 100, 4095]


def test_colour_palette_and_labels(tmp_path: Path) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (4, 5, 3)).astype(np.uint8)
    us = {"SOPClassUID": uid.UltrasoundImageStorage, "Modality": "US", "PixelSpacing": None, "ImagePositionPatient": None}
    picture = dicom.read(one(tmp_path, rgb, **us))
    np.testing.assert_array_equal(picture.array[..., 0], rgb.transpose(2, 1, 0))
    assert picture.array.dtype == np.uint8 and picture.grid.unit == "px"
    table = {
        f"{colour}PaletteColorLookupTable{part}": value
        for colour, values in (("Red", [0, 65535, 0]), ("Green", [0, 0, 32768]), ("Blue", [0, 0, 65535]))
        for part, value in (("Descriptor", [3, 0, 16]), ("Data", np.array(values, "<u2").tobytes()))
    }
    series = one(tmp_path, np.array([[0, 1, 2]], np.uint8), PhotometricInterpretation="PALETTE COLOR", **us, **table)
    assert dicom.read(series).array[:, :, 0, 0].T.tolist() == [[0, 0, 0], [255, 0, 0], [0, 128, 255]]
    assert dicom.read(series, as_labels=True).array.ravel().tolist() == [0, 1, 2]


def test_single_pictures(tmp_path: Path) -> None:
    pixels = np.zeros((4, 5), np.uint16)
    slice_grid = dicom.read_grid(one(tmp_path, pixels, SliceThickness=5))
    np.testing.assert_allclose(slice_grid.spacing, (*SPACING[:2], 5))
    np.testing.assert_allclose(slice_grid.affine[:, 3], affine()[:, 3])
    assert "no thickness" in dicom.warnings(one(tmp_path, pixels, SliceThickness=None))[0]
    flat = {"SOPClassUID": uid.ComputedRadiographyImageStorage, "Modality": "CR", "PixelSpacing": None}
    flat |= {"ImagePositionPatient": None, "ImageOrientationPatient": None}
    radiograph = one(tmp_path, pixels, **flat, ImagerPixelSpacing=[0.2, 0.1])
    np.testing.assert_allclose(dicom.read_grid(radiograph).affine, np.diag([0.1, 0.2, 1, 1]))
    assert "on the detector" in dicom.warnings(radiograph)[0]
    unsized = one(tmp_path, pixels, **flat)
    assert dicom.read_grid(unsized).unit == "px" and "counted in pixels" in dicom.warnings(unsized)[0]
    # The spacing on a detector says nothing about a slice.
    assert dicom.read_grid(one(tmp_path, pixels, PixelSpacing=None, ImagerPixelSpacing=[0.2, 0.1])).unit == "px"


@pytest.mark.parametrize("make", [ct, lambda folder, voxels: enhanced(folder / "a", voxels)])
def test_memory_is_one_volume_and_some_slices(tmp_path: Path, make: Callable[..., Any]) -> None:
    voxels = np.ones((256, 256, 60), np.uint16)
    make(tmp_path, voxels)
    series = only(tmp_path)
    dicom.read(series)  # what is imported once does not count
    tracemalloc.start()
    array = dicom.read(series).array
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert array.nbytes == voxels.nbytes and peak < array.nbytes + 4 * 6 * 8 * 256 * 256


FUZZED = {
    "plain": (ct, uid.ExplicitVRLittleEndian),
    "implicit": (ct, uid.ImplicitVRLittleEndian),
    "deflated": (ct, uid.DeflatedExplicitVRLittleEndian),
    "rle": (ct, uid.RLELossless),
    "jpeg lossless": (ct, uid.JPEGLosslessSV1),
    "jpeg 12 bit": (ct, uid.JPEGExtended12Bit),
    "jpeg-ls": (ct, uid.JPEGLSLossless),
    "jpeg 2000": (ct, uid.JPEG2000Lossless),
    "enhanced": (lambda folder, voxels, syntax: [enhanced(folder / "a", voxels, syntax)], uid.ExplicitVRLittleEndian),
    "enhanced jpeg 2000": (lambda folder, voxels, syntax: [enhanced(folder / "a", voxels, syntax)], uid.JPEG2000Lossless),
}
ROUNDS = 60


@pytest.mark.parametrize("subject", FUZZED)
def test_damaged_bytes(tmp_path: Path, subject: str, capfd: pytest.CaptureFixture[str]) -> None:
    make, syntax = FUZZED[subject]
    path = make(tmp_path, smooth((24, 20, 3)), syntax)[0]
    intact = only(tmp_path)
    right = dicom.read(intact).array
    whole, dice = path.read_bytes(), random.Random(subject)
    refused = 0
    for turn in range(ROUNDS):
        cut = turn % 3 == 0
        damaged = bytearray(whole[: dice.randrange(len(whole))] if cut else whole)
        for _ in range(0 if cut else dice.randrange(1, 4)):
            damaged[dice.randrange(len(damaged))] = dice.randrange(256)
        path.write_bytes(damaged)
        for series in find_series(p for p in sorted(tmp_path.iterdir()) if is_dicom(p)):
            try:
                picture = dicom.read(series)
                dicom.warnings(series)
                assert not cut or len(series.files) < len(intact.files) or np.array_equal(picture.array, right)
                assert picture.array.shape[1:] == picture.grid.shape
            except UnreadableError as error:
                refused += 1
                assert "\n" not in str(error) and str(tmp_path) not in str(error)
    assert refused > ROUNDS / 4 and "".join(capfd.readouterr()) == ""


def test_a_file_that_goes_away_or_changes(tmp_path: Path) -> None:
    paths = ct(tmp_path)
    series = only(tmp_path)
    paths[1].write_bytes(paths[1].read_bytes()[:-3])
    with pytest.raises(UnreadableError, match="1 of its 5 files cannot be used: one is truncated"):
        dicom.read(series)
    paths[1].unlink()
    with pytest.raises(UnreadableError, match="1 of its 5 files"):
        dicom.read_grid(series)


def test_damage_within_compressed_pixels_says_which_slice(tmp_path: Path) -> None:
    paths = ct(tmp_path, smooth(), uid.JPEG2000Lossless, turn=np.eye(3))
    whole = paths[1].read_bytes()
    paths[1].write_bytes(whole.replace(b"\xff\x90", b"\x00\x00"))
    with pytest.raises(UnreadableError, match=r"its slice at -98\.5 mm is damaged; replace it"):
        dicom.read(only(tmp_path))


PLANTED = "ZZYXNAME"
TEXTS = (
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "AccessionNumber",
    "InstitutionName",
    "StudyDescription",
    "SeriesDescription",
)
CODES = ("Modality", "ImageType", "SpecificCharacterSet", "PhotometricInterpretation")


def planted(folder: Path, k: int, broken: Dataset) -> None:
    """A slice with the name in every kind of element, also where pydicom complains that it does not belong."""
    data = slice_of(stored()[:, :, k].T.copy(), k)
    for keyword in (*TEXTS, *CODES):
        setattr(data, keyword, PLANTED)
    data.update(broken)
    write(folder / f"{PLANTED}{k}.dcm", data)


RAW = {
    "dates": {"PatientBirthDate": ("DA", PLANTED), "StudyDate": ("DA", PLANTED)},
    "numbers": {"RescaleSlope": ("DS", PLANTED)},
    "uids": {"SeriesInstanceUID": ("UI", PLANTED), "SOPClassUID": ("UI", PLANTED), "StudyInstanceUID": ("UI", PLANTED)},
    "positions": {"ImagePositionPatient": ("DS", PLANTED), "SeriesNumber": ("IS", PLANTED)},
    "rows": {"Rows": ("DS", PLANTED)},
    "spacing": {"PixelSpacing": ("DS", f"{PLANTED}\\{PLANTED}")},
    "frames": {"NumberOfFrames": ("IS", PLANTED)},
    "long": {"PatientID": ("LO", PLANTED * 20), "Modality": ("CS", PLANTED.lower() * 9)},
}


@pytest.mark.parametrize("case", RAW)
@pytest.mark.parametrize("truncated", [False, True])
def test_nobody_is_named(tmp_path: Path, case: str, truncated: bool, capfd: Any, caplog: Any, recwarn: Any) -> None:
    caplog.set_level(logging.DEBUG)
    folder = tmp_path / PLANTED
    folder.mkdir()
    for k in range(3):
        planted(folder, k, Dataset())
        path = folder / f"{PLANTED}{k}.dcm"
        path.write_bytes(with_raw(path.read_bytes(), RAW[case]))
    if truncated:
        path.write_bytes(path.read_bytes()[:-5])
    recwarn.clear()
    caplog.clear()
    capfd.readouterr()
    said = []
    for series in find_series(p for p in sorted(folder.iterdir()) if is_dicom(p)):
        said += [repr(series), series.reason, *series.notes, series.modality, str(series.number)]
        for function in (dicom.read, dicom.read_grid, dicom.warnings):
            try:
                said.append(repr(function(series)))
            except UnreadableError as error:
                assert error.__cause__ is None and (error.__suppress_context__ or error.__context__ is None)
                said.append(str(error))
    said += [*capfd.readouterr(), caplog.text, *(str(w.message) for w in recwarn)]
    assert said and PLANTED.lower() not in "\n".join(said).lower() and str(tmp_path) not in "\n".join(said)


def with_raw(content: bytes, values: dict[str, tuple[str, str]]) -> bytes:
    """The file with elements that pydicom would refuse to write."""
    from pydicom.datadict import tag_for_keyword

    for keyword, (vr, value) in values.items():
        tag = tag_for_keyword(keyword)
        encoded = (value + " " * (len(value) % 2)).encode()
        element = tag.to_bytes(4, "little")[2:] + tag.to_bytes(4, "little")[:2] + vr.encode() + len(encoded).to_bytes(2, "little")
        content = replaced(content, element[:4], element + encoded)
    return content


def replaced(content: bytes, tag: bytes, element: bytes) -> bytes:
    """An explicit little-endian file with `element`, of a short length field, in place of its own, or added."""
    place = 132 + 12 + int.from_bytes(content[140:144], "little")
    order = lambda t: (int.from_bytes(t[:2], "little"), int.from_bytes(t[2:4], "little"))  # noqa: E731
    while order(content[place : place + 4]) < order(tag):
        long = content[place + 4 : place + 6] in (b"OB", b"OW", b"SQ", b"UN", b"UT", b"UC")
        start = place + (12 if long else 8)
        place = start + int.from_bytes(content[place + (8 if long else 6) : start], "little")
    end = place
    if content[place : place + 4] == tag:
        end = place + 8 + int.from_bytes(content[place + 6 : place + 8], "little")
    return content[:place] + element + content[end:]


def test_real_ct_against_simpleitk_and_its_labels(real_data: Path) -> None:
    folder = real_data / "totalseg_ct_mr_small/dicom/example_ct_dicom"
    series = only(folder)
    picture, (voxels, matrix) = dicom.read(series), itk(series)
    np.testing.assert_array_equal(picture.array[0], voxels)
    np.testing.assert_allclose(picture.grid.affine, matrix, atol=1e-9)
    path = real_data / "totalseg_ct_mr_small/labels/example_ct_dicom_seg.nii.gz"
    labels = resample(read_labels(path).array, read_grid(path), picture.grid, order=0)
    back = resample(labels, picture.grid, read_grid(path), order=0)
    np.testing.assert_array_equal(back, read_labels(path).array)  # the same voxels, in another order


def test_real_series_against_simpleitk(real_data: Path) -> None:
    compared = 0
    for series in find_series(p for p in sorted((real_data / "dicom").rglob("*")) if is_dicom(p)):
        if not series.reason:
            picture, (voxels, matrix) = dicom.read(series), itk(series)
            np.testing.assert_array_equal(picture.array[0], voxels)
            axes = 3 if picture.grid.shape[2] > 1 else 2  # a single slice is as thick as it states, 1 mm to SimpleITK
            np.testing.assert_allclose(picture.grid.affine[:, :axes], matrix[:, :axes], atol=1e-9)
            compared += 1
    assert compared == 5
