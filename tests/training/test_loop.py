"""Whole trainings of tiny networks: repeated, interrupted, resumed, gone wrong."""

from __future__ import annotations

import os
import signal
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from medseg.core.errors import ConfigError, StageError
from medseg.core.labels import LabelScheme, Region, Structure
from medseg.data.store import PreparedCase
from medseg.losses.registry import build_loss
from medseg.metrics.overlap import confusion_matrix
from medseg.training import loop, track, validate
from medseg.training.checkpoint import Tensors, load_weights
from medseg.training.decide import Timing, choose_augment_on, choose_workers
from medseg.training.job import class_weights
from medseg.training.loop import train_model
from medseg.training.schedule import Schedule
from medseg.training.step import Trainer
from medseg.training.validate import measured_dice, score_cases

DRAW = loop.draw_training_curves


@pytest.fixture(autouse=True)
def _no_drawing(monkeypatch):
    """Drawing takes longer than these trainings."""
    monkeypatch.setattr(loop, "draw_training_curves", lambda log, path: path)


def equal(a: Tensors, b: Tensors) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def last(job) -> Tensors:
    return load_weights(job.folder / "last.safetensors")


@pytest.fixture
def stop_at(monkeypatch):
    """Make a training fail, or do something else, when it begins its n-th step."""
    step = Trainer.step

    def arrange(number: int, action) -> None:
        done = []

        def watched(self, batch, learning_rate, seed):
            if learning_rate:  # timed steps have none
                done.append(1)
                if len(done) == number:
                    action()
            return step(self, batch, learning_rate, seed)

        monkeypatch.setattr(Trainer, "step", watched)

    yield arrange
    monkeypatch.setattr(Trainer, "step", step)


def killed() -> None:
    raise MemoryError("killed")


def test_a_training_leaves_its_log_curves_and_weights(make_job, monkeypatch):
    monkeypatch.setattr(loop, "draw_training_curves", DRAW)
    job = make_job(epochs=3, validation_interval=2)
    trained = train_model(job)
    log = pd.read_csv(job.folder / "log.csv")
    assert list(log.columns[:5]) == ["epoch", "step", "seconds", "learning_rate", "train_loss"]
    assert list(log.epoch) == [1, 2, 3] and list(log.step) == [3, 6, 9] and log.train_loss.notna().all()
    assert list(log.val_dice.notna()) == [False, True, True]
    measured = log.dropna()
    np.testing.assert_allclose(measured.val_dice, (measured.val_dice_large + measured.val_dice_small) / 2)
    assert trained.best["dice"] == pytest.approx(log.val_dice.max()) and trained.best["epoch"] in (2, 3)
    assert (job.folder / "progress.png").stat().st_size > 1000
    assert not [p for p in job.folder.iterdir() if p.name.startswith(".")]


def test_it_learns(make_job):
    job = make_job(epochs=6, steps_per_epoch=15, optimizer={"learning_rate": 0.01}, options={"features": [8, 16]})
    assert train_model(job).best["dice"] > 0.8


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(make_job):
    first, second = (train_model(make_job(name, options={"features": [4, 8]})).weights for name in "ab")
    assert equal(first, second)
    assert not equal(first, train_model(make_job("c", seed=1)).weights)


@pytest.mark.parametrize(
    ("architecture", "settings"),
    [
        ("unet", {"optimizer": {"name": "adamw"}, "channels_last": True}),
        ("unet", {"optimizer": {"name": "sgd"}, "schedule": "poly", "loss": "dice_focal", "warmup_steps": 2}),
        pytest.param("unet", {"workers": 1}, marks=pytest.mark.slow),
        ("fcn8s", {"optimizer": {"name": "adamw"}}),  # with batch norm and dropout
    ],
)
def test_killed_and_resumed_is_undisturbed(make_job, stop_at, architecture, settings):
    options = {"features": [4, 8]} if architecture == "unet" else {"width": 0.0625}
    settings = {"epochs": 3, "steps_per_epoch": 2} | settings
    whole = make_job("whole", architecture, options, **settings)
    undisturbed = train_model(whole)
    broken = make_job("broken", architecture, options, **settings)
    stop_at(4, killed)
    with pytest.raises(MemoryError):
        train_model(broken)
    resumed = train_model(broken)
    assert equal(last(whole), last(broken)) and equal(undisturbed.weights, resumed.weights)
    logs = [pd.read_csv(j.folder / "log.csv").drop(columns="seconds") for j in (whole, broken)]
    pd.testing.assert_frame_equal(*logs)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_asked_to_stop_it_saves_and_leaves(make_job, stop_at, number):
    whole, stopped = make_job("whole", steps_per_epoch=4, epochs=1), make_job("stopped", steps_per_epoch=4, epochs=1)
    train_model(whole)
    times = 2 if number == signal.SIGTERM else 1  # a cluster sends SIGTERM by itself and through torchrun
    stop_at(2, lambda: [os.kill(os.getpid(), number) for _ in range(times)])
    with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else SystemExit) as error:
        train_model(stopped)
    if number == signal.SIGTERM:
        assert error.value.code == 143
    assert (stopped.folder / "last.safetensors").is_file() and not (stopped.folder / "log.csv").exists()
    train_model(stopped)
    assert equal(last(whole), last(stopped))
    pd.testing.assert_series_equal(*[pd.read_csv(j.folder / "log.csv").train_loss for j in (whole, stopped)])


@pytest.mark.parametrize("epoch", [1, 2])
def test_killed_in_a_validation_it_begins_that_again(make_job, monkeypatch, epoch):
    whole, broken = make_job("whole"), make_job("broken")
    train_model(whole)
    scored, score = [], loop.score_cases

    def scores(*arguments):
        scored.append(1)
        if len(scored) == epoch:
            killed()
        return score(*arguments)

    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(loop, "score_cases", scores)
        train_model(broken)
    assert len(pd.read_csv(broken.folder / "log.csv")) == 1 if epoch == 2 else not (broken.folder / "log.csv").exists()
    monkeypatch.setattr(Trainer, "step", None if epoch == 2 else Trainer.step)  # after the last epoch no step is taken again
    train_model(broken)
    assert equal(last(whole), last(broken)) and equal(load_weights(whole.best), load_weights(broken.best))
    pd.testing.assert_frame_equal(*[pd.read_csv(j.folder / "log.csv").drop(columns="seconds") for j in (whole, broken)])


def test_asked_to_stop_in_a_validation_it_leaves_after_the_case(make_job, monkeypatch):
    whole, stopped = make_job("whole", epochs=1), make_job("stopped", epochs=1)
    train_model(whole)
    predicted, predict = [], validate.predict_logits

    def predict_and_stop(*arguments, **options):
        predicted.append(1)
        os.kill(os.getpid(), signal.SIGTERM)
        return predict(*arguments, **options)

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as error:
        patch.setattr(validate, "predict_logits", predict_and_stop)
        train_model(stopped)
    assert error.value.code == 143 and len(predicted) == 1 < len(stopped.val_ids)
    train_model(stopped)
    assert equal(last(whole), last(stopped))
    pd.testing.assert_frame_equal(*[pd.read_csv(j.folder / "log.csv").drop(columns="seconds") for j in (whole, stopped)])


def test_a_missing_validation_case_is_found_before_the_first_step(make_job):
    job = replace(make_job(), val_ids=["c3", "gone"])
    with pytest.raises(StageError, match="gone"):
        train_model(job)
    assert not (job.folder / "schedule.json").exists()


def test_a_finished_training_run_again_does_nothing(make_job):
    job = make_job()
    first = train_model(job)
    times = {p: p.stat().st_mtime_ns for p in job.folder.iterdir()}
    assert equal(train_model(job).weights, first.weights)
    assert times == {p: p.stat().st_mtime_ns for p in job.folder.iterdir()}


def test_a_budget_becomes_steps_once(make_job, monkeypatch):
    job = make_job(budget_minutes=0.05, validation_interval=1000)
    trained = train_model(job)
    assert trained.seconds < 6 and trained.schedule.steps > 3
    assert "s were left; a step takes" in trained.schedule.reasons["steps"]

    def never(*_: object) -> None:
        raise AssertionError("decided twice")

    monkeypatch.setattr(loop, "decide", never)
    assert train_model(job).schedule == trained.schedule == Schedule.load(job.folder / "schedule.json")


def test_timed_steps_leave_no_trace(make_job):
    """A schedule that stands already is not timed; the weights are the same."""
    timed, told = make_job("timed", "fcn8s", {"width": 0.0625}), make_job("told", "fcn8s", {"width": 0.0625})
    train_model(timed)
    Schedule.load(timed.folder / "schedule.json").save(told.folder / "schedule.json")
    train_model(told)
    assert equal(last(timed), last(told))


def test_too_small_a_budget_is_a_sentence(make_job):
    with pytest.raises(StageError, match="give more time"):
        train_model(make_job(budget_minutes=0.0001))


def test_a_loss_that_is_no_number_names_the_cases(make_job, store):
    image = np.full((1, 20, 18, 10), np.nan, np.float32)
    store.write("bad", "k", image, np.zeros((20, 18, 10), np.uint8))
    job = replace(make_job(), train_ids=["bad"])
    with pytest.raises(StageError, match=r"train unet: the loss became nan at step 1 \(cases bad, bad\)"):
        train_model(job)
    assert not (job.folder / "last.safetensors").exists()


def test_a_missing_case_is_found_before_the_first_step(make_job):
    job = replace(make_job(), train_ids=["c0", "gone"])
    with pytest.raises(StageError, match="gone"):
        train_model(job)
    assert not (job.folder / "schedule.json").exists()


def test_flat_patches_train_a_2d_network(make_job):
    job = make_job()
    job = replace(job, plan=job.plan.model_copy(update={"patch_voxels": (16, 16, 1)}))
    weights = train_model(job).weights
    assert {w.ndim for name, w in weights.items() if name.endswith("weight") and w.ndim > 1} == {4}


def test_workers_by_the_clock(make_job):
    cpu, config = torch.device("cpu"), make_job().settings
    slow, fast = Timing(batch=0.5, step=0.5), Timing(batch=0.01, step=0.5)
    assert choose_workers(config, fast, cpu, 3600)[0] == 0
    assert choose_workers(config, slow, cpu, 60)[0] == 0
    if (os.cpu_count() or 1) > 1:
        assert choose_workers(config, slow, cpu, 3600)[0] >= 1
        assert choose_workers(config, fast, torch.device("cuda"), 3600)[0] >= 1
    assert choose_workers(make_job(workers=3).settings, slow, cpu, 60) == (3, "stated in the configuration")


@pytest.mark.parametrize("moment", ["propose_best", "save_checkpoint", "settle_best"])
def test_killed_between_best_and_checkpoint_is_undisturbed(make_job, monkeypatch, moment):
    settings = {"epochs": 4, "steps_per_epoch": 2, "validation_interval": 1}
    whole, broken = make_job("whole", **settings), make_job("broken", **settings)
    undisturbed = train_model(whole)
    real, calls = getattr(loop, moment), []

    def broken_off(*args: object) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise MemoryError("killed")
        real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(loop, moment, broken_off)
        with pytest.raises(MemoryError):
            train_model(broken)
    resumed = train_model(broken)
    assert equal(undisturbed.weights, resumed.weights) and undisturbed.best == resumed.best
    assert equal(last(whole), last(broken)) and not list(broken.folder.glob("*.next.*"))


def test_two_damaged_checkpoints_begin_anew_and_say_so(make_job, capsys):
    whole, broken = make_job("whole"), make_job("broken")
    undisturbed = train_model(whole)
    train_model(broken)
    for name in ("last.safetensors", "last.previous.safetensors"):
        (broken.folder / name).write_bytes(b"half a file")
    capsys.readouterr()
    assert equal(train_model(broken).weights, undisturbed.weights)
    said = capsys.readouterr().err
    assert said.count("is damaged") == 2 and "left no checkpoint that can be read; it begins anew" in said


def test_lost_best_weights_are_said(make_job, stop_at, capsys):
    job = make_job(epochs=2, validation_interval=1)
    stop_at(5, killed)
    with pytest.raises(MemoryError):
        train_model(job)
    (job.folder / "best.safetensors").unlink()
    assert train_model(job).best["epoch"] == 2
    assert "best.safetensors is missing or damaged; the best is sought" in capsys.readouterr().err
    (job.folder / "best.safetensors").unlink()
    with pytest.raises(StageError, match="--redo train"):
        train_model(job)


def test_a_tracker_gets_a_row_an_epoch(make_job, monkeypatch):
    rows = []

    class Kept:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            rows.append("closed")

        def log(self, step, row):
            rows.append((step, sorted(row)))

    monkeypatch.setattr(track, "open_trackers", lambda names, folder, run, settings, step: Kept())
    train_model(make_job(track=["mlflow"], validation_interval=2))
    common = ["learning_rate", "train_loss"]
    assert rows == [
        (3, common),
        (6, sorted([*common, "val_dice", "val_dice_large", "val_dice_small", "val_loss"])),
        "closed",
    ]


def test_regions_are_trained_and_measured(make_job):
    regions = [Region(name="whole", structures=["large", "small"]), Region(name="core", structures=["small"])]
    job = make_job()
    job = replace(job, labels=job.labels.model_copy(update={"regions": regions}))
    trained = train_model(job)
    assert list(trained.best["structures"]) == ["whole", "core"]
    assert "val_dice_whole" in pd.read_csv(job.folder / "log.csv").columns


def test_dice_of_regions_is_that_of_their_voxels():
    rng = np.random.default_rng(0)
    reference, prediction = rng.integers(0, 3, (2, 9, 8, 7), dtype=np.uint8)
    regions = [Region(name="whole", structures=["a", "b"]), Region(name="core", structures=["b"])]
    labels = LabelScheme(structures=[Structure(name="a", id=1), Structure(name="b", id=2)], regions=regions)
    found = measured_dice(confusion_matrix(reference, prediction, 3), labels)
    masks = [(reference > 0, prediction > 0), (reference == 2, prediction == 2)]
    assert found == pytest.approx([2 * (a & b).sum() / (a.sum() + b.sum()) for a, b in masks])


def test_the_loss_of_a_large_case_is_taken_in_slabs(monkeypatch):
    labels = LabelScheme(structures=[Structure(name="a", id=1), Structure(name="b", id=2)])
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 3, (4, 11, 5)).astype(np.uint8)
    classes[:, :5][rng.random((4, 5, 5)) < 0.7] = 255
    case = PreparedCase("c", rng.normal(size=(3, 4, 11, 5)).astype(np.float32), classes, {}, None)
    sizes = []

    def loss_of(name):
        measure = build_loss(name, {}, labels)

        def counted(logits, truth):
            sizes.append(logits.numel())
            return measure(logits, truth)

        where = ((4, 11, 5), 0.5, 1, torch.device("cpu"), torch.float32)
        return score_cases(torch.nn.Identity(), [case], labels, counted, *where)[0].loss

    whole = loss_of("ce")
    assert sizes == [660]
    truth = torch.from_numpy(classes)[None]
    assert loss_of("dice_ce") == float(build_loss("dice_ce", {}, labels)(torch.from_numpy(case.image)[None], truth))
    monkeypatch.setattr(validate, "MOST_SCORES", 200)
    sizes.clear()
    assert loss_of("ce") == pytest.approx(whole, rel=1e-5)  # a mean over voxels stays what it is
    assert len(sizes) == 4 and sum(sizes) == 660 and max(sizes) <= 200
    monkeypatch.setattr(validate, "MOST_SCORES", 1)
    assert loss_of("ce") == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize(
    ("setting", "voxels", "weights"),
    [
        (None, [900, 90, 10], None),
        ("auto", [900, 90, 10], [0.1, 1, 9]),
        ("auto", [100000, 90, 1], [0.1, 1, 10]),  # clipped
        ("auto", [900, 0, 100], [5 / 9, 1, 5]),  # a class that no case has
        ({"small": 3}, [], [1, 1, 3]),
        ({"background": 0.5, "large": 2, "small": 3}, [], [0.5, 2, 3]),
    ],
)
def test_class_weights(make_job, setting, voxels, weights):
    job = make_job()
    found = class_weights(setting, job.plan.model_copy(update={"class_voxels": voxels}), job.labels)
    assert found == (weights if weights is None else pytest.approx(weights))


def test_class_weights_that_cannot_be_are_sentences(make_job):
    job = make_job()
    with pytest.raises(ConfigError, match=r"names `smal`; there are background, large, small"):
        class_weights({"smal": 3}, job.plan, job.labels)
    with pytest.raises(ConfigError, match="medseg prepare"):
        class_weights("auto", job.plan, job.labels)


def test_where_patches_are_changed(make_job):
    gpu, config = torch.device("cuda"), make_job().settings
    assert choose_augment_on(config, Timing(batch=0.5, step=0.1), gpu, workers=4)[0] == "device"
    assert choose_augment_on(config, Timing(batch=0.3, step=0.1), gpu, workers=4)[0] == "cpu"
    assert choose_augment_on(config, Timing(batch=0.5, step=0.1), torch.device("cpu"), workers=4)[0] == "cpu"
    stated = make_job(augment_on="device").settings
    assert choose_augment_on(stated, Timing(1, 1), torch.device("cpu"), workers=0) == ("device", "stated in the configuration")


def test_patches_changed_on_the_device_are_the_same(make_job):
    """The road that a GPU takes, on the CPU: workers read, the training bends and changes; the weights are the same."""
    settings = {"augmentation": {"noise": {"probability": 1}, "elastic": {"probability": 1}, "gamma": {"probability": 1}}}
    there = train_model(make_job("device", augment_on="device", loss="boundary_ce", **settings))
    here = train_model(make_job("cpu", augment_on="cpu", loss="boundary_ce", **settings))
    assert there.schedule.augment_on == "device" and equal(there.weights, here.weights)
