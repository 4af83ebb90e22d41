"""What a report shows."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from medseg.core.config import Section

Plane = Literal["axial", "coronal", "sagittal"]


class ReportConfig(Section):
    """Section `report`.

    Args:
        title: by default the run's name.
        gallery_cases: how many of the best, of the median and of the worst cases are shown for each model.
        planes: of the gallery's volumes.
        channel: which image channel the gallery shows; by default the first, or colour where a 2D picture has three.
        window_percentiles: intensities shown as black and as white.
    """

    title: str | None = None
    gallery_cases: int = Field(default=1, ge=0, le=10)
    planes: list[Plane] = Field(default=["axial", "coronal", "sagittal"], min_length=1)
    channel: str | None = None
    window_percentiles: tuple[float, float] = (1, 99)

    @model_validator(mode="after")
    def _ordered(self) -> ReportConfig:
        low, high = self.window_percentiles
        if not 0 <= low < high <= 100:
            raise ValueError("`window_percentiles`: two numbers from 0 to 100, the smaller first")
        if len(set(self.planes)) < len(self.planes):
            raise ValueError("`planes` names one plane twice")
        return self
