"""Partners by name, and grids brought together exactly or not at all."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest

from medseg.core.errors import ConfigError, GridMismatchError
from medseg.core.grid import Grid
from medseg.core.manifest import Case
from medseg.core.volume import LabelMap
from medseg.evaluation.pairs import on_grid, pair_cases, pair_folders, place, widen

SHAPE = (5, 6, 7)
ARRAY = np.random.default_rng(0).integers(0, 4, SHAPE, np.uint8)


def _oblique(angle: float = 0.4) -> Grid:
    c, s = math.cos(angle), math.sin(angle)
    affine = np.eye(4)
    affine[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) * (0.7, 1.0, 2.5)
    affine[:3, 3] = (11.3, -4.1, 0.2)
    return Grid(SHAPE, affine)


def _turn(grid: Grid, array: np.ndarray, order: tuple[int, ...], flips: tuple[int, ...]) -> LabelMap:
    """The same labels stored with other axes: an independent way to say what `on_grid` must undo."""
    turned = np.flip(array.transpose(order), [i for i, flip in enumerate(flips) if flip])
    affine = grid.affine.copy()
    for column_of, (axis, flip) in enumerate(zip(order, flips, strict=True)):
        column = grid.affine[:3, axis]
        affine[:3, column_of] = -column if flip else column
        affine[:3, 3] += column * (array.shape[axis] - 1) * flip
    return LabelMap(np.ascontiguousarray(turned), Grid(turned.shape, affine))


@pytest.mark.parametrize("angle", [0.0, 0.4, math.pi / 4, 2.0])
def test_every_axis_order_and_flip_is_undone_exactly(angle):
    grid = _oblique(angle)
    for order in itertools.permutations(range(3)):
        for flips in itertools.product((0, 1), repeat=3):
            back, _ = on_grid(_turn(grid, ARRAY, order, flips), grid)
            assert np.array_equal(back.array, ARRAY) and back.grid is grid


def test_rounding_of_a_header_is_no_difference():
    grid = _oblique()
    noisy = Grid(SHAPE, grid.affine * (1 + 1e-5))
    assert np.array_equal(on_grid(LabelMap(ARRAY, noisy), grid)[0].array, ARRAY)


def _changed(**change) -> LabelMap:
    grid = _oblique()
    affine, array = grid.affine.copy(), ARRAY
    if "shape" in change:
        array = ARRAY[:4]
    if "shift" in change:
        affine[:3, 3] += change["shift"]
    if "scale" in change:
        affine[:3, :3] *= change["scale"]
    if "angle" in change:
        affine = _oblique(0.4 + change["angle"]).affine
    return LabelMap(array, Grid(array.shape, affine, change.get("physical", True)))


@pytest.mark.parametrize(
    ("change", "word"),
    [({"shape": 1}, "shape"), ({"shift": 1.5}, "origin"), ({"scale": 1.1}, "spacing"), ({"angle": 0.1}, "direction")]
    + [({"physical": False}, "physical size")],
)
def test_any_other_difference_is_named(change, word):
    with pytest.raises(GridMismatchError, match=word):
        on_grid(_changed(**change), _oblique())


def test_other_voxels_are_resampled_where_that_is_asked_for():
    grid = Grid((4, 4, 2), np.diag([1.0, 1, 2, 1]))
    fine = np.zeros((8, 8, 4), np.uint8)
    fine[2:6, 4:, 2:] = 3
    affine = np.diag([0.5, 0.5, 1, 1])
    affine[:3, 3] = -0.25, -0.25, -0.5
    labels, note = on_grid(LabelMap(fine, Grid(fine.shape, affine)), grid, nearest=True)
    assert labels.grid is grid and "nearest neighbour" in note and "shape" in note
    expected = np.zeros(grid.shape, np.uint8)
    expected[1:3, 2:, 1:] = 3
    assert np.array_equal(labels.array, expected)


def test_a_size_in_pixels_is_not_resampled_to_millimetres():
    with pytest.raises(GridMismatchError, match="physical size"):
        on_grid(_changed(physical=False), _oblique(), nearest=True)


def test_probabilities_stand_beside_their_masks(save_labels, tmp_path):
    for name in ("pred/a.nii.gz", "pred/b.nii.gz", "ref/a.nii.gz", "ref/b.nii.gz"):
        save_labels(name, np.zeros((2, 2, 2)))
    (tmp_path / "pred" / "a.probabilities.nii.gz").write_bytes(b"")
    pairs, unmatched = pair_folders(tmp_path / "pred", tmp_path / "ref")
    assert [pair.probabilities for pair in pairs] == [tmp_path / "pred" / "a.probabilities.nii.gz", None]
    assert not unmatched


def test_folders_are_matched_by_case_name(save_labels, tmp_path):
    for name in ("pred/a.nii", "pred/extra.nii.gz", "ref/a.nii.gz", "ref/b.nii.gz"):
        save_labels(name, np.zeros((2, 2, 2)))
    (tmp_path / "pred/notes.txt").write_text("no label map")
    (tmp_path / "pred/.hidden.nii.gz").write_text("half a file")
    pairs, unmatched = pair_folders(tmp_path / "pred", tmp_path / "ref")
    assert [(p.case_id, p.prediction and p.prediction.name) for p in pairs] == [("a", "a.nii"), ("b", None)]
    assert "no mask in" in pairs[1].reason
    assert [(u.case_id, u.missing) for u in unmatched] == [("b", "prediction"), ("extra", "reference")]


def test_folders_that_cannot_be_paired(save_labels, tmp_path):
    save_labels("pred/pred_a.nii.gz", np.zeros((2, 2, 2)))
    save_labels("ref/a.nii.gz", np.zeros((2, 2, 2)))
    save_labels("double/a.nii.gz", np.zeros((2, 2, 2)))
    save_labels("double/a.nii", np.zeros((2, 2, 2)))
    (tmp_path / "empty").mkdir()
    for predictions, message in {
        "pred": r"no mask of .*pred is called like one of .*ref \(pred_a\.nii\.gz against a\.nii\.gz\); give both masks",
        "double": "both case `a`",
        "empty": "no label map",
        "nowhere": "not a folder",
    }.items():
        with pytest.raises(ConfigError, match=message):
            pair_folders(tmp_path / predictions, tmp_path / "ref")


def _pairs(save_labels, root: Path, predictions: str, references: str) -> list[tuple[str, str, str]]:
    """Case, prediction and what differs, of masks with the names given."""
    for side, names in (("pred", predictions), ("ref", references)):
        for name in names.split():
            save_labels(f"{side}/{name}.nii.gz", np.zeros((2, 2, 2)))
    pairs, _ = pair_folders(root / "pred", root / "ref")
    return [(p.case_id, p.prediction.name.removesuffix(".nii.gz") if p.prediction else "", p.differing) for p in pairs]


@pytest.mark.parametrize(
    ("predictions", "references", "pairs"),
    [
        ("a_pred b_pred", "a b", [("a", "a_pred", "`_pred` of the predictions"), ("b", "b_pred", "`_pred` of the predictions")]),
        ("t2_seg", "t2_seg-manual", [("t2", "t2_seg", "`_seg` of the predictions and `_seg-manual` of the references")]),
        ("a_0000", "a_Label", [("a", "a_0000", "`_0000` of the predictions and `_Label` of the references")]),
        ("P1.seg a", "p1.seg a", [("a", "a", ""), ("p1", "", "")]),
        ("a_seg", "a_seg", [("a", "a_seg", "")]),
        ("a a_seg", "a a_seg", [("a", "a", ""), ("a_seg", "a_seg", "")]),
        ("a a_cp_masks a_cp_outlines", "a", [("a", "a_cp_masks", "`_cp_masks` of the predictions")]),
        ("a_seg_fast b", "a_seg b", [("a", "", ""), ("b", "b", "")]),
        ("mask a", "mask a", [("a", "a", ""), ("mask", "mask", "")]),
    ],
)
def test_names_that_differ_in_their_endings(save_labels, tmp_path, predictions, references, pairs):
    assert _pairs(save_labels, tmp_path, predictions, references) == pairs


@pytest.mark.parametrize(("predictions", "references"), [("a a_seg", "a"), ("a", "a_gt a_manual"), ("a_pred a_Seg", "a_seg b")])
def test_names_that_may_be_one_case_are_refused(save_labels, tmp_path, predictions, references):
    with pytest.raises(ConfigError, match="may all be case `a`; leave one of them"):
        _pairs(save_labels, tmp_path, predictions, references)


def test_a_map_that_was_cut_is_put_where_it_belongs():
    grid, array = _oblique(), np.where(np.indices(SHAPE)[0] == 2, ARRAY, 0).astype(np.uint8)
    cut = LabelMap(array[1:4, 2:, :], grid.cropped((1, 2, 0), (3, 4, 7)))
    expected = np.where(np.indices(SHAPE)[1] >= 2, array, 0)
    for order, flips in (((0, 1, 2), (0, 0, 0)), ((2, 0, 1), (1, 0, 1))):
        turned = _turn(cut.grid, cut.array, order, flips)
        assert np.array_equal(place(turned, grid).array, expected) and place(turned, grid).grid is grid
        wide = widen(turned, grid)
        assert wide.grid == grid and np.array_equal(wide.array, expected)
    small = grid.cropped((2, 0, 3), (2, 2, 2))
    with pytest.raises(GridMismatchError, match="marked voxels lie outside of the reference's grid"):
        place(cut, small)
    both = widen(cut, small)
    assert both.grid == grid.cropped((1, 0, 0), (3, 6, 7)) and both.array.sum() == cut.array.sum()
    apart = LabelMap(cut.array, grid.cropped((9, 9, 9), (3, 4, 7)))
    with pytest.raises(GridMismatchError, match="outside"):
        place(apart, grid)
    empty = place(LabelMap(apart.array * 0, apart.grid), grid)
    assert empty.grid is grid and not empty.array.any()


def test_voxels_that_do_not_coincide_are_left_as_they_are():
    other = _changed(shift=0.3)
    assert place(other, _oblique()) is other and widen(other, _oblique()) is other


def test_cases_of_a_manifest_keep_their_reasons():
    cases = [
        Case(name, (Path("x"),), Path(f"{name}.png"), "test", patient) for name, patient in (("a", "p1"), ("b", ""), ("c", ""))
    ]
    pairs = pair_cases(cases, {"a": (Path("out/a.png"), ""), "b": (None, "NaN voxels")})
    assert [(p.patient_id, p.prediction, p.reason) for p in pairs] == [
        ("p1", Path("out/a.png"), ""),
        ("", None, "NaN voxels"),
        ("", None, "it has no prediction"),
    ]
