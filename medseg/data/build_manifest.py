"""A manifest from a folder of scans and a folder of labels, matched by their file names."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from medseg.core.errors import ManifestError
from medseg.core.files import files_below
from medseg.io.file_names import CHANNEL_SUFFIX, MASK_SUFFIX
from medseg.io.formats import SCAN_SUFFIXES, case_name, is_scan


@dataclass(frozen=True)
class ManifestDraft:
    """Rows for a manifest, and the files that found no partner.

    Args:
        root: what the paths in `table` count from: the deepest folder that holds both folders.
        table: columns case_id, patient_id (empty), image or image_<channel>, label, split (empty).
    """

    root: Path
    table: pd.DataFrame
    images_without_label: list[Path]
    labels_without_image: list[Path]


def build_manifest(images: Path, labels: Path) -> ManifestDraft:
    """Match scans and labels by name, below both folders.

    `p01_seg`, `p01_mask` or `p01_label` is the label of `p01`; `p01_0000` and `p01_0001` are its channels where no label has
    those very names. The two folders may be one, in which the labels are the files with such an ending; that of the labels may
    lie in that of the scans.

    Raises: ManifestError where a folder is missing or holds no scan, nothing matches, two files claim one case, or the cases
        have different channels; UnreadableError where a folder cannot be read.
    """
    images, labels = Path(images).resolve(), Path(labels).resolve()
    image_files, label_files = _scans(images), _scans(labels)
    if images == labels:
        label_files = [path for path in label_files if MASK_SUFFIX.search(case_name(path))]
    if labels.is_relative_to(images):
        taken = set(label_files)
        image_files = [path for path in image_files if path not in taken]
    by_case = _by_case(label_files)
    channels: dict[str, dict[str, Path]] = defaultdict(dict)
    unmatched = []
    for path in image_files:
        case, channel = _case_and_channel(case_name(path), by_case)
        if case not in by_case:
            unmatched.append(path)
        elif other := channels[case].get(channel):
            raise ManifestError(f"{other} and {path} are both the scan of case {case}; rename or move one of them.")
        else:
            channels[case][channel] = path
    if not channels:
        raise ManifestError(
            f"no scan in {images} has a label in {labels}; give both the same name, such as p01.nii.gz and p01_seg.nii.gz."
        )
    names = _same_channels(channels)
    root = Path(os.path.commonpath([images, labels]))
    columns = ["image"] if len(names) == 1 else [f"image_{name}" for name in names]
    rows = [
        [case, "", *(files[name].relative_to(root).as_posix() for name in names), by_case[case].relative_to(root).as_posix(), ""]
        for case, files in sorted(channels.items())
    ]
    table = pd.DataFrame(rows, columns=["case_id", "patient_id", *columns, "label", "split"])
    return ManifestDraft(root, table, unmatched, [path for case, path in by_case.items() if case not in channels])


def _scans(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise ManifestError(f"{folder} is not a folder; give the folder of the scans and the folder of their labels.")
    found = sorted(path for path in files_below(folder) if is_scan(path))
    if not found:
        raise ManifestError(f"{folder} holds no scan; give a folder with files of the kinds {', '.join(SCAN_SUFFIXES)}.")
    return found


def _by_case(labels: Iterable[Path]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in labels:
        case = MASK_SUFFIX.sub("", case_name(path))
        if case in found:
            raise ManifestError(f"{found[case]} and {path} are both the label of case {case}; rename or move one of them.")
        found[case] = path
    return found


def _case_and_channel(name: str, labelled: dict[str, Path]) -> tuple[str, str]:
    match = CHANNEL_SUFFIX.search(name)
    if name in labelled or match is None:
        return name, ""
    return name[: match.start()], match[1]


def _same_channels(channels: dict[str, dict[str, Path]]) -> list[str]:
    """The channel names that all cases have. Raises: ManifestError naming a case that differs."""
    first_case, first = min(channels.items())
    for case, files in sorted(channels.items()):
        if files.keys() != first.keys():
            raise ManifestError(
                f"case {case} has the channels {_names(files)} and case {first_case} has "
                f"{_names(first)}; add the missing files or move the case elsewhere."
            )
    return sorted(first)


def _names(channels: Iterable[str]) -> str:
    return ", ".join(f"_{name}" if name else "(no channel number)" for name in sorted(channels))
