"""Real files of every data set: read them, and write labels like them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medseg.core.volume import LabelMap
from medseg.io.formats import case_name, geometry_warnings, is_scan, label_name, read_grid, read_labels, read_volume, write_labels

FOLDERS = {  # every so many files of each
    "hippocampus/images": 40,
    "sct_spinal_cord/images": 1,
    "pyradiomics_nrrd/images": 1,
    "stardist_small": 1,
    "dsb2018_nuclei/images": 90,
    "isbi2012_em/images": 12,
    "totalseg_ct_mr_small/images": 1,
}


def files(folder: Path, step: int) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if is_scan(path)][::step]


@pytest.mark.parametrize("folder", FOLDERS)
def test_labels_written_like_real_scans(real_data: Path, folder: str, tmp_path: Path) -> None:
    scans = files(real_data / folder, FOLDERS[folder])
    assert scans
    for scan in scans:
        volume, grid = read_volume(scan), read_grid(scan)
        assert volume.array.dtype == np.float32 and np.isfinite(volume.array).all() and geometry_warnings(scan) == []
        assert volume.grid.affine.tobytes() == grid.affine.tobytes()
        labels = LabelMap((np.arange(volume.array[0].size) % 251).astype(np.uint8).reshape(grid.shape), grid)
        path = tmp_path / label_name(case_name(scan), scan)
        write_labels(path, labels, scan)
        back = read_labels(path)
        assert np.array_equal(back.array, labels.array) and back.grid.affine.tobytes() == grid.affine.tobytes()


@pytest.mark.parametrize(
    ("scan", "labels", "values"),
    [
        ("sct_spinal_cord/images/t2.nii.gz", "sct_spinal_cord/labels/t2_seg-manual.nii.gz", {0, 1}),
        ("pyradiomics_nrrd/images/breast1_image.nrrd", "pyradiomics_nrrd/labels/breast1_label.nrrd", {0, 1}),
        ("hippocampus/images/hippocampus_001.nii.gz", "hippocampus/labels/hippocampus_001.nii.gz", {0, 1, 2}),
        ("isbi2012_em/images/3.png", "isbi2012_em/labels/3.png", {0, 255}),
        (
            "brats2015/images/brats_2013_pat0001_1_T1c.nii.gz",
            "brats2015/brain_masks/brats_2013_pat0001_1_brainmask.nii.gz",
            {0, 1},
        ),
    ],
)
def test_real_labels_lie_on_their_scans(real_data: Path, scan: str, labels: str, values: set[int]) -> None:
    found = read_labels(real_data / labels)
    assert set(np.unique(found.array).tolist()) == values and found.grid == read_grid(real_data / scan)


def test_real_shapes_and_colours(real_data: Path) -> None:
    nuclei = files(real_data / "dsb2018_nuclei/images", 200)
    assert all(read_volume(path).array.shape[0] == 3 for path in nuclei)  # stored as RGBA
    assert read_volume(real_data / "stardist_small/img3d.tif").array.shape == (1, 57, 61, 31)
    cord = read_grid(real_data / "sct_spinal_cord/images/t2.nii.gz")
    np.testing.assert_allclose(cord.spacing, 1, atol=0.01)
    assert (np.abs(cord.directions).argmax(0) == [1, 2, 0]).all()  # axes run posterior, superior, right
