"""One scan of a folder, from its files to its mask and its record, in three steps that overlap with those of its neighbours."""

from __future__ import annotations

import math
import os
import re
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medseg.core.cases import Already, Outcome, Steps
from medseg.core.errors import CaseError, MedsegError, ModelFileError
from medseg.core.grid import Grid
from medseg.core.labels import LabelScheme
from medseg.core.volume import LabelMap
from medseg.inference.bundle import Bundle
from medseg.inference.config import SegmentConfig
from medseg.inference.masks import mask_name, write_mask
from medseg.inference.predict import Answer, LoadedModel, Prepared, Spacing, ask_network, finish_mask, load_model, read_scan
from medseg.inference.probabilities import Probabilities
from medseg.inference.quality import describe, judge, typical_of
from medseg.inference.records import (
    FAILED,
    SKIPPED,
    Record,
    forget,
    output_sha256,
    read_record,
    recorded_since,
    stands,
    without_nan,
    write_record,
)
from medseg.inference.scans import Scan, images_sha256
from medseg.inference.together import read_models
from medseg.io.formats import read_grid
from medseg.io.probabilities import PROBABILITIES_SUFFIX

ML = 1000  # mm3
FINISHING_BYTES = 3  # a voxel: the mask without its small pieces, one structure of it, and as it is written
OUTLINE = re.compile(r"^unexpected (\w+)")


@dataclass(eq=False)
class Work:
    """A scan between two steps. `made_from`: what its mask depends on, by the columns of its record."""

    scan: Scan
    made_from: dict[str, str]
    seconds: float = 0.0
    prepared: Prepared | None = None
    answer: Answer | None = None
    others: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class SegmentScan(Steps[Scan, Record]):
    """Segment one scan and write its mask, unless its record says that this very mask stands there.

    Args:
        models: as `read_models` takes them.
        root: folder that the `input` column counts from.
        spacing_mm: voxel size of files that state none.
        threads: of a process's arithmetic; None takes all cores.
        scans: how many there are.
        started: when the work on the folder began, in seconds since the epoch.
    """

    models: tuple[Path, ...]
    model_sha256: str
    options_sha256: str
    settings: SegmentConfig
    root: Path
    output: Path
    spacing_mm: Spacing = None
    redo: bool = False
    threads: int | None = None
    scans: int = 1
    started: float = math.inf

    @property
    def steps(self) -> tuple[Callable[[Any], Any], ...]:
        return self.read, self.ask, self.write

    def name(self, item: Scan) -> str:
        return item.case_id

    def weight(self, item: Scan) -> float:
        try:
            return expected_bytes(_bundle(self.models, self.model_sha256), read_grid(item.images[0], self.spacing_mm))
        except MedsegError:  # it will be said when its turn comes
            return 0.0

    def careful(self) -> SegmentScan:
        return replace(self, settings=self.settings.model_copy(update={"batch": 1}), threads=1)

    def read(self, scan: Scan) -> Work | Already[Record]:
        """Raises: CaseError where the scan cannot be segmented."""
        start = time.perf_counter()
        hashes = {"model_sha256": self.model_sha256, "options_sha256": self.options_sha256}
        work = Work(scan, {"input_sha256": images_sha256(scan.images)} | hashes)
        before = read_record(self.output, scan.case_id)
        if before is not None and self._holds(before, work.made_from):
            return Already(replace(before, input=shown(scan, self.root)))  # its folder may have moved
        mask_name(scan.case_id, scan.images[0], self.settings.output_format)
        bundle = _bundle(self.models, self.model_sha256)
        where = "the series" if scan.private else scan.case_id
        work.prepared = read_scan(bundle, scan.images, self.settings, self.spacing_mm, where)
        work.seconds += time.perf_counter() - start
        return work

    def _holds(self, before: Record, made_from: dict[str, str]) -> bool:
        """Whether a record is still true, or another process has just come to it."""
        if any(getattr(before, key) != value for key, value in made_from.items()):
            return False
        if recorded_since(self.output, before, self.started):
            return before.status == FAILED or stands(before, self.output)
        return not self.redo and stands(before, self.output)

    def ask(self, work: Work) -> Work:
        """Raises: CaseError where the network's answer is of no use."""
        start, scan = time.perf_counter(), work.prepared
        assert scan is not None
        model = _loaded(self.models, self.model_sha256, self.settings, self.threads, self.scans)
        with ExitStack() as stack:
            files = []
            if self.settings.probabilities:
                path = self.output / (work.scan.case_id + PROBABILITIES_SUFFIX)
                files.append(stack.enter_context(Probabilities(path, scan.grid, scan.scan_grid, model.bundle.labels)))
            work.answer = ask_network(model, scan, self.settings, files)
            for file in files:
                file.finish()
                work.others[file.path.name] = output_sha256(file.path)
        work.seconds += time.perf_counter() - start
        return work

    def write(self, work: Work) -> Record:
        """Raises: CaseError, OutputError where nothing can be written."""
        start, scan, answer, prepared = time.perf_counter(), work.scan, work.answer, work.prepared
        assert answer is not None and prepared is not None
        bundle = _bundle(self.models, self.model_sha256)
        classes = finish_mask(bundle, answer.classes)
        typical = typical_of(bundle.description)
        grids, observer = (prepared.grid, prepared.scan_grid), answer.observer
        features = describe(prepared.image, *grids, classes, bundle.labels, observer, typical.mean_picture)
        work.prepared = prepared = None  # what comes now needs no picture
        mask = self.output / mask_name(scan.case_id, scan.images[0], self.settings.output_format)
        forget(self.output, scan.case_id, keep=(mask.name, *work.others))
        labels = LabelMap(bundle.labels.decode(classes.array), classes.grid)
        write_mask(mask, labels, scan.images[0], self.settings.output_format, bundle.labels, bundle)
        flags = judge(features, typical, bundle.labels)
        record = Record(
            scan.case_id,
            shown(scan, self.root),
            mask.name,
            seconds=round(work.seconds + time.perf_counter() - start, 3),
            output_sha256=output_sha256(mask),
            windows=answer.windows,
            windows_skipped=answer.skipped,
            others=work.others,
            volumes=volumes(classes, bundle.labels),
            volume_unit=_unit(classes.grid),
            features=without_nan(features),
            flags=[asdict(flag) for flag in flags],
            **work.made_from,
        )
        write_record(self.output, record)
        return record

    def ended(self, outcome: Outcome[Scan, Record]) -> None:
        if not outcome.ok:
            self.keep_failure(outcome.item, outcome.reason, outcome.seconds, outcome.trace)

    def recorded(self, outcome: Outcome[Scan, Record]) -> Record:
        """What its worker, or another process that came to it, recorded of a scan; else why the worker was killed over it."""
        record = read_record(self.output, outcome.item.case_id)
        if record is not None and recorded_since(self.output, record, self.started):
            return record
        return self.keep_failure(outcome.item, outcome.reason, outcome.seconds, outcome.trace)

    def keep_failure(self, scan: Scan, reason: str, seconds: float = 0.0, trace: str = "") -> Record:
        """Remove what stands there of a scan that could not be segmented, and record why."""
        record = self.failure(scan, reason, seconds)
        forget(self.output, scan.case_id)
        write_record(self.output, record, "" if scan.private else trace)
        return record

    def failure(self, scan: Scan, reason: str, seconds: float = 0.0) -> Record:
        """The record of a scan that could not be segmented."""
        try:
            input_sha256 = "" if scan.skipped else images_sha256(scan.images)
        except CaseError:
            input_sha256 = ""
        return Record(
            scan.case_id,
            shown(scan, self.root),
            status=SKIPPED if scan.skipped else FAILED,
            reason=untold(scan, reason),
            seconds=round(seconds, 3),
            input_sha256=input_sha256,
            model_sha256=self.model_sha256,
            options_sha256=self.options_sha256,
        )


def shown(scan: Scan, root: Path) -> str:
    """The scan's files as the table names them."""
    return scan.shown or ";".join(os.path.relpath(path, root).replace(os.sep, "/") for path in scan.files)


def untold(scan: Scan, reason: str) -> str:
    """A reason without what may name a patient: the paths of private scans, and the texts of unexpected errors."""
    if not scan.private:
        return reason
    if unexpected := OUTLINE.match(reason):
        return f"unexpected {unexpected[1]}"
    for path in scan.files:
        reason = reason.replace(str(path), path.name if scan.shown and not scan.skipped else "it")
        reason = reason.replace(f"{path.parent}{os.sep}", "")  # of another file that belongs to it
    return reason


def volumes(classes: LabelMap, labels: LabelScheme) -> dict[str, float]:
    """Of each structure or region: in ml, in mm2 for a picture of one slice, or in voxels where no physical size is known."""
    # Plane by plane: counting makes eight bytes of each voxel.
    counts = np.zeros(labels.n_classes, np.int64)
    for plane in classes.array.T:
        counts += np.bincount(plane.reshape(-1), minlength=labels.n_classes)
    size = classes.grid.voxel_volume / (ML if _unit(classes.grid) == "ml" else 1)
    return {name: float(counts[members].sum() * size) for name, members in labels.measured.items()}


def _unit(grid: Grid) -> str:
    if not grid.physical:
        return "px"
    return "mm2" if grid.planar else "ml"


def expected_bytes(bundle: Bundle, grid: Grid) -> float:
    """Memory that a scan takes while it is in hand: its voxels on both grids, the sums of its windows or what is made of the mask
    when it is finished, and the mask.
    """
    plan, numbers = bundle.plan, 4
    fine = np.prod(grid.shape) * plan.n_channels * numbers
    shape = prepared_shape(bundle, grid)
    band = min(patch / max(n, patch) for patch, n in zip(plan.patch_voxels, shape, strict=True))
    coarse = math.prod(shape)
    voxels = math.prod(grid.shape)
    sums = coarse * band * bundle.labels.n_outputs * numbers
    return float(fine + coarse * plan.n_channels * numbers + max(sums, voxels * FINISHING_BYTES) + voxels)


def prepared_shape(bundle: Bundle, grid: Grid) -> tuple[int, int, int]:
    """Voxels of a scan as the network sees it, where nothing is cropped."""
    spacing = bundle.plan.preprocessing.spacing
    canonical = grid.canonical()
    return (canonical.respaced(spacing) if spacing else canonical).shape


_loading = threading.Lock()  # the steps of neighbouring scans ask at the same time


def _bundle(models: tuple[Path, ...], sha256: str) -> Bundle:
    with _loading:
        return _read_bundle(models, sha256)


@lru_cache(maxsize=1)
def _read_bundle(models: tuple[Path, ...], sha256: str) -> Bundle:
    bundle = read_models(models, quiet=True)
    if bundle.sha256 != sha256:
        raise ModelFileError(f"{' and '.join(map(str, models))} was replaced while it was in use; start again.")
    return bundle


@lru_cache(maxsize=1)
def _loaded(models: tuple[Path, ...], sha256: str, settings: SegmentConfig, threads: int | None, scans: int) -> LoadedModel:
    """The model, loaded once in each process."""
    if threads:
        torch.set_num_threads(threads)
    return load_model(models, settings, _bundle(models, sha256), threads, scans)


def let_go() -> None:
    """Free the model that this process holds."""
    _read_bundle.cache_clear()
    _loaded.cache_clear()
