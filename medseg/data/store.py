"""Prepared arrays on disk, made for random patches: memory-mapped, with the foreground's coordinates beside them."""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medseg.core.errors import StageError
from medseg.core.files import atomic_path, remove, remove_leftovers, write_json
from medseg.core.labels import IGNORE

MOST_COORDINATES = 10_000  # of each class in each case; enough to aim patches at, small enough to keep in memory
ANNOTATED = "annotated"  # the name of their coordinates in foreground.npz, among those of the class indices


@dataclass(frozen=True, eq=False)
class PreparedCase:
    """One case on its prepared grid.

    Args:
        image: (C, X, Y, Z) float32, memory-mapped or in memory.
        classes: (X, Y, Z) uint8 class indices, likewise.
        foreground: class index -> (N, 3) int32 voxel coordinates, a random draw of at most 10,000; absent classes are not there.
        annotated: (N, 3) int32, such a draw from all voxels that are not ignored; None where no voxel is ignored.
    """

    case_id: str
    image: npt.NDArray[np.float32]
    classes: npt.NDArray[np.uint8]
    foreground: dict[int, npt.NDArray[np.int32]]
    annotated: npt.NDArray[np.int32] | None = None


@dataclass(frozen=True)
class Contents:
    """What a stored case holds, told without opening its arrays.

    Args:
        shape: (C, X, Y, Z). classes: of the structures that it has. annotated: whether any voxel is not ignored.
    """

    shape: tuple[int, ...]
    classes: tuple[int, ...]
    annotated: bool

    @property
    def n_bytes(self) -> int:
        """Of its arrays in memory: float32 channels and uint8 classes."""
        return (4 * self.shape[0] + 1) * math.prod(self.shape[1:])


class PreparedStore:
    """The folder `prepare/cases`, one folder a case."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)

    def key(self, case_id: str) -> str | None:
        """What the stored case was made from, or None where it is not (wholly) there."""
        try:
            return str(json.loads((self.folder / case_id / "case.json").read_text(encoding="utf-8"))["key"])
        except (OSError, ValueError, KeyError):
            return None

    def made_from(self, case_id: str) -> str:
        """As `key`, of a case that must be there. Raises: StageError."""
        with self._whole(case_id):
            if (key := self.key(case_id)) is None:
                raise ValueError("its case.json cannot be read")
        return key

    def holds(self, case_id: str, key: str) -> bool:
        """Whether the case stands there as it was made from this, with all its files whole."""
        if self.key(case_id) != key:
            return False
        try:
            self.contents(case_id)
            self.open(case_id)
        except StageError:
            return False
        return True

    def write(self, case_id: str, key: str, image: Any, classes: Any) -> None:
        """Store a case; `case.json`, written last, says that it is whole."""
        folder = self.folder / case_id
        remove(folder / "case.json")
        remove_leftovers(folder)
        for name, array in (("image", image), ("classes", classes)):
            with atomic_path(folder / f"{name}.npy") as path, open(path, "wb") as file:
                np.save(file, np.ascontiguousarray(array), allow_pickle=False)
        classes = np.asarray(classes)
        foreground, annotated = foreground_coordinates(classes), annotated_coordinates(classes)
        coordinates = {str(k): v for k, v in foreground.items()} | ({} if annotated is None else {ANNOTATED: annotated})
        with atomic_path(folder / "foreground.npz") as path, open(path, "wb") as file:
            np.savez(file, **coordinates)  # type: ignore[arg-type]
        facts = {"classes": sorted(foreground), "annotated": annotated is None or len(annotated) > 0}
        write_json(folder / "case.json", {"key": key, "shape": list(np.shape(image)), **facts})

    def contents(self, case_id: str) -> Contents:
        """What the stored case holds. Raises: StageError where it is missing or damaged."""
        with self._whole(case_id) as folder:
            facts = json.loads((folder / "case.json").read_text(encoding="utf-8"))
            classes = facts.get("classes")
            if classes is None:  # stored by an earlier version
                with open(folder / "foreground.npz", "rb") as file, np.load(file, allow_pickle=False) as arrays:
                    classes = [int(name) for name in arrays.files]
            return Contents(tuple(facts["shape"]), tuple(classes), bool(facts.get("annotated", True)))

    def open(self, case_id: str, in_memory: bool = False) -> PreparedCase:
        """The stored case, its arrays memory-mapped unless `in_memory`. Raises: StageError where it is missing or damaged."""
        with self._whole(case_id) as folder:
            self.made_from(case_id)
            image, classes = (_array(folder / f"{name}.npy", in_memory) for name in ("image", "classes"))
            # Opened here: on a damaged file numpy would leave its own open.
            with open(folder / "foreground.npz", "rb") as file, np.load(file, allow_pickle=False) as arrays:
                coordinates = {name: arrays[name] for name in arrays.files}
            annotated = coordinates.pop(ANNOTATED, None)
            return PreparedCase(case_id, image, classes, {int(k): v for k, v in coordinates.items()}, annotated)

    def require_whole(self, case: PreparedCase) -> None:
        """Look at the files of a memory-mapped case: a process that reads beyond the end of one is ended by the system.

        Raises: StageError where a file has been removed or cut short since it was opened.
        """
        with self._whole(case.case_id) as folder:
            for name, array in (("image", case.image), ("classes", case.classes)):
                if isinstance(array, np.memmap) and (folder / f"{name}.npy").stat().st_size < array.offset + array.nbytes:
                    raise ValueError(f"{name}.npy has been cut short")

    @contextmanager
    def _whole(self, case_id: str) -> Iterator[Path]:
        """The case's folder; what goes wrong with the files in it becomes a StageError."""
        folder = self.folder / case_id
        try:
            yield folder
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise StageError(
                f"{folder}: the prepared case is missing or damaged ({error}); run `medseg prepare` again."
            ) from None


def _array(path: Path, in_memory: bool) -> npt.NDArray[Any]:
    if not in_memory:
        return np.lib.format.open_memmap(path, mode="r")
    with open(path, "rb") as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def foreground_coordinates(classes: npt.NDArray[np.uint8]) -> dict[int, npt.NDArray[np.int32]]:
    """Coordinates of each structure's voxels, a seeded draw of at most `MOST_COORDINATES`, in array order."""
    found = (int(value) for value in np.unique(classes) if value not in (0, IGNORE))
    return {value: _coordinates(classes == value, seed=value) for value in found}


def annotated_coordinates(classes: npt.NDArray[np.uint8]) -> npt.NDArray[np.int32] | None:
    """Coordinates of voxels that are not ignored, drawn likewise; None where no voxel is ignored."""
    known = classes != IGNORE
    return None if known.all() else _coordinates(known, seed=IGNORE)


def _coordinates(mask: npt.NDArray[np.bool_], seed: int) -> npt.NDArray[np.int32]:
    index = np.flatnonzero(mask)
    if len(index) > MOST_COORDINATES:
        index = np.sort(np.random.default_rng(seed).choice(index, MOST_COORDINATES, replace=False))
    return np.stack(np.unravel_index(index, mask.shape), axis=1).astype(np.int32)
