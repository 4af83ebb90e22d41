"""Which prediction belongs to which reference, and whether they lie on the same voxels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from medseg.core.errors import ConfigError, GridMismatchError
from medseg.core.grid import Grid
from medseg.core.manifest import Case
from medseg.core.resample import resample
from medseg.core.volume import LabelMap
from medseg.io.formats import case_name, is_folder_scan, is_scan
from medseg.io.probabilities import SUFFIX


@dataclass(frozen=True)
class Pair:
    """The files of one case.

    Args:
        reference: None where the case has none.
        prediction: None where there is none; `reason` then says why.
        probabilities: beside the prediction, where they were kept.
    """

    case_id: str
    patient_id: str
    reference: Path | None
    prediction: Path | None
    reason: str = ""
    probabilities: Path | None = None


@dataclass(frozen=True)
class Unmatched:
    """A file without a partner; `missing` says which one: reference or prediction."""

    case_id: str
    missing: str
    file: Path


def pair_cases(cases: Sequence[Case], predictions: dict[str, tuple[Path | None, str]]) -> list[Pair]:
    """One pair a case of a manifest.

    Args:
        predictions: for each case_id its file, or None and the reason why there is none.
    """
    none = (None, "it has no prediction")
    return [_with_probabilities(Pair(c.case_id, c.patient_id, c.label, *predictions.get(c.case_id, none))) for c in cases]


def _with_probabilities(pair: Pair) -> Pair:
    if pair.prediction is None:
        return pair
    path = pair.prediction.with_name(case_name(pair.prediction) + SUFFIX)
    return replace(pair, probabilities=path) if path.is_file() else pair


def pair_folders(predictions: Path, references: Path) -> tuple[list[Pair], list[Unmatched]]:
    """Pairs by case name: one for every reference, and the list of all files that have no partner.

    Raises: ConfigError where a folder is missing or holds no label maps, two files of a folder have one case name, or no
        name is in both folders.
    """
    found, wanted = _by_name(predictions, "predictions"), _by_name(references, "references")
    if not found.keys() & wanted.keys():
        raise ConfigError(
            f"no file of {predictions} is named like one of {references} (for example {next(iter(found.values())).name} and "
            f"{next(iter(wanted.values())).name}); give both files of a case the same name."
        )
    pairs = [
        _with_probabilities(Pair(n, "", path, found.get(n), "" if n in found else f"no file in {predictions}"))
        for n, path in wanted.items()
    ]
    unmatched = [Unmatched(name, "prediction", path) for name, path in wanted.items() if name not in found]
    unmatched += [Unmatched(name, "reference", path) for name, path in found.items() if name not in wanted]
    return pairs, unmatched


def _by_name(folder: Path, what: str) -> dict[str, Path]:
    if not folder.is_dir():
        raise ConfigError(f"{folder} is not a folder; give the folder of the {what}.")
    files: dict[str, Path] = {}
    for path in sorted(filter(_holds_labels, folder.iterdir())):
        if (first := files.setdefault(case_name(path), path)) != path:
            raise ConfigError(f"{folder}: {first.name} and {path.name} are both case `{case_name(path)}`; remove one.")
    if not files:
        raise ConfigError(f"{folder} holds no label map in a format that can be read; give the folder of the {what}.")
    return files


def _holds_labels(path: Path) -> bool:
    return ((path.is_file() and is_scan(path)) or is_folder_scan(path)) and not path.name.endswith(SUFFIX)


def on_grid(labels: LabelMap, grid: Grid, nearest: bool = False) -> tuple[LabelMap, str]:
    """`labels` on the voxels of `grid`: axis orders and flips are undone exactly, nothing is interpolated.

    Args:
        nearest: where anything else differs, take the nearest voxel's label, and the background outside of the labels' grid.
    Returns: the labels, and what was resampled in words; empty where nothing was.
    Raises: GridMismatchError saying what differs, where `nearest` is not asked for, or only one of the grids has a physical size.
    """
    turned = _turned(labels.grid, grid)
    difference = grid.difference(turned)
    if difference is None:
        return LabelMap(resample(labels.array, labels.grid, turned, order=0), grid), ""
    if nearest and labels.grid.physical == grid.physical:
        return LabelMap(resample(labels.array, labels.grid, grid, order=0), grid), f"resampled by nearest neighbour: {difference}"
    raise GridMismatchError(f"the prediction's grid is not the reference's: {difference} (reference first).")


def _turned(grid: Grid, towards: Grid) -> Grid:
    """The voxels of `grid` with axes reordered and flipped to run along those of `towards`, where that is possible."""
    along = np.linalg.solve(grid.directions, towards.directions)  # column j: axis j of `towards` in axes of `grid`
    axes = np.abs(along).argmax(0)
    if len(set(axes.tolist())) < 3:
        return grid
    matrix = np.zeros((4, 4))
    matrix[3, 3] = 1
    for place, axis in enumerate(axes):
        forward = along[axis, place] > 0
        matrix[axis, place] = 1 if forward else -1
        matrix[axis, 3] = 0 if forward else grid.shape[axis] - 1
    return Grid(tuple(grid.shape[a] for a in axes), grid.affine @ matrix, grid.physical)  # type: ignore[arg-type]
