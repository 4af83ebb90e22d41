"""What became of the cases: how far they came, which failed and why, and every row of every model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pandas as pd

from medseg.reporting.collect import ModelResults, ReportData
from medseg.reporting.words import NONE, STATUS, MetricText, describe, metric_columns

# A prediction that failed for one of these says nothing against the scan; any other reason is the scan's.
FAULTS_OF_THE_RUN = ("unexpected ", "out of memory", "its worker process was killed")
UNUSABLE = ("prediction_missing", "unreadable", "grid_mismatch")


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


def flow_rows(data: ReportData) -> list[FlowRow]:
    """Cases given, readable, segmented and evaluated, for each split and model."""
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
    table = model.per_case[[splits.get(c, "") == split for c in model.per_case["case_id"]]]
    measured = set(table["case_id"])
    given = {c for c, s in splits.items() if s == split} if split else measured
    statuses = table.groupby("case_id")["status"].first()
    usable = {c for c, status in statuses.items() if status not in UNUSABLE}
    unread = bad | unread_references(model)
    if model.predictions is None:
        segmented = {c for c, status in statuses.items() if status != "prediction_missing"}
    else:
        failed = model.predictions["status"] == "failed"
        segmented = set(model.predictions.loc[~failed, "case_id"]) & given
        ours = model.predictions["reason"].astype(str).str.startswith(FAULTS_OF_THE_RUN)
        unread |= set(model.predictions.loc[failed & ~ours, "case_id"])
    counts = [len(given), len(given - unread), len(segmented), len(usable)]
    n_given, n_readable, n_segmented, n_usable = map(str, counts)
    return FlowRow(split, model.name, n_given, n_readable, n_segmented, n_usable, len(set(counts)) > 1)


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
    """Headers and rows; `numeric` says which columns are numbers."""

    headers: list[str]
    rows: list[list[Cell]]
    numeric: list[bool]


def per_case_table(data: ReportData) -> CaseTable:
    """Every row of every model's per_case.csv."""
    named = any((m.per_case.get("patient_id", pd.Series(dtype=str)).fillna("") != "").any() for m in data.models)
    texts = [describe(c) for c in dict.fromkeys(c for m in data.models for c in metric_columns(m.per_case))]
    names = ["Case", *(["Patient"] if named else []), "Model", "Structure"]
    rows = []
    for model in data.models:
        for row in model.per_case.to_dict("records"):
            own = [row["case_id"], *([row.get("patient_id") or ""] if named else []), model.name, row["structure"]]
            figures = [_number_cell(text, row.get(text.column)) for text in texts]
            rows.append([*(Cell(str(c)) for c in own), *figures, Cell(STATUS.get(row["status"], str(row["status"])))])
    numeric = [False] * len(names) + [True] * len(texts) + [False]
    return CaseTable([*names, *(t.label for t in texts), "Status"], rows, numeric)


def _number_cell(text: MetricText, value: Any) -> Cell:
    known = value is not None and math.isfinite(value)
    return Cell(text.format(value) if known else NONE, float(value) if known else None)
