"""What a run is told about its data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from medseg.core.config import Millimetres, Section

SamplingUnit = Literal["patient", "tile", "slice", "image"]
Modality = Literal["ct", "mr", "microscopy", "rgb", "other"]


class DataConfig(Section):
    """Section `data`. Relative paths count from the working folder.

    Args:
        name: the data set; by default the run's name.
        root: what the manifest's paths count from; by default `data/<name>`, where `medseg fetch` puts it.
        manifest: the CSV of cases; by default `data_manifests/<name>.csv`.
        spacing_mm: voxel size along X, Y, Z for files that state none (a single slice is 1 mm thick); without it their lengths
            are pixels.
        sampling_unit: what intervals are over: patients, or tiles, slices or images where nobody is named.
        modality: decides how intensities are normalised; a list gives one for each channel.
        val_fraction, test_fraction: shares of the patients (or units) drawn where the manifest's `split` is empty. With `folds`
            nothing is drawn for test, and `val_fraction` of the other folds' patients validate each fold's model.
        split_seed: of these draws, and of the folds; by default the run's `seed`.
        stratify_by: columns of the manifest whose values each of the `folds` gets in like shares.
        note: a sentence that every report of this data must carry.
        citation, licence: where the data come from and how they may be used.
    """

    name: str = ""
    root: Path | None = None
    manifest: Path | None = None
    spacing_mm: tuple[Millimetres, Millimetres, Millimetres] | None = None
    sampling_unit: SamplingUnit = "patient"
    modality: Modality | list[Modality] = "other"
    val_fraction: float = Field(0.1, gt=0, lt=1)
    test_fraction: float = Field(0.2, ge=0, lt=1)
    split_seed: Annotated[int, Field(ge=0)] | None = None
    stratify_by: list[str] = []
    note: str = ""
    citation: str = ""
    licence: str = ""
