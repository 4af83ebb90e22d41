"""Writing whole folders or none, and telling them apart by their hashes: `files.py` for outputs that are folders."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from medseg.core.errors import OutputError
from medseg.core.files import UNWRITABLE, file_sha256


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A temporary folder's path beside `path`, renamed to it when the block ends well.

    After an error or a full disk there is the old folder or none, never half of one. A folder that holds something cannot be
    replaced in one step, so the old one is renamed first: a kill between the two renames leaves nothing under the name and both
    folders whole under names like those that `atomic_path` gives, and a rerun makes the missing output again.

    Raises: OutputError where the folder cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{secrets.token_hex(4)}.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _to_disk(temporary)
        _replace(temporary, path)
    except OSError as error:
        if error.errno in UNWRITABLE:
            raise OutputError(f"{path} cannot be written ({error.strerror}); free space or choose another output.") from error
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def folder_sha256(folder: Path) -> str:
    """The SHA-256 of a folder: of the relative paths and contents of all its files, hidden ones too. Raises: OSError."""

    def refuse(error: OSError) -> None:
        raise error

    folder = Path(folder)
    files = [Path(place, name) for place, _, names in os.walk(folder, onerror=refuse) for name in names]
    lines = sorted(f"{path.relative_to(folder).as_posix()}\0{file_sha256(path)}\n" for path in files)
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def _to_disk(folder: Path) -> None:
    """See to it that every file of a folder is on the disk before its name is."""
    for place, _, names in os.walk(folder):
        for name in names:
            with open(Path(place, name), "r+b") as file:
                os.fsync(file.fileno())
        with suppress(OSError):  # not every system lets a folder be flushed
            _flush(Path(place))


def _flush(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _replace(new: Path, path: Path) -> None:
    """Rename `new` to `path`, and remove what stood there; where that fails it stands there again."""
    if not os.path.lexists(path):
        os.replace(new, path)
        return
    old = path.with_name(f".{secrets.token_hex(4)}.{path.name}")
    os.replace(path, old)
    try:
        os.replace(new, path)
    except OSError:
        os.replace(old, path)
        raise
    if old.is_dir() and not old.is_symlink():
        shutil.rmtree(old, ignore_errors=True)
    else:
        old.unlink()
