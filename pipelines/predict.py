"""Stage `predict`: the cases of a split through each trained model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medseg.core.errors import CaseError, ConfigError, ModelFileError, StageError
from medseg.core.files import remove
from medseg.core.labels import LabelScheme
from medseg.core.manifest import Manifest
from medseg.core.progress import say
from medseg.core.record import StageRecord
from medseg.core.record import read_record as read_stage
from medseg.data.splits import fold_of_cases
from medseg.inference.bundle import Bundle, read_bundle
from medseg.inference.config import PredictConfig
from medseg.inference.records import Record, read_record, stands, write_tables
from medseg.inference.scans import Scan, images_sha256
from medseg.inference.segment import exit_code, options_of, segment_scans, working_alike
from pipelines.config import RunConfig


@dataclass(frozen=True)
class Part:
    """Scans and the model file that they go through."""

    model: Path
    scans: list[Scan]


def run(config: RunConfig, redo: bool = False) -> int:
    """Predict the cases of `predict.split` with every model. Returns the exit code: 1 where some case failed.

    In a cross-validation each case goes through the model of the fold that held it out; with `predict.split: test`, the test
    cases go through all folds' models together.
    """
    settings, splits = config.section("predict", PredictConfig), config.predicted_splits()
    manifest = config.manifest()
    scans = [Scan(case.case_id, case.images) for case in manifest.of(*splits)]
    if not scans:
        raise ConfigError(f"{manifest.path} has no case of split {' or '.join(splits)}; name another in `predict.split`.")
    fold_of = fold_of_cases(config.cross_validation(manifest)) if config.out_of_fold else {}
    hashes = {scan.case_id: _hash(scan) for scan in scans}
    return max(_predict(config, name, settings, manifest, scans, hashes, fold_of, redo) for name in config.model_names)


def _predict(
    config: RunConfig,
    name: str,
    settings: PredictConfig,
    manifest: Manifest,
    scans: list[Scan],
    hashes: dict[str, str],
    fold_of: dict[str, int],
    redo: bool,
) -> int:
    output, spacing_mm = config.folder("predict", name), config.data.spacing_mm
    parts = _parts(config, name, scans, fold_of)
    _refuse_seen(parts, manifest, out_of_fold=bool(fold_of))
    bundles = [_read(part, config.labels, manifest) for part in parts]
    inputs: dict[str, Any] = {
        "options": options_of(bundles[0], settings.engine, spacing_mm),
        "split": list(config.predicted_splits()),
        "model": [bundle.sha256 for bundle in bundles],
        "cases": hashes,
        "folds": fold_of,
    }
    record = StageRecord(output, inputs)
    if not redo and record.unchanged() and _all_stand(scans, output):
        say(f"predict {name}: unchanged, skipped")
        return 0
    assert config.data.root is not None
    with working_alike(output, inputs):
        remove(record.path)
        records: dict[str, Record] = {}
        for number, part in enumerate(parts):
            title = f"predict {name}" + (f" fold {number}" if fold_of else "")
            made = segment_scans(
                [part.model], part.scans, config.data.root, output, settings.engine, title, spacing_mm, redo, table=not fold_of
            )
            records |= {r.case_id: r for r in made}
        ordered = [records[scan.case_id] for scan in scans]
        if fold_of:
            write_tables(output, ordered)
        record.write("predict", config.seed, _counts(ordered), model=name)
    return exit_code(ordered)


def _parts(config: RunConfig, name: str, scans: list[Scan], fold_of: dict[str, int]) -> list[Part]:
    """All scans through the model, or those that each fold held out through the fold's. Raises: StageError: none is there."""
    if not fold_of:
        parts = [Part(config.folder("train", name, "model.medseg"), scans)]
    else:
        parts = [
            Part(config.fold_folder(name, number) / "model.medseg", [s for s in scans if fold_of[s.case_id] == number])
            for number in range(max(fold_of.values()) + 1)
        ]
    for part in parts:
        if not part.model.is_file():
            raise StageError(f"{part.model} does not exist; run `medseg train` first.")
    return parts


def _refuse_seen(parts: list[Part], manifest: Manifest, out_of_fold: bool) -> None:
    """Cases that a fold holds out and test cases measure a model only if it was not trained on them.

    Raises: StageError where it was.
    """
    measuring = {case.case_id for case in manifest.cases if out_of_fold or case.split == "test"}
    which, what = ("cases that its fold holds out", "folds") if out_of_fold else ("test cases", "splits")
    for part in parts:
        seen = _trained_on(part.model.parent)
        if known := [scan.case_id for scan in part.scans if scan.case_id in measuring & seen]:
            raise StageError(
                f"{part.model} has seen {len(known)} of the {which} (such as {known[0]}): the {what} have changed since it was "
                "trained; restore them, or train again."
            )


def _trained_on(folder: Path) -> set[str]:
    """The cases that the model in a folder was trained or validated on, of all its folds, as far as its record says."""
    inputs = (read_stage(folder) or {}).get("inputs", {})
    folds = (_trained_on(folder / f"fold_{number}") for number in range(len(inputs.get("folds", []))))
    return set(inputs.get("cases", {})).union(*folds)


def _read(part: Part, labels: LabelScheme, manifest: Manifest) -> Bundle:
    bundle = read_bundle(part.model)
    _check_labels(bundle, labels, part.model)
    _check_channels(bundle, manifest, part.model)
    return bundle


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
