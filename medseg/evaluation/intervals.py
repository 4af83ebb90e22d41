"""Bootstrap intervals of means over patients (or whatever unit is named), never over voxels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

FEWEST_UNITS = 6  # below this many an interval says more about the method than about the patients
CONFIDENCE = 0.95  # of an interval for which none is stated
DRAWN_AT_ONCE = 2**22  # unit indices in memory


def mean_intervals(values: Array, units: Sequence[str], resamples: int, confidence: float, seed: int) -> Array:
    """BCa bootstrap intervals (Efron 1987) of the mean over cases, resampling units with all their cases together.

    Args:
        values: (cases, columns); NaN cells are left out, each column for itself.
        units: whom each case belongs to.
        seed: every column draws with it anew, so a column's interval does not depend on which others there are.
    Returns: (columns, 2), lower and upper; NaN where a column has values from fewer than six units.
    """
    sums, counts = sums_of_units(values, units)
    intervals = np.full((values.shape[1], 2), np.nan)
    # Columns with the same units share their draws.
    patterns, group = np.unique(counts > 0, axis=1, return_inverse=True)
    for index, pattern in enumerate(patterns.T):
        columns = np.flatnonzero(group == index)
        if pattern.sum() >= FEWEST_UNITS:
            intervals[columns] = _bca(sums[pattern][:, columns], counts[pattern][:, columns], resamples, confidence, seed)
    return intervals


def sums_of_units(values: Array, units: Sequence[str]) -> tuple[Array, Array]:
    """What resampling draws from: (units, columns) the sum of each unit's finite values, and how many these are.

    Units stand in the order of their names, so the order of the rows of `values` decides nothing.
    """
    names, place = np.unique(np.asarray(units, dtype=str), return_inverse=True)
    present = np.isfinite(values)
    sums, counts = np.zeros((2, len(names), values.shape[1]))
    np.add.at(sums, place, np.where(present, values, 0.0))
    np.add.at(counts, place, present)
    return sums, counts


def _bca(sums: Array, counts: Array, resamples: int, confidence: float, seed: int) -> Array:
    from scipy.special import ndtr, ndtri

    mean = sums.sum(0) / counts.sum(0)
    means = resampled_means(sums, counts, resamples, seed)
    near = 1e-12 * np.maximum(1, np.abs(mean))  # sums in another order differ in the last digits
    below = ((means < mean - near).mean(0) + (means <= mean + near).mean(0)) / 2
    with np.errstate(all="ignore"):
        bias = ndtri(below)
        left_out = (sums.sum(0) - sums) / (counts.sum(0) - counts)
        spread = left_out.mean(0) - left_out
        acceleration = (spread**3).sum(0) / (6 * (spread**2).sum(0) ** 1.5)
    # Without spread, or with all resamples on one side, there is no correction to make: plain percentiles.
    usable = np.isfinite(bias) & np.isfinite(acceleration)
    bias, acceleration = np.where(usable, bias, 0), np.where(usable, acceleration, 0)
    limits: list[Any] = []
    for tail in ((1 - confidence) / 2, (1 + confidence) / 2):
        z = bias + ndtri(tail)
        level = ndtr(bias + z / (1 - acceleration * z))
        limits.append([np.quantile(column, share) for column, share in zip(means.T, level, strict=True)])
    return np.asarray(limits).T


def resampled_means(sums: Array, counts: Array, resamples: int, seed: int) -> Array:
    """(resamples, columns): the mean over the cases of as many units as there are, drawn with replacement.

    Args:
        sums, counts: of `sums_of_units`; every unit has a value in every column.
    """
    n = len(sums)
    generator = np.random.default_rng(seed)
    means = []
    at_once = max(1, DRAWN_AT_ONCE // n)
    for start in range(0, resamples, at_once):
        rows = min(at_once, resamples - start)
        drawn = generator.integers(0, n, (rows, n)) + n * np.arange(rows)[:, None]
        times = np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n).astype(np.float64)
        means.append((times @ sums) / (times @ counts))
    return np.concatenate(means)
