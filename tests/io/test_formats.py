"""The public functions: names, stated spacing, label values, and writing whole files or none."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import tifffile
from io_phantoms import SHAPE, counting, itk_image, nifti, ras_affine
from PIL import Image

from medseg.core.errors import GridMismatchError, LabelError, OutputError, UnreadableError
from medseg.core.grid import Grid
from medseg.core.volume import LabelMap
from medseg.io import formats
from medseg.io.formats import (
    FORMATS,
    SCAN_SUFFIXES,
    WRITERS,
    case_name,
    geometry_warnings,
    is_scan,
    label_name,
    read_channels,
    read_grid,
    read_labels,
    read_volume,
    write_labels,
)

SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd", ".png", ".jpg", ".tif")


def scan_of(folder: Path, suffix: str) -> Path:
    """A scan of each kind; 2D where the format is."""
    path = folder / f"scan{suffix}"
    if suffix.startswith(".nii"):
        return nifti(path, counting(), ras_affine())
    if suffix == ".tif":
        tifffile.imwrite(path, counting((3, 4, 5), np.uint8), photometric="minisblack")
    elif suffix in (".png", ".jpg"):
        Image.fromarray(counting((4, 5), np.uint8)).save(path)
    else:
        sitk.WriteImage(itk_image(), str(path))
    return path


@pytest.mark.parametrize(
    ("name", "case"),
    [
        ("p01.nii.gz", "p01"),
        ("p01.NII.GZ", "p01"),
        ("p.01.nii", "p.01"),
        ("a.ome.tif", "a"),
        ("a.tiff", "a"),
        ("folder.x/b.png", "b"),
        ("c.nhdr", "c"),
        ("notes.txt", "notes"),
    ],
)
def test_case_name(name: str, case: str) -> None:
    assert case_name(Path(name)) == case


def test_is_scan() -> None:
    assert all(is_scan(Path(f"x{suffix}")) and is_scan(Path(f"x{suffix.upper()}")) for suffix in SCAN_SUFFIXES)
    assert not any(is_scan(Path(name)) for name in (".x.nii.gz", "._p01.nii.gz", "x.raw", "x.zraw", "x.gz", "x", "x.dcm", "nii"))


def test_each_scan_has_a_label_name_that_can_be_written_and_read() -> None:
    for suffix in SCAN_SUFFIXES:
        name = label_name("p01", Path(f"scan{suffix}"))
        assert case_name(Path(name)) == "p01" and name.removeprefix("p01") in FORMATS
        assert name.removeprefix("p01") in (*WRITERS, ".ome.zarr")
    assert label_name("a", Path("a.jpg")) == "a.png" and label_name("a", Path("a.nii")) == "a.nii.gz"
    with pytest.raises(UnreadableError, match=r"\.nii\.gz, \.nii, \.nrrd"):
        label_name("a", Path("a.txt"))


@pytest.mark.parametrize("function", [read_volume, read_labels, read_grid, geometry_warnings])
def test_missing_files_folders_and_unknown_suffixes(tmp_path: Path, function) -> None:
    (tmp_path / "folder.nii.gz").mkdir()
    (tmp_path / "x.dcm").write_bytes(b"x")
    for name, reason in (
        ("gone.nii.gz", "does not exist"),
        ("folder.nii.gz", "is a folder"),
        ("x.dcm", "no suffix that can be read"),
    ):
        with pytest.raises(UnreadableError, match=rf"{name} .*{reason}"):
            function(tmp_path / name)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_written_labels_lie_on_the_scan(tmp_path: Path, suffix: str) -> None:
    scan = scan_of(tmp_path, suffix)
    grid = read_grid(scan)
    assert np.array_equal(read_volume(scan).grid.affine, grid.affine)
    for dtype in (np.uint8, np.uint16):
        path = tmp_path / "new" / label_name("p01", scan)
        labels = LabelMap(counting(grid.shape, dtype) * (1 if dtype == np.uint8 else 1001), grid)
        write_labels(path, labels, scan)
        first = path.read_bytes()
        back = read_labels(path)
        assert np.array_equal(back.array, labels.array) and back.array.dtype == dtype
        assert back.grid.affine.tobytes() == grid.affine.tobytes() and back.grid.physical == grid.physical
        write_labels(path, labels, scan)
        assert path.read_bytes() == first and [p.name for p in path.parent.iterdir()] == [path.name]
        path.unlink()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_arrays_are_whole_and_may_be_changed(tmp_path: Path, suffix: str) -> None:
    scan = scan_of(tmp_path, suffix)
    for array in (read_volume(scan).array, read_labels(scan).array):
        assert array.flags.c_contiguous and array.flags.writeable and array.dtype.isnative


@pytest.mark.parametrize("suffix", [".nii", ".nrrd", ".mha"])
def test_the_grid_comes_from_the_header_alone(tmp_path: Path, suffix: str) -> None:
    scan = scan_of(tmp_path, suffix)
    grid = read_grid(scan)
    scan.write_bytes(scan.read_bytes()[:-10])
    assert read_grid(scan) == grid
    with pytest.raises(UnreadableError, match="truncated"):
        read_volume(scan)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_labels_of_another_grid_are_not_written(tmp_path: Path, suffix: str) -> None:
    scan = scan_of(tmp_path, suffix)
    grid = read_grid(scan)
    moved = grid.affine.copy()
    moved[0, 3] += 1.5
    path = tmp_path / label_name("p01", scan)
    for other, what in ((Grid(grid.shape, moved, grid.physical), "origin"), (grid.cropped((0, 0, 0), (2, 2, 1)), "shape")):
        with pytest.raises(GridMismatchError, match=rf"p01.*{what}"):
            write_labels(path, LabelMap(np.zeros(other.shape, np.uint8), other), scan)
    assert not path.exists()


def test_labels_must_fit_and_keep_the_family(tmp_path: Path) -> None:
    scan = scan_of(tmp_path, ".nii.gz")
    grid = read_grid(scan)
    write_labels(tmp_path / "wide.nii.gz", LabelMap(np.full(SHAPE, 65535, np.uint32), grid), scan)
    assert read_labels(tmp_path / "wide.nii.gz").array.dtype == np.uint16
    with pytest.raises(LabelError, match="65536 does not fit"):
        write_labels(tmp_path / "wider.nii.gz", LabelMap(np.full(SHAPE, 65536, np.uint32), grid), scan)
    for name in ("x.nrrd", "x.txt"):
        with pytest.raises(OutputError, match=r"call it x\.nii\.gz"):
            write_labels(tmp_path / name, LabelMap(np.zeros(SHAPE, np.uint8), grid), scan)


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scan, path = scan_of(tmp_path, ".nrrd"), tmp_path / "p01.nrrd"
    path.write_bytes(b"old")

    def full(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputError, match=r"p01\.nrrd cannot be written \(No space left"):
        write_labels(path, LabelMap(np.zeros(SHAPE, np.uint8), read_grid(scan)), scan)
    assert path.read_bytes() == b"old" and sorted(p.name for p in tmp_path.iterdir()) == ["p01.nrrd", "scan.nrrd"]


def test_what_reads_back_otherwise_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scan = scan_of(tmp_path, ".mha")
    grid = read_grid(scan)
    honest = WRITERS[".mha"]
    for writer, error in (
        (lambda labels, like: honest(labels + 1, like), OutputError),
        (lambda labels, like: honest(labels, like).replace(b"0.142857", b"0.142858"), GridMismatchError),
    ):
        monkeypatch.setitem(formats.WRITERS, ".mha", writer)
        with pytest.raises(error):
            write_labels(tmp_path / "p01.mha", LabelMap(np.zeros(SHAPE, np.uint8), grid), scan)
        assert [p.name for p in tmp_path.iterdir()] == ["scan.mha"]


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_a_configuration_may_state_the_spacing(tmp_path: Path, suffix: str) -> None:
    scan, stated = scan_of(tmp_path, suffix), (4e-6, 4e-6, 5e-5)  # of an electron microscope, in mm
    for grid in (read_volume(scan, stated).grid, read_channels([scan], stated).grid, read_grid(scan, stated)):
        assert grid.physical and grid.unit == "mm"
        np.testing.assert_allclose(grid.spacing, (*stated[:2], 1.0) if grid.planar else stated)
    assert read_labels(scan, stated).grid == read_grid(scan, stated)
    labels = LabelMap(np.ones(read_grid(scan).shape, np.uint8), read_grid(scan, stated))
    write_labels(tmp_path / label_name("p01", scan), labels, scan)
    assert not read_grid(tmp_path / label_name("p01", scan)).physical


def test_a_picture_lies_on_the_slice_that_states_the_same_pixels(tmp_path: Path) -> None:
    stated, picture = (5e-4, 5e-4, 3.0), np.zeros((4, 5), np.uint8)
    tifffile.imwrite(tmp_path / "scan.ome.tif", picture, metadata={"PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5})
    Image.fromarray(picture).save(tmp_path / "mask.png")
    scan, mask = read_grid(tmp_path / "scan.ome.tif", stated), read_grid(tmp_path / "mask.png", stated)
    assert scan.difference(mask) is None and scan.voxel_volume == pytest.approx(5e-4**2)


def test_a_spacing_in_the_file_wins_and_a_contradiction_is_named(tmp_path: Path) -> None:
    scan = scan_of(tmp_path, ".nii.gz")
    own = read_grid(scan)
    near = tuple(s * 1.005 for s in own.spacing)
    assert np.array_equal(read_grid(scan, near).affine, own.affine)
    with pytest.raises(UnreadableError, match=r"states voxels of 0\.7 x 0\.333333 x 2\.5 mm and the configuration 1 x 1 x 1 mm"):
        read_volume(scan, (1, 1, 1))
    flat = nifti(tmp_path / "flat.nii", counting((5, 4, 1)), np.diag([0.5, 0.5, 8, 1]))
    assert read_grid(flat, (0.5, 0.5, 1)).spacing == (0.5, 0.5, 8)


def test_channels(tmp_path: Path) -> None:
    a = nifti(tmp_path / "t1.nii.gz", counting(), ras_affine())
    b = nifti(tmp_path / "t2.nii.gz", counting() * 2, ras_affine())
    np.testing.assert_array_equal(read_channels([a, b]).array, np.stack([counting(), counting() * 2]))
    moved = ras_affine()
    moved[2, 3] += 1.5
    c = nifti(tmp_path / "flair.nii.gz", counting(), moved)
    with pytest.raises(GridMismatchError, match=r"t1\.nii\.gz and .*flair\.nii\.gz .*origin differs by 0 x 0 x 1\.5 mm"):
        read_channels([a, b, c])
    Image.fromarray(np.zeros((4, 5, 3), np.uint8)).save(tmp_path / "rgb.png")
    assert read_channels([tmp_path / "rgb.png"]).array.shape == (3, 5, 4, 1)
    with pytest.raises(UnreadableError, match=r"rgb\.png holds 3 channels"):
        read_channels([tmp_path / "rgb.png", tmp_path / "rgb.png"])


@pytest.mark.parametrize(
    ("dtype", "value", "count", "reason"),
    [
        (np.float32, 0.5, 3, r"the value 0\.5 at voxel \(1, 0, 0\) is not a whole number, as are 2 others"),
        (np.float64, 1.001, 1, r"the value 1\.001 at voxel \(1, 0, 0\) is not a whole number;"),
        (np.float32, np.nan, 2, r"the value nan at voxel \(1, 0, 0\) is not finite, as are 1 others"),
        (np.float32, np.inf, 1, "is not finite"),
        (np.float32, -2, 1, r"the value -2 at voxel \(1, 0, 0\) is negative"),
        (np.int16, -1, 1, "the value -1 .* is negative"),
        (np.float64, 1e12, 1, "too large"),
    ],
)
def test_values_that_are_no_labels(tmp_path: Path, dtype: type, value: float, count: int, reason: str) -> None:
    array = np.zeros(SHAPE, dtype)
    array[1, :count, 0] = value
    path = nifti(tmp_path / "mask.nii.gz", array, ras_affine())
    with pytest.raises(LabelError, match=rf"mask\.nii\.gz: .*{reason}"):
        read_labels(path)


@pytest.mark.parametrize(
    ("dtype", "value", "kept"), [(np.float64, 0.99999997, 1), (np.float32, 300, 300), (np.int32, 7, 7), (np.int64, 70000, 70000)]
)
def test_whole_values_of_any_type_are_labels(tmp_path: Path, dtype: type, value: float, kept: int) -> None:
    array = np.zeros(SHAPE, dtype)
    array[4, 3, 2] = value
    labels = read_labels(nifti(tmp_path / "mask.nii.gz", array, ras_affine()))
    assert labels.array[4, 3, 2] == kept and labels.array.sum() == kept and labels.array.dtype == np.min_scalar_type(kept)


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scan = scan_of(tmp_path, ".nrrd")

    def refused(path: Path, as_labels: bool) -> None:
        raise PermissionError(errno.EACCES, "denied")

    monkeypatch.setitem(formats.FORMATS, ".nrrd", replace(FORMATS[".nrrd"], read=refused))
    with pytest.raises(UnreadableError, match="may not be read"):
        read_volume(scan)
