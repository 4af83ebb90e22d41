"""How an evaluation measures and resamples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field, field_validator

from medseg.core.config import Section
from medseg.core.errors import ConfigError
from medseg.core.limits import available_cores
from medseg.evaluation.intervals import CONFIDENCE
from medseg.metrics.pair import LESION_OVERLAP
from medseg.metrics.table import METRICS, metric_names

CASES_PER_WORKER = 8  # starting a worker process takes about as long as measuring a few cases


class EvaluateConfig(Section):
    """Section `evaluate`.

    Args:
        metrics: names in METRICS, or of its groups: standard (what is measured by default), overlap, surface, lesions, instances,
            membranes, warping, topology, calibration.
        surface_tolerance: how far apart surfaces may lie in the surface Dice, in mm (pixels where no size is known): one
            figure, or one for each structure (or region). Set it to the disagreement of two human readers; 2 is a common start
            in CT and MR.
        lesion_overlap: IoU from which on a lesion (a connected component) is found.
        bootstrap_resamples: draws behind each confidence interval.
        confidence: of the intervals.
        non_inferiority_margin: for a metric (`dice`, or a column such as `hd95_mm`) how much worse, in its unit, a model may be
            and still count as not inferior: one figure, or one for each structure. Comparisons then give a verdict.
        subgroups: columns of the manifest (or of the table of cases) to sum up in groups, as a list, or as a mapping to where
            numbers are cut; by default every column. An empty list: none.
        resample: `nearest` lays predictions on other voxels than the reference's onto these by nearest neighbour; by default
            such a case is a row `grid_mismatch`.
        missing_structures: `empty` takes a structure that has no file in its case's folder (or no segment) for one that is
            not there, as tools leave it that write a tumour only where they find one; by default such a case is `unreadable`.
        workers: processes; by default one for every eight cases, at most one a core.
    """

    metrics: list[str] = Field(default_factory=lambda: metric_names(["standard"]), min_length=1)
    surface_tolerance: float | dict[str, float] = 2.0
    lesion_overlap: float = Field(LESION_OVERLAP, gt=0, le=1)
    bootstrap_resamples: int = Field(10_000, ge=100)
    confidence: float = Field(CONFIDENCE, gt=0, lt=1)
    non_inferiority_margin: dict[str, float | dict[str, float]] = Field(default_factory=dict)
    subgroups: list[str] | dict[str, list[float] | None] | None = None
    resample: Literal["none", "nearest"] = "none"
    missing_structures: Literal["unreadable", "empty"] = "unreadable"
    workers: int | None = Field(None, ge=1)

    @field_validator("metrics")
    @classmethod
    def _known(cls, names: list[str]) -> list[str]:
        return metric_names(names)

    @field_validator("surface_tolerance")
    @classmethod
    def _not_negative(cls, value: float | dict[str, float]) -> float | dict[str, float]:
        for tolerance in value.values() if isinstance(value, dict) else [value]:
            if not 0 <= tolerance < float("inf"):
                raise ValueError(f"a tolerance is a distance of at least 0, not {tolerance:g}")
        return value

    @field_validator("non_inferiority_margin")
    @classmethod
    def _margins(cls, margins: dict[str, float | dict[str, float]]) -> dict[str, float | dict[str, float]]:
        for name, value in margins.items():
            if not is_metric(name):
                raise ValueError(f"no metric `{name}` to have a margin (known: {', '.join(METRICS)})")
            for margin in value.values() if isinstance(value, dict) else [value]:
                if not 0 < margin < float("inf"):
                    raise ValueError(f"the margin of `{name}` is a figure above 0, not {margin:g}")
        return margins

    def tolerances(self, structures: Sequence[str]) -> dict[str, float]:
        """The tolerance for each structure. Raises: ConfigError where the names do not match the structures."""
        if not isinstance(self.surface_tolerance, dict):
            return dict.fromkeys(structures, self.surface_tolerance)
        for name in sorted({*structures} ^ {*self.surface_tolerance}):
            fault = "names no tolerance for" if name in structures else "names something that is no structure:"
            raise ConfigError(f"evaluate: `surface_tolerance` {fault} `{name}`; give one for each of {', '.join(structures)}.")
        return {name: self.surface_tolerance[name] for name in structures}

    @property
    def bands(self) -> dict[str, list[float]]:
        """Where the numbers of a column are cut, of those whose configuration says so."""
        stated = self.subgroups if isinstance(self.subgroups, dict) else {}
        return {name: edges for name, edges in stated.items() if edges}

    def processes(self, n_cases: int) -> int:
        """Worker processes for so many cases."""
        return self.workers or max(1, min(available_cores(), n_cases // CASES_PER_WORKER))


def is_metric(name: str) -> bool:
    """True for a metric's name and for its column in a table, which carries the unit or the tolerance too."""
    return any(name == metric or name.startswith(f"{metric}_") for metric in METRICS)
