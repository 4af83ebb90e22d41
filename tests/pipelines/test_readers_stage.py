"""`medseg readers` over folders of masks that readers drew."""

from __future__ import annotations

from pathlib import Path

import nibabel
import nrrd
import numpy as np
import pandas as pd
import pytest
from test_named_masks import write_slicer

from medseg.core.errors import ConfigError
from medseg.core.record import read_record
from pipelines.readers import parse_readers, readers

AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])


def draw(folder: Path, case: str, columns: slice, value: int = 1) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    array = np.zeros((12, 10, 6), np.uint8)
    array[columns, 2:8, 1:5] = value
    nibabel.save(nibabel.Nifti1Image(array, AFFINE), folder / f"{case}.nii.gz")


@pytest.fixture
def three(tmp_path: Path) -> dict[str, Path]:
    """Anna and Ben draw 8 columns that overlap in 6; Cleo as Anna does, and not the last case."""
    folders = {name: tmp_path / name for name in ("anna", "ben", "cleo")}
    for number in range(7):
        draw(folders["anna"], f"c{number}", slice(1, 9))
        draw(folders["ben"], f"c{number}", slice(3, 11))
        if number < 6:
            draw(folders["cleo"], f"c{number}", slice(1, 9))
    return folders


def test_the_band_of_three_readers(three: dict[str, Path], tmp_path: Path) -> None:
    assert readers(three, tmp_path / "out") == 0
    table = pd.read_csv(tmp_path / "out" / "readers.csv").set_index("metric")
    assert table.loc["dice", ["n_readers", "n_pairs", "n"]].tolist() == [3, 3, 7]
    assert table.loc["dice", ["lowest", "highest"]].tolist() == pytest.approx([0.75, 1])
    read = pd.read_csv(tmp_path / "out" / "reader_cases.csv").set_index("case_id")["readers"]
    assert len(read) == 7 and (read["c0"], read["c6"]) == ("anna;ben;cleo", "anna;ben")
    six, last = (0.75 + 0.75 + 1) / 3, 0.75
    assert table.loc["dice", "mean"] == pytest.approx((6 * six + last) / 7)


def test_the_intervals_of_readers_are_over_patients_where_they_are_named(three: dict[str, Path], tmp_path: Path) -> None:
    patients = "".join(f"c{number},p{number // 2}\n" for number in range(7))
    (tmp_path / "cases.csv").write_text(f"case_id,patient_id\n{patients}")
    readers(three, tmp_path / "cases")
    readers(three, tmp_path / "patients", cases=tmp_path / "cases.csv")
    of_cases, of_patients = (pd.read_csv(tmp_path / name / "readers.csv").set_index("metric") for name in ("cases", "patients"))
    assert np.isfinite(of_cases.loc["dice", "ci_low"]) and np.isnan(
        of_patients.loc["dice", "ci_low"]
    )  # seven cases, four patients
    units = [read_record(tmp_path / name)["inputs"]["sampling_unit"] for name in ("cases", "patients")]
    assert units == ["case", "patient"]


@pytest.mark.parametrize("method", ["majority", "staple"])
def test_a_consensus_follows_the_two_who_agree(three: dict[str, Path], tmp_path: Path, method: str) -> None:
    assert readers(three, tmp_path / "out", consensus=method) == 0
    found = nibabel.load(tmp_path / "out" / "consensus" / "c0.nii.gz")
    assert np.array_equal(found.affine, AFFINE)
    expected = np.asarray(nibabel.load(three["anna"] / "c0.nii.gz").dataobj)
    assert np.array_equal(np.asarray(found.dataobj), expected)
    table = pd.read_csv(tmp_path / "out" / "consensus.csv")
    assert list(table["case_id"]) == [f"c{n}" for n in range(7)] and set(table["status"]) == {"ok"}
    assert table["readers"][6] == "anna;ben"
    if method == "majority":
        assert table["n_ties"].tolist() == [0] * 6 + [2 * 2 * 6 * 4]  # where the two who read the last case disagree


def test_a_mask_that_cannot_be_read_is_a_row(three: dict[str, Path], tmp_path: Path) -> None:
    (three["ben"] / "c1.nii.gz").write_bytes(b"no")
    assert readers(three, tmp_path / "out", consensus="majority") == 1
    table = pd.read_csv(tmp_path / "out" / "consensus.csv", keep_default_na=False).set_index("case_id")
    assert table.loc["c1", "status"] == "failed" and "c1.nii.gz" in table.loc["c1", "reason"]
    assert not (tmp_path / "out" / "consensus" / "c1.nii.gz").exists()


def test_a_damaged_mask_is_no_disagreement(three: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    two = {name: three[name] for name in ("anna", "ben")}
    (three["ben"] / "c1.nii.gz").write_bytes(b"no")
    draw(three["ben"], "c9", slice(3, 11))
    assert readers(two, tmp_path / "out") == 1
    dice = pd.read_csv(tmp_path / "out" / "readers.csv").set_index("metric").loc["dice"]
    assert dice[["n", "n_undefined"]].tolist() == [6, 1] and dice["mean"] == pytest.approx(0.75)
    said = capsys.readouterr().err
    assert "cannot be compared, which are left out:\n  c1: " in said and "ben/c1.nii.gz is damaged" in said
    assert "1 masks of cases that nobody else has drawn are left out: ben: c9" in said


def test_a_consensus_of_folders_with_a_file_a_structure(tmp_path: Path) -> None:
    for reader, start in {"anna": 1, "ben": 3, "cleo": 1}.items():
        draw(tmp_path / reader / "c0", "Liver", slice(start, start + 4), value=255)
        draw(tmp_path / reader / "c0", "spleen", slice(start + 4, start + 8))
    folders = {reader: tmp_path / reader for reader in ("anna", "ben", "cleo")}
    assert readers(folders, tmp_path / "out", consensus="majority") == 0
    found = nibabel.load(tmp_path / "out" / "consensus" / "c0.nii.gz")
    expected = np.zeros((12, 10, 6), np.uint8)
    expected[1:5, 2:8, 1:5] = 1
    expected[5:9, 2:8, 1:5] = 2
    assert np.array_equal(found.affine, AFFINE) and np.array_equal(np.asarray(found.dataobj), expected)


def test_a_consensus_of_segmentations_that_are_cut_to_what_they_mark(tmp_path: Path) -> None:
    array = np.zeros((6, 5, 4), np.uint8)
    array[1:5, 1:4, 1:3] = 1
    for reader in ("anna", "ben", "cleo"):
        place = write_slicer(tmp_path / reader / "c0.seg.nrrd", array, [{"Name": "liver", "LabelValue": 1}])
        if reader == "ben":  # the same, marked two voxels further along X
            voxels, header = nrrd.read(str(place))
            header["space origin"] = np.array(header["space origin"]) + [1.4, 0, 0]
            nrrd.write(str(place), voxels, header)
    folders = {reader: tmp_path / reader for reader in ("anna", "ben", "cleo")}
    assert readers(folders, tmp_path / "out", consensus="majority") == 0
    found = nibabel.load(tmp_path / "out" / "consensus" / "c0.nii.gz")
    assert found.shape == (8, 5, 4) and found.affine[:3, 3] == pytest.approx([20, 30, -7])
    assert np.array_equal(np.asarray(found.dataobj)[:6], array) and not np.asarray(found.dataobj)[6:].any()
    # Beside one that covers the scan, the consensus covers it too.
    covering = np.zeros((12, 5, 4), np.uint8)
    covering[2:6, 1:4, 1:3] = 1
    (tmp_path / "whole" / "c0").mkdir(parents=True)
    affine = np.diag([-0.7, -0.7, 2.5, 1.0])
    affine[:3, 3] = [20.7, 30, -7]
    nibabel.save(nibabel.Nifti1Image(covering, affine), tmp_path / "whole" / "c0" / "liver.nii.gz")
    assert readers({**folders, "whole": tmp_path / "whole"}, tmp_path / "more", consensus="majority") == 0
    found = nibabel.load(tmp_path / "more" / "consensus" / "c0.nii.gz")
    assert found.shape == (12, 5, 4) and np.array_equal(np.asarray(found.dataobj), covering)


def test_what_names_no_readers(tmp_path: Path) -> None:
    assert parse_readers(["a=x/y", "b=z=w"]) == {"a": Path("x/y"), "b": Path("z=w")}
    for stated in (["x/y"], ["a="], ["a=x", "a=y"]):
        with pytest.raises(ConfigError, match="NAME=DIR"):
            parse_readers(stated)
    draw(tmp_path / "a", "c", slice(1, 9))
    with pytest.raises(ConfigError, match="two of them"):
        readers({"a": tmp_path / "a"}, tmp_path / "out")
    with pytest.raises(ConfigError, match="majority or staple"):
        readers({"a": tmp_path / "a", "b": tmp_path / "a"}, tmp_path / "out", consensus="mean")
