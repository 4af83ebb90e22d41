"""Seconds that augmentation takes, ours beside MONAI's, on one thread: a table on standard error and JSON on standard output.

python benchmarks/augmentation.py
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai import transforms as monai

from medseg.training import intensity
from medseg.training.elastic import RandElasticAffineCropd, sampling

KEYS = ["image", "label"]
MODES = ("bilinear", "nearest")
ELASTIC = (1.0, (3, 6), (0.02, 0.1))
ROTATION, SCALING = (1.0, (-15.0, 15.0)), (1.0, (0.9, 1.1))


def milliseconds(function: Callable[[], Any], repeats: int) -> float:
    """The least of several times: what the work itself takes on a machine that does other things too."""
    function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return round(min(times) * 1e3, 2)


def pictures(size: tuple[int, ...]) -> dict[Hashable, Any]:
    generator = torch.Generator().manual_seed(0)
    image = torch.randn((1, *size), generator=generator)
    return {"image": image, "label": (image > 1).to(torch.uint8)}


def spatial(size: tuple[int, ...], repeats: int) -> dict[str, float]:
    """Elastic and affine at once: ours, MONAI's, and the two bare samplings of pictures on a grid that is ready."""
    planar, data = len(size) == 2, pictures(size)
    patch = (*size, 1)[:3]
    ours = RandElasticAffineCropd(KEYS, size, MODES, elastic=ELASTIC, rotation=ROTATION, scaling=SCALING, shear=(1.0, 0.1))
    ours.set_random_state(0)
    same = {"prob": 1.0, "spatial_size": size, "mode": list(MODES), "padding_mode": "zeros"}
    affine = {"rotate_range": 0.26, "scale_range": 0.1, "shear_range": 0.1}
    if planar:
        theirs: Any = monai.Rand2DElasticd(KEYS, spacing=(30, 30), magnitude_range=(1, 5), **same, **affine)
    else:
        theirs = monai.Rand3DElasticd(KEYS, sigma_range=(5, 8), magnitude_range=(100, 200), **same, **affine)
    theirs.set_random_state(0)
    control = ours._draw_deformation(np.zeros(3, bool))
    assert control is not None
    where = sampling(control, patch, patch)  # type: ignore[arg-type]
    box = [data[key].reshape(1, *patch)[(slice(None), *where.box)].float().reshape(1, 1, *where_shape(where)) for key in KEYS]

    def bare() -> None:
        for picture, mode in zip(box, MODES, strict=True):
            F.grid_sample(picture, where.grid[None], mode=mode, padding_mode="zeros", align_corners=False)

    times = {
        "ours": milliseconds(lambda: ours(data), repeats),
        "monai": milliseconds(lambda: theirs(data), max(2, repeats // 4)),
        "bare_samplings": milliseconds(bare, repeats),
    }
    return times | {
        "monai/ours": round(times["monai"] / times["ours"], 2),
        "ours/bare": round(times["ours"] / times["bare_samplings"], 2),
    }


def where_shape(where: Any) -> list[int]:
    return [part.stop - part.start for axis, part in enumerate(where.box) if axis != where.flat]


def intensities(size: tuple[int, ...], repeats: int) -> dict[str, dict[str, float]]:
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
        a, b = (milliseconds(partial(t, data), repeats) for t in (ours, theirs))
        result[name] = {"ours": a, "monai": b, "monai/ours": round(b / a, 2)}
    return result


def main() -> None:
    torch.set_num_threads(1)
    result: dict[str, dict[str, float]] = {
        "elastic + affine 96x96x96": spatial((96, 96, 96), 12),
        "elastic + affine 512x512": spatial((512, 512), 20),
        **{f"{name} 96x96x96": values for name, values in intensities((96, 96, 96), 5).items()},
    }
    columns = ["ours", "monai", "bare_samplings", "monai/ours", "ours/bare"]
    print(f"{'milliseconds, one thread':28}" + "".join(f"{c:>16}" for c in columns), file=sys.stderr)
    for name, values in result.items():
        print(f"{name:28}" + "".join(f"{values.get(c, ''):>16}" for c in columns), file=sys.stderr)
    print(json.dumps({"torch": torch.__version__, "threads": 1, "unit": "ms", "results": result}, indent=2))


if __name__ == "__main__":
    main()
