"""The masks of a case as one label map in the values of a scheme, whichever way its tool writes structures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from medseg.core.errors import LabelError
from medseg.core.labels import LabelScheme, Structure
from medseg.core.volume import LabelMap
from medseg.core.wording import some_of
from medseg.io.formats import read_labels, read_named_masks
from medseg.io.named_masks import NamedMasks

MOST_NAMES = 8  # told one by one
Spacing = tuple[float, float, float] | None


@dataclass(frozen=True)
class Stroke:
    """A name to paint: with which value, and over which (0: the background)."""

    name: str
    value: int
    over: int = 0


class MaskMap(NamedTuple):
    """Masks as one label map.

    Args:
        cut: it may be cut to its structures, so that all voxels outside of it are background.
        absent: which structures count as absent in a source that tells them by name, in words; empty where none does.
    """

    labels: LabelMap
    cut: bool = False
    absent: str = ""


def read_masks(
    source: Path, scheme: LabelScheme, prediction: bool = False, spacing_mm: Spacing = None, missing_empty: bool = False
) -> MaskMap:
    """A label map that `scheme.encode` understands.

    Masks that stand by name (see `read_named_masks`) are painted with the values of the scheme's structures, or regions, of the
    same name; capitals and the kind of gap between words do not matter, and names that the scheme does not have are left out.
    A structure without a mask is absent only where one file names nothing else: there it was written whole, and no other name
    can be meant.

    Args:
        missing_empty: a structure without a mask is absent wherever others have one, as `evaluate.missing_structures` may say.
    Raises: CaseError as `read_labels`; LabelError where a structure has no mask, or masks share voxels that only one can have.
    """
    named = read_named_masks(source, spacing_mm)
    if named is None:
        return MaskMap(read_labels(source, spacing_mm=spacing_mm))
    names = _by_plain_name(named, source)
    strokes = _strokes(scheme, set(names), prediction)
    absent = _absent(strokes, names, named, source, missing_empty)
    array = np.zeros(named.grid.shape, np.uint16)
    painted: dict[int, str] = {}
    for stroke in strokes:
        if (name := names.get(plain(stroke.name))) is not None:
            _paint(array, named, name, stroke, painted, source)
    note = f"{source.name} has no {named.unit} of {_quoted(absent)}: taken as absent" if absent else ""
    return MaskMap(LabelMap(array, named.grid), named.one_file, note)


def plain(name: str) -> str:
    """A name without what tools write differently: capitals, and blanks, hyphens or underscores between words."""
    return " ".join(name.replace("_", " ").replace("-", " ").lower().split())


def _by_plain_name(named: NamedMasks, source: Path) -> dict[str, str]:
    names: dict[str, str] = {}
    for name in named.names:
        if (first := names.setdefault(plain(name), name)) != name:
            raise LabelError(f"{source}: the names `{first}` and `{name}` cannot be told apart; rename one.")
    return names


def _strokes(scheme: LabelScheme, names: set[str], prediction: bool) -> list[Stroke]:
    """What to paint, in order: the structures, or the regions from the largest to the smallest where those are what is named."""
    value_of = {s.name: _value(s, prediction) for s in scheme.structures}
    if not any(plain(r.name) in names for r in scheme.regions if r.name not in value_of):
        return [Stroke(name, value) for name, value in value_of.items()]
    values = list(value_of.values())
    strokes: list[Stroke] = []
    order = [(scheme.regions[region], values[index - 1]) for region, index in scheme.painting]
    for place, (region, value) in enumerate(order):
        around = [v for larger, v in order[:place] if set(region.structures) < set(larger.structures)]
        strokes.append(Stroke(region.name, value, around[-1] if around else 0))
    if len({stroke.value for stroke in strokes}) < len(strokes):
        raise LabelError("two regions of the label scheme are written as one structure, so masks of them cannot be told apart.")
    return strokes


def _value(structure: Structure, prediction: bool) -> int:
    values = structure.prediction_values if prediction else structure.values
    return values[0] if isinstance(values, list) and values else structure.id


def _absent(strokes: Sequence[Stroke], names: dict[str, str], named: NamedMasks, source: Path, missing_empty: bool) -> list[str]:
    """The names that have no mask because there is nothing to mark. Raises: LabelError where that is not certain."""
    wanted = {plain(stroke.name): stroke.name for stroke in strokes}
    missing = [name for key, name in wanted.items() if key not in names]
    others = [name for key, name in names.items() if key not in wanted]
    if missing and not missing_empty and (others or not named.one_file):
        raise LabelError(
            f"{source} has no mask of {_quoted(missing)} (its {named.unit}s: {_quoted(list(names.values()))}); give it one, "
            "empty where the structure is absent (or set `evaluate.missing_structures: empty`, if that is what a missing one "
            "means), or give --labels with the structures to evaluate, named as there."
        )
    return missing


def _paint(
    array: npt.NDArray[np.uint16], named: NamedMasks, name: str, stroke: Stroke, painted: dict[int, str], source: Path
) -> None:
    mask = named.mask(name)
    under = array[mask]
    wrong = under[under != stroke.over]
    if len(wrong):
        other = painted.get(int(wrong[0]), "")
        how = f"shares voxels with `{other}`" if other else "leaves the region that it is part of"
        raise LabelError(
            f"{source}: `{name}` {how} ({len(wrong)} voxels), and a voxel can be in one only of the structures that are measured "
            "together; evaluate them apart, with --labels that name one of them."
        )
    array[mask] = stroke.value
    painted[stroke.value] = name


def _quoted(names: Sequence[str]) -> str:
    return some_of((f"`{name}`" for name in names), MOST_NAMES)
