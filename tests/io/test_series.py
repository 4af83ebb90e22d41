"""Which files are one scan, in which order, and the reason where they are none."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from dicom_phantoms import SIZE, SPACING, ct, enhanced, only, slice_of, stored, write
from io_phantoms import rotation
from pydicom import uid

from medseg.core.errors import UnreadableError
from medseg.io import dicom
from medseg.io.series import NO_SCANS, find_series, is_dicom


def files_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def moved(by: Callable[[int], np.ndarray]) -> Callable[[int], list[str]]:
    """Positions of upright axial slices, as a function of the slice."""
    return lambda k: [f"{v:.6f}" for v in by(k)]


def upright(gaps: list[float]) -> dict[str, Any]:
    z = np.concatenate([[0], np.cumsum(gaps)])
    return {"turn": np.eye(3), "ImagePositionPatient": moved(lambda k: np.array([0, 0, z[k]]))}


def test_files_are_in_the_order_of_their_positions(tmp_path: Path) -> None:
    paths = ct(tmp_path)
    series = only(tmp_path)
    assert series.files == tuple(paths) != tuple(sorted(paths)) and not series.reason
    assert (series.number, series.modality, series.uid) == (4, "CT", "1.2.3.2")
    assert hash(series) == hash(pickle.loads(pickle.dumps(series)))


def test_a_heap_of_patients_studies_and_series(tmp_path: Path) -> None:
    for place, patient, series in [("b", "P2", "1.9"), ("a/x", "P1", "1.8"), ("a/y", "P1", "1.7")]:
        ct(tmp_path / place, PatientID=patient, IssuerOfPatientID="H", SeriesInstanceUID=series)
    heap = tmp_path / "heap"
    heap.mkdir()
    for i, path in enumerate(files_below(tmp_path)):
        shutil.move(path, heap / f"{i * 7 % 15:02}")
    found = find_series(files_below(heap))
    assert sorted(series.uid for series in found) == ["1.7", "1.8", "1.9"]
    assert all(len(series.files) == SIZE[2] and not series.reason for series in found)
    assert len({series.patient for series in found}) == 2 and "P1" not in repr(found)
    firsts = [min(series.files) for series in found]
    assert firsts == sorted(firsts)


def test_series_that_state_no_uid(tmp_path: Path) -> None:
    blank = {"SeriesInstanceUID": "", "StudyInstanceUID": "", "PatientID": "", "SeriesNumber": None}
    for name in ("a", "b"):
        ct(tmp_path / name, **blank, FrameOfReferenceUID=f"1.2.{ord(name)}")
    one, two = find_series(files_below(tmp_path))
    assert one.uid != two.uid and one.uid.startswith("2.25.") and one.patient != two.patient and one.number is None
    shutil.move(tmp_path / "a", tmp_path / "moved")
    assert one.uid in {series.uid for series in find_series(files_below(tmp_path))}


@pytest.mark.parametrize("kind", NO_SCANS)
def test_what_is_no_scan_is_skipped(tmp_path: Path, kind: str) -> None:
    ct(tmp_path, SOPClassUID=kind)
    series = only(tmp_path)
    assert series.skipped and series.reason == f"{NO_SCANS[kind]}, no scan"
    with pytest.raises(UnreadableError, match="no scan"):
        dicom.read(series)


def test_no_scans_without_pixels_or_class(tmp_path: Path) -> None:
    data = slice_of(np.zeros((2, 2), np.uint16), 0, SOPClassUID=None, Modality="RTSTRUCT", Rows=None, Columns=None)
    del data.PixelData
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    data.save_as(tmp_path / "a", implicit_vr=False, little_endian=True)
    assert only(tmp_path).skipped and "contours" in only(tmp_path).reason


def test_scans_that_only_look_like_none(tmp_path: Path) -> None:
    ct(tmp_path / "mpr", ImageType=["DERIVED", "SECONDARY", "MPR"])
    assert not only(tmp_path / "mpr").reason
    ct(tmp_path / "scout", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    assert only(tmp_path / "scout").skipped and only(tmp_path / "scout").reason == "a localizer, no scan"


def test_a_scout_in_the_series_is_left_out_and_said(tmp_path: Path) -> None:
    ct(tmp_path / "a")
    pixels = np.zeros((9, 9), np.uint16)
    write(tmp_path / "scout", slice_of(pixels, 9, np.eye(3), ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]))
    series = only(tmp_path)
    assert not series.reason and len(series.files) == SIZE[2]
    assert dicom.warnings(series) == ["1 of its 6 files left out: a localizer."]


def tilted(k: int) -> np.ndarray:
    return np.array([0, np.tan(np.radians(15)) * 2.0 * k, 2.0 * k])


REASONS: dict[str, tuple[dict[str, Any], str]] = {
    "one missing": (upright([2, 2, 4, 2]), r"1 of its slices is missing \(1 between 4 and 8 mm\); bring"),
    "two places": (upright([2, 6, 2, 4]), r"3 of its slices are missing \(2 between 2 and 8 mm, 1 between 10 and 14 mm\)"),
    "uneven": (upright([2, 2, 2.7, 2]), r"unevenly spaced: 2 to 2.7 mm apart, most by 2 mm \(see 4 to 6.7 mm\)"),
    "repeated": (upright([2, 0, 2, 2]), r"5 slices at 4 places; give"),
    "echoes": (upright([2, 0, 2, 2]) | {"EchoTime": lambda k: k % 2}, "differ in their echo times"),
    "phases": (
        {"turn": np.eye(3), "ImagePositionPatient": ["0", "0", "0"], "TemporalPositionIdentifier": lambda k: k},
        "at 1 places.*time",
    ),
    "b-values": (upright([0, 2, 2, 2]) | {"DiffusionBValue": lambda k: float(k)}, "b-values"),
    "tilt": ({"turn": np.eye(3), "ImagePositionPatient": moved(tilted)}, r"sheared by 15.0 degrees \(gantry tilt\)"),
    "aside": ({"turn": np.eye(3), "ImagePositionPatient": moved(lambda k: np.array([k % 2, 0, 2 * k]))}, "1 mm aside"),
    "turned": (
        {"ImageOrientationPatient": lambda k: ["1", "0", "0", "0", *(("1", "0") if k else ("0", "1"))]},
        "not parallel: 4 of 5.*90.0",
    ),
    "skewed": ({"ImageOrientationPatient": ["1", "0", "0", "0.1", "0.995", "0"]}, "not perpendicular"),
    "pixel spacing": ({"PixelSpacing": lambda k: [1, 1 + k / 10]}, r"pixel spacing \(1 to 1.4 mm\)"),
    "no spacing": ({"PixelSpacing": None}, "no distance of their pixels"),
    "zero spacing": ({"PixelSpacing": [0, 1]}, "no distance of their pixels"),
    "no position": (
        {"ImagePositionPatient": lambda k: None if k == 2 else ["0", "0", str(k)]},
        "1 of its 5 slices state no position",
    ),
    "no positions": ({"ImagePositionPatient": None}, "5 pictures state no position"),
    "no slope": ({"RescaleSlope": 0}, "5 of its 5 slices state no valid rescaling"),
    "nonsense": (upright([2, 2, 2, 2]) | {"PixelSpacing": ["1e300", "1e300"]}, "a geometry that is nonsense"),
    "absurd": ({"ImagePositionPatient": lambda k: ["0", "0", f"{k}e307"]}, "The series cannot be used: "),
    "patients": ({"PatientID": str}, "5 patients or studies under one series"),
    "table": (
        {"ModalityLUTSequence": [pydicom.Dataset()]},
        "5 of its 5 files cannot be used: one maps its values through a table",
    ),
}


@pytest.mark.parametrize("name", REASONS)
def test_what_is_no_volume_has_a_reason(tmp_path: Path, name: str) -> None:
    values, reason = REASONS[name]
    ct(tmp_path, **values)
    series = only(tmp_path)
    assert not series.skipped and series.files == tuple(files_below(tmp_path))
    with pytest.raises(UnreadableError, match=reason) as raised:
        dicom.read(series)
    assert series.reason in str(raised.value) and str(tmp_path) not in str(raised.value)


def test_slices_of_other_sizes(tmp_path: Path) -> None:
    ct(tmp_path)
    write(tmp_path / "other", slice_of(np.zeros((9, 9), np.uint16), 5))
    assert "5 of 7 x 6, 1 of 9 x 9 pixels" in only(tmp_path).reason
    write(tmp_path / "other", slice_of(np.zeros((6, 7, 3), np.uint8), 5))
    assert "some of its pictures are grey and others colour" in only(tmp_path).reason


def test_positions_rounded_by_the_scanner_are_even(tmp_path: Path) -> None:
    ct(tmp_path, turn=np.eye(3), ImagePositionPatient=lambda k: ["0", "0", f"{0.625 * k:.1f}"])
    series = only(tmp_path)
    assert not series.reason
    np.testing.assert_allclose(dicom.read_grid(series).spacing[2], 2.5 / 4)


def test_every_second_slice_of_thin_ones_is_never_taken_for_rounding(tmp_path: Path) -> None:
    ct(tmp_path, **upright([0.05, 0.05, 0.1, 0.05]))
    assert "1 of its slices is missing" in only(tmp_path).reason


def test_copies_are_left_out_and_other_twins_are_not(tmp_path: Path) -> None:
    paths = ct(tmp_path)
    for i in (0, 3):
        shutil.copy(paths[i], tmp_path / f"copy{i}")
    series = only(tmp_path)
    assert series.files == tuple(paths) and dicom.warnings(series) == ["2 of its 7 files left out: copies of others."]
    write(tmp_path / "copy0", slice_of(np.ones(SIZE[1::-1], np.uint16), 0))
    assert "6 slices at 5 places" in only(tmp_path).reason


def test_broken_files_in_a_series(tmp_path: Path) -> None:
    paths = ct(tmp_path)
    whole = paths[2].read_bytes()
    paths[2].write_bytes(whole[:-1])
    assert only(tmp_path).reason == "1 of its 5 files cannot be used: one is truncated; replace it with an intact copy"
    paths[2].write_bytes(whole[: whole.index(b"\x28\x00\x10\x00")])
    assert "one holds no pixels, or is cut off before them" in only(tmp_path).reason
    paths[2].write_bytes(whole.replace(uid.ExplicitVRLittleEndian.encode() + b"\0", b"1.2.840.10008.1.2.9\0"))
    assert "compressed in a way that cannot be read here" in only(tmp_path).reason


def test_enhanced_objects_that_are_no_single_volume(tmp_path: Path) -> None:
    def two_times(k: int, item: pydicom.Dataset) -> None:
        item.FrameContentSequence[0].TemporalPositionIndex = k % 2
        item.PlanePositionSequence[0].ImagePositionPatient = ["0", "0", str(k // 2)]

    enhanced(tmp_path / "a", frame=two_times)
    assert "5 slices at 3 places, which differ in their time points" in only(tmp_path).reason
    enhanced(tmp_path / "b")
    assert "2 files with several pictures each" in only(tmp_path).reason
    (tmp_path / "a").unlink()
    (tmp_path / "b").unlink()
    cine = slice_of(np.zeros((4 * 5, 5), np.uint16), 0, Rows=4, NumberOfFrames=5, ImagePositionPatient=None)
    write(tmp_path / "c", cine)
    assert only(tmp_path).reason.startswith("it holds 5 pictures in one file and states the place of none of them")


def test_dicom_is_known_by_its_content(tmp_path: Path) -> None:
    path = ct(tmp_path)[0]
    assert is_dicom(path)
    for syntax in (uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian):
        data = slice_of(stored()[:, :, 0].T, 0)
        data.save_as(tmp_path / "bare", implicit_vr=syntax.is_implicit_VR, little_endian=True)
        assert (tmp_path / "bare").read_bytes()[128:132] != b"DICM" and is_dicom(tmp_path / "bare")
        (series,) = find_series([tmp_path / "bare"])
        assert not series.reason and dicom.read(series).array.shape == (1, *SIZE[:2], 1)
    for content in (
        b"",
        b"DICM",
        b"\x08\0",
        bytes(4096),
        b"name,age\n" * 99,
        b"\x89PNG\r\n\x1a\n" + bytes(99),
        b"\x1f\x8b\x08" + bytes(99),
    ):
        (tmp_path / "other.dcm").write_bytes(content)
        assert not is_dicom(tmp_path / "other.dcm")
    assert not is_dicom(tmp_path / "absent") and not is_dicom(tmp_path)


def test_oblique_stacks_keep_their_step(tmp_path: Path) -> None:
    ct(tmp_path, turn=rotation((3, 80, -100)))
    np.testing.assert_allclose(dicom.read_grid(only(tmp_path)).spacing, SPACING, atol=1e-8)


def test_real_folders(real_data: Path) -> None:
    found = find_series(path for path in files_below(real_data / "dicom") if is_dicom(path))
    assert sum(series.skipped for series in found) == 5 and {s.modality for s in found if s.skipped} == {"SEG", "RTSTRUCT"}
    assert sorted(len(s.files) for s in found if not s.skipped) == [1, 1, 2, 3, 3] and not any(
        s.reason for s in found if not s.skipped
    )
