"""Finding files, writing whole files or none, and telling files and settings apart by their hashes."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from medseg.core.errors import MedsegError, OutputError, StageError, UnreadableError
from medseg.core.progress import say

# EEXIST and ENOTDIR: a file stands where a folder should be made.
UNWRITABLE = {
    getattr(errno, name)
    for name in ("ENOSPC", "EDQUOT", "EFBIG", "EACCES", "EROFS", "EPERM", "EEXIST", "ENOTDIR", "EISDIR", "ENAMETOOLONG")
    if hasattr(errno, name)
}
TEMPORARY = re.compile(r"\.[0-9a-f]{8}\..+")  # the names that `atomic_path` gives
FULL_BYTES = 2**16  # a disk with less than this left is full


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, with the same suffixes, renamed to it when the block ends well.

    After an error, a kill, a full disk or a power cut there is the old file or none, never half of one.

    Raises: OutputError where the folder or the file cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{secrets.token_hex(4)}.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _to_disk(temporary)
        os.replace(temporary, path)
    except MedsegError:
        raise
    except Exception as error:
        # Some writers hide the disk's own error behind one of theirs, so the free space is asked too.
        if reason := (error.strerror if isinstance(error, OSError) and error.errno in UNWRITABLE else _full(path.parent)):
            raise OutputError(f"{path} cannot be written ({reason}); free space or choose another output.") from error
        raise
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _to_disk(path: Path) -> None:
    """See to it that a file's content is on the disk before its name is."""
    with open(path, "r+b") as file:
        os.fsync(file.fileno())


def _full(folder: Path) -> str | None:
    """The reason where the disk that holds `folder` has no space left."""
    try:
        return os.strerror(errno.ENOSPC) if shutil.disk_usage(folder).free < FULL_BYTES else None
    except OSError:
        return None


@contextlib.contextmanager
def held_alone(folder: Path, what: str) -> Iterator[None]:
    """Keep other processes out of a folder while the block runs; the system lets go of it when this process ends, however.

    Args:
        what: the command that is at it, for the sentence.
    Raises: StageError where another process is at it; OutputError where the folder cannot be written.
    """
    path = folder / ".lock"
    lock = FileLock(path, timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise StageError(f"{folder}: another process is at {what} there; wait for it, or end it.") from None
    except NotImplementedError:  # a file system without locks
        say(f"{folder}: the file system cannot keep other processes out; see to it that {what} runs there once only")
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror}); choose another output.") from error
    try:
        yield
    finally:
        lock.release()


def remove(path: Path) -> None:
    """Remove a file where there is one. Raises: OutputError where it cannot be removed."""
    try:
        Path(path).unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"{path} cannot be removed ({error.strerror}); remove it or choose another output.") from error


def remove_leftovers(folder: Path) -> None:
    """Remove what a kill left of `atomic_path` in a folder that no other process writes to. Raises: OutputError."""
    for path in Path(folder).glob(".*"):
        if TEMPORARY.fullmatch(path.name):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                remove(path)


def files_below(place: Path, whole: Callable[[Path], bool] = lambda folder: False) -> Iterator[Path]:
    """Every file of a folder tree, through links too; hidden files and folders are left out.

    Args:
        whole: tells folders that are named themselves, in place of what is in them.

    A link whose target is missing is named as well: it is for the caller to say so. A folder that several links lead to, or a
    link to a folder above it, is gone through once.

    Raises: UnreadableError where a folder cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise UnreadableError(f"{error.filename} cannot be read ({error.strerror}); mend it or move it elsewhere.") from None

    seen = {os.path.realpath(place)}
    for folder, folders, files in os.walk(place, onerror=refuse, followlinks=True):
        real = {name: os.path.realpath(Path(folder, name)) for name in sorted(folders) if not name.startswith(".")}
        folders[:] = []
        yield from (path for name in real if whole(path := Path(folder, name)))
        for name, target in real.items():
            if target not in seen and not whole(Path(folder, name)):
                seen.add(target)
                folders.append(name)
        yield from (path for name in sorted(files) if not name.startswith(".") and _may_be_file(path := Path(folder, name)))


def _may_be_file(path: Path) -> bool:
    """False for pipes and devices; a link to nothing passes for a file, since nobody can look."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return True


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path`, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False, default=str) + "\n")


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def json_sha256(value: Any) -> str:
    """The SHA-256 of a value's canonical JSON: the same settings give the same hash in any key order."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()
