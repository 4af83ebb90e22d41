"""Checkpoints: the whole state of a training, as safetensors with JSON metadata. Nothing is pickled."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from medseg.core.errors import StageError
from medseg.core.files import atomic_path, remove
from medseg.core.progress import say
from medseg.training.diverging import Trend

Tensors = dict[str, torch.Tensor]

DAMAGED = (SafetensorError, ValueError, KeyError, TypeError)


@dataclass
class Progress:
    """What a training has done, besides its tensors. Random numbers are functions of (seed, step), so `step` stands for them.

    Args:
        step: steps done. log: one row an epoch, as in log.csv. losses: of the steps of the epoch under way.
        seconds: of training, over all sittings.
        best: mean Dice of the best validation so far, with its epoch and the Dice of each structure.
        scaler: of float16 gradients.
        trend: of the losses.
        learning_rate_scale: below 1 once the training diverged and went back.
        good: the end of an epoch, with calm losses: a place to go back to.
    """

    step: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)
    log: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] = field(default_factory=dict)
    scaler: dict[str, Any] = field(default_factory=dict)
    trend: Trend = field(default_factory=Trend)
    learning_rate_scale: float = 1.0
    good: bool = False

    @property
    def epoch_open(self) -> bool:
        """Whether there are steps that no row of the log has yet."""
        return bool(self.losses)


def save_checkpoint(path: Path, network: torch.nn.Module, optimizer: torch.optim.Optimizer, progress: Progress) -> None:
    """Write the state, whole or not at all.

    The checkpoint before it stays as `<name>.previous.safetensors`, except that one between two epochs does not drive away a
    good one: the newest good state is always in one of the two files, whenever the clock asked for others.

    Raises: OutputError.
    """
    state = optimizer.state_dict()["state"]
    tensors = {f"network.{k}": v for k, v in network.state_dict().items()}
    tensors |= {f"optimizer.{i}.{k}": v for i, values in state.items() for k, v in values.items() if torch.is_tensor(v)}
    with atomic_path(path) as temporary:
        _write(temporary, tensors, {"progress": json.dumps(asdict(progress))})
        if path.exists() and (_is_good(path) or not previous(path).exists()):
            os.replace(path, previous(path))


def load_checkpoint(
    path: Path,
    network: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    only_good: bool = False,
    tell: Callable[[str], None] = say,
) -> Progress | None:
    """Put the state back; where the last checkpoint is damaged the one before it is taken. None where there is none.

    Args:
        only_good: take the newest that is good.
        tell: is told of each file that is damaged.
    Raises: StageError where a file is there and the system does not let it be read.
    """
    for candidate in (path, previous(path)):
        if not _readable(candidate):
            continue
        try:
            tensors, metadata = _read(candidate)
            progress = _progress(metadata)
        except DAMAGED as error:
            tell(f"{candidate} is damaged ({' '.join(str(error).split())}) and is left out")
            continue
        if only_good and not progress.good:
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


# The best weights and the checkpoint that names them are two files, and a kill can come between. So new best weights wait
# beside the old ones until the checkpoint is written.


def propose_best(path: Path, weights: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> None:
    """Write new best weights beside the old ones. Raises: OutputError."""
    save_weights(_next(path), weights, facts)


def settle_best(path: Path, best: Mapping[str, Any]) -> dict[str, Any]:
    """Make the best weights on disk those that the checkpoint names; returns the facts about them, {} where there are none.

    Where the checkpoint is older than the best weights, because the last one was damaged, these stay the best.

    Args:
        best: as in `Progress`.
    """
    if (waiting := _facts(_next(path))) and waiting["step"] == best.get("step"):
        os.replace(_next(path), path)
    else:
        remove(_next(path))
    return _facts(path)


def previous(path: Path) -> Path:
    """Where the checkpoint before the last one is kept."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def _next(path: Path) -> Path:
    return path.with_name(f"{path.stem}.next{path.suffix}")


def _facts(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(_metadata(path)["facts"])) if path.exists() else {}
    except DAMAGED:
        return {}


def _progress(metadata: Mapping[str, str]) -> Progress:
    values = json.loads(metadata["progress"])
    return Progress(**(values | {"trend": Trend(**values["trend"])}))


def _is_good(path: Path) -> bool:
    try:
        return _progress(_metadata(path)).good
    except DAMAGED:
        return False


def _readable(path: Path) -> bool:
    """Whether the file is there. Raises: StageError where it cannot be read."""
    try:
        path.open("rb").close()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise StageError(
            f"{path} cannot be read ({error.strerror}); let it be read, or start anew with `--redo train`."
        ) from None
    return True


def _write(path: Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str]) -> None:
    # Cloned where memory is shared or strided: safetensors stores each tensor on its own, in plain order.
    path.write_bytes(save({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, metadata))


def _read(path: Path) -> tuple[Tensors, dict[str, str]]:
    with safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118


def _metadata(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return file.metadata() or {}


def _under(tensors: Tensors, prefix: str) -> Tensors:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _laid_out_like(parameter: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    # A fused optimizer walks through memory: a moment in plain order beside channels-last weights would meet the wrong ones.
    return torch.empty_like(parameter).copy_(tensor) if tensor.shape == parameter.shape and tensor.ndim else tensor
