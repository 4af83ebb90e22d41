"""MetaImage against SimpleITK, whose format it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from io_phantoms import SHAPE, counting, itk_affine, itk_image, itk_voxels, ras_affine

from medseg.core.errors import OutputError, UnreadableError
from medseg.core.volume import LabelMap
from medseg.io.formats import label_name, read_grid, read_labels, read_volume, write_labels


def by_hand(path: Path, fields: str, payload: bytes, name: str = "LOCAL") -> Path:
    path.write_bytes(f"ObjectType = Image\n{fields}\nElementDataFile = {name}\n".encode() + payload)
    return path


@pytest.mark.parametrize("name", ["scan.mha", "scan.mhd"])
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint32, np.float32, np.float64])
def test_reads_what_simpleitk_writes(tmp_path: Path, name: str, compressed: bool, dtype: type) -> None:
    path = tmp_path / name
    sitk.WriteImage(itk_image(counting(dtype=dtype)), str(path), compressed)
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.array[0], counting(dtype=np.float32))
    np.testing.assert_allclose(volume.grid.affine, ras_affine(), atol=1e-12)
    np.testing.assert_allclose(volume.grid.affine, itk_affine(path), atol=1e-12)


def test_labels_copy_the_lines_of_the_header(tmp_path: Path) -> None:
    scan = tmp_path / "scan.mha"
    sitk.WriteImage(itk_image(), str(scan))
    for dtype in (np.uint8, np.uint16):
        path = tmp_path / label_name("p01", scan)
        labels = LabelMap(counting(dtype=dtype), read_grid(scan))
        write_labels(path, labels, scan)
        assert read_grid(path).affine.tobytes() == read_grid(scan).affine.tobytes()
        assert itk_affine(path).tobytes() == itk_affine(scan).tobytes()
        np.testing.assert_array_equal(itk_voxels(path), labels.array)
        lines = [
            line for line in scan.read_bytes().split(b"\n") if line.startswith((b"Offset", b"TransformMatrix", b"ElementSpacing"))
        ]
        assert len(lines) == 3 and all(line in path.read_bytes() for line in lines)


def test_labels_of_a_header_with_separate_voxels_are_one_file(tmp_path: Path) -> None:
    scan = tmp_path / "scan.mhd"
    sitk.WriteImage(itk_image(), str(scan), True)
    labels = LabelMap(counting(dtype=np.uint8), read_grid(scan))
    assert label_name("scan", scan) == "scan.mha"
    with pytest.raises(OutputError, match=r"call it labels\.mha"):
        write_labels(tmp_path / "labels.mhd", labels, scan)
    write_labels(tmp_path / "labels.mha", labels, scan)
    assert read_grid(tmp_path / "labels.mha").affine.tobytes() == read_grid(scan).affine.tobytes()


def test_flat_colour_and_single_fourth_axis(tmp_path: Path) -> None:
    flat = sitk.GetImageFromArray(counting((5, 4)).T)
    flat.SetSpacing((0.1, 0.2))
    flat.SetDirection((0.6, -0.8, 0.8, 0.6))
    sitk.WriteImage(flat, str(tmp_path / "flat.mha"))
    volume = read_volume(tmp_path / "flat.mha")
    assert volume.array.shape == (1, 5, 4, 1) and np.allclose(volume.grid.spacing, (0.1, 0.2, 1))
    np.testing.assert_allclose(volume.grid.affine[:2, 1], [0.8 * 0.2, -0.6 * 0.2])
    labels = LabelMap(counting((5, 4, 1), np.uint8), volume.grid)
    write_labels(tmp_path / "labels.mha", labels, tmp_path / "flat.mha")
    assert sitk.ReadImage(str(tmp_path / "labels.mha")).GetDimension() == 2

    colour = counting((*SHAPE, 3), np.uint8)
    sitk.WriteImage(itk_image(colour, vector=True), str(tmp_path / "colour.mha"))
    np.testing.assert_array_equal(read_volume(tmp_path / "colour.mha").array, np.moveaxis(colour, -1, 0))

    sitk.WriteImage(sitk.GetImageFromArray(counting((1, 2, 3, 4)), isVector=False), str(tmp_path / "one.mha"))
    assert read_volume(tmp_path / "one.mha").array.shape == (1, 4, 3, 2)
    one = LabelMap(counting((4, 3, 2), np.uint8), read_grid(tmp_path / "one.mha"))
    write_labels(tmp_path / "labels.mha", one, tmp_path / "one.mha")
    assert np.array_equal(read_labels(tmp_path / "labels.mha").array, one.array)


def test_byte_order_text_and_header_size(tmp_path: Path) -> None:
    array = counting((2, 2, 2), ">i2")
    common = "NDims = 3\nDimSize = 2 2 2\nElementType = MET_SHORT\n"
    big = by_hand(tmp_path / "big.mha", common + "ElementByteOrderMSB = True\nElementSpacing = 1 2 3", array.tobytes(order="F"))
    np.testing.assert_array_equal(read_volume(big).array[0], array)
    text = by_hand(tmp_path / "text.mha", common + "BinaryData = False", b"0 4 2 6 1 5 3 7")
    np.testing.assert_array_equal(read_volume(text).array[0], array)
    assert read_grid(text).unit == "px"
    (tmp_path / "v.raw").write_bytes(b"header" + array.astype("<i2").tobytes(order="F"))
    for skip in (6, -1):
        apart = by_hand(
            tmp_path / "apart.mhd", common + f"HeaderSize = {skip}\nDistanceUnits = um\nElementSpacing = 1 2 3", b"", "v.raw"
        )
        np.testing.assert_array_equal(read_volume(apart).array[0], array)
        np.testing.assert_allclose(read_grid(apart).spacing, (0.001, 0.002, 0.003))


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ("NDims = 4\nDimSize = 2 2 2 2\nElementType = MET_UCHAR", "4D file"),
        ("NDims = 3\nDimSize = 2 2 9\nElementType = MET_UCHAR", "truncated"),
        ("NDims = 3\nDimSize = 2 2 -9\nElementType = MET_UCHAR", "positive sizes|states a size|damaged"),
        ("NDims = 3\nDimSize = 2 2 2\nElementType = MET_STRING", "MET_STRING"),
        ("NDims = 3\nDimSize = 2 2 2", "no field `ElementType`"),
        ("NDims = 3\nDimSize = 2 2 2\nElementType = MET_UCHAR\nElementSpacing = 1 0 1", "singular"),
        ("NDims = 3\nDimSize = 2 2 2\nElementType = MET_UCHAR\nElementSpacing = 1 1", "3 numbers"),
        ("NDims = 3\nDimSize = 2 2 2\nElementType = MET_UCHAR\nCompressedData = True", "damaged"),
        ("NDims = 3\nDimSize = 1 1 1\nElementType = MET_UCHAR\nElementNumberOfChannels = 5", "vectors of 5"),
    ],
)
def test_nonsense_headers_are_unreadable(tmp_path: Path, fields: str, reason: str) -> None:
    with pytest.raises(UnreadableError, match=reason):
        read_volume(by_hand(tmp_path / "scan.mha", fields, bytes(8)))


def test_damage_is_unreadable(tmp_path: Path) -> None:
    scan, path = tmp_path / "scan.mha", tmp_path / "cut.mha"
    sitk.WriteImage(itk_image(counting((20, 20, 20))), str(scan), True)
    whole = scan.read_bytes()
    for kept in (0, 30, 200, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:kept])
        with pytest.raises(UnreadableError, match=r"cut\.mha.*intact copy"):
            read_volume(path)
    by_hand(path, "NDims = 3\nDimSize = 2 2 2\nElementType = MET_UCHAR", b"", "LIST")
    with pytest.raises(UnreadableError, match="one file a slice"):
        read_volume(path)
