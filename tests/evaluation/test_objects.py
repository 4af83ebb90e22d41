"""Objects that files number one by one, measured from files: touching ones stay apart, masks are taken by their components."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
import tifffile
from scipy.optimize import linear_sum_assignment

from medseg.core.labels import LabelScheme
from medseg.evaluation.config import EvaluateConfig
from medseg.evaluation.pairs import Pair
from medseg.evaluation.table import Evaluation, evaluate_cases
from medseg.io.formats import read_labels

FIGURES = ["panoptic_quality", "segmentation_quality", "recognition_quality", "ap50", "ap80", "aji"]
SAME = [1.0] * 6
# Of touching nuclei of 24 and 8 pixels that one piece of 32 covers, the larger is found at an IoU of 0.75; the third is right.
JOINED = [2 * 1.75 / 5, 1.75 / 2, 2 * 2 / 5, 2 / 3, 1 / 4, (24 + 8 + 16) / (32 + 32 + 16)]


def _scheme(objects: str = "numbered", **rest: object) -> LabelScheme:
    nuclei = {"name": "nuclei", "id": 1, "values": "nonzero", "prediction_values": "nonzero", "objects": objects}
    return LabelScheme(structures=[nuclei], **rest)


def _nuclei(first: int = 1, second: int = 2, third: int = 3) -> np.ndarray:
    """Two nuclei that touch along a side, and one by itself."""
    numbers = np.zeros((20, 14), np.uint32)
    numbers[2:8, 2:6], numbers[8:10, 2:6], numbers[13:17, 8:12] = first, second, third
    return numbers


def _evaluate(folder: Path, reference: np.ndarray, prediction: np.ndarray, scheme: LabelScheme, *groups: str) -> Evaluation:
    paths = [folder / name for name in ("reference.tif", "prediction.tif")]
    for path, array in zip(paths, (reference, prediction), strict=True):
        tifffile.imwrite(path, array)
    return evaluate_cases([Pair("a", "", *paths)], scheme, EvaluateConfig(metrics=[*groups] or ["instances"], workers=1))


def _figures(evaluation: Evaluation, structure: str = "nuclei") -> list[float]:
    return evaluation.per_case.set_index("structure").loc[structure, FIGURES].tolist()


def test_a_mask_that_joins_two_nuclei_is_graded_for_it(tmp_path):
    mask = (_nuclei() > 0).astype(np.uint8)
    assert _figures(_evaluate(tmp_path, _nuclei(), mask, _scheme())) == pytest.approx(JOINED)
    assert _figures(_evaluate(tmp_path, _nuclei(), mask, _scheme("components"))) == SAME
    # What a mask holds does not matter, as long as it is one value.
    assert _figures(_evaluate(tmp_path, _nuclei(), mask * 7, _scheme())) == pytest.approx(JOINED)


@pytest.mark.parametrize("numbers", [(3, 1, 2), (300, 301, 255), (70_000, 70_001, 131_072 + 70_000), (2**32 - 1, 1, 65_536)])
def test_numbers_of_any_size_name_the_same_nuclei(tmp_path, numbers):
    for reference, prediction in ((_nuclei(), _nuclei(*numbers)), (_nuclei(*numbers), _nuclei())):
        assert _figures(_evaluate(tmp_path, reference, prediction, _scheme())) == SAME
    joined = _evaluate(tmp_path, _nuclei(*numbers), (_nuclei() > 0).astype(np.uint16), _scheme())
    assert _figures(joined) == pytest.approx(JOINED)


def test_a_prediction_may_join_what_its_numbers_say(tmp_path):
    # The touching two are one object by its numbers; the third lies in two pieces, and is one nucleus all the same.
    reference, prediction = _nuclei(5, 6, 7), _nuclei(9, 9, 4)
    reference[14], prediction[14] = 0, 0
    found = _figures(_evaluate(tmp_path, reference, prediction, _scheme()))
    assert found[:4] == pytest.approx(JOINED[:4])


def test_lesions_stay_connected_components(tmp_path):
    mask = (_nuclei() > 0).astype(np.uint8)
    table = _evaluate(tmp_path, _nuclei(), mask, _scheme(), "instances", "lesions").per_case
    assert table.loc[0, ["lesion_f1_iou0.1", "lesion_dice"]].tolist() == [1, 1]
    assert _evaluate(tmp_path, _nuclei(), mask, _scheme(), "lesions").per_case.loc[0, "lesion_dice"] == 1


def test_ignored_pixels_belong_to_no_nucleus(tmp_path):
    scheme = _scheme(ignore_values=[99])
    reference, prediction = _nuclei(), _nuclei()
    reference[8:10], prediction[8:10] = 99, 8  # the second nucleus, and what was found there
    assert _figures(_evaluate(tmp_path, reference, prediction, scheme)) == SAME
    # A file that numbers nuclei does so also where all but one of them are ignored, and that one lies in two pieces.
    reference[12:18], reference[4] = 99, 99
    assert _figures(_evaluate(tmp_path, reference, prediction, scheme)) == SAME


def test_a_reference_that_numbers_nothing_is_taken_at_its_word_and_named(tmp_path):
    mask = (_nuclei() > 0).astype(np.uint8)
    evaluation = _evaluate(tmp_path, mask * 255, mask, _scheme())
    assert evaluation.cases["reason"][0] == "all 2 pieces of nuclei have one number in the reference, so they count as one object"
    assert _figures(evaluation)[:3] == pytest.approx([2 * 32 / 48 / 3, 32 / 48, 2 / 3])  # the larger of two pieces of one object
    assert evaluation.cases["status"][0] == "ok"
    # One nucleus in one piece says nothing; nor does anything where no metric compares objects.
    assert _evaluate(tmp_path, _nuclei(1, 1, 0), _nuclei(), _scheme()).cases["reason"][0] == ""
    assert _evaluate(tmp_path, mask, mask, _scheme(), "dice").cases["reason"][0] == ""


def test_without_nuclei_and_without_a_prediction(tmp_path):
    empty = np.zeros_like(_nuclei())
    both = _evaluate(tmp_path, empty, empty, _scheme()).per_case
    assert both["status"][0] == "both_empty" and both.loc[0, FIGURES].isna().all()
    assert _figures(_evaluate(tmp_path, _nuclei(), empty, _scheme()))[2:] == [0] * 4
    pair = Pair("a", "", tmp_path / "reference.tif", None, "out of memory")
    missing = evaluate_cases([pair], _scheme(), EvaluateConfig(metrics=["instances"], workers=1)).per_case
    assert missing["status"][0] == "prediction_missing" and missing.loc[0, FIGURES].isna().all()


@pytest.mark.parametrize("nearest", [False, True])
def test_predictions_on_other_voxels_keep_their_numbers(tmp_path, nearest):
    """Flipped and with exchanged axes; or on voxels half as large, where nothing but the nearest number may be taken."""
    reference = np.stack([_nuclei(70_001, 70_000, 5)] * 3, axis=2)
    prediction, affine = (
        reference[::-1].transpose(1, 0, 2),
        np.array([[0.0, -1, 0, 19], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]),
    )
    if nearest:
        prediction, affine = reference.repeat(2, 0), np.diag([0.5, 1.0, 1, 1])
        affine[0, 3] = -0.25
    paths = [tmp_path / name for name in ("reference.nii.gz", "prediction.nii.gz")]
    for path, array, place in zip(paths, (reference, prediction), (np.eye(4), affine), strict=True):
        nibabel.save(nibabel.Nifti1Image(array, place), path)
    settings = EvaluateConfig(metrics=["instances"], workers=1, resample="nearest" if nearest else "none")
    assert _figures(evaluate_cases([Pair("a", "", *paths)], _scheme(), settings)) == SAME


CELLS = [
    {"name": "round", "id": 1, "values": [1, 2, 3], "prediction_values": [1, 11], "objects": "numbered"},
    {"name": "long", "id": 2, "values": [4, 5], "prediction_values": [2, 12], "objects": "numbered"},
    {"name": "scar", "id": 3, "values": [6, 7], "prediction_values": [3]},
]


def test_structures_and_regions_number_their_own_objects(tmp_path):
    """Round and long cells are numbered, scars are not; all cells are numbered together, tissue is not."""
    regions = [
        {"name": "tissue", "structures": ["round", "long", "scar"]},
        {"name": "cells", "structures": ["round", "long"]},
        {"name": "long", "structures": ["long"]},
    ]
    reference = _nuclei(1, 2, 4)
    reference[17, 8:12], reference[13:18, 12] = 6, 7  # a scar in two values, at the third
    classes = np.select([reference > 5, reference > 3, reference > 0], [3, 2, 1]).astype(np.uint8)
    scheme = LabelScheme(structures=CELLS, regions=regions)
    evaluation = _evaluate(tmp_path, reference, classes, scheme)
    # The mask has one value a class: its cells are components, and two that touch are one.
    assert _figures(evaluation, "cells") == pytest.approx(JOINED)
    assert _figures(evaluation, "tissue") == _figures(evaluation, "long") == SAME
    numbered = np.where(classes == 3, 3, classes + 10 * ((reference == 2) | (reference == 5))).astype(np.uint8)
    assert _figures(_evaluate(tmp_path, reference, numbered, scheme), "cells") == SAME
    each = _evaluate(tmp_path, reference, numbered, LabelScheme(structures=CELLS))
    assert [_figures(each, name) for name in ("round", "long", "scar")] == [SAME] * 3


def _by_assignment(reference: np.ndarray, prediction: np.ndarray) -> tuple[float, float]:
    """Panoptic quality and average precision at an IoU above 0.5, from a full table of every object with every object."""
    ones, others = (np.unique(numbers[numbers > 0]) for numbers in (reference, prediction))
    shared = np.array([[np.count_nonzero((reference == a) & (prediction == b)) for b in others] for a in ones])
    sizes = [
        np.array([np.count_nonzero(numbers == k) for k in found]) for numbers, found in ((reference, ones), (prediction, others))
    ]
    iou = shared / (sizes[0][:, None] + sizes[1] - shared)
    chosen = iou[linear_sum_assignment(np.where(iou >= 0.5, iou + 10, 0), maximize=True)]
    matched = chosen[chosen >= 0.5]
    return matched.sum() * 2 / (len(ones) + len(others)), len(matched) / (len(ones) + len(others) - len(matched))


def test_real_nuclei(real_data: Path, tmp_path):
    measure = pytest.importorskip("skimage.measure")
    folder = real_data / "dsb2018_nuclei" / "labels"
    if not folder.is_dir():
        pytest.skip("no labelled nuclei there")
    nuclei = merged = 0
    for path in sorted(folder.glob("*.png"))[:12]:
        numbers = read_labels(path).array[..., 0]
        pieces = measure.label(numbers > 0, connectivity=2)
        nuclei, merged = nuclei + len(np.unique(numbers)) - 1, merged + len(np.unique(numbers)) - 1 - pieces.max()
        moved = np.roll(numbers, 2, axis=0).astype(np.uint32) * 70_000
        for predicted, objects in (((numbers > 0).astype(np.uint8), pieces), (moved, moved)):
            (row,) = _evaluate(tmp_path, numbers, predicted, _scheme()).per_case.to_dict("records")
            assert (row["panoptic_quality"], row["ap50"]) == pytest.approx(_by_assignment(numbers, objects))
        mask = _evaluate(tmp_path, numbers, (numbers > 0).astype(np.uint8), _scheme("components"))
        assert mask.per_case["panoptic_quality"][0] == 1  # however many nuclei touch
    assert nuclei > 300 and merged > 20
