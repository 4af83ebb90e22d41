"""Training samples: which case, which place, which random changes, all drawn from (seed, step, place in the batch)."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from monai.transforms.compose import Compose
from monai.transforms.transform import Randomizable
from torch.utils.data import DataLoader, Dataset, Sampler

from medseg.data.store import PreparedCase, PreparedStore
from medseg.training.augment import CENTRE, CLASSES, IMAGE

Batch = dict[str, Any]
MOST_OPEN = 100  # cases; each holds two files open, and some systems allow a process no more than 256


class PatchDataset(Dataset[Batch]):
    """Endless training patches, one for each index `step * batch_size + place`.

    Args:
        transforms: `training_transforms`, or any Compose that makes patches around `centre`.
        foreground_fraction: the last share of each batch (at least one patch where it is above 0) is centred on a voxel of a
            structure drawn from those that the case has, as nnU-Net does; the others are anywhere in the case.

    Sample: "image" (C, *patch) float32, "classes" patch uint8, "case_id".
    """

    def __init__(
        self,
        store: PreparedStore,
        case_ids: Sequence[str],
        transforms: Compose,
        patch: tuple[int, int, int],
        batch_size: int,
        foreground_fraction: float,
        seed: int,
    ) -> None:
        self.store, self.case_ids, self.transforms, self.patch = store, list(case_ids), transforms, patch
        self.batch_size, self.seed = batch_size, seed
        self.n_foreground = max(1, round(batch_size * foreground_fraction)) if foreground_fraction else 0
        self._open: dict[str, PreparedCase] = {}

    def __len__(self) -> int:
        return 2**62  # the sampler says when it is enough

    def __getitem__(self, index: int) -> Batch:
        step, place = divmod(index, self.batch_size)
        bits = np.random.PCG64(np.random.SeedSequence([self.seed, step, place]))
        random = np.random.Generator(bits)
        case = self._case(self.case_ids[random.integers(len(self.case_ids))])
        centre = patch_centre(case, self.patch, random, foreground=place >= self.batch_size - self.n_foreground)
        # One stream for all: Compose would seed a generator for each transform, which takes longer than a small patch.
        state = np.random.RandomState(bits)
        for transform in self.transforms.transforms:
            if isinstance(transform, Randomizable):
                transform.set_random_state(state=state)
        with one_thread():
            patch = self.transforms({IMAGE: case.image, CLASSES: case.classes[None], CENTRE: centre})
        return {IMAGE: patch[IMAGE], CLASSES: patch[CLASSES][0], "case_id": case.case_id}

    def __getstate__(self) -> dict[str, Any]:
        # Open files stay here: pickled for a worker, a memory-mapped array would become a copy of the whole case.
        return {**self.__dict__, "_open": {}}

    def _case(self, case_id: str) -> PreparedCase:
        if case_id not in self._open:
            if len(self._open) == MOST_OPEN:
                self._open.pop(next(iter(self._open)))
            self._open[case_id] = self.store.open(case_id)
        return self._open[case_id]


def patch_centre(
    case: PreparedCase, patch: tuple[int, int, int], random: np.random.Generator, foreground: bool
) -> npt.NDArray[np.int64]:
    """The voxel in the middle of a patch that leaves the case as little as it can.

    Args:
        foreground: aim at a voxel of a structure drawn from those that the case has; anywhere where it has none.
    """
    shape, size = np.array(case.classes.shape), np.array(patch)
    if foreground and case.foreground:
        voxels = case.foreground[int(random.choice(sorted(case.foreground)))]
        start = voxels[random.integers(len(voxels))] - size // 2
    else:
        start = random.integers(0, np.maximum(shape - size, 0), endpoint=True)
    # A case that is smaller than the patch lies in the middle of it, as in sliding-window prediction.
    start = np.where(shape >= size, np.clip(start, 0, np.maximum(shape - size, 0)), -((size - shape) // 2))
    return np.asarray(start + size // 2, np.int64)


class StepSampler(Sampler[list[int]]):
    """The indices of each step's batch, from step `first` up to `last` (not included)."""

    def __init__(self, first: int, last: int, batch_size: int) -> None:
        self.first, self.last, self.batch_size = first, last, batch_size

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.first, self.last):
            yield list(range(step * self.batch_size, (step + 1) * self.batch_size))

    def __len__(self) -> int:
        return self.last - self.first


def batches(dataset: PatchDataset, first: int, last: int, workers: int, pin: bool) -> Iterator[Batch]:
    """The batches of the steps from `first` to `last`; the same ones whatever the number of workers."""
    options: dict[str, Any] = {}
    if workers:
        # Spawned: a fork of a process whose numerical threads have started can hang.
        options = {"multiprocessing_context": "spawn", "worker_init_fn": _start_worker, "prefetch_factor": 3}
    sampler = StepSampler(first, last, dataset.batch_size)
    yield from DataLoader(dataset, batch_sampler=sampler, num_workers=workers, pin_memory=pin, **options)


def _start_worker(_: int) -> None:
    # Ctrl-C reaches the whole group of processes; the training process alone decides how to stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Sums taken by one thread, as a worker takes them, so that samples do not depend on where they are made."""
    threads = torch.get_num_threads()
    if threads > 1:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if threads > 1:
            torch.set_num_threads(threads)
