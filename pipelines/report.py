"""Stage `report`: the tables of a run, or of finished evaluations, as one HTML file."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from medseg.core.errors import ConfigError, StageError
from medseg.core.files import file_sha256
from medseg.core.manifest import Manifest
from medseg.core.progress import say
from medseg.core.record import StageRecord, read_record
from medseg.data.splits import FOLD
from medseg.evaluation.compare import compare_evaluations, in_common
from medseg.evaluation.config import EvaluateConfig
from medseg.evaluation.ranking import FEWEST_MODELS, rank_models
from medseg.evaluation.table import load_evaluation, name_evaluations
from medseg.reporting.collect import OF_EACH_MODEL, STAGES, Facts, ReportData, collect_folders, collect_run, with_readers
from medseg.reporting.config import ReportConfig
from medseg.reporting.html import write_report
from medseg.reporting.pictures import find_pictures
from pipelines.compare import say_references_that_differ
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
    settings, manifest = config.section("report", ReportConfig), config.manifest()
    if settings.channel is not None and settings.channel not in manifest.channels:
        known = ", ".join(manifest.channels)
        raise ConfigError(
            f"{config.path}: report: `channel`: the manifest has no channel `{settings.channel}` (it has: {known})."
        )
    facts = facts_of(config, manifest)
    folder = config.folder("report")
    record = StageRecord(folder, _read_by(config, settings, manifest, facts))
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


def _read_by(config: RunConfig, settings: ReportConfig, manifest: Manifest, facts: Facts) -> dict[str, Any]:
    """All that a report of this run is made from."""
    readers = sorted(settings.readers.glob("*.csv")) if settings.readers else []
    return {
        "report": settings.model_dump(mode="json"),
        "data": config.data.model_dump(mode="json"),
        "labels": config.labels.model_dump(),
        "splits": facts.splits,
        "design": facts.design,
        "models": config.model_names,
        "cases": [[c.case_id, c.split, *map(str, c.images), str(c.label or "")] for c in manifest.cases],
        "files": files_read(config.output, config.output),
        "readers": {path.name: file_sha256(path) for path in readers},
    }


def files_read(run: Path, root: Path) -> dict[str, str]:
    """The SHA-256 of each file of a run that a report reads, by its path from `root`."""
    return {str(path.relative_to(root)): file_sha256(path) for pattern in READ for path in sorted(run.glob(pattern))}


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
    folders: list[Path],
    output: Path | None = None,
    readers: Path | None = None,
    images: Path | None = None,
    margins: Mapping[str, float] | None = None,
) -> Path:
    """Write a report over finished evaluations, also of masks that another tool made; several are compared on the same cases.

    Args:
        folders: each holds per_case.csv and summary.csv, or is a run folder.
        output: folder for report.html; by default `report` in the only folder (beside its evaluations, in a run folder, whose
            own report stays), or in the folder above several.
        readers: a folder that `medseg readers` has written, to show beside the models.
        images: a folder with the images of the cases, for the gallery (see `find_pictures`).
        margins: metric -> how much worse still counts as not inferior (see `EvaluateConfig.non_inferiority_margin`).
    Returns: the path of report.html.
    Raises: StageError where a folder holds no evaluation, or nothing of the readers that could be shown beside it; ConfigError
        where `images` holds none of the cases, or a margin is of nothing that is compared.
    """
    folders = [Path(folder) for folder in folders]
    for folder in folders:
        if not folder.is_dir():
            raise StageError(f"{folder} is no folder; give a configuration file, or folders that `medseg evaluate` has written.")
    data = _compared(collect_folders(folders), folders, margins or {})
    pictures = find_pictures({name: record for (_, name), record in data.records.items()}, images)
    options = [
        ("--images", images),
        ("--readers", readers),
        *(("--margin", f"{name}={m:g}") for name, m in (margins or {}).items()),
    ]
    stated = "".join(f" {option} {shlex.quote(str(value))}" for option, value in options if value is not None)
    data = replace(data, pictures=pictures, commands=tuple(f"{command}{stated}" for command in data.commands))
    data = with_readers(data, readers) if readers is not None else data
    path = write_report(data, output or _default_place(folders))
    say(f"report: {path}")
    return path


def _compared(data: ReportData, folders: Sequence[Path], margins: Mapping[str, float]) -> ReportData:
    """`data` with its models side by side on the same cases. The comparison that stands in a run is taken as it is."""
    if len(data.models) < 2 or (data.comparison_summary is not None and not margins):
        return data
    try:
        evaluations = {name: load_evaluation(place) for name, place in name_evaluations(folders).items()}
        in_common(evaluations)
    except (ConfigError, StageError) as error:
        say(f"not compared: {error}")
        return data
    settings = EvaluateConfig.model_validate({"confidence": data.facts.confidence, "non_inferiority_margin": dict(margins)})
    comparison = compare_evaluations(evaluations, settings, seed=0)
    say_references_that_differ(evaluations)
    ranking = rank_models(evaluations, settings, seed=0) if len(evaluations) >= FEWEST_MODELS else None
    return replace(data, comparison_summary=comparison.summary, ranking=ranking)


def _default_place(folders: list[Path]) -> Path:
    if len(folders) > 1:
        return folders[0].resolve().parent / "report"
    inside = folders[0] / "evaluate"
    return (inside if inside.is_dir() else folders[0]) / "report"
