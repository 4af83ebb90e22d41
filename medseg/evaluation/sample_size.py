"""How many cases give a mean an interval of a wished width: the planning of a study, or of a test set."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from medseg.core.errors import ConfigError
from medseg.evaluation.agreement import unit_means
from medseg.evaluation.intervals import CONFIDENCE, FEWEST_UNITS, mean_intervals
from medseg.evaluation.summary import under_worst, units_of
from medseg.evaluation.table import Evaluation
from medseg.metrics.measures import Measure

Array = npt.NDArray[np.float64]
UPPER_CONFIDENCE = 0.8  # that the pilot's upper limit is above the true standard deviation (Browne 1995)
MOST_SPREADS = 1e6  # standard deviations in a width: 10^13 cases
CHECK_STUDIES = 100
CHECK_RESAMPLES = 1000
MOST_CHECKED = 2000  # units; beyond, t and bootstrap are one and the check would take minutes
NEEDED_COLUMNS = [
    *("structure", "metric", "unit", "n_pilot", "mean", "sd", "width", "confidence"),
    *("n_normal", "n_t", "n_cautious", "bootstrap_width", "bootstrap_share"),
]


@dataclass(frozen=True)
class CasesNeeded:
    """Independent cases (patients) for a mean's interval.

    Args:
        width: of the whole interval, from its lower to its upper limit.
        n_normal: by the normal distribution, as if the standard deviation were known.
        n_t: by Student's t, as the study will have its own standard deviation only; the number to plan with.
    """

    sd: float
    width: float
    confidence: float
    n_normal: int
    n_t: int


@dataclass(frozen=True)
class PilotCheck:
    """What the bootstrap interval of this project does in studies drawn from a pilot's own values.

    Args:
        n: units in each study.
        width: mean width of their intervals.
        share: of the studies whose interval is no wider than wished; about half by design.
    """

    n: int
    width: float
    share: float


def cases_for_width(sd: float, width: float, confidence: float = CONFIDENCE) -> CasesNeeded:
    """Cases for which the expected interval of a mean is `width` wide (Machin et al., Sample Sizes for Clinical Studies, 2018).

    Args:
        sd: standard deviation between cases, in the unit of `width`.
    Returns: at least six cases; below that no interval is given.
    Raises: ConfigError for a width, a standard deviation or a confidence that cannot be.
    """
    from scipy import stats

    if not (width > 0 and math.isfinite(width)):
        raise ConfigError(f"an interval of width {width:g} cannot be planned for; give --width above 0.")
    if not (sd >= 0 and math.isfinite(sd)):
        raise ConfigError(f"{sd:g} is no standard deviation; give --sd of at least 0, or a folder whose cases can tell it.")
    if not 0 < confidence < 1:
        raise ConfigError(f"a confidence of {confidence:g} cannot be; give --confidence between 0 and 1, such as 0.95.")
    if sd / width > MOST_SPREADS:
        raise ConfigError(
            f"an interval {width:g} wide of values that spread by {sd:g} is out of any study's reach; widen --width."
        )
    tail = (1 + confidence) / 2
    by_normal = (2 * float(stats.norm.ppf(tail)) * sd / width) ** 2
    n_normal = max(FEWEST_UNITS, math.ceil(by_normal * (1 - 1e-12)))  # not one case more for a last digit
    n = n_normal  # t is wider than the normal distribution, so no fewer will do, and few more are needed
    while 2 * stats.t.ppf(tail, n - 1) * sd / math.sqrt(n) > width * (1 + 1e-12):
        n += 1
    return CasesNeeded(sd, width, confidence, n_normal, n)


def cautious_sd(sd: float, n_pilot: int, confidence: float = UPPER_CONFIDENCE) -> float:
    """Upper confidence limit of a pilot's standard deviation (Browne 1995): a small pilot often finds too little spread.

    Returns: NaN for a pilot of fewer than two.
    """
    from scipy import stats

    return sd * math.sqrt((n_pilot - 1) / stats.chi2.ppf(1 - confidence, n_pilot - 1)) if n_pilot > 1 else math.nan


def check_by_bootstrap(pilot: npt.ArrayLike, n: int, width: float, confidence: float = CONFIDENCE, seed: int = 0) -> PilotCheck:
    """Draw studies of `n` units from a pilot's values, and take their BCa bootstrap intervals.

    Where values are skewed or pile up at 1, as Dice does, this is what the t formula is checked against.

    Args:
        pilot: one value a unit; NaN are left out.
    Returns: NaN where the pilot or the studies have fewer than six units, or the studies are too large to be worth the wait.
    """
    values = np.asarray(pilot, np.float64)
    values = values[np.isfinite(values)]
    if not FEWEST_UNITS <= n <= MOST_CHECKED or len(values) < FEWEST_UNITS:
        return PilotCheck(n, math.nan, math.nan)
    studies = np.random.default_rng(seed).choice(values, (n, CHECK_STUDIES))
    units = [f"{i:05d}" for i in range(n)]
    widths = np.diff(mean_intervals(studies, units, CHECK_RESAMPLES, confidence, seed), axis=1)[:, 0]
    widths *= math.sqrt(len(values) / (len(values) - 1))  # a pilot's own values spread by so much less than what it estimates
    return PilotCheck(n, float(widths.mean()), float((widths <= width).mean()))


def cases_needed_from_pilot(
    evaluation: Evaluation, metric: str, width: float, confidence: float = CONFIDENCE, seed: int = 0
) -> pd.DataFrame:
    """Cases needed for each structure, with the spread that an evaluation found under the convention `worst`.

    The unit is the patient: several scans of one are averaged first, and the numbers are of patients with as many scans as here.

    Args:
        metric: a column of per_case.csv, or a name in METRICS.
    Returns: one row a structure, but for those whose patients do not differ, which tell nothing; `n_cautious` plans with the
        upper 80 % confidence limit of the pilot's standard deviation, and `bootstrap_width` and `bootstrap_share` check `n_t`.
    Raises: ConfigError where the metric was not measured, or no structure has two patients that differ.
    """
    table = under_worst(evaluation)
    rows = [
        row
        for measure in _measures(evaluation, metric)
        for structure in evaluation.structures
        if measure.applies(structure)
        for row in _rows(table[table["structure"] == structure], structure, measure, width, confidence, seed)
    ]
    if not rows:
        raise ConfigError(f"no structure has `{metric}` of two patients that differ, so nothing tells their spread; give --sd.")
    return pd.DataFrame(rows, columns=NEEDED_COLUMNS)


def _measures(evaluation: Evaluation, metric: str) -> list[Measure]:
    found = [m for m in evaluation.measures if metric in (m.column, m.metric)]
    if not found:
        known = ", ".join(m.column for m in evaluation.measures)
        raise ConfigError(f"the evaluation has no metric `{metric}` (it has {known}); name one of these with --metric.")
    return found


def _rows(
    part: pd.DataFrame, structure: str, measure: Measure, width: float, confidence: float, seed: int
) -> list[dict[str, object]]:
    pilot = unit_means(part[[measure.column]].to_numpy(float), units_of(part))[:, 0]
    pilot = pilot[np.isfinite(pilot)]
    if len(pilot) < 2 or not np.ptp(pilot):
        return []
    sd = float(pilot.std(ddof=1))
    needed = cases_for_width(sd, width, confidence)
    check = check_by_bootstrap(pilot, needed.n_t, width, confidence, seed)
    row = {"structure": structure, "metric": measure.column, "unit": measure.unit, "n_pilot": len(pilot), "mean": pilot.mean()}
    n_cautious = cases_for_width(cautious_sd(sd, len(pilot)), width, confidence).n_t
    checked = {"bootstrap_width": check.width, "bootstrap_share": check.share}
    return [row | vars(needed) | {"n_cautious": n_cautious} | checked]
