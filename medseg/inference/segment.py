"""Many scans through a model: the engine under `medseg segment` and `medseg predict`.

Each case leaves its mask and, after it, one small record; the tables are made from the records. A case whose input, model,
options and mask still have the hashes in its record is not made again, so work that was cut short goes on where it stopped, and
several processes share the work on one folder.
"""

from __future__ import annotations

import math
import os
import secrets
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

import medseg
from medseg.core.cases import Claims, Outcome, map_cases
from medseg.core.errors import CaseError, ConfigError
from medseg.core.files import atomic_path, json_sha256, remove, remove_leftovers
from medseg.core.limits import available_cores, available_memory
from medseg.core.progress import duration, say
from medseg.inference.bundle import Bundle
from medseg.inference.config import SegmentConfig
from medseg.inference.device import find_device
from medseg.inference.job import SegmentScan, expected_bytes, let_go, prepared_shape
from medseg.inference.masks import mask_name
from medseg.inference.predict import LoadedModel, Spacing, load_model, mirror_axes
from medseg.inference.pseudonyms import write_linkage
from medseg.inference.records import DONE, FAILED, SKIPPED, TABLES, Record, write_tables
from medseg.inference.runtime import choose_arithmetic
from medseg.inference.scans import Scan, find_scans
from medseg.inference.together import read_models
from medseg.inference.window import count_windows
from medseg.io.formats import is_folder_scan, read_grid
from medseg.io.series import Series

MOST_FAILURES_SHOWN = 20
MOST_HEADERS = 100  # that are read for the estimate
MEMORY_SHARE = 0.6  # of what is free: that the cases in hand may take together
CLAIMS = Path("records", ".claims")
PROCESS_BYTES = 0.7e9  # of a process with its libraries, without any scan


def segment_folder(
    models: Sequence[Path],
    place: Path,
    output: Path,
    settings: SegmentConfig,
    spacing_mm: Spacing = None,
    redo: bool = False,
    keep_identifiers: bool = False,
    linkage: Path | None = None,
) -> list[Record]:
    """Segment every scan of a folder tree (or one scan) into `output`.

    Args:
        models: one file, or several files or folders of folds whose networks answer together.
        keep_identifiers: name DICOM cases after their patients.
        linkage: where to write which pseudonym is which patient; a file outside of `output` and of the scans.
    Returns: one record a scan, and one a file that is no scan, in the order of the files.
    Raises: ModelFileError, UnreadableError (nothing to segment), ConfigError (an output that would touch the input), StageError
        (another process makes other masks there), OutputError.
    """
    place, output = Path(place), Path(output)
    folder = place if place.is_dir() and not is_folder_scan(place) else place.parent
    if output.resolve().is_relative_to(place.resolve()) or output.resolve() == folder.resolve():
        raise ConfigError(f"the output {output} lies in the input folder {folder}; choose a folder outside it.")
    if output.exists() and not output.is_dir():
        raise ConfigError(f"the output {output} is a file; give a folder.")
    if linkage is not None and linkage.resolve().is_relative_to(output.resolve()):
        raise ConfigError(f"the linkage table {linkage} lies among the outputs, which may be passed on; choose another place.")
    if linkage is not None and linkage.resolve().is_relative_to(place.resolve()):
        raise ConfigError(f"the linkage table {linkage} lies among the scans, and would be taken for one; choose another place.")
    bundle = read_models(models)
    scans = find_scans(place, bundle.plan.channels, keep_identifiers)
    series = [(scan, image) for scan in scans for image in scan.images if isinstance(image, Series)]
    if linkage is not None:
        write_linkage(linkage, [(scan.case_id, scan.shown, image) for scan, image in series])
        say(f"segment: {linkage} tells which pseudonym is which patient; keep it to yourself")
    if series and settings.output_format != "same":
        say("segment: DICOM masks carry the names and numbers of their patients, as the standard demands")
    what = [bundle.sha256, options_of(bundle, settings, spacing_mm), [[scan.case_id, _stats(scan)] for scan in scans]]
    with working_alike(output, what):
        return segment_scans(models, scans, folder, output, settings, "segment", spacing_mm, redo)


def _stats(scan: Scan) -> list[list[int]]:
    """Size and time of each file, which tell apart what has the same name in two folders."""
    found = []
    for path in scan.files:
        with suppress(OSError):
            found.append([path.stat().st_size, path.stat().st_mtime_ns])
    return found


@contextmanager
def working_alike(output: Path, what: Any) -> Iterator[None]:
    """Share an output folder with processes that do the same; where there are none, remove what killed ones left.

    Args:
        what: all that the masks and the tables depend on.
    Raises: StageError where another process writes other masks there.
    """

    def clear() -> None:
        for folder in (output, output / "records"):
            remove_leftovers(folder)

    with Claims(output / CLAIMS).alike(json_sha256(what), output, clear):
        yield


def segment_scans(
    models: Sequence[Path],
    scans: Sequence[Scan],
    root: Path,
    output: Path,
    settings: SegmentConfig,
    title: str,
    spacing_mm: Spacing = None,
    redo: bool = False,
    table: bool = True,
) -> list[Record]:
    """Segment scans into `output`: masks, `records/<case_id>.json` and, last, the tables.

    Args:
        root: folder that the `input` column counts from.
        title: what is being done, for the progress display.
        redo: make every case again, whatever its record says.
        table: write the tables; False where these are not all the scans that they are to hold.
    Returns: one record a scan, in their order. A scan that cannot be segmented is a record with a reason.
    Raises: ModelFileError, ConfigError (a mask would replace a scan), OutputError (disk full).
    """
    bundle = read_models(models)
    _never_over_a_scan(scans, output, settings)
    if settings.mirror and not bundle.allowed_flips:
        say(f"{title}: the model allows no mirroring, so there is none")
    wanted = [scan for scan in scans if not scan.reason and not scan.skipped]
    options, threads = json_sha256(options_of(bundle, settings, spacing_mm)), available_cores() // settings.workers
    job = SegmentScan(
        *(tuple(map(Path, models)), bundle.sha256, options, settings, Path(root), output, spacing_mm, redo),
        threads=max(1, threads) if settings.workers > 1 else None,
        scans=len(wanted),
        started=_moment(output),
    )
    # The tables are there only when the whole list has been gone through; meanwhile the records stand.
    for name in TABLES:
        remove(output / name)
    records = {scan: job.failure(scan, scan.reason) for scan in scans if scan.skipped}
    records |= {scan: job.keep_failure(scan, scan.reason) for scan in scans if scan.reason and not scan.skipped}
    several = len(wanted) > 1
    if several:
        _announce(title, wanted, bundle, job)

    def keep(outcome: Outcome[Scan, Record]) -> None:
        records[outcome.item] = outcome.result or job.recorded(outcome)

    claims, memory = Claims(output / CLAIMS), MEMORY_SHARE * available_memory()
    map_cases(job, wanted, title, settings.workers, keep, isolated=several, memory=memory, claims=claims)
    let_go()
    ordered = [records[scan] for scan in scans]
    if table:
        write_tables(output, ordered)
    _tell(title, ordered, output)
    return ordered


def _moment(output: Path) -> float:
    """Now, by the clock of the disk that records are written to. Raises: OutputError."""
    path = output / "records" / f".{secrets.token_hex(4)}.moment"
    with atomic_path(path) as temporary:
        temporary.touch()
        moment = temporary.stat().st_mtime
    remove(path)
    return moment


def exit_code(records: Sequence[Record]) -> int:
    """0 where no case failed, else 1."""
    return int(any(record.status == FAILED for record in records))


def options_of(bundle: Bundle, settings: SegmentConfig, spacing_mm: Spacing) -> dict[str, Any]:
    """What a mask depends on besides the scan and the model; speed settings are left out."""
    arithmetic = choose_arithmetic(settings, bundle, find_device(settings.device))
    return {
        "overlap": settings.overlap,
        "mirror_axes": list(mirror_axes(bundle, settings)),
        "runtime": arithmetic.runtime,
        "precision": arithmetic.precision,
        "skip_air": settings.skip_air,
        "probabilities": settings.probabilities,
        "output_format": settings.output_format,
        "spacing_mm": spacing_mm,
        "medseg": medseg.__version__,
    }


def _announce(title: str, scans: Sequence[Scan], bundle: Bundle, job: SegmentScan) -> None:
    """Say how many scans there are, and the time and the memory that they will take."""
    grids = []
    for scan in scans[:: -(-len(scans) // MOST_HEADERS)]:
        try:
            grids.append(read_grid(scan.images[0], job.spacing_mm))
        except (CaseError, ValueError):
            continue  # it will be a row with this reason
    if not grids:
        return
    model = load_model(job.models, job.settings, bundle, job.threads)
    windows = [count_windows(prepared_shape(bundle, grid), bundle.plan.patch_voxels, job.settings.overlap) for grid in grids]
    seconds = statistics.fmean(windows) * len(scans) * _seconds_of_window(model) * 2 ** len(mirror_axes(bundle, job.settings))
    in_hand = job.settings.workers * len(job.steps)
    memory = PROCESS_BYTES * (1 + job.settings.workers) + max(expected_bytes(bundle, grid) for grid in grids) * in_hand
    how = f"{model.arithmetic.runtime} in {model.arithmetic.precision} ({model.arithmetic.reason})"
    say(f"{title}: {len(scans)} scans, at most about {duration(seconds)} and {memory / 1e9:.1f} GB of memory; {how}")


def _seconds_of_window(model: LoadedModel) -> float:
    plan = model.bundle.plan
    window = torch.zeros(1, plan.n_channels, *plan.patch_voxels, device=model.device)
    best = math.inf
    for _ in range(3):  # the first includes what is made once
        start = time.perf_counter()
        with torch.inference_mode():
            model.run(window).cpu()
        best = min(best, time.perf_counter() - start)
    return best


def _never_over_a_scan(scans: Sequence[Scan], output: Path, settings: SegmentConfig) -> None:
    inputs = {os.path.realpath(path) for scan in scans for path in scan.files}
    for scan in scans:
        try:
            mask = output / mask_name(scan.case_id, scan.images[0], settings.output_format)
        except CaseError:
            continue  # no mask can be written for it; the case becomes a row that says so
        if os.path.realpath(mask) in inputs:
            raise ConfigError(f"the mask of {scan.case_id} would replace the scan {mask}; choose another output folder.")


def _tell(title: str, records: Sequence[Record], output: Path) -> None:
    counts = Counter(record.status for record in records)
    summary = ", ".join(f"{counts[status]} {status}" for status in (DONE, FAILED, SKIPPED) if counts[status])
    say(f"{title}: {summary}; masks and predictions.csv are in {output}")
    failures = [record for record in records if record.status == FAILED]
    for record in failures[:MOST_FAILURES_SHOWN]:
        say(f"  {record.case_id}: {record.reason}")
    if len(failures) > MOST_FAILURES_SHOWN:
        say(f"  and {len(failures) - MOST_FAILURES_SHOWN} more: column `reason` of {output / 'predictions.csv'}")
    if flagged := sum(bool(record.flags) for record in records):
        say(f"  {flagged} deserve a second look: column `sentences` of {output / 'qc.csv'}")
