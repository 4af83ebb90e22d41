"""What bfloat16 costs: masks of the validation cases in it and in float32, once at the end of a training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from medseg.core.labels import IGNORE, LabelScheme
from medseg.core.progress import progress, say
from medseg.data.store import PreparedStore
from medseg.inference.bundle import Bundle
from medseg.inference.device import has_bfloat16
from medseg.inference.runtime import Arithmetic, Runtime, has_openvino, overhanging, ready
from medseg.inference.window import predict_logits
from medseg.metrics.overlap import confusion_matrix, counts_of, dice
from medseg.planning.machine import bfloat16_unit

MOST_CASES = 50
MOST_LOST = 0.001  # of a structure's mean Dice against the reference
LEAST_AGREEMENT = 0.99  # mean Dice of a structure between the two precisions
LEAST_VOXELS = 500  # of a structure whose agreement counts: of small ones a few voxels are one percent
OVERLAP = 0.5


def measure_precision(
    bundle: Bundle, store: PreparedStore, val_ids: Sequence[str], device: torch.device, cache: Path
) -> dict[str, Any] | None:
    """The figures that let `medseg segment` use bfloat16 unasked, or not.

    Args:
        bundle: the trained model.
        val_ids: whole cases of them are predicted, at most 50, evenly spread.
        cache: folder for converted networks.
    Returns: {"bfloat16": {"allowed", "runtime", "cases", "structures": {name: {"float32", "bfloat16", "agreement"}}}}: mean Dice
        against the reference in each, and between the two over the cases where the structure has more than 500 voxels. None where
        nothing can be said; the reason is told.
    """
    gpu, name = device.type == "cuda", bundle.description.model
    if reason := _why_not(bundle, device):
        say(f"train {name}: masks will be made in float32 unless stated otherwise, for {reason}")
        return None
    runtime: Runtime = "openvino" if not gpu and has_openvino() else "torch"
    runs = [ready(bundle, Arithmetic(runtime, precision, ""), device, cache) for precision in ("float32", "bfloat16")]
    some = list(val_ids)[:: -(-len(val_ids) // MOST_CASES)]
    rows = []
    with progress(f"train {name}: float32 and bfloat16", len(some)) as advance:
        for done, case_id in enumerate(some, start=1):
            case = store.open(case_id)
            image, reference = np.array(case.image), np.array(case.classes)
            answers = (predict_logits(run, image, bundle.plan.patch_voxels, OVERLAP, device=device) for run in runs)
            exact, rough = (bundle.labels.decide(logits) for logits in answers)
            rows.append(_compare(exact, rough, reference, bundle.labels))
            advance(done)
    found = _judged(np.array(rows), list(bundle.labels.measured)) | {"runtime": runtime, "cases": len(some)}
    _tell(name, found)
    return {"bfloat16": found}


def _why_not(bundle: Bundle, device: torch.device) -> str:
    """Why nothing can be said of bfloat16 here; empty where it can be measured."""
    if device.type == "cuda":
        return "" if has_bfloat16(device) else "the GPU has no bfloat16"
    if not bfloat16_unit():
        return "this processor has no bfloat16 to measure it with"
    return "this network has convolutions longer than the pictures that they see" if overhanging(bundle) else ""


def _compare(
    exact: npt.NDArray[np.uint8], rough: npt.NDArray[np.uint8], reference: npt.NDArray[np.uint8], labels: LabelScheme
) -> list[list[float]]:
    """For each structure or region: Dice of the float32 mask and of the bfloat16 mask, and between them."""
    seen = reference != IGNORE
    pairs = [(reference[seen], exact[seen]), (reference[seen], rough[seen]), (exact, rough)]
    matrices = [confusion_matrix(a, b, labels.n_classes) for a, b in pairs]
    row = []
    for classes in labels.measured.values():
        values = [dice(counts_of(matrix, classes)) for matrix in matrices]
        if np.isin(exact, classes).sum() <= LEAST_VOXELS:
            values[2] = math.nan
        row.append(values)
    return row


def _judged(values: npt.NDArray[np.float64], names: list[str]) -> dict[str, Any]:
    """Means over the cases, and whether they allow bfloat16.

    Args:
        values: (cases, structures, 3) as `_compare`.
    """
    # Where a structure is in neither of two masks, they agree; that counts where the other precision is not so right.
    values = values.copy()
    either = np.isnan(values[..., :2])
    values[..., :2][either & ~either.all(-1, keepdims=True)] = 1
    structures, allowed = {}, True
    for index, name in enumerate(names):
        float32, bfloat16, agreement = (_mean(column) for column in values[:, index].T)
        structures[name] = {"float32": _rounded(float32), "bfloat16": _rounded(bfloat16), "agreement": _rounded(agreement)}
        # NaN, where a structure is in no case or in none large enough, forbids nothing.
        allowed &= not (float32 - bfloat16 > MOST_LOST or agreement < LEAST_AGREEMENT)
    return {"allowed": allowed, "structures": structures}


def _tell(name: str, found: dict[str, Any]) -> None:
    figures = found["structures"].values()
    lost = max((s["float32"] - s["bfloat16"] for s in figures if s["float32"] is not None), default=0.0)
    agreement = min((s["agreement"] for s in figures if s["agreement"] is not None), default=math.nan)
    verdict = "masks may be made in it" if found["allowed"] else "masks will be made in float32 unless stated otherwise"
    say(f"train {name}: bfloat16 costs at most {lost:.4f} of a structure's Dice (agreement {agreement:.4f}); {verdict}")


def _mean(values: npt.NDArray[np.float64]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan


def _rounded(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 5)
