"""Checkpoints: the whole state of a training, as safetensors with JSON metadata. Nothing is pickled."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from medseg.core.files import atomic_path

Tensors = dict[str, torch.Tensor]


@dataclass
class Progress:
    """What a training has done, besides its tensors.

    Args:
        step: steps done. log: one row an epoch, as in log.csv. losses: of the steps of the epoch under way.
        seconds: of training, over all sittings.
        best: mean Dice of the best validation so far, with its epoch and the Dice of each structure.
        scaler: of float16 gradients.
    """

    step: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)
    log: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] = field(default_factory=dict)
    scaler: dict[str, Any] = field(default_factory=dict)


def save_checkpoint(path: Path, network: torch.nn.Module, optimizer: torch.optim.Optimizer, progress: Progress) -> None:
    """Write the state, whole or not at all; the checkpoint before it stays as `<name>.previous.safetensors`.

    Raises: OutputError.
    """
    state = optimizer.state_dict()["state"]
    tensors = {f"network.{k}": v for k, v in network.state_dict().items()}
    tensors |= {f"optimizer.{i}.{k}": v for i, values in state.items() for k, v in values.items() if torch.is_tensor(v)}
    with atomic_path(path) as temporary:
        _write(temporary, tensors, {"progress": json.dumps(vars(progress))})
        if path.exists():
            os.replace(path, _previous(path))


def load_checkpoint(path: Path, network: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Progress | None:
    """Put the state back; where the last checkpoint is damaged the one before it is taken. None where there is none."""
    for candidate in (path, _previous(path)):
        try:
            tensors, metadata = _read(candidate)
            progress = Progress(**json.loads(metadata["progress"]))
        except (OSError, SafetensorError, ValueError, KeyError, TypeError):
            continue
        network.load_state_dict(_under(tensors, "network."))
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        values: dict[int, Tensors] = {}
        for name, tensor in _under(tensors, "optimizer.").items():
            index, key = name.split(".", 1)
            values.setdefault(int(index), {})[key] = _laid_out_like(parameters[int(index)], tensor)
        optimizer.load_state_dict({"state": values, "param_groups": optimizer.state_dict()["param_groups"]})
        return progress
    return None


def save_weights(path: Path, weights: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> None:
    """Write weights alone, with facts about them. Raises: OutputError."""
    with atomic_path(path) as temporary:
        _write(temporary, weights, {"facts": json.dumps(dict(facts))})


def load_weights(path: Path) -> Tensors:
    """The weights that `save_weights` wrote."""
    return _read(path)[0]


def _write(path: Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str]) -> None:
    # Cloned where memory is shared or strided: safetensors stores each tensor on its own, in plain order.
    path.write_bytes(save({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, metadata))


def _read(path: Path) -> tuple[Tensors, dict[str, str]]:
    with safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118


def _under(tensors: Tensors, prefix: str) -> Tensors:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _laid_out_like(parameter: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    # A fused optimizer walks through memory: a moment in plain order beside channels-last weights would meet the wrong ones.
    return torch.empty_like(parameter).copy_(tensor) if tensor.shape == parameter.shape and tensor.ndim else tensor


def _previous(path: Path) -> Path:
    return path.with_name(f"{path.stem}.previous{path.suffix}")
