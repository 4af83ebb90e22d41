"""What a report shows."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from medseg.core.config import Section

Plane = Literal["axial", "coronal", "sagittal"]


class ReportConfig(Section):
    """Section `report`.

    Args:
        title: by default the run's name.
        gallery_cases: how many of the worst, of the median and of the best cases are shown for each structure, of those in which
            it was missed and of those in which it is not.
        gallery_pictures: how many cases are drawn at most, all models together; those that stand for most come first.
        planes: of the gallery's volumes.
        channel: which image channel the gallery shows; by default the first, or colour where a 2D picture has three.
        window_percentiles: intensities shown as black and as white. By default the 1st and 99th, and for a CT the window of lung,
            soft tissue or bone that suits the structure.
        patient_ids: whether patients' identifiers stand in the report's tables; without them it can be passed on more freely.
        readers: a folder that `medseg readers` has written: how far readers agree is then shown beside the models.
        pdf: whether report.pdf is written, where WeasyPrint or Chromium is installed.
    """

    title: str | None = None
    gallery_cases: int = Field(default=1, ge=0, le=10)
    gallery_pictures: int = Field(default=24, ge=1, le=500)
    planes: list[Plane] = Field(default=["axial", "coronal", "sagittal"], min_length=1)
    channel: str | None = None
    window_percentiles: tuple[float, float] = (1, 99)
    patient_ids: bool = False
    readers: Path | None = None
    pdf: bool = True

    @model_validator(mode="after")
    def _ordered(self) -> ReportConfig:
        low, high = self.window_percentiles
        if not 0 <= low < high <= 100:
            raise ValueError("`window_percentiles`: two numbers from 0 to 100, the smaller first")
        if len(set(self.planes)) < len(self.planes):
            raise ValueError("`planes` names one plane twice")
        return self
