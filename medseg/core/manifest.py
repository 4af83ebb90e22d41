"""The list of cases: a CSV with one row a case."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import pandas as pd

from medseg.core.errors import ManifestError
from medseg.core.wording import one_line

Split = Literal["train", "val", "test", ""]
OWN_COLUMNS = {"case_id", "image", "label", "split", "patient_id"}


@dataclass(frozen=True)
class Case:
    """One row of a manifest: the pictures of one subject at one time, on one grid.

    Args:
        images: one file a channel, in the order of `Manifest.channels`.
        label: the reference, or None where there is none.
        patient_id: whom the case belongs to; the case itself where the manifest names nobody.
    """

    case_id: str
    images: tuple[Path, ...]
    label: Path | None = None
    split: Split = ""
    patient_id: str = ""
    covariates: dict[str, str] = field(default_factory=dict)

    @property
    def unit(self) -> str:
        """Whom resampling draws: the patient, or the case where none is named."""
        return self.patient_id or self.case_id


@dataclass(frozen=True)
class Manifest:
    """All cases of a data set. `channels` names the image files of each case, `("image",)` for a single one."""

    path: Path
    channels: tuple[str, ...]
    cases: tuple[Case, ...]

    def of(self, *splits: Split) -> list[Case]:
        """The cases of these splits, in the order of the file."""
        return [case for case in self.cases if case.split in splits]


def read_manifest(path: Path, root: Path) -> Manifest:
    """Read and check a manifest; its file paths count from `root`. Files are not opened.

    Raises: ManifestError naming row and case: no such file, a missing column, an empty or double case_id, an unknown
        split, a patient in two splits.
    """
    manifest, problems = scan_manifest(path, root)
    if problems:
        raise problems[0]
    return manifest


def scan_manifest(path: Path, root: Path) -> tuple[Manifest, list[ManifestError]]:
    """The cases of a manifest whose rows can be understood, and everything that is wrong with it, in the order of the file.

    Raises: ManifestError where the table as a whole cannot be understood.
    """
    path = Path(path)
    table, image_columns = _read_table(path)
    covariates = [c for c in table.columns if c not in OWN_COLUMNS and c not in image_columns]
    cases: dict[int, Case] = {}
    problems: list[ManifestError] = []
    for number, row in zip(table.index + 1, table.to_dict("records"), strict=True):  # as a spreadsheet counts its rows
        try:
            values = {str(k): v.strip() for k, v in row.items()}
            cases[number] = _case(values, image_columns, covariates, root, f"{path} row {number}")
        except ManifestError as error:
            problems.append(error)
    problems += [*_double_names(cases, path), *_split_patients(cases.values(), path)]
    return Manifest(path, tuple(c.removeprefix("image_") for c in image_columns), tuple(cases.values())), problems


def _read_table(path: Path) -> tuple[pd.DataFrame, list[str]]:
    """The table as text, and its image columns."""
    try:
        # The header is read as a row like any other: pandas would rename a column that stands twice.
        rows = pd.read_csv(
            path, dtype=str, keep_default_na=False, header=None, skipinitialspace=True, skip_blank_lines=False
        ).fillna("")
        rows = rows[(rows != "").any(axis="columns")]
    except FileNotFoundError:
        raise ManifestError(f"{path} does not exist; make it with `medseg manifest IMAGES LABELS`.") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError, OSError) as error:
        raise ManifestError(f"{path} is not a readable CSV table ({one_line(error)}); correct it.") from None
    if rows.empty:
        raise ManifestError(f"{path} has no rows; write the names of its columns and one row for each case.")
    names = [str(name).strip().removeprefix("\ufeff") for name in rows.iloc[0]]
    table = rows.iloc[1:].set_axis(names, axis="columns")
    image_columns = ["image"] if "image" in names else [c for c in names if c.startswith("image_")]
    missing = [c for c in ("case_id", "label", "split") if c not in names] + ([] if image_columns else ["image"])
    if missing:
        raise ManifestError(f"{path} has no column {', '.join(missing)} (it has: {', '.join(names)}); add it.")
    if double := [c for c in names if names.count(c) > 1]:
        raise ManifestError(f"{path} has two columns called `{double[0]}`; rename or remove one.")
    if image_columns == ["image"] and (more := [c for c in names if c.startswith("image_")]):
        raise ManifestError(
            f"{path} has the columns `image` and `{more[0]}`; name every channel image_<name>, or give one image."
        )
    if table.empty:
        raise ManifestError(f"{path} has no rows; add one row for each case.")
    return table, image_columns


def _case(row: dict[str, str], image_columns: list[str], covariates: list[str], root: Path, where: str) -> Case:
    case_id = row["case_id"]
    if not case_id:
        raise ManifestError(f"{where}: case_id is empty; give every case a name.")
    if any(c in case_id for c in '/\\:*?"<>|') or case_id.startswith("."):
        raise ManifestError(f"{where}: case_id `{case_id}` cannot be a file name; use letters, digits, '-' and '_'.", case_id)
    if row["split"] not in get_args(Split):
        raise ManifestError(
            f"{where} (case {case_id}): split `{row['split']}` is none of train, val, test or empty; correct it.", case_id
        )
    if empty := [c for c in image_columns if not row[c]]:
        raise ManifestError(f"{where} (case {case_id}): {empty[0]} is empty; name the file or remove the row.", case_id)
    return Case(
        case_id=case_id,
        images=tuple(Path(root) / row[c] for c in image_columns),
        label=Path(root) / row["label"] if row["label"] else None,
        split=row["split"],  # type: ignore[arg-type]
        patient_id=row.get("patient_id", ""),
        covariates={c: row[c] for c in covariates},
    )


def _double_names(cases: Mapping[int, Case], path: Path) -> Iterator[ManifestError]:
    seen: dict[str, int] = {}
    for number, case in cases.items():
        # Compared without case: on many disks p01 and P01 would be one file.
        if (first := seen.setdefault(case.case_id.lower(), number)) != number:
            message = f"{path} row {number}: case_id `{case.case_id}` stands in row {first} already; rename one."
            yield ManifestError(message, case.case_id)


def _split_patients(cases: Iterable[Case], path: Path) -> Iterator[ManifestError]:
    splits: dict[str, dict[str, str]] = defaultdict(dict)
    for case in cases:
        if case.patient_id:
            splits[case.patient_id].setdefault(case.split, case.case_id)
    for patient, places in splits.items():
        if len(places) > 1:
            (a, case_a), (b, case_b) = list(places.items())[:2]
            message = (
                f"{path}: patient `{patient}` is in two splits, {a or 'none'} (case {case_a}) and {b or 'none'} (case {case_b}); "
                "put all cases of a patient into one split."
            )
            yield ManifestError(message, case_b)
