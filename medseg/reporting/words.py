"""Metrics, states and numbers in the words and digits of the report."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from medseg.metrics.table import METRICS
from medseg.reporting.collect import ReportData

NONE = "–"
NAMES = {
    "dice": "Dice",
    "iou": "IoU",
    "precision": "Precision",
    "sensitivity": "Sensitivity",
    "reference_volume": "Reference volume",
    "predicted_volume": "Predicted volume",
    "reference_area": "Reference area",
    "predicted_area": "Predicted area",
    "hd95": "HD95",
    "surface_dice": "Surface Dice",
    "adapted_rand_error": "Adapted Rand error",
}
UNITS = {"mm2": "mm²"}
STATUS = {
    "ok": "ok",
    "both_empty": "in neither mask",
    "reference_empty": "not in the reference",
    "prediction_empty": "missed",
    "prediction_missing": "no prediction",
    "unreadable": "unreadable",
    "grid_mismatch": "grids differ",
}
UNIT_WORDS = {"patient": "patients", "tile": "tiles", "slice": "slices", "image": "images", "case": "cases"}


@dataclass(frozen=True)
class MetricText:
    """A metric's column in words. `share`: it lies between 0 and 1."""

    column: str
    name: str
    unit: str
    text: str
    better: str
    share: bool

    @property
    def label(self) -> str:
        return f"{self.name}\u00a0({self.unit})" if self.unit else self.name

    def format(self, value: Any) -> str:
        """A figure with as many digits as it can bear."""
        if self.share:
            return format_number(value, 3)
        if "area" in self.column or "volume" in self.column:
            counted = self.unit in ("px", "voxels") and isinstance(value, (int, float)) and float(value).is_integer()
            return format_number(value, 0 if counted else None)
        return format_number(value, 2 if self.unit in ("mm", "px") else None)


def describe(column: str) -> MetricText:
    """The words for a metric's column, such as `hd95_mm`; an unknown one keeps its name."""
    key = max((k for k in NAMES if column == k or column.startswith(f"{k}_")), key=len, default="")
    if not key:
        return MetricText(column, column.replace("_", " "), "", "", "", False)
    metric = METRICS.get(key.replace("area", "volume"))
    rest = column[len(key) :].strip("_")
    better = metric.better if metric else ""
    text = metric.text if metric else ""
    if key == "surface_dice":
        number = rest.rstrip("mpx")
        tolerance = f"{number} {rest[len(number) :]}".strip()
        return MetricText(column, f"Surface Dice at {tolerance}", "", text, better, True)
    share = bool(metric) and (not rest) and metric.unit == ""  # type: ignore[union-attr]
    return MetricText(column, NAMES[key], UNITS.get(rest, rest), text, better, share)


def unit_words(data: ReportData) -> str:
    """What the intervals are over, in the plural."""
    return UNIT_WORDS.get(data.facts.sampling_unit, f"{data.facts.sampling_unit}s")


def format_number(value: Any, decimals: int | None = None) -> str:
    """A number as text: `decimals` places, or four significant digits; a dash where it is undefined."""
    if value is None or value == "" or (isinstance(value, float) and not math.isfinite(value)):
        return NONE
    if not isinstance(value, (int, float, np.integer, np.floating)) or isinstance(value, bool):
        return str(value)
    number = float(value)
    if decimals is None:
        magnitude = math.floor(math.log10(abs(number))) if number else 0
        decimals = 0 if number.is_integer() and abs(number) >= 1000 else int(np.clip(3 - magnitude, 0, 3 if magnitude < 0 else 2))
    return f"{number:,.{decimals}f}".replace(",", "\u202f").replace("-", "−")


def metric_columns(table: pd.DataFrame) -> list[str]:
    """The metrics of a per_case.csv: its numeric columns."""
    own = {"case_id", "patient_id", "structure", "status"}
    return [c for c in table.columns if c not in own and pd.api.types.is_numeric_dtype(table[c])]


def find_metric(data: ReportData, name: str) -> str | None:
    """The column of a metric in the per-case tables (`hd95` -> `hd95_mm`), or None."""
    columns = (c for model in data.models for c in metric_columns(model.per_case))
    return next((c for c in columns if c == name or c.startswith(f"{name}_")), None)
