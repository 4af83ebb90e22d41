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
from medseg.core.wording import some_of
from medseg.evaluation.layouts import Masks, find_masks
from medseg.io.file_names import CELLPOSE, bare_name
from medseg.io.formats import case_name
from medseg.io.probabilities import PROBABILITIES_SUFFIX


@dataclass(frozen=True)
class Pair:
    """The files of one case.

    Args:
        reference: None where the case has none.
        prediction: None where there is none; `reason` then says why.
        probabilities: beside the prediction, where they were kept.
        differing: what was left out of the two names to match them, in words; empty where they are equal.
    """

    case_id: str
    patient_id: str
    reference: Path | None
    prediction: Path | None
    reason: str = ""
    probabilities: Path | None = None
    differing: str = ""


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
    path = pair.prediction.with_name(case_name(pair.prediction) + PROBABILITIES_SUFFIX)
    return replace(pair, probabilities=path) if path.is_file() else pair


def pair_folders(predictions: Path, references: Path) -> tuple[list[Pair], list[Unmatched]]:
    """Pairs by case name: one for every reference, and the list of all masks that have no partner.

    A mask is a file, or a folder of a case (see `find_masks`). Names may differ in what tools put behind them, such as
    `_seg` or `_cp_masks`; a case is called by what is left, unless a folder holds several of one name.

    Raises: ConfigError where a folder is missing or holds no masks, several masks of one folder may be a case's, or no name is
        in both folders.
    """
    found, wanted = find_masks(predictions, "predictions"), find_masks(references, "references")
    partners = _partners(found, wanted, predictions, references)
    if not partners:
        raise ConfigError(
            f"no mask of {predictions} is called like one of {references} ({_names(found)} against {_names(wanted)}); give both "
            "masks of a case one name with the same capitals; only endings such as _seg, _pred or _cp_masks may differ."
        )
    cases, others, taken = _case_ids(wanted), _case_ids(found), set(partners.values())
    pairs = [
        _with_probabilities(Pair(cases[name], "", path, found[partners[name]], differing=_differing(partners[name], name)))
        if name in partners
        else Pair(cases[name], "", path, None, f"no mask in {predictions}")
        for name, path in wanted.items()
    ]
    unmatched = [Unmatched(cases[name], "prediction", path) for name, path in wanted.items() if name not in partners]
    return pairs, unmatched + [Unmatched(others[n], "reference", path) for n, path in found.items() if n not in taken]


def _partners(found: Masks, wanted: Masks, predictions: Path, references: Path) -> dict[str, str]:
    """The prediction's name for the name of each reference that has one. Raises: ConfigError where several might be it."""
    of_found, of_wanted = _by_key(found), _by_key(wanted)
    partners: dict[str, str] = {}
    for key, names in of_wanted.items():
        others = of_found.get(key, [])
        if len(names) == 1 < len(others):  # Cellpose writes its masks beside the pictures
            others = [name for name in others if name.lower().endswith(CELLPOSE)] or others
        if set(names) == set(others):
            partners |= {name: name for name in names}
        elif len(names) == len(others) == 1:
            partners[names[0]] = others[0]
        elif others:
            raise ConfigError(
                f"{', '.join(names)} of {references} and {', '.join(others)} of {predictions} may all be case `{key}`; leave one "
                "of them in each folder."
            )
    return partners


def _by_key(masks: Masks) -> dict[str, list[str]]:
    keys: dict[str, list[str]] = {}
    for name in masks:
        keys.setdefault(bare_name(name), []).append(name)
    return keys


def _case_ids(masks: Masks) -> dict[str, str]:
    """What the case of each name is called: the bare name, unless another has the same."""
    return {name: key if len(names) == 1 else name for key, names in _by_key(masks).items() for name in names}


def _differing(prediction: str, reference: str) -> str:
    ends = [(name[len(bare_name(name)) :], what) for name, what in ((prediction, "predictions"), (reference, "references"))]
    return "" if prediction == reference else " and ".join(f"`{end}` of the {what}" for end, what in ends if end)


def _names(masks: Masks) -> str:
    return some_of(path.name if path.is_file() else f"{name}/" for name, path in masks.items())


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


def place(labels: LabelMap, grid: Grid) -> LabelMap:
    """`labels` that are background wherever they do not reach, on all of `grid`; as they are where voxels do not coincide.

    Raises: GridMismatchError where marked voxels lie outside of `grid`.
    """
    turned = _turned(labels.grid, grid)
    if (start := _offset(turned, grid)) is None:
        return labels
    array = resample(labels.array, labels.grid, turned, order=0)
    whole = np.zeros(grid.shape, array.dtype)
    inner = tuple(slice(max(0, -s), max(0, min(n, size - s))) for s, n, size in zip(start, turned.shape, grid.shape, strict=True))
    outer = tuple(slice(i.start + s, i.start + s + max(0, i.stop - i.start)) for i, s in zip(inner, start, strict=True))
    if (outside := np.count_nonzero(array) - np.count_nonzero(array[inner])) > 0:
        raise GridMismatchError(f"{outside} of the marked voxels lie outside of the reference's grid.")
    if array[inner].size:
        whole[outer] = array[inner]
    return LabelMap(whole, grid)


def widen(labels: LabelMap, other: Grid) -> LabelMap:
    """`labels` that are background wherever they do not reach, on the smallest grid that holds theirs and `other`.

    As they are where the voxels of the two do not coincide.
    """
    turned = _turned(labels.grid, other)
    if (start := _offset(turned, other)) is None:
        return labels
    low = np.minimum(start, 0)
    high = np.maximum(np.add(start, turned.shape), other.shape)
    return place(labels, other.cropped(tuple(low.tolist()), tuple((high - low).tolist())))


def _offset(inner: Grid, outer: Grid) -> tuple[int, ...] | None:
    """The voxel of `outer` on which the first of `inner` lies, be it outside; None where their voxels do not coincide."""
    first = np.linalg.solve(outer.affine, inner.affine[:, 3])[:3]
    start = tuple(int(v) for v in np.round(first))
    same = outer.cropped(start, inner.shape).difference(inner) is None
    return start if same else None


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
