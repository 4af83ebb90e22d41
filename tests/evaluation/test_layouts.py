"""Folders as tools leave them."""

from __future__ import annotations

import numpy as np
import pytest

from medseg.core.errors import ConfigError
from medseg.evaluation.layouts import find_masks


@pytest.mark.parametrize(
    ("files", "found"),
    [
        # TotalSegmentator: a folder a case, or the same with `segmentations` in it, beside the scan.
        ("p1/liver p1/spleen p2/liver p2/spleen", {"p1": "p1", "p2": "p2"}),
        ("p1/ct p1/segmentations/liver p2/ct p2/segmentations/liver", {"p1": "p1/segmentations", "p2": "p2/segmentations"}),
        ("p1/liver", {"p1": "p1"}),
        # One mask a case, beside its scans or alone, as in BraTS and BIDS.
        ("p1/p1_t1 p1/p1_seg p2/p2_t1 p2/p2_seg", {"p1": "p1/p1_seg.nii.gz", "p2": "p2/p2_seg.nii.gz"}),
        ("p1/mask p2/mask", {"p1": "p1/mask.nii.gz", "p2": "p2/mask.nii.gz"}),
        # Folders of cases.
        ("a/p1 a/p2 b/p3", {"p1": "a/p1.nii.gz", "p2": "a/p2.nii.gz", "p3": "b/p3.nii.gz"}),
        ("a/p1/p1_seg b/p2/p2_seg", {"p1": "a/p1/p1_seg.nii.gz", "p2": "b/p2/p2_seg.nii.gz"}),
        ("p1 old/p1 old/p2", {"p1": "p1.nii.gz"}),
    ],
)
def test_masks_in_folders(save_labels, tmp_path, files, found):
    for name in files.split():
        save_labels(f"masks/{name}.nii.gz", np.zeros((2, 2, 2)))
    masks = find_masks(tmp_path / "masks", "predictions")
    assert masks == {name: tmp_path / "masks" / path for name, path in found.items()}


def test_a_link_that_leads_round_in_circles(save_labels, tmp_path):
    (tmp_path / "masks" / "p1").mkdir(parents=True)
    (tmp_path / "masks" / "p1" / "up").symlink_to(tmp_path / "masks")
    with pytest.raises(ConfigError, match="holds no label map"):
        find_masks(tmp_path / "masks", "predictions")


def test_two_masks_of_a_case_in_its_folder(save_labels, tmp_path):
    for name in ("p1/p1_seg", "p1/p1_label"):
        save_labels(f"masks/{name}.nii.gz", np.zeros((2, 2, 2)))
    with pytest.raises(ConfigError, match=r"p1/p1_label\.nii\.gz and p1/p1_seg\.nii\.gz are both case `p1`"):
        find_masks(tmp_path / "masks", "predictions")


def test_a_case_whose_folder_is_empty_is_no_case_less(save_labels, tmp_path):
    for name in ("p1/liver", "p1/spleen", "p2/liver"):
        save_labels(f"masks/{name}.nii.gz", np.zeros((2, 2, 2)))
    for name in ("p3", "p4/segmentations"):
        (tmp_path / "masks" / name).mkdir(parents=True)
    found = {name: path.relative_to(tmp_path / "masks") for name, path in find_masks(tmp_path / "masks", "references").items()}
    assert {name: str(path) for name, path in found.items()} == {"p1": "p1", "p2": "p2", "p3": "p3", "p4": "p4/segmentations"}
    (tmp_path / "none" / "p1").mkdir(parents=True)
    with pytest.raises(ConfigError, match="holds no label map"):
        find_masks(tmp_path / "none", "references")


def test_a_link_to_what_was_never_brought_is_a_case(tmp_path):
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "p1.nii.gz").symlink_to(tmp_path / "annex" / "p1.nii.gz")
    assert list(find_masks(tmp_path / "masks", "references")) == ["p1"]


def test_a_name_that_no_table_can_hold(save_labels, tmp_path):
    path = save_labels("masks/p1.nii.gz", np.zeros((2, 2, 2)))
    path.rename(path.with_name(b"M\xfcller.nii.gz".decode("utf-8", "surrogateescape")))
    with pytest.raises(ConfigError, match=r"the name 'M\\udcfcller\.nii\.gz' is not UTF-8"):
        find_masks(tmp_path / "masks", "references")
