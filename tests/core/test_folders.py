"""Whole folders or none, whatever happens; hashes that see every file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from medseg.core.errors import OutputError
from medseg.core.files import TEMPORARY
from medseg.core.folders import atomic_folder, folder_sha256

KILLED = """
import os, signal, sys
from pathlib import Path
from medseg.core import folders
path, step = Path(sys.argv[1]), int(sys.argv[2])
steps = []
def counted(function):
    def call(*arguments, **options):
        steps.append(function)
        if len(steps) == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)
    return call
os.replace, os.fsync = counted(os.replace), counted(os.fsync)
with folders.atomic_folder(path) as temporary:
    (temporary / "0").mkdir(parents=True)
    (temporary / "0/chunk").write_text("new")
    (temporary / ".zattrs").write_text("new")
"""


def fill(folder: Path, text: str) -> None:
    (folder / "0").mkdir(parents=True)
    (folder / "0/chunk").write_text(text)
    (folder / ".zattrs").write_text(text)


def test_a_new_folder_and_one_in_place_of_another(tmp_path: Path) -> None:
    path = tmp_path / "out/a.zarr"
    for text in ("old", "new"):
        with atomic_folder(path) as temporary:
            assert TEMPORARY.fullmatch(temporary.name) and temporary.parent == path.parent
            fill(temporary, text)
        assert (path / "0/chunk").read_text() == text and [p.name for p in path.parent.iterdir()] == ["a.zarr"]


def test_a_file_or_a_link_in_its_place_goes(tmp_path: Path) -> None:
    path, elsewhere = tmp_path / "a.zarr", tmp_path / "elsewhere"
    fill(elsewhere, "kept")
    path.symlink_to(elsewhere)
    with atomic_folder(path) as temporary:
        fill(temporary, "new")
    assert not path.is_symlink() and (elsewhere / "0/chunk").read_text() == "kept"
    (tmp_path / "b.zarr").write_text("a file")
    with atomic_folder(tmp_path / "b.zarr") as temporary:
        fill(temporary, "new")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.zarr", "b.zarr", "elsewhere"]


def test_after_an_error_the_old_one_stands(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    fill(path, "old")
    before = folder_sha256(path)
    with pytest.raises(ZeroDivisionError), atomic_folder(path) as temporary:
        fill(temporary, "new")
        raise ZeroDivisionError
    assert folder_sha256(path) == before and list(tmp_path.iterdir()) == [path]


def test_where_no_folder_can_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(OutputError, match=r"a\.zarr cannot be written \(.+\); free space or choose another output"),
        atomic_folder(tmp_path / "file/a.zarr") as temporary,
    ):
        fill(temporary, "new")


@pytest.mark.parametrize("step", range(1, 7))
def test_killed_at_any_moment_it_is_old_or_new_or_can_be_made_again(tmp_path: Path, step: int) -> None:
    path = tmp_path / "a.zarr"
    fill(path, "old")
    old = folder_sha256(path)
    killed = subprocess.run([sys.executable, "-c", KILLED, str(path), str(step)], cwd=Path(__file__).parents[2])
    assert killed.returncode == -signal.SIGKILL
    # Two files, two folders, two renames: only between the last two does nothing stand under the name.
    assert folder_sha256(path) == old if step < 6 else not path.exists()
    left = [p for p in tmp_path.iterdir() if p != path]
    assert left and all(TEMPORARY.fullmatch(p.name) for p in left)
    with atomic_folder(path) as temporary:
        fill(temporary, "new")
    assert (path / "0/chunk").read_text() == "new"


def test_the_hash_sees_names_and_contents_of_all_files(tmp_path: Path) -> None:
    def made(files: dict[str, str]) -> str:
        folder = tmp_path / os.urandom(4).hex()
        for name, text in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
        return folder_sha256(folder)

    plain = {"0/0": "a", "0/1": "b", ".zattrs": "{}"}
    others = [plain | {"0/0": "b"}, plain | {".zattrs": ""}, {"0/1": "a", "0/0": "b", ".zattrs": "{}"}, plain | {"1": ""}]
    assert made(plain) == made(dict(reversed(plain.items())))
    assert len({made(files) for files in [plain, *others]}) == 5
    with pytest.raises(FileNotFoundError):
        folder_sha256(tmp_path / "absent")
