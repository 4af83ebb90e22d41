"""Where the masks of cases stand in a folder, as the tools that people use leave them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from medseg.core.errors import ConfigError
from medseg.io.file_names import bare_name
from medseg.io.formats import case_name, is_folder_scan, is_mask_object, is_scan
from medseg.io.probabilities import PROBABILITIES_SUFFIX

Masks = Mapping[str, Path]

STRUCTURES = "segmentations"  # where TotalSegmentator's data set has the structures of a case
DEEPEST = 3  # folders of folders of cases; links may lead round in circles


def find_masks(folder: Path, what: str) -> Masks:
    """The masks of a folder by name: its files or, where it holds none, those of its folders.

    A folder in it is one case whose structures have a file each (in `segmentations` below it, or in itself), unless it holds a
    DICOM SEG or a file that is called like the folder, or `seg`, `mask` and the like: then that is the case's mask. Where
    no two folders share a name of a file, and in folders of folders, the files are cases themselves.

    Raises: ConfigError where the folder is missing, holds no masks, or two of a name.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder} is not a folder; give the folder of the {what}.")
    files = _masks_in(folder)
    masks = _unique([(_name(path), path) for path in files], folder) if files else _in_folders(folder)
    if not masks:
        raise ConfigError(f"{folder} holds no label map in a format that can be read; give the folder of the {what}.")
    return masks


def _in_folders(folder: Path, depth: int = DEEPEST) -> Masks:
    found: list[tuple[str, Path]] = []
    structures: dict[Path, list[Path]] = {}
    empty: list[Path] = []
    for case in _folders_in(folder):
        inner = case / STRUCTURES if (case / STRUCTURES).is_dir() else case
        files = _masks_in(inner)
        own = [path for path in files if is_mask_object(path)] or [path for path in files if _is_whole(path, case)]
        if own:
            found += [(case.name, path) for path in own]
        elif files:
            structures[inner] = files
        elif is_empty_folder(inner):
            empty.append(inner)
        elif depth:
            found += _in_folders(case, depth - 1).items()
    folders = [*structures, *(empty if structures else ())]  # one without a file is a case too, not one less
    names = [case_name(path) for files in structures.values() for path in files]
    if len(structures) > 1 and len(set(names)) == len(names):
        found += [(_name(path), path) for files in structures.values() for path in files]
    else:
        found += [(inner.parent.name if inner.name == STRUCTURES else inner.name, inner) for inner in folders]
    return _unique(found, folder)


def _is_whole(path: Path, case: Path) -> bool:
    """True for a file in the folder of a case that is all of its mask, by its name."""
    name = case_name(path)
    return bare_name(name).lower() == case.name.lower() or bare_name(f"x_{name}") == "x"


def _unique(found: Sequence[tuple[str, Path]], folder: Path) -> Masks:
    masks: dict[str, Path] = {}
    for name, path in sorted(found):
        if (first := masks.setdefault(name, path)) != path:
            one, other = (p.relative_to(folder) for p in (first, path))
            raise ConfigError(f"{folder}: {one} and {other} are both case `{name}`; remove one.")
    return masks


def _masks_in(folder: Path) -> list[Path]:
    return sorted(filter(_holds_labels, _listed(folder)))


def _listed(folder: Path) -> list[Path]:
    try:
        found = list(folder.iterdir())
    except OSError as error:
        raise ConfigError(
            f"{folder} cannot be read ({error.strerror}); give yourself permission or give another folder."
        ) from None
    if strange := [path.name for path in found if any(0xD800 <= ord(letter) < 0xE000 for letter in path.name)]:
        raise ConfigError(f"{folder}: the name {strange[0]!a} is not UTF-8, so no table can hold it; rename it.")
    return found


def _folders_in(folder: Path) -> list[Path]:
    return sorted(p for p in _listed(folder) if p.is_dir() and not p.name.startswith(".") and not is_folder_scan(p))


def is_empty_folder(path: Path) -> bool:
    """True for a folder without a file: of a case in which a tool found no structure, or was interrupted."""
    return path.is_dir() and not any(not file.name.startswith(".") for file in _listed(path))


def _name(path: Path) -> str:
    """The case of a file: of DICOM, whose names may be UIDs, without `.dcm` or `.seg` only."""
    if is_scan(path):
        return case_name(path)
    return path.stem if path.suffix.lower() in (".dcm", ".seg") else path.name


def _holds_labels(path: Path) -> bool:
    if path.is_file() or (path.is_symlink() and not path.exists()):  # a link to what was never brought is a case all the same
        return (is_scan(path) and not path.name.endswith(PROBABILITIES_SUFFIX)) or is_mask_object(path)
    return is_folder_scan(path) and not path.name.endswith(PROBABILITIES_SUFFIX)
