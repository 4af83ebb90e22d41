"""What became of each case: one small record a case, written after its mask, and the tables that are made from the records."""

from __future__ import annotations

import csv
import io
import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from medseg.core.errors import OutputError
from medseg.core.files import file_sha256, remove, write_json, write_text
from medseg.core.folders import folder_sha256
from medseg.inference.quality import Flag, qc_csv, qc_row
from medseg.io.probabilities import PROBABILITIES_SUFFIX

DONE, FAILED, SKIPPED = "done", "failed", "skipped"
COLUMNS = (
    "case_id", "input", "output", "status", "reason", "seconds", "input_sha256", "model_sha256", "options_sha256",
    "output_sha256", "windows", "windows_skipped",
)  # fmt: skip
TABLES = ("predictions.csv", "volumes.csv", "qc.csv")


@dataclass(frozen=True)
class Record:
    """What became of one case: a row of predictions.csv, of volumes.csv and of qc.csv.

    Args:
        input: its files below the input folder, parted by `;`.
        output: its mask below the output folder; empty where there is none.
        reason: why there is no mask.
        seconds: spent on it, when it was made.
        windows, windows_skipped: that its picture has, and that held nothing but air.
        others: further outputs of the case and their hashes.
        volumes: of each structure or region, in `volume_unit`: ml, mm2 for pictures of one slice, or px.
        features: what `quality.describe` measured; None for NaN.
        flags: the sentences of what is unusual about it; None where nobody looked.
    """

    case_id: str
    input: str
    output: str = ""
    status: str = DONE
    reason: str = ""
    seconds: float = 0.0
    input_sha256: str = ""
    model_sha256: str = ""
    options_sha256: str = ""
    output_sha256: str = ""
    windows: int = 0
    windows_skipped: int = 0
    others: dict[str, str] = field(default_factory=dict)
    volumes: dict[str, float] = field(default_factory=dict)
    volume_unit: str = ""
    features: dict[str, float | None] = field(default_factory=dict)
    flags: list[dict[str, str]] | None = None


def read_record(output: Path, case_id: str) -> Record | None:
    """The record of a case in an output folder, or None where there is none that can be read."""
    try:
        content = json.loads(_path(output, case_id).read_text(encoding="utf-8"))
        return Record(**{field.name: content[field.name] for field in fields(Record)})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_record(output: Path, record: Record, trace: str = "") -> None:
    """Keep a record. Raises: OutputError."""
    write_json(_path(output, record.case_id), asdict(record) | ({"trace": trace} if trace else {}))


def stands(record: Record, output: Path) -> bool:
    """True where the record is of a finished case and its outputs are still the ones that were written."""
    if record.status != DONE or not record.output:
        return False
    try:
        outputs = record.others | {record.output: record.output_sha256}
        return all(output_sha256(output / name) == digest for name, digest in outputs.items())
    except OSError:
        return False


def recorded_since(output: Path, record: Record, moment: float) -> bool:
    """True where a record was written after a moment (seconds since the epoch)."""
    try:
        return _path(output, record.case_id).stat().st_mtime >= moment
    except OSError:
        return False


def output_sha256(path: Path) -> str:
    """The SHA-256 of an output, which may be a folder. Raises: OSError."""
    return folder_sha256(path) if path.is_dir() else file_sha256(path)


def forget(output: Path, case_id: str, keep: Sequence[str] = ()) -> None:
    """Remove a case's record and the outputs that it names: a mask must not outlive the success that it stands for.

    Args:
        keep: outputs that have been or are about to be written anew.
    """
    record = read_record(output, case_id)
    # The probabilities stand before any record names them.
    for name in (case_id + PROBABILITIES_SUFFIX, *((record.output, *record.others) if record is not None else ())):
        if name and name not in keep:
            remove_output(output / Path(name).name)
    remove(_path(output, case_id))


def remove_output(path: Path) -> None:
    """Remove a file or a folder where there is one. Raises: OutputError."""
    if path.is_dir() and not path.is_symlink():
        try:
            shutil.rmtree(path)
        except OSError as error:
            raise OutputError(f"{path} cannot be removed ({error.strerror}); remove it or choose another output.") from error
    else:
        remove(path)


def write_tables(output: Path, records: Sequence[Record]) -> None:
    """predictions.csv, volumes.csv and qc.csv, a row a case in this order. Raises: OutputError."""
    write_text(output / "volumes.csv", volumes_csv(records))
    rows = [record for record in records if record.status != SKIPPED]
    flags = [None if r.flags is None else [Flag(**flag) for flag in r.flags] for r in rows]
    write_text(output / "qc.csv", qc_csv([qc_row(r.case_id, r.features, f) for r, f in zip(rows, flags, strict=True)]))
    write_text(output / "predictions.csv", predictions_csv(records))


def predictions_csv(records: Sequence[Record]) -> str:
    """The table of records, as CSV text."""
    rows = [asdict(record) for record in records]
    return _csv(COLUMNS, [{name: row[name] for name in COLUMNS} for row in rows])


def volumes_csv(records: Sequence[Record]) -> str:
    """A row for each case that has a mask and a column for each structure or region, as CSV text."""
    done = [record for record in records if record.status == DONE]
    rows = [{"case_id": r.case_id} | {f"{n}_{r.volume_unit}": f"{v:.6g}" for n, v in r.volumes.items()} for r in done]
    return _csv(list(dict.fromkeys(["case_id", *(column for row in rows for column in row)])), rows)


def without_nan(features: dict[str, float]) -> dict[str, float | None]:
    """Numbers as JSON can hold them."""
    return {name: value if math.isfinite(value) else None for name, value in features.items()}


def _csv(columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _path(output: Path, case_id: str) -> Path:
    return output / "records" / f"{case_id}.json"
