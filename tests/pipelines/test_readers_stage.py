"""`medseg readers` over folders of masks that readers drew."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest

from medseg.core.errors import ConfigError
from medseg.core.record import read_record
from pipelines.readers import parse_readers, readers

AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])


def draw(folder: Path, case: str, columns: slice, value: int = 1) -> None:
    folder.mkdir(exist_ok=True)
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
