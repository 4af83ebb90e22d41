"""Which files of a folder are one case."""

from __future__ import annotations

from pathlib import Path

import pytest

from medseg.core.errors import UnreadableError
from medseg.inference.scans import Scan, find_scans, images_sha256


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return folder


def named(scans: list[Scan]) -> dict[str, list[str]]:
    return {scan.case_id: [path.name for path in scan.images] for scan in scans}


def test_each_file_of_a_tree_is_a_case(tmp_path: Path) -> None:
    scans = find_scans(touch(tmp_path, "b/p02.NRRD", "a.nii.gz", "c.tar.png"), ["image"])
    assert named(scans) == {"a": ["a.nii.gz"], "p02": ["p02.NRRD"], "c.tar": ["c.tar.png"]}
    assert not any(scan.reason for scan in scans)


def test_hidden_files_are_left_out_and_other_files_are_skipped(tmp_path: Path) -> None:
    scans = find_scans(touch(tmp_path, "a.nii", ".b.nii", ".git/c.nii", "notes.txt", "x.dcm"), ["image"])
    assert [(s.case_id, s.skipped) for s in scans] == [("a", False), ("notes.txt", True), ("x.dcm", True)]
    assert "not a scan format" in scans[1].reason


def test_same_names_are_all_refused(tmp_path: Path) -> None:
    scans = find_scans(touch(tmp_path, "p01.nii.gz", "p01.png", "deep/P01.tif", "p02.png"), ["image"])
    reasons = {s.images[0].name: s.reason for s in scans}
    assert reasons["p02.png"] == ""
    for name in ("p01.nii.gz", "p01.png", "P01.tif"):
        assert "two scans would have the same name" in reasons[name]
    assert "(the other is deep/P01.tif)" in reasons["p01.nii.gz"]


def test_a_single_file(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii.gz", "b.nii.gz", "a.png")
    assert named(find_scans(tmp_path / "a.nii.gz", ["image"])) == {"a": ["a.nii.gz"]}


@pytest.mark.parametrize("name", ["none", "empty", "notes.txt", "only_text"])
def test_nothing_to_segment(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    touch(tmp_path, "notes.txt", "only_text/a.txt")
    with pytest.raises(UnreadableError, match=r"does not exist; give|holds no scan; give"):
        find_scans(tmp_path / name, ["image"])


def test_channels_come_together_in_the_order_of_the_model(tmp_path: Path) -> None:
    touch(tmp_path, "p01_t1.nii.gz", "p01_FLAIR.nii.gz", "p02_0000.nii.gz", "p02_0001.nii.gz", "sub/p_t1.mha", "sub/p_flair.mha")
    assert named(find_scans(tmp_path, ["flair", "t1"])) == {
        "p01": ["p01_FLAIR.nii.gz", "p01_t1.nii.gz"],
        "p02": ["p02_0000.nii.gz", "p02_0001.nii.gz"],
        "p": ["p_flair.mha", "p_t1.mha"],
    }
    assert named(find_scans(tmp_path / "p01_t1.nii.gz", ["flair", "t1"])) == {"p01": ["p01_FLAIR.nii.gz", "p01_t1.nii.gz"]}


def test_missing_double_and_unknown_channels(tmp_path: Path) -> None:
    touch(tmp_path, "a_t1.nii", "b_t1.nii", "b_0001.nii", "b_flair.nii", "plain.nii", "c_0002.nii")
    reasons = {scan.case_id: scan.reason for scan in find_scans(tmp_path, ["flair", "t1"])}
    assert reasons["a"] == "the file of channel flair is missing; put a_flair beside a_t1.nii"
    assert reasons["b"] == "b_0001.nii and b_t1.nii are the same channel; remove one"
    assert "one file a channel, so plain_flair and plain_t1" in reasons["plain"]
    assert "one file a channel" in reasons["c_0002"]


def test_numbered_pictures_are_not_channels_of_a_single_file_model(tmp_path: Path) -> None:
    scans = find_scans(touch(tmp_path, "slice_0000.png", "slice_0001.png"), ["image"])
    assert [scan.case_id for scan in scans] == ["slice_0000", "slice_0001"]


def test_the_voxel_file_of_a_header_belongs_to_it(tmp_path: Path) -> None:
    (tmp_path / "p.mhd").write_text("NDims = 3\nElementDataFile = voxels.raw\n")
    (tmp_path / "q.nhdr").write_text("NRRD0004\ntype: short\ndata file: q.raw.gz\n\n")
    touch(tmp_path, "voxels.raw", "q.raw.gz", "other.raw")
    scans = find_scans(tmp_path, ["image"])
    assert [(s.case_id, s.skipped) for s in scans] == [("other.raw", True), ("p", False), ("q", False)]
    before = images_sha256([tmp_path / "p.mhd"])
    (tmp_path / "voxels.raw").write_bytes(b"changed")
    assert images_sha256([tmp_path / "p.mhd"]) != before


def test_a_missing_file_has_no_hash(tmp_path: Path) -> None:
    with pytest.raises(UnreadableError, match=r"none\.nii does not exist; mend its path"):
        images_sha256([tmp_path / "none.nii"])


def test_linked_folders_are_scans_and_broken_links_are_not_lost(tmp_path: Path) -> None:
    touch(tmp_path / "elsewhere", "p02.nii")
    folder = touch(tmp_path / "scans", "p01.nii")
    (folder / "more").symlink_to(tmp_path / "elsewhere")
    (folder / "p03.nii").symlink_to(tmp_path / "none.nii")
    scans = {scan.case_id: scan for scan in find_scans(folder, ["image"])}
    assert list(scans) == ["p02", "p01", "p03"]
    with pytest.raises(UnreadableError, match=r"p03\.nii is a link to a file that does not exist; mend its path"):
        images_sha256(scans["p03"].images)
