"""Stage `train`: each model of the configuration on the prepared cases. Test cases are not read."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from medseg.core.errors import StageError
from medseg.core.files import file_sha256, remove, write_json
from medseg.core.progress import say
from medseg.core.record import StageRecord, read_record
from medseg.data.store import PreparedStore
from medseg.inference.bundle import Bundle, Description, write_bundle
from medseg.inference.card import fingerprint_ranges, model_card
from medseg.models.registry import ModelSettings, parse_models
from medseg.planning.fingerprint import Fingerprint
from medseg.planning.plan import Plan
from medseg.training.config import TrainingConfig
from medseg.training.job import Job
from medseg.training.loop import Trained, train_model
from pipelines.config import RunConfig

OWN_FILES = (
    "stage.json",
    "inputs.json",
    "schedule.json",
    "model.medseg",
    "log.csv",
    "progress.png",
    "last.safetensors",
    "last.previous.safetensors",
    "best.safetensors",
)
# Settings that change neither the weights nor what they cost to make again.
FREE_SETTINGS = {"workers", "checkpoint_minutes"}


def run(config: RunConfig, redo: bool = False) -> int:
    """Train every model that is not trained yet; a training that was interrupted goes on. Returns the exit code.

    Args:
        redo: throw finished and half-done trainings away and begin anew.
    Raises: StageError where a finished or half-done training was made from other inputs.
    """
    settings = config.section("training", TrainingConfig)
    if read_record(config.folder("prepare")) is None:
        raise StageError(f"{config.folder('prepare')} is not finished; run `medseg prepare` first.")
    plan = Plan.load(config.folder("prepare") / "plan.json")
    jobs = [_job(config, name, model, settings, plan) for name, model in parse_models(config.models, str(config.path)).items()]
    records = [StageRecord(job.folder, _inputs(job)) for job in jobs]
    for job, record in zip(jobs, records, strict=True):
        if redo:
            _forget(job.folder)
        else:
            _refuse_other_inputs(job, record)
    for job, record in zip(jobs, records, strict=True):
        if record.unchanged() and (job.folder / "model.medseg").is_file():
            say(f"train {job.name}: unchanged, skipped")
            continue
        record.begin()
        write_json(job.folder / "inputs.json", record.inputs)
        trained = train_model(job)
        write_bundle(job.folder / "model.medseg", _bundle(config, job, trained))
        _finish(config, job, record, trained)
    return 0


def _job(config: RunConfig, name: str, model: ModelSettings, settings: TrainingConfig, plan: Plan) -> Job:
    manifest = config.manifest()
    return Job(
        name=name,
        architecture=model.architecture,
        options=model.options.model_dump(mode="json"),
        settings=settings,
        plan=plan,
        labels=config.labels,
        store=PreparedStore(config.folder("prepare", "cases")),
        train_ids=[case.case_id for case in manifest.of("train")],
        val_ids=[case.case_id for case in manifest.of("val")],
        folder=config.folder("train", name),
        seed=config.seed,
    )


def _inputs(job: Job) -> dict[str, Any]:
    """What the weights depend on. A model that is added to the run changes nothing for the others."""
    cases = {case_id: ["train", job.store.key(case_id)] for case_id in job.train_ids}
    cases |= {case_id: ["val", job.store.key(case_id)] for case_id in job.val_ids}
    return {
        "training": job.settings.model_dump(mode="json", exclude=FREE_SETTINGS),
        "model": {"architecture": job.architecture, "options": job.options, "weights_sha256": _weights_sha256(job.options)},
        "plan": job.plan.model_dump(mode="json", exclude={"models", "reasons"}),
        "labels": job.labels.model_dump(mode="json"),
        "seed": job.seed,
        "cases": cases,
    }


def _weights_sha256(options: dict[str, Any]) -> str | None:
    """The hash of the pretrained weights that a model starts with, if any."""
    weights = options.get("weights")
    return file_sha256(Path(weights)) if weights and Path(weights).is_file() else None


def _refuse_other_inputs(job: Job, record: StageRecord) -> None:
    """Raises: StageError naming what changed since the training in this folder was begun."""
    before = _begun_with(job.folder, record)
    if before is None:
        return
    if changed := differences(before, json.loads(json.dumps(record.inputs))):
        some = ", ".join(changed[:5]) + (f" and {len(changed) - 5} more" if len(changed) > 5 else "")
        state = "finished" if record.previous() else "half-done"
        raise StageError(
            f"{job.folder} holds a {state} training made from other inputs ({some} changed); "
            "start anew with `--redo train`, or choose another `output`."
        )


def _begun_with(folder: Path, record: StageRecord) -> dict[str, Any] | None:
    try:
        return dict(json.loads((folder / "inputs.json").read_text(encoding="utf-8")))
    except (OSError, ValueError):
        finished = record.previous()
        return None if finished is None else dict(finished.get("inputs", {}))


def differences(before: Any, after: Any, path: str = "") -> list[str]:
    """The dotted keys at which two JSON values differ."""
    if isinstance(before, dict) and isinstance(after, dict):
        keys = [*before, *(key for key in after if key not in before)]
        return [d for key in keys for d in differences(before.get(key), after.get(key), f"{path}.{key}" if path else key)]
    return [] if before == after else [path]


def _forget(folder: Path) -> None:
    for name in OWN_FILES:
        remove(folder / name)


def _bundle(config: RunConfig, job: Job, trained: Trained) -> Bundle:
    """The model file's content: the best weights and all that is needed to use them; no case ids."""
    data = config.data
    card = model_card(
        job.name,
        job.architecture,
        job.plan,
        job.labels,
        data.name,
        len(job.train_ids),
        len(job.val_ids),
        trained.best["structures"],
        data.note,
        data.citation,
        data.licence,
    )
    description = Description(
        model=job.name,
        architecture=job.architecture,
        options=job.options | ({"weights": Path(weights).name} if (weights := job.options.get("weights")) else {}),
        plan=job.plan.model_copy(update={"models": {}}),
        labels=job.labels,
        fingerprint=_fingerprint(config.folder("prepare") / "fingerprint.json"),
    )
    return Bundle(description, (trained.weights,), card)


def _fingerprint(path: Path) -> dict[str, Any]:
    try:
        return fingerprint_ranges(Fingerprint.model_validate_json(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise StageError(f"{path} is missing or damaged ({' '.join(str(error).split())}); run `medseg prepare` again.") from None


def _finish(config: RunConfig, job: Job, record: StageRecord, trained: Trained) -> None:
    counts = {"train": len(job.train_ids), "val": len(job.val_ids), "steps": trained.schedule.steps}
    best = dict(trained.best)
    best["structures"] = {k: None if math.isnan(v) else round(v, 4) for k, v in best["structures"].items()}
    record.write("train", config.seed, counts, model=job.name, best=best, training_seconds=round(trained.seconds, 1))
    where = f"epoch {best['epoch']} of {trained.schedule.epochs}"
    say(f"train {job.name}: best validation Dice {best['dice']:.3f} ({where}) in {trained.seconds:.0f} s")
