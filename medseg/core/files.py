"""Writing whole files or none, and telling files and settings apart by their hashes."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from medseg.core.errors import MedsegError, OutputError

# EEXIST and ENOTDIR: a file stands where a folder should be made.
UNWRITABLE = {
    getattr(errno, name)
    for name in ("ENOSPC", "EDQUOT", "EFBIG", "EACCES", "EROFS", "EPERM", "EEXIST", "ENOTDIR", "EISDIR", "ENAMETOOLONG")
    if hasattr(errno, name)
}
FULL_BYTES = 2**16  # a disk with less than this left is full


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, with the same suffixes, renamed to it when the block ends well.

    After an error, a kill or a full disk there is the old file or none, never half of one.

    Raises: OutputError where the folder or the file cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{secrets.token_hex(4)}.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
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


def _full(folder: Path) -> str | None:
    """The reason where the disk that holds `folder` has no space left."""
    try:
        return os.strerror(errno.ENOSPC) if shutil.disk_usage(folder).free < FULL_BYTES else None
    except OSError:
        return None


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
