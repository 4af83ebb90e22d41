"""Metrics as the columns of an evaluation's tables: their names with units, and what `worst` writes in them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from medseg.metrics.pair import LESION_OVERLAP, Frame
from medseg.metrics.table import METRICS, Better, Metric


@dataclass(frozen=True)
class Measure:
    """A metric as a column of a table: with its unit, in one evaluation.

    Args:
        column: name in per_case.csv, and `metric` in the summaries.
        metric: key in METRICS.
        unit: empty for a share.
        structures: those it is measured for; None for all.
    """

    column: str
    metric: str
    unit: str
    better: Better
    text: str
    structures: tuple[str, ...] | None = None

    def applies(self, structure: str) -> bool:
        """True where the figure is measured for this structure."""
        return self.structures is None or structure in self.structures

    def worst(self, measured: float, empty: Literal["both", "one", ""], diagonal: float) -> float:
        """What the convention `worst` writes.

        Args:
            measured: the figure as defined, or NaN.
            empty: `both` where the structure is in neither mask; `one` where it is in one, or there is no usable prediction.
            diagonal: of the scan, in the unit of lengths.
        """
        if not empty:
            return measured
        value = METRICS[self.metric].when_both_empty if empty == "both" else METRICS[self.metric].when_one_empty
        if value == "measured":
            return measured
        if value == "measured or 0":
            return 0.0 if math.isnan(measured) else measured
        return diagonal if value == "diagonal" else float(value)

    def as_dict(self) -> dict[str, Any]:
        """As JSON values, for stage.json; `Measure(**value)` reads it back."""
        return asdict(self)


def measures_for(
    metrics: Sequence[str], frame: Frame, tolerances: dict[str, float], lesion_overlap: float = LESION_OVERLAP
) -> list[Measure]:
    """The columns of an evaluation.

    Args:
        metrics: keys of METRICS.
        tolerances: of the surface Dice, for each structure. Different ones make different columns.
        lesion_overlap: IoU from which on a lesion is found.
    """
    return [measure for name in metrics for measure in _measures(METRICS[name], frame, tolerances, lesion_overlap)]


def _measures(metric: Metric, frame: Frame, tolerances: dict[str, float], lesion_overlap: float) -> list[Measure]:
    if metric.parameter == "tolerance":
        return _at_tolerances(metric, frame.length_unit, tolerances)
    if metric.parameter == "overlap":
        name, text = f"{metric.name}_iou{lesion_overlap:g}", f"{metric.text}, at an IoU of {lesion_overlap:g} or more"
        return [Measure(name, metric.name, "", metric.better, text)]
    unit = {"": "", "length": frame.length_unit, "size": frame.size_unit}[metric.unit]
    name = metric.name.replace("volume", "area") if frame.planar else metric.name
    return [Measure(f"{name}_{unit}" if unit else name, metric.name, unit, metric.better, metric.text)]


def _at_tolerances(metric: Metric, unit: str, tolerances: dict[str, float]) -> list[Measure]:
    distinct = sorted(set(tolerances.values()))
    return [
        Measure(
            f"{metric.name}_{tolerance:g}{unit}",
            metric.name,
            "",
            metric.better,
            f"{metric.text} ({tolerance:g} {unit})",
            tuple(s for s, t in tolerances.items() if t == tolerance) if len(distinct) > 1 else None,
        )
        for tolerance in distinct
    ]
