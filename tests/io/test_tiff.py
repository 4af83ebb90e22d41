"""TIFF: axes, colours, stated sizes, damage."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from io_phantoms import counting

from medseg.core.errors import UnreadableError
from medseg.core.volume import LabelMap
from medseg.io import tiff
from medseg.io.formats import geometry_warnings, read_grid, read_labels, read_volume, write_labels

Z, Y, X = 3, 4, 5
IMAGEJ = {"imagej": True, "resolution": (1 / 0.3, 1 / 0.4)}


def save(path: Path, array: np.ndarray, **options: Any) -> Path:
    tifffile.imwrite(path, array, **options)
    return path


def relabelled(scan: Path, dtype: type = np.uint16) -> Path:
    """A label map written like `scan`, its grid and voxels checked."""
    grid = read_grid(scan)
    labels = LabelMap(counting(grid.shape, dtype), grid)
    path = scan.with_name("labels.tif")
    write_labels(path, labels, scan)
    first = path.read_bytes()
    write_labels(path, labels, scan)
    assert path.read_bytes() == first
    back = read_labels(path)
    assert np.array_equal(back.array, labels.array) and tifffile.imread(path).dtype == dtype
    assert back.grid.affine.tobytes() == grid.affine.tobytes() and back.grid.physical == grid.physical
    return path


@pytest.mark.parametrize("dtype", ["u1", "u2", ">u2", "i2", "i4", "f4", "f8"])
@pytest.mark.parametrize(
    "options", [{"metadata": None}, {}, {"metadata": {"axes": "ZYX"}}, {"compression": "zlib"}, {"tile": (16, 16)}]
)
def test_stacks(tmp_path: Path, dtype: str, options: dict) -> None:
    array = counting((Z, Y, X), np.dtype(dtype))
    path = save(tmp_path / "stack.tif", array, photometric="minisblack", **options)
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.array[0], array.transpose(2, 1, 0))
    assert volume.grid.unit == "px" and read_grid(path).shape == (X, Y, Z)
    assert tifffile.imread(relabelled(path)).shape == (Z, Y, X)


def test_single_pages_and_pages_written_one_by_one(tmp_path: Path) -> None:
    flat = save(tmp_path / "flat.tiff", counting((Y, X), np.uint8), metadata=None)
    np.testing.assert_array_equal(read_volume(flat).array[0, ..., 0], counting((Y, X)).T)
    assert tifffile.imread(relabelled(flat, np.uint8)).shape == (Y, X)
    with tifffile.TiffWriter(tmp_path / "pages.tif") as file:
        for page in counting((Z, Y, X), np.uint8):
            file.write(page, metadata=None)
    np.testing.assert_array_equal(read_volume(tmp_path / "pages.tif").array[0], counting((Z, Y, X)).transpose(2, 1, 0))


def test_sizes_of_one(tmp_path: Path) -> None:
    for shape in ((1, 1), (1, 5), (4, 1)):
        path = save(tmp_path / "thin.tif", counting(shape, np.uint8), metadata=None)
        np.testing.assert_array_equal(read_volume(path).array[0, ..., 0], counting(shape).T)


def test_colours_and_alpha(tmp_path: Path) -> None:
    for values in (3, 4):
        array = counting((Y, X, values), np.uint8)
        extra = {"extrasamples": ["unassalpha"]} if values == 4 else {}
        path = save(tmp_path / "c.tif", array, photometric="rgb", metadata=None, **extra)
        np.testing.assert_array_equal(read_volume(path).array[..., 0], array[..., :3].transpose(2, 1, 0))
        planes = save(
            tmp_path / "p.tif", array.transpose(2, 0, 1), photometric="rgb", planarconfig="separate", metadata=None, **extra
        )
        np.testing.assert_array_equal(read_volume(planes).array[..., 0], array[..., :3].transpose(2, 1, 0))
        relabelled(path)
    options = {"photometric": "minisblack", "planarconfig": "contig", "extrasamples": ["unassalpha"], "metadata": None}
    grey = save(tmp_path / "g.tif", counting((Y, X, 2), np.uint8), **options)
    np.testing.assert_array_equal(read_volume(grey).array[..., 0], counting((Y, X, 2))[..., :1].transpose(2, 1, 0))
    stack = counting((Z, Y, X, 3), np.uint8)
    path = save(tmp_path / "s.tif", stack, photometric="rgb", metadata=None)
    np.testing.assert_array_equal(read_volume(path).array, stack.transpose(3, 2, 1, 0))


def test_a_palette_is_colours_in_scans_and_indices_in_labels(tmp_path: Path) -> None:
    colours = np.zeros((3, 256), np.uint16)
    colours[:, 7] = 255 << 8, 3 << 8, 0
    path = save(tmp_path / "p.tif", np.full((Y, X), 7, np.uint8), photometric="palette", colormap=colours, metadata=None)
    assert read_volume(path).array[:, 0, 0, 0].tolist() == [255, 3, 0]
    assert np.unique(read_labels(path).array).tolist() == [7]


def test_masks_of_one_bit(tmp_path: Path) -> None:
    path = save(tmp_path / "m.tif", np.eye(Y, X, dtype=bool), metadata=None)
    labels = read_labels(path)
    assert labels.array.dtype == np.uint8 and np.array_equal(labels.array[..., 0], np.eye(X, Y))


def test_imagej_axes_and_unit(tmp_path: Path) -> None:
    array = counting((Z, 2, Y, X), np.uint16)
    path = save(tmp_path / "ij.tif", array, metadata={"axes": "ZCYX", "unit": "um", "spacing": 0.7}, **IMAGEJ)
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.array, array.transpose(1, 3, 2, 0))
    np.testing.assert_allclose(volume.grid.spacing, (0.0003, 0.0004, 0.0007), rtol=1e-5)
    assert volume.grid.unit == "mm" and geometry_warnings(path) == []
    relabelled(path)
    for unit in ("micron", "\\u00B5m"):
        save(path, array, metadata={"axes": "ZCYX", "unit": unit, "spacing": 0.7}, **IMAGEJ)
        np.testing.assert_allclose(read_grid(path).spacing, (0.0003, 0.0004, 0.0007), rtol=1e-5)
        relabelled(path)


def test_imagej_micro_sign_as_a_byte(tmp_path: Path) -> None:
    text = b"ImageJ=1.53t\nimages=3\nslices=3\nunit=\xb5m\nspacing=0.7\n"
    options = {"description": text, "metadata": None, "resolution": (5, 5), "photometric": "minisblack"}
    path = save(tmp_path / "ij.tif", counting((Z, Y, X), np.uint8), **options)
    np.testing.assert_allclose(read_grid(path).spacing, (0.0002, 0.0002, 0.0007))
    relabelled(path)


def test_what_is_no_clear_physical_size(tmp_path: Path) -> None:
    array = counting((Z, Y, X), np.uint16)
    cases: list[dict] = [
        {"resolution": (300, 300), "resolutionunit": "INCH"},
        {"metadata": {"axes": "ZYX"}, **IMAGEJ},
        {"metadata": {"axes": "ZYX", "unit": "pixel", "spacing": 1}, **IMAGEJ},
        {"metadata": {"axes": "ZYX", "unit": "inch", "spacing": 1}, **IMAGEJ},
    ]
    for options in cases:
        path = save(tmp_path / "a.tif", array, photometric="minisblack", **options)
        assert read_grid(path).unit == "px" and geometry_warnings(path) == []
        relabelled(path)
    path = save(tmp_path / "a.tif", array, metadata={"axes": "ZYX", "unit": "um"}, **IMAGEJ)
    assert read_grid(path).unit == "px" and "no distance between slices" in geometry_warnings(path)[0]
    flat = save(tmp_path / "f.tif", array[0], metadata={"unit": "um"}, **IMAGEJ)
    np.testing.assert_allclose(read_grid(flat).spacing, (0.0003, 0.0004, 1), rtol=1e-5)
    relabelled(flat)


def test_ome_axes_and_physical_size(tmp_path: Path) -> None:
    array = counting((Z, 2, Y, X), np.uint16)
    sizes = {
        "PhysicalSizeX": 0.325,
        "PhysicalSizeY": 0.1,
        "PhysicalSizeZ": 1200.3,
        "PhysicalSizeZUnit": "nm",
        "PhysicalSizeXUnit": "µm",
    }
    path = save(tmp_path / "o.ome.tif", array, photometric="minisblack", metadata={"axes": "ZCYX", **sizes})
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.array, array.transpose(1, 3, 2, 0))
    np.testing.assert_allclose(volume.grid.spacing, (0.000325, 0.0001, 0.0012003))
    labels = relabelled(path)
    with tifffile.TiffFile(labels) as file:
        assert file.is_ome and file.series[0].axes == "ZYX" and 'PhysicalSizeX="0.325"' in file.ome_metadata
    plain = save(tmp_path / "q.ome.tif", array, photometric="minisblack", metadata={"axes": "ZCYX"})
    assert read_grid(plain).unit == "px"
    relabelled(plain)


@pytest.mark.parametrize(
    ("unit", "mm"), [("Å", 1e-7), ("nm", 1e-6), ("µm", 1e-3), ("mm", 1), ("cm", 10), ("dm", 100), ("pixel", None)]
)
def test_ome_units(tmp_path: Path, unit: str, mm: float | None) -> None:
    sizes: dict[str, Any] = {f"PhysicalSize{a}": size for a, size in zip("XYZ", (0.3, 0.4, 2), strict=True)}
    sizes |= {f"PhysicalSize{a}Unit": unit for a in "XYZ"}
    path = save(tmp_path / "o.ome.tif", counting((Z, Y, X)), photometric="minisblack", metadata={"axes": "ZYX", **sizes})
    np.testing.assert_allclose(read_grid(path).spacing, np.array([0.3, 0.4, 2]) * mm if mm else np.ones(3))
    assert read_grid(path).physical == bool(mm)
    relabelled(path)


@pytest.mark.parametrize(
    "options",
    [
        {"bigtiff": True},
        {"byteorder": ">"},
        {"bigtiff": True, "byteorder": ">", "compression": "lzw"},
        {"compression": "jpeg2000"},
    ],
)
def test_ome_pyramids_give_their_full_resolution(tmp_path: Path, options: dict) -> None:
    compression = {"compression": options.pop("compression", None)}
    for axes, array in (("CZYX", counting((2, Z, 40, 50), np.uint16)), ("ZYXS", counting((Z, 40, 50, 3), np.uint8))):
        tiles: dict[str, Any] = {"tile": (16, 16), "photometric": "rgb" if "S" in axes else "minisblack", **compression}
        with tifffile.TiffWriter(tmp_path / "o.ome.tif", **options) as file:
            file.write(array, subifds=2, metadata={"axes": axes}, **tiles)
            for step in (2, 4):
                smaller = array[:, ::step, ::step] if "S" in axes else array[..., ::step, ::step]
                file.write(smaller, subfiletype=1, **tiles)
        expected = array.transpose([axes.index(a) for a in ("SXYZ" if "S" in axes else "CXYZ")])
        np.testing.assert_array_equal(read_volume(tmp_path / "o.ome.tif").array, expected)
        relabelled(tmp_path / "o.ome.tif")


def ome_xml(planes: list[tuple[str, int, int, int]], own: str, slices: int) -> bytes:
    """OME metadata of two channels; `planes` say in which file, page, slice and channel each lies. A file's UUID is its name."""
    data = "".join(
        f'<TiffData IFD="{page}" FirstZ="{z}" FirstC="{c}" FirstT="0" PlaneCount="1"><UUID FileName="{f}">{f}</UUID></TiffData>'
        for f, page, z, c in planes
    )
    return (
        f'<?xml version="1.0" encoding="UTF-8"?><OME xmlns="{tiff.OME_NAMESPACE}" UUID="{own}"><Image ID="Image:0">'
        f'<Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint16" SizeX="{X}" SizeY="{Y}" SizeZ="{slices}" SizeC="2" '
        'SizeT="1" PhysicalSizeX="0.3" PhysicalSizeY="0.4" PhysicalSizeZ="2"><Channel ID="Channel:0:0" SamplesPerPixel="1"/>'
        f'<Channel ID="Channel:0:1" SamplesPerPixel="1"/>{data}</Pixels></Image></OME>'
    ).encode()


@pytest.mark.parametrize("compression", [None, "zlib", "lzw"])
def test_ome_sets_of_several_files(tmp_path: Path, compression: str | None) -> None:
    array, names = counting((2, Z, Y, X), np.uint16), ["b.ome.tif", "a.ome.tif"]
    planes = [(name, z, z, c) for c, name in enumerate(names) for z in range(Z)]
    files = []
    for name, channel in zip(names, array, strict=True):
        text = ome_xml(planes, name, Z)
        options: dict[str, Any] = {"description": text, "metadata": None, "photometric": "minisblack", "compression": compression}
        files.append(save(tmp_path / name, channel, **options))
    for file in files:
        volume = read_volume(file)
        np.testing.assert_array_equal(volume.array, array.transpose(0, 3, 2, 1))
        np.testing.assert_allclose(volume.grid.spacing, (3e-4, 4e-4, 2e-3))
        assert tiff.set_files(file) == files
    relabelled(files[0])
    if compression:  # then the pixels stand at the end
        files[1].write_bytes(files[1].read_bytes()[:-1])
        with pytest.raises(UnreadableError, match=r"b\.ome\.tif is truncated"):
            read_volume(files[0])
    files[1].unlink()
    with pytest.raises(UnreadableError, match=r"b\.ome\.tif: 3 of the 6 planes .* are missing; bring the other files of its set"):
        read_volume(files[0])
    assert tiff.set_files(files[0]) == files[:1]


def test_planes_that_the_metadata_promise_and_the_file_lacks(tmp_path: Path) -> None:
    # An acquisition that was broken off, and one with planes left out: tifffile fills them with zeros.
    for kept in (range(4), (0, 2, 3, 4)):
        text = ome_xml([("o.ome.tif", page, page % 3, page // 3) for page in kept], "o.ome.tif", 3)
        path = save(
            tmp_path / "o.ome.tif", counting((5, Y, X), np.uint16), description=text, metadata=None, photometric="minisblack"
        )
        with pytest.raises(UnreadableError, match=r"2 of the 6 planes that its metadata state are missing"):
            read_volume(path)


def test_metadata_in_a_companion_file_are_missed(tmp_path: Path) -> None:
    text = f'<OME xmlns="{tiff.OME_NAMESPACE}"><BinaryOnly MetadataFile="o.companion.ome" UUID="urn:uuid:0"/></OME>'.encode()
    path = save(tmp_path / "o.ome.tif", counting((6, Y, X), np.uint16), description=text, metadata=None, photometric="minisblack")
    for function in (read_volume, read_grid):
        with pytest.raises(UnreadableError, match="keeps its metadata in another file"):
            function(path)


def test_tiles_without_data_are_told(tmp_path: Path) -> None:
    path = save(tmp_path / "t.tif", np.ones((40, 50), np.uint8), tile=(16, 16), metadata=None)
    assert geometry_warnings(path) == [] and tiff.set_files(path) == [path]
    with tifffile.TiffFile(path, mode="r+") as file:
        for name in ("TileByteCounts", "TileOffsets"):
            tag = file.pages[0].tags[name]
            tag.overwrite([0, *tag.value[1:]])
    assert read_volume(path).array.min() == 0
    assert "1 of 12 tiles or strips hold no data" in geometry_warnings(path)[0]


@pytest.mark.parametrize("options", [{}, {"tile": (256, 256), "compression": "zlib"}])
def test_no_second_copy_of_a_large_picture(tmp_path: Path, options: dict) -> None:
    for axes, shape, dtype in (("ZYXS", (4, 1024, 1024, 3), np.uint8), ("CZYX", (2, 8, 1024, 512), np.uint16)):
        array = counting(shape, dtype)
        photometric = "rgb" if "S" in axes else "minisblack"
        path = save(tmp_path / "o.ome.tif", array, photometric=photometric, metadata={"axes": axes}, **options)
        tracemalloc.start()
        found = tiff.read(path, False).array
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert found.size == array.size and peak < 1.3 * array.nbytes


@pytest.mark.parametrize(("axes", "shape", "reason"), [("TYX", (6, Y, X), "time series"), ("TZYX", (2, Z, Y, X), "time series")])
def test_series_are_refused(tmp_path: Path, axes: str, shape: tuple[int, ...], reason: str) -> None:
    path = save(tmp_path / "t.tif", counting(shape, np.uint8), imagej=True, metadata={"axes": axes})
    for function in (read_volume, read_grid):
        with pytest.raises(UnreadableError, match=rf"t\.tif is a {reason}"):
            function(path)


def test_strange_files_are_refused(tmp_path: Path) -> None:
    four = save(tmp_path / "four.tif", counting((2, Z, Y, X), np.uint8), photometric="minisblack")
    with pytest.raises(UnreadableError, match="is a 4D file"):
        read_volume(four)
    with tifffile.TiffWriter(tmp_path / "mixed.tif") as file:
        file.write(counting((Y, X), np.uint8), metadata=None)
        file.write(counting((9, 9), np.uint8), metadata=None)
    with pytest.raises(UnreadableError, match="2 pictures of different sizes"):
        read_volume(tmp_path / "mixed.tif")
    with pytest.raises(UnreadableError, match="complex64"):
        read_volume(save(tmp_path / "complex.tif", np.zeros((Y, X), np.complex64)))
    cmyk = save(tmp_path / "cmyk.tif", np.zeros((Y, X, 4), np.uint8), photometric="separated", metadata=None)
    with pytest.raises(UnreadableError, match="colour space"):
        read_volume(cmyk)


@pytest.mark.parametrize("compression", [None, "zlib", "lzw"])
def test_damage_is_unreadable(tmp_path: Path, compression: str | None) -> None:
    with tifffile.TiffWriter(tmp_path / "whole.tif") as file:
        for page in np.random.default_rng(0).integers(0, 99, (Z, 60, 50), np.uint8):
            file.write(page, metadata=None, compression=compression)
    whole, path = (tmp_path / "whole.tif").read_bytes(), tmp_path / "cut.tif"
    for kept in (0, 5, 9, 60, len(whole) // 2, len(whole) - 3000, len(whole) - 1):
        path.write_bytes(whole[:kept])
        with pytest.raises(UnreadableError, match=r"cut\.tif.*intact copy"):
            read_volume(path)


def test_a_size_that_the_file_cannot_hold(tmp_path: Path) -> None:
    path = save(tmp_path / "huge.tif", np.zeros((Y, X), np.uint8), compression="lzw", metadata=None)
    with tifffile.TiffFile(path, mode="r+") as file:
        file.pages[0].tags["ImageWidth"].overwrite(2_000_000_000)
    with pytest.raises(UnreadableError, match="4 x 2000000000 pixels, which its size cannot hold"):
        read_volume(path)
