"""How predictions are made."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from medseg.core.config import Section

SplitName = Literal["train", "val", "test"]
Precision = Literal["auto", "float32", "bfloat16"]
Device = Literal["auto", "cpu", "cuda"]
Runtime = Literal["auto", "torch", "openvino"]


class EngineConfig(Section):
    """What decides how a mask is made, and on what.

    Args:
        overlap: share of the patch that neighbouring windows have in common.
        mirror: average over mirror images, along the axes that the model allows.
        batch: windows that go through the network together; by default one on a CPU, and on a GPU as many as its memory
            holds. It changes speed only.
        precision: `auto` is bfloat16 where the machine computes in it and the model's own figures allow it, else float32.
        device: `auto` is the GPU where there is one.
        runtime: what runs the network; `auto` is OpenVINO on a CPU, where it is installed, and PyTorch on a GPU.
        workers: processes that segment scans side by side; each holds the model.
        skip_air: leave windows out that hold nothing but air, where the training cases prove that there is nothing to find: their
            voxels are darker than any that was ever inside a structure.
        probabilities: write the probability of each structure too.
    """

    overlap: float = Field(0.5, ge=0, lt=1)
    mirror: bool = False
    batch: int | None = Field(None, ge=1)
    precision: Precision = "auto"
    device: Device = "auto"
    runtime: Runtime = "auto"
    workers: int = Field(1, ge=1)
    skip_air: bool = True
    probabilities: bool = False


class SegmentConfig(EngineConfig):
    """The options of `medseg segment`. `output_format`: the scan's own family (for DICOM NIfTI), or a DICOM object."""

    output_format: Literal["same", "dicom-seg", "rtstruct"] = "same"


class PredictConfig(EngineConfig):
    """Section `predict`. `split`: whose cases are predicted, one name or a list."""

    split: list[SplitName] = Field(["test"], min_length=1)

    @field_validator("split", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value

    @property
    def engine(self) -> SegmentConfig:
        """The settings without the choice of cases."""
        return SegmentConfig(**self.model_dump(exclude={"split"}))
