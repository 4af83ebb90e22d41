"""Samples a second of training, ours beside nnU-Net's on the same network, batch and patch, in one run.

    python benchmarks/training.py --data data/hippocampus --work /tmp/speed \\
        --peer "PEER_PYTHON nnunet_steps.py WORK 8"

The peer's command trains nnU-Net's own plan of the hippocampus (batch 7 of 40 x 56 x 40, widths 32 to 256) for a few steps and
prints a line `load SECONDS s  step SECONDS s` for each; ours trains the same network on the same cases. They take turns, so that
a machine that is busy for a while is busy for both. Without --peer only our own rows are measured.

A table goes to standard error and JSON to standard output.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from medseg.core.record import machine, versions
from medseg.data.store import PreparedStore
from medseg.models.registry import parse_models
from medseg.planning.plan import Plan
from medseg.training.config import TrainingConfig
from medseg.training.dataset import batches
from medseg.training.decide import choose_workers, compile_network, time_steps
from medseg.training.job import Job, set_up, training_samples
from medseg.training.step import Batch, Trainer
from pipelines import prepare
from pipelines.config import RunConfig

CONFIG = Path(__file__).resolve().parent.parent / "configs" / "hippocampus_cpu.yaml"
NNUNET_PLAN = ["models={unet: {features: [32, 64, 128, 256]}}", "plan.batch_size=7"]
ROUNDS = 3


def prepared(data: Path, work: Path, name: str, assignments: list[str]) -> Job:
    """The cases prepared, and the training of the first model of the configuration on them."""
    output = [f"data.root={data}", f"output={work / name}", "models={unet: {features: [16, 32, 64, 128]}}"]
    config = RunConfig.load(CONFIG, [*output, *assignments])
    prepare.run(config)
    (model, settings), *_ = parse_models(config.models, str(CONFIG)).items()
    manifest = config.manifest()
    return Job(
        name=model,
        architecture=settings.architecture,
        options=settings.options.model_dump(mode="json"),
        settings=config.section("training", TrainingConfig),
        plan=Plan.load(config.folder("prepare") / "plan.json"),
        labels=config.labels,
        store=PreparedStore(config.folder("prepare", "cases")),
        train_ids=[case.case_id for case in manifest.of("train")],
        val_ids=[case.case_id for case in manifest.of("val")],
        folder=work / name / "train",
    )


def seconds_a_step(trainer: Trainer, stream: Iterable[Batch], steps: int) -> float:
    """Of the whole loop: waiting for the batch and learning from it; the first step is not counted."""
    start = 0.0
    for number, batch in enumerate(itertools.islice(stream, steps + 1)):
        trainer.step(batch, learning_rate=1e-4, seed=number)
        if number == 0:
            start = time.perf_counter()
    if trainer.device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / steps


def peer_steps(command: str) -> list[float]:
    """Seconds of each step of the peer, its loading included; its first step is not counted."""
    result = subprocess.run(shlex.split(command), capture_output=True, text=True, check=True)
    steps = [float(a) + float(b) for a, b in re.findall(r"load ([\d.]+) s\s+step ([\d.]+) s", result.stdout)]
    return steps[1:]


def beside_peer(data: Path, work: Path, peer: str | None, steps: int) -> dict[str, Any]:
    """Samples a second of the two on nnU-Net's plan, taking turns."""
    job = prepared(data, work, "nnunet_plan", NNUNET_PLAN)
    trainer, schedule = set_up(job)
    samples = training_samples(job)
    ours: dict[str, list[float]] = {"plain": [], "compiled": []}
    theirs: list[float] = []
    plain, compiled = trainer.forward, compile_network(trainer.network)
    for _ in range(ROUNDS):
        if peer:
            theirs += peer_steps(peer)
        for name, forward in (("plain", plain), ("compiled", compiled)):
            trainer.forward = forward
            ours[name].append(seconds_a_step(trainer, batches(samples, 0, steps + 1, workers=0, pin=False), steps))
    row: dict[str, Any] = {"precision": schedule.precision, "batch": job.batch_size, "patch": job.plan.patch_voxels}
    row |= {f"ours_{name}_step_seconds": round(statistics.median(times), 3) for name, times in ours.items()}
    best = min(statistics.median(times) for times in ours.values())
    row["ours_samples_per_second"] = round(job.batch_size / best, 3)
    if theirs:
        row["peer_step_seconds"] = round(statistics.median(theirs), 3)
        row["peer_samples_per_second"] = round(job.batch_size / statistics.median(theirs), 3)
        row["ours_over_peer"] = round(statistics.median(theirs) / best, 2)
    return row


def beside_ready_batch(data: Path, work: Path, steps: int) -> dict[str, Any]:
    """The loop as the shipped configuration runs it, and the same loop fed one batch that is ready, in turns."""
    job = prepared(data, work, "shipped_plan", [])
    trainer, schedule = set_up(job)
    samples = training_samples(job)
    timing = time_steps(trainer, samples)
    workers, reason = choose_workers(job.settings, timing, trainer.device, expected_seconds=600)
    ready = next(iter(batches(samples, 0, 1, workers=0, pin=False)))
    real, fed = [], []
    for _ in range(ROUNDS):
        real.append(seconds_a_step(trainer, batches(samples, 0, steps + 1, workers, pin=False), steps))
        fed.append(seconds_a_step(trainer, itertools.repeat(ready), steps))
    a, b = statistics.median(real), statistics.median(fed)
    return {
        "precision": schedule.precision,
        "workers": workers,
        "why": reason,
        "real_samples_per_second": round(job.batch_size / a, 3),
        "ready_batch_samples_per_second": round(job.batch_size / b, 3),
        "real_over_ready": round(b / a, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the hippocampus data (images/, labels/)")
    parser.add_argument("--work", type=Path, required=True, help="folder for the prepared cases")
    parser.add_argument("--peer", help="command that trains a few steps of nnU-Net and prints their seconds")
    parser.add_argument("--steps", type=int, default=5, help="steps a round; there are three rounds")
    options = parser.parse_args()
    result = {
        "machine": machine(),
        "versions": versions(),
        "same_network_as_nnunet": beside_peer(options.data, options.work, options.peer, options.steps),
        "loop": beside_ready_batch(options.data, options.work, 4 * options.steps),
    }
    for title, row in result.items():
        if title not in ("machine", "versions"):
            print(f"{title}\n" + "\n".join(f"  {key:34} {value}" for key, value in row.items()), file=sys.stderr)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
