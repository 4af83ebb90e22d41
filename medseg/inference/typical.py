"""What is typical of the cases that a model was trained on, so that another case can be told from them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator
from scipy import stats

from medseg.core.config import Section
from medseg.inference.features import CELLS, Features, Picture, resemblance

FALSE_ALARMS = 0.01  # share of ordinary cases with a flag that the limits are set for, over all features together
LEAST_CASES = 5  # with a value, below which a feature gets no limits
LEAST_VALIDATED = 3  # the same for what is known of validation cases only
LEAST_PICTURES = 10  # that a mean picture is made of: of fewer it would show single patients
WIDEST = 2.0  # factor that the limits are widened by at most, where left-out cases lie outside
ERROR_QUANTILE, ERROR_DEVIATIONS = 0.9, 1.645  # of the validation errors: one failed case does not decide

Values = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Finite = Annotated[float, Field(allow_inf_nan=False)]


@dataclass(frozen=True)
class Trait:
    """How one kind of feature is spread.

    Args:
        there, back: to a scale on which it is spread about evenly to both sides, and back.
        floor: least deviation on that scale.
        sides: which of its ends are suspicious, `low`, `high` or `both`.
    """

    there: Callable[[Values], Values]
    back: Callable[[float], float]
    floor: float
    sides: str = "both"


def _same(value: Any) -> Any:
    return value


def _log(values: Values) -> Values:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(values > 0, np.log(values), math.nan)


def _linear(floor: float, sides: str = "both") -> Trait:
    return Trait(_same, _same, floor, sides)


def _logarithmic(floor: float, sides: str = "both") -> Trait:
    return Trait(_log, math.exp, floor, sides)


TRAITS = {
    **dict.fromkeys(("extent_mm", "extent_px"), _logarithmic(0.03)),
    "intensity": _linear(0.05),
    "roughness": _logarithmic(0.1),
    "resemblance": Trait(np.arctanh, math.tanh, 0.03, "low"),
    "upright": _linear(0.03, "low"),
    **dict.fromkeys(("volume_ml", "area_mm2", "volume_px"), _logarithmic(0.1)),
    "pieces": _logarithmic(0.2, "high"),
    "cut_share": Trait(np.sqrt, lambda root: root * abs(root), 0.012, "high"),
    "position": _linear(0.01),
    "entropy": _logarithmic(0.05, "high"),
    "doubt": _logarithmic(0.05, "high"),
    "mirror_dice": _linear(0.02, "low"),
}
OF_ANSWERS = ("entropy", "doubt", "mirror_dice")  # no reference has them


class Limit(Section):
    """One feature.

    Args:
        least, greatest: of the training cases (of the validation cases, where references do not have it).
        low, high: beyond them a value is suspicious; None where that end is not.
    """

    least: Finite
    greatest: Finite
    low: Finite | None = None
    high: Finite | None = None

    def excess(self, value: float) -> float:
        """How far a value lies outside, over the width of the range; 0 inside, and for NaN."""
        beyond = max(self.low - value if self.low is not None else 0.0, value - self.high if self.high is not None else 0.0)
        return beyond / max(self.greatest - self.least, 1e-9) if beyond > 0 else 0.0


class Typical(Section):
    """What travels in a model file; no single case is in it beyond the ends of ranges.

    Args:
        cases, validated: training cases and validation cases that it was learnt from.
        limits: of features, by their names.
        always: structures or regions that each of the cases has.
        picture: (C * 8 * 8 * 8) mean of their coarse pictures; None where there are fewer than 10.
    """

    cases: int = 0
    validated: int = 0
    limits: dict[str, Limit] = {}
    always: list[str] = []
    picture: list[Finite] | None = None

    @model_validator(mode="after")
    def _whole(self) -> Typical:
        if self.picture is not None and (not self.picture or len(self.picture) % CELLS**3):
            raise ValueError("the mean picture is not whole")
        return self

    @property
    def mean_picture(self) -> Picture | None:
        """(C, 8, 8, 8) float32."""
        return None if self.picture is None else np.array(self.picture, np.float32).reshape(-1, CELLS, CELLS, CELLS)


def trait_of(feature: str) -> str:
    """The row of `TRAITS` that a feature's name belongs to."""
    first = feature.partition(":")[0]
    return "intensity" if first.startswith("intensity_") else first


def learn(known: Sequence[Features], answers: Sequence[Features], pictures: Sequence[Picture], names: Sequence[str]) -> Typical:
    """The limits of each feature, such that few ordinary cases lie outside of any of them.

    A feature is taken to be spread like Student's t on the scale of its trait, and its limits are a prediction interval, so
    that few cases give wide ones. The share of false alarms is divided by the number of limits (Bonferroni). What is measured
    on a mask has the spread of the references and the error of the validation cases' masks together. Then each case is left out
    in turn and judged by the others; where more than the share of them would be flagged, all limits are widened alike.

    Args:
        known: features of the cases with their references as masks, the validation cases first.
        answers: of the validation cases with their predicted masks, in the same order.
        pictures: coarse pictures of the cases.
        names: of structures or regions.
    """
    known = [dict(case) for case in known]
    mean = np.mean(pictures, axis=0) if len(pictures) >= LEAST_PICTURES else None
    if mean is not None:
        for case, picture in zip(known, pictures, strict=True):  # each against the mean of the others
            case |= resemblance(picture, (mean * len(pictures) - picture) / (len(pictures) - 1))
    features = sorted({f for case in (*known, *answers) for f in case if trait_of(f) in TRAITS})
    table, predicted = (
        np.array([[case.get(f, math.nan) for f in features] for case in cases]).reshape(-1, len(features))
        for cases in (known, answers)
    )
    found = _limits(features, table, predicted)
    size = next((f for f in features if trait_of(f) in ("volume_ml", "area_mm2", "volume_px")), "").partition(":")[0]
    return Typical(
        cases=len(known) - len(answers),
        validated=len(answers),
        limits=found,
        always=[name for name in names if all(case.get(f"{size}:{name}", 0) > 0 for case in known)],
        picture=None if mean is None else [round(float(v), 2) for v in mean.ravel()],
    )


def _limits(features: list[str], known: Values, answers: Values) -> dict[str, Limit]:
    traits = [TRAITS[trait_of(f)] for f in features]
    of_answers = np.array([trait_of(f) in OF_ANSWERS for f in features], bool)
    scaled, predicted = (
        np.stack([t.there(column) for t, column in zip(traits, table.T, strict=True)], axis=1) if len(table) else table
        for table in (known, answers)
    )
    centre, half = _intervals(_values(scaled, predicted, of_answers), _errors(scaled, predicted), traits, of_answers)
    widening = _widening(scaled, predicted, traits, of_answers)
    seen = _values(known, answers, of_answers)
    result = {}
    for index, (feature, trait) in enumerate(zip(features, traits, strict=True)):
        if not math.isfinite(half[index]):
            continue
        low, high = (trait.back(float(centre[index] + side * widening * half[index])) for side in (-1, 1))
        least, greatest = float(np.nanmin(seen[:, index])), float(np.nanmax(seen[:, index]))
        result[feature] = Limit(
            least=_rounded(least),
            greatest=_rounded(greatest),
            low=None if trait.sides == "high" else _rounded(min(low, least)),
            high=None if trait.sides == "low" else _rounded(max(high, greatest)),
        )
    return result


def _intervals(values: Values, errors: Values, traits: Sequence[Trait], of_answers: Flags) -> tuple[Values, Values]:
    """(F,) centre and half width of each feature's interval on its scale; NaN where too few cases have it.

    Args:
        values: (N, F) on the traits' scales. errors: (F,) variance of what is predicted around it.
    """
    there = np.isfinite(values)
    count = there.sum(0)
    enough = count >= np.where(of_answers, LEAST_VALIDATED, LEAST_CASES)
    n = np.maximum(count, 2)
    filled = np.where(there, values, 0)
    centre = filled.sum(0) / n
    variance = np.where(there, (filled - centre) ** 2, 0).sum(0) / (n - 1) + errors
    limits = max(1, sum(2 if t.sides == "both" else 1 for t in traits))
    reach = stats.t.ppf(1 - FALSE_ALARMS / limits, n - 1) * np.sqrt(1 + 1 / n)
    half = reach * np.maximum(np.sqrt(variance), [t.floor for t in traits])
    return np.where(enough, centre, math.nan), np.where(enough, half, math.nan)


def _errors(known: Values, answers: Values) -> Values:
    """(F,) variance of the answers (M, F) around the first M of the known; 0 where it cannot be told."""
    away = np.abs(answers - known[: len(answers)])
    result = np.zeros(known.shape[1])
    for index in np.flatnonzero(np.isfinite(away).any(0)):
        own = away[np.isfinite(away[:, index]), index]
        result[index] = (np.quantile(own, ERROR_QUANTILE) / ERROR_DEVIATIONS) ** 2
    return result


def _widening(known: Values, answers: Values, traits: Sequence[Trait], of_answers: Flags) -> float:
    """The factor that keeps all but the share of false alarms of the left-out cases within the others' limits."""
    low, high = (np.array([t.sides != other for t in traits]) for other in ("high", "low"))
    values, errors, scores = _values(known, answers, of_answers), _errors(known, answers), []
    for index in range(len(known)):
        validated = index < len(answers)
        others = np.delete(known, index, 0)
        own = _errors(others, np.delete(answers, index, 0)) if validated else errors
        centre, half = _intervals(np.delete(values, index, 0), own, traits, of_answers)
        cases = [known[index], answers[index]] if validated else [known[index]]
        away = np.array(cases) - centre
        away = np.where((away < 0) & low | (away > 0) & high, np.abs(away), 0) / half
        scores.append(float(np.nanmax(away, initial=0.0)))
    return float(np.clip(np.quantile(scores, 1 - FALSE_ALARMS), 1, WIDEST)) if scores else 1.0


def _values(known: Values, answers: Values, of_answers: Flags) -> Values:
    """(N, F) the references' features, and the answers' where references have none."""
    none = np.full((len(known) - len(answers), known.shape[1]), math.nan)
    return np.where(of_answers, np.vstack([answers, none]), known)


def join_typical(parts: Sequence[Typical | None]) -> Typical | None:
    """What is typical of an ensemble's cases: the widest limits of its models', and the mean of their pictures.

    Args:
        parts: of models for the same scans and structures.
    Returns: None unless each of them has one.
    """
    known = [part for part in parts if part is not None]
    if not known or len(known) < len(parts):
        return None
    shared = set.intersection(*(set(part.limits) for part in known))
    pictures = [part.picture for part in known if part.picture is not None and len(part.picture) == len(known[0].picture or [])]
    mean = np.mean(pictures, axis=0).round(2).tolist() if len(pictures) == len(known) else None
    return Typical(
        cases=max(part.cases for part in known),
        validated=max(part.validated for part in known),
        limits={name: _widest([part.limits[name] for part in known]) for name in known[0].limits if name in shared},
        always=[name for name in known[0].always if all(name in part.always for part in known)],
        picture=mean,
    )


def _widest(limits: Sequence[Limit]) -> Limit:
    lows, highs = [limit.low for limit in limits], [limit.high for limit in limits]
    return Limit(
        least=min(limit.least for limit in limits),
        greatest=max(limit.greatest for limit in limits),
        low=None if None in lows else min(low for low in lows if low is not None),
        high=None if None in highs else max(high for high in highs if high is not None),
    )


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")
