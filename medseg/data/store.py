"""Prepared arrays on disk, made for random patches: memory-mapped, with the foreground's coordinates beside them."""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medseg.core.errors import StageError
from medseg.core.files import atomic_path, remove, write_json
from medseg.core.labels import IGNORE

MOST_COORDINATES = 10_000  # of each class in each case; enough to aim patches at, small enough to keep in memory


@dataclass(frozen=True, eq=False)
class PreparedCase:
    """One case on its prepared grid.

    Args:
        image: (C, X, Y, Z) float32, memory-mapped.
        classes: (X, Y, Z) uint8 class indices, memory-mapped.
        foreground: class index -> (N, 3) int32 voxel coordinates, a random draw of at most 10,000; absent classes are not there.
    """

    case_id: str
    image: npt.NDArray[np.float32]
    classes: npt.NDArray[np.uint8]
    foreground: dict[int, npt.NDArray[np.int32]]


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

    def write(self, case_id: str, key: str, image: Any, classes: Any) -> None:
        """Store a case; `case.json`, written last, says that it is whole."""
        folder = self.folder / case_id
        remove(folder / "case.json")
        for name, array in (("image", image), ("classes", classes)):
            with atomic_path(folder / f"{name}.npy") as path, open(path, "wb") as file:
                np.save(file, np.ascontiguousarray(array), allow_pickle=False)
        with atomic_path(folder / "foreground.npz") as path, open(path, "wb") as file:
            np.savez(file, **{str(k): v for k, v in foreground_coordinates(np.asarray(classes)).items()})  # type: ignore[arg-type]
        write_json(folder / "case.json", {"key": key, "shape": list(np.shape(image))})

    def open(self, case_id: str) -> PreparedCase:
        """The stored case. Raises: StageError where it is missing or damaged."""
        folder = self.folder / case_id
        try:
            if self.key(case_id) is None:
                raise ValueError("its case.json cannot be read")
            image, classes = (np.lib.format.open_memmap(folder / f"{name}.npy", mode="r") for name in ("image", "classes"))
            # Opened here: on a damaged file numpy would leave its own open.
            with open(folder / "foreground.npz", "rb") as file, np.load(file, allow_pickle=False) as arrays:
                foreground = {int(k): arrays[k] for k in arrays.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise StageError(
                f"{folder}: the prepared case is missing or damaged ({error}); run `medseg prepare` again."
            ) from None
        return PreparedCase(case_id, image, classes, foreground)


def foreground_coordinates(classes: npt.NDArray[np.uint8]) -> dict[int, npt.NDArray[np.int32]]:
    """Coordinates of each structure's voxels, a seeded draw of at most `MOST_COORDINATES`, in array order."""
    result = {}
    for value in np.unique(classes):
        if value in (0, IGNORE):
            continue
        index = np.flatnonzero(classes == value)
        if len(index) > MOST_COORDINATES:
            index = np.sort(np.random.default_rng(int(value)).choice(index, MOST_COORDINATES, replace=False))
        result[int(value)] = np.stack(np.unravel_index(index, classes.shape), axis=1).astype(np.int32)
    return result
