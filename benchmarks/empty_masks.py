"""What a missed structure, an invented one and two empty masks come to: ours beside MONAI, surface-distance and nnU-Net.

    python benchmarks/empty_masks.py [--nnunet PYTHON_THAT_HAS_NNUNET] > benchmarks/results/empty_masks.json

Every library is called as its documentation shows. The mean is over four cases: one perfect, one missed, one invented, one empty
in both masks. A table goes to standard error and JSON to standard output.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk  # noqa: N813
import surface_distance
import torch
from monai.metrics import DiceMetric, HausdorffDistanceMetric, SurfaceDiceMetric

from medseg.core.grid import Grid
from medseg.core.labels import LabelScheme, Structure
from medseg.evaluation.case import Ruler, evaluate_case
from medseg.evaluation.summary import EMPTY
from medseg.metrics.measures import measures_for
from medseg.metrics.pair import Frame

CASES = {"perfect": (1, 1), "missed": (1, 0), "invented": (0, 1), "empty in both": (0, 0)}
FIGURES = ("dice", "hd95", "surface_dice")
_NNUNET = """
import json, sys
from nnunetv2.evaluation.evaluate_predictions import compute_metrics_on_folder
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
found = compute_metrics_on_folder(sys.argv[1], sys.argv[2], None, SimpleITKIO(), ".nii.gz", [1], None, num_processes=1)
dice = {case["reference_file"].split("/")[-1][:-7]: case["metrics"][1]["Dice"] for case in found["metric_per_case"]}
print(json.dumps({"cases": dice, "mean": found["mean"][1]["Dice"]}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nnunet", help="a Python interpreter that has nnunetv2")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    masks = {name: (ball(reference), ball(prediction)) for name, (reference, prediction) in CASES.items()}
    result = {"ours, worst": ours(masks, "worst"), "ours, defined": ours(masks, "defined")}
    result |= {"MONAI": monai(masks), "surface-distance": deepmind(masks)}
    if arguments.nnunet:
        result["nnU-Net"] = nnunet(masks, arguments.nnunet)
    for name, figures in result.items():
        for figure, values in figures.items():
            print(f"{name:18}{figure:14}" + "".join(f"{v!s:>16}" for v in values.values()), file=sys.stderr)
    json.dump(result, sys.stdout, indent=2)


def ball(present: int) -> np.ndarray:
    """(24, 24, 24) uint8 with a ball, or empty."""
    places = np.indices((24, 24, 24)) - 12
    return ((places**2).sum(0) < 36).astype(np.uint8) * np.uint8(present)


def shown(value: float) -> float | str:
    return "undefined" if np.isnan(value) else "infinite" if np.isinf(value) else round(float(value), 3)


def with_mean(values: dict[str, float], mean: float) -> dict[str, Any]:
    return {name: shown(value) for name, value in values.items()} | {"mean": shown(mean)}


def ours(masks: dict[str, tuple[np.ndarray, np.ndarray]], convention: str) -> dict[str, Any]:
    scheme = LabelScheme(structures=[Structure(name="ball", id=1)])
    frame, grid = Frame(physical=True, planar=False), Grid((24, 24, 24), np.eye(4))
    measures = measures_for(FIGURES, frame, {"ball": 2.0})
    ruler = Ruler(scheme, tuple(measures), frame, (2.0,))
    rows = {name: evaluate_case(*pair, grid, ruler)[0] for name, pair in masks.items()}
    result = {}
    for measure in measures:
        values = {name: row[measure.column] for name, row in rows.items()}
        if convention == "worst":
            values = {n: measure.worst(v, EMPTY.get(rows[n]["status"], "one"), grid.diagonal) for n, v in values.items()}
        result[measure.metric] = with_mean(values, float(np.nanmean(list(values.values()))))
    return result


def monai(masks: dict[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, Any]:
    def onehot(mask: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.stack([mask == 0, mask == 1])[None]).float()

    made = {
        "dice": lambda: DiceMetric(include_background=False),
        "hd95": lambda: HausdorffDistanceMetric(include_background=False, percentile=95),
        "surface_dice": lambda: SurfaceDiceMetric(class_thresholds=[2.0], include_background=False),
    }
    result = {}
    for figure, make in made.items():
        metric = make()
        values = {name: float(metric(onehot(p), onehot(r))) for name, (r, p) in masks.items()}
        result[figure] = with_mean(values, float(metric.aggregate()))
    return result


def deepmind(masks: dict[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, Any]:
    np.Inf, np.NaN = np.inf, np.nan  # names that numpy 2 dropped and surface-distance 0.1 asks for where a mask is empty
    dice, hd95, surface = {}, {}, {}
    for name, (r, p) in masks.items():
        one, other = r > 0, p > 0
        dice[name] = float(surface_distance.compute_dice_coefficient(one, other))
        found = surface_distance.compute_surface_distances(one, other, (1.0, 1.0, 1.0))
        hd95[name] = float(surface_distance.compute_robust_hausdorff(found, 95))
        surface[name] = float(surface_distance.compute_surface_dice_at_tolerance(found, 2.0))
    return {f: with_mean(v, float(np.nanmean(list(v.values())))) for f, v in zip(FIGURES, (dice, hd95, surface), strict=True)}


def nnunet(masks: dict[str, tuple[np.ndarray, np.ndarray]], python: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        for place, side in enumerate(("r", "p")):
            (Path(folder) / side).mkdir()
            for name, pair in masks.items():
                sitk.WriteImage(sitk.GetImageFromArray(pair[place]), str(Path(folder) / side / f"{name}.nii.gz"))
        command = [python, "-c", _NNUNET, f"{folder}/r", f"{folder}/p"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    return {"dice": with_mean({name: found["cases"][name] for name in masks}, found["mean"])}


if __name__ == "__main__":
    main()
