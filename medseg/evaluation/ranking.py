"""More than two models in order, and how firmly they stand in it.

As challengeR does it (Wiesenfarth et al. 2021, Methods and software for visualizing and quantifying challenge results): the
mean over cases is ranked, and the ranking is repeated on resampled patients.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from medseg.core.errors import ConfigError
from medseg.evaluation.compare import in_common, side_by_side
from medseg.evaluation.config import EvaluateConfig
from medseg.evaluation.intervals import FEWEST_UNITS, resampled_means, sums_of_units
from medseg.evaluation.summary import units_of
from medseg.evaluation.table import Evaluation

FEWEST_MODELS = 3
NAMES = ["structure", "metric", "unit", "model", "n", "mean", "rank"]
TAU = ["tau_mean", "tau_low", "tau_high"]
Array = npt.NDArray[np.float64]


def rank_models(evaluations: Mapping[str, Evaluation], settings: EvaluateConfig, seed: int) -> pd.DataFrame:
    """ranking.csv: one row a structure, metric and model, under the convention `worst`, the best model of each first.

    Columns: structure, metric, unit, model; n, the cases with a figure of every model; the mean over these; rank (1 is best;
    equal means share the better rank); share_rank_<k>, the share of resamples in which the model has rank k, for each k;
    rank_low and rank_high, between which its rank lies in the resamples (at the settings' confidence); tau_mean, tau_low and
    tau_high, Kendall's tau-b between the resamples' rankings and this one (1 where they are the same). Shares, limits and tau
    are NaN below six patients (or units).

    Raises: ConfigError where there are fewer than three models, or they share no case, structure or measure.
    """
    if len(evaluations) < FEWEST_MODELS:
        raise ConfigError(f"a ranking needs {FEWEST_MODELS} evaluations, not {len(evaluations)} ({', '.join(evaluations)}).")
    models = list(evaluations)
    measures, structures, _ = in_common(evaluations)
    table = side_by_side(evaluations, structures)
    rows: list[dict[str, Any]] = []
    for structure in structures:
        part = table[table["structure"] == structure]
        for measure in (m for m in measures if m.applies(structure)):
            values = part[[f"{model}\n{measure.column}" for model in models]].to_numpy(float)
            sign = -1.0 if measure.better == "higher" else 1.0
            names = {"structure": structure, "metric": measure.column, "unit": measure.unit}
            rows += [names | row for row in _ranked(models, sign * values, sign, units_of(part), settings, seed)]
    shares = [f"share_rank_{k}" for k in range(1, len(models) + 1)]
    return pd.DataFrame(rows, columns=[*NAMES, *shares, "rank_low", "rank_high", *TAU])


def _ranked(
    models: Sequence[str], values: Array, sign: float, units: Sequence[str], settings: EvaluateConfig, seed: int
) -> list[dict[str, Any]]:
    """The rows of one structure and metric, best first. `values`: (cases, models), lower is better."""
    whole = np.isfinite(values).all(1)
    values, owners = values[whole], np.asarray(units, dtype=str)[whole]
    if not len(values):
        return [{"model": model, "n": 0} for model in models]
    means = values.mean(0)
    ranks = ranks_of(means[None])[0]
    stability: list[dict[str, float]] = [{} for _ in models]
    if len(set(owners)) >= FEWEST_UNITS:
        sums, counts = sums_of_units(values, list(owners))
        again = ranks_of(resampled_means(sums, counts, settings.bootstrap_resamples, seed))
        stability = _stability(ranks, again, settings.confidence)
    rows = [
        {"model": model, "n": len(values), "mean": sign * mean + 0.0, "rank": int(rank)} | more  # no -0
        for model, mean, rank, more in zip(models, means, ranks, stability, strict=True)
    ]
    return sorted(rows, key=lambda row: row["rank"])


def _stability(ranks: Array, again: Array, confidence: float) -> list[dict[str, float]]:
    tails = ((1 - confidence) / 2, (1 + confidence) / 2)
    taus = kendall_tau(ranks, again)
    known = taus[np.isfinite(taus)]
    tau = dict(zip(TAU, (known.mean(), *np.quantile(known, tails)), strict=True)) if len(known) else {}
    found = []
    for column in again.T:
        shares = {f"share_rank_{k}": float((column == k).mean()) for k in range(1, len(ranks) + 1)}
        low, high = np.quantile(column, tails, method="inverted_cdf")
        found.append(shares | {"rank_low": int(low), "rank_high": int(high)} | tau)
    return found


def ranks_of(means: Array) -> Array:
    """(rankings, models) means, lower is better -> ranks from 1; equal means (but for their last digits) share the better one."""
    near = 1e-12 * np.maximum(1, np.abs(means))
    better = means[:, None, :] < (means - near)[:, :, None]
    return 1.0 + better.sum(2)


def kendall_tau(ranks: Array, others: Array) -> Array:
    """Kendall's tau-b (Kendall 1945) between one ranking and each of several.

    Args:
        ranks: (models,).
        others: (rankings, models).
    Returns: (rankings,); NaN where all models of either share one rank.
    """
    first, second = np.triu_indices(len(ranks), 1)
    own, theirs = np.sign(ranks[first] - ranks[second]), np.sign(others[:, first] - others[:, second])
    with np.errstate(invalid="ignore"):
        return (theirs @ own) / np.sqrt((own**2).sum() * (theirs**2).sum(1))
