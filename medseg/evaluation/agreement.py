"""Agreement of two measurements of one quantity, such as a structure's volume in the reference and in the prediction.

One value a unit: where patients have several scans, `unit_means` averages them first, and every statistic is then of patients'
means: limits of agreement and a coefficient of variation of single scans would be wider. Values that are undefined in either
measurement are left out. Below six units there are estimates and no intervals; what cannot be estimated is NaN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from medseg.evaluation.intervals import CONFIDENCE, FEWEST_UNITS
from medseg.evaluation.summary import under_worst, units_of
from medseg.evaluation.table import Evaluation

Array = npt.NDArray[np.float64]
LimitsInterval = Literal["exact", "approximate"]
NAN = math.nan
AGREEMENT_COLUMNS = ["structure", "statistic", "unit", "value", "ci_low", "ci_high", "n", "n_undefined"]
ROUNDING = 1e-28  # a mean square this small beside the squares of the values is what is left of equal values


@dataclass(frozen=True)
class Estimate:
    """A statistic with its confidence interval; NaN limits where it has none."""

    value: float
    low: float = NAN
    high: float = NAN


UNDEFINED = Estimate(NAN)


@dataclass(frozen=True)
class BlandAltman:
    """Differences of two measurements (predicted minus reference).

    Args:
        bias: mean difference.
        sd: standard deviation of the differences.
        lower, upper: limits of agreement.
        slope: of the differences over the means of the two; away from 0 where the bias grows with the size, and also where only
            the spreads of the two differ.
    """

    n: int
    bias: Estimate
    sd: float
    lower: Estimate
    upper: Estimate
    slope: Estimate


@dataclass(frozen=True)
class IntraclassCorrelation:
    """Of single measurements: `agreement` is ICC(2,1), or ICC(A,1); `consistency` is ICC(3,1), or ICC(C,1), blind to a bias."""

    n: int
    n_raters: int
    agreement: Estimate
    consistency: Estimate


@dataclass(frozen=True)
class Line:
    """predicted = intercept + slope * reference."""

    n: int
    slope: Estimate
    intercept: Estimate


@dataclass(frozen=True)
class SubjectVariation:
    """Within-subject coefficient of variation, a share of the mean."""

    n: int
    cv: Estimate


@dataclass(frozen=True)
class VolumeAgreement:
    """All statistics of one structure; `n` units, and `n_undefined` of them without one of the two values."""

    n: int
    n_undefined: int
    bland_altman: BlandAltman
    icc: IntraclassCorrelation
    passing_bablok: Line
    deming: Line
    variation: SubjectVariation


def unit_means(values: npt.ArrayLike, units: Sequence[str]) -> Array:
    """The mean of each unit's cases, so that a patient with many scans counts once.

    Args:
        values: (cases, columns); a case with a NaN is left out whole.
        units: whom each case belongs to.
    Returns: (units, columns) in the order of the units' names; NaN where a unit has no whole case.
    """
    table = pd.DataFrame(np.asarray(values, np.float64))
    table[table.isna().any(axis=1)] = NAN
    return table.groupby(np.asarray(units, dtype=str)).mean().to_numpy(np.float64)


def volume_agreement(
    reference: npt.ArrayLike, predicted: npt.ArrayLike, units: Sequence[str], confidence: float = CONFIDENCE
) -> VolumeAgreement:
    """Every statistic of this module over units.

    Args:
        reference, predicted: (cases,) in one unit of size, NaN where undefined.
        units: whom each case belongs to.
    """
    means = unit_means(np.stack([np.asarray(reference, float), np.asarray(predicted, float)], axis=1), units)
    first, second = _complete(*means.T)
    return VolumeAgreement(
        len(first),
        len(means) - len(first),
        bland_altman(first, second, confidence),
        intraclass_correlation(np.stack([first, second], axis=1), confidence),
        passing_bablok(first, second, confidence),
        deming(first, second, confidence=confidence),
        within_subject_cv(first, second, confidence),
    )


def agreement_table(evaluation: Evaluation, confidence: float = CONFIDENCE) -> pd.DataFrame:
    """agreement.csv: the agreement of reference and predicted sizes, a row a structure and statistic.

    Under the convention `worst`: a missing prediction counts as size 0, as does a structure that was missed; a structure that is
    in neither mask is a pair of zeros. Empty where the sizes were not measured.
    """
    columns = {m.metric: m for m in evaluation.measures if m.metric in ("reference_volume", "predicted_volume")}
    if len(columns) < 2:
        return pd.DataFrame(columns=AGREEMENT_COLUMNS)
    names = [columns[metric].column for metric in ("reference_volume", "predicted_volume")]
    unit, table = columns["reference_volume"].unit, under_worst(evaluation)
    rows = []
    for structure in evaluation.structures:
        part = table[table["structure"] == structure]
        reference, predicted = (part[name].to_numpy(float) for name in names)
        found = volume_agreement(reference, predicted, units_of(part), confidence)
        for statistic, (estimate, has_unit) in _statistics(found).items():
            figures = (estimate.value, estimate.low, estimate.high, found.n, found.n_undefined)
            rows.append((structure, statistic, unit if has_unit else "", *figures))
    return pd.DataFrame(rows, columns=AGREEMENT_COLUMNS)


def _statistics(found: VolumeAgreement) -> dict[str, tuple[Estimate, bool]]:
    """Each statistic by its name in agreement.csv, and whether it has the unit of the values."""
    differences, lines = found.bland_altman, {"passing_bablok": found.passing_bablok, "deming": found.deming}
    return {
        "bias": (differences.bias, True),
        "limit_lower": (differences.lower, True),
        "limit_upper": (differences.upper, True),
        "bias_slope": (differences.slope, False),
        "icc_2_1": (found.icc.agreement, False),
        "icc_3_1": (found.icc.consistency, False),
        **{f"{name}_slope": (line.slope, False) for name, line in lines.items()},
        **{f"{name}_intercept": (line.intercept, True) for name, line in lines.items()},
        "within_subject_cv": (found.variation.cv, False),
    }


def bland_altman(
    reference: npt.ArrayLike,
    predicted: npt.ArrayLike,
    confidence: float = CONFIDENCE,
    share: float = 0.95,
    interval: LimitsInterval = "exact",
) -> BlandAltman:
    """Bias and limits of agreement (Bland & Altman 1986) and the slope of a proportional bias (Bland & Altman 1999, 3.2).

    Args:
        reference, predicted: (units,).
        share: of the differences that lie between the limits, so the limits are bias -/+ 1.96 standard deviations at 0.95.
        interval: of each limit: `exact` for normal differences by the non-central t distribution (Carkeet 2015), or
            `approximate` by the standard error of Bland & Altman 1999.
    """
    from scipy import stats

    first, second = _complete(reference, predicted)
    n, differences = len(first), second - first
    if n < 2:
        return BlandAltman(n, Estimate(differences[0] if n else NAN), NAN, UNDEFINED, UNDEFINED, UNDEFINED)
    bias, sd = float(differences.mean()), float(differences.std(ddof=1))
    half = stats.t.ppf((1 + confidence) / 2, n - 1) * sd / math.sqrt(n)
    z = float(stats.norm.ppf((1 + share) / 2))
    nearer, farther = _limit_reach(n, z, confidence, interval)
    return BlandAltman(
        n,
        _enough(n, bias, bias - half, bias + half),
        sd,
        _enough(n, bias - z * sd, bias - farther * sd, bias - nearer * sd),
        _enough(n, bias + z * sd, bias + nearer * sd, bias + farther * sd),
        _least_squares_slope((first + second) / 2, differences, confidence),
    )


def _limit_reach(n: int, z: float, confidence: float, interval: LimitsInterval) -> tuple[float, float]:
    """How many standard deviations from the bias a limit's interval begins and ends."""
    from scipy import stats

    tails = ((1 - confidence) / 2, (1 + confidence) / 2)
    if interval == "exact":
        nearer, farther = (float(stats.nct.ppf(tail, n - 1, z * math.sqrt(n))) / math.sqrt(n) for tail in tails)
        return nearer, farther
    half = float(stats.t.ppf(tails[1], n - 1)) * math.sqrt(1 / n + z**2 / (2 * (n - 1)))
    return z - half, z + half


def _least_squares_slope(x: Array, y: Array, confidence: float) -> Estimate:
    from scipy import stats

    n = len(x)
    spread = float(((x - x.mean()) ** 2).sum())
    if n < 3 or spread <= ROUNDING * float((x**2).sum()):
        return UNDEFINED
    slope = float(((x - x.mean()) * (y - y.mean())).sum()) / spread
    rest = y - y.mean() - slope * (x - x.mean())
    half = float(stats.t.ppf((1 + confidence) / 2, n - 2)) * math.sqrt(float((rest**2).sum()) / (n - 2) / spread)
    return _enough(n, slope, slope - half, slope + half)


def intraclass_correlation(values: npt.ArrayLike, confidence: float = CONFIDENCE) -> IntraclassCorrelation:
    """ICC(2,1) and ICC(3,1) (Shrout & Fleiss 1979) with the intervals of McGraw & Wong 1996, from a two-way table.

    Args:
        values: (units, raters), such as the reference's and the prediction's; a unit with a NaN is left out.
    """
    table = np.asarray(values, np.float64)
    table = table[np.isfinite(table).all(axis=1)]
    n, k = table.shape
    if n < 2 or k < 2:
        return IntraclassCorrelation(n, k, UNDEFINED, UNDEFINED)
    rows, raters = table.mean(1, keepdims=True), table.mean(0, keepdims=True)
    rest = table - rows - raters + table.mean()
    squares = (k * rows.var(ddof=1), n * raters.var(ddof=1), (rest**2).sum() / (n - 1) / (k - 1))
    between, bias, error = (0.0 if s <= ROUNDING * (table**2).mean() else float(s) for s in squares)
    return IntraclassCorrelation(
        n, k, _icc_agreement(n, k, between, bias, error, confidence), _icc_consistency(n, k, between, error, confidence)
    )


def _icc_agreement(n: int, k: int, between: float, bias: float, error: float, confidence: float) -> Estimate:
    from scipy import stats

    whole = between + (k - 1) * error + k * (bias - error) / n
    if whole <= 0:
        return UNDEFINED
    value = (between - error) / whole
    if bias == error == 0:
        return _enough(n, value, value, value)
    if not between:
        return _enough(n, value, NAN, NAN)  # units that do not differ: the formulas would give an interval without width
    odds = (between - error) / ((n - 1) * error + bias)  # k value / n (1 - value), which near 1 would lose its digits
    of_bias, of_error = odds * bias, (1 + odds * (n - 1)) * error
    freedom = (of_bias + of_error) ** 2 / (of_bias**2 / (k - 1) + of_error**2 / ((n - 1) * (k - 1)))
    tail, noise = (1 + confidence) / 2, k * bias + (k * n - k - n) * error
    below, above = stats.f.ppf(tail, n - 1, freedom), stats.f.ppf(tail, freedom, n - 1)
    low = n * (between - below * error) / (below * noise + n * between)
    high = n * (above * between - error) / (noise + n * above * between)
    return _enough(n, value, float(low), float(high))


def _icc_consistency(n: int, k: int, between: float, error: float, confidence: float) -> Estimate:
    from scipy import stats

    if not between and not error:
        return UNDEFINED
    if not error:
        return _enough(n, 1.0, 1.0, 1.0)
    if not between:
        return _enough(n, -1 / (k - 1), NAN, NAN)
    ratio, tail = between / error, (1 + confidence) / 2
    freedoms = (n - 1, (n - 1) * (k - 1))
    ends = (ratio, ratio / stats.f.ppf(tail, *freedoms), ratio * stats.f.ppf(tail, *freedoms[::-1]))
    return _enough(n, *(float((f - 1) / (f + k - 1)) for f in ends))


def deming(reference: npt.ArrayLike, predicted: npt.ArrayLike, error_ratio: float = 1.0, confidence: float = CONFIDENCE) -> Line:
    """Deming's line, where both measurements err (Linnet 1990), with jackknife intervals (Linnet 1993).

    Args:
        error_ratio: variance of the reference's errors over that of the prediction's; 1 is the orthogonal line.
    """
    from scipy import stats

    x, y = _complete(reference, predicted)
    n = len(x)
    if n < 3:
        return Line(n, UNDEFINED, UNDEFINED)
    dx, dy = x - x.mean(), y - y.mean()
    moments = np.array([(dx * dx).sum(), (dy * dy).sum(), (dx * dy).sum()])
    # Sums of squares without each unit in turn follow from those of all.
    left_out = moments - n / (n - 1) * np.stack([dx * dx, dy * dy, dx * dy], axis=1)
    slope, slopes = _deming_slope(moments, error_ratio), _deming_slope(left_out, error_ratio)
    intercept = y.mean() - slope * x.mean()
    intercepts = y.mean() - dy / (n - 1) - slopes * (x.mean() - dx / (n - 1))
    t = float(stats.t.ppf((1 + confidence) / 2, n - 2))
    halves = [t * math.sqrt((n - 1) / n * ((part - part.mean()) ** 2).sum()) for part in (slopes, intercepts)]
    values = [float(slope), float(intercept)]
    return Line(n, *(_enough(n, value, value - half, value + half) for value, half in zip(values, halves, strict=True)))


def _deming_slope(moments: Array, ratio: float) -> Array:
    """Slopes for sums of squares and products (..., 3); NaN where the two measurements do not vary together."""
    xx, yy, xy = np.moveaxis(moments, -1, 0)
    lead = ratio * yy - xx
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = (lead + np.sqrt(lead**2 + 4 * ratio * xy**2)) / (2 * ratio * xy)
    return np.where(np.abs(xy) <= 1e-14 * np.sqrt(np.abs(xx * yy)), NAN, slope)


def passing_bablok(reference: npt.ArrayLike, predicted: npt.ArrayLike, confidence: float = CONFIDENCE) -> Line:
    """The line through the shifted median of all pairwise slopes, with its intervals (Passing & Bablok 1983).

    It needs no ratio of errors and withstands outliers; it supposes that the two rise together.
    """
    from scipy import stats

    x, y = _complete(reference, predicted)
    n = len(x)
    slopes = _pairwise_slopes(x, y)
    count = len(slopes)
    if n < 3 or not count:
        return Line(n, UNDEFINED, UNDEFINED)
    shift = int((slopes < -1).sum())
    middle = [(count - 1) // 2 + shift, count // 2 + shift]
    if middle[1] >= count:  # falling together
        return Line(n, UNDEFINED, UNDEFINED)
    slope = float(slopes[middle].mean())
    reach = float(stats.norm.ppf((1 + confidence) / 2)) * math.sqrt(n * (n - 1) * (2 * n + 5) / 18)
    first = round((count - reach) / 2)
    low, high = (float(slopes[i]) if 0 <= i < count else NAN for i in (first - 1 + shift, count - first + shift))
    offsets = [float(np.median(y - b * x)) if math.isfinite(b) else NAN for b in (slope, high, low)]
    if not math.isfinite(slope):
        return Line(n, UNDEFINED, UNDEFINED)
    return Line(n, _enough(n, slope, low, high), _enough(n, *offsets))


def _pairwise_slopes(x: Array, y: Array) -> Array:
    """Sorted slopes between all pairs of different points, without those of -1; infinite where only y differs."""
    found = [np.empty(0)]
    for place in range(len(x) - 1):
        dx, dy = x[place + 1 :] - x[place], y[place + 1 :] - y[place]
        upright, differ = dx == 0, (dx != 0) | (dy != 0)
        found.append(np.where(upright, np.inf, dy / np.where(upright, 1, dx))[differ])
    slopes = np.concatenate(found)
    return np.sort(slopes[slopes != -1])


def within_subject_cv(reference: npt.ArrayLike, predicted: npt.ArrayLike, confidence: float = CONFIDENCE) -> SubjectVariation:
    """Root mean square of each unit's coefficient of variation over its two values (Bland & Altman 1996; Bland 2006).

    A bias between the two counts as variation. A unit whose mean is 0 has no coefficient and is left out of `n`. The interval is
    that of a variance, by chi-square with n degrees of freedom (Raunig et al. 2015).
    """
    from scipy import stats

    first, second = _complete(reference, predicted)
    means = (first + second) / 2
    first, second, means = first[means != 0], second[means != 0], means[means != 0]
    n = len(means)
    if not n:
        return SubjectVariation(0, UNDEFINED)
    value = math.sqrt(float(((first - second) ** 2 / 2 / means**2).mean()))
    low, high = (value * math.sqrt(n / stats.chi2.ppf(tail, n)) for tail in ((1 + confidence) / 2, (1 - confidence) / 2))
    return SubjectVariation(n, _enough(n, value, low, high))


def _complete(first: npt.ArrayLike, second: npt.ArrayLike) -> tuple[Array, Array]:
    """Both measurements of the units that have both. Raises: ValueError where they are of different lengths."""
    pair = np.stack([np.asarray(first, np.float64), np.asarray(second, np.float64)])
    whole = pair[:, np.isfinite(pair).all(axis=0)]
    return whole[0], whole[1]


def _enough(n: int, value: float, low: float, high: float) -> Estimate:
    """The estimate, with its interval where there are units enough for one."""
    return Estimate(value, low, high) if n >= FEWEST_UNITS else Estimate(value)
