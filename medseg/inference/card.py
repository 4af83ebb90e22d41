"""The model card: what a person should know before using a model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import medseg
from medseg.core.labels import LabelScheme
from medseg.data.normalise import FixedNormalisation
from medseg.data.preprocess import Preprocessing
from medseg.inference.bundle import Origin
from medseg.inference.postprocess import Postprocessing
from medseg.models.registry import MODELS
from medseg.planning.fingerprint import Fingerprint
from medseg.planning.plan import Plan

LEAST_CASES_FOR_AIR = 10
AIR_MARGIN = 50.0  # HU below the darkest voxel of a structure
AXES = ("left-right", "posterior-anterior", "inferior-superior")


def fingerprint_ranges(fingerprint: Fingerprint) -> dict[str, Any]:
    """Least and greatest shape and voxel size of the training scans, and the spread of their foreground intensities.

    Returns: {"cases", "unit", "shape": [least, greatest], "spacing": [least, greatest], "foreground": [{"low", "high"}, ...]}.
    """
    quantiles = np.array([[c.quantiles for c in case.foreground] for case in fingerprint.cases if case.foreground], float)
    return {
        "cases": len(fingerprint.cases),
        "unit": "mm" if fingerprint.physical else "px",
        "shape": _range([case.shape for case in fingerprint.cases]),
        "spacing": _range([case.spacing for case in fingerprint.cases]),
        # The first and the last are the 0.5 and 99.5 percentiles.
        "foreground": [{"low": float(c[:, 0].min()), "high": float(c[:, -1].max())} for c in quantiles.swapaxes(0, 1)]
        if len(quantiles)
        else [],
    }


def air_below(fingerprint: Fingerprint, preprocessing: Preprocessing) -> list[float] | None:
    """For each channel, the intensity below which no voxel of a structure was ever seen: a window all of it below is left out.

    Returns: None where the training cases prove nothing: where intensities mean another thing in each scan (all but CT), where
        voxels are ignored or some case was not measured, and of fewer than 10 cases with structures.
    """
    cases = [case.foreground for case in fingerprint.cases if case.foreground]
    fixed = all(isinstance(rule, FixedNormalisation) for rule in preprocessing.normalisation)
    whole = all(sum(case.class_voxels) == math.prod(case.shape) for case in fingerprint.cases)  # no voxel is ignored
    lowest = [[channel.lowest for channel in case] for case in cases]
    if not fixed or not whole or len(cases) < LEAST_CASES_FOR_AIR or any(value is None for case in lowest for value in case):
        return None
    return [float(value) - AIR_MARGIN for value in np.array(lowest, float).min(0)]


def _range(values: list[tuple[Any, ...]]) -> list[list[Any]]:
    array = np.array(values)
    return [array.min(0).tolist(), array.max(0).tolist()]


def model_card(
    model: str,
    architecture: str,
    plan: Plan,
    labels: LabelScheme,
    data_name: str,
    n_train: int,
    n_val: int,
    validation_dice: Mapping[str, float],
    note: str = "",
    citation: str = "",
    licence: str = "",
    postprocessing: Postprocessing | None = None,
    temperature: float | Sequence[float] | None = None,
    finish: Mapping[str, Any] | None = None,
    started_from: Origin | None = None,
) -> str:
    """The card of one model, Markdown.

    Args:
        validation_dice: structure -> mean Dice over the validation cases, on the prepared grid; NaN where none holds it.
        note, citation, licence: what the run's `data` section says of the data.
        postprocessing, temperature, finish, started_from: as in the model's description.
    """
    unit = "mm" if plan.preprocessing.physical else "px"
    spacing = (
        " x ".join(f"{s:g}" for s in plan.preprocessing.spacing) + f" {unit}" if plan.preprocessing.spacing else "each scan's own"
    )
    rows = [
        ("Architecture", f"{architecture} ({MODELS[architecture].cite})"),
        ("Input", f"{plan.n_channels} channel(s): {', '.join(plan.channels)}"),
        ("Structures", ", ".join(f"{s.name} ({s.id})" for s in labels.structures)),
        *([("Regions", "; ".join(f"{r.name}: {', '.join(r.structures)}" for r in labels.regions))] if labels.regions else []),
        ("Voxel size", spacing),
        ("Patch", " x ".join(map(str, plan.patch_voxels)) + " voxels"),
        ("May be mirrored", ", ".join(AXES[a] for a in plan.flips) or "along no axis"),
        ("Trained on", f"{data_name}: {n_train} cases, {n_val} more for validation"),
        ("Started from", f"{started_from.model} (sha256 {started_from.sha256})" if started_from else "random weights"),
        ("Postprocessing", _postprocessing(postprocessing, "mm3" if plan.preprocessing.physical else "voxels")),
        ("Temperature", _temperature(temperature)),
        ("Data licence", licence or "not stated"),
        ("Cite", citation or "not stated"),
        ("medseg", medseg.__version__),
    ]
    lines = [
        f"# {model}",
        "",
        "**For research use.** Not a medical device; not for diagnosis or treatment.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {_cell(value)} |" for name, value in rows),
        "",
        "## Validation",
        "",
        "Mean Dice over the validation cases. They chose the checkpoint, so unseen cases will score lower; expect the model to",
        "fail on scans that differ from those it was trained on.",
        "",
        "| Structure | Dice |",
        "|---|---|",
        *(f"| {_cell(name)} | {'undefined' if math.isnan(dice) else f'{dice:.3f}'} |" for name, dice in validation_dice.items()),
    ]
    lines += _finish(finish or {})
    return "\n".join([*lines, *(["", f"Note: {note}"] if note else [])]) + "\n"


def _postprocessing(postprocessing: Postprocessing | None, unit: str) -> str:
    if postprocessing is None:
        return "none"
    return "; ".join(f"{name}: {rule.text(unit)}" for name, rule in postprocessing.rules.items())


def _temperature(temperature: float | Sequence[float] | None) -> str:
    values = [1.0 if temperature is None else temperature] if not isinstance(temperature, Sequence) else temperature
    return ", ".join(f"{t:.3g}" for t in values)


def _finish(figures: Mapping[str, Any]) -> list[str]:
    """The lines on what postprocessing and temperature changed, on the validation cases that chose them."""
    named = {
        "dice": "mean Dice (absent in both: 1)",
        "cross_entropy": "cross-entropy a voxel",
        "calibration_error": "expected calibration error",
    }
    rows = [f"| {text} | {figures[k]['before']:.4f} | {figures[k]['after']:.4f} |" for k, text in named.items() if figures.get(k)]
    return ["", "| Postprocessing and temperature | before | after |", "|---|---|---|", *rows] if rows else []


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
