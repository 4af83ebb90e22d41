from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from medseg.core.errors import OutputError
from medseg.training.checkpoint import Progress, load_checkpoint, load_weights, save_checkpoint, save_weights
from medseg.training.config import OptimizerConfig
from medseg.training.device import arrange
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


def test_the_one_before_is_kept_and_used_where_the_last_is_damaged(tmp_path):
    path = tmp_path / "last.safetensors"
    network, optimizer = trained("adamw")
    save_checkpoint(path, network, optimizer, Progress(1))
    save_checkpoint(path, network, optimizer, Progress(2))
    path.write_bytes(path.read_bytes()[:100])
    assert load_checkpoint(path, network, optimizer).step == 1
    path.unlink()
    assert load_checkpoint(path, network, optimizer).step == 1
    assert load_checkpoint(tmp_path / "none.safetensors", network, optimizer) is None


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
