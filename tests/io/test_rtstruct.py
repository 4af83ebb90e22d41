"""RTSTRUCT rasterised again, by hand in three ways and by rt-utils, and checked by dciodvfy."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pydicom
import pytest
from derived_phantoms import (
    MADE_BY,
    MR,
    PLANTED,
    SCHEME,
    STRANGE,
    TURNS,
    check_standard,
    pieces,
    real_ct,
    real_masks,
    real_series,
    series_of,
    structures_of,
    what_is_said,
)
from dicom_phantoms import enhanced, only
from pydicom import Dataset
from test_outline import READERS, by_xor

from medseg.core.errors import GridMismatchError, LabelError, UnreadableError
from medseg.core.labels import LabelScheme
from medseg.io.dicom import read_grid
from medseg.io.picture import LPS_TO_RAS
from medseg.io.rtstruct import encode_rtstruct
from medseg.io.series import Series


def parsed(data: bytes) -> Dataset:
    return pydicom.dcmread(io.BytesIO(data))


def by_hand(data: bytes, series: Series, reader=by_xor) -> dict[str, np.ndarray]:
    """The mask of each ROI, by its name: contours are put on the grid of the series by their millimetres alone."""
    rtstruct, grid = parsed(data), read_grid(series)
    names = {roi.ROINumber: roi.ROIName for roi in rtstruct.StructureSetROISequence}
    masks = {name: np.zeros(grid.shape, bool) for name in names.values()}
    for roi in rtstruct.ROIContourSequence:
        slices: dict[int, list[np.ndarray]] = {}
        for contour in roi.get("ContourSequence", []):
            assert contour.ContourGeometricType == "CLOSED_PLANAR"
            places = np.array(contour.ContourData, float).reshape(-1, 3) * LPS_TO_RAS
            assert len(places) == contour.NumberOfContourPoints >= 4
            index = np.linalg.solve(grid.affine, np.c_[places, np.ones(len(places))].T)[:3].T
            np.testing.assert_allclose(index[:, 2], np.round(index[0, 2]), atol=1e-3)
            slices.setdefault(round(index[0, 2]), []).append(index[:, :2])
        for z, polygons in slices.items():
            masks[names[roi.ReferencedROINumber]][:, :, z] = reader(polygons, grid.shape[:2])
    return masks


def by_rt_utils(data: bytes, series: Series, folder: Path) -> dict[str, np.ndarray]:
    """The same by rt-utils, which rounds corners to whole voxels and finds slices by their UIDs. Square slices only."""
    rt_utils = pytest.importorskip("rt_utils")
    (folder / "images").mkdir(parents=True)
    for number, path in enumerate(series.files):
        (folder / "images" / f"{number}.dcm").write_bytes(path.read_bytes())
    (folder / "rt.dcm").write_bytes(data)
    read = rt_utils.RTStructBuilder.create_from(str(folder / "images"), str(folder / "rt.dcm"))
    masks = {name: read.get_roi_mask_by_name(name).transpose(1, 0, 2) for name in read.get_roi_names()}
    heights = [np.dot(s.ImagePositionPatient, np.cross(*np.reshape(s.ImageOrientationPatient, (2, 3)))) for s in read.series_data]
    return {name: mask[:, :, np.argsort(heights)] for name, mask in masks.items()}


def assert_same(found: dict[str, np.ndarray], labels: np.ndarray) -> None:
    expected = structures_of(labels)
    assert list(found) == list(expected)
    for name, mask in expected.items():
        np.testing.assert_array_equal(found[name], mask)


@pytest.mark.parametrize("turn", [None, *TURNS])
@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_every_voxel_comes_back(tmp_path: Path, turn: str | None, modality: str) -> None:
    labels = pieces()
    series = series_of(tmp_path / "scan", labels, turn=TURNS.get(turn), **(MR if modality == "MR" else {}))
    data = encode_rtstruct(labels, series, SCHEME, MADE_BY)
    for reader in READERS:
        assert_same(by_hand(data, series, reader), labels)
    (tmp_path / "rt.dcm").write_bytes(data)
    check_standard(tmp_path / "rt.dcm")


@pytest.mark.parametrize("turn", ["axial", "prone"])
def test_rt_utils_sees_the_same_voxels(tmp_path: Path, turn: str) -> None:
    labels = pieces((24, 24, 6))
    series = series_of(tmp_path / "scan", labels, turn=TURNS[turn], PixelSpacing=[0.6, 0.6])  # it mixes up the two spacings
    assert_same(by_rt_utils(encode_rtstruct(labels, series, SCHEME, MADE_BY), series, tmp_path / "back"), labels)


def test_enhanced_source_with_frames_in_another_order(tmp_path: Path) -> None:
    labels = pieces()
    enhanced(tmp_path / "all.dcm", np.zeros(labels.shape, np.uint16))
    series = only(tmp_path)
    data = encode_rtstruct(labels, series, SCHEME, MADE_BY)
    assert_same(by_hand(data, series), labels)
    groups = pydicom.dcmread(series.files[0]).PerFrameFunctionalGroupsSequence
    for contour in parsed(data).ROIContourSequence[0].ContourSequence:
        place = groups[contour.ContourImageSequence[0].ReferencedFrameNumber - 1].PlanePositionSequence[0].ImagePositionPatient
        normal = np.cross(*contour_directions(series))
        assert np.dot(np.array(contour.ContourData[:3], float) - place, normal) == pytest.approx(0, abs=1e-3)


def contour_directions(series: Series) -> np.ndarray:
    shared = pydicom.dcmread(series.files[0]).SharedFunctionalGroupsSequence[0]
    return np.reshape(shared.PlaneOrientationSequence[0].ImageOrientationPatient, (2, 3)).astype(float)


def test_references_names_codes_and_colours(tmp_path: Path) -> None:
    labels = pieces()
    series = series_of(tmp_path, labels)
    data = encode_rtstruct(labels, series, SCHEME, MADE_BY)
    rtstruct = parsed(data)
    instances = [pydicom.dcmread(path).SOPInstanceUID for path in series.files]
    place = rtstruct.ReferencedFrameOfReferenceSequence[0]
    study = place.RTReferencedStudySequence[0]
    images = study.RTReferencedSeriesSequence[0].ContourImageSequence
    assert (place.FrameOfReferenceUID, study.ReferencedSOPInstanceUID) == ("1.2.3.3", "1.2.3.1")
    assert [image.ReferencedSOPInstanceUID for image in images] == instances
    for roi in rtstruct.ROIContourSequence:
        for contour in roi.ContourSequence:
            (image,) = contour.ContourImageSequence
            k = instances.index(image.ReferencedSOPInstanceUID)
            z = np.linalg.solve(read_grid(series).affine, [*(np.array(contour.ContourData[:3], float) * LPS_TO_RAS), 1])[2]
            assert z == pytest.approx(k, abs=1e-3)
    assert [roi.ROINumber for roi in rtstruct.StructureSetROISequence] == [3, 200, 7]
    assert rtstruct.StructureSetROISequence[2].ROIName == "Größe, Ω"
    liver, kidney, _ = rtstruct.RTROIObservationsSequence
    assert liver.RTROIIdentificationCodeSequence[0].CodeMeaning == "Liver"
    assert kidney.RTROIIdentificationCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == "Left"
    colours = [tuple(roi.ROIDisplayColor) for roi in rtstruct.ROIContourSequence]
    assert len(set(colours)) == 3 and colours[0] == (0x16, 0x9F, 0xC2)
    assert rtstruct.PatientID == "P1" and rtstruct.StudyInstanceUID == "1.2.3.1" and rtstruct.SeriesNumber == 2004


def test_numbers_are_short_enough_and_contours_of_any_length_are_written(tmp_path: Path) -> None:
    labels = (3 * (np.random.default_rng(5).random((120, 90, 1)) < 0.75)).astype(np.uint8)  # nearly all of it one piece
    for number in (1e-3, 1.0, 1e3):
        series = series_of(tmp_path / f"{number}", labels, PixelSpacing=[number, number], ImagePositionPatient=[-9e4, 9e4, -9e4])
        data = encode_rtstruct(labels, series, SCHEME, MADE_BY)
        (contours,) = (roi.ContourSequence for roi in parsed(data).ROIContourSequence)
        longest = max(contours, key=lambda contour: contour.NumberOfContourPoints)
        raw = longest.get_item("ContourData").value
        assert len(raw) > (1 << 16) and max(map(len, raw.split(b"\\"))) <= 16
        np.testing.assert_array_equal(by_hand(data, series)["liver"], labels == 3)


def test_where_nothing_was_found_every_structure_has_no_contours(tmp_path: Path) -> None:
    labels = np.zeros((9, 8, 5), np.uint8)
    data = encode_rtstruct(labels, series_of(tmp_path / "scan", labels), SCHEME, MADE_BY)
    rtstruct = parsed(data)
    assert [roi.ROIName for roi in rtstruct.StructureSetROISequence] == SCHEME.names
    assert not any("ContourSequence" in roi for roi in rtstruct.ROIContourSequence)
    (tmp_path / "rt.dcm").write_bytes(data)
    check_standard(tmp_path / "rt.dcm")


def test_equal_arguments_give_equal_bytes(tmp_path: Path) -> None:
    labels = pieces()
    series = series_of(tmp_path, labels, StudyDate="20200229", StudyTime="101112.5")
    data = encode_rtstruct(labels, series, SCHEME, MADE_BY)
    assert data == encode_rtstruct(np.asfortranarray(labels.astype(np.uint16)), series, SCHEME, MADE_BY)
    assert (parsed(data).StructureSetDate, parsed(data).StructureSetTime) == ("20200229", "101112.5")
    assert parsed(encode_rtstruct(labels * 0, series, SCHEME, MADE_BY)).SOPInstanceUID != parsed(data).SOPInstanceUID


def test_what_cannot_be_drawn_is_refused(tmp_path: Path) -> None:
    labels = pieces()
    series = series_of(tmp_path / "scan", labels)
    with pytest.raises(GridMismatchError, match="9 x 8 x 5 voxels and the series 21 x 17 x 6"):
        encode_rtstruct(np.zeros((9, 8, 5), np.uint8), series, SCHEME, MADE_BY)
    with pytest.raises(LabelError, match="value 4, which is no structure's id"):
        encode_rtstruct(np.full((21, 17, 6), 4, np.uint8), series, SCHEME, MADE_BY)
    nowhere = series_of(tmp_path / "nowhere", labels[:, :, :1], ImagePositionPatient=None)
    with pytest.raises(UnreadableError, match="does not say where its slices lie"):
        encode_rtstruct(labels[:, :, :1], nowhere, SCHEME, MADE_BY)


@pytest.mark.parametrize("values", STRANGE)
def test_nothing_about_the_patient_is_said(tmp_path: Path, values: dict, caplog, capfd, recwarn) -> None:
    said = what_is_said(encode_rtstruct, tmp_path, values, caplog, capfd, recwarn)
    assert PLANTED not in said and "1.2.3." not in said and str(tmp_path) not in said


def test_real_ct(real_data: Path, tmp_path: Path) -> None:
    labels, series = real_ct(real_data)
    scheme = LabelScheme.model_validate({"structures": [{"name": f"s{i}", "id": i} for i in np.unique(labels)[1:].tolist()]})
    data = encode_rtstruct(labels, series, scheme, MADE_BY)
    found = by_hand(data, series)
    assert list(found) == scheme.names
    for structure in scheme.structures:
        np.testing.assert_array_equal(found[structure.name], labels == structure.id)
    (tmp_path / "rt.dcm").write_bytes(data)
    check_standard(tmp_path / "rt.dcm")


def test_real_three_slices(real_data: Path, tmp_path: Path) -> None:
    folder = real_data / "dicom/dcmqi_ct3slice_seg"
    series = real_series(folder / "ct-3slice")
    labels, scheme = real_masks(folder, series)
    data = encode_rtstruct(labels, series, scheme, MADE_BY)
    for found in (by_hand(data, series), by_rt_utils(data, series, tmp_path / "back")):
        for structure in scheme.structures:
            np.testing.assert_array_equal(found[structure.name], labels == structure.id)
    check_standard(tmp_path / "back" / "rt.dcm")


def test_real_enhanced_file(real_data: Path) -> None:
    labels = pieces((23, 38, 3))
    for source in ("multiframe", "image"):
        series = real_series(real_data / "dicom/dcmqi_ct3slice_seg/23x38x3" / source)
        assert_same(by_hand(encode_rtstruct(labels, series, SCHEME, MADE_BY), series), labels)
