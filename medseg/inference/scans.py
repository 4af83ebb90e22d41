"""The scans of a folder, as cases: which files belong together, which names clash, which files are no scans."""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from medseg.core.errors import UnreadableError
from medseg.core.files import file_sha256, files_below
from medseg.core.folders import folder_sha256
from medseg.inference.pseudonyms import Pseudonyms, identified, own_pseudonyms
from medseg.io.formats import SCAN_SUFFIXES, Source, case_name, is_folder_scan, is_scan
from medseg.io.series import Series, find_series, is_dicom
from medseg.io.tiff import set_files

HEADERS = (".mhd", ".nhdr")  # text headers whose voxels stand in a file of their own, named in a field
OME_TIFF = (".ome.tif", ".ome.tiff")
VOXEL_FILE = re.compile(rb"^\s*(?:ElementDataFile\s*=|data ?file:)\s*(.+?)\s*$", re.IGNORECASE | re.MULTILINE)
LONGEST_HEADER = 65536


@dataclass(frozen=True)
class Scan:
    """One case to segment, or one file that cannot be.

    Args:
        images: one source a channel.
        reason: why it is not segmented; empty where it is to be.
        skipped: True for a file that is no scan at all; it is nobody's failure.
        shown: what tables call its source; empty for its path below the folder that was given.
        private: its path may name a patient, and is not to be told.
    """

    case_id: str
    images: tuple[Source, ...]
    reason: str = ""
    skipped: bool = False
    shown: str = ""
    private: bool = False

    @property
    def files(self) -> list[Path]:
        """The files and folders that it is made of."""
        return [file for image in self.images for file in (image.files if isinstance(image, Series) else [image])]


def find_scans(place: Path, channels: Sequence[str], keep_identifiers: bool = False) -> list[Scan]:
    """Every file of a folder tree (or one file) as a case, in the order of their paths; hidden files are left out.

    A model of one image file a case takes each file as a case, each folder that is a picture (OME-Zarr), and each DICOM series,
    whatever its files are called. One of several takes `<case>_<channel>` or `<case>_0000`, `<case>_0001` (nnU-Net's names)
    together.

    Args:
        keep_identifiers: name DICOM cases after their patients, and tell their paths; else they have pseudonyms.
    Raises: UnreadableError where the place does not exist or holds no scan, or a folder in it cannot be read; ConfigError where
        there is no key for pseudonyms.
    """
    place = Path(place)
    alone = place.is_file() or is_folder_scan(place)
    if alone:
        files = sorted(place.parent.iterdir()) if len(channels) > 1 or (not is_scan(place) and is_dicom(place)) else [place]
        files = [path for path in files if path.is_file() or is_folder_scan(path)]
    elif place.is_dir():
        found = _files(place, keep_identifiers)
        voxels = {file for path in found for file in scan_files([path])[1:]}
        files = sorted(path for path in found if path not in voxels)
    else:
        raise UnreadableError(f"{place} does not exist; give a scan or a folder of scans.")
    series = find_series(path for path in files if not is_scan(path) and is_dicom(path))
    names = own_pseudonyms() if series and not keep_identifiers else None
    scans = _cases([p for p in files if is_scan(p)], channels) + _dicom_cases(series, channels, names)
    known = {file for scan in scans for file in scan.files}
    others = [Scan(p.name, (p,), "not a scan format that medseg reads", skipped=True) for p in files if p not in known]
    if alone:
        scans, others = [scan for scan in scans if place in scan.files], [scan for scan in others if place in scan.files]
    if not [scan for scan in scans if not scan.skipped]:
        raise UnreadableError(
            f"{place} holds no scan{_skipped(scans)}; give a scan or a folder of scans ({', '.join(SCAN_SUFFIXES)}, DICOM)."
        )
    folder = place if place.is_dir() and not alone else place.parent
    if names:  # before any reason is made of paths
        scans, others = ([_hidden(scan, folder, names) for scan in group] for group in (scans, others))
    return sorted(_refuse_same_names(scans, folder) + others, key=lambda scan: scan.files[0])


def scan_files(images: Sequence[Source]) -> list[Path]:
    """The files that images are made of: with the voxel files that text headers name, and the others of an OME-TIFF set."""
    return [part for image in images for part in (image.files if isinstance(image, Series) else _parts(image))]


def images_sha256(images: Sequence[Source]) -> str:
    """The SHA-256 of a scan: of its file, or of its files' hashes where it has several. Raises: UnreadableError."""
    told = not any(isinstance(image, Series) for image in images)
    try:
        hashes = [folder_sha256(path) if path.is_dir() else file_sha256(path) for path in scan_files(images)]
    except OSError as error:
        if not told:
            raise UnreadableError(f"a file of the series cannot be read ({error.strerror}); bring it back.") from None
        if isinstance(error, FileNotFoundError):
            what = "is a link to a file that does not exist" if Path(error.filename).is_symlink() else "does not exist"
            raise UnreadableError(f"{error.filename} {what}; mend its path or remove the case.") from None
        raise UnreadableError(f"{error.filename} cannot be read ({error.strerror}); mend it or remove the case.") from None
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def _files(place: Path, keep_identifiers: bool) -> list[Path]:
    try:
        return list(files_below(place, whole=is_folder_scan))
    except UnreadableError:
        if keep_identifiers:
            raise
        raise UnreadableError(
            f"a folder in {place} cannot be read; give yourself permission or move it elsewhere (--keep-identifiers tells which)."
        ) from None


def _dicom_cases(found: list[Series], channels: Sequence[str], names: Pseudonyms | None) -> list[Scan]:
    scans, taken = [], Counter(identified(series) for series in found)
    for series in found:
        case_id = names.case_id(series) if names else identified(series)
        if not names and taken[case_id] > 1:
            case_id += f"_{hashlib.sha256(series.uid.encode()).hexdigest()[:6]}"
        number = "" if series.number is None else f" series {series.number}"
        reason = series.reason
        if not reason and len(channels) > 1:
            reason = f"the model takes one file a channel ({', '.join(channels)}), and a DICOM series does not say which it is"
        shown = f"{case_id}{number}" if names else ""
        scans.append(Scan(case_id, (series,), reason, series.skipped, shown, private=names is not None))
    return scans


def _hidden(scan: Scan, folder: Path, names: Pseudonyms) -> Scan:
    """A file that lies among DICOM files without the folders of its path, and without its name where it is no scan."""
    if scan.private:
        return scan
    if scan.skipped:
        alias = names.file(str(scan.files[0].relative_to(folder)))
        return replace(scan, case_id=alias, shown=alias, private=True)
    return replace(scan, shown=";".join(path.name for path in scan.files), private=True)


def _skipped(scans: list[Scan]) -> str:
    kinds = sorted({scan.reason for scan in scans if scan.skipped})
    return f" ({', '.join(kinds)})" if kinds else ""


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


def _refuse_same_names(scans: list[Scan], folder: Path) -> list[Scan]:
    # Compared without case: on many disks p01 and P01 would be one file.
    of_name: dict[str, list[Scan]] = defaultdict(list)
    for scan in scans:
        of_name[scan.case_id.lower()].append(scan)
    result = []
    for scan in scans:
        others = [other for other in of_name[scan.case_id.lower()] if other is not scan]
        if others and not scan.reason:
            twin = others[0].shown or others[0].files[0].relative_to(folder)
            scan = replace(scan, reason=f"two scans would have the same name `{scan.case_id}` (the other is {twin}); rename one")
        result.append(scan)
    return result


def _parts(image: Path) -> list[Path]:
    """The file or folder, and the others that belong to it; of a set of equals, the first stands for all."""
    if image.name.lower().endswith(OME_TIFF):
        try:
            return set_files(image)
        except Exception:  # a damaged file is a case of its own, which says so
            return [image]
    voxels = _voxel_file(image)
    return [image] if voxels is None else [image, voxels]


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
