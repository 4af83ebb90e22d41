"""Samples a second of training, ours beside nnU-Net's on the same network, batch and patch, in one run.

    python benchmarks/training.py --data data/hippocampus --work /tmp/speed \\
        --peer "PEER_PYTHON nnunet_peer.py steps WORK 8"

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
from medseg.planning.plan import Plan
from medseg.training.config import TrainingConfig
from medseg.training.dataset import batches
from medseg.training.decide import compile_network, decide
from medseg.training.job import Job, set_up, training_samples
from medseg.training.step import Batch, Trainer
from medseg.training.workers import AHEAD
from pipelines import prepare
from pipelines.config import RunConfig

CONFIG = Path(__file__).resolve().parent.parent / "configs" / "hippocampus_cpu.yaml"
NNUNET_PLAN = [
    "models={unet: {features: [32, 64, 128, 256]}}",
    "plan.patch_voxels=[40, 56, 40]",
    "plan.batch_size=7",
    "plan.flips=[0, 1, 2]",
    "training.augmentation={}",  # the default recipe, which has all that nnU-Net's has
]
ROUNDS = 3


def prepared(data: Path, work: Path, name: str, assignments: list[str]) -> Job:
    """The cases prepared, and the training of the first model of the configuration on them."""
    output = [f"data.root={data}", f"output={work / name}", "models={unet: {}}"]
    config = RunConfig.load(CONFIG, [*output, *assignments])
    prepare.run(config)
    manifest, plan = config.manifest(), Plan.load(config.folder("prepare") / "plan.json")
    (model, network), *_ = plan.models.items()
    return Job(
        name=model,
        **network,
        settings=config.section("training", TrainingConfig),
        plan=plan,
        labels=config.labels,
        store=PreparedStore(config.folder("prepare", "cases")),
        train_ids=[case.case_id for case in manifest.of("train")],
        val_ids=[case.case_id for case in manifest.of("val")],
        folder=work / name / "train",
    )


def seconds_a_step(trainer: Trainer, stream: Iterable[Batch], steps: int, uncounted: int = 1) -> float:
    """Of the whole loop: waiting for the batch and learning from it; the first steps are not counted."""
    batches_of_round = iter(stream)
    for number in range(uncounted):
        trainer.step(next(batches_of_round), learning_rate=1e-4, seed=number)
    wait_for(trainer.device)
    start = time.perf_counter()
    for number in range(uncounted, uncounted + steps):
        trainer.step(next(batches_of_round), learning_rate=1e-4, seed=number)
    wait_for(trainer.device)
    return (time.perf_counter() - start) / steps


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


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
    """The loop as the shipped configuration runs it, and the same loop fed one batch that is ready on the device, in turns."""
    job = prepared(data, work, "shipped_plan", [])
    trainer, schedule = set_up(job)
    samples = training_samples(job)
    schedule = decide(job.settings, schedule, trainer, samples, lambda: 0.0, lambda: 0.0, time.perf_counter())
    on_gpu = trainer.device.type == "cuda"
    ready = next(iter(batches(samples, 0, 1, 0, on_gpu)))
    if trainer.augment is not None:
        ready = trainer.augment(ready, trainer.device)
    ready = {key: value.to(trainer.device) if isinstance(value, torch.Tensor) else value for key, value in ready.items()}
    ahead = 1 + AHEAD * schedule.workers  # batches that workers may have made before the clock starts
    real, fed, augment = [], [], trainer.augment
    for _ in range(ROUNDS):
        trainer.augment = augment
        stream = batches(samples, 0, ahead + steps, schedule.workers, on_gpu)
        real.append(seconds_a_step(trainer, stream, steps, uncounted=ahead))
        trainer.augment = None
        fed.append(seconds_a_step(trainer, itertools.repeat(ready), steps))
    a, b = statistics.median(real), statistics.median(fed)
    return {
        "device": trainer.device.type,
        **{key: getattr(schedule, key) for key in ("precision", "compile", "workers", "augment_on")},
        "why": {key: schedule.reasons[key] for key in ("compile", "workers", "augment_on")},
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
