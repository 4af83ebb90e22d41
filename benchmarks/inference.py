"""Segmenting a scan, ours beside MONAI's SlidingWindowInferer on the same weights, windows and volume, in one run.

    python benchmarks/inference.py --work /tmp/speed [--hippocampus FOLDER_OF_SCANS --model model.medseg] [--only volume,memory]
    python benchmarks/inference.py --work /tmp/speed --only peer --hippocampus FOLDER_OF_SCANS --model model.medseg \\
        --peer "PEER_PYTHON nnunet_peer.py predict WORK"

MONAI is used as its tutorials use it: LoadImage, Orientation, Spacing, SlidingWindowInferer in float32 with Gaussian weights
and half a window's overlap, `Invertd` of the logits back to the scan, argmax, SaveImage. Ours is what `medseg segment` does.
Importing libraries and loading the model are left out on both sides. Memory is the peak of a process of its own.

The peer is nnU-Net's predictor on a folder of scans: its command is called with that folder and one for its masks, and its last
line is how many seconds they took. Ours is the whole command `medseg segment`, with imports, model and tables. `--model` is to
hold the peer's network: of the hippocampus, widths 32 to 256 and windows of 40 x 56 x 40 (`NNUNET_PLAN` in `training.py`).

A table goes to standard error and JSON to standard output.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import resource
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # as the command sets it, before anything imports torch

import nibabel
import numpy as np
import torch

from medseg.core.cases import map_cases
from medseg.core.labels import LabelScheme, Structure
from medseg.core.record import machine, versions
from medseg.data.normalise import FixedNormalisation
from medseg.data.preprocess import Preprocessing
from medseg.inference.bundle import Bundle, Description, read_bundle, write_bundle
from medseg.inference.config import SegmentConfig
from medseg.inference.job import SegmentScan
from medseg.inference.predict import LoadedModel, load_model, read_scan
from medseg.inference.scans import Scan
from medseg.inference.window import window_starts
from medseg.models.registry import build_network
from medseg.planning.machine import bfloat16_unit
from medseg.planning.plan import Plan

LOW, HIGH, MEAN, STD = -500.0, 800.0, 40.0, 250.0
SHAPE, CLASSES, PATCH, WIDTHS = (256, 256, 128), 5, 96, [32, 64, 128, 256, 320]
LARGE, MANY, SMALL_PATCH, NARROW = (512, 512, 600), 20, 64, [4, 8]
FEW = 75  # slices
FOLDER = 8
LESSONS, LESSON = 40, 64
ROUNDS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--hippocampus", type=Path, help="folder of small scans")
    parser.add_argument("--model", type=Path, help="a model for them")
    parser.add_argument("--peer", help="command that predicts a folder of scans with nnU-Net")
    parser.add_argument("--only", default="volume,memory,small")
    parser.add_argument("--process", nargs=2, metavar=("WHO", "SLICES"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    if arguments.process:
        who, slices = arguments.process
        print(json.dumps(_one_process(arguments.work, who, int(slices))))
        return
    result: dict[str, Any] = {"machine": machine() | {"bfloat16": bfloat16_unit()}, "versions": versions()}
    if "volume" in arguments.only:
        result["volume"] = volume(arguments.work)
    if "memory" in arguments.only:
        result["memory"] = memory(arguments.work)
    if "small" in arguments.only and arguments.hippocampus:
        result["small"] = small(arguments.work, arguments.hippocampus, arguments.model)
    if "peer" in arguments.only and arguments.peer:
        result["peer"] = beside_peer(arguments.work, arguments.hippocampus, arguments.model, arguments.peer)
    json.dump(result, sys.stdout, indent=2)


def volume(work: Path) -> dict[str, Any]:
    """256 x 256 x 128 voxels of 1 mm, a network at 1.5 mm, and back."""
    scan = phantom(work / "scan.nii.gz", SHAPE)
    model = write_model(work / "model.medseg", CLASSES, PATCH, WIDTHS, (1.5, 1.5, 1.5))
    precisions = ["float32"] + (["bfloat16"] if bfloat16_unit() else [])
    jobs = {p: job_of(work / f"masks_{p}", model, SegmentConfig(device="cpu", precision=p)) for p in precisions}
    ready = {p: load_model([model], job.settings) for p, job in jobs.items()}
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in ("monai", *precisions)}
    for _ in range(ROUNDS):  # in turns, so that a machine that is busy for a while is busy for all
        rounds["monai"].append(monai_scan(model, scan, work / "monai"))
        for precision in precisions:
            parts = our_scan(jobs[precision], scan)
            rounds[precision].append(parts | {"windows_only": windows_only(ready[precision], scan)})
    best = {name: min(found, key=lambda parts: parts["total"]) for name, found in rounds.items()}
    rows: dict[str, Any] = {"seconds": {name: _rounded(parts) for name, parts in best.items()}}
    for precision in precisions:
        ours = best[precision]
        folder = our_folder(work / f"folder_{precision}", model, jobs[precision].settings)
        again = min(windows_only(ready[precision], scan) for _ in range(2))
        rows[precision] = {
            "monai / ours": round(best["monai"]["total"] / ours["total"], 2),
            "one scan / windows only": round(ours["total"] / ours["windows_only"], 3),
            "scan of a folder / windows only": round(folder / min(again, ours["windows_only"]), 3),
            "same voxels as monai": round(agreement(work / "monai", jobs[precision].output), 5),
        }
        for name, value in rows[precision].items():
            _tell(f"{precision}: {name}", value)
    return rows


def memory(work: Path) -> dict[str, Any]:
    """Peak resident memory of 512 x 512 x 600 voxels and 20 classes, of twice as many slices, and of MONAI with fewer.

    Of MONAI's, 300 slices are killed on a machine of 24 GiB.
    """
    peaks = {}
    for who, slices in (("ours", 600), ("ours", 1200), ("monai", FEW), ("monai", 2 * FEW)):
        command = [sys.executable, __file__, "--work", str(work), "--process", who, str(slices)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks[f"{who} {slices}"] = json.loads(done.stdout.splitlines()[-1])
        _tell(f"GiB of {who}, {slices} slices", peaks[f"{who} {slices}"]["gib"])
    few, more = peaks[f"monai {FEW}"]["gib"], peaks[f"monai {2 * FEW}"]["gib"]
    monai = few + (more - few) / FEW * (LARGE[2] - FEW)
    ours, twice = peaks["ours 600"]["gib"], peaks["ours 1200"]["gib"]
    voxels = math.prod(LARGE)
    allowed = (4 * voxels + 4 * voxels / 1.25**3 + voxels) / 2**30
    rows = {
        "peaks": peaks,
        "monai 600, extrapolated linearly": round(monai, 2),
        "monai / ours": round(monai / ours, 2),
        "growth with twice the slices": round(twice - ours, 2),
        "growth allowed": round(allowed, 2),
    }
    for name in list(rows)[1:]:
        _tell(name, rows[name])
    return rows


def small(work: Path, scans: Path, model: Path) -> dict[str, Any]:
    """A folder of small scans: what each costs beside the network."""
    settings = SegmentConfig(device="cpu")
    loaded = load_model([model], settings)
    items = [Scan(path.name.split(".")[0], (path,)) for path in sorted(scans.glob("*.nii.gz"))]
    job = job_of(work / "small", model, settings)
    ends: list[float] = []
    outcomes = map_cases(job, items, "small scans", 1, lambda _: ends.append(time.perf_counter()), isolated=True)
    records = [outcome.result for outcome in outcomes if outcome.result]
    wall = (ends[-1] - ends[0]) / (len(ends) - 1)
    asked = statistics.fmean(windows_only(loaded, item.files[0]) for item in items[::10])
    parts = {name: statistics.median(o.parts[name] for o in outcomes[1:]) for name in ("read", "ask", "write")}
    rows = {
        "scans": len(records),
        "arithmetic": f"{loaded.arithmetic.runtime} {loaded.arithmetic.precision}",
        "ms a scan": round(1000 * wall, 1),
        "ms of it in the network": round(1000 * asked, 1),
        "ms beside the network": round(1000 * (wall - asked), 1),
        "ms of each step": {name: round(1000 * value, 1) for name, value in parts.items()},
    }
    _tell("ms beside the network, a scan", rows["ms beside the network"])
    return rows


def beside_peer(work: Path, scans: Path, model: Path, command: str) -> dict[str, Any]:
    """A folder of small scans through nnU-Net's predictor and through ours, taking turns."""
    program = str(Path(sys.executable).with_name("medseg"))
    ours = [program, "segment", str(model), str(scans), str(work / "beside_peer"), "--device", "cpu"]
    seconds: dict[str, list[float]] = {"peer": [], "float32": [], "bfloat16": []}
    for _ in range(ROUNDS):
        peer = [*shlex.split(command), str(scans), str(work / "peer_masks")]
        printed = subprocess.run(peer, capture_output=True, text=True, check=True).stdout
        seconds["peer"].append(float(re.findall(r"([\d.]+) s$", printed, re.MULTILINE)[-1]))
        for precision in ("float32", "bfloat16"):
            shutil.rmtree(work / "beside_peer", ignore_errors=True)
            start = time.perf_counter()
            subprocess.run([*ours, "--precision", precision], capture_output=True, check=True)
            seconds[precision].append(time.perf_counter() - start)
    least = {name: min(values) for name, values in seconds.items()}
    rows: dict[str, Any] = {"scans": len(list(scans.glob("*.nii.gz"))), "seconds": seconds}
    for precision in ("float32", "bfloat16"):
        rows[f"peer / ours, {precision}"] = round(least["peer"] / least[precision], 2)
        _tell(f"nnU-Net / ours, {precision}", rows[f"peer / ours, {precision}"])
    return rows


def our_scan(job: SegmentScan, scan: Path) -> dict[str, float]:
    """Seconds of each step."""
    work: Any = Scan("scan", (scan,))
    parts = {}
    for step in job.steps:
        start = time.perf_counter()
        work = step(work)
        parts[step.__name__] = time.perf_counter() - start
    return parts | {"total": sum(parts.values())}


def our_folder(output: Path, model: Path, settings: SegmentConfig) -> float:
    """Seconds a scan in a folder of eight, after one that warms up; the time from its end to the last one's."""
    scans = [phantom(output.parent / f"scan_{seed}.nii.gz", SHAPE, seed) for seed in range(FOLDER + 1)]
    items = [Scan(path.name.split(".")[0], (path,)) for path in scans]
    ends: list[float] = []
    job = job_of(output, model, settings)
    map_cases(job, items, "folder", 1, lambda _: ends.append(time.perf_counter()), isolated=True)
    return (ends[-1] - ends[0]) / FOLDER


def windows_only(model: LoadedModel, scan: Path) -> float:
    """Seconds that the network takes for the windows of a scan, which lie ready in memory."""
    prepared = read_scan(model.bundle, [scan], SegmentConfig(), None, "scan")
    patch = model.bundle.plan.patch_voxels
    starts = [window_starts(max(n, p), p, 0.5) for n, p in zip(prepared.grid.shape, patch, strict=True)]
    padded = np.zeros((1, *(max(n, p) for n, p in zip(prepared.grid.shape, patch, strict=True))), np.float32)
    padded[(slice(None), *map(slice, prepared.grid.shape))] = prepared.image
    windows = [
        torch.from_numpy(np.ascontiguousarray(padded[None, :, x : x + patch[0], y : y + patch[1], z : z + patch[2]]))
        for x in starts[0]
        for y in starts[1]
        for z in starts[2]
    ]
    model.run(windows[0])
    start = time.perf_counter()
    with torch.inference_mode():
        for window in windows:
            model.run(window)
    return time.perf_counter() - start


def monai_scan(model: Path, scan: Path, output: Path) -> dict[str, float]:
    """As MONAI's tutorials segment a scan; seconds of each part."""
    from monai.inferers import SlidingWindowInferer
    from monai.transforms import (
        AsDiscreted,
        Compose,
        EnsureChannelFirstd,
        Invertd,
        LoadImaged,
        Orientationd,
        SaveImaged,
        ScaleIntensityRanged,
        Spacingd,
    )

    bundle = read_bundle(model)
    spacing, patch = bundle.plan.preprocessing.spacing, bundle.plan.patch_voxels
    network = bundle.network(0)
    before = Compose(
        [
            LoadImaged("image", image_only=True),
            EnsureChannelFirstd("image"),
            Orientationd("image", axcodes="RAS"),
            Spacingd("image", pixdim=spacing, mode="bilinear"),
            ScaleIntensityRanged("image", LOW, HIGH, (LOW - MEAN) / STD, (HIGH - MEAN) / STD, clip=True),
        ]
    )
    after = Compose(
        [
            Invertd("pred", before, orig_keys="image", nearest_interp=False, to_tensor=True),
            AsDiscreted("pred", argmax=True),
            SaveImaged(
                "pred", output_dir=output, output_postfix="", output_ext=".nii.gz", separate_folder=False, print_log=False
            ),
        ]
    )
    inferer = SlidingWindowInferer(patch, sw_batch_size=1, overlap=0.5, mode="gaussian")
    start = time.perf_counter()
    data = before({"image": str(scan)})
    read = time.perf_counter()
    with torch.inference_mode():
        data["pred"] = inferer(data["image"][None], network)[0]
    asked = time.perf_counter()
    after(data)
    end = time.perf_counter()
    return {"read": read - start, "ask": asked - read, "write": end - asked, "total": end - start}


def agreement(one: Path, other: Path) -> float:
    """Share of the voxels that both masks give the same class."""
    masks = [np.asarray(nibabel.load(folder / "scan.nii.gz").dataobj) for folder in (one, other)]
    return float((masks[0] == masks[1]).mean())


def _one_process(work: Path, who: str, slices: int) -> dict[str, float]:
    """Segment a long scan. Returns: the peak of this process's memory in GiB, and the seconds."""
    scan = phantom(work / f"long_{slices}.nii.gz", (*LARGE[:2], slices))
    model = write_model(work / "narrow.medseg", MANY, SMALL_PATCH, NARROW, (1.25, 1.25, 1.25))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    command = [sys.executable, "-c", _CHILD, who, str(scan), str(model), str(work / f"long_{who}")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parent.parent)
    if done.returncode:
        raise SystemExit(done.stderr)
    kib, seconds = map(float, done.stdout.split()[-2:])
    return {"gib": round(kib / 2**20, 2), "seconds": round(seconds, 1), "parent_kib": before}


_CHILD = """
import resource, sys, time
from pathlib import Path
sys.path.insert(0, "benchmarks")
import inference
who, scan, model, output = sys.argv[1], *map(Path, sys.argv[2:])
start = time.perf_counter()
if who == "monai":
    inference.monai_scan(model, scan, output)
else:
    inference.our_scan(inference.job_of(output, model, inference.SegmentConfig(device="cpu", precision="float32")), scan)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter() - start)
"""


def job_of(output: Path, model: Path, settings: SegmentConfig) -> SegmentScan:
    return SegmentScan((model,), read_bundle(model).sha256, "", settings, output, output, redo=True)


def phantom(path: Path, shape: tuple[int, ...], seed: int = 0) -> Path:
    """A body of tissue with organs in it, in air, as 16-bit CT of 1 mm; made slice by slice."""
    if path.exists():
        return path
    rng = np.random.default_rng(seed)
    x, y = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape[:2]), indexing="ij")
    organs = [(*rng.uniform(-0.5, 0.5, 3), rng.uniform(0.1, 0.35), value) for value in (60, 110, 180, 300, -700)]
    noise = (rng.normal(size=(4, *shape[:2])) * 12).astype(np.int16)
    voxels = np.empty(shape, np.int16)
    for k, z in enumerate(np.linspace(-1, 1, shape[2])):
        plane = np.where(x**2 / 0.8 + y**2 / 0.5 < 1, 20, -1000)
        for cx, cy, cz, radius, value in organs:
            plane[(x - cx) ** 2 + (y - cy) ** 2 + (z - cz) ** 2 < radius**2] = value
        voxels[..., k] = plane + noise[k % 4] // (1 if shape[2] <= 256 else 100)
    image = nibabel.Nifti1Image(voxels, np.diag([-1.0, -1.0, 1.0, 1.0]))
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)
    return path


def write_model(path: Path, classes: int, patch: int, widths: list[int], spacing: tuple[float, float, float]) -> Path:
    """A U-Net that has learnt for a minute."""
    rule = FixedNormalisation(low=LOW, high=HIGH, mean=MEAN, std=STD)
    preprocessing = Preprocessing(physical=True, spacing=spacing, order=1, normalisation=[rule])
    plan = Plan(
        preprocessing=preprocessing,
        channels=["image"],
        n_channels=1,
        patch_voxels=(patch, patch, patch),
        batch_size=2,
        flips=[],
    )
    torch.manual_seed(0)
    options = {"features": widths, "deep_supervision": False}
    network = build_network("unet", options, in_channels=1, n_classes=classes, patch_voxels=plan.patch_voxels).eval()
    _teach(network)
    labels = LabelScheme(structures=[Structure(name=f"organ {k}", id=k) for k in range(1, classes)])
    description = Description(model="benchmark", architecture="unet", options=options, plan=plan, labels=labels)
    write_bundle(path, Bundle(description, (network.state_dict(),), "# benchmark\n"))
    return path


def _teach(network: Any) -> None:
    """Train it for a minute to tell organs by their values, so that its masks are compact, as those of trained networks are."""
    path = Path(tempfile.mkdtemp()) / "lesson.nii.gz"
    hounsfield = np.asarray(nibabel.load(phantom(path, SHAPE)).dataobj).astype(np.float32)[48:-48, 48:-48]
    picture = torch.from_numpy((np.clip(hounsfield, LOW, HIGH) - MEAN) / STD)
    classes = torch.tensor([0, 0, 1, 2, 3])[np.digitize(hounsfield, [-450, 40, 85, 240])]
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    rng = np.random.default_rng(0)
    network.train()
    for _ in range(LESSONS):
        x, y, z = (int(rng.integers(0, n - LESSON + 1)) for n in picture.shape)
        part = (slice(x, x + LESSON), slice(y, y + LESSON), slice(z, z + LESSON))
        logits = network(picture[part][None, None])[0]
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits, classes[part][None]).backward()
        optimizer.step()
    network.eval()


def _rounded(parts: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 3) for name, value in parts.items()}


def _tell(name: str, value: Any) -> None:
    print(f"{name:48s} {value}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
