"""After the last step: what is done with a network's answers, chosen once on the validation cases."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from medseg.core.progress import progress, say
from medseg.inference.bundle import empty_network
from medseg.inference.postprocess import Postprocessing
from medseg.inference.runtime import TorchNetwork
from medseg.inference.typical import Typical
from medseg.inference.window import predict_logits
from medseg.training.calibration import Answers, best_temperature, calibration_error, cross_entropy, some_answers, together
from medseg.training.device import DTYPES, arrange, choose_device
from medseg.training.job import Job
from medseg.training.ordinary import Seen, learn_typical
from medseg.training.pieces import Pieces, choose_postprocessing, mean_dice, pieces_of
from medseg.training.schedule import Schedule

OVERLAP = 0.5  # of the windows; `predict` takes as much where nothing else is asked for
MOST_VOXELS = 1_000_000  # that the temperature is measured on, of all cases together
MOST_VOXELS_OF_CASE = 50_000


@dataclass(frozen=True)
class Finish:
    """What travels in the model beside its weights.

    Args:
        figures: `cases`, and before and after: `dice` (mean over the structures), `structures` (each one's), `cross_entropy`
            and `calibration_error`; no NaN.
        typical: what unusual cases are told by.
    """

    postprocessing: Postprocessing | None
    temperature: float
    typical: Typical
    figures: dict[str, Any]


def choose_finish(job: Job, weights: Mapping[str, torch.Tensor], schedule: Schedule) -> Finish:
    """Predict each validation case once more and choose postprocessing and temperature by the answers.

    It is one more validation, on the prepared grid and in the training's precision, with overlap 0.5 and no mirroring. It does
    not count for `budget_minutes`. Of each case only the pieces' sizes and some voxels' logits are kept. The setting
    `postprocessing: false` leaves the temperature alone to be chosen.
    """
    pieces, answers, seen = _predict(job, weights, schedule)
    labels = job.labels
    postprocessing = choose_postprocessing(pieces, labels) if job.settings.postprocessing else None
    temperature = best_temperature(answers)
    dice = {
        "before": mean_dice(pieces, labels, {}),
        "after": mean_dice(pieces, labels, postprocessing.rules if postprocessing else {}),
    }
    figures = {
        "cases": len(pieces),
        "dice": {when: _rounded(math.fsum(values.values()) / len(values)) for when, values in dice.items()},
        "structures": {when: {n: _rounded(v) for n, v in values.items()} for when, values in dice.items()},
        "cross_entropy": _both(cross_entropy, answers, temperature),
        "calibration_error": _both(calibration_error, answers, temperature),
    }
    typical = learn_typical(job, seen, postprocessing, temperature)
    finish = Finish(postprocessing, float(f"{temperature:.4g}"), typical, figures)
    _tell(job, finish)
    return finish


def _predict(
    job: Job, weights: Mapping[str, torch.Tensor], schedule: Schedule
) -> tuple[list[dict[str, Pieces]], Answers, dict[str, Seen]]:
    device, dtype = choose_device(job.settings.device)[0], DTYPES[schedule.precision]
    network = empty_network(job.architecture, job.options, job.plan, job.labels.n_outputs)
    network.load_state_dict(dict(weights))
    run = TorchNetwork(arrange(network, device, schedule.channels_last).eval(), device, dtype)
    batch = max(1, job.batch_size // schedule.micro_batches)  # as much as the memory held in training
    spacing = job.plan.preprocessing.spacing or (1.0, 1.0, 1.0)
    rng = np.random.default_rng(job.seed)
    most = min(MOST_VOXELS_OF_CASE, MOST_VOXELS // len(job.val_ids))
    pieces, answers, seen = [], [], {}
    with progress(f"train {job.name}: postprocessing and temperature", len(job.val_ids)) as advance:
        for done, case_id in enumerate(job.val_ids, start=1):
            case = job.store.open(case_id)
            image, reference = np.array(case.image), np.array(case.classes)
            logits = predict_logits(run, image, job.plan.patch_voxels, OVERLAP, batch, device=device)
            classes = job.labels.decide(logits)
            pieces.append(pieces_of(classes, reference, job.labels, math.prod(spacing)))
            seen[case_id] = Seen(logits, classes, reference, job.labels)
            answers.append(some_answers(logits, reference, job.labels, most, rng))
            advance(done)
    return pieces, together(answers), seen


def _both(measure: Any, answers: Answers, temperature: float) -> dict[str, float]:
    if not len(answers.logits):
        return {}
    return {"before": _rounded(measure(answers)), "after": _rounded(measure(answers, temperature))}


def _rounded(value: float) -> float:
    return round(value, 5)


def _tell(job: Job, finish: Finish) -> None:
    unit = "mm3" if job.plan.preprocessing.physical else "voxels"
    rules = finish.postprocessing.rules if finish.postprocessing else {}
    text = "; ".join(f"{name}: {rule.text(unit)}" for name, rule in rules.items()) or "none helps"
    if not job.settings.postprocessing:
        text = "none asked for"
    dice = finish.figures["dice"]
    gain = f" (Dice {dice['before']:.4f} to {dice['after']:.4f})" if rules else ""
    say(f"train {job.name}: temperature {finish.temperature:.3g}, postprocessing {text}{gain}")
