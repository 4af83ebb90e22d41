import errno
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from medseg.core.errors import LabelError, OutputError, UnreadableError
from medseg.core.files import atomic_path, file_sha256, files_below, json_sha256, remove, remove_leftovers, write_json, write_text


def test_a_file_appears_whole_with_its_suffixes_kept_meanwhile(tmp_path: Path) -> None:
    target = tmp_path / "new" / "scan.nii.gz"
    with atomic_path(target) as temporary:
        temporary.write_bytes(b"whole")
        assert temporary.name.endswith(".nii.gz")
        assert temporary.name.startswith(".")
        assert not target.exists()
    assert target.read_bytes() == b"whole"
    assert names(target.parent) == ["scan.nii.gz"]


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), LabelError("no")])
def test_after_an_error_the_old_file_stands_and_nothing_else(tmp_path: Path, error: BaseException) -> None:
    target = tmp_path / "table.csv"
    target.write_text("old")
    with pytest.raises(type(error)), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise error
    assert target.read_text() == "old"
    assert names(tmp_path) == ["table.csv"]


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OutputError) as caught, atomic_path(tmp_path / "mask.nii.gz") as temporary:
        temporary.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert "mask.nii.gz cannot be written (No space left on device); free space" in str(caught.value)
    assert names(tmp_path) == []


def test_a_writer_that_hides_the_full_disk_is_seen_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=0))
    with pytest.raises(OutputError, match="No space left"), atomic_path(tmp_path / "mask.mha"):
        raise RuntimeError("itk: write failed")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=2**40))
    with pytest.raises(RuntimeError, match="itk"), atomic_path(tmp_path / "mask.mha"):
        raise RuntimeError("itk: write failed")


def test_a_file_where_a_folder_should_be_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(OutputError, match="choose another output"):
        write_text(tmp_path / "runs" / "x" / "report.csv", "text")
    with pytest.raises(OutputError, match="choose another output"):
        write_text(tmp_path / "runs" / "report.csv", "text")


def test_text_and_json_are_written_the_same_on_every_platform(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "ä\n")
    assert (tmp_path / "a.txt").read_bytes() == "ä\n".encode()
    write_json(tmp_path / "a.json", {"path": tmp_path, "b": [1]})
    assert (tmp_path / "a.json").read_text().endswith("}\n")
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "b.json", {"x": float("nan")})
    assert not (tmp_path / "b.json").exists()


def test_hashes_know_files_and_settings(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert file_sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert json_sha256({"a": 1, "b": [1, 2]}) == json_sha256({"b": [1, 2], "a": 1})
    assert json_sha256({"a": 1}) != json_sha256({"a": 2})


def test_a_file_that_cannot_be_removed_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").touch()
    remove(tmp_path / "a")
    remove(tmp_path / "a")
    assert names(tmp_path) == []

    def refused(path: Path, missing_ok: bool = False) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "unlink", refused)
    with pytest.raises(OutputError, match=r"a cannot be removed \(Read-only file system\); remove it or choose"):
        remove(tmp_path / "a")


def test_files_are_found_through_links_and_broken_links_are_named(tmp_path: Path) -> None:
    tree, elsewhere = tmp_path / "tree", tmp_path / "elsewhere"
    for path in (tree / "a", tree / "sub/b", tree / ".hidden", tree / ".git/c", elsewhere / "d"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tree / "link").symlink_to(elsewhere)
    (tree / "sub/again").symlink_to(elsewhere)
    (tree / "sub/up").symlink_to(tree)
    (tree / "broken").symlink_to(tmp_path / "none")
    (tree / "circle").symlink_to(tree / "circle")
    os.mkfifo(tree / "pipe")
    assert [path.relative_to(tree).as_posix() for path in files_below(tree)] == ["a", "broken", "circle", "link/d", "sub/b"]


def test_a_folder_that_cannot_be_read_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "locked").mkdir()
    scandir = os.scandir

    def refused(place: str) -> object:
        if Path(place).name == "locked":  # even for root, whom file permissions do not stop
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(place))
        return scandir(place)

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(UnreadableError, match=r"locked cannot be read \(Permission denied\); mend it"):
        list(files_below(tmp_path))


def test_what_a_kill_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    kept = {".hidden", "0123abcd.csv", ".0123abcd", "table.csv"}
    for name in (*kept, ".0123abcd.table.csv", ".ffffffff.scan.nii.gz"):
        (tmp_path / name).touch()
    remove_leftovers(tmp_path)
    remove_leftovers(tmp_path / "missing")
    assert set(names(tmp_path)) == kept
