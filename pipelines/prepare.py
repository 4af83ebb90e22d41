"""Stage `prepare`: measure the training cases, plan, and store them as the network will see them. Test cases are not read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from medseg.core.cases import map_cases, worth_workers
from medseg.core.errors import ConfigError, StageError
from medseg.core.files import file_sha256, held_alone, remove, remove_leftovers, write_text
from medseg.core.limits import available_cores
from medseg.core.manifest import Case, Manifest
from medseg.core.progress import say
from medseg.core.record import StageRecord, differences, read_record
from medseg.core.wording import some_of
from medseg.data.store import PreparedStore
from medseg.inference.bundle import read_bundle
from medseg.inference.scans import images_sha256
from medseg.models.registry import parse_models
from medseg.planning.cases import MeasureCase, StoreCase, together
from medseg.planning.config import PlanConfig
from medseg.planning.edited import edited_plan, values_of
from medseg.planning.fingerprint import Fingerprint
from medseg.planning.machine import granted_here
from medseg.planning.plan import Plan, make_plan
from medseg.training.config import TrainingConfig
from medseg.training.preview import draw_preview
from pipelines.config import RunConfig

CASES_PER_WORKER = 16  # starting a worker process takes about as long as preparing that many small cases


def run(config: RunConfig, redo: bool = False) -> int:
    """Fingerprint, plan and prepared arrays of the training and validation cases. Returns the exit code.

    A plan.json that was edited since is kept where all that it was derived from is unchanged. What is missing or damaged is made
    again.

    Args:
        redo: derive the plan and store the cases although nothing has changed.
    """
    with held_alone(config.output, "prepare or train"):  # a training that is under way reads the cases
        return _run(config, redo)


def _run(config: RunConfig, redo: bool) -> int:
    settings, training = config.section("plan", PlanConfig), _training(config)
    manifest = config.manifest()
    cases = manifest.of("train", "val")
    if unlabelled := [case.case_id for case in cases if case.label is None]:
        raise ConfigError(f"{manifest.path}: training case {unlabelled[0]} has no label; name one or remove the row.")
    large = worth_workers(path for case in cases for path in case.images)
    workers = settings.workers or max(1, min(available_cores(), len(cases) // (1 if large else CASES_PER_WORKER)))
    outcomes = map_cases(_hash_case, cases, "prepare: reading files", workers if large else 1)
    _all_or_stop(outcomes)
    hashes: dict[str, list[str]] = {o.item.case_id: o.result or [] for o in outcomes}
    record = StageRecord(config.folder("prepare"), _inputs(config, settings, training, manifest, hashes))
    fingerprint = _measure(config, manifest, hashes, workers)
    before, facts = record.previous(), None
    if before is None or not record.unchanged() or redo or not _plan_path(config).is_file():
        plan, facts = _derive(config, settings, training, manifest, fingerprint, record)
    elif before.get("plan_sha256") != file_sha256(_plan_path(config)):
        plan, facts = _keep_edited(config, before)
    else:
        plan = Plan.load(_plan_path(config))
    _write_fingerprint(config, fingerprint)
    job = StoreCase(config.folder("prepare", "cases"), plan.preprocessing, config.labels, config.data.spacing_mm, hashes, redo)
    missing = [case for case in cases if not job.stands(case)]
    if facts is None:
        say(f"prepare: unchanged, but {len(missing)} stored cases were damaged" if missing else "prepare: unchanged, skipped")
    if missing:
        _all_or_stop(map_cases(job, missing, "prepare: cases", workers))
    if facts is not None:
        counts = {"train": len(manifest.of("train")), "val": len(manifest.of("val"))}
        record.write("prepare", config.seed, counts, **facts, plan_sha256=file_sha256(_plan_path(config)))
    _preview(config, training, manifest, plan, redo)
    return 0


def plan_of(config: RunConfig) -> Plan:
    """The plan that the prepared cases were made with. No image is read: that they are the same files, `prepare` alone sees.

    Raises: StageError where `prepare` has not finished, or where the plan, the cases or the configuration have changed since.
    """
    record, path = read_record(config.folder("prepare")), _plan_path(config)
    if record is None:
        raise StageError(f"{config.folder('prepare')} is not finished; run `medseg prepare` first.")
    inputs = _inputs(config, config.section("plan", PlanConfig), _training(config), config.manifest(), None)
    if changed := differences(_but_files(record["inputs"]), _but_files(json.loads(json.dumps(inputs, default=str)))):
        raise StageError(f"{config.path}: {some_of(changed)} changed since the cases were prepared; run `medseg prepare` first.")
    plan = Plan.load(path)
    if file_sha256(path) != record["plan_sha256"]:
        raise StageError(f"{path}: plan.json was edited after the cases were prepared; run `medseg prepare` first.")
    return plan


def _but_files(inputs: dict[str, Any]) -> dict[str, Any]:
    """A record's inputs without the hashes of the cases' files."""
    return inputs | {"cases": {case_id: split for case_id, (split, _) in inputs["cases"].items()}}


def _measure(config: RunConfig, manifest: Manifest, hashes: dict[str, list[str]], workers: int) -> Fingerprint:
    """The fingerprint of the training cases; each is measured once."""
    measure = MeasureCase(config.folder("prepare", "fingerprints"), config.labels, config.data.spacing_mm, hashes)
    cases = manifest.of("train")
    remove_leftovers(measure.folder)
    if all(measure.known(case) for case in cases):
        workers = 1  # reading the records takes less time than starting others
    measured = map_cases(measure, cases, "prepare: fingerprint", workers)
    _all_or_stop(measured)
    return together([o.result for o in measured if o.result is not None])


def _write_fingerprint(config: RunConfig, fingerprint: Fingerprint) -> None:
    """fingerprint.json, where it does not stand there."""
    path, text = config.folder("prepare") / "fingerprint.json", fingerprint.model_dump_json(indent=2) + "\n"
    if not path.is_file() or path.read_bytes() != text.encode():
        write_text(path, text)


def _derive(
    config: RunConfig,
    settings: PlanConfig,
    training: TrainingConfig | None,
    manifest: Manifest,
    fingerprint: Fingerprint,
    record: StageRecord,
) -> tuple[Plan, dict[str, Any]]:
    """Derive the plan and write it; also what the stage's record says of it."""
    granted = granted_here(
        settings.memory_gb,
        training.device if training else "auto",
        training.budget_minutes if training else None,
        training.precision if training else "auto",
    )
    models = {name: dict(model) for name, model in record.inputs["models"].items()}
    plan = make_plan(
        fingerprint,
        settings,
        config.labels,
        manifest.channels,
        config.data.modality,  # type: ignore[arg-type]
        models,
        granted,
        _start(training),
    )
    _keep_copy_of_edit(config, record)
    remove_leftovers(record.folder)
    remove(record.path)  # until all is written anew, what stands here is a mixture and not finished
    plan.save(_plan_path(config))
    _tell(plan)
    return plan, {"plan": values_of(plan), "edited": [], "granted": granted.model_dump()}


def _keep_edited(config: RunConfig, before: dict[str, Any]) -> tuple[Plan, dict[str, Any]]:
    """The edited plan with its reasons, checked. The record stays until the cases fit it, so a kill loses no edit."""
    path = _plan_path(config)
    plan, changed = edited_plan(Plan.load(path), before["plan"], config.labels.n_outputs, str(path))
    plan.save(path)
    say(f"plan.json was edited: kept ({', '.join(changed) or 'no value differs'})")
    return plan, {"plan": before["plan"], "edited": changed, "granted": before["granted"]}


def _keep_copy_of_edit(config: RunConfig, record: StageRecord) -> None:
    """An edit that is derived anew, since the data or the configuration changed, is set aside and not lost."""
    path, before = _plan_path(config), record.previous()
    if before is None or "plan_sha256" not in before or not path.is_file():
        return
    if before["edited"] or before["plan_sha256"] != file_sha256(path):
        kept = path.with_name("plan.edited.json")
        write_text(kept, path.read_text(encoding="utf-8"))
        say(f"plan.json was edited, and what it was derived from has changed: derived anew, the edited one is kept as {kept}")


def _inputs(
    config: RunConfig,
    settings: PlanConfig,
    training: TrainingConfig | None,
    manifest: Manifest,
    hashes: dict[str, list[str]] | None,
) -> dict[str, Any]:
    """What the plan and the cases depend on. The machine's memory does not count: a plan is made once and then kept.

    Args:
        hashes: of each case's files; None leaves them out.
    """
    models = parse_models(config.models, str(config.path))
    return {
        "plan": settings.model_dump(exclude={"workers"}),
        "data": {"modality": config.data.modality, "spacing_mm": config.data.spacing_mm},
        "labels": config.labels.model_dump(),
        "channels": manifest.channels,
        "models": {
            name: {"architecture": m.architecture, "options": m.options.model_dump(mode="json")} for name, m in models.items()
        },
        "training": training
        and {
            "budget_minutes": training.budget_minutes,
            "device": training.device,
            "precision": training.precision,
            "init_from": training.init_from and read_bundle(training.init_from).sha256,
        },
        "cases": {case.case_id: [case.split, (hashes or {}).get(case.case_id)] for case in manifest.of("train", "val")},
    }


def _training(config: RunConfig) -> TrainingConfig | None:
    """The section `training`, which bounds the plan by its time; None where there is none yet."""
    return config.section("training", TrainingConfig) if config.settings.get("training") else None


def _start(training: TrainingConfig | None) -> Plan | None:
    """The plan of the model that the training starts from, with that model in it."""
    if training is None or training.init_from is None:
        return None
    return read_bundle(training.init_from).whole_plan


def _preview(config: RunConfig, training: TrainingConfig | None, manifest: Manifest, plan: Plan, redo: bool) -> None:
    """The contact sheet of augmented patches, anew where something that it shows has changed."""
    if training is None:
        return
    store = PreparedStore(config.folder("prepare", "cases"))
    train_ids = [case.case_id for case in manifest.of("train")]
    inputs = {
        "augmentation": training.augmentation.model_dump(mode="json"),
        "plan": plan.model_dump(mode="json", include={"preprocessing", "patch_voxels", "flips", "swaps"}),
        "seed": config.seed,
        "cases": {case_id: store.key(case_id) for case_id in train_ids},
    }
    record = StageRecord(config.folder("prepare", "augmentation"), inputs)
    picture = record.folder / "patches.png"
    if record.unchanged() and picture.is_file() and not redo:
        return
    remove(record.path)
    draw_preview(picture, store, train_ids, plan, training.augmentation, config.seed)
    record.write("augmentation preview", config.seed, {"cases": len(train_ids)})
    say(f"prepare: augmented patches to look at: {picture}")


def _plan_path(config: RunConfig) -> Path:
    return config.folder("prepare") / "plan.json"


def _hash_case(case: Case) -> list[str]:
    return [images_sha256([path]) for path in (*case.images, case.label) if path is not None]


def _all_or_stop(outcomes: list) -> None:  # type: ignore[type-arg]
    """Training on fewer cases than the manifest names would be a silent loss, so one bad case stops the stage."""
    if bad := [o for o in outcomes if not o.ok]:
        for outcome in bad[:20]:
            say(f"  {outcome.item.case_id}: {outcome.reason}")
            if outcome.trace:
                say(outcome.trace)
        raise StageError(f"{len(bad)} of {len(outcomes)} training cases cannot be used ({bad[0].item.case_id}: {bad[0].reason})")


def _tell(plan: Plan) -> None:
    """The plan in the console; what keeps left and right apart is said here too (`flips`)."""
    say("plan:")
    told = ("spacing", "order", "crop_nonzero", "normalisation", "patch_voxels", "batch_size", "flips")
    for key in (*told, *(f"models.{name}" for name in plan.models)):
        value = values_of(plan)[key]
        say(f"  {key} {_short(value)}: {plan.reasons[key]}")


def _short(value: Any) -> str:
    if isinstance(value, dict) or (isinstance(value, list) and any(isinstance(v, dict) for v in value)):
        return ""
    return "own" if value is None else str(value)
