"""Measuring masks, ours beside MONAI's metrics and DeepMind's surface-distance on the same masks, in one run.

    python benchmarks/evaluation.py [--work FOLDER] [--only speed,memory]

256 x 256 x 128 voxels with 20 structures, and a prediction bent by some voxels. MONAI is used as its documentation uses it: the
metric classes on one-hot masks, which lie ready and are not counted; surface-distance is called for each structure, with its
mask. Ours begins at the two arrays of class indices each time. Importing libraries is left out for all; so is the first round.
Overlap is all figures of overlap and size for every structure, where MONAI computes Dice alone; surface is HD95, ASSD and surface
Dice for every structure. The figures of all are compared: those of surface-distance are to be ours.

Memory is the peak of a process of its own that measures 512 x 512 x 400 voxels with 20 structures, one as large as the scan,
above the bytes of the two masks: Python and its libraries included, and above what stood before measuring began.

A table goes to standard error and JSON to standard output.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from medseg.core.grid import Grid
from medseg.core.record import machine, versions
from medseg.metrics import overlap
from medseg.metrics.pair import Frame, StructurePair, pair_structures
from medseg.metrics.surface import average_symmetric_surface_distance, hausdorff, surface_dice

Labels = npt.NDArray[np.uint8]
Figures = npt.NDArray[np.float64]

SHAPE, LARGE, STRUCTURES = (256, 256, 128), (512, 512, 400), 20
SPACING, TOLERANCE = (0.8, 0.8, 1.5), 2.0
ROUNDS = 5
OVERLAP = (
    *(overlap.dice, overlap.iou, overlap.precision, overlap.sensitivity, overlap.specificity, overlap.volume_similarity),
    *(overlap.volume_difference, overlap.absolute_volume_difference, overlap.relative_volume_difference),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, help="folder for the large masks; a temporary one where it is left out")
    parser.add_argument("--only", default="speed,memory")
    parser.add_argument("--process", choices=("ours", "nothing"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.process:
        print(json.dumps(_one_process(arguments.work, arguments.process)))
        return
    result: dict[str, Any] = {
        "machine": machine(),
        "versions": versions() | {"surface-distance": metadata.version("surface-distance")},
    }
    if "speed" in arguments.only:
        result["speed"] = speed()
    if "memory" in arguments.only:
        with tempfile.TemporaryDirectory() as folder:
            result["memory"] = memory(arguments.work or Path(folder))
    print(json.dumps(result, indent=2))


def speed() -> dict[str, Any]:
    """Seconds of each, taking turns, so that a machine that is busy for a while is busy for all."""
    import torch

    reference = phantom(SHAPE)
    prediction = bent(reference)
    one_hot = [torch.from_numpy(np.stack([m == k for k in range(STRUCTURES + 1)])[None]).float() for m in (prediction, reference)]
    ways: dict[str, Callable[[], Figures]] = {
        "ours overlap": lambda: our_overlap(reference, prediction),
        "ours surface": lambda: our_surfaces(reference, prediction),
        "monai dice": lambda: monai_dice(*one_hot),
        "monai surface": lambda: monai_surfaces(*one_hot),
        "surface-distance": lambda: their_surfaces(reference, prediction),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    figures: dict[str, Figures] = {}
    for _ in range(ROUNDS + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            figures[name] = way()
            seconds[name].append(time.perf_counter() - start)
    least = {name: min(times[1:]) for name, times in seconds.items()}  # what other work on the machine disturbs least
    rows = {
        "voxels of structures": round(float((reference > 0).mean()), 3),
        "dice of structures": [round(float(quantile), 3) for quantile in np.quantile(figures["ours overlap"][:, 0], (0, 0.5, 1))],
        "seconds": {name: round(value, 4) for name, value in least.items()},
        "monai dice / ours overlap": round(least["monai dice"] / least["ours overlap"], 1),
        "monai surface / ours": round(least["monai surface"] / least["ours surface"], 1),
        "surface-distance / ours": round(least["surface-distance"] / least["ours surface"], 1),
        "dice differ from monai's by": float(np.abs(figures["ours overlap"][:, 0] - figures["monai dice"]).max()),
        "surfaces differ from surface-distance's by": float(np.abs(figures["ours surface"] - figures["surface-distance"]).max()),
    }
    for name, value in rows.items():
        _tell(name, value)
    return rows


def memory(work: Path) -> dict[str, Any]:
    """Peak of a process that measures large masks, and of one that only loads them."""
    work.mkdir(parents=True, exist_ok=True)
    reference = phantom(LARGE, body=True)
    np.save(work / "reference.npy", reference)
    np.save(work / "prediction.npy", bent(reference))
    masks = 2 * reference.nbytes / 2**30
    peaks = {who: _peak(work, who) for who in ("nothing", "ours")}
    rows = {
        "the two masks, GiB": round(masks, 2),
        "peak, GiB": peaks["ours"]["gib"],
        "above the masks, GiB": round(peaks["ours"]["gib"] - masks, 2),
        "above what stood before, GiB": round(peaks["ours"]["gib"] - peaks["nothing"]["gib"], 2),
        "seconds": peaks["ours"]["seconds"],
    }
    for name, value in rows.items():
        _tell(f"512 x 512 x 400: {name}", value)
    return rows


def _peak(work: Path, who: str) -> dict[str, float]:
    command = [sys.executable, __file__, "--work", str(work), "--process", who]
    # Started by a small process: a child's peak counts from what its parent held.
    started = f"import subprocess, sys; sys.exit(subprocess.run({command!r}).returncode)"
    done = subprocess.run([sys.executable, "-c", started], capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _one_process(work: Path, who: str) -> dict[str, float]:
    reference, prediction = (np.load(work / f"{name}.npy") for name in ("reference", "prediction"))
    start = time.perf_counter()
    if who == "ours":
        our_overlap(reference, prediction)
        our_surfaces(reference, prediction)
    seconds = time.perf_counter() - start
    return {"gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2), "seconds": round(seconds, 2)}


def our_pairs(reference: Labels, prediction: Labels) -> list[StructurePair]:
    grid, frame = Grid(reference.shape, np.diag([*SPACING, 1.0])), Frame(physical=True, planar=False)
    measured = [[k] for k in range(1, STRUCTURES + 1)]
    return pair_structures(reference, prediction, grid, frame, measured, [TOLERANCE] * STRUCTURES)


def our_overlap(reference: Labels, prediction: Labels) -> Figures:
    return np.asarray([[figure(pair.counts) for figure in OVERLAP] for pair in our_pairs(reference, prediction)])


def our_surfaces(reference: Labels, prediction: Labels) -> Figures:
    """(structures, 3): HD95, ASSD and surface Dice."""
    found = [pair.distances for pair in our_pairs(reference, prediction)]
    return np.asarray(
        [[hausdorff(d, 95), average_symmetric_surface_distance(d), surface_dice(d, TOLERANCE)] for d in found if d is not None]
    )


def monai_dice(prediction: Any, reference: Any) -> Figures:
    from monai.metrics import DiceMetric

    return _aggregated(DiceMetric(include_background=False, reduction="none"), prediction, reference)


def monai_surfaces(prediction: Any, reference: Any) -> Figures:
    """(structures, 3), by MONAI's own conventions."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MONAI deprecates what it calls itself
        from monai.metrics import HausdorffDistanceMetric, SurfaceDiceMetric, SurfaceDistanceMetric

        metrics = (
            HausdorffDistanceMetric(percentile=95, reduction="none"),
            SurfaceDistanceMetric(symmetric=True, reduction="none"),
            SurfaceDiceMetric([TOLERANCE] * STRUCTURES, reduction="none"),
        )
        return np.stack([_aggregated(metric, prediction, reference, spacing=SPACING) for metric in metrics], 1)


def _aggregated(metric: Any, prediction: Any, reference: Any, **options: Any) -> Figures:
    metric(prediction, reference, **options)
    return np.asarray(metric.aggregate()[0], np.float64)


def their_surfaces(reference: Labels, prediction: Labels) -> Figures:
    """(structures, 3), by surface-distance; its two mean distances are pooled to the ASSD."""
    import surface_distance as peer

    rows = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it uses a namespace that scipy deprecates
        for k in range(1, STRUCTURES + 1):
            found = peer.compute_surface_distances(reference == k, prediction == k, SPACING)
            assd = np.average(peer.compute_average_surface_distance(found), weights=[found[a].sum() for a in _AREAS])
            dice = peer.compute_surface_dice_at_tolerance(found, TOLERANCE)
            rows.append([peer.compute_robust_hausdorff(found, 95), assd, dice])
    return np.asarray(rows)


_AREAS = ("surfel_areas_gt", "surfel_areas_pred")


def phantom(shape: tuple[int, int, int], body: bool = False, seed: int = 0) -> Labels:
    """Ellipsoids of many sizes, where they overlap the later over the earlier; with `body` the first is as large as the scan."""
    rng = np.random.default_rng(seed)
    size = np.asarray(shape)
    labels = np.zeros(shape, np.uint8)
    for k in range(1, STRUCTURES + 1):
        centre, radii = rng.uniform(0.2, 0.8, 3) * size, rng.uniform(0.06, 0.2, 3) * size
        if body and k == 1:
            centre, radii = size / 2, size * (0.47, 0.4, 0.6)
        low, high = np.maximum(centre - radii, 0).astype(int), np.minimum(centre + radii + 2, size).astype(int)
        box = tuple(slice(*side) for side in zip(low, high, strict=True))
        inside = sum(((a - c) / r) ** 2 for a, c, r in zip(np.ogrid[box], centre, radii, strict=True))
        labels[box][inside <= 1] = k
    return labels


def bent(labels: Labels, voxels: float = 2.5, seed: int = 1) -> Labels:
    """The labels moved by a field that varies smoothly, some `voxels` along each axis; made slab by slab."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(0, voxels, (3, 6, 6, 6)).astype(np.float32)
    result = np.empty_like(labels)
    for x in range(0, len(labels), 16):
        places = np.indices((min(16, len(labels) - x), *labels.shape[1:]), np.float32)
        places[0] += x
        scaled = [(p + 0.5) / n * 6 - 0.5 for p, n in zip(places, labels.shape, strict=True)]
        for place, field, n in zip(places, coarse, labels.shape, strict=True):
            place += ndimage.map_coordinates(field, scaled, order=1, mode="nearest")
            np.clip(np.rint(place, out=place), 0, n - 1, out=place)
        result[x : x + 16] = labels[tuple(places.astype(np.int32))]
    return result


def _tell(name: str, value: Any) -> None:
    print(f"{name:48s} {value}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
