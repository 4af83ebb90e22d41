"""Milliseconds that augmentation takes on one thread: beside MONAI's, beside the bare samplings, and where the time goes.

    python benchmarks/augmentation.py --json augmentation.json

`monai/ours` of elastic + affine should be at least 8 for 96^3, and `ours/bare` at most 1.6: the deformation, the reading and the
types cost little beside sampling the image (linear) and the labels (nearest) on a grid that is ready.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Hashable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai import transforms as monai

from medseg.training import intensity
from medseg.training.augment import training_transforms
from medseg.training.config import AugmentationConfig
from medseg.training.elastic import RandElasticAffineCropd
from medseg.training.sampling import Size, spline_field

Row = dict[str, float]
KEYS = ["image", "classes"]
MODES = ("bilinear", "nearest")
ELASTIC = (1.0, (3, 6), (0.02, 0.1))
ROTATION, SCALING = (1.0, (-15.0, 15.0)), (1.0, (0.9, 1.1))
COLUMNS = ("ours", "monai", "bare_samplings", "monai/ours", "ours/bare")
STEPS = ("elastic_affine_crop", "noise", "blur", "brightness", "contrast", "low_resolution", "inverted_gamma", "gamma")
SAMPLES = 100


def milliseconds(functions: Mapping[str, Callable[[], Any]], repeats: int) -> Row:
    """The least of several times of each, taken in turns: what the work itself takes on a machine that does other things too."""
    least = dict.fromkeys(functions, float("inf"))
    for _ in range(repeats + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            least[name] = min(least[name], time.perf_counter() - start)
    return {name: round(seconds * 1e3, 2) for name, seconds in least.items()}


def pictures(size: tuple[int, ...]) -> dict[Hashable, Any]:
    image = torch.randn((1, *size), generator=torch.Generator().manual_seed(0))
    return {"image": image, "classes": (image > 1).to(torch.uint8)}


def spatial(size: tuple[int, ...], repeats: int) -> Row:
    """Elastic and affine at once: ours, MONAI's, and the two bare samplings of pictures on a grid that is ready."""
    data = pictures(size)
    ours = RandElasticAffineCropd(KEYS, size, MODES, elastic=ELASTIC, rotation=ROTATION, scaling=SCALING, shear=(1.0, 0.1))
    ours.set_random_state(0)
    same = {"prob": 1.0, "spatial_size": size, "mode": list(MODES), "padding_mode": "zeros"}
    affine = {"rotate_range": 0.26, "scale_range": 0.1, "shear_range": 0.1}
    if len(size) == 2:
        theirs: Any = monai.Rand2DElasticd(KEYS, spacing=(30, 30), magnitude_range=(1, 5), **same, **affine)
    else:
        theirs = monai.Rand3DElasticd(KEYS, sigma_range=(5, 8), magnitude_range=(100, 200), **same, **affine)
    theirs.set_random_state(0)
    bare = bare_samplings(ours, data)
    times = milliseconds({"ours": lambda: ours(data), "bare_samplings": bare}, repeats)
    times |= milliseconds({"monai": lambda: theirs(data)}, max(2, repeats // 4))
    ratios = {"monai/ours": times["monai"] / times["ours"], "ours/bare": times["ours"] / times["bare_samplings"]}
    return times | {name: round(value, 2) for name, value in ratios.items()}


def bare_samplings(transform: RandElasticAffineCropd, data: Mapping[Hashable, Any]) -> Callable[[], None]:
    """Nothing but the two calls of `grid_sample`, on float32 boxes and a grid of that transform."""
    _, where = transform.place(data)
    boxes = [transform.read(data[key], where).float()[None] for key in KEYS]
    assert where.control is not None
    grid = spline_field(where.control, transform.patch)[None]
    if where.flat is not None:
        boxes, grid = [box.squeeze(where.flat + 2) for box in boxes], grid.squeeze(where.flat + 1)

    def run() -> None:
        for box, mode in zip(boxes, MODES, strict=True):
            F.grid_sample(box, grid, mode=mode, padding_mode="zeros", align_corners=False)

    return run


def intensities(size: tuple[int, ...], repeats: int) -> dict[str, Row]:
    """Each change of intensity beside MONAI's."""
    data, key = pictures(size), ["image"]
    pairs: dict[str, tuple[Any, Any]] = {
        "noise": (intensity.RandNoised(key, 1, (0, 0.1)), monai.RandGaussianNoised(key, 1)),
        "blur": (
            intensity.RandBlurd(key, 1, (0.5, 1), 1),
            monai.RandGaussianSmoothd(key, (0.5, 1), (0.5, 1), (0.5, 1), prob=1),
        ),
        "brightness": (intensity.RandBrightnessd(key, 1, (0.75, 1.25)), monai.RandScaleIntensityd(key, 0.25, prob=1)),
        "contrast": (
            intensity.RandContrastd(key, 1, (0.75, 1.25)),
            monai.RandScaleIntensityFixedMeand(key, prob=1, factors=0.25, preserve_range=True),
        ),
        "gamma": (
            intensity.RandGammad(key, 1, (0.7, 1.5)),
            monai.RandAdjustContrastd(key, 1, (0.7, 1.5), retain_stats=True),
        ),
        "low_resolution": (
            intensity.RandLowResolutiond(key, 1, (0.5, 1), 1),
            monai.RandSimulateLowResolutiond(key, 1, zoom_range=(0.5, 1)),
        ),
    }
    result = {}
    for name, (ours, theirs) in pairs.items():
        times = milliseconds({"ours": partial(ours, data), "monai": partial(theirs, data)}, repeats)
        result[name] = times | {"monai/ours": round(times["monai"] / times["ours"], 2)}
    return result


def recipe(patch: Size) -> Row:
    """Mean milliseconds of a sample under the default recipe, and of its steps, over many samples with their probabilities."""
    transforms = training_transforms(AugmentationConfig(), patch, (1, 1, 1), [0, 1, 2])
    spatial_step, stream = transforms.transforms
    rng = np.random.default_rng(0)
    shape = tuple(n + 40 if n > 1 else 1 for n in patch)
    image = rng.normal(size=(1, *shape)).astype(np.float32)
    case = {"image": image, "classes": (image > 1).astype(np.uint8)}
    seconds = dict.fromkeys(STEPS, 0.0)
    for sample in range(SAMPLES):
        random, data = np.random.RandomState(sample), case
        for name, step in zip(STEPS, (spatial_step, *stream.transforms), strict=True):
            step.set_random_state(state=random)
            start = time.perf_counter()
            data = step(data)
            seconds[name] += time.perf_counter() - start
    means = {name: round(value * 1e3 / SAMPLES, 2) for name, value in seconds.items()}
    return {"whole recipe": round(sum(means.values()), 2)} | means


def table(title: str, columns: tuple[str, ...], rows: Mapping[str, Row]) -> str:
    lines = [f"{title:34}" + "".join(f"{column:>16}" for column in columns)]
    return "\n".join(lines + [f"{name:34}" + "".join(f"{row.get(c, ''):>16}" for c in columns) for name, row in rows.items()])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="a file for the figures")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    against = {
        "elastic + affine 96x96x96": spatial((96, 96, 96), 12),
        "elastic + affine 512x512": spatial((512, 512), 20),
        **{f"{name} 96x96x96": row for name, row in intensities((96, 96, 96), 5).items()},
    }
    print(table("milliseconds, one thread", COLUMNS, against), flush=True)
    patches: dict[str, Size] = {"96x96x96": (96, 96, 96), "40x56x40": (40, 56, 40), "512x512": (512, 512, 1)}
    recipes = {name: recipe(patch) for name, patch in patches.items()}
    by_step = {name: {patch: row[name] for patch, row in recipes.items()} for name in ("whole recipe", *STEPS)}
    print("\n" + table("mean milliseconds of a sample", tuple(recipes), by_step))
    if arguments.json:
        result = {"torch": torch.__version__, "threads": 1, "unit": "ms", "results": against, "default_recipe": recipes}
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
