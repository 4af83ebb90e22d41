"""Training one model in several processes, each with a share of every batch, as torchrun starts them."""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn, TypeVar, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from medseg.core.errors import ConfigError, MedsegError
from medseg.core.limits import available_cores
from medseg.core.progress import say
from medseg.training.device import choose_device

T = TypeVar("T")
PATIENCE = timedelta(days=1)  # of processes that wait while the main one chooses postprocessing and writes the model
_wrapped: list[DistributedDataParallel] = []


@dataclass(frozen=True)
class Processes:
    """This process among those that train together. Its methods are called by all of them at the same place.

    What they tell each other goes through the CPU, so that no GPU is waited for.
    """

    rank: int = 0
    world: int = 1

    @property
    def main(self) -> bool:
        """Whether this is the process that writes files and speaks."""
        return self.rank == 0

    def say(self, text: str) -> None:
        """One line to the person who watches, from the main process."""
        if self.main:
            say(text)

    def gather(self, value: T) -> list[T]:
        """The value of each process, on every process."""
        if self.world == 1:
            return [value]
        values: list[T | None] = [None] * self.world
        dist.all_gather_object(values, value)
        return cast(list[T], values)

    def on_main(self, action: Callable[..., None], *arguments: Any) -> None:
        """Let the main process do something while the others wait.

        Raises: MedsegError of the main process, on it; the others end with its exit code, so that it is said once.
        """
        failed: MedsegError | None = None
        if self.main:
            try:
                action(*arguments)
            except MedsegError as error:
                failed = error
        code = self.gather(failed.exit_code if failed else 0)[0]
        if failed:
            raise failed
        if code:
            raise SystemExit(code)

    def any(self, flag: bool) -> bool:
        """Whether it is so on any process."""
        if self.world == 1:
            return flag
        count = torch.tensor(int(flag))
        dist.all_reduce(count)
        return bool(count)

    def barrier(self) -> None:
        """Wait until all are here."""
        self.any(False)

    def wrap(self, network: nn.Module, device: torch.device) -> nn.Module:
        """The network as training runs it: its gradients are the mean over the processes, its weights those of the main one."""
        if self.world == 1:
            return network
        wrapped = DistributedDataParallel(network, [torch.cuda.current_device()] if device.type == "cuda" else None)
        _wrapped.append(wrapped)
        return wrapped

    def share_buffers(self, network: nn.Module) -> None:
        """The main process's running statistics for all: on CPUs each process keeps its own while it trains."""
        if self.world > 1:
            for buffer in network.buffers():
                dist.broadcast(buffer, 0)


ALONE = Processes()


@contextmanager
def processes(device: str) -> Iterator[Processes]:
    """The processes that torchrun started (RANK, WORLD_SIZE and LOCAL_RANK say which this is); without it, this one alone.

    On GPUs each process takes the one of its LOCAL_RANK.

    Args:
        device: `training.device`: auto, cpu or cuda.
    Raises: ConfigError where there are more processes than GPUs.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield ALONE
        return
    if missing := [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
        raise ConfigError(
            f"WORLD_SIZE is {world} and {', '.join(missing)} not set: start several processes with "
            "`torchrun --nproc-per-node N -m pipelines.train CONFIG`, or one without WORLD_SIZE."
        )
    on_gpu = choose_device(device)[0].type == "cuda"
    if on_gpu:
        local, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if local >= count:
            raise ConfigError(f"torchrun started more processes than the {count} GPUs of this machine; lower `--nproc-per-node`.")
        torch.cuda.set_device(local)
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=PATIENCE)
    try:
        yield Processes(int(os.environ["RANK"]), world)
    finally:
        # A reducer may outlive its group (in a traceback, in a cycle). If it were the last to hold it, it would wait with the GIL
        # for a thread of gloo that waits for the GIL.
        for network in _wrapped:
            del network.reducer, network.logger
        _wrapped.clear()
        dist.destroy_process_group()


def leave(code: int) -> NoReturn:
    """End this process with an exit code, without taking the interpreter down.

    After the last exchange a thread of gloo lets go of it, and what Python made of it. If it waits for the GIL while the
    interpreter ends, it is ended in the middle of C++ and aborts the process ("terminate called without an active exception").
    """
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


def own_cores() -> int:
    """The cores that fall to this process, of those that the processes of this machine share."""
    return max(1, available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
