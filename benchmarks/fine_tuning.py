"""Fine-tuning against training from scratch on ten hippocampus cases: a table on standard error and JSON on standard output.

A U-Net is trained on 100 cases whose two structures are merged into one. On 10 other cases with both structures it is then
fine-tuned, and trained from random weights, for the same minutes, with several seeds; 40 test cases tell them apart. Of the 100
cases 10 are for validation, and of the 10 cases 2. Every step is a command of the project on a configuration written into
`--work`; run again, it goes on where it stopped.

python benchmarks/fine_tuning.py --data data/hippocampus --work runs/fine_tuning
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from medseg.core.config import load_yaml, merge
from medseg.core.files import write_json, write_text
from medseg.core.record import commit, machine, read_record, versions
from medseg.evaluation.intervals import mean_intervals
from medseg.evaluation.summary import under_worst
from medseg.evaluation.table import load_evaluation

ROOT = Path(__file__).parent.parent
BASE = ROOT / "configs" / "hippocampus_cpu.yaml"
MANIFEST = ROOT / "data_manifests" / "hippocampus.csv"
MODEL, FEATURES = "unet", [24, 48, 96, 192]  # the same network for all, whatever the minutes
MERGED = [{"name": "hippocampus", "id": 1, "values": [1, 2]}]
N_PRETRAINING, N_PRETRAINING_VAL, N_FINE_TUNING, N_FINE_TUNING_VAL = 100, 10, 10, 2
ARMS = ("fine-tuned", "from scratch")
RESAMPLES, CONFIDENCE = 10_000, 0.95

Row = dict[str, str]


def manifests(work: Path) -> tuple[Path, Path]:
    """The cases of both trainings; the test cases of the shipped manifest are in the second only."""
    with open(MANIFEST, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    test = [row for row in rows if row["split"] == "test"]
    others = [row for row in rows if row["split"] != "test"]
    drawn = [others[i] for i in np.random.default_rng(0).permutation(len(others))]
    first, second = drawn[:N_PRETRAINING], drawn[N_PRETRAINING:][:N_FINE_TUNING]
    return (
        _write_manifest(work / "pretraining.csv", _split(first, N_PRETRAINING_VAL)),
        _write_manifest(work / "fine_tuning.csv", [*_split(second, N_FINE_TUNING_VAL), *test]),
    )


def _split(rows: Sequence[Row], n_val: int) -> list[Row]:
    return [row | {"split": "val" if i < n_val else "train"} for i, row in enumerate(rows)]


def _write_manifest(path: Path, rows: Sequence[Row]) -> Path:
    lines = [",".join(rows[0]), *(",".join(row.values()) for row in sorted(rows, key=lambda row: row["case_id"]))]
    write_text(path, "\n".join(lines) + "\n")
    return path


def configuration(
    folder: Path,
    data: Path,
    manifest: Path,
    minutes: float,
    seed: int,
    structures: list[Any] | None = None,
    start: Path | None = None,
) -> Path:
    """Write the shipped configuration, for the U-Net alone, with these cases, time and seed, beside `folder`."""
    base = load_yaml(BASE)
    changes: dict[str, Any] = {
        "name": folder.name,
        "output": str(folder),
        "seed": seed,
        "data": {"root": str(data), "manifest": str(manifest)},
        "training": {"epochs": None, "budget_minutes": minutes, "init_from": str(start) if start else None},
    }
    settings = merge(base, changes)
    settings["models"] = {MODEL: {"features": FEATURES}}
    settings["structures"] = structures or base["structures"]
    path = folder.with_suffix(".yaml")
    write_text(path, yaml.safe_dump(settings, sort_keys=False))
    return path


def walk(config: Path, stages: Sequence[str]) -> None:
    """Run stages of the project one after the other, each in a process of its own; what is done is skipped."""
    for stage in stages:
        code = subprocess.run([sys.executable, "-m", "pipelines.cli", stage, str(config)], cwd=ROOT).returncode
        if code:
            sys.exit(code)


def dice_of(folder: Path) -> pd.DataFrame:
    """Dice of a run's test cases: one row a case, one column a structure; a missed structure counts 0."""
    table = under_worst(load_evaluation(folder / "evaluate" / MODEL))
    return table.pivot(index="case_id", columns="structure", values="dice")


def with_mean(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(mean=table.mean(axis=1))


def compare(seeds: Mapping[str, list[pd.DataFrame]]) -> dict[str, Any]:
    """Means of each arm, and the difference with its interval: over cases, each case's Dice being its mean over the seeds."""
    means = {arm: with_mean(sum(tables[1:], tables[0]) / len(tables)) for arm, tables in seeds.items()}
    difference = means[ARMS[0]] - means[ARMS[1]]
    cases = [str(case) for case in difference.index]
    intervals = mean_intervals(difference.to_numpy(float), cases, RESAMPLES, CONFIDENCE, seed=0)
    return {
        "cases": len(cases),
        "dice": {arm: table.mean().round(4).to_dict() for arm, table in means.items()},
        "dice_of_seeds": {arm: [round(float(with_mean(t)["mean"].mean()), 4) for t in tables] for arm, tables in seeds.items()},
        "difference": {
            name: {"mean": round(float(difference[name].mean()), 4), "ci_low": round(low, 4), "ci_high": round(high, 4)}
            for name, (low, high) in zip(difference.columns, intervals.tolist(), strict=True)
        },
        "interval": f"BCa bootstrap over cases, {CONFIDENCE:.0%}, {RESAMPLES} resamples; without the spread between seeds",
    }


def facts(folder: Path) -> dict[str, Any]:
    """What a training took, from its record."""
    record = read_record(folder / "train" / MODEL) or {}
    return {"steps": record["counts"]["steps"], "training_seconds": record["training_seconds"], "best": record["best"]["dice"]}


def show(result: dict[str, Any]) -> None:
    columns = list(result["difference"])
    print(f"\n{'Dice, ' + str(result['cases']) + ' test cases':24}" + "".join(f"{c:>26}" for c in columns), file=sys.stderr)
    for arm in ARMS:
        print(f"{arm:24}" + "".join(f"{result['dice'][arm][c]:>26.4f}" for c in columns), file=sys.stderr)
    cells = [f"{d['mean']:+.4f} ({d['ci_low']:+.4f} to {d['ci_high']:+.4f})" for d in result["difference"].values()]
    print(f"{'difference':24}" + "".join(f"{cell:>26}" for cell in cells), file=sys.stderr)
    print(f"  interval: {result['interval']}", file=sys.stderr)
    for arm in ARMS:
        print(f"  {arm}, each seed: {', '.join(f'{d:.4f}' for d in result['dice_of_seeds'][arm])}", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with images/ and labels/ of the hippocampus data")
    parser.add_argument("--work", type=Path, required=True, help="folder for configurations, manifests and runs")
    parser.add_argument("--minutes", type=float, default=5, help="of each fine-tuning and each training from scratch")
    parser.add_argument("--pretrain-minutes", type=float, default=10)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, help="the JSON; by default fine_tuning.json in --work")
    asked = parser.parse_args()
    data, work = asked.data.resolve(), asked.work.resolve()
    first, second = manifests(work)
    walk(configuration(work / "pretrained", data, first, asked.pretrain_minutes, 0, MERGED), ["prepare", "train"])
    start = work / "pretrained" / "train" / MODEL / "model.medseg"
    seeds: dict[str, list[pd.DataFrame]] = {arm: [] for arm in ARMS}
    trainings = {"pretrained": facts(work / "pretrained")}
    for seed in range(asked.seeds):
        for arm in ARMS:
            folder = work / f"{arm.replace(' ', '-')}-{seed}"
            config = configuration(folder, data, second, asked.minutes, seed, start=start if arm == ARMS[0] else None)
            walk(config, ["prepare", "train", "predict", "evaluate"])
            seeds[arm].append(dice_of(folder))
            trainings[folder.name] = facts(folder)
    result = {
        "minutes": asked.minutes,
        "pretrain_minutes": asked.pretrain_minutes,
        "seeds": asked.seeds,
        **compare(seeds),
        "trainings": trainings,
        "machine": machine(),
        "versions": versions(),
        "commit": commit(),
    }
    show(result)
    write_json(asked.output or work / "fine_tuning.json", result)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
