"""Stage `prepare`: measure the training cases, plan, and store them as the network will see them. Test cases are not read."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from medseg.core.cases import map_cases
from medseg.core.errors import ConfigError, StageError
from medseg.core.files import json_sha256, remove, write_text
from medseg.core.labels import LabelScheme
from medseg.core.manifest import Case
from medseg.core.progress import say
from medseg.core.record import StageRecord
from medseg.core.volume import Volume
from medseg.data.normalise import require_finite
from medseg.data.preprocess import Preprocessing
from medseg.data.store import PreparedStore
from medseg.data.transforms import LoadVolumed, apply, training_transform
from medseg.inference.scans import images_sha256
from medseg.models.registry import parse_models
from medseg.planning.config import PlanConfig
from medseg.planning.fingerprint import CaseFingerprint, Fingerprint, measure
from medseg.planning.plan import Plan, make_plan
from pipelines.config import RunConfig

Spacing = tuple[float, float, float] | None

CASES_PER_WORKER = 16  # starting a worker process takes about as long as preparing that many small cases


def run(config: RunConfig, redo: bool = False) -> int:
    """Fingerprint, plan and prepared arrays of the training and validation cases. Returns the exit code."""
    settings, data, scheme = config.section("plan", PlanConfig), config.data, config.labels
    models = parse_models(config.models, str(config.path))
    manifest = config.manifest()
    cases = manifest.of("train", "val")
    if unlabelled := [case.case_id for case in cases if case.label is None]:
        raise ConfigError(f"{manifest.path}: training case {unlabelled[0]} has no label; name one or remove the row.")
    workers = settings.workers or max(1, min(os.cpu_count() or 1, len(cases) // CASES_PER_WORKER))
    outcomes = map_cases(_hash_case, cases, "prepare: reading files", workers=1)
    _all_or_stop(outcomes)
    hashes = {o.item.case_id: o.result for o in outcomes}
    inputs = {
        "plan": settings.model_dump(exclude={"workers"}),
        "data": {"modality": data.modality, "spacing_mm": data.spacing_mm},
        "labels": scheme.model_dump(),
        "channels": manifest.channels,
        "models": {
            name: {"architecture": m.architecture, "options": m.options.model_dump(mode="json")} for name, m in models.items()
        },
        "cases": {case.case_id: [case.split, hashes[case.case_id]] for case in cases},
    }
    record = StageRecord(config.folder("prepare"), inputs)
    if record.unchanged() and not redo:
        say("prepare: unchanged, skipped")
        return 0

    measured = map_cases(
        partial(measure_case, scheme=scheme, spacing_mm=data.spacing_mm), manifest.of("train"), "prepare: fingerprint", workers
    )
    _all_or_stop(measured)
    fingerprint = _together([o.result for o in measured if o.result is not None])
    plan = make_plan(fingerprint, settings, scheme, manifest.channels, data.modality, inputs["models"])  # type: ignore[arg-type]
    remove(record.path)  # until all is written anew, what stands here is a mixture and not finished
    write_text(config.folder("prepare") / "fingerprint.json", fingerprint.model_dump_json(indent=2) + "\n")
    plan.save(config.folder("prepare") / "plan.json")
    _tell(plan)

    job = StoreCase(config.folder("prepare", "cases"), plan.preprocessing, scheme, data.spacing_mm, hashes)  # type: ignore[arg-type]
    _all_or_stop(map_cases(job, cases, "prepare: cases", workers))
    record.write("prepare", config.seed, {"train": len(manifest.of("train")), "val": len(manifest.of("val"))})
    return 0


@dataclass(frozen=True)
class Measured:
    fingerprint: CaseFingerprint
    channels: int


def measure_case(case: Case, scheme: LabelScheme, spacing_mm: Spacing) -> Measured:
    """Read one case on its own grid and measure it. Raises: CaseError."""
    loaded = LoadVolumed(["image", "label"], ("label",), scheme, spacing_mm)({"image": case.images, "label": case.label})
    volume = Volume(np.asarray(loaded["image"]), loaded["image_grid"])
    require_finite(volume.array, case.case_id)
    return Measured(measure(volume, np.asarray(loaded["label"])[0], scheme), len(volume.array))


@dataclass(frozen=True)
class StoreCase:
    """Preprocess one case and store it, unless the same case stands there already."""

    folder: Path
    preprocessing: Preprocessing
    scheme: LabelScheme
    spacing_mm: Spacing
    hashes: dict[str, list[str]]

    def __call__(self, case: Case) -> None:
        store = PreparedStore(self.folder)
        settings = [self.preprocessing.model_dump(), self.scheme.model_dump(), self.spacing_mm]
        key = json_sha256([settings, self.hashes[case.case_id]])
        if store.key(case.case_id) == key:
            return
        transform = training_transform(self.preprocessing, self.scheme, self.spacing_mm)
        prepared = apply(transform, {"image": case.images, "label": case.label, "case_id": case.case_id})
        store.write(case.case_id, key, np.asarray(prepared["image"]), np.asarray(prepared["label"])[0])


def _hash_case(case: Case) -> list[str]:
    return [images_sha256([path]) for path in (*case.images, case.label) if path is not None]


def _together(measured: list[Measured]) -> Fingerprint:
    channels = {m.channels for m in measured}
    physical = {m.fingerprint.physical for m in measured}
    if len(channels) > 1:
        raise StageError(
            f"the training images have different numbers of channels ({sorted(channels)}); `medseg check` names them."
        )
    if len(physical) > 1:
        raise StageError(
            "some training images state a physical size and others do not; state `data.spacing_mm` or separate them."
        )
    return Fingerprint(channels=channels.pop(), physical=physical.pop(), cases=[m.fingerprint for m in measured])


def _all_or_stop(outcomes: list) -> None:  # type: ignore[type-arg]
    """Training on fewer cases than the manifest names would be a silent loss, so one bad case stops the stage."""
    if bad := [o for o in outcomes if not o.ok]:
        for outcome in bad[:20]:
            say(f"  {outcome.item.case_id}: {outcome.reason}")
            if outcome.trace:
                say(outcome.trace)
        raise StageError(f"{len(bad)} of {len(outcomes)} training cases cannot be used ({bad[0].item.case_id}: {bad[0].reason})")


def _tell(plan: Plan) -> None:
    say("plan:")
    values = {
        "spacing": plan.preprocessing.spacing,
        "patch_voxels": plan.patch_voxels,
        "batch_size": plan.batch_size,
        "flips": plan.flips,
        "crop_nonzero": plan.preprocessing.crop_nonzero,
        "normalisation": "",
    }
    for key, value in values.items():
        say(f"  {key} {value if value is not None else 'own'}: {plan.reasons[key]}")
