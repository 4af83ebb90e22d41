"""What the paired differences of two models come to: test, effect size, verdict against a margin, mixed model."""

from __future__ import annotations

import math
import warnings
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
OPTIMISERS = ("bfgs", "powell")  # of statsmodels; its default stops short where patients hardly differ, with an error too large
DIGITS = 12  # differences that are equal but for their last digits are ties


def _unit_differences(differences: Array, units: Sequence[str]) -> Array:
    """(units,): the mean difference of each unit, whose cases are not independent; units without one are left out."""
    means = unit_means(differences[:, None], units)[:, 0]
    return means[~np.isnan(means)].round(DIGITS)


def wilcoxon(differences: Array, units: Sequence[str]) -> float:
    """Two-sided p of the signed rank test (Wilcoxon 1945; zero differences after Pratt 1959) over units.

    A patient's cases are not independent, so their mean difference is one observation. NaN below six units.
    """
    means = _unit_differences(differences, units)
    if len(means) < FEWEST_UNITS:
        return math.nan
    if not means.any():
        return 1.0
    from scipy import stats

    return float(stats.wilcoxon(means, zero_method="pratt").pvalue)


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

    With an interval of 95 % it is the one-sided test at 2.5 % that non-inferiority trials use.

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

    The interval is Student's with one degree of freedom less than there are units, which is exact where all have as many cases
    (Searle et al. 1992, Variance Components). Patients with many cases weigh less in it than in the mean over cases.

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
    found = _random_intercept(table["difference"].to_numpy() / scale, table["unit"].to_numpy())
    if isinstance(found, str):
        return MixedEstimate(note=found)
    from scipy import stats

    mean, error = found[0] * scale, found[1] * scale
    reach = float(stats.t.ppf((1 + confidence) / 2, groups.ngroups - 1)) * error
    return MixedEstimate(mean, mean - reach, mean + reach)


def _random_intercept(values: Array, units: npt.NDArray[np.object_]) -> tuple[float, float] | str:
    """The mean and its standard error, or why there are none."""
    from statsmodels.regression.mixed_linear_model import MixedLM

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what they say is read from the result
        try:
            fit = MixedLM(values, np.ones(len(values)), groups=units).fit(reml=True, method=list(OPTIMISERS))
        except (ValueError, ArithmeticError, np.linalg.LinAlgError) as error:
            return f"the mixed model could not be fitted ({' '.join(str(error).split())})"
        mean, error_of_mean = float(fit.fe_params[0]), float(fit.bse_fe[0])
        converged = bool(fit.converged)
    if not converged or not math.isfinite(mean) or not math.isfinite(error_of_mean) or error_of_mean <= 0:
        return "the mixed model did not converge"
    return mean, error_of_mean
