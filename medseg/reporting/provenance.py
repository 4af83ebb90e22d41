"""Where a report's figures come from: versions, machine, hashes and times of every stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from medseg.core.record import machine, versions
from medseg.reporting.collect import STAGES, ModelResults, ReportData
from medseg.reporting.words import NONE, format_number


@dataclass(frozen=True)
class StageRow:
    """One stage as its stage.json tells it."""

    stage: str
    model: str
    finished: str
    took: str
    version: str
    commit: str
    inputs: str


def stage_rows(data: ReportData) -> list[StageRow]:
    """The stages in their order, each model's after one another."""
    ordered = sorted(data.records.items(), key=lambda item: STAGES.index(item[0][0]))
    return [
        StageRow(
            stage,
            model,
            str(record.get("finished", ""))[:16].replace("T", " "),
            duration(record.get("seconds")),
            str(record.get("medseg", NONE)),
            commit_text(record.get("commit")),
            str(record.get("inputs_sha256", ""))[:12],
        )
        for (stage, model), record in ordered
    ]


def duration(seconds: Any) -> str:
    """Seconds as `48 s`, `12 min 05 s` or `3 h 20 min`."""
    if not isinstance(seconds, (int, float)):
        return NONE
    if seconds < 99.5:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


def commit_text(commit: Any) -> str:
    """A commit as the record holds it; `+` marks changes that were not committed."""
    text = str(commit) if commit else NONE
    return f"{text[:-1]} (with uncommitted changes)" if text.endswith("+") else text


def latest(data: ReportData) -> dict[str, Any]:
    """Versions, machine and seed: those of the training where there is one, for its figures depend on them most."""
    records = [r for stage in ("train", "predict", "evaluate") for (s, _), r in data.records.items() if s == stage]
    first = records[0] if records else {}
    return {
        "versions": first.get("versions") or versions(),
        "machine": first.get("machine") or machine(),
        "seed": next((r["seed"] for r in records if r.get("seed") is not None), None),
    }


def machine_text(facts: dict[str, Any]) -> str:
    """The machine in a line."""
    parts = [facts.get("processor"), facts.get("cores") and f"{facts['cores']} cores"]
    parts += [facts.get("memory_gib") and f"{facts['memory_gib']:g} GiB memory", facts.get("system"), facts.get("gpu")]
    return ", ".join(str(part) for part in parts if part)


@dataclass(frozen=True)
class ModelRow:
    """A model, how long it was trained and on what."""

    name: str
    architecture: str
    steps: str
    epochs: str
    took: str
    device: str
    best_dice: str
    sha256: str


def model_rows(data: ReportData) -> list[ModelRow]:
    """The models that were trained in this run; empty for masks made by another tool."""
    return [_model_row(data, model) for model in data.models if model.logs]


def _model_row(data: ReportData, model: ModelResults) -> ModelRow:
    logs = list(model.logs.values())
    schedules = model.settings.get("schedules") or [{}] * len(logs)
    record = data.records.get(("train", model.name), {})
    hashes: list[str] = []
    if model.predictions is not None and "model_sha256" in model.predictions:
        hashes = list(dict.fromkeys(h[:12] for h in model.predictions["model_sha256"] if h))
    best = [log["val_dice"].max() for log in logs if "val_dice" in log and log["val_dice"].notna().any()]
    devices = [" ".join(str(schedule[key]) for key in ("device", "precision") if schedule.get(key)) for schedule in schedules]
    steps = [s.get("steps") or (log["step"].max() if "step" in log else None) for s, log in zip(schedules, logs, strict=True)]
    folds = f"{len(logs)} folds of " if len(logs) > 1 else ""
    return ModelRow(
        model.name,
        str(model.settings.get("architecture") or NONE),
        folds + _least_to_most(steps),
        _least_to_most([log["epoch"].max() if "epoch" in log else len(log) for log in logs]),
        # Over all sittings, where a training was interrupted; `seconds` is the last one's.
        duration(record.get("training_seconds", record.get("seconds"))),
        ", ".join(dict.fromkeys(device for device in devices if device)) or NONE,
        format_number(sum(best) / len(best) if best else None, 3),
        ", ".join(hashes) or NONE,
    )


def _least_to_most(numbers: Sequence[float | None]) -> str:
    """The number of all folds, or the least and the greatest."""
    known = sorted({number for number in numbers if number is not None})
    texts = [format_number(number, 0) for number in known[:1] + known[1:][-1:]]
    return " to ".join(texts) or NONE
