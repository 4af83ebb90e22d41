"""Data sets with known answers: bright balls and boxes on noise, written as real files with a manifest and a configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import yaml
from PIL import Image

SPACING = (1.0, 1.5, 2.0)
# Voxel axes run right to left, anterior to posterior, inferior to superior: every walk must flip there and back.
LPS_AFFINE = np.diag([-SPACING[0], -SPACING[1], SPACING[2], 1.0])
LPS_AFFINE[:3, 3] = (30.0, -12.0, 7.0)


def ball(
    shape: tuple[int, ...], centre: tuple[float, ...], radius: float, spacing: tuple[float, ...] | None = None
) -> np.ndarray:
    """bool, True within `radius` (in units of `spacing`) of `centre` (in voxels)."""
    spacing = spacing or (1.0,) * len(shape)
    axes = np.indices(shape, float)
    offsets = [(a - c) * s for a, c, s in zip(axes, centre, spacing, strict=True)]
    return sum(o**2 for o in offsets) <= radius**2  # type: ignore[return-value]


def volume_case(seed: int, shape: tuple[int, int, int] = (24, 20, 16)) -> tuple[np.ndarray, np.ndarray]:
    """A scan with a bright ball (1) and a brighter small ball (2) beside it; (X, Y, Z) float32 and uint8."""
    rng = np.random.default_rng(seed)
    centre = np.array(shape) / 2 + rng.uniform(-2, 2, 3)
    labels = np.zeros(shape, np.uint8)
    labels[ball(shape, tuple(centre - (4, 0, 0)), 6, SPACING)] = 1
    labels[ball(shape, tuple(centre + (5, 0, 0)), 4.5, SPACING)] = 2
    image = rng.normal(100, 8, shape) + 60 * (labels == 1) + 140 * (labels == 2)
    return (image * rng.uniform(0.5, 2)).astype(np.float32), labels


def write_volume_set(folder: Path, splits: dict[str, int]) -> Path:
    """NIfTI scans with two structures; returns the manifest."""
    rows = []
    for split, count in splits.items():
        for number in range(count):
            case_id = f"{split}{number:02d}"
            image, labels = volume_case(seed=len(rows))
            for kind, array in (("images", image), ("labels", labels)):
                path = folder / kind / f"{case_id}.nii.gz"
                path.parent.mkdir(parents=True, exist_ok=True)
                nibabel.save(nibabel.Nifti1Image(array, LPS_AFFINE), path)
            rows.append(
                {
                    "case_id": case_id,
                    "image": f"images/{case_id}.nii.gz",
                    "label": f"labels/{case_id}.nii.gz",
                    "split": split,
                    "patient_id": case_id,
                }
            )
    return _write_manifest(folder, rows)


def write_picture_set(folder: Path, splits: dict[str, int], shape: tuple[int, int] = (72, 60)) -> Path:
    """RGB PNG pictures with bright discs and instance labels; returns the manifest."""
    rows = []
    for split, count in splits.items():
        for number in range(count):
            case_id, rng = f"{split}{number:02d}", np.random.default_rng(len(rows))
            labels = np.zeros(shape, np.uint16)
            for instance in range(1, 5):
                labels[ball(shape, tuple(rng.uniform(8, np.array(shape) - 8)), 6)] = instance
            grey = rng.normal(60, 8, shape) + 90 * (labels > 0)
            rgb = np.clip(np.stack([grey, grey * 0.8, grey * 0.6], -1), 0, 255).astype(np.uint8)
            for kind, array in (("images", rgb), ("labels", labels)):
                path = folder / kind / f"{case_id}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(path)
            rows.append(_row(case_id, ".png", split))
    return _write_manifest(folder, rows)


def _row(case_id: str, suffix: str, split: str) -> dict[str, str]:
    return {"case_id": case_id, "image": f"images/{case_id}{suffix}", "label": f"labels/{case_id}{suffix}", "split": split}


def _write_manifest(folder: Path, rows: list[dict[str, str]]) -> Path:
    path = folder / "manifest.csv"
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


def write_config(folder: Path, manifest: Path, **settings: Any) -> Path:
    """A configuration for a phantom set; `settings` are top-level sections laid over small defaults."""
    config = {
        "name": "phantom",
        "output": str(folder / "run"),
        "data": {"root": str(manifest.parent), "manifest": str(manifest)},
        **settings,
    }
    path = folder / "phantom.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path
