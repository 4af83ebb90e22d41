"""Two real processes that train together over gloo, beside one that does the same alone."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pandas as pd
import pytest
import torch
import torch.distributed as dist
from torch import multiprocessing, nn

from medseg.core.errors import ConfigError, StageError
from medseg.training import distributed, loop
from medseg.training.checkpoint import load_weights
from medseg.training.distributed import ALONE, Processes, own_cores, processes
from medseg.training.loop import train_model
from medseg.training.step import Trainer, step_seed

# Plain gradients: the first steps of adamw divide rounding errors by their own size.
SETTINGS = {
    "precision": "float32",
    "epochs": 2,
    "steps_per_epoch": 2,
    "batch_size": 3,
    "optimizer": {"name": "sgd", "learning_rate": 0.05},
}


@pytest.fixture(autouse=True)
def _no_drawing(monkeypatch):
    monkeypatch.setattr(loop, "draw_training_curves", lambda log, path: path)


@pytest.fixture(scope="module")
def together():
    """`together(work, job)` runs `work(job, processes)` in two processes; returns how each ended: an exit code or an error."""
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe() for _ in range(2)]
    team = [context.Process(target=_serve, args=(rank, there)) for rank, (_, there) in enumerate(pipes)]
    for process in team:
        process.start()

    def run(work, job=None) -> list[int | str]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        for here, _ in pipes:
            here.send((work, job, port))
        return [here.recv() if here.poll(120) else "nothing came back" for here, _ in pipes]

    yield run
    for process in team:
        process.kill()


def _serve(rank: int, orders) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    loop.draw_training_curves = lambda log, path: path
    while True:
        work, job, port = orders.recv()
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        step = Trainer.step
        try:
            with processes("cpu") as team:
                work(job, team)
            orders.send(0)
        except SystemExit as end:
            orders.send(end.code)
        except Exception as error:
            orders.send(f"{type(error).__name__}: {error}")
        Trainer.step = step


def train(job, team: Processes) -> None:
    weights = train_model(job, team).weights
    stored = load_weights(job.folder / "best.safetensors")
    assert all(torch.equal(weights[key], stored[key]) for key in stored)


def train_until_one_is_asked_to_stop(job, team: Processes) -> None:
    step = Trainer.step

    def stopping(self, batch, learning_rate, seed):
        if learning_rate and team.rank == 1 and seed == step_seed(job.seed, 2, rank=1):
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batch, learning_rate, seed)

    Trainer.step = stopping
    train_model(job, team)


def agree(job, team: Processes) -> None:
    assert team.main == (team.rank == 0) and team.world == 2
    assert team.gather({"rank": team.rank}) == [{"rank": 0}, {"rank": 1}]
    assert team.any(team.rank == 1) and not team.any(False)
    network = nn.BatchNorm1d(2)
    network.running_mean.fill_(team.rank + 1.0)
    team.share_buffers(network)
    assert network.running_mean.tolist() == [1.0, 1.0]


def refuse(job, team: Processes) -> None:
    done: list[int] = []
    team.on_main(done.append, team.rank)
    assert done == ([0] if team.main else [])

    def no() -> None:
        raise StageError("not in this folder.")

    team.on_main(no)
    raise AssertionError("nobody goes on")


def waits_a_day(job, team: Processes) -> None:
    assert dist.group.WORLD._get_backend(torch.device("cpu")).options._timeout == timedelta(days=1)


def diverge(job, team: Processes) -> None:
    step = Trainer.step

    def spoilt(self, batch, learning_rate, seed):
        loss = step(self, batch, learning_rate, seed)
        mine = learning_rate > 0.02 and seed == step_seed(job.seed, 2, rank=1)  # on one of the two only
        return loss * float("nan") if mine else loss

    Trainer.step = spoilt
    train_model(job, team)


def fail_after_a_step(job, team: Processes) -> None:
    network = team.wrap(nn.Linear(64, 64), torch.device("cpu"))
    network(torch.ones(1, 64)).sum().backward()
    raise StageError("after a step.")  # the traceback holds the network when the group is over


def assert_same(job, other, **tolerance) -> None:
    one, two = (load_weights(j.folder / "last.safetensors") for j in (job, other))
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(two[name], one[name], **(tolerance or {"rtol": 1e-4, "atol": 1e-6}))
    logs = [pd.read_csv(j.folder / "log.csv").drop(columns="seconds") for j in (job, other)]
    pd.testing.assert_frame_equal(*logs, rtol=1e-3)


def test_without_torchrun_there_is_one_process(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with processes("cpu") as team:
        assert team == ALONE and team.main and team.gather(3) == [3] and team.any(True) and not team.any(False)
        network = nn.Linear(1, 1)
        assert team.wrap(network, torch.device("cpu")) is network


def test_more_processes_than_gpus_are_a_sentence(monkeypatch):
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "here", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(distributed, "choose_device", lambda setting: (torch.device("cuda"), ""))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match="more processes than the 1 GPUs"), processes("auto"):
        pass


def test_processes_that_torchrun_did_not_start_are_a_sentence(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match="WORLD_SIZE is 2 and RANK, MASTER_ADDR, MASTER_PORT not set"), processes("cpu"):
        pass


def test_processes_of_a_machine_share_its_cores(monkeypatch):
    monkeypatch.setattr(distributed, "available_cores", lambda: 9)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert own_cores() == 2


def test_each_process_draws_its_own_dropout():
    assert len({step_seed(0, 5), step_seed(0, 5, 1), step_seed(0, 5, 2), step_seed(0, 6, 1)}) == 4


def test_they_tell_each_other(together):
    assert together(agree) == [0, 0]


@pytest.mark.parametrize("loss", ["dice_ce", "boundary_ce"])
def test_two_processes_train_as_one_does(together, make_job, loss):
    """Three patches a step, so that the shares differ; the validation cases are shared out too."""
    alone, pair = make_job("alone", loss=loss, **SETTINGS), make_job("pair", loss=loss, **SETTINGS)
    train_model(alone)
    assert together(train, pair) == [0, 0]
    assert_same(alone, pair)


def test_one_is_asked_to_stop_and_another_number_goes_on(together, make_job):
    alone, changed = make_job("alone", **SETTINGS), make_job("changed", **SETTINGS)
    train_model(alone)
    assert together(train_until_one_is_asked_to_stop, changed) == [143, 143]
    assert not list(changed.folder.glob(".*")) and len(pd.read_csv(changed.folder / "log.csv")) == 1
    train_model(changed)
    assert_same(alone, changed)


def test_one_goes_on_as_two(together, make_job, monkeypatch):
    alone, changed = make_job("alone", **SETTINGS), make_job("changed", **SETTINGS)
    train_model(alone)
    step = Trainer.step

    def killed(self, batch, learning_rate, seed):
        if learning_rate and seed == step_seed(0, 3):
            raise MemoryError("killed")
        return step(self, batch, learning_rate, seed)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", killed)
        with pytest.raises(MemoryError):
            train_model(changed)
    assert together(train, changed) == [0, 0]
    assert_same(alone, changed)


def test_both_go_back_where_one_diverges(together, make_job):
    job = make_job(**SETTINGS)
    assert together(diverge, job) == [0, 0]
    log = pd.read_csv(job.folder / "log.csv")
    assert list(log.epoch) == [1, 2] and log.learning_rate[1] < 0.3 * log.learning_rate[0]


def test_a_batch_too_small_to_share_is_a_sentence(together, make_job):
    job = make_job(**(SETTINGS | {"batch_size": 1}))
    sentence = (
        "StageError: a batch of 1 cannot be shared by 2 processes; set `plan.batch_size` to 2 or more and run `medseg prepare`."
    )
    assert together(train, job) == [sentence, sentence]


def test_a_refusal_of_the_main_process_ends_all_and_is_said_once(together):
    assert together(refuse) == ["StageError: not in this folder.", 2]


def test_a_network_in_a_traceback_outlives_the_group(together):
    """Where its reducer is the last to hold a group that works, it hangs."""
    for _ in range(20):
        assert together(fail_after_a_step) == ["StageError: after a step."] * 2


LEAVING = "import atexit; from medseg.training.distributed import leave; atexit.register(print, 'registered')"
STEPS = """
import torch
from torch import nn
from medseg.training.distributed import leave, processes
with processes("cpu") as team:
    network = team.wrap(nn.Conv3d(1, 2, 3), torch.device("cpu"))
    for _ in range(6):
        network(torch.ones(2, 1, 9, 9, 9)).mean().backward()
    team.barrier()
leave(0)
"""


def test_who_leaves_has_said_all_and_keeps_the_code():
    done = subprocess.run([sys.executable, "-c", f"{LEAVING}; print('said', end=' '); leave(3)"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (3, "said registered\n")


@pytest.mark.slow
def test_no_process_aborts_as_it_ends(tmp_path):
    """Without `leave` one end in six aborted on a busy machine: a thread of gloo met an interpreter that was gone."""
    script = tmp_path / "steps.py"
    script.write_text(STEPS)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    with ThreadPoolExecutor(4) as pool:
        ended = list(pool.map(lambda _: subprocess.run(command, capture_output=True, text=True), range(32)))
    assert [done.stderr for done in ended if done.returncode] == []


def test_they_wait_longer_than_the_half_hour_of_gloo(together):
    assert together(waits_a_day) == [0, 0]
