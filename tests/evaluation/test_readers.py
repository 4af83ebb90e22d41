"""Readers against each other: the band, and references made of all of them."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from medseg.core.errors import ConfigError, GridMismatchError
from medseg.core.grid import Grid
from medseg.core.labels import IGNORE, LabelScheme
from medseg.core.volume import LabelMap
from medseg.evaluation.config import EvaluateConfig
from medseg.evaluation.readers import (
    BAND_COLUMNS,
    Band,
    band_of,
    consensus,
    consensus_of_maps,
    pair_readers,
    reader_bands,
    readers_of_cases,
    scheme_of_readers,
)
from medseg.evaluation.table import evaluate_cases

NAN = math.nan
SETTINGS = EvaluateConfig(metrics=["dice", "precision", "hd95", "reference_volume"], bootstrap_resamples=200)
SCHEME = LabelScheme.model_validate({"structures": [{"name": "core", "id": 1, "values": [7], "prediction_values": [3]}]})
SHAPE = (12, 10, 8)


def _cube(size: int, start: int = 2, value: int = 1) -> np.ndarray:
    mask = np.zeros(SHAPE, np.uint8)
    mask[start : start + size, 2:6, 2:6] = value
    return mask


def _voxel(*values: int) -> list[np.ndarray]:
    """One voxel's readings, in pictures that agree on a cube beside it."""
    readings = []
    for value in values:
        reading = _cube(4)
        reading[9, 7, 4] = value
        readings.append(reading)
    return readings


def test_the_band_of_pairs_of_readers():
    figures = [[0.9, 0.8, 1.0], [0.7, 0.6, 0.8], [0.8, NAN, 0.6]]
    band = band_of(figures, ["p0", "p1", "p2"], 200, 0.95, 0)
    assert (band.n_pairs, band.n, band.n_undefined) == (3, 3, 0)
    assert (band.lowest, band.highest) == pytest.approx((0.7, 0.9))
    assert band.mean == pytest.approx(np.mean([0.8, 0.7, 0.8]))
    assert math.isnan(band.ci_low)  # three patients
    empty = band_of([[NAN, NAN]], ["a", "b"], 200, 0.95, 0)
    assert (empty.n, empty.n_undefined) == (0, 2)
    assert math.isnan(empty.mean) and empty.place(0.5, "higher") == ""


def test_a_model_stands_in_the_band_or_outside():
    band = Band(n_pairs=3, n=8, n_undefined=0, mean=0.8, ci_low=0.75, ci_high=0.85, lowest=0.6, highest=0.9)
    assert [band.place(v, "higher") for v in (0.9, 0.85, 0.8, 0.7, NAN)] == ["better", "within", "within", "worse", ""]
    assert [band.place(v, "lower") for v in (0.9, 0.7)] == ["worse", "better"]
    assert replace(band, ci_low=NAN, ci_high=NAN).place(0.8, "higher") == ""  # below six units there is no band


def test_bands_from_folders_of_masks(save_labels, tmp_path):
    # Cubes of 4, 4 and 6 slices along X; c2 was not read by the third reader, who marked nothing in c1.
    sizes = {"ann": (4, 4, 4), "bob": (4, 4, 4), "cy": (6, 0, None)}
    for reader, slices in sizes.items():
        for case, size in enumerate(slices):
            if size is not None:
                save_labels(f"{reader}/c{case}.nii.gz", _cube(size, value=7))
    pairs = pair_readers({reader: tmp_path / reader for reader in sizes}, {"c0": "p0", "c1": "p0"})
    assert len(pairs) == 6
    assert readers_of_cases(pairs).to_numpy().tolist() == [["c0", "ann;bob;cy"], ["c1", "ann;bob;cy"], ["c2", "ann;bob"]]
    assert [(p.case_id, p.patient_id) for p in pairs["cy", "ann"]] == [("c0", "p0"), ("c1", "p0")]
    evaluations = {readers: evaluate_cases(p, scheme_of_readers(SCHEME), SETTINGS) for readers, p in pairs.items()}
    table = reader_bands(evaluations, SETTINGS, 0)
    assert list(table.columns) == BAND_COLUMNS
    assert list(table["metric"]) == ["dice", "precision", "hd95_mm"]  # a size is neither better nor worse
    dice = table.iloc[0]
    assert (dice["structure"], dice["n_readers"], dice["n_pairs"], dice["n"], dice["n_undefined"]) == ("core", 3, 3, 3, 0)
    assert (dice["lowest"], dice["highest"]) == pytest.approx(((0.8 + 0) / 2, 1))
    assert dice["mean"] == pytest.approx(((1 + 0.8 + 0.8) / 3 + (1 + 0 + 0) / 3 + 1) / 3)
    # Precision of 4 slices against 6 is 1, of 6 against 4 is 2/3: both orders count.
    assert table.iloc[1]["lowest"] == pytest.approx(((1 + 2 / 3) / 2 + 0) / 2)


def test_readers_measured_in_different_units_have_no_band(save_labels, tmp_path):
    for reader in ("ann", "bob"):
        save_labels(f"{reader}/c0.nii.gz", _cube(4, value=7))
    pairs = pair_readers({reader: tmp_path / reader for reader in ("ann", "bob")})
    metrics = {("ann", "bob"): ["dice"], ("bob", "ann"): ["iou"]}
    evaluations = {
        readers: evaluate_cases(p, scheme_of_readers(SCHEME), EvaluateConfig(metrics=metrics[readers]))
        for readers, p in pairs.items()
    }
    with pytest.raises(ConfigError, match="same metrics and units"):
        reader_bands(evaluations, SETTINGS, 0)


def test_one_reader_is_no_band(tmp_path):
    with pytest.raises(ConfigError, match="needs two of them, not 1"):
        pair_readers({"ann": tmp_path})
    with pytest.raises(ConfigError, match="needs two readings, not 1"):
        consensus([_cube(4)], 2)


@pytest.mark.parametrize("method", ["majority", "staple"])
def test_readers_who_agree_are_the_consensus(method):
    found = consensus([_cube(4)] * 3, 2, method)
    assert (found.classes == _cube(4)).all()
    assert (found.n_readers, found.n_ties) == (3, 0)
    nothing = consensus([np.zeros(SHAPE, np.uint8)] * 2, 3, method)
    assert nothing.classes.shape == SHAPE and not nothing.classes.any()
    assert np.isnan(nothing.sensitivity).all() and nothing.sensitivity.shape == (2, 2)
    full = consensus([np.ones(SHAPE, np.uint8)] * 2, 2, method)
    assert (full.classes == 1).all()


def test_a_majority_and_its_ties():
    assert consensus(_voxel(1, 1, 0), 3).classes[9, 7, 4] == 1
    assert consensus(_voxel(2, 2, 1, 1, 2), 3).classes[9, 7, 4] == 2
    tied = consensus(_voxel(1, 2, 0), 3)
    assert (tied.n_ties, tied.classes[9, 7, 4]) == (1, 0)
    left_out = consensus(_voxel(1, 2, 0), 3, ties="ignore")
    assert (left_out.n_ties, left_out.classes[9, 7, 4]) == (1, IGNORE)
    assert (left_out.classes == IGNORE).sum() == 1


@pytest.mark.parametrize("method", ["majority", "staple"])
def test_ignored_voxels_are_ignored_where_that_wins(method):
    found = consensus(_voxel(IGNORE, IGNORE, 1), 2, method)
    assert found.classes[9, 7, 4] == IGNORE and found.n_ties == 0
    assert consensus(_voxel(IGNORE, 1, 1), 2, method).classes[9, 7, 4] == 1


def test_staple_finds_the_truth_behind_a_careless_majority():
    # Three careful readers and three who err in most voxels: votes tie or go astray where STAPLE knows whom to trust.
    truth = _cube(4) + _cube(3, start=7, value=2)
    readings = []
    for seed, errors in enumerate([0.03, 0.03, 0.03, 0.6, 0.6, 0.6]):
        generator = np.random.default_rng(seed)
        readings.append(np.where(generator.random(SHAPE) < errors, generator.integers(0, 3, SHAPE), truth).astype(np.uint8))
    majority, staple = (consensus(readings, 3, method) for method in ("majority", "staple"))
    assert (staple.classes != truth).sum() < 0.5 * (majority.classes != truth).sum()
    assert staple.sensitivity.shape == (6, 2)
    assert (staple.sensitivity[:3] > 0.9).all() and (staple.sensitivity[3:] < 0.9).all()
    assert np.isnan(majority.sensitivity).all()


def test_a_class_that_nobody_marked_changes_nothing():
    readings = [_cube(4, value=3), _cube(5, value=3), _cube(5, value=3)]
    found = consensus(readings, 5, "staple")
    assert (found.classes == _cube(5, value=3)).all()
    assert np.isnan(found.sensitivity[:, [0, 1, 3]]).all()
    assert found.sensitivity[:, 2] == pytest.approx([0.8, 1, 1], abs=0.01)


def test_background_far_away_does_not_change_staple():
    readings = [_cube(4), _cube(6), _cube(4, start=3)]
    wide = [np.pad(r, 20) for r in readings]
    inner = (slice(20, -20),) * 3
    assert (consensus(wide, 2, "staple").classes[inner] == consensus(readings, 2, "staple").classes).all()


def test_as_many_structures_as_a_scheme_can_have():
    readings = _voxel(254, 254, IGNORE)
    for method in ("majority", "staple"):
        assert consensus(readings, 255, method).classes[9, 7, 4] == 254


def test_label_maps_are_laid_on_the_first_grid_and_written_in_the_values_of_references():
    grid = Grid(SHAPE, np.diag([1.0, 2.0, 3.0, 1.0]), True)
    flip = np.diag([-1.0, 1, 1, 1])
    flip[0, 3] = SHAPE[0] - 1
    flipped = Grid(SHAPE, grid.affine @ flip, True)
    maps = {"ann": LabelMap(_cube(4, value=7), grid), "bob": LabelMap(np.ascontiguousarray(_cube(4, value=7)[::-1]), flipped)}
    labels, found = consensus_of_maps(maps, SCHEME)
    assert labels.grid is grid and found.n_ties == 0
    assert (labels.array == _cube(4, value=7)).all()
    maps["cy"] = LabelMap(_cube(4, value=7), Grid(SHAPE, np.diag([1.0, 2.0, 3.5, 1.0]), True))
    with pytest.raises(GridMismatchError):
        consensus_of_maps(maps, SCHEME)


def test_ignored_ties_need_a_value_to_be_written_with():
    grid = Grid(SHAPE, np.eye(4), True)
    maps = {"ann": LabelMap(_cube(4, value=7), grid), "bob": LabelMap(_cube(5, value=7), grid)}
    with pytest.raises(ConfigError, match="name one in `ignore_values`"):
        consensus_of_maps(maps, SCHEME, ties="ignore")
    labels, found = consensus_of_maps(maps, SCHEME.model_copy(update={"ignore_values": [9]}), ties="ignore")
    assert found.n_ties == (labels.array == 9).sum() == 16
