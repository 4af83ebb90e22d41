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
AREA, VOLUME = "area", "volume"  # a 2D picture's columns have the one where METRICS has the other
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
    named = {name: name for name in METRICS} | {name.replace(VOLUME, AREA): name for name in METRICS}
    own = max((n for n in named if column == n or column.startswith(f"{n}_")), key=len, default="")
    if not own:
        return MetricText(column, column.replace("_", " "), "", "", "", False)
    metric, rest = METRICS[named[own]], column[len(own) :].strip("_")
    label = (
        metric.label.replace(VOLUME, AREA).replace(VOLUME.capitalize(), AREA.capitalize()) if own not in METRICS else metric.label
    )
    if metric.parameter == "tolerance":
        number = rest.rstrip("mpx")
        return MetricText(column, f"{label} at {number} {rest[len(number) :]}".strip(), "", metric.text, metric.better, True)
    if metric.parameter == "overlap":
        label, rest = f"{label} at IoU {rest.removeprefix('iou')}" if rest else label, ""
    # What is neither better high nor low (a count, a relative difference) has no ends.
    share = metric.unit == "" and metric.better != "" and not rest
    return MetricText(column, label, UNITS.get(rest, rest), metric.text, metric.better, share)


def unit_words(data: ReportData) -> str:
    """What the intervals are over, in the plural."""
    return plural(data.facts.sampling_unit)


def plural(unit: str) -> str:
    """A sampling unit's name for several."""
    return UNIT_WORDS.get(unit, f"{unit}s")


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
