"""The best threshold of a probability as challenges rank by it: that of the mean over all cases, not each case's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from medseg.metrics.membranes import ISBI_THRESHOLDS, CellScores
from medseg.metrics.table import METRICS

SCORES = ("v_rand", "v_info")


def threshold_table(cases: Sequence[Mapping[str, Sequence[CellScores]]]) -> pd.DataFrame:
    """The mean over the cases at each threshold.

    Args:
        cases: of every case, also of those without probabilities, by structure its scores at each of ISBI_THRESHOLDS.
    Returns: structure, metric (v_rand, v_info), threshold (of the probability of being inside a cell), n (cases with a figure),
        n_undefined (without), mean of the former; no rows where no case has scores.
    """
    rows = []
    for structure in dict.fromkeys(name for case in cases for name in case):
        for metric in SCORES:
            figures = np.array([[getattr(s, metric) for s in case[structure]] for case in cases if case.get(structure)], float)
            if not figures.size:
                continue
            for threshold, column in zip(ISBI_THRESHOLDS, figures.T, strict=True):
                known = column[~np.isnan(column)]
                mean = known.mean() if known.size else np.nan
                rows.append([structure, metric, threshold, known.size, len(cases) - known.size, mean])
    return pd.DataFrame(rows, columns=["structure", "metric", "threshold", "n", "n_undefined", "mean"])


def best_of_mean(table: pd.DataFrame) -> pd.DataFrame:
    """The row of the largest mean of each structure and metric; the lower threshold of two that are as good.

    Thresholds at which fewer cases have a figure than at another are left out: a mean of fewer cases may not win by that.
    """
    if table.empty:
        return table
    best = []
    for _, part in table.groupby(["structure", "metric"], sort=False):
        full = part[(part["n"] == part["n"].max()) & part["mean"].notna()]
        best += [full["mean"].idxmax()] if len(full) else []
    return table.loc[best].reset_index(drop=True)


def best_text(title: str, table: pd.DataFrame) -> str:
    """The rows of `best_of_mean` as lines for the console."""
    rows = best_of_mean(table).to_dict("records")
    return "\n".join(
        f"{title}: {row['structure']}: the mean {METRICS[row['metric']].label} over {row['n']} cases is best at threshold "
        f"{row['threshold']:g}: {row['mean']:.3f}" + (f" ({row['n_undefined']} undefined)" if row["n_undefined"] else "")
        for row in rows
    )
