"""Stage `evaluate`: predictions measured against references, case by case, then summed up and compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from medseg.core.errors import CaseError, ConfigError, StageError
from medseg.core.files import file_sha256, json_sha256, remove
from medseg.core.labels import LabelScheme
from medseg.core.manifest import Case
from medseg.core.progress import say
from medseg.core.record import StageRecord, require_models
from medseg.core.wording import some_of
from medseg.data.splits import fold_of_cases
from medseg.evaluation.agreement import agreement_table
from medseg.evaluation.compare import Comparison, compare_evaluations
from medseg.evaluation.config import EvaluateConfig
from medseg.evaluation.console import comparison_text, ranking_text, summary_text
from medseg.evaluation.pairs import Pair, pair_cases
from medseg.evaluation.ranking import FEWEST_MODELS, rank_models
from medseg.evaluation.subgroups import covariates_of, summarise_subgroups
from medseg.evaluation.summary import summarise
from medseg.evaluation.table import (
    Evaluation,
    evaluate_cases,
    load_evaluation,
    read_text_table,
    write_evaluation,
    write_table,
)
from medseg.evaluation.thresholds import best_text
from medseg.inference.scans import images_sha256
from medseg.metrics.table import METRICS
from pipelines.config import RunConfig

TABLES = ("per_case.csv", "cases.csv", "summary.csv")
RANKING_FILE = "ranking.csv"
COMPARISON_FILES = ("comparison.csv", "comparison_summary.csv")


def run(config: RunConfig, redo: bool = False) -> int:
    """Evaluate every model of a run on its test cases, and compare them.

    Returns: 0, or 1 where some cases have no usable prediction or reference.
    Raises: StageError where a model has not predicted yet, or was trained since; ConfigError, ManifestError.
    """
    settings = config.section("evaluate", EvaluateConfig)
    splits, manifest = config.predicted_splits(), config.manifest()
    cases = manifest.of(*splits)
    fold_of = fold_of_cases(config.cross_validation(manifest)) if config.out_of_fold else {}
    if not cases:
        raise StageError(f"{config.path}: no case has the split {' or '.join(splits)}; name some in the manifest.")
    unit = config.sampling_unit(cases)
    evaluations = {}
    for model in config.model_names:
        pairs = pair_cases(cases, _predictions(config.folder("predict", model), model, cases, config.folder("train", model)))
        inputs = {
            "split": list(splits),
            "folds": fold_of,
            "sampling_unit": unit,
            "spacing_mm": config.data.spacing_mm,
            "predictions_csv": file_sha256(config.folder("predict", model, "predictions.csv")),
        }
        folder, title = config.folder("evaluate", model), f"evaluate {model}"
        evaluations[model] = evaluate_pairs(
            pairs,
            config.labels,
            settings,
            folder,
            title,
            inputs,
            config.seed,
            config.data.spacing_mm,
            fold_of,
            covariates_of(cases),
            redo,
        )
    _compare(config, evaluations, settings, redo)
    return int(any(some_failed(e) for e in evaluations.values()))


def _compare(config: RunConfig, evaluations: dict[str, Evaluation], settings: EvaluateConfig, redo: bool) -> None:
    folder = config.folder("evaluate")
    if len(evaluations) < 2:
        for name in (*COMPARISON_FILES, RANKING_FILE, "stage.json"):  # of an earlier run with more models
            remove(folder / name)
        return
    tables = {model: [file_sha256(folder / model / name) for name in ("per_case.csv", "cases.csv")] for model in evaluations}
    record = StageRecord(folder, {"tables": tables, "evaluate": settings.model_dump(mode="json"), "seed": config.seed})
    if record.unchanged() and _stand(folder, COMPARISON_FILES) and not redo:
        say("evaluate comparison: unchanged, skipped")
        return
    remove(record.path)
    write_comparison(folder, compare_evaluations(evaluations, settings, config.seed))
    write_ranking(folder, evaluations, settings, config.seed)
    record.write("comparison", config.seed)


def _predictions(folder: Path, model: str, cases: Sequence[Case], training: Path) -> dict[str, tuple[Path | None, str]]:
    """For each case its prediction, or None and why: as predictions.csv says. Raises: StageError as `run`."""
    try:
        table = read_text_table(folder / "predictions.csv")
        rows = table[["case_id", "output", "status", "reason"]].to_dict("records")
    except (OSError, ValueError, KeyError):
        raise StageError(f"{folder} holds no predictions of `{model}`; run `medseg predict` first.") from None
    if "model_sha256" in table:
        require_models(folder / "predictions.csv", table["model_sha256"], training)
    found: dict[str, tuple[Path | None, str]] = {}
    for row in rows:
        path = folder / row["output"] if row["output"] else None
        usable = row["status"] == "done" and path is not None and path.is_file()
        reason = row["reason"] or f"{path or 'its output'} does not exist"
        found[row["case_id"]] = (path, "") if usable else (None, reason)
    return {case.case_id: found[case.case_id] for case in cases if case.case_id in found}


def evaluate_pairs(
    pairs: Sequence[Pair],
    scheme: LabelScheme,
    settings: EvaluateConfig,
    folder: Path,
    title: str,
    inputs: dict[str, Any],
    seed: int,
    spacing_mm: tuple[float, float, float] | None = None,
    fold_of: Mapping[str, int] | None = None,
    covariates: pd.DataFrame | None = None,
    redo: bool = False,
) -> Evaluation:
    """Measure and write one evaluation, or leave the one that stands there where nothing has changed.

    Args:
        fold_of: of a cross-validation, the fold that held each case out; it becomes a column of per_case.csv.
        covariates: what else is known of each case, by its case_id: what subgroups.csv is made of.
    Returns: what stands in the tables, as a later run would read it, so that rounded figures meet rounded ones.
    """
    groups = _asked_for(covariates if covariates is not None else pd.DataFrame(), settings)
    known = {"subgroups": json_sha256(groups.to_dict("index"))}
    told = {"numbered": scheme.numbered} if scheme.numbered else {}
    record = StageRecord(folder, inputs | known | told | _read_by_all(pairs, scheme, settings, seed))
    if record.unchanged() and _stand(folder, TABLES) and not redo:
        say(f"{title}: unchanged, skipped")
        return load_evaluation(folder)
    evaluation = evaluate_cases(pairs, scheme, settings, spacing_mm, title)
    if fold_of:
        evaluation.per_case.insert(2, "fold", evaluation.per_case["case_id"].map(fold_of))
    for name in (record.path.name, *TABLES):  # or, cut short among the new ones, the old would pass for theirs
        remove(folder / name)
    summary = _write_tables(folder, evaluation, groups, settings, seed)
    record.write("evaluate", seed, evaluation.counts, measures=[m.as_dict() for m in evaluation.measures])
    say(summary_text(title, evaluation, summary))
    _say_without_probabilities(title, pairs, evaluation)
    if not evaluation.thresholds.empty:
        say(best_text(title, evaluation.thresholds))
    say(f"{title}: {folder / 'summary.csv'} and {folder / 'per_case.csv'}")
    return load_evaluation(folder)


def _say_without_probabilities(title: str, pairs: Sequence[Pair], evaluation: Evaluation) -> None:
    columns = [measure.column for measure in evaluation.measures if METRICS[measure.metric].of_probabilities]
    if columns and (without := sum(pair.probabilities is None for pair in pairs)):
        say(f"{title}: {without} of {len(pairs)} cases have no probabilities beside their masks, so no {some_of(columns)}")


def _asked_for(covariates: pd.DataFrame, settings: EvaluateConfig) -> pd.DataFrame:
    """The columns to sum up in groups. Raises: ConfigError for one that is not there."""
    wanted = list(covariates) if settings.subgroups is None else list(settings.subgroups)
    if missing := [name for name in wanted if name not in covariates]:
        known = ", ".join(map(str, covariates)) or "none"
        raise ConfigError(f"evaluate: `subgroups` names `{missing[0]}`, which is no column (there are: {known}).")
    return covariates[wanted]


def _write_tables(
    folder: Path, evaluation: Evaluation, groups: pd.DataFrame, settings: EvaluateConfig, seed: int
) -> pd.DataFrame:
    """Write all tables of one evaluation. Returns: summary.csv."""
    summary = summarise(evaluation, settings, seed)
    write_evaluation(folder, evaluation)
    write_table(folder / "summary.csv", summary)
    write_table(folder / "agreement.csv", agreement_table(evaluation, settings.confidence))
    remove(folder / "subgroups.csv")  # of an evaluation with other columns
    if len(groups.columns):
        found = summarise_subgroups(evaluation, groups, settings, seed, settings.bands)
        write_table(folder / "subgroups.csv", found.table)
        for sentence in found.left_out:
            say(f"subgroups: {sentence}")
    return summary


def _stand(folder: Path, names: Sequence[str]) -> bool:
    return all((folder / name).is_file() for name in names)


def _read_by_all(pairs: Sequence[Pair], scheme: LabelScheme, settings: EvaluateConfig, seed: int) -> dict[str, Any]:
    files = {p.case_id: [_hash(p.reference), _hash(p.prediction), p.patient_id, p.reason, _hash(p.probabilities)] for p in pairs}
    return {
        "evaluate": settings.model_dump(mode="json", exclude={"workers", "non_inferiority_margin"}),
        "labels": scheme.model_dump(mode="json"),
        "seed": seed,
        "files": json_sha256(files),
    }


def _hash(path: Path | None) -> str:
    try:
        return images_sha256([path]) if path else ""
    except (CaseError, OSError):
        return "unreadable"


def some_failed(evaluation: Evaluation) -> bool:
    """True where some case has no usable prediction or reference."""
    return evaluation.counts["evaluated"] < evaluation.counts["given"]


def write_comparison(folder: Path, comparison: Comparison) -> None:
    """Write comparison.csv and comparison_summary.csv and say the means of the differences."""
    write_table(folder / COMPARISON_FILES[0], comparison.differences)
    write_table(folder / COMPARISON_FILES[1], comparison.summary)
    if comparison.left_out:
        say(f"not compared, since not every model has it: {', '.join(comparison.left_out)}")
    say(comparison_text(comparison))
    say(f"compare: {' and '.join(str(folder / name) for name in COMPARISON_FILES)}")


def write_ranking(folder: Path, evaluations: Mapping[str, Evaluation], settings: EvaluateConfig, seed: int) -> None:
    """Write ranking.csv and say it, where there are three models or more; otherwise remove that of an earlier comparison."""
    if len(evaluations) < FEWEST_MODELS:
        remove(folder / RANKING_FILE)
        return
    ranking = rank_models(evaluations, settings, seed)
    write_table(folder / RANKING_FILE, ranking)
    say(ranking_text(ranking))
    say(f"ranking: {folder / RANKING_FILE}")
