"""The table of metrics: columns and units, values where masks are empty, and whole cases."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from medseg.core.grid import Grid
from medseg.metrics.measures import Measure, measures_for
from medseg.metrics.pair import Frame, pair_structures
from medseg.metrics.table import METRICS, metric_names

VOLUMES, PIXELS = Frame(physical=True, planar=False), Frame(physical=False, planar=True)


def _figures(reference, prediction, grid, frame, structure=1, n=1, tolerance=1.0):
    pair = pair_structures(reference, prediction, grid, frame, [[k] for k in range(1, n + 1)], [tolerance] * n)[structure - 1]
    return {name: metric.function(pair) for name, metric in METRICS.items()}


def _rotated(spacing, angle=0.5) -> Grid:
    c, s = math.cos(angle), math.sin(angle)
    rotation = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    affine = np.eye(4)
    affine[:3, :3] = rotation * np.asarray(spacing)
    affine[:3, 3] = (-30, 12, 7)
    return Grid((24, 22, 20), affine)


def test_columns_carry_their_units():
    names = {
        VOLUMES: ["dice", "reference_volume_ml", "predicted_volume_ml", "hd95_mm", "surface_dice_2mm"],
        Frame(physical=True, planar=True): ["dice", "reference_area_mm2", "predicted_area_mm2", "hd95_mm", "surface_dice_2mm"],
        PIXELS: ["dice", "reference_area_px", "predicted_area_px", "hd95_px", "surface_dice_2px"],
        Frame(physical=False, planar=False): [
            *("dice", "reference_volume_voxels", "predicted_volume_voxels", "hd95_px", "surface_dice_2px")
        ],
    }
    for frame, columns in names.items():
        wanted = ["dice", "reference_volume", "predicted_volume", "hd95", "surface_dice"]
        assert [m.column for m in measures_for(wanted, frame, {"a": 2.0})] == columns


def test_a_tolerance_of_its_own_makes_a_column_of_its_own():
    near, far = measures_for(["surface_dice"], VOLUMES, {"a": 3.0, "b": 0.5, "c": 3.0})
    assert (near.column, near.structures) == ("surface_dice_0.5mm", ("b",))
    assert (far.column, far.structures) == ("surface_dice_3mm", ("a", "c"))
    assert near.applies("b") and not near.applies("a")


def test_metric_names():
    assert metric_names(["standard"]) == [name for name, metric in METRICS.items() if metric.group == "standard"]
    assert metric_names(["adapted_rand_error", "standard", "dice"])[:2] == ["adapted_rand_error", "dice"]
    with pytest.raises(ValueError, match="no metric `dise`"):
        metric_names(["dise"])


def test_ball_of_known_volume_on_an_oblique_anisotropic_grid():
    spacing = (0.8, 1.0, 1.2)
    grid = _rotated(spacing)
    offsets = [(a - c) * s for a, c, s in zip(np.indices(grid.shape), (12, 11, 10), spacing, strict=True)]
    ball = (sum(o**2 for o in offsets) <= 8**2).astype(np.uint8)
    straight = Grid(grid.shape, np.diag([*spacing, 1]))
    figures = _figures(ball, np.roll(ball, 1, axis=0), grid, VOLUMES)
    assert figures["reference_volume"] == pytest.approx(4 / 3 * math.pi * 8**3 / 1000, rel=0.02)
    assert figures["hd95"] == pytest.approx(0.8)
    assert figures == pytest.approx(_figures(ball, np.roll(ball, 1, axis=0), straight, VOLUMES), nan_ok=True)


def test_a_surface_at_the_tolerance_is_within_it_however_the_header_rounds():
    reference = np.zeros((24, 22, 20), np.uint8)
    reference[6:14, 6:14, 6:14] = 1
    rounded = Grid(reference.shape, _rotated((1, 1, 1), 0.3).affine.astype(np.float32))
    assert min(rounded.spacing) > 1
    for axis in range(3):
        assert _figures(reference, np.roll(reference, 2, axis), rounded, VOLUMES, tolerance=2.0)["surface_dice"] == 1
        assert _figures(reference, np.roll(reference, 3, axis), rounded, VOLUMES, tolerance=2.0)["surface_dice"] < 1


def test_each_structure_is_measured_by_itself():
    reference, prediction = np.zeros((2, 12, 12, 12), np.uint8)
    reference[2:5, 2:5, 2:5] = prediction[2:5, 2:5, 2:5] = 1
    reference[6:10, 6:10, 6:10], prediction[8:12, 6:10, 6:10] = 2, 2
    grid = Grid((12, 12, 12), np.eye(4))
    assert _figures(reference, prediction, grid, VOLUMES, 1, 2)["dice"] == 1
    second = _figures(reference, prediction, grid, VOLUMES, 2, 2)
    assert (second["dice"], second["hd95"]) == (0.5, 2)


def test_pictures_are_measured_in_the_plane():
    reference, prediction = np.zeros((2, 20, 20, 1), np.uint8)
    reference[5:15, 5:15], prediction[7:17, 5:15] = 1, 1
    figures = _figures(reference, prediction, Grid.pixels((20, 20)), PIXELS)
    assert figures["reference_volume"] == 100
    assert figures["hd95"] == pytest.approx(2)
    assert figures["dice"] == pytest.approx(0.8)
    mm = Grid((20, 20, 1), np.diag([0.5, 0.5, 7, 1]))
    assert _figures(reference, prediction, mm, Frame(True, True))["reference_volume"] == pytest.approx(25)
    assert _figures(reference, prediction, mm, Frame(True, True))["hd95"] == pytest.approx(1)


def test_ignored_voxels_touch_no_figure():
    reference, prediction = np.zeros((2, 12, 12, 4), np.uint8)
    reference[2:6, 2:6], prediction[2:6, 2:6] = 1, 1
    prediction[8:12] = 1
    reference[8:12] = 255
    figures = _figures(reference, prediction, Grid((12, 12, 4), np.eye(4)), VOLUMES)
    assert (figures["dice"], figures["precision"], figures["hd95"], figures["surface_dice"]) == (1, 1, 0, 1)
    assert figures["predicted_volume"] == pytest.approx(64 / 1000)


EMPTY = np.zeros((6, 6, 6), np.uint8)
VOXEL = EMPTY.copy()
VOXEL[2, 3, 4] = 1
NAN = math.nan


@pytest.mark.parametrize(
    ("reference", "prediction", "expected"),
    [
        (EMPTY, EMPTY, {"dice": NAN, "iou": NAN, "precision": NAN, "sensitivity": NAN, "hd95": NAN, "surface_dice": NAN}),
        (VOXEL, EMPTY, {"dice": 0, "iou": 0, "precision": NAN, "sensitivity": 0, "hd95": NAN, "surface_dice": 0}),
        (EMPTY, VOXEL, {"dice": 0, "iou": 0, "precision": 0, "sensitivity": NAN, "hd95": NAN, "surface_dice": 0}),
        (VOXEL, VOXEL, {"dice": 1, "iou": 1, "precision": 1, "sensitivity": 1, "hd95": 0, "surface_dice": 1}),
    ],
)
def test_empty_masks_and_a_single_voxel(reference, prediction, expected):
    figures = _figures(reference, prediction, Grid((6, 6, 6), np.eye(4)), VOLUMES)
    assert {name: figures[name] for name in expected} == pytest.approx(expected, nan_ok=True)


def test_worst_values():
    """What is missed is as bad as it can be, whatever was measured; or the figure is neither better nor worse."""
    for measure in measures_for(list(METRICS), VOLUMES, {"a": 2.0}):
        metric = METRICS[measure.metric]
        assert measure.worst(0.3, "", 50) == 0.3
        if not measure.better:
            assert measure.worst(4.2, "one", 50) == 4.2
            unknown = measure.worst(NAN, "one", 50)  # a missing mask is of size 0; a reference that was not measured is not
            assert unknown == 0 if metric.name == "predicted_volume" else math.isnan(unknown)
        elif metric.of_probabilities:  # where none were kept, it is not known how good they were
            assert measure.worst(0.9, "one", 50) == 0.9 and math.isnan(measure.worst(NAN, "both", 50))
        elif metric.unit == "length":
            assert (measure.worst(NAN, "both", 50), measure.worst(NAN, "one", 50)) == (0, 50)
        else:
            perfect = 1 if measure.better == "higher" else 0
            assert (measure.worst(NAN, "both", 50), measure.worst(0.9, "one", 50)) == (perfect, 1 - perfect)


@pytest.mark.parametrize("frame", [VOLUMES, PIXELS])
def test_the_same_mask_is_perfect_by_every_metric(frame):
    shape = (24, 20, 1) if frame.planar else (16, 14, 12)
    mask = np.zeros(shape, np.uint8)
    mask[2:7, 3:9, :8] = mask[10:14, 4:12, :8] = 1
    figures = _figures(mask, mask.copy(), Grid(shape, np.eye(4), physical=frame.physical), frame)
    for name, metric in METRICS.items():
        if metric.better and not metric.of_probabilities and not math.isnan(figures[name]):
            assert figures[name] == pytest.approx(1 if metric.better == "higher" else 0), name
    assert {n for n in figures if math.isnan(figures[n])} <= {
        "v_rand_max",
        "v_info_max",
        "ece",
        "brier",
        "v_info",
        "info_split",
        "info_merge",
    }


def test_probabilities_are_read_where_they_were_kept():
    mask = np.zeros((10, 10, 4), np.uint8)
    mask[3:7, 3:7] = 1
    (pair,) = pair_structures(mask, mask, Grid((10, 10, 4), np.eye(4)), VOLUMES, [[1]], [1.0])
    sure = replace(pair, probability=lambda: np.where(mask == 1, 0.9, 0.1).astype(np.float32))
    assert METRICS["ece"].function(sure) == pytest.approx(0.1, abs=1e-6)
    assert METRICS["brier"].function(sure) == pytest.approx(0.01, abs=1e-6)
    for name in ("ece", "brier", "v_rand_max", "v_info_max"):
        assert math.isnan(METRICS[name].function(replace(pair, probability=None)))
    assert METRICS["v_rand_max"].function(sure) == pytest.approx(METRICS["v_rand"].function(pair))


def test_the_overlap_from_which_a_lesion_is_found_stands_in_its_column():
    (measure,) = measures_for(["lesion_f1"], VOLUMES, {"a": 2.0}, 0.25)
    assert measure.column == "lesion_f1_iou0.25" and "0.25" in measure.text
    reference, prediction = np.zeros((2, 12, 12, 12), np.uint8)
    reference[2:6, 2:6, 2:6], prediction[4:8, 2:6, 2:6] = 1, 1  # IoU 1/3
    for overlap, found in ((0.3, 1), (0.4, 0)):
        (pair,) = pair_structures(reference, prediction, Grid((12, 12, 12), np.eye(4)), VOLUMES, [[1]], [1.0], overlap)
        assert METRICS["lesion_f1"].function(pair) == found


def test_no_distance_is_longer_than_the_diagonal():
    far = EMPTY.copy()
    far[5, 5, 5], near = 1, EMPTY.copy()
    near[0, 0, 0] = 1
    grid = Grid((6, 6, 6), np.diag([1, 2, 3, 1]))
    assert _figures(far, near, grid, VOLUMES)["hd95"] == pytest.approx(grid.diagonal)


def test_measures_survive_json():
    for measure in measures_for(list(METRICS), PIXELS, {"a": 1.0}):
        assert Measure(**measure.as_dict()) == measure


@pytest.mark.parametrize("frame", [VOLUMES, PIXELS])
def test_a_region_is_measured_as_one_mask_of_its_classes(frame):
    generator = np.random.default_rng(4)
    shape = (14, 13, 1) if frame.planar else (12, 11, 10)
    reference, prediction = np.zeros((2, *shape), np.uint8)
    reference[3:9, 2:8], prediction[4:9, 1:8] = 1, 1
    for classes in (reference, prediction):
        classes[classes > 0] = generator.integers(1, 5, int((classes > 0).sum()))
    reference[:2] = 255
    prediction[:3] = 4  # what is invented where the reference is ignored counts in no region
    grid = Grid(shape, np.diag([1.0, 1.5, 2.0, 1.0]), physical=frame.physical)
    regions, tolerances = [[1, 2, 3, 4], [1, 3, 4], [4]], [1.0, 2.0, 3.0]
    pairs = pair_structures(reference, prediction, grid, frame, regions, tolerances)
    for classes, tolerance, pair in zip(regions, tolerances, pairs, strict=True):
        one = np.where(reference == 255, 255, np.isin(reference, classes)).astype(np.uint8)
        (alone,) = pair_structures(one, np.isin(prediction, classes).astype(np.uint8), grid, frame, [[1]], [tolerance])
        assert pair.counts == alone.counts and pair.box == alone.box
        for metric in METRICS.values():
            assert metric.function(pair) == pytest.approx(metric.function(alone), nan_ok=True), metric.name


def test_a_relative_difference_with_and_without_its_sign():
    shape = (8, 8, 8)
    reference, prediction = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
    reference[:4], prediction[:3] = 1, 1
    figures = _figures(reference, prediction, Grid(shape, np.eye(4)), VOLUMES)
    assert (figures["relative_volume_difference"], figures["absolute_relative_volume_difference"]) == (-0.25, 0.25)
