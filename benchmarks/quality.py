"""Quality flags on hippocampus scans, ordinary and spoilt: a table on standard error and JSON on standard output.

Takes a finished cross-validation. Of each fold's model, the end of the training is done once more where its file does not know
what is typical; then it segments the cases that the fold held out, the test cases, and 20 scans of each of four kinds made from
these: another modality in a box of the same size (crops of real CT scans, and of MR scans of other kinds), the scan upside down
under the same header, a third to a half of it cut away, and noise of its mean and deviation.

python benchmarks/quality.py --data data/hippocampus --others data --run runs/hippocampus_folds --model unet
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medseg.core.files import write_json
from medseg.core.grid import Grid
from medseg.core.record import commit, machine, versions
from medseg.core.resample import resample
from medseg.core.volume import LabelMap, Volume
from medseg.data.preprocess import preprocess
from medseg.data.store import PreparedStore
from medseg.inference.bundle import Bundle, read_bundle
from medseg.inference.postprocess import postprocess
from medseg.inference.quality import Flag, Observer, describe, judge, typical_of
from medseg.inference.restore import restore
from medseg.inference.runtime import TorchNetwork
from medseg.inference.typical import Typical
from medseg.inference.window import predict_logits
from medseg.io.formats import read_volume
from medseg.training.config import TrainingConfig
from medseg.training.finish import choose_finish
from medseg.training.job import Job
from medseg.training.schedule import Schedule

MANIFEST = Path(__file__).parent.parent / "data_manifests" / "hippocampus.csv"
OTHERS = (
    "totalseg_ct_mr_small/images/example_ct.nii.gz",
    "sct_spinal_cord/images/t2.nii.gz",
    "brats2015/images/brats_2013_pat0001_1_Flair.nii.gz",
    "totalseg_ct_mr_small/images/example_mr_sm.nii.gz",
    "sct_spinal_cord/images/t1w.nii.gz",
    "pyradiomics_nrrd/images/brain1_image.nrrd",
    "totalseg_ct_mr_small/images/example_ct_sm.nii.gz",
    "brats2015/images/brats_2013_pat0003_1_T1c.nii.gz",
    "pyradiomics_nrrd/images/breast1_image.nrrd",
    "pyradiomics_nrrd/images/prostate_phantom_image.nrrd",
)
EACH = 20  # spoilt scans of each kind
FILLED = 0.8  # share of a crop that is not of one value: air tells too easily
KINDS = ("wrong modality", "upside down", "cropped", "noise")
ORDINARY = "ordinary"


def other_modality(number: int, grid: Grid, folder: Path, rng: np.random.Generator) -> Volume:
    """A box of 1 mm voxels out of another scan, on the grid of a hippocampus."""
    source = read_volume(folder / OTHERS[number % len(OTHERS)])
    canonical = source.grid.canonical()
    size, half = np.array(canonical.shape) * canonical.spacing, np.array(grid.shape) / 2
    room = np.minimum(half, size / 2)
    span = float(np.ptp(source.array))
    for _ in range(1000):
        affine = canonical.affine.copy()
        affine[:3, :3] = canonical.directions
        affine[:3, 3] += canonical.directions @ (rng.uniform(room, size - room) - half)
        array = resample(source.array, source.grid, Grid(grid.shape, affine), order=1, fill=float(source.array.min()))
        if (np.abs(array - np.median(array)) > 1e-3 * span).mean() > FILLED:
            break
    return Volume(array, grid)


def upside_down(scan: Volume) -> Volume:
    """Voxel data turned over from bottom to top under the same header."""
    axis = int(np.abs(scan.grid.directions[2]).argmax())
    return Volume(np.ascontiguousarray(np.flip(scan.array, axis + 1)), scan.grid)


def cropped(scan: Volume, number: int) -> Volume:
    """A third, two fifths or a half cut away on one side of one axis."""
    axis, share, first = number % 3, (1 / 3, 0.4, 0.5)[number // 3 % 3], number // 2 % 2
    cut = round(scan.grid.shape[axis] * share)
    start, shape = [0, 0, 0], list(scan.grid.shape)
    start[axis], shape[axis] = first * cut, shape[axis] - cut
    part = tuple(slice(s, s + n) for s, n in zip(start, shape, strict=True))
    return Volume(np.ascontiguousarray(scan.array[(slice(None), *part)]), scan.grid.cropped(tuple(start), tuple(shape)))


def noise(scan: Volume, number: int, rng: np.random.Generator) -> Volume:
    """Normal and uniform noise by turns."""
    mean, std, shape = float(scan.array.mean()), float(scan.array.std()), scan.array.shape
    values = rng.normal(mean, std, shape) if number % 2 else mean + std * rng.uniform(-(3**0.5), 3**0.5, shape)
    return Volume(values.astype(np.float32), scan.grid)


def spoilt(scans: list[Volume], others: Path, seed: int) -> Iterator[tuple[str, Volume]]:
    """(kind, scan), `EACH` of every kind."""
    rng = np.random.default_rng(seed)
    for number, scan in enumerate(scans[:EACH]):
        made = (
            other_modality(number, scan.grid, others, rng),
            upside_down(scan),
            cropped(scan, number),
            noise(scan, number, rng),
        )
        yield from zip(KINDS, made, strict=True)


@dataclass(frozen=True)
class Fold:
    """One model of the cross-validation.

    Args:
        train, val: the cases that it knows.
    """

    folder: Path
    bundle: Bundle
    train: list[str]
    val: list[str]

    @classmethod
    def read(cls, folder: Path) -> Fold:
        roles = {c: role for c, (role, _) in json.loads((folder / "inputs.json").read_text())["cases"].items()}
        train, val = ([c for c, r in roles.items() if r == role] for role in ("train", "val"))
        return cls(folder, read_bundle(folder / "model.medseg"), sorted(train), sorted(val))

    def typical(self, store: PreparedStore) -> Typical:
        """What the model file knows, or would know if it were written now."""
        about = self.bundle.description
        if about.typical is None:
            job = Job(
                name=about.model,
                architecture=about.architecture,
                options=about.options,
                settings=TrainingConfig(epochs=1),
                plan=about.plan,
                labels=about.labels,
                store=store,
                train_ids=self.train,
                val_ids=self.val,
                folder=self.folder,
            )
            schedule = Schedule.load(self.folder / "schedule.json")
            assert schedule is not None
            about = about.model_copy(update={"typical": choose_finish(job, self.bundle.weights[0], schedule).typical})
        return typical_of(about)


def flags_of(scan: Volume, bundle: Bundle, run: TorchNetwork, typical: Typical) -> list[Flag]:
    """As `segment` finds them."""
    plan, labels = bundle.plan, bundle.labels
    prepared = preprocess(scan, plan.preprocessing)
    logits = predict_logits(run, prepared.array, plan.patch_voxels, batch=plan.batch_size) / bundle.temperatures[0]
    observer = Observer(labels)
    observer.add(torch.from_numpy(logits))
    classes = restore(logits, prepared.grid, scan.grid, labels)
    if (rules := bundle.description.postprocessing) is not None:
        classes = LabelMap(postprocess(classes.array, rules, labels, classes.grid), classes.grid)
    features = describe(prepared.array, prepared.grid, scan.grid, classes, labels, observer, typical.mean_picture)
    return judge(features, typical, labels)


def measure(folder: Path, run_folder: Path, data: Path, others: Path, test: list[str]) -> dict[str, Any]:
    """Of one fold, for ordinary scans and each kind of spoilt ones: how many, how many flagged, by which kinds of flags."""
    fold, store = Fold.read(folder), PreparedStore(run_folder / "prepare" / "cases")
    typical = fold.typical(store)
    run = TorchNetwork(fold.bundle.networks()[0], torch.device("cpu"), torch.float32)
    pool = sorted(p.name for p in store.folder.iterdir() if p.is_dir())
    held_out = [case_id for case_id in pool if case_id not in {*fold.train, *fold.val, *test}]

    def read(case_id: str) -> Volume:
        return read_volume(data / "images" / f"{case_id}.nii.gz")

    scans = [(ORDINARY, read(case_id)) for case_id in [*held_out, *test]]
    scans += spoilt([read(case_id) for case_id in test], others, seed=0)
    counts: dict[str, Any] = {kind: {"scans": 0, "flagged": 0, "flags": Counter()} for kind in (ORDINARY, *KINDS)}
    for kind, scan in scans:
        flags = flags_of(scan, fold.bundle, run, typical)
        counts[kind]["scans"] += 1
        counts[kind]["flagged"] += bool(flags)
        counts[kind]["flags"].update({flag.kind for flag in flags})
        counts[kind].setdefault("example", "; ".join(flag.sentence for flag in flags) or None)
    for count in counts.values():
        count["flags"] = dict(count["flags"].most_common())
    return {"training cases": len(fold.train), "validation cases": len(fold.val), "limits": len(typical.limits), **counts}


def show(folds: dict[str, Any]) -> None:
    print(f"\n{'flagged of':16}" + "".join(f"{name:>12}" for name in folds), file=sys.stderr)
    for kind in (ORDINARY, *KINDS):
        cells = "".join(f"{f[kind]['flagged']:>6} of {f[kind]['scans']:<2}" for f in folds.values())
        flags = sum((Counter(f[kind]["flags"]) for f in folds.values()), Counter())
        print(f"{kind:16}{cells}   {', '.join(f'{n} {k}' for k, n in flags.most_common(6))}", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with images/ of the hippocampus data")
    parser.add_argument("--others", type=Path, required=True, help="folder with the other data sets")
    parser.add_argument("--run", type=Path, required=True, help="run folder of a finished cross-validation")
    parser.add_argument("--model", default="unet", help="its name in the run")
    parser.add_argument("--output", type=Path, help="the JSON; by default quality.json in the run folder")
    asked = parser.parse_args()
    with open(MANIFEST, newline="", encoding="utf-8") as file:
        test = [row["case_id"] for row in csv.DictReader(file) if row["split"] == "test"]
    folders = sorted((asked.run / "train" / asked.model).glob("fold_*"))
    folds = {f.name: measure(f, asked.run, asked.data, asked.others, test) for f in folders}
    total = {k: {n: sum(f[k][n] for f in folds.values()) for n in ("scans", "flagged")} for k in (ORDINARY, *KINDS)}
    result = {"total": total, "folds": folds, "machine": machine(), "versions": versions(), "commit": commit()}
    show(folds)
    write_json(asked.output or asked.run / "quality.json", result)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
