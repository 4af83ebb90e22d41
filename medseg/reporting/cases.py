"""What became of the cases: how far they came, which failed and why, and every row of every model."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from medseg.core.wording import FEW, some_of
from medseg.drawing.flow import Box, Column
from medseg.evaluation.case import UNUSABLE
from medseg.evaluation.compare import differing_references
from medseg.reporting.anchors import case_anchor, row_anchor
from medseg.reporting.collect import ModelResults, ReportData
from medseg.reporting.words import NONE, STATUS, MetricText, describe, metric_columns

# A prediction that failed for one of these says nothing against the scan; any other reason is the scan's.
FAULTS_OF_THE_RUN = {
    "unexpected ": "failed while segmented",
    "out of memory": "out of memory",
    "its worker process was killed": "process was killed",
}
NO_MASK = "no mask"
PURPOSE = {"train": "used for training", "val": "used for validation", "test": "kept for testing"}


@dataclass(frozen=True)
class FlowRow:
    """How many cases came how far. Empty text where a step does not apply."""

    split: str
    model: str
    given: str
    readable: str
    segmented: str
    evaluated: str
    lost: bool


@dataclass(frozen=True)
class Progress:
    """How far the cases of one model came: each set lies in the one before it. `left`: case_id -> why it went no further."""

    given: frozenset[str]
    readable: frozenset[str]
    segmented: frozenset[str]
    evaluated: frozenset[str]
    left: dict[str, str]


def progress(model: ModelResults, given: set[str], bad: set[str]) -> Progress:
    """Where each of the given cases of a model stopped.

    Args:
        bad: cases that `medseg check` found faulty.
    """
    statuses = {str(c): str(s) for c, s in model.per_case.groupby("case_id")["status"].first().items() if c in given}
    usable = {c for c, status in statuses.items() if status not in UNUSABLE}
    unread = dict.fromkeys(bad, "found faulty by the check") | dict.fromkeys(unread_references(model), "reference cannot be read")
    lost = {c: NO_MASK for c, status in statuses.items() if status == "prediction_missing"}
    if model.predictions is not None:
        done = set(model.predictions.loc[model.predictions["status"] != "failed", "case_id"])
        lost = dict.fromkeys(given - done, NO_MASK)
        for row in model.predictions[model.predictions["status"] == "failed"].to_dict("records"):
            fault = next((words for start, words in FAULTS_OF_THE_RUN.items() if str(row["reason"]).startswith(start)), "")
            (lost if fault else unread)[row["case_id"]] = fault or "scan cannot be read"
    # What was measured was read, whatever was said of it before.
    left = {c: reason for c, reason in (lost | unread).items() if c in given - usable}
    readable = given - (unread.keys() & left.keys())
    segmented = readable - left.keys()
    left |= {c: STATUS.get(statuses.get(c, ""), "not evaluated") for c in segmented - usable}
    return Progress(frozenset(given), frozenset(readable), frozenset(segmented), frozenset(segmented & usable), left)


def flow_rows(data: ReportData) -> list[FlowRow]:
    """Cases given, readable, segmented and evaluated, for each split and model; each number counts some of the one before."""
    splits = {case.case_id: case.split for case in data.cases}
    bad = set(check_failures(data.checks))
    rows = []
    evaluated = {splits.get(c, "") for m in data.models for c in m.per_case["case_id"]}
    for split in ("train", "val"):
        cases = [c for c, s in splits.items() if s == split]
        if cases and split not in evaluated:
            readable = _known(data.checks is not None, sum(c not in bad for c in cases))
            rows.append(FlowRow(split, "", str(len(cases)), readable, "", "", readable not in (NONE, str(len(cases)))))
    for split in ("train", "val", "test", ""):
        rows += [_flow_row(model, split, splits, bad) for model in data.models if split in evaluated]
    return rows


def _flow_row(model: ModelResults, split: str, splits: dict[str, Any], bad: set[str]) -> FlowRow:
    came = progress(model, _given(model, split, splits), bad)
    counts = [len(came.given), len(came.readable), len(came.segmented), len(came.evaluated)]
    n_given, n_readable, n_segmented, n_evaluated = map(str, counts)
    return FlowRow(split, model.name, n_given, n_readable, n_segmented, n_evaluated, len(set(counts)) > 1)


def _given(model: ModelResults, split: str, splits: dict[str, Any]) -> set[str]:
    measured = {str(c) for c in model.per_case["case_id"] if splits.get(c, "") == split}
    return {c for c, s in splits.items() if s == split} if split else measured


@dataclass(frozen=True)
class Flow:
    """The way of the cases as a chart: what all models share, and a branch for each model or models that fared alike."""

    trunk: tuple[Box, ...]
    columns: tuple[Column, ...]


def case_flow(data: ReportData) -> Flow:
    """The cases of all evaluated splits together, as they come in `flow_rows`, with the reasons why some were left out."""
    splits = {case.case_id: case.split for case in data.cases}
    bad = set(check_failures(data.checks))
    used = {splits.get(c, "") for m in data.models for c in m.per_case["case_id"]}
    fates: dict[tuple[Box, ...], list[str]] = {}
    given: set[str] = set()
    for model in data.models:
        own = {case_id for split in used for case_id in _given(model, split, splits)}
        given |= own
        fates.setdefault(_boxes(progress(model, own, bad)), []).append(model.name)
    purpose = PURPOSE | ({"train": "used for cross-validation"} if data.facts.design else {})
    elsewhere = Counter(purpose.get(split, "no split named") for split in splits.values() if split not in used)
    trunk = [Box("Cases given", len(given), _counted(elsewhere))]
    if elsewhere:
        trunk.insert(0, Box("Cases in the manifest", len(splits)))
        trunk[1] = Box("Test cases given" if used == {"test"} else "Cases given", len(given), _counted(elsewhere))
    if strangers := {case_id for model in data.models for case_id in model.without_reference} - given:
        trunk.insert(0, Box("Cases found", len(given) + len(strangers)))
        trunk[1] = replace(trunk[1], left=(*trunk[1].left, f"{len(strangers)} without a reference"))
    alone = len(data.models) == 1 or len(fates) == 1
    return Flow(tuple(trunk), tuple(Column("" if alone else ", ".join(names), boxes) for boxes, names in fates.items()))


def not_measured(data: ReportData) -> list[str]:
    """What is there and has no reference to measure it by: a sentence for each model, or models of which it is the same."""
    alike: dict[tuple[str, ...], list[str]] = {}
    for model in data.models:
        alike.setdefault(tuple(model.without_reference), []).append(model.name)
    return [_without_reference(names, models) for names, models in alike.items() if names]


def _without_reference(names: Sequence[str], models: Sequence[str]) -> str:
    n, masks = len(names), "mask" if len(names) == 1 else "masks"
    whose = f"of {models[0]}" if len(models) == 1 else f"each of {', '.join(models[:-1])} and {models[-1]}"
    where = ", all in tables/unmatched.csv" if n > FEW else ""
    verbs = ("has", "was") if n == 1 else ("have", "were")
    return f"{n} {masks} {whose} {verbs[0]} no reference and {verbs[1]} not evaluated: {some_of(names)}{where}."


def _boxes(came: Progress) -> tuple[Box, ...]:
    steps = [("Readable", came.given, came.readable), ("Segmented", came.readable, came.segmented)]
    steps += [("Evaluated", came.segmented, came.evaluated)]
    return tuple(Box(text, len(now), _counted(Counter(came.left[c] for c in before - now))) for text, before, now in steps)


def _counted(reasons: Counter[str]) -> tuple[str, ...]:
    return tuple(f"{n} {reason}" for reason, n in sorted(reasons.items(), key=lambda item: (-item[1], item[0])))


def unread_references(model: ModelResults) -> set[str]:
    """Cases whose reference could not be read; where the evaluation does not tell, those with anything unreadable."""
    if model.cases is not None:
        diagonal = next((c for c in model.cases if str(c).startswith("diagonal")), None)
        return set() if diagonal is None else set(model.cases.loc[model.cases[diagonal].isna(), "case_id"])
    return set(model.per_case.loc[model.per_case["status"] == "unreadable", "case_id"])


def _known(known: bool, count: int) -> str:
    return str(count) if known else NONE


@dataclass(frozen=True)
class Failure:
    """One case that did not come through."""

    case_id: str
    model: str
    stage: str
    reason: str


def failures(data: ReportData) -> list[Failure]:
    """Every case that failed anywhere, with the reason."""
    found = [Failure(case_id, "", "check", reason) for case_id, reason in check_failures(data.checks).items()]
    for model in data.models:
        told: set[str] = set()
        if model.predictions is not None:
            for row in model.predictions[model.predictions["status"] == "failed"].to_dict("records"):
                told.add(row["case_id"])
                found.append(Failure(row["case_id"], model.name, "predict", str(row["reason"])))
        reasons = _evaluation_reasons(model)
        statuses = model.per_case.groupby("case_id", sort=False)["status"].first()
        for case_id, status in statuses.items():
            if status in UNUSABLE and case_id not in told:
                found.append(Failure(str(case_id), model.name, "evaluate", reasons.get(str(case_id)) or STATUS[status]))
    return found


def missed(data: ReportData) -> list[Failure]:
    """Structures that are in the reference and not in the mask."""
    return [
        Failure(row["case_id"], model.name, row["structure"], "in the reference, not in the mask")
        for model in data.models
        for row in model.per_case[model.per_case["status"] == "prediction_empty"].to_dict("records")
    ]


def check_failures(checks: pd.DataFrame | None) -> dict[str, str]:
    """Cases with an error in report.csv of `medseg check`, and what it is."""
    found: dict[str, str] = {}
    for problem in _problems(checks, "error"):
        if problem.case_id:
            found[problem.case_id] = "; ".join(filter(None, [found.get(problem.case_id), problem.reason]))
    return found


def check_warnings(data: ReportData) -> list[Failure]:
    """The warnings in report.csv of `medseg check`."""
    return _problems(data.checks, "warning")


def reservations(data: ReportData) -> list[Failure]:
    """Cases that were measured, and what must be known of it: that a mask was resampled, had no usable probabilities, or that
    models were measured against different references.
    """
    found = [
        Failure(str(row["case_id"]), model.name, "evaluate", str(row["reason"]))
        for model in data.models
        if model.cases is not None and {"status", "reason"} <= set(model.cases)
        for row in model.cases[(model.cases["status"] == "ok") & (model.cases["reason"].astype(str) != "")].to_dict("records")
    ]
    differing = differing_references({model.name: model.per_case for model in data.models})
    reason = "the models were measured against references of different sizes, so they cannot be compared on it"
    return found + [Failure(case, "", "evaluate", reason) for case in differing]


def _problems(checks: pd.DataFrame | None, severity: str) -> list[Failure]:
    if checks is None:
        return []
    rows = checks[checks["severity"] == severity].to_dict("records")
    return [Failure(row["case_id"], "", "check", f"{row['problem']}; {row['what_to_do']}") for row in rows]


def _evaluation_reasons(model: ModelResults) -> dict[str, str]:
    if model.cases is None or "reason" not in model.cases:
        return {}
    return dict(zip(model.cases["case_id"], model.cases["reason"], strict=True))


@dataclass(frozen=True)
class Cell:
    """A cell as shown, and the value that it sorts by where it is a number."""

    text: str
    value: float | None = None


@dataclass(frozen=True)
class CaseTable:
    """Headers and rows; `numeric` says which columns are numbers.

    Args:
        anchors: of each row, its own id and the id of the picture of its case, if there is one.
    """

    headers: list[str]
    rows: list[list[Cell]]
    numeric: list[bool]
    anchors: list[tuple[str, str]]


def per_case_table(data: ReportData, patients: bool = False) -> CaseTable:
    """Every row of every model's per_case.csv. `patients`: with the patients' identifiers, where there are any."""
    named = patients and any((m.per_case.get("patient_id", pd.Series(dtype=str)).fillna("") != "").any() for m in data.models)
    texts = [describe(c) for c in dict.fromkeys(c for m in data.models for c in metric_columns(m.per_case))]
    names = ["Case", *(["Patient"] if named else []), "Model", "Structure"]
    rows, anchors = [], []
    for model in data.models:
        for row in model.per_case.to_dict("records"):
            anchors.append((row_anchor(model.name, row["case_id"], row["structure"]), case_anchor(model.name, row["case_id"])))
            own = [row["case_id"], *([row.get("patient_id") or ""] if named else []), model.name, row["structure"]]
            figures = [_number_cell(text, row.get(text.column)) for text in texts]
            rows.append([*(Cell(str(c)) for c in own), *figures, Cell(STATUS.get(row["status"], str(row["status"])))])
    numeric = [False] * len(names) + [True] * len(texts) + [False]
    return CaseTable([*names, *(t.label for t in texts), "Status"], rows, numeric, anchors)


def _number_cell(text: MetricText, value: Any) -> Cell:
    known = value is not None and math.isfinite(value)
    return Cell(text.format(value) if known else NONE, float(value) if known else None)
