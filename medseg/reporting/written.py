"""A report takes the place of the one before it: what it no longer says goes, what others put there stays."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from medseg.core.errors import OutputError
from medseg.core.files import file_sha256, held_alone, remove, write_json

LIST = "files.json"
STAGING = ".new"  # hidden: what stands in it is no report yet
OLDER = {"report.pdf": None}  # written by versions that kept no list: a PDF beside another page would be of other figures
LAST = "report.html"
Known = dict[str, list[str] | None]


@contextlib.contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """A folder to write a report into; at the end of the block its files take the place of the report in `folder`.

    `files.json` lists what reports have written, with the SHA-256 of each, from before the first file is put in its place; so
    also after a kill the next report knows what it may remove. A file that was changed since is no longer the report's and stays.

    Raises: OutputError where `folder` cannot be written; StageError where another report is being written there. Where the block
        fails, the older report stands as it was.
    """
    staging = folder / STAGING
    with held_alone(folder, "a report"):
        shutil.rmtree(staging, ignore_errors=True)  # of a report that was killed
        staging.mkdir()
        try:
            yield staging
            _replace(folder, staging)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def _replace(folder: Path, staging: Path) -> None:
    fresh = {p.relative_to(staging).as_posix(): file_sha256(p) for p in sorted(staging.rglob("*")) if p.is_file()}
    before = _known(folder)
    _write_list(folder, {**before, **{name: [*(before.get(name) or ()), sha256] for name, sha256 in fresh.items()}})
    for name in sorted(fresh, key=lambda name: name == LAST):
        _move(staging / name, folder / name)
    for name in before.keys() - fresh.keys():
        _remove_own(folder, name, before[name])
    _write_list(folder, {name: [sha256] for name, sha256 in fresh.items()})


def _known(folder: Path) -> Known:
    """What earlier reports have written here: for each file, its hashes, or None where any content is a report's."""
    try:
        listed = json.loads((folder / LIST).read_text(encoding="utf-8"))["files"]
        return {name: list(map(str, hashes)) for name, hashes in listed.items() if _inside(name)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return dict(OLDER)


def _inside(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts


def _write_list(folder: Path, files: Known) -> None:
    listed = {name: hashes for name, hashes in sorted(files.items()) if hashes}
    write_json(
        folder / LIST, {"about": "what the report wrote: a later report removes these files and no other", "files": listed}
    )


def _move(source: Path, target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.replace(source, target)
        except OSError:  # a link to another disk
            shutil.copyfile(source, target)
    except OSError as error:
        raise OutputError(f"{target} cannot be written ({error.strerror}); choose another output.") from error


def _remove_own(folder: Path, name: str, hashes: list[str] | None) -> None:
    path = folder / name
    if not path.is_file() or (hashes is not None and file_sha256(path) not in hashes):
        return
    remove(path)
    for above in path.relative_to(folder).parents[:-1]:
        with contextlib.suppress(OSError):  # something else stands in it
            (folder / above).rmdir()
