"""How an evaluation measures and resamples."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field, field_validator

from medseg.core.config import Section
from medseg.core.errors import ConfigError
from medseg.core.limits import available_cores
from medseg.metrics.table import STANDARD, metric_names

CASES_PER_WORKER = 8  # starting a worker process takes about as long as measuring a few cases


class EvaluateConfig(Section):
    """Section `evaluate`.

    Args:
        metrics: names in METRICS; `standard` stands for all that are measured by default.
        surface_tolerance: how far apart surfaces may lie in the surface Dice, in mm (pixels where no size is known): one
            figure, or one for each structure (or region). Set it to the disagreement of two human readers; 2 is a common start
            in CT and MR.
        bootstrap_resamples: draws behind each confidence interval.
        confidence: of the intervals.
        workers: processes; by default one for every eight cases, at most one a core.
    """

    metrics: list[str] = Field(default_factory=lambda: metric_names([STANDARD]), min_length=1)
    surface_tolerance: float | dict[str, float] = 2.0
    bootstrap_resamples: int = Field(10_000, ge=100)
    confidence: float = Field(0.95, gt=0, lt=1)
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

    def tolerances(self, structures: Sequence[str]) -> dict[str, float]:
        """The tolerance for each structure. Raises: ConfigError where the names do not match the structures."""
        if not isinstance(self.surface_tolerance, dict):
            return dict.fromkeys(structures, self.surface_tolerance)
        for name in sorted({*structures} ^ {*self.surface_tolerance}):
            fault = "names no tolerance for" if name in structures else "names something that is no structure:"
            raise ConfigError(f"evaluate: `surface_tolerance` {fault} `{name}`; give one for each of {', '.join(structures)}.")
        return {name: self.surface_tolerance[name] for name in structures}

    def processes(self, n_cases: int) -> int:
        """Worker processes for so many cases."""
        return self.workers or max(1, min(available_cores(), n_cases // CASES_PER_WORKER))
