"""Which pieces of a structure are better left out: chosen on the validation cases, by Dice."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medseg.core.components import Components, boxes_of, mask_of
from medseg.core.labels import IGNORE, LabelScheme
from medseg.inference.postprocess import Classes, Postprocessing, Rule, around, beneath, from_large_to_small

LEAST_GAIN = 0.0005  # of a structure's mean Dice; less is the luck of the validation cases
QUANTILES = (0.0, 0.05, 0.25)  # of the reference pieces' volumes; half of each is tried as the least volume

Counts = npt.NDArray[np.int64]
Rules = dict[str, Rule]


@dataclass(frozen=True, eq=False)
class Pieces:
    """The pieces of one structure or region in one predicted case: enough to know its Dice whichever of them stay.

    Args:
        volumes: (N,) in the unit of `Rule.smallest_volume`.
        seen, right: (N,) voxels whose reference is not ignored, and those of them that are in the reference too.
        reference: voxels of the reference.
        reference_volumes: of the reference's own pieces.
        lies_in: for each region around this one, (N,) which of its pieces each piece lies in.
    """

    volumes: npt.NDArray[np.float64]
    seen: Counts
    right: Counts
    reference: int
    reference_volumes: npt.NDArray[np.float64]
    lies_in: Mapping[str, Counts]

    def dice(self, kept: npt.NDArray[np.bool_]) -> float:
        """Dice where these pieces stay; 1 where both masks are empty, as in the convention `worst` of an evaluation."""
        both = self.reference + int(self.seen[kept].sum())
        return 2 * int(self.right[kept].sum()) / both if both else 1.0


def pieces_of(prediction: Classes, reference: Classes, labels: LabelScheme, voxel_volume: float) -> dict[str, Pieces]:
    """What must be known of one case, by the name of the structure or region; each is labelled once.

    Args:
        prediction, reference: (X, Y, Z) class indices on one grid.
    """
    result: dict[str, Pieces] = {}
    whole: dict[str, npt.NDArray[np.int32]] = {}  # numbered pieces of the regions that others lie in
    inner = {outer for name in labels.measured for outer in around(labels, name)}
    boxes, reference_boxes = boxes_of(prediction), boxes_of(reference)
    for name in from_large_to_small(labels, labels.measured):
        members = labels.measured[name]
        box, mask = mask_of(prediction, members, boxes)
        pieces = Components(mask)
        numbers, counts = pieces.numbers(), pieces.counts
        reference_counts = Components(mask_of(reference, members, reference_boxes)[1]).counts
        there = reference[box]
        first = _first_voxels(numbers, len(counts))
        result[name] = Pieces(
            volumes=counts.astype(np.float64) * voxel_volume,
            seen=_sums(numbers, there != IGNORE, len(counts)),
            right=_sums(numbers, np.isin(there, members), len(counts)),
            reference=int(reference_counts.sum()),
            reference_volumes=reference_counts.astype(np.float64) * voxel_volume,
            lies_in={outer: whole[outer][box].ravel()[first].astype(np.int64) - 1 for outer in around(labels, name)},
        )
        if name in inner:
            whole[name] = np.zeros(prediction.shape, np.int32)
            whole[name][box] = numbers
    return result


def _first_voxels(numbers: npt.NDArray[np.int32], count: int) -> Counts:
    """(N,) flat index of one voxel of each piece."""
    first = np.zeros(count + 1, np.int64)
    first[numbers.ravel()] = np.arange(numbers.size)
    return first[1:]


def _sums(numbers: npt.NDArray[np.int32], mask: npt.NDArray[np.bool_], count: int) -> Counts:
    """(N,) voxels of each piece that are in the mask."""
    return np.bincount(numbers[mask], minlength=count + 1)[1:]


def choose_postprocessing(cases: Sequence[Mapping[str, Pieces]], labels: LabelScheme) -> Postprocessing | None:
    """The rules that raise Dice on these cases, or None where none does.

    A rule of a structure is taken where its mean Dice over the cases rises by at least 0.0005 and no structure's falls, as
    nnU-Net decides about the largest component (Isensee et al. 2021, Nat Methods 18:203); of several the one that helps most.
    A region whose pieces would leave a hole in the region around it gets none: that region's Dice would change unseen.
    """
    rules: Rules = {}
    before = mean_dice(cases, labels, rules)
    for name in from_large_to_small(labels, labels.measured):
        if around(labels, name) and beneath(labels, name) == 0:
            continue
        best, best_dice = None, before
        for rule in _candidates(case[name] for case in cases):
            after = mean_dice(cases, labels, rules | {name: rule})
            gains = after[name] >= before[name] + LEAST_GAIN and all(after[n] >= before[n] for n in before)
            if gains and after[name] > best_dice[name]:
                best, best_dice = rule, after
        if best is not None:
            rules[name], before = best, best_dice
    return Postprocessing(rules={n: rules[n] for n in labels.measured if n in rules}) if rules else None


def mean_dice(cases: Sequence[Mapping[str, Pieces]], labels: LabelScheme, rules: Mapping[str, Rule]) -> dict[str, float]:
    """Mean Dice over the cases of each structure or region, where these rules are obeyed."""
    values = [_dice(case, labels, rules) for case in cases]
    return {name: math.fsum(v[name] for v in values) / len(values) for name in labels.measured}


def _dice(case: Mapping[str, Pieces], labels: LabelScheme, rules: Mapping[str, Rule]) -> dict[str, float]:
    """One case, as `postprocess` would leave it: a piece goes with the piece that it lies in."""
    kept: dict[str, npt.NDArray[np.bool_]] = {}
    for name in from_large_to_small(labels, labels.measured):
        pieces = case[name]
        stays = np.ones(len(pieces.volumes), bool)
        for outer, numbers in pieces.lies_in.items():
            stays &= kept[outer][numbers]
        if name in rules:
            stays[stays] = rules[name].kept(pieces.volumes[stays])
        kept[name] = stays
    return {name: case[name].dice(kept[name]) for name in labels.measured}


def _candidates(structure: Iterable[Pieces]) -> list[Rule]:
    """Rules worth trying, the plainest first: the largest piece, half the size of small reference pieces, both."""
    sizes = np.concatenate([pieces.reference_volumes for pieces in structure])
    least = sorted({float(f"{v / 2:.4g}") for v in np.quantile(sizes, QUANTILES)}) if len(sizes) else []
    return [
        Rule(keep_largest=True),
        *(Rule(smallest_volume=volume) for volume in least),
        *(Rule(keep_largest=True, smallest_volume=volume) for volume in least),
    ]
