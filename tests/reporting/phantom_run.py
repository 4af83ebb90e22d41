"""Finished runs made of phantoms, for the tests of the report: the tables are written here and not by the other stages."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
from PIL import Image
from scipy import ndimage

MODELS = ("unet", "fcn8s")
FAILED, MISSED = "p07", "p03"  # p07 failed in both models; fcn8s missed the second structure of p03
HOSTILE = "<script>alert('x')</script> & $case$"
REASON = f"the file is truncated after 12 kB {HOSTILE}; copy the scan again"
TEST = [f"p{i:02d}" for i in range(1, 9)]
TRAIN = [f"t{i:02d}" for i in range(1, 5)]


def write_volume_run(root: Path) -> Path:
    """A run of two models and two structures on eight 3D test cases; returns the configuration's path."""
    structures = ["Anterior", "Posterior <b>"]
    for index, case in enumerate([*TRAIN, *TEST]):
        image, labels = _volume(index)
        # Stored left, posterior, superior with thick slices, as scanners do.
        affine = np.diag([-1.0, -1.0, 2.0, 1.0])
        _write_nifti(root / "data" / "images" / f"{case}.nii.gz", image, affine)
        _write_nifti(root / "data" / "labels" / f"{case}.nii.gz", labels, affine)
        for model in MODELS if case in TEST and case != FAILED else ():
            _write_nifti(root / "run" / "predict" / model / f"{case}.nii.gz", _predicted(labels, model, case), affine)
    config = _config(root, structures, "nii.gz", note=f"eight phantoms: no generalisation result {HOSTILE}")
    _write_tables(root, structures, "nii.gz", "hd95_mm", "case")
    return config


def write_picture_run(root: Path) -> Path:
    """The same for one structure on colour PNG tiles, whose reference files hold 255."""
    for index, case in enumerate([*TRAIN, *TEST]):
        image, labels = _tile(index)
        _write_png(root / "data" / "images" / f"{case}.png", image)
        _write_png(root / "data" / "labels" / f"{case}.png", labels * 255)
        for model in MODELS if case in TEST and case != FAILED else ():
            _write_png(root / "run" / "predict" / model / f"{case}.png", _predicted(labels[None], model, case)[0])
    config = _config(root, ["nucleus"], "png", sampling_unit="tile", values=[255])
    _write_tables(root, ["nucleus"], "png", "hd95_px", "tile")
    return config


def _volume(index: int) -> tuple[Any, Any]:
    rng = np.random.default_rng(index)
    x, y, z = np.indices((44, 52, 22)).astype(float)
    labels = np.zeros(x.shape, np.uint8)
    labels[((x - 22) / 6) ** 2 + ((y - 18 - index % 3) / 8) ** 2 + ((z - 11) / 4) ** 2 < 1] = 1
    labels[((x - 21) / 5) ** 2 + ((y - 34) / 8) ** 2 + ((z - 10) / 4) ** 2 < 1] = 2
    texture = ndimage.gaussian_filter(rng.normal(0, 1, x.shape), 2) * 300
    head = (((x - 22) / 21) ** 2 + ((y - 26) / 25) ** 2 + ((z - 11) / 11) ** 2 < 1) * 400.0
    return (head + texture + 220.0 * (labels > 0) + rng.normal(0, 15, x.shape)).astype(np.float32), labels


def _tile(index: int) -> tuple[Any, Any]:
    rng = np.random.default_rng(100 + index)
    rows, columns = np.indices((120, 160))
    labels = np.zeros(rows.shape, np.uint8)
    for _ in range(16):
        r, c, a, b = *rng.uniform(0, (120, 160)), *rng.uniform(5, 11, 2)
        labels[((rows - r) / a) ** 2 + ((columns - c) / b) ** 2 < 1] = 1
    soft = ndimage.gaussian_filter(labels.astype(float), 1.2)[..., None]
    stain = (1 - soft) * np.array([236, 205, 225]) + soft * np.array([118, 74, 152])
    return np.clip(stain + rng.normal(0, 9, stain.shape), 0, 255).astype(np.uint8), labels


def _predicted(labels: Any, model: str, case: str) -> Any:
    rng = np.random.default_rng(len(model) + int(case[1:]))
    rough = ndimage.gaussian_filter(rng.normal(0, 1, labels.shape), 1.5)
    shifted = np.roll(labels, 1 if model == "unet" else 2, axis=1)
    limit = rough.std() * (2.2 if model == "unet" else 1.6) * rng.uniform(0.7, 1.2)
    found = np.where(np.abs(rough) > limit, 0, shifted).astype(np.uint8)
    if (model, case) == ("fcn8s", MISSED):
        found[found == labels.max()] = 0
    return found


def _config(root: Path, structures: list[str], suffix: str, values: list[int] | None = None, **data: str) -> Path:
    rows = [(c, "train" if c in TRAIN[:3] else "val" if c in TRAIN else "test") for c in [*TRAIN, *TEST]]
    manifest = pd.DataFrame(
        [{"case_id": c, "image": f"images/{c}.{suffix}", "label": f"labels/{c}.{suffix}", "split": s} for c, s in rows]
    )
    manifest.to_csv(root / "manifest.csv", index=False)
    settings = {
        "name": "phantoms",
        "seed": 7,
        "output": str(root / "run"),
        "data": {
            "root": str(root / "data"),
            "manifest": str(root / "manifest.csv"),
            "citation": "Phantom A, Phantom B. Ellipsoids in noise. J Phantoms 2024;1:1–2.",
            "licence": "CC0",
            **data,
        },
        "structures": [{"name": n, "id": i, **({"values": values} if values else {})} for i, n in enumerate(structures, 1)],
        "models": list(MODELS),
        "report": {"title": "Phantom structures in noise", "pdf": False},
    }
    path = root / "phantoms.yaml"
    path.write_text(json.dumps(settings), encoding="utf-8")  # JSON is YAML
    (root / "run").mkdir(exist_ok=True)
    (root / "run" / "config.yaml").write_text(json.dumps(settings, indent=2), encoding="utf-8")
    return path


def _write_tables(root: Path, structures: list[str], suffix: str, hd95: str, unit: str) -> None:
    run, two_d = root / "run", suffix == "png"
    summaries = {}
    for model in MODELS:
        rows = [row for case in TEST for row in _case_rows(root, model, case, structures, suffix, hd95)]
        per_case = pd.DataFrame(rows)
        summaries[model] = per_case
        _csv(run / "evaluate" / model / "per_case.csv", per_case)
        _csv(run / "evaluate" / model / "summary.csv", _summary(per_case, structures, hd95))
        done = [
            {"case_id": c, "input": f"images/{c}.{suffix}", "output": "" if c == FAILED else f"{c}.{suffix}"}
            | {"status": "failed" if c == FAILED else "done", "reason": REASON if c == FAILED else "", "seconds": 1.5}
            | {"model_sha256": hashlib.sha256(model.encode()).hexdigest()}
            for c in TEST
        ]
        _csv(run / "predict" / model / "predictions.csv", pd.DataFrame(done))
        _csv(run / "train" / model / "log.csv", _log(model, structures))
        (run / "train" / model / "model.medseg").write_text(model)  # never opened, only known by its hash
        _stage(run / "train" / model, "train", 724.0)
        _stage(run / "predict" / model, "predict", 11.2)
        _stage(run / "evaluate" / model, "evaluate", 3.4, sampling_unit=unit, evaluate={"confidence": 0.9})
        schedule = {"steps": 600, "steps_per_epoch": 10, "device": "cpu", "precision": "bfloat16"}
        (run / "train" / model / "schedule.json").write_text(json.dumps(schedule))
    _stage(run / "prepare", "prepare", 8.0)
    plan = {
        "patch_voxels": [128, 96, 1] if two_d else [40, 48, 20],
        "preprocessing": {"spacing": None if two_d else [1.0, 1.0, 2.0]},
        "models": {m: {"architecture": m} for m in MODELS},
    }
    (run / "prepare" / "plan.json").write_text(json.dumps(plan))
    _csv(run / "evaluate" / "comparison_summary.csv", _comparison(summaries, structures, hd95))


def _case_rows(root: Path, model: str, case: str, structures: list[str], suffix: str, hd95: str) -> list[dict[str, Any]]:
    reference = _read(root / "data" / "labels" / f"{case}.{suffix}")
    reference = np.minimum(reference, 1) if suffix == "png" else reference
    mask = root / "run" / "predict" / model / f"{case}.{suffix}"
    found = _read(mask) if mask.exists() else None
    size = "reference_area_px" if suffix == "png" else "reference_volume_ml"
    rows = []
    for value, name in enumerate(structures, start=1):
        a = reference == value
        row = {"case_id": case, "patient_id": "", "structure": name, "dice": np.nan, "iou": np.nan, size: a.sum() / 500}
        row |= {hd95: np.nan, f"surface_dice_2{hd95[-2:]}": np.nan, "status": "prediction_missing"}
        if found is not None:
            b = found == value
            dice = 2 * (a & b).sum() / (a.sum() + b.sum())
            row |= {"dice": dice, "iou": dice / (2 - dice), "status": "ok" if b.any() else "prediction_empty"}
            row |= {hd95: 12 * (1 - dice) if b.any() else np.nan, f"surface_dice_2{hd95[-2:]}": min(1, dice + 0.1)}
        rows.append(row)
    return rows


def _summary(per_case: pd.DataFrame, structures: list[str], hd95: str) -> pd.DataFrame:
    metrics = [c for c in per_case if c not in ("case_id", "patient_id", "structure", "status")]
    rows = []
    for convention in ("worst", "defined"):
        for structure in structures:
            for metric in metrics:
                values = per_case.loc[per_case["structure"] == structure, metric]
                if convention == "worst" and "reference" not in metric:
                    values = values.fillna(60.0 if metric == hd95 else 0.0)
                known, spread = values.dropna(), 2 * values.std() / np.sqrt(len(values))
                rows.append(
                    {"structure": structure, "metric": metric, "unit": "", "convention": convention, "n": len(known)}
                    | {"n_undefined": len(values) - len(known), "mean": known.mean(), "ci_low": known.mean() - spread}
                    | {"ci_high": known.mean() + spread, "median": known.median()}
                    | {"q1": known.quantile(0.25), "q3": known.quantile(0.75)}
                    | {"n_filled": int(per_case.loc[values.index, metric].isna().sum()) if "reference" not in metric else 0}
                )
    return pd.DataFrame(rows)


def _comparison(tables: dict[str, pd.DataFrame], structures: list[str], hd95: str) -> pd.DataFrame:
    a, b = (tables[m].fillna({"dice": 0.0, hd95: 60.0}) for m in MODELS)
    rows = []
    for structure in structures:
        for metric in ("dice", hd95):
            d = (a[metric] - b[metric])[a["structure"] == structure]
            gain = -d if metric == hd95 else d
            half = 2 * d.std() / np.sqrt(len(d))
            rows.append(
                {"structure": structure, "metric": metric, "unit": "", "model_a": MODELS[0], "model_b": MODELS[1], "n": len(d)}
                | {"n_missing": 1, "n_undefined": 0, "mean_difference": d.mean(), "ci_low": d.mean() - half}
                | {"ci_high": d.mean() + half, "wins": (gain > 0).sum(), "ties": (gain == 0).sum()}
                | {"losses": (gain < 0).sum()}
                | {"p_wilcoxon": 0.01, "p_holm": 0.0004 if metric == "dice" else 0.04}
            )
    return pd.DataFrame(rows)


def _log(model: str, structures: list[str]) -> pd.DataFrame:
    rng, epochs = np.random.default_rng(len(model)), np.arange(1, 61)
    best = 0.9 if model == "unet" else 0.8
    dice = np.where(epochs % 5 == 0, best * (1 - np.exp(-epochs / 12)) + rng.normal(0, 0.006, 60), np.nan)
    log = {"epoch": epochs, "step": epochs * 10, "seconds": epochs * 12.0, "learning_rate": 1e-3 * (1 - epochs / 61)}
    log |= {"train_loss": 1.2 * np.exp(-epochs / 14) + 0.12 + rng.normal(0, 0.02, 60), "val_dice": dice}
    return pd.DataFrame(log | {f"val_dice_{s}": dice + 0.02 * (-1) ** i for i, s in enumerate(structures)})


def _stage(folder: Path, stage: str, seconds: float, **inputs: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "stage": stage,
        "medseg": "0.1.0",
        "commit": "0123456789ab+",
        "inputs_sha256": "c0ffee" * 10,
        "inputs": inputs,
        "seed": 7,
        "versions": {"python": "3.11.9", "torch": "2.13.0", "monai": "1.6.1"},
        "machine": {"system": "linux", "processor": "Phantom CPU", "cores": 2, "memory_gib": 7.8},
        "finished": "2026-11-22T10:00:00+0000",
        "seconds": seconds,
    }
    (folder / "stage.json").write_text(json.dumps(record))


def _csv(path: Path, table: pd.DataFrame) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(path, index=False)


def _read(path: Path) -> Any:
    if path.suffix == ".png":
        return np.array(Image.open(path))
    return np.asarray(nib.load(path).dataobj).astype(np.uint8)


def _write_nifti(path: Path, array: Any, affine: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)


def _write_png(path: Path, array: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
