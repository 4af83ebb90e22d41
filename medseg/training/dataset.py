"""Training samples: which case, which place, which random changes, all drawn from (seed, step, place in the batch)."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from monai.transforms.compose import Compose
from monai.transforms.transform import Randomizable

from medseg.core.errors import MedsegError, StageError
from medseg.data.store import PreparedCase, PreparedStore
from medseg.losses.boundary import WEIGHT
from medseg.training.augment import CENTRE, CLASSES, IMAGE
from medseg.training.workers import in_workers

Batch = dict[str, Any]
CASE_ID = "case_id"
MOST_IN_MEMORY = 2**30  # bytes of prepared cases in each process that makes samples; above it they are memory-mapped
MOST_OPEN = 100  # memory-mapped cases; each holds two files open, and some systems allow a process no more than 256


class PatchDataset:
    """Endless training patches: one for each step and place in its batch.

    The last share of each batch is centred on a voxel of a structure. The structure is drawn first, from those that any case
    has, then a case that has it, so that rare structures are seen as often as common ones. The other patches are anywhere in
    any case; where a case is annotated in part, they are centred on an annotated voxel.

    Args:
        transforms: `training_transforms`, or any Compose that makes patches around `centre`.
        foreground_fraction: the share; at least one patch where it is above 0.

    Sample: what the transforms give, without the channel of "classes" and "weight": "image" (C, *patch) float32, "classes" patch
        uint8, "weight" patch float32 where there is one; and "case_id".
    Raises: StageError where a case is not in the store.
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
        self.store, self.transforms, self.patch = store, transforms, patch
        self.batch_size, self.seed = batch_size, seed
        self.n_foreground = max(1, round(batch_size * foreground_fraction)) if foreground_fraction else 0
        contents = {case_id: store.contents(case_id) for case_id in case_ids}
        self.anywhere = [case_id for case_id, c in contents.items() if c.annotated] or list(case_ids)
        structures = sorted({k for c in contents.values() for k in c.classes})
        self.having = [(k, [case_id for case_id, c in contents.items() if k in c.classes]) for k in structures]
        self.in_memory = sum(c.n_bytes for c in contents.values()) <= MOST_IN_MEMORY
        self._open: dict[str, PreparedCase] = {}

    def sample(self, step: int, place: int) -> Batch:
        """One patch. Raises: StageError naming the case that it could not be made from."""
        bits, case_id, structure = self._draw(step, place)
        try:
            case = self._case(case_id)
            centre = patch_centre(case, self.patch, np.random.Generator(bits), structure)
            # One stream for all: Compose would seed a generator for each transform, which takes longer than a small patch.
            state = np.random.RandomState(bits)
            for transform in self.transforms.transforms:
                if isinstance(transform, Randomizable):
                    transform.set_random_state(state=state)
            with one_thread():
                patch = self.transforms({IMAGE: case.image, CLASSES: case.classes[None], CENTRE: centre})
        except MedsegError:
            raise
        except Exception as error:
            raise StageError(
                f"case {case_id}: no training sample could be made from it at step {step + 1} ({cause(error)})."
            ) from error
        maps = {key: torch.as_tensor(patch[key])[0] for key in (CLASSES, WEIGHT) if key in patch}
        return {key: value for key, value in patch.items() if key != CENTRE} | maps | {CASE_ID: case_id}

    def batch(self, step: int, places: Sequence[int]) -> Batch:
        """The samples of these places in the step's batch: tensors of one shape are stacked, all else is listed."""
        samples = [self.sample(step, place) for place in places]
        return {key: _joined([sample[key] for sample in samples]) for key in samples[0]}

    def cases_of(self, step: int) -> list[str]:
        """The cases that a step's batch is made from, without making it."""
        return [self._draw(step, place)[1] for place in range(self.batch_size)]

    def _draw(self, step: int, place: int) -> tuple[np.random.PCG64, str, int | None]:
        """The place's stream of random numbers, its case, and the structure to aim at, if any."""
        bits = np.random.PCG64(np.random.SeedSequence([self.seed, step, place]))
        random = np.random.Generator(bits)
        structure, cases = None, self.anywhere
        if place >= self.batch_size - self.n_foreground and self.having:
            structure, cases = self.having[random.integers(len(self.having))]
        return bits, cases[random.integers(len(cases))], structure

    def __getstate__(self) -> dict[str, Any]:
        # Open cases stay here: pickled for a worker, they would be copied whole.
        return {**self.__dict__, "_open": {}}

    def _case(self, case_id: str) -> PreparedCase:
        if case_id not in self._open:
            if not self.in_memory and len(self._open) >= MOST_OPEN:
                self._open.pop(next(iter(self._open)))
            self._open[case_id] = self.store.open(case_id, self.in_memory)
        case = self._open[case_id]
        if not self.in_memory:
            self.store.require_whole(case)
        return case


def patch_centre(
    case: PreparedCase, patch: tuple[int, int, int], random: np.random.Generator, structure: int | None
) -> npt.NDArray[np.int64]:
    """The voxel in the middle of a patch that leaves the case as little as it can.

    Args:
        structure: the class to aim at; None for anywhere that is annotated.
    """
    shape, size = np.array(case.classes.shape), np.array(patch)
    voxels = case.annotated if structure is None else case.foreground[structure]
    if voxels is not None and len(voxels):
        start = voxels[random.integers(len(voxels))] - size // 2
    else:
        start = random.integers(0, np.maximum(shape - size, 0), endpoint=True)
    # A case that is smaller than the patch lies in the middle of it, as in sliding-window prediction.
    start = np.where(shape >= size, np.clip(start, 0, np.maximum(shape - size, 0)), -((size - shape) // 2))
    return np.asarray(start + size // 2, np.int64)


def batches(
    dataset: PatchDataset, first: int, last: int, workers: int, pin: bool, rank: int = 0, world: int = 1
) -> Iterator[Batch]:
    """The batches of the steps from `first` to `last` (not included); the same ones whatever the number of workers.

    Args:
        workers: processes that make them ahead of need; 0 makes them here, when they are asked for.
        pin: into page-locked memory, from which a GPU copies while it computes.
        rank, world: of several training processes, each gets its own share of every step's batch.
    Raises: StageError naming the case that a sample could not be made from, or the cases of a worker that died.
    """
    size = dataset.batch_size
    if size < world:
        raise StageError(
            f"a batch of {size} cannot be shared by {world} processes; set `plan.batch_size` to {world} or more and run "
            "`medseg prepare`."
        )
    places = range(rank * size // world, (rank + 1) * size // world)
    steps = range(first, last)
    if not workers:
        yield from (_pinned(batch) if pin else batch for batch in (dataset.batch(step, places) for step in steps))
    elif pin:
        yield from _pinned_ahead(in_workers(dataset, steps, places, workers))
    else:
        yield from in_workers(dataset, steps, places, workers)


def _joined(values: list[Any]) -> Any:
    alike = all(isinstance(v, torch.Tensor) for v in values) and len({v.shape for v in values}) == 1
    return torch.stack(values) if alike else values


def _pinned(value: Any) -> Any:
    """The same with every tensor in it copied into pinned memory."""
    if isinstance(value, torch.Tensor):
        return value.pin_memory()
    if isinstance(value, dict):
        return {key: _pinned(v) for key, v in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(_pinned, value))
    return type(value)(map(_pinned, value)) if isinstance(value, list | tuple) else value


def _pinned_ahead(stream: Iterator[Batch]) -> Iterator[Batch]:
    """Each batch is copied into pinned memory by a thread while the one before it is learnt from."""

    def fetch() -> Batch | None:
        batch = next(stream, None)
        return None if batch is None else _pinned(batch)

    with contextlib.closing(stream), ThreadPoolExecutor(1) as thread:  # type: ignore[type-var]
        waiting = thread.submit(fetch)
        while (batch := waiting.result()) is not None:
            waiting = thread.submit(fetch)
            yield batch


def cause(error: BaseException) -> str:
    """An unforeseen error in a few words, with the line of code that it came from."""
    while error.__cause__ is not None:  # MONAI's own error says only in which transform
        error = error.__cause__
    frames = traceback.extract_tb(error.__traceback__)
    where = f", {frames[-1].filename.rsplit('/', 1)[-1]} line {frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}{where}"


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
