"""`medseg compare`: models of one or several runs side by side, on the same cases."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from medseg.core.errors import ConfigError
from medseg.core.progress import say
from medseg.core.record import StageRecord
from medseg.evaluation.compare import compare_evaluations, differing_references
from medseg.evaluation.config import EvaluateConfig, is_metric
from medseg.evaluation.table import Evaluation, load_evaluation, name_evaluations
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
    say_references_that_differ(evaluations)
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


def say_references_that_differ(evaluations: Mapping[str, Evaluation]) -> None:
    """Warn where cases were measured against different references."""
    if cases := differing_references({name: evaluation.per_case for name, evaluation in evaluations.items()}):
        say(f"warning: {len(cases)} cases were measured against different references (such as {cases[0]}); compare with care")
