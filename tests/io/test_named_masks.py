"""Masks that stand by name: DICOM SEG, segmentations of 3D Slicer, folders with a file a structure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import nrrd
import numpy as np
import pytest
from derived_phantoms import MADE_BY, SCHEME, TURNS, pieces, series_of, structures_of

from medseg.core.errors import GridMismatchError, LabelError, UnreadableError
from medseg.core.resample import resample
from medseg.core.volume import LabelMap
from medseg.evaluation.pairs import place
from medseg.io.dicom import read_grid as read_series_grid
from medseg.io.dicom_seg import encode_seg
from medseg.io.formats import is_mask_object, read_grid, read_labels, read_named_masks
from medseg.io.named_masks import NamedMasks
from medseg.io.rtstruct import encode_rtstruct

AFFINE = np.array([[-0.7, 0, 0, 20], [0, -0.7, 0, 30], [0, 0, 2.5, -7], [0, 0, 0, 1]])
LIVER = np.zeros((6, 5, 4), np.uint8)
LIVER[1:4, 1:4, 1:3] = 1
TUMOUR = np.zeros_like(LIVER)
TUMOUR[3:5, 2:4, 2:4] = 1  # partly outside of the liver, and partly in it


def write_slicer(path: Path, layers: np.ndarray, segments: list[dict[str, Any]]) -> Path:
    """A .seg.nrrd as 3D Slicer writes it. `layers`: (layers, X, Y, Z), or (X, Y, Z) of the only one."""
    steps = np.diag([0.7, 0.7, 2.5])
    header: dict[str, Any] = {"space": "left-posterior-superior", "space origin": [-20.0, -30, -7], "encoding": "gzip"}
    layered = layers.ndim == 4
    header["kinds"] = ["list"] * layered + ["domain"] * 3
    header["space directions"] = np.vstack([np.full((1, 3), np.nan), steps]) if layered else steps
    for number, segment in enumerate(segments):
        header |= {f"Segment{number}_{key}": str(value) for key, value in ({"ID": f"Segment_{number + 1}"} | segment).items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    nrrd.write(str(path), layers, header, index_order="F")
    return path


def read(path: Path) -> NamedMasks:
    found = read_named_masks(path)
    assert found is not None
    return found


def write_mask(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, affine), path)
    return path


def test_layers_of_slicer_may_overlap(tmp_path: Path) -> None:
    segments = [{"Name": "liver", "Layer": 0, "LabelValue": 1}, {"Name": "tumour", "Layer": 1, "LabelValue": 4}]
    path = write_slicer(tmp_path / "a.seg.nrrd", np.stack([LIVER, TUMOUR * 4]), segments)
    masks = read(path)
    assert masks.names == ("liver", "tumour") and masks.one_file
    np.testing.assert_array_equal(masks.mask("liver"), LIVER > 0)
    np.testing.assert_array_equal(masks.mask("tumour"), TUMOUR > 0)
    np.testing.assert_allclose(masks.grid.affine, AFFINE)
    assert read_grid(path) == masks.grid
    with pytest.raises(LabelError, match="holds masks by name and not label values"):
        read_labels(path)


def test_segments_of_one_layer_are_found_by_their_values(tmp_path: Path) -> None:
    segments = [{"Name": "tumour", "Layer": 0, "LabelValue": 7}, {"Name": "liver", "Layer": 0, "LabelValue": 3}]
    flat = np.where(TUMOUR > 0, 7, LIVER * 3).astype(np.uint8)
    path = write_slicer(tmp_path / "a.seg.nrrd", flat, segments)
    np.testing.assert_array_equal(read(path).mask("liver"), flat == 3)
    assert set(np.unique(read_labels(path).array)) == {0, 3, 7}  # as a label map it is read as it stands


def test_old_versions_of_slicer_have_a_layer_a_segment(tmp_path: Path) -> None:
    path = write_slicer(tmp_path / "a.seg.nrrd", np.stack([LIVER, TUMOUR]), [{"Name": "liver"}, {"Name": "tumour"}])
    np.testing.assert_array_equal(read(path).mask("tumour"), TUMOUR > 0)


def test_segments_that_contradict_themselves(tmp_path: Path) -> None:
    one = {"Name": "liver", "Layer": 0, "LabelValue": 1}
    with pytest.raises(LabelError, match="two segments are called `liver`"):
        read(write_slicer(tmp_path / "a.seg.nrrd", LIVER, [one, {"Name": "liver", "LabelValue": 2}]))
    with pytest.raises(LabelError, match="voxels hold 5, which is the value of no segment"):
        read(write_slicer(tmp_path / "b.seg.nrrd", LIVER * 5, [one])).mask("liver")
    whole = write_slicer(tmp_path / "c.seg.nrrd", np.stack([LIVER, TUMOUR]), [one]).read_bytes()
    (tmp_path / "d.seg.nrrd").write_bytes(whole[:-30])
    with pytest.raises(UnreadableError, match=r"d\.seg\.nrrd is damaged"):
        read(tmp_path / "d.seg.nrrd").mask("liver")


def test_a_plain_label_map_has_no_names(tmp_path: Path) -> None:
    assert read_named_masks(write_mask(tmp_path / "a.nii.gz", LIVER)) is None
    assert read_named_masks(write_slicer(tmp_path / "a.nrrd", LIVER, [])) is None


@pytest.mark.parametrize("turn", [None, *TURNS])
def test_a_dicom_seg_read_back(tmp_path: Path, turn: str | None) -> None:
    """Slices at the ends and in the middle hold nothing, and their frames are left out of the file."""
    labels = pieces()
    labels[:, :, [0, 2, 5]] = 0
    series = series_of(tmp_path / "ct", labels, turn=TURNS.get(turn) if turn else None)
    path = tmp_path / "p01"
    path.write_bytes(encode_seg(labels, series, SCHEME, MADE_BY))
    assert is_mask_object(path)
    masks, grid = read(path), read_series_grid(series)
    assert set(masks.names) == set(structures_of(labels)) and masks.grid.shape[2] == 4
    for name, expected in structures_of(labels).items():
        found = place(LabelMap(masks.mask(name).astype(np.uint8), masks.grid), grid)
        np.testing.assert_array_equal(found.array > 0, expected)
    with pytest.raises(LabelError, match="by name"):
        read_labels(path)


def test_contours_are_named_and_not_read(tmp_path: Path) -> None:
    path = tmp_path / "p01.dcm"
    path.write_bytes(encode_rtstruct(pieces(), series_of(tmp_path / "ct", pieces()), SCHEME, MADE_BY))
    assert is_mask_object(path)
    with pytest.raises(UnreadableError, match=r"p01\.dcm is an RTSTRUCT, and its contours are not read as masks; save it as"):
        read_named_masks(path)


def test_a_folder_with_a_file_a_structure(tmp_path: Path) -> None:
    write_mask(tmp_path / "p" / "liver.nii.gz", LIVER * np.uint8(255))
    write_mask(tmp_path / "p" / "tumour.nii.gz", TUMOUR.astype(np.float32))
    (tmp_path / "p" / "statistics.json").write_text("{}")
    masks = read(tmp_path / "p")
    assert masks.names == ("liver", "tumour") and not masks.one_file
    np.testing.assert_array_equal(masks.mask("liver"), LIVER > 0)
    np.testing.assert_array_equal(masks.mask("tumour"), TUMOUR > 0)
    assert read_grid(tmp_path / "p") == masks.grid


def test_files_that_are_no_masks_of_one_case(tmp_path: Path) -> None:
    write_mask(tmp_path / "p" / "liver.nii.gz", LIVER)
    write_mask(tmp_path / "p" / "both.nii.gz", LIVER + TUMOUR)
    write_mask(tmp_path / "p" / "moved.nii.gz", LIVER, AFFINE + np.outer([1, 0, 0, 0], [0, 0, 0, 3.0]))
    write_mask(tmp_path / "p" / "probable.nii.gz", LIVER * np.float32(0.5))
    masks = read(tmp_path / "p")
    with pytest.raises(LabelError, match=r"both\.nii\.gz holds 2 values above 0 \(1, 2\)"):
        masks.mask("both")
    with pytest.raises(LabelError, match=r"0\.5 at voxel \(1, 1, 1\) is not a whole number"):
        masks.mask("probable")
    with pytest.raises(GridMismatchError, match=r"moved\.nii\.gz do not lie on the same voxels"):
        read(tmp_path / "p").mask("moved")
    write_mask(tmp_path / "p" / "liver.nii", LIVER)
    with pytest.raises(LabelError, match="are both masks of `liver`"):
        read(tmp_path / "p")


def test_real_segs_are_what_another_tool_drew(real_data: Path) -> None:
    folder = real_data / "dicom/dcmqi_ct3slice_seg"
    masks, drawn = read(folder / "liver.dcm"), read_labels(folder / "liver_seg.nrrd")
    assert masks.names == ("Liver",)
    mine = LabelMap(masks.mask("Liver").astype(np.uint8), masks.grid)
    np.testing.assert_array_equal(place(mine, drawn.grid).array, drawn.array > 0)
    overlapping = read(folder / "partial_overlaps.dcm")
    found = {name: overlapping.mask(name) for name in overlapping.names}
    assert len(found) == 5 and (found["GREEN"] & found["ORANGE"]).any()
    orange = read_labels(folder / "partial_overlaps-2.nrrd")
    back = resample(found["ORANGE"].astype(np.uint8), overlapping.grid, orange.grid, 0)
    np.testing.assert_array_equal(back, orange.array > 0)
