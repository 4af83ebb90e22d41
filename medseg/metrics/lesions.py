"""Lesions found, missed and invented: the connected components of one structure, and the Dice of each."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medseg.core.components import number_components
from medseg.metrics.instances import Counts, Mask, Overlaps, count_overlaps, f1, match_objects

BRATS_DILATION = 3  # of gliomas in BraTS 2023, in voxels of 1 mm (meningiomas and metastases: 1)
BRATS_LARGER_THAN = 50  # there, in mm3 (metastases: 2)


@dataclass(frozen=True)
class Detection:
    """Lesions of one scan, matched one to one.

    Args:
        reference, prediction: lesions in each.
        matched: pairs of lesions.
    """

    reference: int
    prediction: int
    matched: int

    @property
    def sensitivity(self) -> float:
        """Share of the reference lesions that are found; NaN where there are none.

        The convention `worst` writes 1 where both are empty and 0 where one is.
        """
        return self.matched / self.reference if self.reference else math.nan

    @property
    def precision(self) -> float:
        """Share of the predicted lesions that are right; NaN where there are none. `worst` as for `sensitivity`."""
        return self.matched / self.prediction if self.prediction else math.nan

    @property
    def f1(self) -> float:
        """Harmonic mean of sensitivity and precision; NaN where both are empty (`worst`: 1), 0 where one is."""
        return f1(self.matched, self.reference, self.prediction)

    @property
    def false_positives(self) -> int:
        """Predicted lesions without a partner: a count, defined for every scan that has a prediction.

        A count has no worst value, so `worst` writes what was counted, and nothing where there is no usable prediction. A scan
        whose lesions were all missed counts 0: the figure is read beside the sensitivity, never alone.
        """
        return self.prediction - self.matched


@dataclass(frozen=True, eq=False)
class LesionDice:
    """Dice of each lesion of a scan.

    Args:
        voxels: (R,) int64 size of each reference lesion.
        dice: (R,) float64 its Dice; 0 where it is missed.
        false_positives: predicted lesions that belong to none.
    """

    voxels: Counts
    dice: npt.NDArray[np.float64]
    false_positives: int

    @property
    def mean(self) -> float:
        """Mean Dice, in which each false positive counts as 0; NaN where both are empty (`worst`: 1), 0 where one is."""
        lesions = len(self.dice) + self.false_positives
        return float(self.dice.sum()) / lesions if lesions else math.nan


def component_overlaps(reference: Mask, prediction: Mask) -> Overlaps:
    """The connected components of two masks, and which of them share voxels.

    Args:
        reference, prediction: (X, Y) or (X, Y, Z) bool on the same grid; cropping them to their common box changes nothing.
    """
    return count_overlaps(number_components(reference)[0], number_components(prediction)[0])


def detection(overlaps: Overlaps, iou: float = 0.0) -> Detection:
    """Which lesions are found.

    A predicted lesion that covers two reference lesions finds one of them: each is in one pair at most, so that sensitivity
    and precision speak of the same pairs.

    Args:
        overlaps: of the components (`component_overlaps`).
        iou: that a pair must reach; 0 for pairs that share any voxel.
    """
    return Detection(len(overlaps.reference), len(overlaps.prediction), len(match_objects(overlaps, iou)))


def lesion_dice(overlaps: Overlaps) -> LesionDice:
    """Dice of each reference lesion with all predicted lesions that share a voxel with it.

    The rule of BraTS 2023 without dilation and without a smallest size (`brats_lesion_dice`): many predicted lesions may
    belong to one, and one to many, and all voxels of each are counted every time.
    """
    return _lesion_dice(overlaps, overlaps)


def brats_lesion_dice(
    reference: Mask, prediction: Mask, dilation: int = BRATS_DILATION, larger_than: int = BRATS_LARGER_THAN
) -> LesionDice:
    """Dice of each lesion as BraTS 2023 measures it (github.com/rachitsaluja/BraTS-2023-Metrics), on voxels of 1 mm.

    Reference components whose dilations touch are one lesion. All predicted components that meet the dilated lesion belong to
    it. A reference lesion that is not larger than `larger_than` is left out, and predicted components that belong to it are
    no false positives; a small predicted component that belongs to none is one. BraTS writes 1 where no lesion and no false
    positive is left; here the mean is NaN.

    Args:
        reference, prediction: (X, Y) or (X, Y, Z) bool on the same grid; cropping them to their common box changes nothing.
        dilation: in voxels, each over faces and edges (18 neighbours; 8 in 2D).
        larger_than: in voxels.
    """
    from scipy import ndimage

    zones = reference
    if dilation:  # scipy takes 0 for as often as anything changes
        zones = ndimage.binary_dilation(reference, ndimage.generate_binary_structure(reference.ndim, 2), dilation)
    (numbers, _), (predicted, _) = number_components(zones), number_components(prediction)
    near = count_overlaps(numbers, predicted)
    numbers *= reference  # in place: a large scan's numbers take four bytes a voxel
    return _lesion_dice(count_overlaps(numbers, predicted), near, larger_than)


def _lesion_dice(lesions: Overlaps, zones: Overlaps, larger_than: int = 0) -> LesionDice:
    """The Dice of each lesion with the predicted ones that meet its zone; lesions and zones are in the same order."""
    zone, found = zones.pairs.T
    n = len(lesions.reference)
    shared = np.bincount(lesions.pairs[:, 0], lesions.shared, n)  # what shares a voxel with a lesion meets its zone
    belonging = np.bincount(zone, zones.prediction[found], n)
    kept = lesions.reference > larger_than
    return LesionDice(
        lesions.reference[kept],
        (2 * shared / (lesions.reference + belonging))[kept],
        len(zones.prediction) - len(np.unique(found)),
    )
