"""Stage `predict`: the cases of a split through each trained model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medseg.core.errors import CaseError, ConfigError, ModelFileError, StageError
from medseg.core.labels import LabelScheme
from medseg.core.manifest import Manifest
from medseg.core.progress import say
from medseg.core.record import StageRecord
from medseg.inference.bundle import Bundle, read_bundle
from medseg.inference.config import PredictConfig
from medseg.inference.scans import Scan, images_sha256
from medseg.inference.segment import Record, exit_code, options_of, read_record, segment_scans, stands
from pipelines.config import RunConfig


def run(config: RunConfig, redo: bool = False) -> int:
    """Predict the cases of `predict.split` with every model. Returns the exit code: 1 where some case failed."""
    settings = config.section("predict", PredictConfig)
    manifest = config.manifest()
    scans = [Scan(case.case_id, case.images) for case in manifest.of(*settings.split)]
    if not scans:
        raise ConfigError(f"{manifest.path} has no case of split {' or '.join(settings.split)}; name another in `predict.split`.")
    hashes = {scan.case_id: _hash(scan) for scan in scans}
    return max(_predict(config, name, settings, manifest, scans, hashes, redo) for name in config.model_names)


def _predict(
    config: RunConfig,
    name: str,
    settings: PredictConfig,
    manifest: Manifest,
    scans: list[Scan],
    hashes: dict[str, str],
    redo: bool,
) -> int:
    path, output, spacing_mm = (
        config.folder("train", name) / "model.medseg",
        config.folder("predict", name),
        config.data.spacing_mm,
    )
    if not path.is_file():
        raise StageError(f"{path} does not exist; run `medseg train` first.")
    bundle = read_bundle(path)
    _check_labels(bundle, config.labels, path)
    _check_channels(bundle, manifest, path)
    inputs: dict[str, Any] = {
        "options": options_of(bundle, settings.engine, spacing_mm),
        "split": settings.split,
        "model": bundle.sha256,
        "cases": hashes,
    }
    record = StageRecord(output, inputs)
    if not redo and record.unchanged() and _all_stand(scans, output):
        say(f"predict {name}: unchanged, skipped")
        return 0
    assert config.data.root is not None
    records = segment_scans(path, scans, config.data.root, output, settings.engine, f"predict {name}", spacing_mm, redo)
    record.write("predict", config.seed, _counts(records), model=name)
    return exit_code(records)


def _hash(scan: Scan) -> str:
    try:
        return images_sha256(scan.images)
    except CaseError:
        return ""  # the case becomes a row that says why


def _all_stand(scans: list[Scan], output: Path) -> bool:
    """True where every case has its mask, unaltered, and the table is there; cases that failed are tried again."""
    found = [read_record(output, scan.case_id) for scan in scans]
    return (output / "predictions.csv").is_file() and all(r is not None and stands(r, output) for r in found)


def _check_labels(bundle: Bundle, labels: LabelScheme, path: Path) -> None:
    """A model trained for other structures would give masks whose values mean something else."""
    trained, now = ([(s.name, s.id) for s in scheme.structures] for scheme in (bundle.labels, labels))
    if trained != now:
        text = ", ".join(f"{name} ({number})" for name, number in trained)
        raise ModelFileError(f"{path} was trained for other structures, {text}; train again or restore `structures`.")


def _check_channels(bundle: Bundle, manifest: Manifest, path: Path) -> None:
    """Channels in another order would be segmented without complaint, and wrongly."""
    if list(manifest.channels) != bundle.plan.channels:
        takes, has = ", ".join(bundle.plan.channels), ", ".join(manifest.channels)
        raise ModelFileError(f"{path} takes the channels {takes} and the manifest has {has}; order and name its columns so.")


def _counts(records: list[Record]) -> dict[str, int]:
    return {"given": len(records), **{status: sum(r.status == status for r in records) for status in ("done", "failed")}}
