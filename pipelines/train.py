"""Stage `train`: each model of the configuration on the prepared cases. Test cases are not read.

Under `torchrun ... -m pipelines.train CONFIG` several processes train one model together; the first of them writes the files.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from medseg.core.errors import StageError
from medseg.core.files import file_sha256, held_alone, remove, write_json, write_text
from medseg.core.manifest import Manifest
from medseg.core.progress import say
from medseg.core.record import StageRecord, differences, read_record
from medseg.core.wording import one_line, some_of
from medseg.data.splits import Fold, fold_of_cases
from medseg.data.store import PreparedStore
from medseg.inference.bundle import Bundle, Description, read_bundle, write_bundle
from medseg.inference.card import air_below, fingerprint_ranges, model_card
from medseg.inference.runtime import cache_folder
from medseg.inference.together import join_folds
from medseg.planning.cases import class_voxels_of
from medseg.planning.fingerprint import Fingerprint
from medseg.planning.plan import Plan
from medseg.training.config import TrainingConfig
from medseg.training.device import choose_device
from medseg.training.distributed import Processes, leave, processes
from medseg.training.finish import Finish, choose_finish
from medseg.training.job import Job
from medseg.training.loop import Trained, train_model
from medseg.training.precision import measure_precision
from medseg.training.start import origin
from pipelines.config import RunConfig
from pipelines.prepare import plan_of

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
    "best.next.safetensors",
)
# Settings that a training under way may change: they leave the weights alone (noise on a GPU aside, which `augment_on` draws
# elsewhere). The file of `init_from` counts by its content.
FREE_SETTINGS = {"workers", "augment_on", "checkpoint_minutes", "track", "init_from"}


def run(config: RunConfig, redo: bool = False) -> int:
    """Train every model that is not trained yet; a training that was interrupted goes on. Returns the exit code.

    With `folds` every fold of a model is a training of its own in `train/<model>/fold_<k>`, and `train/<model>/model.medseg` is
    all of them together.

    Args:
        redo: throw finished and half-done trainings away and begin anew.
    Raises: StageError where a finished or half-done training was made from other inputs.
    """
    settings = config.section("training", TrainingConfig)
    plan, manifest = plan_of(config), config.manifest()
    folds = config.cross_validation(manifest)
    jobs = {
        name: [_fold_job(config, whole, fold) for fold in folds] or [whole]
        for name in config.model_names
        for whole in [_job(config, manifest, name, settings, plan)]
    }
    with processes(settings.device) as team, ExitStack() as held:
        team.on_main(_begin, config, jobs, redo, manifest, folds, held)
        for name, rounds in jobs.items():
            for job in rounds:
                _train(config, job, team)
            if folds:
                team.on_main(_join, config, name, rounds, plan)
    return 0


def _job(config: RunConfig, manifest: Manifest, name: str, settings: TrainingConfig, plan: Plan) -> Job:
    """The training of a model on the manifest's splits."""
    return Job(
        name=name,
        **plan.models[name],
        settings=settings,
        plan=plan,
        labels=config.labels,
        store=PreparedStore(config.folder("prepare", "cases")),
        train_ids=sorted(case.case_id for case in manifest.of("train")),
        val_ids=sorted(case.case_id for case in manifest.of("val")),
        folder=config.folder("train", name),
        seed=config.seed,
    )


def _fold_job(config: RunConfig, job: Job, fold: Fold) -> Job:
    """One round of a cross-validation. The cases that it holds out are not among the job's, nor among its counted voxels."""
    counts = class_voxels_of(config.folder("prepare", "fingerprints"), fold.train)
    reasons = job.plan.reasons | {"class_voxels": f"counted in the {len(fold.train)} training cases of fold {fold.number}"}
    return replace(
        job,
        name=f"{job.name} fold {fold.number}",
        plan=job.plan.model_copy(update={"class_voxels": counts, "reasons": reasons}),
        train_ids=list(fold.train),
        val_ids=list(fold.val),
        folder=config.fold_folder(job.name, fold.number),
    )


def _begin(
    config: RunConfig, jobs: dict[str, list[Job]], redo: bool, manifest: Manifest, folds: Sequence[Fold], held: ExitStack
) -> None:
    held.enter_context(held_alone(config.output, "prepare or train"))  # before anything is removed
    _clear_or_refuse(config, jobs, redo)
    if folds:
        _write_folds(config.folder("train", "folds.csv"), manifest, folds)


def _clear_or_refuse(config: RunConfig, jobs: dict[str, list[Job]], redo: bool) -> None:
    for name in jobs:
        folder = config.folder("train", name)
        if redo:
            for place in (folder, *folder.glob("fold_*")):
                _forget(place)
        elif config.folds is not None and (folder / "inputs.json").is_file():
            raise StageError(
                f"{folder} holds a training without folds; start anew with `--redo train`, or choose another `output`."
            )
    for job in [job for rounds in jobs.values() for job in rounds]:
        _refuse_other_inputs(job, _record(job))


def _write_folds(path: Path, manifest: Manifest, folds: Sequence[Fold]) -> None:
    """folds.csv: which fold holds each case of the pool out."""
    fold_of = fold_of_cases(folds)
    rows = [(c.case_id, c.patient_id, fold_of[c.case_id]) for c in manifest.cases if c.case_id in fold_of]
    table = pd.DataFrame(rows, columns=["case_id", "patient_id", "fold"])
    write_text(path, table.to_csv(index=False, lineterminator="\n"))


def _record(job: Job) -> StageRecord:
    return StageRecord(job.folder, _inputs(job))


def _train(config: RunConfig, job: Job, team: Processes) -> None:
    record = _record(job)
    if team.gather(record.unchanged() and (job.folder / "model.medseg").is_file())[0]:
        if team.main:
            say(f"train {job.name}: unchanged, skipped")
        return
    if team.main:
        write_json(job.folder / "inputs.json", record.inputs)
    trained = train_model(job, team)
    team.on_main(_finish, config, job, record, trained)


def _join(config: RunConfig, name: str, rounds: Sequence[Job], plan: Plan) -> None:
    """The folds' models in one file, and the record of the whole cross-validation.

    Args:
        plan: of all folds together.
    """
    folder, data = config.folder("train", name), config.data
    bundles = [read_bundle(job.folder / "model.medseg") for job in rounds]
    record = StageRecord(folder, {"folds": [bundle.sha256 for bundle in bundles]})
    if record.unchanged() and (folder / "model.medseg").is_file():
        say(f"train {name}: all {len(rounds)} folds unchanged, skipped")
        return
    facts = [read_record(job.folder) or {} for job in rounds]
    structures = {s: _mean([fact["best"]["structures"][s] for fact in facts]) for s in facts[0]["best"]["structures"]}
    pool = {case_id for job in rounds for case_id in (*job.train_ids, *job.val_ids)}
    note = f"The {len(rounds)} networks of a {len(rounds)}-fold cross-validation together, each trained without one fold."
    joined = join_folds(name, bundles)
    card = model_card(
        name,
        rounds[0].architecture,
        plan,
        rounds[0].labels,
        data.name,
        len(pool),
        0,
        structures,
        f"{data.note} {note}".strip(),
        data.citation,
        data.licence,
        joined.description.postprocessing,
        joined.description.temperature,
        started_from=joined.description.started_from,
    )
    about = joined.description.model_copy(update={"plan": plan.model_copy(update={"models": {}})})
    write_bundle(folder / "model.medseg", replace(joined, description=about, card=card))
    best = {"dice": _mean([fact["best"]["dice"] for fact in facts]), "structures": structures}
    best["structures"] = {k: None if math.isnan(v) else round(v, 4) for k, v in structures.items()}
    seconds = sum(fact["training_seconds"] for fact in facts)
    record.write("train", config.seed, {"folds": len(rounds), "pool": len(pool)}, model=name, best=best, training_seconds=seconds)
    say(f"train {name}: {len(rounds)} folds in one file, {folder / 'model.medseg'}")


def _mean(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else math.nan


def _inputs(job: Job) -> dict[str, Any]:
    """What the weights depend on. A model that is added to the run changes nothing for the others."""
    cases = {case_id: ["train", job.store.made_from(case_id)] for case_id in job.train_ids}
    cases |= {case_id: ["val", job.store.made_from(case_id)] for case_id in job.val_ids}
    return {
        "training": job.settings.model_dump(mode="json", exclude=FREE_SETTINGS),
        "model": {"architecture": job.architecture, "options": job.options, "weights_sha256": _weights_sha256(job.options)},
        "init_from_sha256": _start_sha256(job.settings.init_from),
        "plan": job.plan.model_dump(mode="json", exclude={"models", "reasons"}),
        "labels": job.labels.model_dump(mode="json"),
        "seed": job.seed,
        "cases": cases,
    }


def _weights_sha256(options: dict[str, Any]) -> str | None:
    """The hash of the pretrained weights that a model starts with, if any."""
    weights = options.get("weights")
    return file_sha256(Path(weights)) if weights and Path(weights).is_file() else None


def _start_sha256(path: Path | None) -> str | None:
    """The hash of the model file that a training starts with, if any. Raises: StageError where it is missing."""
    if path is None:
        return None
    try:
        return file_sha256(path)
    except OSError as error:
        raise StageError(f"training.init_from: {path} cannot be read ({error.strerror}); correct its path.") from None


def _refuse_other_inputs(job: Job, record: StageRecord) -> None:
    """Raises: StageError naming what changed since the training in this folder was begun."""
    before = _begun_with(job.folder, record)
    if before is None:
        return
    if changed := differences(before, json.loads(json.dumps(record.inputs))):
        state = "finished" if record.previous() else "half-done"
        raise StageError(
            f"{job.folder} holds a {state} training made from other inputs ({some_of(changed)} changed); "
            "start anew with `--redo train`, or choose another `output`."
        )


def _begun_with(folder: Path, record: StageRecord) -> dict[str, Any] | None:
    try:
        return dict(json.loads((folder / "inputs.json").read_text(encoding="utf-8")))
    except (OSError, ValueError):
        finished = record.previous()
        return None if finished is None else dict(finished.get("inputs", {}))


def _forget(folder: Path) -> None:
    for name in OWN_FILES:
        remove(folder / name)


def _bundle(config: RunConfig, job: Job, trained: Trained, finish: Finish) -> Bundle:
    """The model file's content: the best weights and all that is needed to use them; no case ids."""
    data = config.data
    started_from = origin(job.settings.init_from) if job.settings.init_from else None
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
        finish.postprocessing,
        finish.temperature,
        finish.figures,
        started_from,
    )
    description = Description(
        model=job.name,
        architecture=job.architecture,
        options=job.options | ({"weights": Path(weights).name} if (weights := job.options.get("weights")) else {}),
        plan=job.plan.model_copy(update={"models": {}}),
        labels=job.labels,
        fingerprint=_fingerprint(config.folder("prepare") / "fingerprint.json", job.plan),
        postprocessing=finish.postprocessing,
        temperature=finish.temperature,
        finish=finish.figures,
        typical=finish.typical,
        started_from=started_from,
    )
    return Bundle(description, (trained.weights,), card)


def _fingerprint(path: Path, plan: Plan) -> dict[str, Any]:
    try:
        fingerprint = Fingerprint.model_validate_json(path.read_text(encoding="utf-8"))
        return fingerprint_ranges(fingerprint) | {"air_below": air_below(fingerprint, plan.preprocessing)}
    except (OSError, ValueError) as error:
        raise StageError(f"{path} is missing or damaged ({one_line(error)}); run `medseg prepare` again.") from None


def _finish(config: RunConfig, job: Job, record: StageRecord, trained: Trained) -> None:
    """Write the model file, and then the record that says that it is done."""
    finish = choose_finish(job, trained.weights, trained.schedule)
    bundle = _bundle(config, job, trained, finish)
    write_bundle(job.folder / "model.medseg", bundle)
    if figures := _precision_figures(job, bundle):
        about = bundle.description.model_copy(update={"precision_figures": figures})
        write_bundle(job.folder / "model.medseg", replace(bundle, description=about))
    counts = {"train": len(job.train_ids), "val": len(job.val_ids), "steps": trained.schedule.steps}
    best = dict(trained.best)
    best["structures"] = {k: None if math.isnan(v) else round(v, 4) for k, v in best["structures"].items()}
    seconds = round(trained.seconds, 1)
    rules = finish.postprocessing.model_dump(mode="json")["rules"] if finish.postprocessing else {}
    chosen = {"temperature": round(finish.temperature, 4), "postprocessing": rules}
    facts = {"best": best, "finish": finish.figures, "chosen": chosen, "training_seconds": seconds}
    record.write("train", config.seed, counts, model=job.name, **facts)
    where = f"epoch {best['epoch']} of {trained.schedule.epochs}"
    say(f"train {job.name}: best validation Dice {best['dice']:.3f} ({where}) in {trained.seconds:.0f} s")


def _precision_figures(job: Job, bundle: Bundle) -> dict[str, Any] | None:
    """What bfloat16 costs; None where it cannot be measured, which no model is lost over."""
    try:
        return measure_precision(bundle, job.store, job.val_ids, choose_device(job.settings.device)[0], cache_folder(job.folder))
    except Exception as error:
        say(f"train {job.name}: what bfloat16 costs could not be measured ({one_line(error, 200)})")
        return None


def main() -> None:
    """`python -m pipelines.train CONFIG`: as `medseg train`, for torchrun, which starts modules and scripts."""
    from pipelines.cli import main as medseg

    sys.argv[1:1] = ["train"]
    try:
        medseg()
    except SystemExit as ended:
        if os.environ.get("WORLD_SIZE", "1") == "1":
            raise
        leave(ended.code if isinstance(ended.code, int) else int(ended.code is not None))


if __name__ == "__main__":
    main()
