"""Section `plan`: what the user decides in place of the rules."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from medseg.core.config import Millimetres, Section
from medseg.data.normalise import Normalisation
from medseg.data.preprocess import Order

Size = Annotated[int, Field(ge=1)]
Axis = Annotated[int, Field(ge=0, le=2)]


class PlanConfig(Section):
    """Values left out are derived from the fingerprint of the training cases; `plan.json` gives the reason for each.

    Args:
        spacing_mm: target voxel size along right, anterior, superior (pixels where the data are not physical).
        crop_nonzero: whether scans are cut to the box of their non-zero voxels.
        normalisation: a rule for each channel as plan.json writes it, such as {kind: case, clip: true} or
            {kind: fixed, low: -160, high: 240, mean: 40, std: 80}; otherwise it follows from `data.modality`.
        order: interpolation of images, 0 nearest, 1 linear or 3 cubic: one for all axes, or one for each.
        patch_voxels: what the network sees at once; 1 along one axis makes a 2D network.
        batch_size: patches a step.
        memory_gb: what a training step may take, in 10^9 bytes; by default 80 % of a GPU's memory or half of the machine's (of
            its control group's, where that is less), and no more than 10. It bounds patch, batch and width.
        flips: axes along which pictures may be mirrored, in training and at test time.
        workers: processes that prepare cases; by default one a core.
    """

    spacing_mm: tuple[Millimetres, Millimetres, Millimetres] | None = None
    crop_nonzero: bool | None = None
    normalisation: list[Normalisation] | None = None
    order: Order | tuple[Order, Order, Order] | None = None
    patch_voxels: tuple[Size, Size, Size] | None = None
    batch_size: Size | None = None
    memory_gb: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    flips: list[Axis] | None = None
    workers: Size | None = None
