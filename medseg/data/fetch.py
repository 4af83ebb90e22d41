"""Public data sets: brought, checked against their checksums, and laid out as the manifests name their files."""

from __future__ import annotations

import hashlib
import io
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.request import urlopen

from medseg.core.errors import ConfigError, FetchError
from medseg.core.files import atomic_path, file_sha256, write_text
from medseg.core.progress import progress, say
from medseg.data.tiles import NUCLEI_SAMPLE, write_tiles

CHECKSUMS = "SHA256SUMS"  # written last: a folder that holds it was finished
CHUNK = 2**20

STARDIST = "stardist==0.9.2"
# The wheel of one platform for every platform: its pictures are wanted, its code is never installed.
STARDIST_WHEEL = ("--python-version", "3.11", "--implementation", "cp", "--platform", "manylinux_2_28_x86_64")
NUCLEI_PICTURES = {
    "images": ("stardist/data/images/img2d.tif", "f9ccc1571b92c861ff87e28463068b43f61bd47357ed0503f711e5cd1eb97750"),
    "labels": ("stardist/data/images/mask2d.tif", "59ad5e820b7982ca9d13e946fa6e7f64e2714899e00a2ae6c69aa79aad53d46f"),
}

# As monai.apps.DecathlonDataset holds them (MONAI 1.6).
HIPPOCAMPUS_URL = "https://msd-for-monai.s3-us-west-2.amazonaws.com/Task04_Hippocampus.tar"
HIPPOCAMPUS_MD5 = "9d24dba78a72977dbd1d2e110310f31b"
HIPPOCAMPUS_MEMBER = re.compile(r"(?:.*/)?(imagesTr|labelsTr)/(hippocampus_\d+\.nii\.gz)")
HIPPOCAMPUS_FOLDERS = {"imagesTr": "images", "labelsTr": "labels"}


@dataclass(frozen=True)
class PublicDataSet:
    """A data set that `medseg fetch` knows.

    Args:
        about, licence: one line each, for the person who fetches it.
        bring: lays the files out below a folder, from an archive on disk where one is given, and returns them.
    """

    about: str
    licence: str
    bring: Callable[[Path, Path | None], list[Path]]


def fetch_dataset(name: str, root: Path, archive: Path | None = None) -> bool:
    """Bring a public data set to `root`, or verify the one that stands there.

    Args:
        archive: a copy of the archive on disk; nothing is then downloaded.
    Returns: False where the data were there already, every file as its checksum says.
    Raises: ConfigError for an unknown name; FetchError where the data cannot be reached or are not what they should be;
        OutputError where they cannot be written.
    """
    if name not in DATASETS:
        raise ConfigError(f"no public data set is called `{name}` (known: {', '.join(DATASETS)}).")
    if archive is not None and not archive.is_file():
        raise FetchError(f"{archive} does not exist; give the path of a downloaded copy with --archive.")
    if (count := finished(root)) is not None:
        say(f"{name}: {count} files in {root} are complete and verified; nothing to do.")
        return False
    dataset = DATASETS[name]
    say(f"{name}: {dataset.about}. Licence: {dataset.licence}.")
    files = dataset.bring(root, archive)
    lines = [f"{file_sha256(path)}  {path.relative_to(root).as_posix()}\n" for path in sorted(files)]
    write_text(root / CHECKSUMS, "".join(lines))
    say(f"{name}: {len(files)} files written to {root}.")
    return True


def finished(root: Path) -> int | None:
    """How many files a finished and intact fetch left in `root`; None where there is none or a file has changed."""
    try:
        lines = (root / CHECKSUMS).read_text(encoding="utf-8").splitlines()
        entries = [line.split("  ", 1) for line in lines]
        intact = all(file_sha256(root / name) == digest for digest, name in entries)
    except (OSError, ValueError):
        return None
    return len(entries) if intact and entries else None


def bring_nuclei_sample(root: Path, archive: Path | None) -> list[Path]:
    """The nuclei picture and its annotation out of the stardist wheel, cut into the tiles of `NUCLEI_SAMPLE`."""
    import tifffile

    with tempfile.TemporaryDirectory(prefix="medseg-fetch-") as folder:
        wheel = archive or download_wheel(Path(folder))
        content = {name: _member(wheel, member, sha256) for name, (member, sha256) in NUCLEI_PICTURES.items()}
    return write_tiles({name: tifffile.imread(io.BytesIO(data)) for name, data in content.items()}, NUCLEI_SAMPLE, root)


def download_wheel(folder: Path) -> Path:
    """Have pip download the stardist wheel, from whatever index this machine's pip uses. Raises: FetchError."""
    options = ("--no-deps", "--only-binary=:all:", *STARDIST_WHEEL, "--retries", "2", "--no-input", "--quiet")
    command = [sys.executable, "-m", "pip", "download", STARDIST, *options, "--dest", str(folder)]
    say(f"downloading {STARDIST} with pip (3 MB; its pictures are used, it is not installed)")
    result = subprocess.run(command, capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if result.returncode or not wheels:
        lines = [line for line in result.stderr.splitlines() if line.strip()]
        said = next((line for line in lines if line.startswith("ERROR")), lines[-1] if lines else "no message").strip()
        raise FetchError(
            f"pip could not bring {STARDIST} ({said.removeprefix('ERROR: ').rstrip('.')}); check the network and pip's index "
            "settings, or download its wheel for manylinux and Python 3.11 elsewhere and give it with --archive FILE."
        )
    return wheels[0]


def _member(wheel: Path, member: str, sha256: str) -> bytes:
    try:
        with zipfile.ZipFile(wheel) as content:
            data = content.read(member)
    except (zipfile.BadZipFile, KeyError, OSError) as error:
        raise FetchError(f"{wheel} holds no {member} ({error}); give the wheel of {STARDIST}.") from None
    if hashlib.sha256(data).hexdigest() != sha256:
        raise FetchError(f"{wheel}: {member} has another checksum than it should; give the wheel of {STARDIST}.")
    return data


def bring_hippocampus(root: Path, archive: Path | None) -> list[Path]:
    """Task04 of the Medical Segmentation Decathlon: its labelled cases, as `images/` and `labels/`."""
    with tempfile.TemporaryDirectory(prefix="medseg-fetch-") as folder:
        tar = archive or download(HIPPOCAMPUS_URL, Path(folder) / "Task04_Hippocampus.tar")
        if (found := _md5(tar)) != HIPPOCAMPUS_MD5:
            raise FetchError(
                f"{tar.name} has the MD5 {found}, not {HIPPOCAMPUS_MD5}; it is damaged or another file, get it again."
            )
        return _extract_hippocampus(tar, root)


def _extract_hippocampus(tar: Path, root: Path) -> list[Path]:
    names: dict[str, set[str]] = {"images": set(), "labels": set()}
    files = []
    try:
        with tarfile.open(tar) as archive:
            for entry in archive:
                # No path of the archive is followed: a file's own name is all that is taken (`._` files do not match).
                match = HIPPOCAMPUS_MEMBER.fullmatch(entry.name)
                source = archive.extractfile(entry) if match and entry.isfile() else None
                if match is None or source is None:
                    continue
                folder, name = HIPPOCAMPUS_FOLDERS[match[1]], match[2]
                with atomic_path(root / folder / name) as temporary, open(temporary, "wb") as target:
                    shutil.copyfileobj(source, target)
                names[folder].add(name)
                files.append(root / folder / name)
    except (tarfile.TarError, EOFError) as error:
        raise FetchError(f"{tar} is not a readable tar archive ({error}); get it again.") from None
    if not files or names["images"] != names["labels"]:
        raise FetchError(
            f"{tar} holds {len(names['images'])} scans and {len(names['labels'])} labels that do not pair; get it again."
        )
    return files


def download(url: str, path: Path) -> Path:
    """The file at `url`, written to `path` whole or not at all. Raises: FetchError."""
    try:
        with urlopen(url, timeout=60) as source, atomic_path(path) as temporary, open(temporary, "wb") as target:
            total = int(source.headers.get("Content-Length") or 0)
            _copy(source, target, total, f"downloading {path.name} (MB)")
            if total and target.tell() != total:
                raise FetchError(f"{url} broke off after {target.tell()} of {total} bytes; run the command again.")
    except (OSError, ValueError) as error:
        raise FetchError(
            f"{url} cannot be reached ({error}); check the network, or download it elsewhere and give it with --archive FILE."
        ) from None
    return path


def _copy(source: IO[bytes], target: IO[bytes], total: int, title: str) -> None:
    with progress(title, round(total / CHUNK, 1) or 1) as advance:
        while chunk := source.read(CHUNK):
            target.write(chunk)
            advance(round(target.tell() / CHUNK, 1))


def _md5(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


DATASETS: dict[str, PublicDataSet] = {
    "nuclei-sample": PublicDataSet(
        "one fluorescence image of 512 x 512 pixels with 125 annotated nuclei (2018 Data Science Bowl, BBBC038), cut into tiles",
        "CC0",
        bring_nuclei_sample,
    ),
    "hippocampus": PublicDataSet(
        "Task04 of the Medical Segmentation Decathlon, 260 labelled MR crops of the hippocampus (27 MB)",
        "CC BY-SA 4.0",
        bring_hippocampus,
    ),
}
