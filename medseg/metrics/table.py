"""METRICS: every figure that an evaluation can give, and what it says where a mask is empty. A new metric is a new row."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from medseg.metrics import overlap
from medseg.metrics.pair import Frame, StructurePair
from medseg.metrics.rand import adapted_rand_error
from medseg.metrics.surface import hausdorff, surface_dice

UnitKind = Literal["", "length", "size"]  # a share; mm or pixels; ml, mm2, pixels or voxels
Better = Literal["higher", "lower", ""]
# The scan's diagonal; the measured figure; the measured figure, or 0 without a prediction.
WorstValue = float | Literal["diagonal", "measured", "measured or 0"]
STANDARD = "standard"


@dataclass(frozen=True)
class Metric:
    """One figure of one structure in one case.

    Args:
        name: in configurations and, with the unit, in tables.
        unit: kind of unit.
        better: which way is better; empty for a figure that is neither, such as a volume.
        when_both_empty: what the convention `worst` writes where the structure is in neither mask.
        when_one_empty: what `worst` writes where it is in one only, or where there is no usable prediction at all.
        function: the figure as defined; NaN where its definition divides by zero or lacks a surface.
        text: what it is, for the reader of a report.
        standard: measured where the configuration names no metrics.
        at_tolerance: its name carries the tolerance.
    """

    name: str
    unit: UnitKind
    better: Better
    when_both_empty: WorstValue
    when_one_empty: WorstValue
    function: Callable[[StructurePair], float]
    text: str
    standard: bool = True
    at_tolerance: bool = False


def _hd95(pair: StructurePair) -> float:
    return math.nan if pair.distances is None else hausdorff(pair.distances, 95)


def _surface_dice(pair: StructurePair) -> float:
    if pair.distances is not None:
        return surface_dice(pair.distances, pair.tolerance)
    # With one surface there is nothing within reach of it; with none there is no share to speak of.
    return 0.0 if pair.counts.reference or pair.counts.prediction else math.nan


def _adapted_rand_error(pair: StructurePair) -> float:
    return adapted_rand_error(*pair.masks(), pair.ignored)


def _volume(pair: StructurePair, voxels: int) -> float:
    return voxels * pair.frame.voxel_size(pair.grid)


_ROWS = (
    Metric("dice", "", "higher", 1.0, 0.0, lambda p: overlap.dice(p.counts), "Dice similarity coefficient"),
    Metric("iou", "", "higher", 1.0, 0.0, lambda p: overlap.iou(p.counts), "Intersection over union (Jaccard index)"),
    Metric(
        "precision", "", "higher", 1.0, 0.0, lambda p: overlap.precision(p.counts), "Share of the predicted voxels that are right"
    ),
    Metric(
        "sensitivity",
        "",
        "higher",
        1.0,
        0.0,
        lambda p: overlap.sensitivity(p.counts),
        "Share of the reference voxels that are found",
    ),
    Metric(
        "reference_volume", "size", "", "measured", "measured", lambda p: _volume(p, p.counts.reference), "Size in the reference"
    ),
    Metric(
        "predicted_volume",
        "size",
        "",
        "measured",
        "measured or 0",
        lambda p: _volume(p, p.counts.prediction),
        "Size in the prediction",
    ),
    Metric(
        "hd95",
        "length",
        "lower",
        0.0,
        "diagonal",
        _hd95,
        "95 % Hausdorff distance: the larger of the two directed 95th percentiles of the distances between the surfaces, by area",
    ),
    Metric(
        "surface_dice",
        "",
        "higher",
        1.0,
        0.0,
        _surface_dice,
        "Surface Dice: share of both surfaces, by area, within the tolerance of each other",
        at_tolerance=True,
    ),
    Metric(
        "adapted_rand_error",
        "",
        "lower",
        0.0,
        1.0,
        _adapted_rand_error,
        "Adapted Rand error of the cells that a membrane encloses (1 - F score of pixel pairs)",
        standard=False,
    ),
)
METRICS: dict[str, Metric] = {metric.name: metric for metric in _ROWS}


def metric_names(names: Sequence[str]) -> list[str]:
    """The names with `standard` written out, each once. Raises: ValueError naming one that does not exist."""
    found: dict[str, None] = {}
    for name in names:
        if name != STANDARD and name not in METRICS:
            raise ValueError(f"no metric `{name}` (known: {', '.join([STANDARD, *METRICS])})")
        found |= dict.fromkeys([m.name for m in _ROWS if m.standard] if name == STANDARD else [name])
    return list(found)


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


def measures_for(metrics: Sequence[str], frame: Frame, tolerances: dict[str, float]) -> list[Measure]:
    """The columns of an evaluation.

    Args:
        metrics: keys of METRICS.
        tolerances: of the surface Dice, for each structure. Different ones make different columns.
    """
    return [measure for name in metrics for measure in _measures(METRICS[name], frame, tolerances)]


def _measures(metric: Metric, frame: Frame, tolerances: dict[str, float]) -> list[Measure]:
    if metric.at_tolerance:
        unit = frame.length_unit
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
    unit = {"": "", "length": frame.length_unit, "size": frame.size_unit}[metric.unit]
    name = metric.name.replace("volume", "area") if frame.planar else metric.name
    return [Measure(f"{name}_{unit}" if unit else name, metric.name, unit, metric.better, metric.text)]
