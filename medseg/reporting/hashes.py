"""Hashes by which the files of a run can be told from any others: data, models, masks and tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from medseg.core.files import json_sha256
from medseg.reporting.collect import ReportData

CHECKED = {"manifest_sha256": "manifest of cases", "files_sha256": "all image and label files"}


@dataclass(frozen=True)
class HashRow:
    """One hash: of what, of which model (or none), and the SHA-256 in full."""

    what: str
    model: str
    sha256: str


def hash_rows(data: ReportData) -> list[HashRow]:
    """The hashes that the records and tables hold, from data to figures."""
    checked = data.records.get(("check", ""), {}).get("inputs", {})
    rows = [HashRow(text, "", str(checked[key])) for key, text in CHECKED.items() if checked.get(key)]
    if data.plan:
        rows.append(HashRow("plan (its values, as JSON with sorted keys)", "", json_sha256(data.plan)))
    for model in data.models:
        rows += [HashRow("model file", model.name, value) for value in _used(model.predictions)]
        measured = data.records.get(("evaluate", model.name), {}).get("inputs", {})
        if measured.get("predictions_csv"):
            rows.append(
                HashRow("predictions.csv, which holds the hash of every scan and mask", model.name, measured["predictions_csv"])
            )
        if measured.get("files"):
            rows.append(HashRow("masks and reference files that were compared", model.name, str(measured["files"])))
    tables = data.records.get(("evaluate", ""), {}).get("inputs", {}).get("tables", {})
    return rows + [
        HashRow(f"table {i} that the comparison read", name, value)
        for name, values in tables.items()
        for i, value in enumerate(values, 1)
    ]


def _used(predictions: Any) -> list[str]:
    """The hashes of the model files that made the predictions."""
    if predictions is None or "model_sha256" not in predictions:
        return []
    return [value for value in dict.fromkeys(predictions["model_sha256"]) if value]
