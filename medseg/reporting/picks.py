"""Which cases the gallery shows: the worst, median and best of each structure, what was missed and what is not there."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from medseg.evaluation.case import UNUSABLE
from medseg.metrics.table import METRICS
from medseg.reporting.cases import unread_references
from medseg.reporting.collect import ModelResults, ReportData

Kind = Literal["worst", "missed", "false positive", "median", "best"]
KINDS: tuple[Kind, ...] = ("worst", "missed", "false positive", "median", "best")
# A kind of a structure that one mask lacks -> its status, and the column whose largest value comes first.
LACKING: dict[Kind, tuple[str, str]] = {
    "missed": ("prediction_empty", "reference_"),
    "false positive": ("reference_empty", "predicted_"),
}


@dataclass(frozen=True)
class Pick:
    """A case to show and what it stands for.

    Args:
        dice: of the structure, under the convention `worst`.
        structure: empty for the mean over structures.
    """

    kind: Kind
    case_id: str
    dice: float
    structure: str = ""


@dataclass(frozen=True)
class Choice:
    """The cases to draw, the worst first, each with all that it stands for; `left_out` more are not drawn."""

    cases: dict[str, list[Pick]]
    left_out: int


def case_scores(model: ModelResults, structure: str = "") -> pd.Series[float]:
    """Dice of each case under the convention `worst`, so that a missed case is a bad case; the worst comes first.

    A structure that is in one mask only, or a case without a usable mask, counts as 0. Cases whose reference could not be read
    have no score and are left out. Ties go by the size of what is there, the largest first, then by case_id.

    Args:
        structure: whose Dice; a case that has it in neither mask shows nothing of it and is left out. By default the mean over
            structures, in which a structure in neither mask counts as perfect.
    """
    metric = METRICS["dice"]
    rows = model.per_case[~model.per_case["case_id"].isin(unread_references(model))]
    if structure:
        rows = rows[(rows["structure"] == structure) & (rows["status"] != "both_empty")]
    assumed = dict.fromkeys(("reference_empty", "prediction_empty", *UNUSABLE), metric.when_one_empty)
    assumed["both_empty"] = metric.when_both_empty
    scores = pd.to_numeric(rows["dice"]).fillna(rows["status"].map(assumed).astype(float))
    sizes = rows.filter(regex="^(reference|predicted)_(volume|area)").apply(pd.to_numeric).sum(axis=1)
    table = pd.DataFrame({"score": scores, "size": -sizes}).groupby(rows["case_id"]).mean().dropna(subset=["score"])
    return table.sort_index().sort_values(["score", "size"], kind="stable")["score"]


def choose_cases(scores: pd.Series[float], number: int, structure: str = "") -> list[Pick]:
    """`number` cases of each kind, no case twice; with few cases the worst are chosen first, then the best.

    Args:
        scores: one for each case_id, the worst first.
    """
    n = len(scores)
    order: dict[int, Kind] = {}
    middle = sorted(range(n), key=lambda i: abs(i - (n - 1) / 2))
    kinds: tuple[tuple[Kind, Iterable[int]], ...] = (("worst", range(n)), ("best", range(n - 1, -1, -1)), ("median", middle))
    for kind, places in kinds:
        free = [i for i in places if i not in order][:number]
        order |= dict.fromkeys(free, kind)
    chosen = sorted(order, key=lambda i: (KINDS.index(order[i]), -i if order[i] == "best" else i))
    return [Pick(order[i], str(scores.index[i]), float(scores.iloc[i]), structure) for i in chosen]


def lacking_cases(model: ModelResults, structure: str, number: int) -> list[Pick]:
    """`number` cases in which the model missed the structure, and as many in which it found one that is not there.

    The largest come first.
    """
    picks = []
    for kind, (status, size) in LACKING.items():
        rows = model.per_case[(model.per_case["structure"] == structure) & (model.per_case["status"] == status)]
        columns = [c for c in map(str, rows) if c.startswith((f"{size}volume", f"{size}area"))]
        if columns:
            rows = rows.sort_values([columns[0], "case_id"], ascending=[False, True])
        picks += [Pick(kind, str(case_id), 0.0, structure) for case_id in rows["case_id"][:number]]
    return picks


def pick_cases(data: ReportData, model: ModelResults, number: int, most: int) -> Choice:
    """The cases of a model to draw, at most `most`: those that stand for most, and of these the worst first.

    Args:
        number: of cases of each kind for each structure and for their mean.
    """
    names = [s for s in data.structures if (model.per_case["structure"] == s).any()]
    picks = choose_cases(case_scores(model), number) if len(names) > 1 else []
    for structure in names:
        picks += choose_cases(case_scores(model, structure), number, structure) + lacking_cases(model, structure, number)
    found: dict[str, list[Pick]] = {}
    for pick in sorted(picks, key=lambda p: KINDS.index(p.kind)):
        found.setdefault(pick.case_id, []).append(pick)
    drawn = sorted(found, key=lambda c: -len(found[c]))[:most]
    return Choice({c: found[c] for c in found if c in drawn}, len(found) - len(drawn))
