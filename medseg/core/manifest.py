"""The list of cases: a CSV with one row a case."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import pandas as pd

from medseg.core.errors import ManifestError

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
    path = Path(path)
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except FileNotFoundError:
        raise ManifestError(f"{path} does not exist; make it with `medseg manifest IMAGES LABELS`.") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise ManifestError(f"{path} is not a readable CSV table: {' '.join(str(error).split())}.") from None
    table.columns = table.columns.str.strip()
    image_columns = ["image"] if "image" in table else [c for c in table.columns if c.startswith("image_")]
    missing = [c for c in ("case_id", "label", "split") if c not in table] + ([] if image_columns else ["image"])
    if missing:
        raise ManifestError(f"{path} has no column {', '.join(missing)} (it has: {', '.join(table.columns)}); add it.")
    if table.empty:
        raise ManifestError(f"{path} has no rows; add one row for each case.")
    covariates = [c for c in table.columns if c not in OWN_COLUMNS and c not in image_columns]
    cases = [
        _case({str(k): str(v).strip() for k, v in row.items()}, image_columns, covariates, root, f"{path} row {number}")
        for number, row in enumerate(table.to_dict("records"), start=2)  # row 1 is the header, as a spreadsheet counts
    ]
    _check_unique(cases, path)
    _check_patients(cases, path)
    return Manifest(path, tuple(c.removeprefix("image_") for c in image_columns), tuple(cases))


def _case(row: dict[str, str], image_columns: list[str], covariates: list[str], root: Path, where: str) -> Case:
    case_id = row["case_id"]
    if not case_id:
        raise ManifestError(f"{where}: case_id is empty; give every case a name.")
    if any(c in case_id for c in '/\\:*?"<>|') or case_id.startswith("."):
        raise ManifestError(f"{where}: case_id `{case_id}` cannot be a file name; use letters, digits, '-' and '_'.")
    if row["split"] not in get_args(Split):
        raise ManifestError(f"{where} (case {case_id}): split `{row['split']}` is none of train, val, test or empty.")
    if empty := [c for c in image_columns if not row[c]]:
        raise ManifestError(f"{where} (case {case_id}): {empty[0]} is empty; name the file or remove the row.")
    return Case(
        case_id=case_id,
        images=tuple(Path(root) / row[c] for c in image_columns),
        label=Path(root) / row["label"] if row["label"] else None,
        split=row["split"],  # type: ignore[arg-type]
        patient_id=row.get("patient_id", ""),
        covariates={c: row[c] for c in covariates},
    )


def _check_unique(cases: list[Case], path: Path) -> None:
    seen: dict[str, int] = {}
    for number, case in enumerate(cases, start=2):
        # Compared without case: on many disks p01 and P01 would be one file.
        if (first := seen.setdefault(case.case_id.lower(), number)) != number:
            raise ManifestError(f"{path} row {number}: case_id `{case.case_id}` stands in row {first} already; rename one.")


def _check_patients(cases: list[Case], path: Path) -> None:
    splits: dict[str, dict[str, str]] = defaultdict(dict)
    for case in cases:
        if case.patient_id:
            splits[case.patient_id].setdefault(case.split, case.case_id)
    for patient, places in splits.items():
        if len(places) > 1:
            (a, case_a), (b, case_b) = list(places.items())[:2]
            raise ManifestError(
                f"{path}: patient `{patient}` is in two splits, {a or 'none'} (case {case_a}) and {b or 'none'} (case {case_b}); "
                "put all cases of a patient into one split."
            )
