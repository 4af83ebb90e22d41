"""Where the gallery finds the cases of evaluations over folders: the masks that were compared, and images that are named."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medseg.core.errors import ConfigError
from medseg.core.labels import LabelScheme
from medseg.core.manifest import Case
from medseg.core.wording import some_of
from medseg.evaluation.pairs import Pair, pair_folders
from medseg.io.file_names import CHANNEL_SUFFIX
from medseg.io.formats import case_name, is_folder_scan, is_scan

IMAGE_NAMES = ("ct", "mr", "mri", "image")  # of the scan in the folder of a case
HOW = "“medseg report DIR --images DIR”"


@dataclass(frozen=True, eq=False)
class Pictures:
    """What the gallery draws of evaluations over folders.

    Args:
        labels: the scheme that all of them were evaluated with.
        cases: with the image that was found, if any, and the reference.
        masks: for each evaluation, the mask of each case that has one.
        nearest: evaluations in which masks on other voxels were resampled.
        note: what is not shown, and how to have it, in a sentence or two; may be empty.
        missing_empty: a structure without a mask counted as absent.
    """

    labels: LabelScheme
    cases: tuple[Case, ...] = ()
    masks: Mapping[str, Mapping[str, Path]] = field(default_factory=dict)
    nearest: frozenset[str] = frozenset()
    note: str = ""
    missing_empty: bool = False


def find_pictures(records: Mapping[str, dict[str, Any]], images: Path | None = None) -> Pictures | None:
    """The masks that evaluations compared, and their images.

    Args:
        records: the stage.json of each evaluation, by its name in the report.
        images: a folder with a file a case, called like it; or with nnU-Net's `_0000` behind, of which the first channel is
            shown; or with a folder a case that holds the scan, a DICOM series too.
    Returns: None where no evaluation is of two folders, so that there is nothing to draw.
    Raises: ConfigError where `images` is no folder, holds two files of a case, or none of any.
    """
    own = {name: inputs for name, record in records.items() if "references" in (inputs := record.get("inputs", {}))}
    if not own:
        if images is not None:
            raise ConfigError(
                "--images is for evaluations of two folders of masks; a run’s images are known to its configuration: give that."
            )
        return None
    first = next(iter(own.values()))
    alike = {n: i for n, i in own.items() if _read_by(i) == _read_by(first)}
    pairs, gone = _pairs(alike)
    references = {p.case_id: p.reference for found in pairs.values() for p in found}
    found = find_images(images, references) if images is not None else {}
    others = [name for name in own if name not in alike]
    return Pictures(
        LabelScheme.model_validate(first["labels"]),
        tuple(Case(c, (found[c],) if c in found else (), path) for c, path in references.items()),
        {name: {p.case_id: p.prediction for p in of if p.prediction is not None} for name, of in pairs.items()},
        frozenset(name for name, i in alike.items() if i.get("evaluate", {}).get("resample") == "nearest"),
        " ".join([*gone, *_notes(images, [c for c in references if c not in found], others)]),
        missing_empty=_read_by(first)[-1] == "empty",
    )


def _read_by(inputs: Mapping[str, Any]) -> tuple[Any, ...]:
    """What says how references were read, in the record of an evaluation."""
    return inputs.get("references"), inputs.get("labels"), inputs.get("evaluate", {}).get("missing_structures", "unreadable")


def _pairs(evaluations: Mapping[str, dict[str, Any]]) -> tuple[dict[str, list[Pair]], list[str]]:
    pairs, gone = {}, []
    for name, inputs in evaluations.items():
        try:
            pairs[name] = pair_folders(Path(inputs["predictions"]), Path(inputs["references"]))[0]
        except ConfigError as error:
            gone.append(f"Of {name} there are no pictures, for its masks are not where they were evaluated: {error}")
    return pairs, gone


def _notes(images: Path | None, without: list[str], others: list[str]) -> Iterator[str]:
    if images is None:
        yield f"No images are known, so outlines stand on black; {HOW} shows them on the scans."
    elif without:
        yield f"In {images.name} there is no image of {some_of(without)}; their outlines stand on black."
    if others:
        yield f"Of {some_of(others)} there are no pictures, for other references or structures were evaluated; report it apart."


def find_images(folder: Path, case_ids: Iterable[str]) -> dict[str, Path]:
    """The image of each case that has one, as `find_pictures` describes; capitals do not matter. Raises: ConfigError."""
    if not folder.is_dir():
        raise ConfigError(f"{folder} is not a folder; give --images the folder of the images.")
    case_of = {case_id.lower(): case_id for case_id in case_ids}
    found: dict[str, Path] = {}
    names: dict[str, str] = {}
    for path in sorted(p for p in folder.iterdir() if not p.name.startswith(".")):
        if (image := _image(path)) is None:
            continue
        name = case_name(path) if is_scan(path) else path.name
        case = case_of.get(name.lower()) or case_of.get(CHANNEL_SUFFIX.sub("", name).lower())
        if case is None or (case in found and names[case] != name):  # a further channel
            continue
        if case in found:
            raise ConfigError(f"{folder}: {found[case].name} and {path.name} are both case `{case}`; remove one.")
        found[case], names[case] = image, name
    if not found:
        example = next(iter(case_of.values()), "")
        raise ConfigError(
            f"no image of {folder} is called like a case (such as `{example}`); give the folder whose files, or folders, are."
        )
    return found


def _image(path: Path) -> Path | None:
    """The scan that a file, or the folder of a case, is or holds."""
    if path.is_file() or is_folder_scan(path):
        return path if is_scan(path) else None
    if not path.is_dir():
        return None
    files = sorted(p for p in path.iterdir() if is_scan(p))
    named = [p for p in files if case_name(p).lower() in IMAGE_NAMES]
    if not files:
        return path  # a DICOM series, perhaps
    return files[0] if len(files) == 1 else named[0] if named else None
