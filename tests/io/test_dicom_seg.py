"""DICOM SEG read back by hand from its functional groups, by dcmqi, and checked by dciodvfy."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813
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
    run_tool,
    series_of,
    structures_of,
    what_is_said,
)
from dicom_phantoms import enhanced, only
from pydicom import Dataset, uid

from medseg.core.errors import GridMismatchError, LabelError
from medseg.core.labels import LabelScheme
from medseg.io.derived import MadeBy
from medseg.io.dicom import read_grid
from medseg.io.dicom_seg import encode_seg
from medseg.io.picture import LPS_TO_RAS
from medseg.io.series import Series


def parsed(data: bytes) -> Dataset:
    return pydicom.dcmread(io.BytesIO(data))


def by_hand(data: bytes, series: Series) -> dict[str, np.ndarray]:
    """The mask of each segment, by its label; each frame is put where its position says."""
    seg, grid = parsed(data), read_grid(series)
    bits = np.unpackbits(np.frombuffer(seg.PixelData, np.uint8), bitorder="little")
    frames = bits[: seg.NumberOfFrames * seg.Rows * seg.Columns].reshape(-1, seg.Rows, seg.Columns)
    shared = seg.SharedFunctionalGroupsSequence[0]
    masks = {item.SegmentNumber: np.zeros(grid.shape, bool) for item in seg.SegmentSequence}
    for frame, groups in zip(frames, seg.PerFrameFunctionalGroupsSequence, strict=True):
        number = (groups if "SegmentIdentificationSequence" in groups else shared).SegmentIdentificationSequence[0]
        position = np.array(groups.PlanePositionSequence[0].ImagePositionPatient, float) * LPS_TO_RAS
        index = np.linalg.solve(grid.affine, [*position, 1])[:3]
        np.testing.assert_allclose(index, np.round(index), atol=1e-3)
        x, y, z = np.round(index).astype(int)
        assert (x, y) == (0, 0)
        masks[number.ReferencedSegmentNumber][:, :, z] |= frame.T.astype(bool)
    return {item.SegmentLabel: masks[item.SegmentNumber] for item in seg.SegmentSequence}


def by_dcmqi(data: bytes, series: Series, folder: Path) -> dict[str, np.ndarray]:
    """The same, as dcmqi lays the segments in space."""
    folder.mkdir()
    (folder / "seg.dcm").write_bytes(data)
    run_tool("segimage2itkimage", "--inputDICOM", folder / "seg.dcm", "--outputDirectory", folder, "--outputType", "nrrd")
    described = json.loads((folder / "meta.json").read_text())["segmentAttributes"]
    masks, grid = {}, read_grid(series)
    for (segment,) in described:
        image = sitk.ReadImage(str(folder / f"{segment['labelID']}.nrrd"))
        voxels = np.argwhere(sitk.GetArrayFromImage(image))[:, ::-1]
        places = np.array([image.TransformIndexToPhysicalPoint(v.tolist()) for v in voxels]) * LPS_TO_RAS
        index = np.linalg.solve(grid.affine, np.c_[places, np.ones(len(places))].T)[:3]
        np.testing.assert_allclose(index, np.round(index), atol=1e-2)
        masks[segment["SegmentLabel"]] = mask = np.zeros(grid.shape, bool)
        mask[tuple(np.round(index).astype(int))] = True
    return masks


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
    data = encode_seg(labels, series, SCHEME, MADE_BY)
    assert_same(by_hand(data, series), labels)
    assert_same(by_dcmqi(data, series, tmp_path / "back"), labels)
    check_standard(tmp_path / "back" / "seg.dcm")


def test_enhanced_source_with_frames_in_another_order(tmp_path: Path) -> None:
    labels = pieces()
    enhanced(tmp_path / "scan" / "all.dcm", np.zeros(labels.shape, np.uint16))
    series = only(tmp_path / "scan")
    data = encode_seg(labels, series, SCHEME, MADE_BY)
    assert_same(by_hand(data, series), labels)
    for groups in parsed(data).PerFrameFunctionalGroupsSequence:
        position = groups.PlanePositionSequence[0].ImagePositionPatient
        (frame,) = [groups.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber]
        source = pydicom.dcmread(series.files[0]).PerFrameFunctionalGroupsSequence[frame - 1]
        np.testing.assert_allclose(source.PlanePositionSequence[0].ImagePositionPatient, position, atol=1e-6)
    empty = encode_seg(labels * 0, series, SCHEME, MADE_BY)
    assert not any(mask.any() for mask in by_hand(empty, series).values())


def test_only_frames_that_hold_something_each_with_its_source(tmp_path: Path) -> None:
    labels = np.zeros((9, 8, 5), np.uint8)
    labels[2, 3, 4] = labels[4, 3, 1] = 3
    series = series_of(tmp_path, labels)
    seg = parsed(encode_seg(labels, series, SCHEME, MADE_BY))
    instances = [pydicom.dcmread(path).SOPInstanceUID for path in series.files]
    sources = [g.DerivationImageSequence[0].SourceImageSequence[0] for g in seg.PerFrameFunctionalGroupsSequence]
    assert {source.ReferencedSOPInstanceUID for source in sources} == {instances[1], instances[4]}
    referenced = seg.ReferencedSeriesSequence[0]
    assert referenced.SeriesInstanceUID == series.uid
    assert [item.ReferencedSOPInstanceUID for item in referenced.ReferencedInstanceSequence] == instances


def test_segments_are_named_coded_and_coloured(tmp_path: Path) -> None:
    labels = pieces()
    seg = parsed(encode_seg(labels, series_of(tmp_path, labels), SCHEME, MADE_BY))
    liver, kidney, own = seg.SegmentSequence
    assert [s.SegmentNumber for s in seg.SegmentSequence] == [1, 2, 3]
    assert liver.SegmentedPropertyTypeCodeSequence[0].CodeValue == "10200004"
    assert kidney.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == "Left"
    assert own.SegmentLabel == "Größe, Ω" and own.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Spleen"
    assert liver.SegmentAlgorithmType == "AUTOMATIC" and liver.SegmentAlgorithmName == MADE_BY.model
    assert liver.RecommendedDisplayCIELabValue != kidney.RecommendedDisplayCIELabValue
    assert seg.Manufacturer == "medseg" and seg.DeviceSerialNumber == MADE_BY.model_sha256
    assert seg.FrameOfReferenceUID == "1.2.3.3" and seg.SegmentationType == "BINARY"


def test_where_nothing_was_found_every_structure_has_an_empty_segment(tmp_path: Path) -> None:
    labels = np.zeros((9, 8, 5), np.uint8)
    series = series_of(tmp_path / "scan", labels)
    data = encode_seg(labels, series, SCHEME, MADE_BY)
    masks = by_hand(data, series)
    assert list(masks) == SCHEME.names and not any(mask.any() for mask in masks.values())
    assert parsed(data).NumberOfFrames == len(SCHEME.names)
    (tmp_path / "seg.dcm").write_bytes(data)
    check_standard(tmp_path / "seg.dcm")


def test_one_slice_and_a_radiograph_without_a_place(tmp_path: Path) -> None:
    labels = pieces()[:, :, :1]
    series = series_of(tmp_path / "slice", labels)
    assert_same(by_hand(encode_seg(labels, series, SCHEME, MADE_BY), series), labels)
    nowhere = dict.fromkeys(("ImagePositionPatient", "ImageOrientationPatient", "FrameOfReferenceUID"))
    kind = {"SOPClassUID": uid.ComputedRadiographyImageStorage, "Modality": "CR"}
    for answer in (labels, labels * 0):
        radiograph = series_of(tmp_path / "radiograph", answer, **nowhere, **kind)
        seg = parsed(encode_seg(answer, radiograph, SCHEME, MADE_BY))
        bits = np.unpackbits(np.frombuffer(seg.PixelData, np.uint8), bitorder="little")
        frame = bits[: seg.Rows * seg.Columns].reshape(seg.Rows, seg.Columns)
        np.testing.assert_array_equal(frame.T, answer[:, :, 0] == 3)


def test_equal_arguments_give_equal_bytes_and_others_other_uids(tmp_path: Path) -> None:
    labels = pieces()
    series = series_of(tmp_path / "scan", labels, StudyDate="20200229", StudyTime="101112.5")
    data = encode_seg(labels, series, SCHEME, MADE_BY)
    assert data == encode_seg(np.asfortranarray(labels.astype(np.uint16)), series, SCHEME, MADE_BY)
    seg = parsed(data)
    assert (seg.ContentDate, seg.ContentTime) == ("20200229", "101112.5")
    other = labels.copy()
    other[0, 0, 0] = 3 - other[0, 0, 0] if other[0, 0, 0] in (0, 3) else 0
    same_series = parsed(encode_seg(other, series, SCHEME, MADE_BY))
    assert same_series.SOPInstanceUID != seg.SOPInstanceUID and same_series.SeriesInstanceUID == seg.SeriesInstanceUID
    other_model = parsed(encode_seg(labels, series, SCHEME, MadeBy("other", "cd" * 32, "medseg 0.1.0")))
    assert other_model.SeriesInstanceUID != seg.SeriesInstanceUID
    assert all(uid.UID(u).is_valid for u in (seg.SOPInstanceUID, seg.SeriesInstanceUID))


def test_the_patient_and_study_are_those_of_the_source(tmp_path: Path) -> None:
    labels = pieces()
    name = "Müller^Jürgen"
    series = series_of(
        tmp_path, labels, SpecificCharacterSet="ISO_IR 100", PatientName=name, PatientBirthDate="19500102", PatientSex="M",
        AccessionNumber="A17", StudyDescription="Größenkontrolle", PatientWeight="80.5",
    )  # fmt: skip
    seg = parsed(encode_seg(labels, series, SCHEME, MADE_BY))
    assert str(seg.PatientName) == name and seg.PatientID == "P1" and seg.PatientBirthDate == "19500102"
    assert seg.StudyInstanceUID == "1.2.3.1" and seg.AccessionNumber == "A17" and seg.StudyDescription == "Größenkontrolle"
    assert seg.PatientWeight == 80.5 and seg.SeriesNumber == 1004


def test_a_de_identified_series_without_uids(tmp_path: Path) -> None:
    labels = pieces()
    blank = dict.fromkeys(("StudyInstanceUID", "SeriesInstanceUID", "PatientName", "PatientID"), "")
    series = series_of(tmp_path / "scan", labels, **blank)
    data = encode_seg(labels, series, SCHEME, MADE_BY)
    assert_same(by_hand(data, series), labels)
    (tmp_path / "seg.dcm").write_bytes(data)
    check_standard(tmp_path / "seg.dcm")


def test_other_voxels_and_unknown_values_are_refused(tmp_path: Path) -> None:
    series = series_of(tmp_path, pieces())
    with pytest.raises(GridMismatchError, match="9 x 8 x 5 voxels and the series 21 x 17 x 6"):
        encode_seg(np.zeros((9, 8, 5), np.uint8), series, SCHEME, MADE_BY)
    with pytest.raises(LabelError, match="value 4, which is no structure's id"):
        encode_seg(np.full((21, 17, 6), 4, np.uint8), series, SCHEME, MADE_BY)


@pytest.mark.parametrize("values", STRANGE)
def test_nothing_about_the_patient_is_said(tmp_path: Path, values: dict, caplog, capfd, recwarn) -> None:
    said = what_is_said(encode_seg, tmp_path, values, caplog, capfd, recwarn)
    assert PLANTED not in said and "1.2.3." not in said and str(tmp_path) not in said


def test_real_ct(real_data: Path, tmp_path: Path) -> None:
    labels, series = real_ct(real_data)
    scheme = LabelScheme.model_validate({"structures": [{"name": f"s{i}", "id": i} for i in np.unique(labels)[1:].tolist()]})
    data = encode_seg(labels, series, scheme, MADE_BY)
    for found in (by_hand(data, series), by_dcmqi(data, series, tmp_path / "back")):
        assert list(found) == scheme.names
        for structure in scheme.structures:
            np.testing.assert_array_equal(found[structure.name], labels == structure.id)
    check_standard(tmp_path / "back" / "seg.dcm")


def test_real_three_slices_with_the_masks_of_another_tool(real_data: Path, tmp_path: Path) -> None:
    folder = real_data / "dicom/dcmqi_ct3slice_seg"
    series = real_series(folder / "ct-3slice")
    labels, scheme = real_masks(folder, series)
    data = encode_seg(labels, series, scheme, MADE_BY)
    for found in (by_hand(data, series), by_dcmqi(data, series, tmp_path / "back")):
        for structure in scheme.structures:
            np.testing.assert_array_equal(found[structure.name], labels == structure.id)
    theirs = by_hand((folder / "liver.dcm").read_bytes(), series)  # the same reader reads a SEG made by dcmqi
    np.testing.assert_array_equal(next(iter(theirs.values())), labels == 1)
    check_standard(tmp_path / "back" / "seg.dcm")


def test_real_enhanced_file(real_data: Path, tmp_path: Path) -> None:
    folder = real_data / "dicom/dcmqi_ct3slice_seg/23x38x3"
    labels = pieces((23, 38, 3))
    for source in ("multiframe", "image"):
        series = real_series(folder / source)
        data = encode_seg(labels, series, SCHEME, MADE_BY)
        assert_same(by_hand(data, series), labels)
        assert_same(by_dcmqi(data, series, tmp_path / source), labels)
