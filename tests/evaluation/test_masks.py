"""Masks by name in the values of a scheme: what may count as absent, and what overlaps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_named_masks import write_mask, write_slicer

from medseg.core.errors import LabelError
from medseg.core.labels import LabelScheme
from medseg.evaluation.masks import read_masks

WHOLE = np.zeros((6, 5, 4), np.uint8)
WHOLE[0:5, 0:4, 0:3] = 1
CORE = np.zeros_like(WHOLE)
CORE[1:4, 1:3, 0:2] = 1
ENHANCING = np.zeros_like(WHOLE)
ENHANCING[1:2, 1:3, 0:2] = 1
ORGANS: list[dict[str, Any]] = [{"name": "left kidney", "id": 300}, {"name": "spleen", "id": 2, "prediction_values": [9]}]
TUMOUR = LabelScheme.model_validate(
    {
        "structures": [{"name": "oedema", "id": 2}, {"name": "necrosis", "id": 1}, {"name": "enhancing", "id": 4}],
        "regions": [
            {"name": "enhancing", "structures": ["enhancing"]},
            {"name": "whole", "structures": ["oedema", "necrosis", "enhancing"]},
            {"name": "core", "structures": ["necrosis", "enhancing"]},
        ],
    }
)


def scheme(*structures: dict[str, Any]) -> LabelScheme:
    return LabelScheme.model_validate({"structures": list(structures or ORGANS)})


def folder(path: Path, **masks: np.ndarray) -> Path:
    for name, array in masks.items():
        write_mask(path / f"{name}.nii.gz", array)
    return path


def slicer(path: Path, **masks: np.ndarray) -> Path:
    return write_slicer(path, np.stack(list(masks.values())), [{"Name": name} for name in masks])


def test_names_are_matched_whatever_their_capitals_and_gaps(tmp_path: Path) -> None:
    place = folder(tmp_path / "p", Left_Kidney=CORE, spleen=WHOLE - CORE, liver=WHOLE)
    for prediction, spleen in ((False, 2), (True, 9)):
        labels, cut, _ = read_masks(place, scheme(), prediction)
        np.testing.assert_array_equal(labels.array, np.where(CORE > 0, 300, (WHOLE - CORE).astype(int) * spleen))
        classes = scheme().encode(labels.array, "p", prediction)
        np.testing.assert_array_equal(classes, np.where(CORE > 0, 1, (WHOLE - CORE) * 2))
        assert not cut
    with pytest.raises(LabelError, match="the names `Left_Kidney` and `left-kidney` cannot be told apart"):
        read_masks(folder(tmp_path / "p", **{"left-kidney": CORE}), scheme())


def test_a_missing_file_is_never_an_empty_mask(tmp_path: Path) -> None:
    with pytest.raises(LabelError, match=r"p has no mask of `spleen` \(its files: `left kidney`\); give it one, empty where"):
        read_masks(folder(tmp_path / "p", **{"left kidney": CORE}), scheme())
    empty = folder(tmp_path / "p", spleen=CORE * 0)
    assert set(np.unique(read_masks(empty, scheme())[0].array)) == {0, 300}
    assert read_masks(empty, scheme()).absent == ""


def test_a_missing_file_means_an_empty_mask_where_that_is_stated(tmp_path: Path) -> None:
    place = folder(tmp_path / "p", **{"left kidney": CORE})
    labels, _, absent = read_masks(place, scheme(), missing_empty=True)
    np.testing.assert_array_equal(labels.array, CORE.astype(int) * 300)
    assert absent == "p has no file of `spleen`: taken as absent"
    other = slicer(tmp_path / "other.seg.nrrd", milt=WHOLE)
    assert not read_masks(other, scheme(), missing_empty=True)[0].array.any()


def test_a_segment_is_absent_where_no_other_name_can_be_meant(tmp_path: Path) -> None:
    only = slicer(tmp_path / "only.seg.nrrd", **{"Left kidney": CORE})
    labels, cut, absent = read_masks(only, scheme())
    assert cut and set(np.unique(labels.array)) == {0, 300}
    assert absent == "only.seg.nrrd has no segment of `spleen`: taken as absent"
    other = slicer(tmp_path / "other.seg.nrrd", **{"Left kidney": CORE, "milt": WHOLE - CORE})
    with pytest.raises(LabelError, match=r"no mask of `spleen` \(its segments: `Left kidney`, `milt`\)"):
        read_masks(other, scheme())


def test_structures_that_overlap_are_measured_apart(tmp_path: Path) -> None:
    place = folder(tmp_path / "p", **{"left kidney": CORE, "spleen": WHOLE})
    with pytest.raises(LabelError, match=rf"`spleen` shares voxels with `left kidney` \({CORE.sum()} voxels\)"):
        read_masks(place, scheme())
    for structure, array in zip(ORGANS, (CORE, WHOLE), strict=True):
        labels = read_masks(place, scheme(structure)).labels
        np.testing.assert_array_equal(labels.array > 0, array > 0)


def test_masks_of_regions_lie_in_each_other(tmp_path: Path) -> None:
    place = folder(tmp_path / "p", whole=WHOLE, core=CORE, enhancing=ENHANCING)
    classes = TUMOUR.encode(read_masks(place, TUMOUR)[0].array, "p")
    for name, array in {"whole": WHOLE, "core": CORE, "enhancing": ENHANCING}.items():
        np.testing.assert_array_equal(np.isin(classes, TUMOUR.measured[name]), array > 0)
    by_structure = folder(tmp_path / "s", oedema=WHOLE - CORE, necrosis=CORE - ENHANCING, enhancing=ENHANCING)
    np.testing.assert_array_equal(TUMOUR.encode(read_masks(by_structure, TUMOUR)[0].array, "s"), classes)
    beside = np.roll(ENHANCING, 3, axis=0)  # outside of the core, which would make the core larger than its mask
    with pytest.raises(LabelError, match="`enhancing` shares voxels with `whole`"):
        read_masks(folder(tmp_path / "q", whole=WHOLE, core=CORE, enhancing=beside), TUMOUR)
    with pytest.raises(LabelError, match="`core` leaves the region that it is part of"):
        read_masks(folder(tmp_path / "r", whole=ENHANCING, core=CORE, enhancing=ENHANCING), TUMOUR)


def test_regions_that_one_value_stands_for(tmp_path: Path) -> None:
    one = TUMOUR.model_copy(update={"regions": [r.model_copy(update={"written_as": "enhancing"}) for r in TUMOUR.regions]})
    with pytest.raises(LabelError, match="two regions of the label scheme are written as one structure"):
        read_masks(folder(tmp_path / "p", whole=WHOLE, core=CORE, enhancing=ENHANCING), one)
