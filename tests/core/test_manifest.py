from pathlib import Path

import pytest

from medseg.core.errors import ManifestError
from medseg.core.manifest import read_manifest, scan_manifest

HEADER = "case_id,image,label,split,patient_id,site\n"


def write(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    path = folder / "set.csv"
    path.write_text(text, encoding=encoding)
    return path


def test_a_row_is_a_case_whose_paths_count_from_the_root(tmp_path: Path) -> None:
    path = write(tmp_path, HEADER + "p01,i/p01.nii.gz,l/p01.nii.gz,train,A,Leeds\np02, i/p02.nii.gz ,,test,,\n")
    manifest = read_manifest(path, Path("root"))
    first, second = manifest.cases
    assert manifest.channels == ("image",)
    assert first.images == (Path("root/i/p01.nii.gz"),)
    assert first.label == Path("root/l/p01.nii.gz")
    assert (first.unit, second.unit) == ("A", "p02")
    assert first.covariates == {"site": "Leeds"}
    assert second.images == (Path("root/i/p02.nii.gz"),)
    assert second.label is None
    assert [case.case_id for case in manifest.of("test", "val")] == ["p02"]


def test_channels_are_image_columns(tmp_path: Path) -> None:
    path = write(tmp_path, "case_id,image_flair,image_t1c,label,split\n001,f.nii,t.nii,l.nii,\n")
    manifest = read_manifest(path, tmp_path)
    assert manifest.channels == ("flair", "t1c")
    assert manifest.cases[0].case_id == "001"  # not the number 1
    assert manifest.cases[0].images == (tmp_path / "f.nii", tmp_path / "t.nii")


def test_a_spreadsheet_s_byte_order_mark_and_blank_lines_do_no_harm(tmp_path: Path) -> None:
    path = write(tmp_path, "case_id,image,label,split\n\np1,a,b,train\np1,a,b,train\n\n", encoding="utf-8-sig")
    with pytest.raises(ManifestError, match="row 4: case_id `p1` stands in row 3 already"):
        read_manifest(path, tmp_path)


def test_a_short_row_has_empty_cells(tmp_path: Path) -> None:
    case = read_manifest(write(tmp_path, HEADER + "p1,a,b\n"), tmp_path).cases[0]
    assert (case.split, case.patient_id) == ("", "")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not a readable CSV"),
        ("case_id,image,split\np1,a,train\n", "no column label"),
        ("case_id;image;label;split\np1;a;b;train\n", "no column case_id"),
        ("case_id,label,split\np1,a,train\n", "no column image"),
        ("case_id,image,label,split\n", "no rows"),
        (",,\n,,\n", "has no rows; write"),
        ("case_id,image,label,label,split\np1,a,b,c,train\n", "two columns called `label`"),
        ("case_id,image,image_t1,label,split\np1,a,b,c,train\n", "`image` and `image_t1`"),
        ("case_id,image,label,split\np1,a,b,train,surplus\n", "line 2"),
        (HEADER + ",a,b,train,,\n", "row 2: case_id is empty"),
        (HEADER + "p/1,a,b,train,,\n", "`p/1` cannot be a file name"),
        (HEADER + "p1,a,b,training,,\n", "row 2 (case p1): split `training`"),
        (HEADER + "p1,,b,train,,\n", "(case p1): image is empty"),
        (HEADER + "p1,a,b,train,,\nP1,c,d,train,,\n", "row 3: case_id `P1` stands in row 2 already"),
        (HEADER + "p1,a,b,train,A,\np2,c,d,test,A,\n", "patient `A` is in two splits, train (case p1) and test (case p2)"),
    ],
)
def test_a_bad_manifest_is_one_sentence_naming_file_and_row(tmp_path: Path, text: str, said: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ManifestError) as caught:
        read_manifest(path, tmp_path)
    assert said in str(caught.value)
    assert "set.csv" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_manifest_names_the_command_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="medseg manifest"):
        read_manifest(tmp_path / "no.csv", tmp_path)
    with pytest.raises(ManifestError, match="not a readable CSV"):
        read_manifest(tmp_path, tmp_path)


def test_scanning_finds_every_problem_and_keeps_the_good_rows(tmp_path: Path) -> None:
    rows = "p1,a,b,train,A,\np2,,b,train,,\np3,c,d,test,A,\np3,c,d,test,,\np4,c,d,nope,,\n"
    manifest, problems = scan_manifest(write(tmp_path, HEADER + rows), tmp_path)
    assert [case.case_id for case in manifest.cases] == ["p1", "p3", "p3"]
    assert [problem.case_id for problem in problems] == ["p2", "p4", "p3", "p3"]
    assert sum("patient `A`" in str(problem) for problem in problems) == 1
