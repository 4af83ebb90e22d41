"""NIfTI: what the header says, and label maps that keep it."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from io_phantoms import SHAPE, SPACING, counting, nifti, ras_affine, rotation

from medseg.core.errors import UnreadableError
from medseg.core.volume import LabelMap
from medseg.io.formats import geometry_warnings, read_grid, read_labels, read_volume, write_labels


def write_like(scan: Path, name: str = "labels.nii.gz", dtype: type = np.uint8) -> tuple[Path, np.ndarray]:
    grid = read_grid(scan)
    array = counting(grid.shape, dtype)
    path = scan.with_name(name)
    write_labels(path, LabelMap(array, grid), scan)
    return path, array


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", ["u1", "<i2", ">i2", "<i4", "<f4", ">f8", "u2"])
def test_reads_what_nibabel_reads(tmp_path: Path, suffix: str, dtype: str) -> None:
    path = tmp_path / f"scan{suffix}"
    image = nib.Nifti1Image(counting(dtype=dtype), ras_affine())
    nib.save(image, path)
    volume, oracle = read_volume(path), nib.load(path)
    assert volume.array.dtype == np.float32 and volume.array.shape == (1, *SHAPE)
    np.testing.assert_array_equal(volume.array[0], oracle.get_fdata(dtype=np.float32))
    assert np.array_equal(volume.grid.affine, oracle.affine) and volume.grid.unit == "mm"
    np.testing.assert_allclose(volume.grid.spacing, SPACING, rtol=1e-6)
    assert read_grid(path).shape == SHAPE


def test_big_endian_nifti_and_nifti2(tmp_path: Path) -> None:
    for name, kind in (("a.nii", nib.Nifti1Image), ("b.nii.gz", nib.Nifti2Image)):
        image = kind(counting(), ras_affine(), kind.header_class(endianness=">"))
        nib.save(image, tmp_path / name)
        np.testing.assert_array_equal(read_volume(tmp_path / name).array[0], counting())
        path, array = write_like(tmp_path / name, "labels_" + name)
        assert type(nib.load(path)) is kind and np.array_equal(np.asarray(nib.load(path).dataobj), array)
        assert np.array_equal(nib.load(path).affine, nib.load(tmp_path / name).affine)


def test_intensity_scaling_is_applied_to_scans_and_labels(tmp_path: Path) -> None:
    path = nifti(tmp_path / "scan.nii.gz", counting(), ras_affine(), scl_slope=0.5, scl_inter=-3)
    np.testing.assert_array_equal(read_volume(path).array[0], counting() * 0.5 - 3)
    path = nifti(tmp_path / "labels.nii.gz", counting(dtype=np.uint8), ras_affine(), scl_slope=2, scl_inter=1)
    assert read_labels(path).array.max() == 2 * (np.prod(SHAPE) - 1) + 1 and read_labels(path).array.dtype == np.uint8


def test_colour_voxels_are_three_channels(tmp_path: Path) -> None:
    array = np.zeros(SHAPE, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    array["R"], array["B"] = 7, 9
    nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / "colour.nii.gz")
    assert read_volume(tmp_path / "colour.nii.gz").array[:, 1, 2, 0].tolist() == [7, 0, 9]


@pytest.mark.parametrize(("qform", "sform"), [(1, 0), (0, 1), (1, 1), (4, 2), (0, 0)])
def test_labels_copy_the_geometry_fields_of_the_scan(tmp_path: Path, qform: int, sform: int) -> None:
    scan = nifti(
        tmp_path / "scan.nii.gz", counting(), ras_affine(), qform_code=qform, sform_code=sform, xyzt_units=10,
        scl_slope=3, scl_inter=7, cal_max=99, cal_min=-4, descrip=b"a name", aux_file=b"a name", intent_name=b"a name",
    )  # fmt: skip
    path, array = write_like(scan, dtype=np.uint16)
    before, after = nib.load(scan).header, nib.load(path).header
    for field in (
        "qform_code",
        "sform_code",
        "pixdim",
        "quatern_b",
        "quatern_c",
        "quatern_d",
        "qoffset_x",
        "qoffset_y",
        "qoffset_z",
    ):
        assert np.array_equal(before[field], after[field]), field
    for field in ("srow_x", "srow_y", "srow_z", "xyzt_units"):
        assert np.array_equal(before[field], after[field]), field
    assert nib.load(scan).affine.tobytes() == nib.load(path).affine.tobytes()
    assert after.get_data_dtype() == np.uint16 and after["cal_max"] == after["cal_min"] == 0
    assert after.get_slope_inter() in ((1, 0), (None, None))
    assert b"a name" not in gzip.decompress(path.read_bytes())
    np.testing.assert_array_equal(np.asarray(nib.load(path).dataobj), array)


def test_uncoded_header_uses_the_fallback_affine_and_says_so(tmp_path: Path) -> None:
    scan = nifti(tmp_path / "scan.nii", counting(), None, pixdim=[1, 2, 3, 4, 1, 1, 1, 1])
    assert np.array_equal(read_grid(scan).affine, nib.load(scan).affine) and read_grid(scan).spacing == (2, 3, 4)
    assert "no orientation" in geometry_warnings(scan)[0]


@pytest.mark.parametrize(("units", "factor"), [(0, 1), (1, 1000), (2, 1), (3, 0.001), (2 + 8, 1), (3 + 16, 0.001)])
def test_units_become_millimetres_and_are_kept_on_writing(tmp_path: Path, units: int, factor: float) -> None:
    scan = nifti(tmp_path / "scan.nii.gz", counting(), ras_affine(), xyzt_units=units)
    np.testing.assert_allclose(read_grid(scan).spacing, np.array(SPACING) * factor, rtol=1e-6)
    path, _ = write_like(scan)
    assert nib.load(path).header["xyzt_units"] == units and np.array_equal(read_grid(path).affine, read_grid(scan).affine)


def test_a_disagreeing_qform_is_reported_with_its_distance(tmp_path: Path) -> None:
    scan = nifti(tmp_path / "scan.nii.gz", counting(), ras_affine())
    assert geometry_warnings(scan) == []
    header = nib.load(scan).header
    moved = nifti(tmp_path / "moved.nii.gz", counting(), ras_affine(), qoffset_y=float(header["qoffset_y"]) + 4.5)
    assert "by up to 4.5 mm" in geometry_warnings(moved)[0] and str(moved) in geometry_warnings(moved)[0]
    assert np.array_equal(read_grid(moved).affine, nib.load(moved).get_sform())
    broken = nifti(tmp_path / "broken.nii.gz", counting(), ras_affine(), quatern_b=2.0)
    assert "not a rotation" in geometry_warnings(broken)[0]


def test_a_voxel_size_of_zero_is_reported(tmp_path: Path) -> None:
    scan = nifti(tmp_path / "scan.nii", counting(), ras_affine(), sform_code=0, pixdim=[1, 1, 0, 1, 1, 1, 1, 1])
    assert "zero or less" in geometry_warnings(scan)[0]


def test_slices_and_trailing_single_axes(tmp_path: Path) -> None:
    flat = nifti(tmp_path / "flat.nii.gz", counting((5, 4)), None, pixdim=[1, 2, 3, 0, 1, 1, 1, 1])
    assert read_volume(flat).array.shape == (1, 5, 4, 1)
    path, array = write_like(flat, "flat_labels.nii.gz")
    assert nib.load(path).shape == (5, 4) and np.array_equal(read_labels(path).array, array)
    long = nifti(tmp_path / "long.nii.gz", counting((5, 4, 3, 1)), ras_affine())
    assert read_volume(long).array.shape == (1, 5, 4, 3)
    path, array = write_like(long, "long_labels.nii.gz")
    assert np.array_equal(np.asarray(nib.load(path).dataobj), array)


@pytest.mark.parametrize("shape", [(5, 4, 3, 2), (5, 4, 3, 1, 3)])
def test_more_than_one_volume_is_refused_by_name(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = nifti(tmp_path / "fmri.nii.gz", counting(shape), ras_affine())
    for function in (read_volume, read_grid, read_labels):
        with pytest.raises(UnreadableError, match=rf"fmri\.nii\.gz is a {len(shape)}D file \({' x '.join(map(str, shape))}\)"):
            function(path)


def test_damage_is_unreadable(tmp_path: Path) -> None:
    whole = nifti(tmp_path / "scan.nii.gz", counting((20, 20, 20)), ras_affine()).read_bytes()
    path = tmp_path / "p07.nii.gz"
    # The last bytes are gzip's checksum, which nobody needs to read the voxels.
    for kept in (0, 1, 9, 100, len(whole) // 2, len(whole) - 9, len(whole) - 1):
        path.write_bytes(whole[:kept])
        with pytest.raises(UnreadableError, match=r"p07\.nii\.gz.*intact copy"):
            read_volume(path)
    path.write_bytes(whole[:-6] + bytes([whole[-6] ^ 1]) + whole[-5:])
    with pytest.raises(UnreadableError, match="CRC"):
        read_volume(path)
    plain = nifti(tmp_path / "plain.nii", counting(), ras_affine())
    plain.write_bytes(plain.read_bytes()[:-1])
    with pytest.raises(UnreadableError, match=r"truncated: its header states 120 bytes of voxels and it holds 119"):
        read_volume(plain)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"dim": [3, 30000, 30000, 30000, 1, 1, 1, 1]}, "truncated"),
        ({"dim": [3, 5, 0, 3, 1, 1, 1, 1]}, "damaged|three positive sizes"),
        ({"srow_x": [0, 0, 0, 0]}, "singular"),
        ({"srow_x": [np.nan, 0, 0, 0]}, "not finite"),
        ({"xyzt_units": 7}, "unit"),
        ({"datatype": 32, "bitpix": 64}, "complex64"),
        ({"magic": b"ni1"}, "pair"),
        ({"datatype": 999}, "damaged"),
    ],
)
def test_nonsense_headers_are_unreadable(tmp_path: Path, fields: dict, reason: str) -> None:
    array = counting() if "datatype" not in fields else np.zeros(SHAPE, np.complex64)
    path = nifti(tmp_path / "scan.nii", array, ras_affine(), **fields)
    with pytest.raises(UnreadableError, match=reason):
        read_volume(path)


def test_an_oblique_scan_keeps_its_rotation(tmp_path: Path) -> None:
    scan = nifti(tmp_path / "scan.nii.gz", counting(), ras_affine())
    flip = np.diag([-1.0, -1, 1])
    np.testing.assert_allclose(read_grid(scan).directions, flip @ rotation(), atol=1e-6)
