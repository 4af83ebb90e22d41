"""The scans of a folder, as cases: which files belong together, which names clash, which files are no scans."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from medseg.core.errors import UnreadableError
from medseg.core.files import file_sha256, files_below
from medseg.io.formats import SCAN_SUFFIXES, case_name, is_scan

HEADERS = (".mhd", ".nhdr")  # text headers whose voxels stand in a file of their own, named in a field
VOXEL_FILE = re.compile(rb"^\s*(?:ElementDataFile\s*=|data ?file:)\s*(.+?)\s*$", re.IGNORECASE | re.MULTILINE)
LONGEST_HEADER = 65536


@dataclass(frozen=True)
class Scan:
    """One case to segment, or one file that cannot be.

    Args:
        images: one file a channel.
        reason: why it is not segmented; empty where it is to be.
        skipped: True for a file that is no scan at all; it is nobody's failure.
    """

    case_id: str
    images: tuple[Path, ...]
    reason: str = ""
    skipped: bool = False


def find_scans(place: Path, channels: Sequence[str]) -> list[Scan]:
    """Every file of a folder tree (or one file) as a case, in the order of their paths; hidden files are left out.

    A model of one image file a case takes each file as a case. One of several takes `<case>_<channel>` or `<case>_0000`,
    `<case>_0001` (nnU-Net's names) together.

    Raises: UnreadableError where the place does not exist or holds no scan, or a folder in it cannot be read.
    """
    place = Path(place)
    if place.is_file():
        files = [place] if len(channels) == 1 else [p for p in sorted(place.parent.iterdir()) if p.is_file() and is_scan(p)]
    elif place.is_dir():
        found = list(files_below(place))
        voxels = {file for path in found for file in scan_files([path])[1:]}
        files = sorted(path for path in found if path not in voxels)
    else:
        raise UnreadableError(f"{place} does not exist; give a scan or a folder of scans.")
    scans = _cases([p for p in files if is_scan(p)], channels)
    if place.is_file():
        scans = [scan for scan in scans if place in scan.images]
    if not scans:
        known = ", ".join(SCAN_SUFFIXES)
        raise UnreadableError(f"{place} holds no scan; give a scan or a folder of scans ({known}).")
    others = [Scan(p.name, (p,), "not a scan format that medseg reads", skipped=True) for p in files if not is_scan(p)]
    return sorted(_refuse_same_names(scans, place) + others, key=lambda scan: scan.images[0])


def scan_files(images: Sequence[Path]) -> list[Path]:
    """The images and, for text headers, the voxel files that they name."""
    return [file for image in images for file in (image, _voxel_file(image)) if file is not None]


def images_sha256(images: Sequence[Path]) -> str:
    """The SHA-256 of a scan: of its file, or of its files' hashes where it has several. Raises: UnreadableError."""
    try:
        hashes = [file_sha256(path) for path in scan_files(images)]
    except FileNotFoundError as error:
        what = "is a link to a file that does not exist" if Path(error.filename).is_symlink() else "does not exist"
        raise UnreadableError(f"{error.filename} {what}; mend its path or remove the case.") from None
    except OSError as error:
        raise UnreadableError(f"{error.filename} cannot be read ({error.strerror}); mend it or remove the case.") from None
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def _cases(files: list[Path], channels: Sequence[str]) -> list[Scan]:
    if len(channels) == 1:
        return [Scan(case_name(path), (path,)) for path in files]
    groups: dict[tuple[Path, str], dict[int, list[Path]]] = defaultdict(lambda: defaultdict(list))
    alone = []
    for path in files:
        name, channel = _split_name(case_name(path), channels)
        if channel is None:
            names = " and ".join(f"{name}_{c}" for c in channels)
            alone.append(Scan(name, (path,), f"the model takes one file a channel, so {names}; rename the file or remove it"))
        else:
            groups[path.parent, name][channel].append(path)
    return alone + [_joined(name, found, channels) for (_, name), found in groups.items()]


def _split_name(name: str, channels: Sequence[str]) -> tuple[str, int | None]:
    """`p01_t2` as (`p01`, index of t2); (`name`, None) where it ends in no channel's name."""
    for index, channel in enumerate(channels):
        for ending in (f"_{channel}", f"_{index:04d}"):
            if len(name) > len(ending) and name.lower().endswith(ending.lower()):
                return name[: -len(ending)], index
    return name, None


def _joined(name: str, found: dict[int, list[Path]], channels: Sequence[str]) -> Scan:
    images = tuple(path for index in sorted(found) for path in found[index])
    if missing := [channel for index, channel in enumerate(channels) if index not in found]:
        return Scan(
            name, images, f"the file of channel {', '.join(missing)} is missing; put {name}_{missing[0]} beside {images[0].name}"
        )
    if double := [paths for paths in found.values() if len(paths) > 1]:
        return Scan(name, images, f"{' and '.join(p.name for p in double[0])} are the same channel; remove one")
    return Scan(name, images)


def _refuse_same_names(scans: list[Scan], place: Path) -> list[Scan]:
    # Compared without case: on many disks p01 and P01 would be one file.
    of_name: dict[str, list[Scan]] = defaultdict(list)
    for scan in scans:
        of_name[scan.case_id.lower()].append(scan)
    result = []
    for scan in scans:
        others = [other for other in of_name[scan.case_id.lower()] if other is not scan]
        if others and not scan.reason:
            twin = others[0].images[0].relative_to(place) if place.is_dir() else others[0].images[0].name
            scan = replace(scan, reason=f"two scans would have the same name `{scan.case_id}` (the other is {twin}); rename one")
        result.append(scan)
    return result


def _voxel_file(image: Path) -> Path | None:
    """The file that a text header names for its voxels, where it is there."""
    if image.suffix.lower() not in HEADERS:
        return None
    try:
        with open(image, "rb") as file:
            named = VOXEL_FILE.search(file.read(LONGEST_HEADER))
    except OSError:
        return None
    voxels = image.parent / named[1].decode("utf-8", "replace") if named else image
    return voxels if voxels != image and voxels.is_file() else None
