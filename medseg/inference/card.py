"""The model card: what a person should know before using a model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

import medseg
from medseg.core.labels import LabelScheme
from medseg.models.registry import MODELS
from medseg.planning.fingerprint import Fingerprint
from medseg.planning.plan import Plan

AXES = ("left-right", "posterior-anterior", "inferior-superior")


def fingerprint_ranges(fingerprint: Fingerprint) -> dict[str, Any]:
    """Least and greatest shape and voxel size of the training scans, and the spread of their foreground intensities.

    Returns: {"cases", "unit", "shape": [least, greatest], "spacing": [least, greatest], "foreground": [{"low", "high"}, ...]}.
    """
    foreground = np.array([case.foreground for case in fingerprint.cases if case.foreground], float)
    return {
        "cases": len(fingerprint.cases),
        "unit": "mm" if fingerprint.physical else "px",
        "shape": _range([case.shape for case in fingerprint.cases]),
        "spacing": _range([case.spacing for case in fingerprint.cases]),
        # Columns 2 and 4 are the 0.5 and 99.5 percentiles.
        "foreground": [{"low": float(c[:, 2].min()), "high": float(c[:, 4].max())} for c in foreground.swapaxes(0, 1)]
        if len(foreground)
        else [],
    }


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
) -> str:
    """The card of one model, Markdown.

    Args:
        validation_dice: structure -> mean Dice over the validation cases, on the prepared grid; NaN where none holds it.
        note, citation, licence: what the run's `data` section says of the data.
    """
    unit = "mm" if plan.preprocessing.physical else "px"
    spacing = (
        " x ".join(f"{s:g}" for s in plan.preprocessing.spacing) + f" {unit}" if plan.preprocessing.spacing else "each scan's own"
    )
    rows = [
        ("Architecture", f"{architecture} ({MODELS[architecture].cite})"),
        ("Input", f"{plan.n_channels} channel(s): {', '.join(plan.channels)}"),
        ("Structures", ", ".join(f"{s.name} ({s.id})" for s in labels.structures)),
        ("Voxel size", spacing),
        ("Patch", " x ".join(map(str, plan.patch_voxels)) + " voxels"),
        ("May be mirrored", ", ".join(AXES[a] for a in plan.flips) or "along no axis"),
        ("Trained on", f"{data_name}: {n_train} cases, {n_val} more for validation"),
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
    return "\n".join([*lines, *(["", f"Note: {note}"] if note else [])]) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
