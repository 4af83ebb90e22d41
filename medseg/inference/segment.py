"""Many scans through a model: the engine under `medseg segment` and `medseg predict`.

Each case leaves its mask and, after it, one small record; `predictions.csv` is made from the records. A case whose input, model,
options and mask still have the hashes in its record is not made again, so work that was cut short goes on where it stopped.
"""

from __future__ import annotations

import csv
import io
import json
import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

import medseg
from medseg.core.cases import Outcome, map_cases
from medseg.core.errors import CaseError, ConfigError
from medseg.core.files import file_sha256, json_sha256, remove, write_json, write_text
from medseg.core.limits import available_cores
from medseg.core.progress import say
from medseg.core.volume import LabelMap
from medseg.inference.bundle import Bundle, read_bundle
from medseg.inference.config import EngineConfig
from medseg.inference.device import find_device, find_dtype
from medseg.inference.predict import LoadedModel, Spacing, load_model, mirror_axes, predict_case
from medseg.inference.scans import Scan, find_scans, images_sha256
from medseg.io.formats import label_name, write_labels

DONE, FAILED, SKIPPED = "done", "failed", "skipped"
MOST_FAILURES_SHOWN = 20


@dataclass(frozen=True)
class Record:
    """What became of one case: a row of predictions.csv.

    Args:
        input: its files below the input folder, parted by `;`.
        output: its mask below the output folder; empty where there is none.
        reason: why there is no mask.
        seconds: spent on it, when it was made.
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


COLUMNS = [field.name for field in fields(Record)]


@dataclass(frozen=True)
class SegmentScan:
    """Segment one scan and write its mask, unless its record says that this very mask stands there.

    Args:
        root: folder that the `input` column counts from.
        spacing_mm: voxel size of files that state none.
        threads: of this process's arithmetic; None leaves PyTorch's own choice.
    """

    model: Path
    model_sha256: str
    options_sha256: str
    settings: EngineConfig
    root: Path
    output: Path
    spacing_mm: Spacing = None
    redo: bool = False
    threads: int | None = None

    def __call__(self, scan: Scan) -> Record:
        """Raises: CaseError where this scan cannot be segmented, OutputError where nothing can be written."""
        start = time.perf_counter()
        made_from = {
            "input_sha256": images_sha256(scan.images),
            "model_sha256": self.model_sha256,
            "options_sha256": self.options_sha256,
        }
        before = None if self.redo else read_record(self.output, scan.case_id)
        if before is not None and stands(before, self.output) and all(getattr(before, k) == v for k, v in made_from.items()):
            return replace(before, input=shown(scan, self.root))  # its folder may have moved
        model = _loaded(self.model, self.model_sha256, self.settings, self.threads)
        classes = predict_case(model, scan.images, self.settings, self.spacing_mm, scan.case_id)
        values = model.bundle.labels.decode(classes.array)
        mask = self.output / label_name(scan.case_id, scan.images[0])
        write_labels(mask, LabelMap(values, classes.grid), like=scan.images[0])
        seconds = round(time.perf_counter() - start, 3)
        return Record(
            scan.case_id, shown(scan, self.root), mask.name, seconds=seconds, output_sha256=file_sha256(mask), **made_from
        )

    def failure(self, scan: Scan, reason: str, seconds: float = 0.0) -> Record:
        """The record of a scan that could not be segmented."""
        try:
            input_sha256 = images_sha256(scan.images)
        except CaseError:
            input_sha256 = ""
        hashes = {"model_sha256": self.model_sha256, "options_sha256": self.options_sha256}
        status = SKIPPED if scan.skipped else FAILED
        return Record(
            scan.case_id,
            shown(scan, self.root),
            status=status,
            reason=reason,
            seconds=round(seconds, 3),
            input_sha256=input_sha256,
            **hashes,
        )


def segment_folder(
    model: Path, place: Path, output: Path, settings: EngineConfig, spacing_mm: Spacing = None, redo: bool = False
) -> list[Record]:
    """Segment every scan of a folder tree (or one scan) into `output`.

    Returns: one record a scan, and one a file that is no scan, in the order of the files.
    Raises: ModelFileError, UnreadableError (nothing to segment), ConfigError (an output that would touch the input), OutputError.
    """
    place, output = Path(place), Path(output)
    folder = place if place.is_dir() else place.parent
    if output.resolve().is_relative_to(folder.resolve()) and (place.is_dir() or output.resolve() == folder.resolve()):
        raise ConfigError(f"the output {output} lies in the input folder {folder}; choose a folder outside it.")
    if output.exists() and not output.is_dir():
        raise ConfigError(f"the output {output} is a file; give a folder.")
    scans = find_scans(place, read_bundle(model).plan.channels)
    return segment_scans(model, scans, folder, output, settings, "segment", spacing_mm, redo)


def segment_scans(
    model: Path,
    scans: Sequence[Scan],
    root: Path,
    output: Path,
    settings: EngineConfig,
    title: str,
    spacing_mm: Spacing = None,
    redo: bool = False,
    table: bool = True,
) -> list[Record]:
    """Segment scans into `output`: masks, `records/<case_id>.json` and, last, `predictions.csv`.

    Args:
        root: folder that the `input` column counts from.
        title: what is being done, for the progress display.
        redo: make every case again, whatever its record says.
        table: write predictions.csv; False where these are not all the scans that it is to hold.
    Returns: one record a scan, in their order. A scan that cannot be segmented is a record with a reason.
    Raises: ModelFileError, ConfigError (a mask would replace a scan), OutputError (disk full).
    """
    bundle = _loaded(Path(model), read_bundle(model).sha256, settings, None).bundle
    _never_over_a_scan(scans, output)
    if settings.mirror and not bundle.allowed_flips:
        say(f"{title}: the model allows no mirroring, so there is none")
    options = json_sha256(options_of(bundle, settings, spacing_mm))
    threads = max(1, available_cores() // settings.workers) if settings.workers > 1 else None
    job = SegmentScan(Path(model), bundle.sha256, options, settings, Path(root), output, spacing_mm, redo, threads)
    # The table is there only when the whole list has been gone through; meanwhile the records stand.
    remove(output / "predictions.csv")
    records = {scan: job.failure(scan, scan.reason) for scan in scans if scan.reason or scan.skipped}
    for scan in records:
        forget(output, scan.case_id)

    def keep(outcome: Outcome[Scan, Record]) -> None:
        record = outcome.result or job.failure(outcome.item, outcome.reason, outcome.seconds)
        if not outcome.ok:
            forget(output, record.case_id)
        write_json(_record_path(output, record.case_id), asdict(record) | ({"trace": outcome.trace} if outcome.trace else {}))
        records[outcome.item] = record

    map_cases(job, [scan for scan in scans if scan not in records], title, settings.workers, keep)
    _loaded.cache_clear()
    ordered = [records[scan] for scan in scans]
    if table:
        write_text(output / "predictions.csv", predictions_csv(ordered))
    _tell(title, ordered, output)
    return ordered


def exit_code(records: Sequence[Record]) -> int:
    """0 where no case failed, else 1."""
    return int(any(record.status == FAILED for record in records))


def options_of(bundle: Bundle, settings: EngineConfig, spacing_mm: Spacing) -> dict[str, Any]:
    """What a mask depends on besides the scan and the model; speed settings are left out."""
    return {
        "overlap": settings.overlap,
        "mirror_axes": list(mirror_axes(bundle, settings)),
        "dtype": str(find_dtype(settings.precision, find_device(settings.device))),
        "spacing_mm": spacing_mm,
        "medseg": medseg.__version__,
    }


def predictions_csv(records: Sequence[Record]) -> str:
    """The table of records, as CSV text."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(record) for record in records)
    return text.getvalue()


def read_record(output: Path, case_id: str) -> Record | None:
    """The record of a case in an output folder, or None where there is none that can be read."""
    try:
        content = json.loads(_record_path(output, case_id).read_text(encoding="utf-8"))
        return Record(**{name: content[name] for name in COLUMNS})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def stands(record: Record, output: Path) -> bool:
    """True where the record is of a finished case and its mask is still the one that was written."""
    if record.status != DONE or not record.output:
        return False
    try:
        return file_sha256(output / record.output) == record.output_sha256
    except OSError:
        return False


def forget(output: Path, case_id: str) -> None:
    """Remove a case's record and the mask that it names: a mask must not outlive the success that it stands for."""
    record = read_record(output, case_id)
    if record is not None and record.output:
        remove(output / Path(record.output).name)
    remove(_record_path(output, case_id))


def shown(scan: Scan, root: Path) -> str:
    """The scan's files as the table names them."""
    return ";".join(os.path.relpath(path, root).replace(os.sep, "/") for path in scan.images)


def _record_path(output: Path, case_id: str) -> Path:
    return output / "records" / f"{case_id}.json"


def _never_over_a_scan(scans: Sequence[Scan], output: Path) -> None:
    inputs = {os.path.realpath(path) for scan in scans for path in scan.images}
    for scan in scans:
        try:
            mask = output / label_name(scan.case_id, scan.images[0])
        except CaseError:
            continue  # a suffix that no writer knows; the case becomes a row that says so
        if os.path.realpath(mask) in inputs:
            raise ConfigError(f"the mask of {scan.case_id} would replace the scan {mask}; choose another output folder.")


@lru_cache(maxsize=1)
def _loaded(path: Path, sha256: str, settings: EngineConfig, threads: int | None) -> LoadedModel:
    """The model, loaded once in each process."""
    if threads:
        torch.set_num_threads(threads)
    return load_model(path, settings, sha256)


def _tell(title: str, records: Sequence[Record], output: Path) -> None:
    counts = Counter(record.status for record in records)
    summary = ", ".join(f"{counts[status]} {status}" for status in (DONE, FAILED, SKIPPED) if counts[status])
    say(f"{title}: {summary}; masks and predictions.csv are in {output}")
    failures = [record for record in records if record.status == FAILED]
    for record in failures[:MOST_FAILURES_SHOWN]:
        say(f"  {record.case_id}: {record.reason}")
    if len(failures) > MOST_FAILURES_SHOWN:
        say(f"  and {len(failures) - MOST_FAILURES_SHOWN} more: column `reason` of {output / 'predictions.csv'}")
