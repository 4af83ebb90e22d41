"""METRICS: every figure that an evaluation can give, and what it says where a mask is empty. A new metric is a new row."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from medseg.metrics import membranes, overlap, topology
from medseg.metrics.boundary import boundary_distance, boundary_iou
from medseg.metrics.calibration import brier_score, expected_calibration_error, reliability_of
from medseg.metrics.instances import (
    Overlaps,
    Panoptic,
    aggregated_jaccard,
    average_precision,
    count_overlaps,
    mean_average_precision,
    panoptic,
)
from medseg.metrics.lesions import Detection, component_overlaps, detection, lesion_dice
from medseg.metrics.overlap import Counts
from medseg.metrics.pair import StructurePair
from medseg.metrics.surface import (
    SurfaceDistances,
    average_symmetric_surface_distance,
    hausdorff,
    mean_surface_distance,
    median_surface_distance,
    surface_dice,
)

UnitKind = Literal["", "length", "size"]  # a share; mm or pixels; ml, mm2, pixels or voxels
Better = Literal["higher", "lower", ""]
Parameter = Literal["tolerance", "overlap", ""]
Group = Literal["standard", "overlap", "surface", "lesions", "instances", "membranes", "warping", "topology", "calibration"]
# The scan's diagonal; the measured figure; the measured figure, or 0 without a prediction.
WorstValue = float | Literal["diagonal", "measured", "measured or 0"]


@dataclass(frozen=True)
class Metric:
    """One figure of one structure in one case.

    Args:
        name: in configurations and, with the unit, in tables.
        label: in reports.
        function: the figure as defined; NaN where its definition divides by zero or lacks a surface.
        text: what it is, for the reader of a report.
        group: a configuration may name a group in place of its metrics; `standard` is measured where it names none.
        better: which way is better; empty for a figure that is neither, such as a volume, and for one without a worst value:
            a scan in which all lesions are missed has no false positive, and may not win by that.
        when_both_empty: what the convention `worst` writes where the structure is in neither mask.
        when_one_empty: what `worst` writes where it is in one only, or where there is no usable prediction at all.
        unit: kind of unit.
        parameter: that its name carries: the tolerance of surfaces, or the overlap from which on a lesion is found.
        of_probabilities: undefined without the network's probabilities (`predict.probabilities: true`).
    """

    name: str
    label: str
    function: Callable[[StructurePair], float]
    text: str
    group: Group
    better: Better = "higher"
    when_both_empty: WorstValue = 1.0
    when_one_empty: WorstValue = 0.0
    unit: UnitKind = ""
    parameter: Parameter = ""
    of_probabilities: bool = False


def _distance(name: str, label: str, function: Callable[[SurfaceDistances], float], text: str, group: Group) -> Metric:
    def of_pair(pair: StructurePair) -> float:
        return math.nan if pair.distances is None else function(pair.distances)

    return Metric(name, label, of_pair, text, group, "lower", 0.0, "diagonal", "length")


def _size(name: str, label: str, voxels: Callable[[Counts], float], text: str, group: Group, without: WorstValue) -> Metric:
    def of_pair(pair: StructurePair) -> float:
        return voxels(pair.counts) * pair.frame.voxel_size(pair.grid)

    return Metric(name, label, of_pair, text, group, "", "measured", without, "size")


def _surface_dice(pair: StructurePair) -> float:
    if pair.distances is not None:
        return surface_dice(pair.distances, pair.tolerance)
    # With one surface there is nothing within reach of it; with none there is no share to speak of.
    return 0.0 if pair.counts.reference or pair.counts.prediction else math.nan


def _boundary_iou(pair: StructurePair) -> float:
    return boundary_iou(*pair.masks(pair.box), pair.sides, boundary_distance(pair.extent, pair.sides)) if pair.box else math.nan


def _components(pair: StructurePair) -> Overlaps:
    """The components of both masks: what every figure of lesions is read from."""
    return component_overlaps(*pair.boxed_masks())


def _objects(pair: StructurePair) -> Overlaps:
    """The objects of both masks, by the numbers that files give them or else their components."""
    if pair.reference_numbers is None and pair.prediction_numbers is None:
        return pair.once(_components)
    return count_overlaps(*pair.objects())


def _lesions(pair: StructurePair) -> Detection:
    return detection(pair.once(_components), pair.lesion_overlap)


def _panoptic(pair: StructurePair) -> Panoptic:
    return panoptic(pair.once(_objects))


def _precision_at(iou: float) -> Callable[[StructurePair], float]:
    return lambda pair: average_precision(pair.once(_objects), iou)


def _cells(pair: StructurePair) -> membranes.CellScores:
    return membranes.score_cells(*pair.masks(), pair.ignored)


def _best_cells(pair: StructurePair) -> membranes.BestScores:
    return membranes.best_scores(pair.once(membranes.threshold_scores))


def _centrelines(pair: StructurePair) -> topology.CentrelineOverlap:
    return topology.centreline_overlap(*pair.boxed_masks())


def _betti(pair: StructurePair) -> topology.Betti:
    return topology.betti_errors(*pair.boxed_masks())


_STANDARD = (
    Metric("dice", "Dice", lambda p: overlap.dice(p.counts), "Dice similarity coefficient", "standard"),
    Metric("iou", "IoU", lambda p: overlap.iou(p.counts), "Intersection over union (Jaccard index)", "standard"),
    Metric(
        "precision",
        "Precision",
        lambda p: overlap.precision(p.counts),
        "Share of the predicted voxels that are right",
        "standard",
    ),
    Metric(
        "sensitivity",
        "Sensitivity",
        lambda p: overlap.sensitivity(p.counts),
        "Share of the reference voxels that are found",
        "standard",
    ),
    _size("reference_volume", "Reference volume", lambda c: c.reference, "Size in the reference", "standard", "measured"),
    _size("predicted_volume", "Predicted volume", lambda c: c.prediction, "Size in the prediction", "standard", "measured or 0"),
    _distance(
        "hd95",
        "HD95",
        lambda d: hausdorff(d, 95),
        "95 % Hausdorff distance: the larger of the two directed 95th percentiles of the distances between the surfaces, by area",
        "standard",
    ),
    Metric(
        "surface_dice",
        "Surface Dice",
        _surface_dice,
        "Surface Dice: share of both surfaces, by area, within the tolerance of each other",
        "standard",
        parameter="tolerance",
    ),
)
_OVERLAP = (
    Metric(
        "specificity",
        "Specificity",
        lambda p: overlap.specificity(p.counts),
        "Share of the other voxels that are left out; it grows with the field of view",
        "overlap",
    ),
    Metric(
        "volume_similarity",
        "Volume similarity",
        lambda p: overlap.volume_similarity(p.counts),
        "1 less the difference of the sizes over their sum; says nothing of the place",
        "overlap",
    ),
    _size(
        "volume_difference",
        "Volume difference",
        overlap.volume_difference,
        "Size in the prediction less size in the reference",
        "overlap",
        "measured",
    ),
    _size(
        "absolute_volume_difference",
        "Absolute volume difference",
        overlap.absolute_volume_difference,
        "Size in the prediction less size in the reference, without its sign",
        "overlap",
        "measured",
    ),
    Metric(
        "relative_volume_difference",
        "Relative volume difference",
        lambda p: overlap.relative_volume_difference(p.counts),
        "Size in the prediction less size in the reference, over the latter",
        "overlap",
        "",
        "measured",
        "measured",
    ),
    Metric(
        "absolute_relative_volume_difference",
        "Absolute relative volume difference",
        lambda p: overlap.absolute_relative_volume_difference(p.counts),
        "Size in the prediction less size in the reference, over the latter, without its sign",
        "overlap",
        "",
        "measured",
        "measured",
    ),
)
_SURFACE = (
    _distance(
        "hd",
        "Hausdorff distance",
        lambda d: hausdorff(d, 100),
        "Hausdorff distance: the largest distance between the surfaces; one stray voxel decides it",
        "surface",
    ),
    _distance(
        "assd",
        "ASSD",
        average_symmetric_surface_distance,
        "Average symmetric surface distance: mean over both surfaces together, by area",
        "surface",
    ),
    _distance(
        "mean_surface_distance",
        "Mean surface distance",
        mean_surface_distance,
        "The mean of the two directed mean distances between the surfaces, by area",
        "surface",
    ),
    _distance(
        "median_surface_distance",
        "Median surface distance",
        median_surface_distance,
        "Median distance between the surfaces, both together, by area",
        "surface",
    ),
    Metric(
        "boundary_iou",
        "Boundary IoU",
        _boundary_iou,
        "Intersection over union of the rims of both masks, 2 % of the scan's diagonal wide",
        "surface",
    ),
)
_LESIONS = (
    Metric(
        "lesion_sensitivity",
        "Lesion sensitivity",
        lambda p: p.once(_lesions).sensitivity,
        "Share of the reference's lesions (connected components) that are found",
        "lesions",
        parameter="overlap",
    ),
    Metric(
        "lesion_precision",
        "Lesion precision",
        lambda p: p.once(_lesions).precision,
        "Share of the predicted lesions (connected components) that are in the reference",
        "lesions",
        parameter="overlap",
    ),
    Metric(
        "lesion_f1",
        "Lesion F1",
        lambda p: p.once(_lesions).f1,
        "F1 score of the lesions (connected components), found one to one",
        "lesions",
        parameter="overlap",
    ),
    Metric(
        "lesion_false_positives",
        "False positive lesions",
        lambda p: p.once(_lesions).false_positives,
        "Predicted lesions (connected components) that are not in the reference",
        "lesions",
        "",
        "measured",
        "measured",
        parameter="overlap",
    ),
    Metric(
        "lesion_dice",
        "Lesion-wise Dice",
        lambda p: lesion_dice(p.once(_components)).mean,
        "Mean Dice of the lesions; a missed and a false lesion count 0 (as in BraTS 2023, without its dilation and least size)",
        "lesions",
    ),
)
_INSTANCES = (
    Metric(
        "panoptic_quality",
        "Panoptic quality",
        lambda p: p.once(_panoptic).quality,
        "Segmentation quality times recognition quality of the objects",
        "instances",
    ),
    Metric(
        "segmentation_quality",
        "Segmentation quality",
        lambda p: p.once(_panoptic).segmentation_quality,
        "Mean IoU of the objects that are found at an IoU of 0.5",
        "instances",
    ),
    Metric(
        "recognition_quality",
        "Recognition quality",
        lambda p: p.once(_panoptic).recognition_quality,
        "F1 score of the objects at an IoU of 0.5",
        "instances",
    ),
    *(
        Metric(
            f"ap{round(100 * iou)}",
            f"AP at IoU {iou}",
            _precision_at(iou),
            f"Average precision of the objects at an IoU of {iou}: found / (found + false + missed)",
            "instances",
        )
        for iou in (0.5, 0.6, 0.7, 0.8, 0.9)
    ),
    Metric(
        "mean_ap",
        "Mean AP",
        lambda p: mean_average_precision(p.once(_objects)),
        "Mean of the average precisions at IoU 0.5, 0.55 to 0.9",
        "instances",
    ),
    Metric(
        "aji",
        "AJI",
        lambda p: aggregated_jaccard(p.once(_objects)),
        "Aggregated Jaccard index of the objects",
        "instances",
    ),
)
_MEMBRANES = (
    Metric(
        "adapted_rand_error",
        "Adapted Rand error",
        lambda p: membranes.adapted_rand_error(*p.masks(), p.ignored),
        "Adapted Rand error of the cells that a membrane encloses (1 - F score of pixel pairs)",
        "membranes",
        "lower",
        0.0,
        1.0,
    ),
    *(
        Metric(name, label, lambda p, name=name: getattr(p.once(_cells), name), text, "membranes")  # type: ignore[misc]
        for name, label, text in (
            ("v_rand", "V-Rand", "Foreground-restricted Rand score of the cells after border thinning (ISBI 2012)"),
            ("rand_split", "V-Rand, split", "Share of a reference cell's pixel pairs that stay together"),
            ("rand_merge", "V-Rand, merge", "Share of a predicted cell's pixel pairs that belong together"),
            ("v_info", "V-Info", "Foreground-restricted information score of the cells after border thinning (ISBI 2012)"),
            ("info_split", "V-Info, split", "Part of V-Info that splits of cells lower"),
            ("info_merge", "V-Info, merge", "Part of V-Info that merged cells lower"),
        )
    ),
    Metric(
        "v_rand_max",
        "V-Rand, best threshold",
        lambda p: p.once(_best_cells).v_rand,
        "The best V-Rand of this case over thresholds of the probability from 0 to 1 in steps of 0.1",
        "membranes",
        when_both_empty="measured",
        when_one_empty="measured",
        of_probabilities=True,
    ),
    Metric(
        "v_info_max",
        "V-Info, best threshold",
        lambda p: p.once(_best_cells).v_info,
        "The best V-Info of this case over thresholds of the probability from 0 to 1 in steps of 0.1",
        "membranes",
        when_both_empty="measured",
        when_one_empty="measured",
        of_probabilities=True,
    ),
)
_WARPING = Metric(
    "warping_error",
    "Warping error",
    lambda p: membranes.warping_error(*p.masks(), p.ignored),
    "Share of the pixels that differ after the reference was warped to the prediction without changing its topology",
    "warping",
    "lower",
    0.0,
    1.0,
)
_TOPOLOGY = (
    Metric(
        "cldice", "clDice", lambda p: p.once(_centrelines).cldice, "Dice of centrelines and masks (hard skeletons)", "topology"
    ),
    *(
        Metric(
            f"betti{k}_error",
            f"Betti {k} error",
            lambda p, k=k: getattr(p.once(_betti), f"b{k}"),  # type: ignore[misc]
            f"Difference of the numbers of {what}",
            "topology",
            "",
            "measured",
            "measured",
        )
        for k, what in enumerate(("pieces", "loops", "cavities"))
    ),
)
_CALIBRATION = (
    Metric(
        "ece",
        "Calibration error",
        lambda p: expected_calibration_error(p.once(reliability_of)),
        "Expected calibration error of the structure's probability, 15 bins, in the box around it and 10 mm (or pixels)",
        "calibration",
        "lower",
        "measured",
        "measured",
        of_probabilities=True,
    ),
    Metric(
        "brier",
        "Brier score",
        lambda p: brier_score(p.once(reliability_of)),
        "Mean squared distance of the structure's probability from the truth, in the box around it and 10 mm (or pixels)",
        "calibration",
        "lower",
        "measured",
        "measured",
        of_probabilities=True,
    ),
)
METRICS: dict[str, Metric] = {
    metric.name: metric
    for rows in (_STANDARD, _OVERLAP, _SURFACE, _LESIONS, _INSTANCES, _MEMBRANES, (_WARPING,), _TOPOLOGY, _CALIBRATION)
    for metric in rows
}
GROUPS: tuple[str, ...] = tuple(dict.fromkeys(metric.group for metric in METRICS.values()))


def metric_names(names: Sequence[str]) -> list[str]:
    """The names with groups written out, each once. Raises: ValueError naming one that does not exist."""
    found: dict[str, None] = {}
    for name in names:
        if name not in GROUPS and name not in METRICS:
            raise ValueError(f"no metric `{name}` (groups: {', '.join(GROUPS)}; metrics: {', '.join(METRICS)})")
        found |= dict.fromkeys([m.name for m in METRICS.values() if m.group == name] or [name])
    return list(found)
