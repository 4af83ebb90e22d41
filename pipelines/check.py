"""Stage `check`: everything that is wrong with a configuration, its manifest and its data, in one pass."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import io
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

from medseg.core.cases import map_cases, worth_workers
from medseg.core.config import Section, load_yaml, override, parse
from medseg.core.errors import ConfigError, ManifestError, ModelFileError
from medseg.core.files import file_sha256, json_sha256, remove, write_text
from medseg.core.labels import LabelScheme, Structure
from medseg.core.limits import available_cores
from medseg.core.manifest import Manifest, scan_manifest
from medseg.core.progress import say
from medseg.core.record import StageRecord
from medseg.data.check import CaseFindings, Problem, check_case, check_together, problem_of, problem_of_outcome
from medseg.data.fetch import DATASETS
from medseg.data.splits import FOLD, fill_splits, fold_of_cases, pool_for_folds
from medseg.inference.scans import scan_files
from medseg.planning.config import PlanConfig
from medseg.planning.sides import swapped_classes
from pipelines.config import KEYS, LABEL_KEYS, RunConfig

if TYPE_CHECKING:
    from medseg.planning.plan import Plan

SECTIONS = {
    "data": ("medseg.data.config", "DataConfig"),
    "plan": ("medseg.planning.config", "PlanConfig"),
    "training": ("medseg.training.config", "TrainingConfig"),
    "predict": ("medseg.inference.config", "PredictConfig"),
    "evaluate": ("medseg.evaluation.config", "EvaluateConfig"),
    "report": ("medseg.reporting.config", "ReportConfig"),
}
COLUMNS = ["case_id", "file", "severity", "problem", "what_to_do"]
MOST_ROWS_SHOWN = 40


def check(path: Path, assignments: list[str] | None = None, redo: bool = False) -> int:
    """`medseg check`: as the stage, for a file that may not even be a whole configuration. Returns the exit code."""
    settings = override(load_yaml(Path(path)), assignments or [])
    problems = []
    for key in [key for key in settings if key not in KEYS]:
        problems.append(_unknown_key(key, KEYS, str(path), str(path)))
        del settings[key]
    for key in [key for key in ("seed", "folds", "output") if key in settings]:
        try:
            RunConfig(Path(path), {key: settings[key]})
        except ConfigError as error:
            problems.append(problem_of(error, file=path))
            del settings[key]
    config = RunConfig(Path(path), settings)
    return _check(config, problems, redo)


def run(config: RunConfig, redo: bool = False) -> int:
    """Find everything that is wrong; write check/report.csv. Returns 0, or 2 where there is an error."""
    return _check(config, [], redo)


class _Cases(NamedTuple):
    """What there is to check: the cases that the manifest names, their root, and what is known of them.

    `fold_of` names, in a cross-validation, the fold that holds each case out.
    """

    manifest: Manifest | None
    root: Path
    spacing_mm: tuple[float, float, float] | None
    fold_of: dict[str, int] = {}


def _check(config: RunConfig, problems: list[Problem], redo: bool) -> int:
    problems += config_problems(config)
    scheme = _scheme(config)
    cases, more = _manifest(config)
    problems += more
    if cases.manifest is not None:
        problems += _between_sections(config, cases.manifest)
    start, more = _start(config)
    problems += more
    made_for = start and [start.n_channels, start.preprocessing.physical, start.channels]
    record = StageRecord(config.folder("check"), _inputs(config, cases) | {"start": made_for})
    before = record.previous()
    sound = all(problem.severity == "warning" for problem in problems)
    if sound and before and record.unchanged() and not redo:
        say(f"check: unchanged, skipped ({before['counts'].get('warnings', 0)} warnings, {config.folder('check')}/report.csv)")
        return 0
    remove(record.path)  # a report of today and a record of yesterday must not stand side by side
    findings = _findings(cases, scheme, problems)
    problems += check_together(findings, scheme, cases.fold_of)
    problems += _other_scans(start, cases, findings, str(config.path))
    table = report_table(problems, cases.root)
    write_text(config.folder("check") / "report.csv", table.to_csv(index=False, lineterminator="\n"))
    if len(table):
        say(rendered(table))
    n_errors = int((table["severity"] == "error").sum())
    counts = {"cases": len(findings), "errors": n_errors, "warnings": len(table) - n_errors}
    where = config.folder("check") / "report.csv"
    say(f"check: {_splits(findings)}, {n_errors} errors, {counts['warnings']} warnings; table: {where}")
    if n_errors:
        return 2
    record.write("check", config.seed, counts)
    return 0


def config_problems(config: RunConfig) -> list[Problem]:
    """What is wrong with the configuration alone: every section, the structures and the models."""
    problems = []
    for name, (module, section) in SECTIONS.items():
        model, content = getattr(importlib.import_module(module), section), config.settings.get(name)
        if isinstance(content, dict):
            # Unknown keys would hide contradictions between the known ones, so they are taken out first.
            unknown = [key for key in content if key not in model.model_fields]
            problems += [
                _unknown_key(key, list(model.model_fields), f"{config.path}: {name}", str(config.path)) for key in unknown
            ]
            content = {key: value for key, value in content.items() if key not in unknown}
        try:
            parse(model, content, f"{config.path}: {name}")
        except ConfigError as error:
            problems.append(problem_of(error, file=config.path))
    try:
        _ = config.labels
    except ConfigError as error:
        problems.append(problem_of(error, file=config.path))
    return [*problems, *_training_problems(config), *_model_problems(config)]


def _training_problems(config: RunConfig) -> Iterator[Problem]:
    """A loss that does not exist or does not go with the class weights, an extra that is not installed."""
    from medseg.losses.registry import build_loss
    from medseg.training.config import TrainingConfig

    where = str(config.path)
    if not _sound(config, "training", TrainingConfig):
        return
    settings = config.section("training", TrainingConfig)
    scheme = _scheme(config) or LabelScheme(structures=[Structure(name="any", id=1)])
    try:
        build_loss(settings.loss, settings.loss_options, scheme, [1.0] * scheme.n_classes if settings.class_weights else None)
    except ConfigError as error:
        yield problem_of(error, file=where)
    if isinstance(settings.class_weights, dict) and _scheme(config):
        known = ["background", *scheme.names]
        for name in [name for name in settings.class_weights if name not in known]:
            text = f"{where}: training: `class_weights` names `{name}`, which is no structure"
            yield Problem("error", text, f"name {', '.join(known)}", file=where)
    for name in settings.track:
        if importlib.util.find_spec(name) is None:  # each is called as its package
            text = f"{where}: training: `track` names {name}, which is not installed"
            yield Problem("error", text, "run `pip install medseg[track]`, or leave it out", file=where)


def _unknown_key(key: str, known: Sequence[str], where: str, file: str) -> Problem:
    close = difflib.get_close_matches(str(key), known, 1)
    cure = f"write `{close[0]}`, or remove it" if close else f"remove it (known: {', '.join(known)})"
    return Problem("error", f"{where}: unknown key `{key}`", cure, file=file)


def _model_problems(config: RunConfig) -> Iterator[Problem]:
    """Models that do not exist, or that cannot be built for a patch that the configuration states."""
    import torch

    from medseg.models.registry import build_network, parse_models

    where = str(config.path)
    try:
        models = config.models
        alone = [{name: content} for name, content in models.items()] if isinstance(models, dict) else [models]
    except ConfigError as error:
        yield problem_of(error, file=where)
        return
    patch = config.section("plan", PlanConfig).patch_voxels if _sound(config, "plan", PlanConfig) else None
    for value in alone:
        try:
            for name, model in parse_models(value, f"{where}: models").items():
                options = model.options.model_dump()
                weights = options.get("weights")
                if weights is not None and not Path(weights).is_file():
                    text = f"{where}: models.{name}: the weights file {weights} does not exist"
                    yield Problem("error", text, "correct `weights`, or remove it", file=where)
                if patch is not None:
                    with torch.device("meta"):  # shapes only: nothing is computed and no memory taken
                        build_network(
                            model.architecture, options, in_channels=1, n_classes=2, patch_voxels=patch, pretrained=False
                        )
        except ConfigError as error:
            yield problem_of(error, file=where)


def _sound(config: RunConfig, name: str, section: type[Section]) -> bool:
    try:
        config.section(name, section)
    except ConfigError:
        return False
    return True


def _scheme(config: RunConfig) -> LabelScheme | None:
    try:
        return config.labels
    except ConfigError:
        return None


def _manifest(config: RunConfig) -> tuple[_Cases, list[Problem]]:
    try:
        data = config.data
    except ConfigError:
        return _Cases(None, Path(), None), []  # said by config_problems
    assert data.manifest is not None and data.root is not None
    nothing = _Cases(None, data.root, data.spacing_mm)
    try:
        manifest, errors = scan_manifest(data.manifest, data.root)
    except ManifestError as error:
        return nothing, [problem_of(error, file=data.manifest)]
    problems = [problem_of(error, error.case_id, data.manifest) for error in errors]
    fold_of: dict[str, int] = {}
    try:
        if config.folds is None:
            manifest = fill_splits(manifest, data.val_fraction, data.test_fraction, config.split_seed)
        else:
            manifest = pool_for_folds(manifest)
            fold_of = fold_of_cases(config.cross_validation(manifest))
    except (ConfigError, ManifestError) as error:
        problems.append(problem_of(error, getattr(error, "case_id", ""), data.manifest))
    if not data.root.is_dir():
        cure = f"run `medseg fetch {data.name}`" if data.name in DATASETS else "state `data.root`"
        return nothing, [*problems, Problem("error", f"the data folder {data.root} does not exist", cure, file=str(data.root))]
    return _Cases(manifest, data.root, data.spacing_mm, fold_of), problems


def _between_sections(config: RunConfig, manifest: Manifest) -> Iterator[Problem]:
    """Contradictions between sections, and between the configuration and the manifest."""
    from medseg.evaluation.config import EvaluateConfig
    from medseg.inference.config import PredictConfig

    where = str(config.path)
    settings = {name: value for name, value in config.settings.items() if isinstance(value, dict)}
    try:
        config.section("evaluate", EvaluateConfig).tolerances(list(config.labels.measured))
    except ConfigError as error:
        if "surface_tolerance" in str(error):
            yield problem_of(error, file=where)
    channel = settings.get("report", {}).get("channel")
    if channel is not None and channel not in manifest.channels:
        text = f"report: `channel: {channel}` is none of the manifest's channels"
        yield Problem("error", text, f"name one of {', '.join(manifest.channels)}", file=where)
    try:
        config.sampling_unit(manifest.cases)
    except ConfigError as error:
        yield problem_of(error, file=where)
    if _sound(config, "predict", PredictConfig):
        try:
            splits = config.predicted_splits()
            if not manifest.of(*splits):
                text = f"no case has the split {' or '.join(splits)}, so nothing would be predicted"
                yield Problem("error", text, "give some cases that split, or name another in `predict.split`", file=where)
        except ConfigError as error:
            yield problem_of(error, file=where)
    yield from _unused_folds(config, manifest, where)
    yield from _modalities(settings.get("data", {}).get("modality"), manifest, where)
    yield from _pairs(config, where)


def _unused_folds(config: RunConfig, manifest: Manifest, where: str) -> Iterator[Problem]:
    """Settings and columns of a cross-validation that have no effect."""
    stated = any(case.covariates.get(FOLD) for case in manifest.cases)
    if config.folds is None and config.data.stratify_by:
        yield Problem("warning", "`data.stratify_by` has no effect without `folds`", "state `folds`, or remove it", file=where)
    elif config.folds is not None and stated and config.data.stratify_by:
        text = "`data.stratify_by` has no effect: the manifest's column `fold` states the folds"
        yield Problem("warning", text, "remove one of them", file=where)


def _modalities(modality: Any, manifest: Manifest, where: str) -> Iterator[Problem]:
    several = len(manifest.channels) > 1  # a single file may be a colour picture of three channels
    if isinstance(modality, list) and several and len(modality) != len(manifest.channels):
        text = f"`data.modality` names {len(modality)} channels and the manifest has {len(manifest.channels)}"
        yield Problem("error", text, f"name one for each of {', '.join(manifest.channels)}", file=where)


def _pairs(config: RunConfig, where: str) -> Iterator[Problem]:
    scheme = _scheme(config)
    if scheme is None:
        return
    try:
        swapped_classes(scheme)
    except ConfigError as error:
        yield problem_of(error, file=where)
    partner = {s.name: s.paired_with for s in scheme.structures}
    for name, other in partner.items():
        mirror = name.replace("left", "right")
        if mirror != name and mirror in partner and not other and not partner[mirror]:
            text = f"`{name}` and `{mirror}` look like the two sides of the body"
            yield Problem("warning", text, "state `paired_with` for both, so that `check` can tell mirrored scans", file=where)


def _inputs(config: RunConfig, cases: _Cases) -> dict[str, Any]:
    """What the check of the cases depends on. Files count by size and time: reading them would be the check itself."""
    settings = {key: config.settings.get(key) for key in ("data", "seed", "folds", *LABEL_KEYS)}
    if cases.manifest is None:
        return settings
    named = (path for case in cases.manifest.cases for path in (*case.images, case.label) if path is not None)
    paths = scan_files([path for path in named if path.is_file()])
    stats = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    return settings | {"manifest_sha256": file_sha256(cases.manifest.path), "files_sha256": json_sha256(stats)}


def _findings(cases: _Cases, scheme: LabelScheme | None, problems: list[Problem]) -> list[CaseFindings]:
    """Check every case, in worker processes where there is much to read; problems are added to `problems`."""
    if cases.manifest is None:
        return []
    named = list(cases.manifest.cases)
    workers = available_cores() if worth_workers(path for case in named for path in case.images) else 1
    look = partial(check_case, scheme=scheme, spacing_mm=cases.spacing_mm)
    findings = []
    for outcome in map_cases(look, named, "check: cases", workers):
        if outcome.result is None:
            problems.append(problem_of_outcome(outcome))
            findings.append(CaseFindings(outcome.item))
        else:
            problems += outcome.result.problems
            findings.append(outcome.result)
    return findings


def _start(config: RunConfig) -> tuple[Plan | None, list[Problem]]:
    """The plan of the model that the training starts from; None where there is none, or none that can be read."""
    from medseg.inference.bundle import read_bundle
    from medseg.models.registry import parse_models
    from medseg.planning.plan import require_same_architecture
    from medseg.training.config import TrainingConfig

    if not config.settings.get("training") or not _sound(config, "training", TrainingConfig):
        return None, []
    path = config.section("training", TrainingConfig).init_from
    if path is None:
        return None, []
    try:
        start = read_bundle(path).whole_plan
    except ModelFileError as error:
        text, cure = f"{config.path}: training: `init_from`: {problem_of(error).problem}", problem_of(error).cure
        return None, [Problem("error", text, cure, file=str(config.path))]
    try:
        models = parse_models(config.models, f"{config.path}: models")
    except ConfigError:
        return start, []  # said by config_problems
    try:
        require_same_architecture(start, {name: {"architecture": m.architecture} for name, m in models.items()})
    except ConfigError as error:
        return start, [problem_of(error, file=config.path)]
    return start, []


def _other_scans(start: Plan | None, cases: _Cases, findings: list[CaseFindings], where: str) -> Iterator[Problem]:
    """The model that the training starts from must have been made for scans as most cases are."""
    from medseg.planning.plan import require_same_scans

    kinds = Counter((f.channels, f.physical) for f in findings if f.channels is not None and f.physical is not None)
    if start is None or cases.manifest is None or not kinds:
        return
    ((channels, physical), _), *_ = kinds.most_common(1)
    try:
        require_same_scans(start, channels, physical, cases.manifest.channels)
    except ConfigError as error:
        yield problem_of(error, file=where)


def report_table(problems: list[Problem], root: Path) -> pd.DataFrame:
    """Errors first, then warnings, each by case; paths below `root` are written from there."""

    def short(text: str) -> str:
        return text.replace(f"{root}{os.sep}", "") if root != Path() else text

    rows = [[p.case_id, short(p.file), p.severity, short(p.problem), p.cure] for p in problems]
    return pd.DataFrame(rows, columns=COLUMNS).sort_values(["severity", "case_id"], kind="stable", ignore_index=True)


def rendered(table: pd.DataFrame) -> str:
    """The table as text for a console, at most `MOST_ROWS_SHOWN` rows of it."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table("", "case", "problem", "what to do", box=SIMPLE, expand=False)
    for case_id, _, severity, problem, cure in table.head(MOST_ROWS_SHOWN).itertuples(index=False):
        shown.add_row(*(Text(str(cell)) for cell in (severity, case_id, problem, cure)))
    stream = io.StringIO()
    Console(file=stream, width=max(80, shutil.get_terminal_size((130, 24)).columns)).print(shown)
    text = "\n".join(line.rstrip() for line in stream.getvalue().strip("\n").splitlines())
    more = len(table) - MOST_ROWS_SHOWN
    return text + (f"\n... and {more} more in report.csv" if more > 0 else "")


def _splits(findings: list[CaseFindings]) -> str:
    splits: dict[str, int] = {}
    for finding in findings:
        splits[finding.case.split or "no split"] = splits.get(finding.case.split or "no split", 0) + 1
    return f"{len(findings)} cases" + (f" ({', '.join(f'{n} {name}' for name, n in splits.items())})" if splits else "")
