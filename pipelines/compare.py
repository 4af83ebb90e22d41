"""`medseg compare`: models of one or several runs side by side, on the same cases."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from medseg.core.errors import ConfigError, StageError
from medseg.core.progress import say
from medseg.core.record import StageRecord
from medseg.evaluation.compare import compare_evaluations
from medseg.evaluation.config import EvaluateConfig, is_metric
from medseg.evaluation.table import Evaluation, load_evaluation
from medseg.metrics.table import METRICS
from pipelines.evaluate import write_comparison, write_ranking

OUTPUT = Path("comparison")  # in the working folder, where the command names no other


def compare(runs: Sequence[Path], output: Path | None = None, margins: Mapping[str, float] | None = None) -> int:
    """Write comparison.csv and comparison_summary.csv over all evaluations of the runs, and ranking.csv of three or more.

    Args:
        runs: run folders (each model of each is taken), or folders that hold per_case.csv.
        margins: metric -> how much worse still counts as not inferior (see `EvaluateConfig.non_inferiority_margin`).
    Returns: 0, or 1 where a case is missing in one of the evaluations (it counts as that model's worst).
    Raises: StageError for a folder without a finished evaluation; ConfigError where there is nothing to compare, or a margin is
        of nothing that is compared.
    """
    folder = Path(output or OUTPUT)
    places = name_evaluations(runs)
    evaluations = {name: load_evaluation(place) for name, place in places.items()}
    settings, seed = EvaluateConfig.model_validate({"non_inferiority_margin": dict(margins or {})}), 0
    comparison = compare_evaluations(evaluations, settings, seed)
    record = StageRecord(folder, {name: str(place) for name, place in places.items()})
    write_comparison(folder, comparison)
    write_ranking(folder, evaluations, settings, seed)
    counts = {name: len(evaluation.cases) for name, evaluation in evaluations.items()}
    record.write("compare", seed, counts, margins=dict(margins or {}))
    _say_references_that_differ(evaluations)
    return int((comparison.summary["n_missing"] > 0).any())


def parse_margins(stated: Sequence[str]) -> dict[str, float]:
    """`dice=0.02`, as a command's option gives it, to metric -> margin.

    Raises: ConfigError where one is not METRIC=VALUE with a known metric and a value above 0, or a metric stands twice.
    """
    margins: dict[str, float] = {}
    for text in stated:
        name, _, value = (part.strip() for part in text.partition("="))
        try:
            margin = float(value)
        except ValueError:
            margin = math.nan
        if not name or not 0 < margin < math.inf or name in margins:
            raise ConfigError(f"--margin {text} is not METRIC=VALUE, each metric once with a value above 0, such as dice=0.02.")
        margins[name] = margin
    if unknown := [name for name in margins if not is_metric(name)]:
        raise ConfigError(f"--margin names no metric: `{unknown[0]}` (known: {', '.join(METRICS)}).")
    return margins


def name_evaluations(runs: Sequence[Path]) -> dict[str, Path]:
    """The evaluation folders of the runs, each under the shortest name that tells it from the others.

    Raises: StageError for a folder that holds no evaluation.
    """
    places = list(dict.fromkeys(place for run in runs for place in _evaluations(Path(run))))
    parts = [[p for p in place.resolve().parts if p != "evaluate"] for place in places]
    depth = 1
    while len({tuple(p[-depth:]) for p in parts}) < len(parts) and depth < max(map(len, parts)):
        depth += 1
    return {"/".join(p[-depth:]): place for p, place in zip(parts, places, strict=True)}


def _evaluations(folder: Path) -> list[Path]:
    if (folder / "per_case.csv").is_file():
        return [folder]
    inside = sorted(path.parent for path in folder.glob("evaluate/*/per_case.csv"))
    if not inside:
        raise StageError(f"{folder} holds no finished evaluation; run `medseg evaluate` for it first.")
    return inside


def _say_references_that_differ(evaluations: dict[str, Evaluation]) -> None:
    """Warn where a case was measured against different references, which a difference of sizes betrays."""
    sizes = []
    for evaluation in evaluations.values():
        for measure in evaluation.measures:
            if measure.metric == "reference_volume":
                sizes.append(evaluation.per_case.set_index(["case_id", "structure"])[measure.column])
    table = pd.concat(sizes, axis=1) if len(sizes) > 1 else pd.DataFrame()
    differ = table[(table.max(axis=1) - table.min(axis=1)) > 1e-4 * table.max(axis=1)]
    if len(differ):
        cases = list(dict.fromkeys(case for case, _ in differ.index))
        say(f"warning: {len(cases)} cases were measured against different references (such as {cases[0]}); compare with care")
