"""What the paired differences of two models come to: test, effect size, verdict against a margin, mixed model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from medseg.evaluation.agreement import unit_means
from medseg.evaluation.intervals import FEWEST_UNITS

Array = npt.NDArray[np.float64]
Verdict = Literal["", "superior", "non-inferior", "inconclusive", "inferior"]
MOST_EXACT = 50  # units that differ; beyond, the signed rank statistic is as good as normal
RATIOS = np.r_[0.0, np.geomspace(1e-6, 1e26, 321)]  # of variances between and within patients, where a fit is looked for
DIGITS = 12  # differences that are equal but for their last digits are ties


def _unit_differences(differences: Array, units: Sequence[str]) -> Array:
    """(units,): the mean difference of each unit, whose cases are not independent; units without one are left out."""
    means = unit_means(differences[:, None], units)[:, 0]
    return means[~np.isnan(means)].round(DIGITS)


def wilcoxon(differences: Array, units: Sequence[str]) -> float:
    """Two-sided p of the signed rank test (Wilcoxon 1945; zero differences after Pratt 1959) over units.

    A patient's cases are not independent, so their mean difference is one observation. Exact, ties and zeros or not, where up to
    fifty units differ, and by the normal approximation beyond: where few of many patients differ that one finds p values far too
    small. NaN below six units.
    """
    means = _unit_differences(differences, units)
    if len(means) < FEWEST_UNITS:
        return math.nan
    from scipy import stats

    ranks = stats.rankdata(np.abs(means))[means != 0]
    if len(ranks) > MOST_EXACT:
        return float(stats.wilcoxon(means, zero_method="pratt", method="asymptotic").pvalue)
    return _exact_p(ranks, means[means != 0] > 0)


def _exact_p(ranks: Array, favours: npt.NDArray[np.bool_]) -> float:
    """The share of all ways to give signs to these ranks whose sum is at least as far from the middle; 1 without ranks."""
    halves = np.rint(2 * ranks).astype(int)  # tied ranks lie halfway between whole ones
    ways = np.ones(1)
    for step in halves:
        ways = (np.pad(ways, (0, step)) + np.pad(ways, (step, 0))) / 2
    off_middle = np.abs(2 * np.arange(len(ways)) - halves.sum())
    return min(1.0, float(ways[off_middle >= abs(2 * halves[favours].sum() - halves.sum())].sum()))


def rank_biserial(gains: Array, units: Sequence[str]) -> float:
    """Effect size of matched pairs: share of the ranks that favour minus share that speak against (Kerby 2014).

    Ranks are of the absolute mean gains of units; a unit without a difference has none, as in Wilcoxon's own test.

    Args:
        gains: differences in the direction that is better.
    Returns: -1 to 1; 0 where no unit differs; NaN below six units.
    """
    means = _unit_differences(gains, units)
    if len(means) < FEWEST_UNITS:
        return math.nan
    from scipy import stats

    differing = means[means != 0]
    ranks = stats.rankdata(np.abs(differing))
    return float((ranks * np.sign(differing)).sum() / ranks.sum()) if len(differing) else 0.0


def judge(low: float, high: float, margin: float) -> Verdict:
    """What an interval of the gain says against a margin.

    With an interval of 95 % it is the one-sided test at 2.5 % that non-inferiority trials use, as far as the interval keeps its
    promise: a bootstrap interval of few patients is too narrow, and a verdict on six of them is wrong about three times as often.

    Args:
        low, high: of the difference in the direction that is better: above 0 the model is better.
        margin: above 0; how much worse still counts as not inferior.
    Returns: `superior` (all of it above 0), `non-inferior` (above minus the margin), `inferior` (below minus the margin),
        `inconclusive`, or an empty text where there is no margin or no interval.
    """
    if math.isnan(margin) or math.isnan(low) or math.isnan(high):
        return ""
    if low > 0:
        return "superior"
    if low > -margin:
        return "non-inferior"
    return "inferior" if high < -margin else "inconclusive"


@dataclass(frozen=True)
class MixedEstimate:
    """The mean difference between patients with its interval; NaN where there is none, and `note` then says why.

    Where no patient has several cases there is nothing to mix: all NaN and no note.
    """

    difference: float = math.nan
    low: float = math.nan
    high: float = math.nan
    note: str = ""


def mixed_difference(differences: Array, units: Sequence[str], confidence: float) -> MixedEstimate:
    """The differences as a fixed mean, a random intercept a unit and a residual, by restricted maximum likelihood.

    The standard error is that of generalised least squares with the variances found, and the interval Student's with one degree
    of freedom less than there are units. Where all have as many cases that is the t interval of the units' means, which is exact,
    or a wider one where the units differ no more than chance would have it (Searle et al. 1992, Variance Components); elsewhere
    it is approximate. Patients with many cases weigh less in it than in the mean over cases.

    Args:
        differences: one a case; NaN are left out.
        units: whom each case belongs to.
    """
    table = pd.DataFrame({"difference": differences, "unit": np.asarray(units, dtype=str)}).dropna()
    groups = table.groupby("unit")["difference"]
    if not len(table) or groups.size().max() < 2:
        return MixedEstimate()
    if groups.ngroups < FEWEST_UNITS:
        return MixedEstimate(note=f"fewer than {FEWEST_UNITS} patients or units")
    scale = float(table["difference"].std())
    within = table["difference"] - groups.transform("mean")
    if within.abs().max() <= 10**-DIGITS * max(1.0, float(table["difference"].abs().max())):
        return MixedEstimate(note="the cases of each patient or unit do not differ")
    mean, error = _random_intercept(table["difference"].to_numpy() / scale, table["unit"].to_numpy(dtype=str))
    from scipy import stats

    mean, reach = mean * scale, float(stats.t.ppf((1 + confidence) / 2, groups.ngroups - 1)) * error * scale
    return MixedEstimate(mean, mean - reach, mean + reach)


def _random_intercept(values: Array, units: npt.NDArray[np.str_]) -> tuple[float, float]:
    """The mean and its standard error.

    The likelihood of one random intercept depends on one number once the rest is profiled out: the ratio of the variances between
    and within units. The best of a grid is refined between its neighbours.
    """
    from scipy import optimize

    _, place, counts = np.unique(units, return_inverse=True, return_counts=True)
    means = np.bincount(place, values) / counts
    within = float(((values - means[place]) ** 2).sum())

    def fit(ratio: float) -> tuple[float, float, float]:
        """Mean, standard error, and minus twice the restricted log-likelihood but for a constant."""
        weights = counts / (1 + counts * ratio)
        mean = float((weights * means).sum() / weights.sum())
        squares = within + float((weights * (means - mean) ** 2).sum())
        rest = len(values) - 1
        criterion = rest * math.log(squares) + float(np.log1p(counts * ratio).sum()) + math.log(weights.sum())
        return mean, math.sqrt(squares / rest / weights.sum()), criterion

    best = int(np.argmin([fit(ratio)[2] for ratio in RATIOS]))
    bounds = (RATIOS[max(best - 1, 0)], RATIOS[min(best + 1, len(RATIOS) - 1)])
    refined = optimize.minimize_scalar(
        lambda ratio: fit(ratio)[2], bounds=bounds, method="bounded", options={"xatol": 1e-9 * bounds[1]}
    )
    mean, error, _ = min(fit(RATIOS[best]), fit(float(refined.x)), key=lambda found: found[2])
    return mean, error
