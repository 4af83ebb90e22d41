"""`medseg evaluate`: predictions measured against references, case by case, then summed up and compared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from medseg.core.config import override, parse
from medseg.core.errors import CaseError, ConfigError, StageError
from medseg.core.files import file_sha256, json_sha256, remove
from medseg.core.labels import MOST_STRUCTURES, LabelScheme, Structure, load_label_scheme
from medseg.core.manifest import Case
from medseg.core.progress import say
from medseg.core.record import StageRecord, require_models
from medseg.data.splits import fold_of_cases
from medseg.evaluation.agreement import agreement_table
from medseg.evaluation.compare import Comparison, compare_evaluations
from medseg.evaluation.config import EvaluateConfig
from medseg.evaluation.console import FEW, comparison_text, ranking_text, summary_text
from medseg.evaluation.masks import plain
from medseg.evaluation.pairs import Pair, Unmatched, pair_cases, pair_folders
from medseg.evaluation.ranking import FEWEST_MODELS, rank_models
from medseg.evaluation.subgroups import covariates_of, summarise_subgroups
from medseg.evaluation.summary import summarise
from medseg.evaluation.table import Evaluation, evaluate_cases, load_evaluation, write_evaluation, write_table
from medseg.evaluation.thresholds import best_text
from medseg.inference.scans import images_sha256
from medseg.io.formats import read_labels, read_named_masks
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
        evaluations[model] = _evaluate(
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
    return int(any(_failed(e) for e in evaluations.values()))


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
    write_comparison(folder, compare_evaluations(evaluations, settings, config.seed))
    write_ranking(folder, evaluations, settings, config.seed)
    record.write("comparison", config.seed)


def evaluate_folders(
    predictions: Path,
    references: Path,
    output: Path,
    labels: Path | None = None,
    cases: Path | None = None,
    assignments: Sequence[str] = (),
    redo: bool = False,
) -> int:
    """Evaluate masks made by any tool; those of the two folders are matched by name (see `pair_folders`).

    Writes per_case.csv, cases.csv, summary.csv, agreement.csv (of volumes), subgroups.csv, unmatched.csv and stage.json to
    `output`.

    Args:
        labels: labels.yaml or nnU-Net's dataset.json with the structures; without it each whole number above 0 in the references
            is one, or each name where masks have names.
        cases: a table with a row a case: `case_id`, and where they are known `patient_id` and other columns to group cases by.
        assignments: `evaluate.<key>=<value>`, as in a configuration.
    Returns: 0, or 1 where some references have no usable prediction, or cannot be read.
    """
    settings = _stated_settings(assignments)
    pairs, unmatched = pair_folders(Path(predictions), Path(references))
    known = read_case_table(Path(cases)) if cases else pd.DataFrame()
    if cases:
        _check_named(pairs, known, Path(cases))
    pairs = [replace(pair, patient_id=known["patient_id"].get(pair.case_id, "")) if len(known) else pair for pair in pairs]
    scheme = load_label_scheme(Path(labels)) if labels else scheme_from_references(pairs)
    write_unmatched(Path(output), unmatched)
    _say_what_differs(pairs)
    unit = "patient" if any(pair.patient_id for pair in pairs) else "case"
    folders = {"predictions": str(Path(predictions).absolute()), "references": str(Path(references).absolute())}
    inputs = folders | {"sampling_unit": unit}
    columns = known.drop(columns="patient_id", errors="ignore")
    evaluation = _evaluate(pairs, scheme, settings, Path(output), "evaluate", inputs, 0, covariates=columns, redo=redo)
    return int(_failed(evaluation))


def _say_what_differs(pairs: Sequence[Pair]) -> None:
    """Say how names were matched that are not equal."""
    for differing, count in Counter(pair.differing for pair in pairs if pair.differing).items():
        example = next(pair for pair in pairs if pair.differing == differing)
        assert example.prediction and example.reference
        names = f"{example.prediction.name} with {example.reference.name}"
        say(f"{count} matched apart from {differing}, such as {names}")


def _stated_settings(assignments: Sequence[str]) -> EvaluateConfig:
    content = override({}, list(assignments))
    if other := sorted(content.keys() - {"evaluate"}):
        raise ConfigError(f"--set {other[0]}: of two folders only `evaluate.<key>` can be set; leave it out.")
    return parse(EvaluateConfig, content.get("evaluate"), "--set evaluate")


def read_case_table(path: Path) -> pd.DataFrame:
    """What is known of cases: a table with `case_id` (the index of the result), `patient_id` (empty where it has none) and any
    other columns, as text.

    Raises: ConfigError where it cannot be read, has no `case_id`, or names a case twice.
    """
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} is not a readable CSV table ({' '.join(str(error).split())}); correct it.") from None
    if "case_id" not in table:
        raise ConfigError(f"{path} has no column case_id (it has: {', '.join(map(str, table.columns))}); add it.")
    if (double := table["case_id"].duplicated()).any():
        raise ConfigError(f"{path} names case `{table['case_id'][double].iloc[0]}` twice; remove one row.")
    return table.assign(patient_id=table.get("patient_id", "")).set_index("case_id")


def _check_named(pairs: Sequence[Pair], known: pd.DataFrame, path: Path) -> None:
    """Say which cases the table does not name: they count as patients of their own. Raises: ConfigError where it names none."""
    absent = [pair.case_id for pair in pairs if pair.case_id not in known.index]
    if len(absent) == len(pairs):
        raise ConfigError(f"{path} names none of the cases ({', '.join(absent[:FEW])}, ...); correct its column case_id.")
    if absent:
        say(f"{path} does not name {len(absent)} of {len(pairs)} cases, such as {absent[0]}; each counts as a patient of its own")


def scheme_from_references(pairs: Sequence[Pair]) -> LabelScheme:
    """A structure `label_<v>` for each value above 0 in the references that can be read, or one for each name of their masks.

    Raises: ConfigError where there is none, or there are too many to be structures; where some masks have names and others
        have values, which only a labels file can bring together.
    """
    if names := _names_of_masks(pairs):
        say(f"no labels file given: structures are the names of the references' masks ({', '.join(names)})")
        return LabelScheme(structures=[Structure(name=name, id=number) for number, name in enumerate(names, start=1)])
    found: set[int] = set()
    for pair in pairs:
        try:
            assert pair.reference is not None
            found |= set(np.unique(read_labels(pair.reference).array).tolist())
        except CaseError:
            continue  # the evaluation meets the same file again and gives the reason
    values = sorted(found - {0})
    if not values:
        raise ConfigError("no reference holds a value above 0, so there is no structure to evaluate; give --labels labels.yaml.")
    if len(values) > MOST_STRUCTURES or values[-1] > 65535:
        raise ConfigError(
            f"the references hold {len(values)} values up to {values[-1]}, too many to be structures; give --labels labels.yaml "
            "(`values: nonzero` reads numbered instances as one structure)."
        )
    say(f"no labels file given: structures are the values of the references ({', '.join(f'label_{v}' for v in values)})")
    return LabelScheme(structures=[Structure(name=f"label_{v}", id=v) for v in values])


def _names_of_masks(pairs: Sequence[Pair]) -> list[str]:
    """The names in the references, where all masks have names; none where none has. Raises: ConfigError where some have."""
    names: dict[str, list[str]] = {"references": [], "predictions": []}
    without: dict[str, Path] = {}
    for pair in pairs:
        for what, path in (("references", pair.reference), ("predictions", pair.prediction)):
            try:
                masks = read_named_masks(path) if path else None
            except CaseError:
                continue  # the evaluation meets the same file again and gives the reason
            if masks is not None:
                names[what] += masks.names
            elif path is not None:
                without.setdefault(what, path)
    named = [what for what, found in names.items() if found]
    if named and without:
        raise ConfigError(
            f"the {named[0]} name their structures ({', '.join(list(dict.fromkeys(names[named[0]]))[:FEW])}) and "
            f"{next(iter(without.values()))} holds values; give --labels labels.yaml, which says which value is which structure."
        )
    plainly = {plain(name): name for name in reversed(names["references"])}
    if len(plainly) > MOST_STRUCTURES:
        raise ConfigError(f"the references name {len(plainly)} structures, too many; give --labels labels.yaml with some.")
    return sorted(plainly.values())


def _predictions(folder: Path, model: str, cases: Sequence[Case], training: Path) -> dict[str, tuple[Path | None, str]]:
    """For each case its prediction, or None and why: as predictions.csv says. Raises: StageError as `run`."""
    try:
        table = pd.read_csv(folder / "predictions.csv", dtype=str, keep_default_na=False)
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


def _evaluate(
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
    summary = summarise(evaluation, settings, seed)
    write_evaluation(folder, evaluation)
    write_table(folder / "summary.csv", summary)
    write_table(folder / "agreement.csv", agreement_table(evaluation, settings.confidence))
    _write_subgroups(folder / "subgroups.csv", evaluation, groups, settings, seed)
    record.write("evaluate", seed, evaluation.counts, measures=[m.as_dict() for m in evaluation.measures])
    say(summary_text(title, evaluation, summary))
    if not evaluation.thresholds.empty:
        say(best_text(title, evaluation.thresholds))
    say(f"{title}: {folder / 'summary.csv'} and {folder / 'per_case.csv'}")
    return load_evaluation(folder)


def _asked_for(covariates: pd.DataFrame, settings: EvaluateConfig) -> pd.DataFrame:
    """The columns to sum up in groups. Raises: ConfigError for one that is not there."""
    wanted = list(covariates) if settings.subgroups is None else list(settings.subgroups)
    if missing := [name for name in wanted if name not in covariates]:
        known = ", ".join(map(str, covariates)) or "none"
        raise ConfigError(f"evaluate: `subgroups` names `{missing[0]}`, which is no column (there are: {known}).")
    return covariates[wanted]


def _write_subgroups(path: Path, evaluation: Evaluation, covariates: pd.DataFrame, settings: EvaluateConfig, seed: int) -> None:
    remove(path)  # of an evaluation with other columns
    if len(covariates.columns):
        found = summarise_subgroups(evaluation, covariates, settings, seed, settings.bands)
        write_table(path, found.table)
        for sentence in found.left_out:
            say(f"subgroups: {sentence}")


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


def _failed(evaluation: Evaluation) -> bool:
    return evaluation.counts["evaluated"] < evaluation.counts["given"]


def write_unmatched(folder: Path, unmatched: Sequence[Unmatched]) -> None:
    """Write unmatched.csv (case_id, missing, file) and say what stands in it."""
    rows = pd.DataFrame([asdict(u) for u in unmatched], columns=["case_id", "missing", "file"])
    write_table(folder / "unmatched.csv", rows)
    for missing, part in rows.groupby("missing"):
        names = ", ".join(part["case_id"].head(FEW)) + (", ..." if len(part) > FEW else "")
        fate = "counted as missed" if missing == "prediction" else "not evaluated"
        say(f"{len(part)} without a {missing}, {fate}: {names} (all in {folder / 'unmatched.csv'})")


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
