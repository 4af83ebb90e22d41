from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from medseg.core.errors import OutputError, StageError
from medseg.training.checkpoint import (
    Progress,
    load_checkpoint,
    load_weights,
    propose_best,
    save_checkpoint,
    save_weights,
    settle_best,
)
from medseg.training.config import OptimizerConfig
from medseg.training.device import arrange
from medseg.training.diverging import Trend
from medseg.training.optimizer import build_optimizer


def trained(name: str, steps: int = 3) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv3d(1, 8, 3), nn.BatchNorm3d(8), nn.Conv3d(8, 8, 3), nn.Conv3d(8, 2, 1))
    arrange(network, torch.device("cpu"), channels_last=True)
    optimizer = build_optimizer(OptimizerConfig(name=name), network.parameters())
    go_on(network, optimizer, steps)
    return network, optimizer


def go_on(network: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for seed in range(steps):
        network(torch.randn(2, 1, 7, 7, 7, generator=torch.Generator().manual_seed(seed))).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_going_on_from_a_checkpoint_is_going_on(name, tmp_path):
    network, optimizer = trained(name)
    progress = Progress(3, 1.5, [0.25, 1 / 3], [{"epoch": 1, "val_dice": 0.1}], {"dice": 0.1, "structures": {"a": float("nan")}})
    save_checkpoint(tmp_path / "last.safetensors", network, optimizer, progress)
    other, other_optimizer = trained(name, steps=0)
    found = load_checkpoint(tmp_path / "last.safetensors", other, other_optimizer)
    assert found is not None and found.losses == progress.losses and found.log == progress.log and found.step == 3
    for each in ((network, optimizer), (other, other_optimizer)):
        go_on(*each, 2)
    assert all(torch.equal(a, b) for a, b in zip(network.state_dict().values(), other.state_dict().values(), strict=True))


def test_the_one_before_is_kept_and_used_where_the_last_is_damaged(tmp_path, capsys):
    path = tmp_path / "last.safetensors"
    network, optimizer = trained("adamw")
    save_checkpoint(path, network, optimizer, Progress(1))
    save_checkpoint(path, network, optimizer, Progress(2))
    path.write_bytes(path.read_bytes()[:100])
    assert load_checkpoint(path, network, optimizer).step == 1
    assert "last.safetensors is damaged" in capsys.readouterr().err
    path.unlink()
    assert load_checkpoint(path, network, optimizer).step == 1 and not capsys.readouterr().err
    assert load_checkpoint(tmp_path / "none.safetensors", network, optimizer) is None


@pytest.mark.parametrize(
    ("saved", "newest", "good"),
    [
        ([(1, False)], 1, None),
        ([(1, False), (2, False), (3, True)], 3, 3),
        ([(3, True), (4, False), (5, False)], 5, 3),
        ([(3, True), (5, False), (6, True)], 6, 6),
        ([(3, True), (6, True), (9, False), (10, False)], 10, 6),  # the epoch that ended at 9 was not calm
    ],
)
def test_the_newest_good_state_is_always_kept(tmp_path, saved, newest, good):
    path = tmp_path / "last.safetensors"
    network, optimizer = trained("sgd")
    for step, is_good in saved:
        save_checkpoint(path, network, optimizer, Progress(step, good=is_good))
    assert load_checkpoint(path, network, optimizer).step == newest
    found = load_checkpoint(path, network, optimizer, only_good=True)
    assert (found and found.step) == good


def test_a_trend_and_a_lowered_rate_come_back(tmp_path):
    network, optimizer = trained("sgd")
    before = Progress(5, trend=Trend([0.5, 0.25], 2.0, 0.5), learning_rate_scale=0.3)
    save_checkpoint(tmp_path / "last.safetensors", network, optimizer, before)
    assert load_checkpoint(tmp_path / "last.safetensors", network, optimizer) == before


def test_a_checkpoint_that_the_system_keeps_is_a_sentence(tmp_path):
    network, optimizer = trained("sgd")
    (tmp_path / "last.safetensors").mkdir()
    with pytest.raises(StageError, match="cannot be read"):
        load_checkpoint(tmp_path / "last.safetensors", network, optimizer)


def stored(path: Path) -> float | None:
    return load_weights(path)["a"].item() if path.exists() else None


@pytest.mark.parametrize(
    ("proposed", "in_checkpoint", "left"),
    [
        ([], 0, None),
        ([1], 1, 1),
        ([1], 0, None),  # killed before the checkpoint: as if it had not been
        ([1, 2], 2, 2),
        ([1, 2], 1, 1),
        ([1, 2, 3], 2, 2),
    ],
)
def test_best_weights_are_those_that_the_checkpoint_names(tmp_path, proposed, in_checkpoint, left):
    path = tmp_path / "best.safetensors"
    for step in proposed:
        propose_best(path, {"a": torch.tensor(float(step))}, {"step": step, "dice": step / 10})
        if step != proposed[-1]:
            settle_best(path, {"step": step})
    named = {"step": in_checkpoint} if in_checkpoint else {}
    for _ in range(2):
        assert settle_best(path, named) == ({"step": left, "dice": left / 10} if left else {})
        assert stored(path) == left and [p.name for p in tmp_path.iterdir()] == (["best.safetensors"] if left else [])


def test_best_weights_newer_than_the_checkpoint_stay_the_best(tmp_path):
    path = tmp_path / "best.safetensors"
    propose_best(path, {"a": torch.tensor(7.0)}, {"step": 7, "dice": 0.7})
    settle_best(path, {"step": 7})
    assert settle_best(path, {"step": 4, "dice": 0.4}) == {"step": 7, "dice": 0.7} and stored(path) == 7
    path.write_bytes(b"half")
    assert settle_best(path, {"step": 4, "dice": 0.4}) == {}


def test_a_failed_write_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "last.safetensors"
    network, optimizer = trained("sgd")
    save_checkpoint(path, network, optimizer, Progress(1))
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("medseg.training.checkpoint.save", full)
    with pytest.raises(OutputError, match="No space left"):
        save_checkpoint(path, network, optimizer, Progress(2))
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["last.safetensors"]


def test_weights_come_back_as_they_were(tmp_path):
    network, _ = trained("adamw")
    weights = copy.deepcopy(network.state_dict())
    save_weights(tmp_path / "best.safetensors", network.state_dict(), {"dice": float("nan")})
    loaded = load_weights(tmp_path / "best.safetensors")
    assert loaded.keys() == weights.keys() and all(torch.equal(loaded[k], weights[k]) for k in weights)
    assert all(v.is_contiguous() for v in loaded.values())


def test_no_pickle_is_written(tmp_path):
    network, optimizer = trained("adamw")
    save_checkpoint(tmp_path / "last.safetensors", network, optimizer, Progress(1))
    content = Path(tmp_path / "last.safetensors").read_bytes()
    assert content[8:9] == b"{" and b"ctorch" not in content
