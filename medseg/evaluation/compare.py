"""Models side by side on the same cases: differences case by case, and what they come to.

Everything here is under the convention `worst`: a case that a model did not segment, or that is absent from its table, counts
as its worst and not as missing data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from medseg.core.errors import ConfigError
from medseg.evaluation.case import UNUSABLE
from medseg.evaluation.config import EvaluateConfig
from medseg.evaluation.intervals import mean_intervals
from medseg.evaluation.paired import judge, mixed_difference, rank_biserial, wilcoxon
from medseg.evaluation.summary import under_worst, units_of
from medseg.evaluation.table import Evaluation
from medseg.metrics.measures import Measure

Array = npt.NDArray[np.float64]
KEYS = ["case_id", "structure"]
NAMES = ["case_id", "patient_id", "structure", "metric"]
ABSENT = "absent"
NO_PREDICTION = (*UNUSABLE, ABSENT)
SUMMARY_COLUMNS = [
    *("structure", "metric", "unit", "model_a", "model_b", "n", "n_missing", "n_undefined"),
    *("mean_difference", "ci_low", "ci_high", "wins", "ties", "losses", "p_wilcoxon", "p_holm"),
    *("rank_biserial", "n_missing_a", "n_missing_b", "margin", "verdict_a", "verdict_b"),
    *("mixed_difference", "mixed_low", "mixed_high", "mixed_note"),
]


@dataclass(frozen=True, eq=False)
class Comparison:
    """Several evaluations of the same cases.

    Args:
        differences: comparison.csv: case_id, patient_id, structure, metric, one column a model, `difference` (first model minus
            second; with more than two models one `difference_<a>_<b>` a pair) and note.
        summary: comparison_summary.csv, one row a structure, metric and pair of models. Differences and their intervals are
            model_a minus model_b; `wins` and a `rank_biserial` above 0 speak for model_a, whichever way is better. `verdict_a`
            is that of model_a against model_b with the margin, `verdict_b` the other way about (see `judge`).
            `n_missing_a` and `n_missing_b` are cases without a usable prediction, counted as that model's worst. The `mixed_`
            columns are filled where a patient has several cases.
        left_out: measures and structures that not every model has.
    """

    differences: pd.DataFrame
    summary: pd.DataFrame
    left_out: list[str]


def compare_evaluations(evaluations: Mapping[str, Evaluation], settings: EvaluateConfig, seed: int) -> Comparison:
    """Compare models pair by pair.

    Args:
        evaluations: at least two, by the model's name.
        settings: of the intervals, and the margins.
    Raises: ConfigError where there are fewer than two, or they share no case, structure or measure, or a margin is of something
        that is not compared.
    """
    if len(evaluations) < 2:
        raise ConfigError(f"a comparison needs two evaluations, not {len(evaluations)} ({', '.join(evaluations)}).")
    measures, structures, left_out = in_common(evaluations)
    margins = _margins(settings, measures, structures)
    table = side_by_side(evaluations, structures)
    long = pd.concat([_of_measure(table, m, list(evaluations)) for m in measures], ignore_index=True)
    pairs = list(combinations(evaluations, 2))
    rows = [
        _summary_row(part, m, structure, pair, settings, seed, margins.get((m.column, structure), np.nan))
        for structure in structures
        for m in measures
        if m.applies(structure)
        for part in [long[(long["structure"] == structure) & (long["metric"] == m.column)]]
        for pair in pairs
    ]
    summary = pd.DataFrame(rows).assign(p_holm=lambda t: holm(t["p_wilcoxon"].to_numpy(float)))[SUMMARY_COLUMNS]
    columns = {"difference" if len(pairs) == 1 else f"difference_{a}_{b}": long[a] - long[b] for a, b in pairs}
    differences = pd.DataFrame({**long[[*NAMES, *evaluations]], **columns, "note": long["note"]})
    return Comparison(differences, summary, left_out)


def differing_references(tables: Mapping[str, pd.DataFrame]) -> list[str]:
    """Cases that were measured against different references, which a difference of sizes betrays.

    Args:
        tables: per_case.csv of each evaluation.
    """
    sizes = [
        table.set_index(["case_id", "structure"])[column]
        for table in tables.values()
        for column in table
        if str(column).startswith(("reference_volume", "reference_area"))
    ]
    if len(sizes) < 2:
        return []
    joined = pd.concat(sizes, axis=1)
    differ = joined[(joined.max(axis=1) - joined.min(axis=1)) > 1e-4 * joined.max(axis=1)]
    return list(dict.fromkeys(str(case) for case, _ in differ.index))


def in_common(evaluations: Mapping[str, Evaluation]) -> tuple[list[Measure], list[str], list[str]]:
    """The measures that have a better and a worse and the structures that every evaluation has, and what is left out."""
    first = next(iter(evaluations.values()))
    columns = [{m.column for m in e.measures if m.better} for e in evaluations.values()]
    measures = [m for m in first.measures if all(m.column in c for c in columns)]
    names = [set(e.structures) for e in evaluations.values()]
    structures = [s for s in first.structures if all(s in n for n in names)]
    if not measures or not structures or not set.intersection(*(set(e.cases["case_id"]) for e in evaluations.values())):
        raise ConfigError(
            f"{', '.join(evaluations)} have no case, structure or metric in common; compare runs on the same cases."
        )
    left_out = (set.union(*columns) - {m.column for m in measures}) | (set.union(*names) - set(structures))
    return measures, structures, sorted(left_out)


def side_by_side(evaluations: Mapping[str, Evaluation], structures: Sequence[str]) -> pd.DataFrame:
    """One row a case and structure of any evaluation; columns `(model, column)` of per_case under `worst`, and the names."""
    patients, diagonals = _known(evaluations, "patient_id"), _known(evaluations, "diagonal")
    index = pd.MultiIndex.from_product([list(patients), structures], names=KEYS)
    table = pd.DataFrame(index=index).reset_index()
    table["patient_id"] = table["case_id"].map(patients)
    for name, evaluation in evaluations.items():
        values = under_worst(evaluation).set_index(KEYS).reindex(index)
        status = values["status"].fillna(ABSENT)
        absent = (status == ABSENT).to_numpy()
        for measure in evaluation.measures:
            column = values[measure.column].to_numpy(float, copy=True)
            column[absent] = [
                measure.worst(np.nan, "one", diagonals[case]) if measure.applies(structure) else np.nan
                for case, structure in index[absent]
            ]
            table[f"{name}\n{measure.column}"] = column
        table[f"{name}\nstatus"] = status.to_numpy()
    return table


def _known(evaluations: Mapping[str, Evaluation], column: str) -> dict[str, Any]:
    """A fact about each case, from the first evaluation that knows it."""
    facts: dict[str, Any] = {}
    for evaluation in evaluations.values():
        for case, value in zip(evaluation.cases["case_id"], evaluation.cases[column], strict=True):
            if case not in facts or facts[case] == "" or pd.isna(facts[case]):
                facts[case] = value
    return facts


def _of_measure(table: pd.DataFrame, measure: Measure, models: Sequence[str]) -> pd.DataFrame:
    """The rows of one measure, with the columns of comparison.csv before the differences, and `<model>\\nstatus`."""
    rows = table[table["structure"].map(measure.applies)]
    statuses = {f"{m}\nstatus": rows[f"{m}\nstatus"] for m in models}
    values = {m: rows[f"{m}\n{measure.column}"] for m in models}
    note = [_note(dict(zip(models, case, strict=True))) for case in zip(*statuses.values(), strict=True)]
    return pd.DataFrame(
        {**rows[["case_id", "patient_id", "structure"]], "metric": measure.column, **values, "note": note, **statuses}
    )


def _note(statuses: dict[str, str]) -> str:
    """What was not measured as it is: `unet: prediction_empty`, `fcn8s: absent, counted as worst`."""
    parts = [f"{m}: {s}{', counted as worst' if s in NO_PREDICTION else ''}" for m, s in statuses.items() if s != "ok"]
    return "; ".join(parts)


def _margins(settings: EvaluateConfig, measures: Sequence[Measure], structures: Sequence[str]) -> dict[tuple[str, str], float]:
    """(column, structure) -> margin. Raises: ConfigError naming a metric or structure that is not compared."""
    found: dict[tuple[str, str], float] = {}
    for name, margin in settings.non_inferiority_margin.items():
        columns = [m.column for m in measures if name in (m.column, m.metric)]
        chosen = margin if isinstance(margin, dict) else dict.fromkeys(structures, margin)
        unknown = [] if columns else [name]
        unknown += [structure for structure in chosen if structure not in structures]
        if unknown:
            known = ", ".join([m.column for m in measures] if not columns else structures)
            raise ConfigError(
                f"evaluate: `non_inferiority_margin` names `{unknown[0]}`, which is not compared here (there are: {known})."
            )
        found |= {(column, structure): value for column in columns for structure, value in chosen.items()}
    return found


def _summary_row(
    rows: pd.DataFrame,
    measure: Measure,
    structure: str,
    pair: tuple[str, str],
    settings: EvaluateConfig,
    seed: int,
    margin: float,
) -> dict[str, Any]:
    a, b = pair
    differences, units = (rows[a] - rows[b]).to_numpy(float), units_of(rows)
    is_defined = np.isfinite(differences)
    defined = differences[is_defined]
    missing = {model: rows[f"{model}\nstatus"].isin(NO_PREDICTION).to_numpy() & is_defined for model in pair}
    ((low, high),) = mean_intervals(differences[:, None], units, settings.bootstrap_resamples, settings.confidence, seed)
    sign = 1 if measure.better == "higher" else -1
    return {
        "structure": structure,
        "metric": measure.column,
        "unit": measure.unit,
        "model_a": a,
        "model_b": b,
        "n": len(defined),
        "n_missing": int((missing[a] | missing[b]).sum()),
        "n_undefined": len(differences) - len(defined),
        "mean_difference": defined.mean() if len(defined) else np.nan,
        "ci_low": low,
        "ci_high": high,
        "wins": int((sign * defined > 0).sum()),
        "ties": int((defined == 0).sum()),
        "losses": int((sign * defined < 0).sum()),
        "p_wilcoxon": wilcoxon(differences, units),
        "rank_biserial": rank_biserial(sign * differences, units),
        "n_missing_a": int(missing[a].sum()),
        "n_missing_b": int(missing[b].sum()),
        **_verdicts(sign * low, sign * high, margin),
        **{f"mixed_{name}": value for name, value in vars(mixed_difference(differences, units, settings.confidence)).items()},
    }


def _verdicts(one_end: float, other_end: float, margin: float) -> dict[str, Any]:
    """The columns of non-inferiority, from the ends of the interval of the first model's gain."""
    low, high = sorted((one_end, other_end))
    return {"margin": margin, "verdict_a": judge(low, high, margin), "verdict_b": judge(-high, -low, margin)}


def holm(p: Array) -> Array:
    """p values corrected for their number (Holm 1979); NaN stay NaN and are not counted."""
    from statsmodels.stats.multitest import multipletests

    corrected = np.full(len(p), np.nan)
    if (known := np.isfinite(p)).any():
        corrected[known] = multipletests(p[known], method="holm")[1]
    return corrected
