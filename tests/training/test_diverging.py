"""Trainings that diverge, weights that become no numbers, and memory that does not suffice."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pandas as pd
import pytest
import torch

from medseg.core.errors import StageError
from medseg.training import job as job_module
from medseg.training import loop, recover
from medseg.training.checkpoint import load_weights
from medseg.training.diverging import WINDOW, Trend, finite
from medseg.training.loop import train_model
from medseg.training.schedule import Schedule
from medseg.training.step import Trainer

RATE = 0.25
SETTINGS = {"epochs": 4, "steps_per_epoch": 3, "optimizer": {"name": "sgd", "learning_rate": RATE, "momentum": 0.5}}


@pytest.fixture(autouse=True)
def _no_drawing(monkeypatch):
    monkeypatch.setattr(loop, "draw_training_curves", lambda log, path: path)


@pytest.fixture
def spoil(monkeypatch):
    """Do something at the n-th step after the timed ones where it learns at more than 0.3 times the full rate."""
    step = Trainer.step

    def arrange(number: int, action, always: bool = False) -> None:
        done = itertools.count(1)

        def spoilt(self, batch, learning_rate, seed):
            loss = step(self, batch, learning_rate, seed)
            if learning_rate and (next(done) == number or (always and learning_rate < 0.3 * RATE)):
                return action(self, loss)
            return loss

        monkeypatch.setattr(Trainer, "step", spoilt)

    return arrange


def to_nan(trainer: Trainer, loss: torch.Tensor) -> torch.Tensor:
    return loss * math.nan


def weights_to_nan(trainer: Trainer, loss: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        next(trainer.network.parameters()).fill_(math.nan)
    return loss


def last(job) -> dict[str, torch.Tensor]:
    return load_weights(job.folder / "last.safetensors")


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def take_in(losses) -> str | None:
    trend = Trend()
    return next((f"{n}: {what}" for n, loss in enumerate(losses) if (what := trend.add(float(loss)))), None)


def test_a_training_that_learns_does_not_diverge():
    rng = np.random.default_rng(0)
    falling = 0.2 + 1.5 * np.exp(-np.arange(2000) / 100)
    assert take_in(falling) is None
    assert take_in(falling * rng.lognormal(0, 0.4, 2000)) is None
    assert take_in(np.full(500, 0.9)) is None  # it learns nothing, and that is another trouble
    assert take_in([*falling, 3.0, *falling[1000:]]) is None  # one odd batch


def test_an_explosion_is_told_from_its_running_mean():
    falling = 0.2 + 1.5 * np.exp(-np.arange(500) / 100)
    what = take_in([*falling, *np.full(40, 4.0)])
    assert what is not None and 505 < int(what.split(":")[0]) < 500 + WINDOW and "rose to" in what
    assert take_in([*falling, *np.full(200, 0.8)]) is None  # worse by far, but better than at the start


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number_is_told_at_once(loss):
    assert Trend().add(loss) == f"the loss became {loss}"


def test_an_epoch_that_ends_while_the_loss_explodes_is_no_place_to_go_back_to():
    trend = Trend()
    for loss in [*np.full(40, 0.5), 6.0]:
        trend.add(loss)
    assert not trend.calm
    for loss in np.full(WINDOW, 0.5):
        trend.add(loss)
    assert trend.calm


def test_finite_sees_one_bad_weight():
    network = torch.nn.Linear(3, 3)
    assert finite(network)
    weights_to_nan(type("T", (), {"network": network}), torch.ones(1))
    assert not finite(network)


@pytest.mark.parametrize(
    ("step", "action", "what"),
    [(8, to_nan, "the loss became nan at step 8"), (9, weights_to_nan, "the weights became no numbers at step 9")],
)
def test_it_goes_back_to_the_last_good_checkpoint_with_a_lower_rate(make_job, spoil, capsys, step, action, what):
    spoil(step, action)
    job = make_job(**SETTINGS)
    trained = train_model(job)
    said = capsys.readouterr().err
    assert what in said and "back to step 6" in said
    assert "back to step 6" in json.loads((job.folder / "schedule.json").read_text())["reasons"]["learning_rate"]
    log = pd.read_csv(job.folder / "log.csv")
    plain = [RATE * 0.5 * (1 + math.cos(math.pi * (step - 1) / 12)) for step in log.step]
    np.testing.assert_allclose(log.learning_rate / plain, [1, 1, 0.3, 0.3])
    assert log.train_loss.notna().all() and all(w.isfinite().all() for w in trained.weights.values())


def test_it_goes_back_to_the_same_place_whatever_the_clock_saved_and_wherever_it_was_killed(make_job, spoil, monkeypatch):
    jobs = [make_job(name, **SETTINGS, checkpoint_minutes=m) for name, m in (("a", 60), ("b", 1e-9), ("c", 60))]
    for job in jobs[:2]:
        spoil(8, to_nan)
        train_model(job)
    spoil(8, to_nan)
    step = Trainer.step

    def killed(self, batch, learning_rate, seed):
        if learning_rate and Schedule.load(jobs[2].folder / "schedule.json").reasons.get("learning_rate"):
            log = jobs[2].folder / "log.csv"
            if list(pd.read_csv(log).epoch) == [1, 2, 3]:
                raise MemoryError("killed")
        return step(self, batch, learning_rate, seed)

    monkeypatch.setattr(Trainer, "step", killed)
    with pytest.raises(MemoryError):
        train_model(jobs[2])
    monkeypatch.setattr(Trainer, "step", step)
    train_model(jobs[2])
    assert equal(last(jobs[0]), last(jobs[1])) and equal(last(jobs[0]), last(jobs[2]))


def test_without_a_checkpoint_it_goes_back_to_the_first_weights(make_job, spoil, monkeypatch):
    monkeypatch.setattr(recover, "LOWER_RATE", 0.25)  # a power of two: products with it are exact
    spoil(2, to_nan)
    job = make_job("back", **SETTINGS)
    train_model(job)
    lower = make_job("lower", **(SETTINGS | {"optimizer": SETTINGS["optimizer"] | {"learning_rate": RATE / 4}}))
    train_model(lower)
    assert equal(last(job), last(lower))


def test_the_second_time_it_stops_and_names_the_cases(make_job, spoil):
    spoil(5, to_nan, always=True)
    job = make_job(**SETTINGS)
    with pytest.raises(StageError, match=r"nan at step 4 \(cases c\d, c\d\), after a return to a lower .*--redo train"):
        train_model(job)
    assert all(w.isfinite().all() for w in last(job).values())


def test_a_loss_that_explodes_is_gone_back_from(make_job, monkeypatch, capsys):
    step = Trainer.step

    def exploding(self, batch, learning_rate, seed):
        loss = step(self, batch, learning_rate, seed)
        return loss * 50 if 0.3 * RATE < learning_rate < 0.6 * RATE else loss

    monkeypatch.setattr(Trainer, "step", exploding)
    train_model(make_job(**(SETTINGS | {"epochs": 20})))
    said = capsys.readouterr().err
    assert "the mean loss of 20 steps rose to" in said and "back to step" in said


class Memory:
    """Networks that raise as a GPU does where more than `most` samples are to be learnt from."""

    def __init__(self, monkeypatch, most: int, after: int = 0) -> None:
        self.most, self.seen, build = most, itertools.count(), job_module.build_network

        def built(*args, **settings):
            network = build(*args, **settings)
            network.register_forward_pre_hook(self.check)
            return network

        self.after = after
        monkeypatch.setattr(job_module, "build_network", built)

    def check(self, network, inputs) -> None:
        if network.training and next(self.seen) >= self.after and len(inputs[0]) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")


# No batch norm and a loss that is a mean over voxels: then accumulated gradients are those of the whole batch.
ALIKE = {"loss": "ce", "precision": "float32", "batch_size": 4, "optimizer": {"name": "sgd", "learning_rate": 0.1}, "epochs": 2}


@pytest.mark.parametrize(("most", "micro_batches"), [(2, 2), (1, 4)])
def test_too_little_memory_takes_the_batch_in_micro_batches(make_job, monkeypatch, capsys, most, micro_batches):
    whole, job = make_job("whole", **ALIKE), make_job("accumulated", **ALIKE)
    train_model(whole)
    Memory(monkeypatch, most)
    trained = train_model(job)
    assert (
        trained.schedule.micro_batches == micro_batches
        and f"micro_batches {micro_batches}: the GPU's memory" in capsys.readouterr().err
    )
    for name, weight in last(whole).items():
        torch.testing.assert_close(last(job)[name], weight, rtol=1e-4, atol=1e-5)


def test_memory_that_runs_out_later_is_remembered_when_it_goes_on(make_job, monkeypatch, capsys):
    job = make_job(**ALIKE)
    Memory(monkeypatch, 2, after=9)
    train_model(job)
    schedule = Schedule.load(job.folder / "schedule.json")
    assert schedule.micro_batches == 2 and "micro_batches" in schedule.reasons
    assert "train unet: the GPU's memory does not hold the batch whole" in capsys.readouterr().err


def test_a_resumed_training_starts_in_micro_batches(make_job, monkeypatch):
    job = make_job(**ALIKE)
    Memory(monkeypatch, 2)
    train_model(job)
    (job.folder / "last.safetensors").unlink()
    (job.folder / "last.previous.safetensors").unlink()
    monkeypatch.setattr(Trainer, "_halve", None)
    assert train_model(job).schedule.micro_batches == 2


def test_one_patch_that_does_not_fit_is_a_sentence(make_job, monkeypatch):
    Memory(monkeypatch, 0)
    with pytest.raises(StageError, match=r"does not hold one patch .*plan\.memory_gb"):
        train_model(make_job(**ALIKE))
