"""How predictions are made."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from medseg.core.config import Section

SplitName = Literal["train", "val", "test"]
Precision = Literal["auto", "float32", "bfloat16"]
Device = Literal["auto", "cpu", "cuda"]


class EngineConfig(Section):
    """What decides how a mask is made, and on what; the options of `medseg segment`.

    Args:
        overlap: share of the patch that neighbouring windows have in common.
        mirror: average over mirror images, along the axes that the model allows.
        batch: windows that go through the network together; by default the plan's batch size. It changes speed only.
        precision: `auto` is float32 on a CPU and bfloat16 on a GPU that has it.
        device: `auto` is the GPU where there is one.
        workers: processes that segment scans side by side; each holds the model.
    """

    overlap: float = Field(0.5, ge=0, lt=1)
    mirror: bool = False
    batch: int | None = Field(None, ge=1)
    precision: Precision = "auto"
    device: Device = "auto"
    workers: int = Field(1, ge=1)


class PredictConfig(EngineConfig):
    """Section `predict`. `split`: whose cases are predicted, one name or a list."""

    split: list[SplitName] = Field(["test"], min_length=1)

    @field_validator("split", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value

    @property
    def engine(self) -> EngineConfig:
        """The settings without the choice of cases."""
        return EngineConfig(**self.model_dump(exclude={"split"}))
