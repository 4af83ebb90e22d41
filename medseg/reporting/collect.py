"""The tables of a run, or of finished evaluations, gathered into one `ReportData`. Nothing is computed here."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from medseg.core.errors import StageError
from medseg.core.files import file_sha256
from medseg.core.labels import LabelScheme
from medseg.core.manifest import Case
from medseg.core.record import read_record, require_models
from medseg.evaluation.intervals import CONFIDENCE
from medseg.evaluation.table import name_evaluations
from medseg.reporting.inputs import read_if_there, read_table
from medseg.reporting.pictures import Pictures
from medseg.reporting.readers import ReaderAgreement, read_agreement

STAGES = ("check", "prepare", "train", "predict", "evaluate")
OF_EACH_MODEL = ("train", "predict", "evaluate")


@dataclass(frozen=True)
class Facts:
    """What a reader must know of the data and of the evaluations.

    Args:
        splits: whose cases were predicted and evaluated; empty where that is unknown.
        sampling_unit, confidence: what intervals are over, and their confidence. `collect_run` and `collect_folders` take them
            from the records of the evaluations where these state them.
        design: how cases were separated where it was not by splits: a cross-validation in words.
    """

    name: str = ""
    note: str = ""
    citation: str = ""
    licence: str = ""
    sampling_unit: str = "patient"
    spacing_mm: tuple[float, float, float] | None = None
    splits: tuple[str, ...] = ()
    confidence: float = CONFIDENCE
    design: str = ""


@dataclass(frozen=True, eq=False)
class ModelResults:
    """One model's tables.

    Args:
        per_case, summary: as the evaluation wrote them.
        cases: cases.csv, what became of each case and why; None where the evaluation gives none.
        agreement, subgroups, reliability, thresholds: None where the evaluation gives none.
        unmatched: files without a partner, where two folders were evaluated.
        predictions, log: None where there are none (masks made by another tool).
        fold_logs: of a cross-validation, the log of each fold.
        settings: architecture and options, `schedules`, one a log, and `records`, the stage.json of each training: whatever the
            run's files say.
    """

    name: str
    per_case: pd.DataFrame
    summary: pd.DataFrame
    cases: pd.DataFrame | None = None
    agreement: pd.DataFrame | None = None
    reliability: pd.DataFrame | None = None
    thresholds: pd.DataFrame | None = None
    subgroups: pd.DataFrame | None = None
    unmatched: pd.DataFrame | None = None
    predictions: pd.DataFrame | None = None
    predictions_folder: Path | None = None
    log: pd.DataFrame | None = None
    fold_logs: tuple[pd.DataFrame, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def logs(self) -> dict[str, pd.DataFrame]:
        """The training logs by title: one, or one a fold."""
        if self.fold_logs:
            return {f"{self.name}, fold {number}": log for number, log in enumerate(self.fold_logs)}
        return {self.name: self.log} if self.log is not None else {}

    @property
    def without_reference(self) -> list[str]:
        """Cases of which there is a prediction and no reference to measure it by."""
        table = self.unmatched
        return [] if table is None else sorted(table.loc[table["missing"] == "reference", "case_id"])


@dataclass(frozen=True, eq=False)
class ReportData:
    """All that a report is made of.

    Args:
        cases: of the manifest; empty where it is unknown (then there is no gallery).
        checks: report.csv of `medseg check`, or None.
        absent: models of the run that have not been evaluated.
        records: (stage, model or "") -> stage.json.
        commands: what to type to make the run again.
        readers: None where no readers are shown beside the models.
        pictures: of evaluations over folders, whose cases and labels no manifest and no configuration names.
    """

    name: str
    facts: Facts
    models: tuple[ModelResults, ...]
    cases: tuple[Case, ...] = ()
    channels: tuple[str, ...] = ("image",)
    labels: LabelScheme | None = None
    checks: pd.DataFrame | None = None
    comparison_summary: pd.DataFrame | None = None
    ranking: pd.DataFrame | None = None
    absent: tuple[str, ...] = ()
    plan: dict[str, Any] = field(default_factory=dict)
    records: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    config_text: str = ""
    commands: tuple[str, ...] = ()
    readers: ReaderAgreement | None = None
    pictures: Pictures | None = None

    @property
    def structures(self) -> list[str]:
        """Names of structures, or regions, in the label scheme's order, then any other that the tables hold."""
        known = list(self.labels.measured) if self.labels else []
        found = [s for model in self.models for s in model.per_case["structure"].unique()]
        return list(dict.fromkeys([*(s for s in known if s in found), *found]))

    @property
    def drawn(self) -> list[str]:
        """Names of the structures that pictures show, in the order of their colours: where regions are measured, their parts."""
        labels = self.labels or (self.pictures and self.pictures.labels)
        return labels.names if labels and labels.regions else self.structures


def collect_run(
    folder: Path,
    name: str,
    models: Sequence[str],
    facts: Facts,
    cases: Sequence[Case] = (),
    channels: Sequence[str] = ("image",),
    labels: LabelScheme | None = None,
    commands: Sequence[str] = (),
) -> ReportData:
    """Read the tables of a run folder.

    Args:
        models: the run's models, in the order of the report; those without an evaluation are named in `absent`.
    Raises: StageError where no model has been evaluated, a table is broken, the evaluations do not go together, or a model's
        evaluation, predictions and training are not of one another.
    """
    evaluated = [m for m in models if (folder / "evaluate" / m / "per_case.csv").exists()]
    if not evaluated:
        raise StageError(f"{folder / 'evaluate'} holds no finished evaluation; run `medseg evaluate` first.")
    plan = _json(folder / "prepare" / "plan.json")
    records = {(s, ""): read_record(folder / s) for s in STAGES}
    records |= {(s, m): read_record(folder / s / m) for s in OF_EACH_MODEL for m in models}
    return ReportData(
        name=name,
        facts=_with_intervals(facts, {m: records["evaluate", m] for m in evaluated}),
        models=tuple(_read_model(folder, m, plan, records["evaluate", m] or {}) for m in evaluated),
        cases=tuple(cases),
        channels=tuple(channels),
        labels=labels,
        checks=read_if_there(folder / "check" / "report.csv"),
        comparison_summary=read_if_there(folder / "evaluate" / "comparison_summary.csv"),
        ranking=read_if_there(folder / "evaluate" / "ranking.csv"),
        absent=tuple(m for m in models if m not in evaluated),
        plan=plan,
        records={key: record for key, record in records.items() if record},
        config_text=_text(folder / "config.yaml"),
        commands=tuple(commands),
    )


def collect_folders(folders: Sequence[Path]) -> ReportData:
    """Read finished evaluations: folders that hold per_case.csv and summary.csv, or run folders.

    Raises: StageError naming a folder that holds neither, or where the evaluations do not go together.
    """
    found = name_evaluations(folders)
    models = tuple(_read_evaluation(name, place) for name, place in found.items())
    records = {("evaluate", n): read_record(p) for n, p in found.items()}
    return ReportData(
        name=", ".join(dict.fromkeys(Path(f).resolve().name for f in folders)),
        facts=_with_intervals(Facts(), {n: records["evaluate", n] for n in found}),
        models=models,
        records={key: record for key, record in records.items() if record},
        commands=(" ".join(["medseg report", *(str(f) for f in folders)]),),
        comparison_summary=read_if_there(folders[0] / "evaluate" / "comparison_summary.csv") if len(folders) == 1 else None,
        ranking=read_if_there(folders[0] / "evaluate" / "ranking.csv") if len(folders) == 1 else None,
    )


def with_readers(data: ReportData, folder: Path) -> ReportData:
    """`data` with the agreement of readers that `medseg readers` has written to a folder. Raises: as `read_agreement`."""
    metrics = [metric for model in data.models for metric in model.summary["metric"]]
    return replace(data, readers=read_agreement(folder, data.structures, metrics))


def _with_intervals(facts: Facts, records: Mapping[str, dict[str, Any] | None]) -> Facts:
    """`facts` with the sampling unit and the confidence that the records of the evaluations state.

    Raises: StageError where two evaluations state different ones, for a table has one heading for all intervals.
    """
    inputs = {name: record.get("inputs", {}) for name, record in records.items() if record}
    units = {name: str(i["sampling_unit"]) for name, i in inputs.items() if "sampling_unit" in i}
    confidences = {name: float(i["evaluate"]["confidence"]) for name, i in inputs.items() if "evaluate" in i}
    for what, stated in (("sampling unit", units), ("confidence", confidences)):
        if len(set(stated.values())) > 1:
            told = ", ".join(f"{name}: {value}" for name, value in stated.items())
            raise StageError(
                f"the evaluations' intervals differ in their {what} ({told}); evaluate them alike, or report them apart."
            )
    return replace(
        facts,
        sampling_unit=next(iter(units.values()), facts.sampling_unit),
        confidence=next(iter(confidences.values()), facts.confidence),
    )


def _read_evaluation(name: str, place: Path) -> ModelResults:
    return ModelResults(
        name,
        read_table(place / "per_case.csv"),
        read_table(place / "summary.csv"),
        cases=read_if_there(place / "cases.csv"),
        agreement=read_if_there(place / "agreement.csv"),
        reliability=read_if_there(place / "reliability.csv"),
        thresholds=read_if_there(place / "thresholds.csv"),
        subgroups=read_if_there(place / "subgroups.csv"),
        unmatched=read_if_there(place / "unmatched.csv"),
    )


def _read_model(folder: Path, model: str, plan: dict[str, Any], evaluation: dict[str, Any]) -> ModelResults:
    place = folder / "train" / model
    folds = [place / f"fold_{number}" for number in range(len(list(place.glob("fold_*/log.csv"))))]
    table = folder / "predict" / model / "predictions.csv"
    predictions = read_if_there(table)
    if predictions is not None and "model_sha256" in predictions:
        require_models(table, predictions["model_sha256"], place)
    measured = evaluation.get("inputs", {}).get("predictions_csv")
    if measured and (file_sha256(table) != measured if table.is_file() else place.is_dir()):
        command = "evaluate" if table.is_file() else "predict"
        raise StageError(f"{folder / 'evaluate' / model} is of other predictions than {table}; run `medseg {command}` first.")
    return replace(
        _read_evaluation(model, folder / "evaluate" / model),
        predictions=predictions,
        predictions_folder=folder / "predict" / model,
        log=read_if_there(place / "log.csv"),
        fold_logs=tuple(read_table(fold / "log.csv") for fold in folds),
        settings=dict(plan.get("models", {}).get(model, {}))
        | {"schedules": [_json(training / "schedule.json") for training in folds or [place]]}
        | {"records": [record for training in folds or [place] if (record := read_record(training))]},
    )


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


def _json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}
