"""Stage `report`: the tables of a run, or of finished evaluations, as one HTML file."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

from medseg.core.errors import ConfigError, StageError
from medseg.core.files import file_sha256
from medseg.core.manifest import Manifest
from medseg.core.progress import say
from medseg.core.record import StageRecord, read_record
from medseg.data.splits import FOLD
from medseg.reporting.collect import OF_EACH_MODEL, STAGES, Facts, collect_folders, collect_run, with_readers
from medseg.reporting.config import ReportConfig
from medseg.reporting.html import write_report
from medseg.reporting.pictures import find_pictures
from pipelines.config import RunConfig

READ = (
    "config.yaml",
    "check/report.csv",
    "prepare/plan.json",
    "evaluate/comparison*.csv",
    "evaluate/ranking.csv",
    "evaluate/*/*.csv",
    "predict/*/predictions.csv",
    "train/*/log.csv",
    "train/*/fold_*/log.csv",
    "train/*/schedule.json",
    "train/*/fold_*/schedule.json",
    *(f"{stage}/stage.json" for stage in STAGES),
    *(f"{stage}/*/stage.json" for stage in OF_EACH_MODEL),
)


def run(config: RunConfig, redo: bool = False) -> int:
    """Write `report/report.html` of a run. Returns the exit code, 0.

    Raises: StageError where no model has been evaluated, or a model was trained or has predicted since.
    """
    settings = config.section("report", ReportConfig)
    data, manifest = config.data, config.manifest()
    if settings.channel is not None and settings.channel not in manifest.channels:
        known = ", ".join(manifest.channels)
        raise ConfigError(
            f"{config.path}: report: `channel`: the manifest has no channel `{settings.channel}` (it has: {known})."
        )
    facts = facts_of(config, manifest)
    folder = config.folder("report")
    inputs: dict[str, Any] = {
        "report": settings.model_dump(mode="json"),
        "data": data.model_dump(mode="json"),
        "labels": config.labels.model_dump(),
        "splits": facts.splits,
        "design": facts.design,
        "models": config.model_names,
        "cases": [[c.case_id, c.split, *map(str, c.images), str(c.label or "")] for c in manifest.cases],
        "files": {
            str(p.relative_to(config.output)): file_sha256(p) for pattern in READ for p in sorted(config.output.glob(pattern))
        },
        "readers": {p.name: file_sha256(p) for p in sorted(settings.readers.glob("*.csv"))} if settings.readers else {},
    }
    record = StageRecord(folder, inputs)
    if not redo and record.unchanged() and (folder / "report.html").is_file():
        say(f"report: unchanged, skipped ({folder / 'report.html'})")
        return 0
    report = collect_run(
        config.output,
        config.name,
        config.model_names,
        facts,
        manifest.cases,
        manifest.channels,
        config.labels,
        commands=_commands(config),
    )
    report = with_readers(report, settings.readers) if settings.readers else report
    path = write_report(report, folder, settings)
    record.write("report", config.seed, {"models": len(report.models), "absent": len(report.absent)})
    say(f"report: {path}")
    return 0


def facts_of(config: RunConfig, manifest: Manifest) -> Facts:
    """What a report of this run says of its data, and of how cases were separated."""
    data = config.data
    return Facts(
        data.name,
        data.note,
        data.citation,
        data.licence,
        data.sampling_unit,
        data.spacing_mm,
        config.predicted_splits(),
        design=_design(config, manifest),
    )


def _design(config: RunConfig, manifest: Manifest) -> str:
    """The cross-validation in words; empty without one."""
    if config.folds is None:
        return ""
    unit = "patient" if any(case.patient_id for case in manifest.cases) else "case"
    stated = any(case.covariates.get(FOLD) for case in manifest.of("train"))
    columns = " and ".join(config.data.stratify_by)
    how = ", as the manifest states" if stated else f", stratified by {columns}" if columns else ""
    what = "out-of-fold predictions" if config.out_of_fold else "test cases predicted by all folds' models together"
    return f"{config.folds}-fold cross-validation, {what}, grouped by {unit}{how}"


def _commands(config: RunConfig) -> tuple[str, ...]:
    """What to type to make the run again: the code that trained it, where one clean commit holds it, then the run."""
    commits = {str((read_record(config.folder("train", model)) or {}).get("commit") or "") for model in config.model_names}
    code = commits.pop() if len(commits) == 1 else ""
    checkout = (f"git checkout {code}", "make setup") if code and not code.endswith("+") else ()
    return (*checkout, f"medseg run {config.folder('config.yaml')}")


def report_folders(
    folders: list[Path], output: Path | None = None, readers: Path | None = None, images: Path | None = None
) -> Path:
    """Write a report over finished evaluations, also of masks that another tool made.

    Args:
        folders: each holds per_case.csv and summary.csv, or is a run folder.
        output: folder for report.html; by default `report` in the only folder (beside its evaluations, in a run folder, whose
            own report stays), or in the folder above several.
        readers: a folder that `medseg readers` has written, to show beside the models.
        images: a folder with the images of the cases, for the gallery (see `find_pictures`).
    Returns: the path of report.html.
    Raises: StageError where a folder holds no evaluation, or nothing of the readers that could be shown beside it; ConfigError
        where `images` holds none of the cases.
    """
    folders = [Path(folder) for folder in folders]
    for folder in folders:
        if not folder.is_dir():
            raise StageError(f"{folder} is no folder; give a configuration file, or folders that `medseg evaluate` has written.")
    data = collect_folders(folders)
    pictures = find_pictures({name: record for (_, name), record in data.records.items()}, images)
    more = f" --images {shlex.quote(str(images))}" if images is not None else ""
    data = replace(data, pictures=pictures, commands=tuple(f"{c}{more}" for c in data.commands))
    if readers is not None:
        data = with_readers(
            replace(data, commands=tuple(f"{c} --readers {shlex.quote(str(readers))}" for c in data.commands)), readers
        )
    path = write_report(data, output or _default_place(folders))
    say(f"report: {path}")
    return path


def _default_place(folders: list[Path]) -> Path:
    if len(folders) > 1:
        return folders[0].resolve().parent / "report"
    inside = folders[0] / "evaluate"
    return (inside if inside.is_dir() else folders[0]) / "report"
