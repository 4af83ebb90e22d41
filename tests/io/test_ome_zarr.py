"""OME-Zarr: versions, axes, units, folders of several pictures, lost and damaged chunks, label images."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from io_phantoms import counting

from medseg.core.errors import OutputError, UnreadableError
from medseg.core.folders import folder_sha256
from medseg.io.ome_zarr import read, read_grid, warnings, write

Z, Y, X = 3, 4, 5
TYPES = {"t": "time", "c": "channel"}
VERSIONS = ["0.4", "0.5"]
MICRO = {"z": "micrometer", "y": "micrometer", "x": "nanometer"}


def axes_of(letters: str, units: dict[str, str] | None = None) -> list[dict[str, str]]:
    units = units or {}
    return [{"name": a, "type": TYPES.get(a, "space")} | ({"unit": units[a]} if a in units else {}) for a in letters]


def scaled(scale: list[float], translation: list[float] | None = None) -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = [{"type": "scale", "scale": scale}]
    return steps + ([{"type": "translation", "translation": translation}] if translation else [])


def put_attributes(group: Path, version: str, attributes: dict[str, Any]) -> None:
    """A Zarr group with OME metadata, in the form of its version."""
    group.mkdir(parents=True, exist_ok=True)
    if version == "0.5":
        whole = {"zarr_format": 3, "node_type": "group", "attributes": {"ome": {"version": version, **attributes}}}
        (group / "zarr.json").write_text(json.dumps(whole))
    else:
        (group / ".zgroup").write_text('{"zarr_format": 2}')
        (group / ".zattrs").write_text(json.dumps(attributes))


def ngff(
    group: Path,
    array: np.ndarray,
    letters: str = "zyx",
    version: str = "0.4",
    steps: list[dict[str, Any]] | None = None,
    units: dict[str, str] | None = MICRO,
    outer: list[dict[str, Any]] | None = None,
    levels: int = 1,
    **options: Any,
) -> Path:
    """An OME-Zarr image as the specification describes it."""
    steps = steps or scaled([1.0] * array.ndim)
    multiscale: dict[str, Any] = {"axes": axes_of(letters, units), "datasets": []}
    if version != "0.5":
        multiscale["version"] = version
    for level in range(levels):
        multiscale["datasets"].append({"path": str(level), "coordinateTransformations": steps})
    if outer:
        multiscale["coordinateTransformations"] = outer
    put_attributes(group, version, {"multiscales": [multiscale]})
    if version != "0.5":
        options["chunk_key_encoding"] = {"name": "v2", "separator": "/"}
    for level in range(levels):
        smaller = array[..., :: 2**level, :: 2**level] if level else array
        zarr.create_array(
            str(group / str(level)),
            shape=smaller.shape,
            dtype=smaller.dtype,
            zarr_format=3 if version == "0.5" else 2,
            **{"chunks": (2,) * array.ndim, "fill_value": 0, **options},
        )[...] = smaller
    return group


def relabelled(scan: Path, dtype: type = np.uint16) -> Path:
    """A label image written like `scan`, its grid, voxels and repeatability checked."""
    grid = read_grid(scan)
    labels, path = counting(grid.shape, dtype), scan.with_name("labels.ome.zarr")
    write(labels, scan, path)
    first = folder_sha256(path)
    write(labels, scan, path)
    assert folder_sha256(path) == first
    assert sorted(p.name for p in scan.parent.iterdir() if p.name.startswith(".")) == []
    back = read(path, True)
    assert np.array_equal(back.array[0], labels) and back.array.dtype == dtype
    assert back.grid.affine.tobytes() == grid.affine.tobytes() and back.grid.physical == grid.physical
    return path


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("dtype", ["u1", "u2", ">u2", "i2", "i4", "f4", "f8"])
def test_voxels_lie_where_they_should(tmp_path: Path, version: str, dtype: str) -> None:
    array = counting((Z, Y, X), np.dtype(dtype))
    path = ngff(tmp_path / "a.zarr", array, version=version)
    found = read(path, False).array
    np.testing.assert_array_equal(found[0], array.transpose(2, 1, 0))
    assert found.dtype == np.dtype(dtype).newbyteorder("=") and found.flags.c_contiguous
    relabelled(path)


@pytest.mark.parametrize(
    ("letters", "shape", "to_cxyz"),
    [
        ("yx", (Y, X), (None, 1, 0, None)),
        ("cyx", (2, Y, X), (0, 2, 1, None)),
        ("czyx", (2, Z, Y, X), (0, 3, 2, 1)),
        ("tczyx", (1, 2, Z, Y, X), (1, 4, 3, 2)),
        ("tczyx", (1, 1, 1, Y, X), (1, 4, 3, 2)),
        ("xyzc", (X, Y, Z, 2), (3, 0, 1, 2)),
        ("czxy", (2, Z, X, Y), (0, 2, 3, 1)),
    ],
)
@pytest.mark.parametrize("version", VERSIONS)
def test_axes(tmp_path: Path, letters: str, shape: tuple[int, ...], to_cxyz: tuple[int | None, ...], version: str) -> None:
    array = counting(shape, np.uint16)
    path = ngff(tmp_path / "a.zarr", array, letters, version)
    expected = array[(None,) * to_cxyz.count(None)]
    missing = iter(range(to_cxyz.count(None)))
    order = [next(missing) if i is None else i + to_cxyz.count(None) for i in to_cxyz]
    order += [i for i in range(expected.ndim) if i not in order]
    expected = expected.transpose(order)
    np.testing.assert_array_equal(read(path, False).array, expected.reshape(expected.shape[:4]))
    relabelled(path)


def test_axes_of_older_versions(tmp_path: Path) -> None:
    array = counting((1, 2, Z, Y, X), np.uint8)
    for version in ("0.1", "0.2", "0.3"):
        path = ngff(tmp_path / f"{version}.zarr", array, "tczyx", version)
        metadata = json.loads((path / ".zattrs").read_text())
        multiscale = metadata["multiscales"][0]
        multiscale["datasets"] = [{"path": "0"}]
        multiscale["axes"] = ["t", "c", "z", "y", "x"]
        if version != "0.3":
            del multiscale["axes"]
        (path / ".zattrs").write_text(json.dumps(metadata))
        np.testing.assert_array_equal(read(path, False).array, array[0].transpose(0, 3, 2, 1))
        assert not read_grid(path).physical and warnings(path) == []
        labels = relabelled(path)
        assert json.loads((labels / ".zattrs").read_text())["multiscales"][0]["version"] == "0.4"


@pytest.mark.parametrize("version", VERSIONS)
def test_scale_translation_and_units(tmp_path: Path, version: str) -> None:
    # Of all levels together: the first voxel lies at 2 * 0.1 + 7, 2 * -3 + 0, 10 * 500 + 0.
    steps, outer = scaled([0.7, 0.3, 300.1], [0.1, -3, 500]), scaled([2, 2, 10], [7, 0, 0])
    path = ngff(tmp_path / "a.zarr", counting((Z, Y, X), np.uint8), "zyx", version, steps, outer=outer)
    grid = read_grid(path)
    np.testing.assert_allclose(grid.affine, [[3.001e-3, 0, 0, 5e-3], [0, 6e-4, 0, -6e-3], [0, 0, 1.4e-3, 7.2e-3], [0, 0, 0, 1]])
    assert grid.physical and warnings(path) == []
    labels = relabelled(path)
    metadata = json.loads((labels / ("zarr.json" if version == "0.5" else ".zattrs")).read_text())
    metadata = metadata["attributes"]["ome"] if version == "0.5" else metadata
    assert metadata["multiscales"][0]["axes"] == axes_of("zyx", MICRO) and "image-label" in metadata
    assert metadata["multiscales"][0]["datasets"][0]["coordinateTransformations"] == steps
    assert metadata["multiscales"][0]["coordinateTransformations"] == outer


def test_units_of_length(tmp_path: Path) -> None:
    for unit, mm in (("angstrom", 1e-7), ("millimeter", 1), ("Meter", 1e3), ("µm", 1e-3), ("picometer", 1e-9)):
        units = dict.fromkeys("zyx", unit)
        path = ngff(tmp_path / f"{unit}.zarr", counting((Z, Y, X), np.uint8), steps=scaled([3, 2, 1.5]), units=units)
        np.testing.assert_allclose(read_grid(path).spacing, np.array([1.5, 2, 3]) * mm)


def test_what_is_no_clear_physical_size(tmp_path: Path) -> None:
    array = counting((Z, Y, X), np.uint8)
    for number, units in enumerate((None, {"y": "micrometer", "x": "micrometer"}, dict.fromkeys("zyx", "parsec"))):
        path = ngff(tmp_path / f"{number}.zarr", array, steps=scaled([3, 2, 1.5], [1, 1, 1]), units=units)
        assert not read_grid(path).physical and read_grid(path).spacing == (1, 1, 1)
        assert "lengths are counted in pixels" in warnings(path)[0]
        relabelled(path)
    plain = ngff(tmp_path / "plain.zarr", array, units=None)
    assert not read_grid(plain).physical and warnings(plain) == []
    flat = ngff(tmp_path / "flat.zarr", array[:1], steps=scaled([9, 2, 3], [4, 5, 6]), units=MICRO)
    np.testing.assert_allclose(np.diag(read_grid(flat).affine), [3e-6, 2e-3, 1, 1])
    relabelled(flat)


def test_other_transformations_are_refused(tmp_path: Path) -> None:
    for number, step in enumerate(({"type": "scale", "path": "s"}, {"type": "scale", "scale": [1, 2]}, {"type": "rotation"})):
        path = ngff(tmp_path / f"{number}.zarr", counting((Z, Y, X), np.uint8), steps=[*scaled([1, 1, 1]), step])
        with pytest.raises(UnreadableError, match=r"its transformation .* is not supported"):
            read(path, False)
    flat = ngff(tmp_path / "zero.zarr", counting((Z, Y, X), np.uint8), steps=scaled([1, 0, 1]))
    with pytest.raises(UnreadableError, match="singular"):
        read_grid(flat)


def test_the_full_resolution_alone_is_read_and_labels_have_the_levels(tmp_path: Path) -> None:
    array = counting((Z, 9, 7), np.uint16)
    path = ngff(tmp_path / "a.zarr", array, steps=scaled([1, 0.5, 0.5]), levels=3)
    put_attributes(path / "labels", "0.4", {"labels": ["cells"]})
    ngff(path / "labels/cells", array)
    np.testing.assert_array_equal(read(path, False).array[0], array.transpose(2, 1, 0))
    labels = relabelled(path)
    levels = [zarr.open_array(str(labels / str(level)), mode="r")[...] for level in range(3)]
    np.testing.assert_array_equal(levels[2], levels[0][:, ::4, ::4])
    datasets = json.loads((labels / ".zattrs").read_text())["multiscales"][0]["datasets"]
    assert [d["coordinateTransformations"][0]["scale"] for d in datasets] == [[1, 0.5, 0.5], [1, 1, 1], [1, 2, 2]]
    with pytest.raises(UnreadableError, match="holds no OME-Zarr image"):
        read(path / "labels", False)


@pytest.mark.parametrize("version", VERSIONS)
def test_folders_of_pictures(tmp_path: Path, version: str) -> None:
    array = counting((Z, Y, X), np.uint8)
    plate, well, series = tmp_path / "plate.zarr", tmp_path / "plate.zarr/B/3", tmp_path / "series.zarr"
    put_attributes(plate, version, {"plate": {"wells": [{"path": "B/3"}]}})
    put_attributes(well, version, {"well": {"images": [{"path": "0"}]}})
    ngff(well / "0", array, version=version)
    put_attributes(series, version, {"bioformats2raw.layout": 3})
    ngff(series / "0", array, version=version)
    for path in (plate, well, series):
        np.testing.assert_array_equal(read(path, False).array[0], array.transpose(2, 1, 0))
        assert read_grid(path) == read_grid(well / "0") and warnings(path) == []
        relabelled(path)
    put_attributes(well, version, {"well": {"images": [{"path": "0"}, {"path": "1"}]}})
    ngff(well / "1", array, version=version)
    with pytest.raises(UnreadableError, match=r"plate.zarr holds 2 pictures \(B/3/0, B/3/1\); give one of them"):
        read(plate, False)
    for name in ("1", "2", "10"):
        ngff(series / name, array, version=version)
    with pytest.raises(UnreadableError, match=r"series.zarr holds 4 pictures \(0, 1, 2, ...\); give one of them"):
        read_grid(series)
    put_attributes(series / "OME", version, {"series": ["2"]})
    assert read(series, False).array.shape == (1, X, Y, Z)


def test_what_is_no_picture_is_refused(tmp_path: Path) -> None:
    array = counting((2, 1, Z, Y, X), np.uint8)
    series = ngff(tmp_path / "t.zarr", array, "tczyx")
    for function in (read_grid, warnings, lambda path: read(path, False)):
        with pytest.raises(UnreadableError, match=r"t\.zarr is a time series \(axes t 2, c 1, z 3, y 4, x 5\)"):
            function(series)
    with pytest.raises(UnreadableError, match="is a 5D picture"):
        read(ngff(tmp_path / "a.zarr", array, "aczyx"), False)
    with pytest.raises(UnreadableError, match="is a 2D picture"):
        read(ngff(tmp_path / "n.zarr", array[0, 0, 0], "yxc"), False)
    with pytest.raises(UnreadableError, match="holds complex64 pixels"):
        read(ngff(tmp_path / "c.zarr", array[0, 0].astype(np.complex64)), False)
    with pytest.raises(UnreadableError, match=r"is of NGFF version 0\.6"):
        read(ngff(tmp_path / "v.zarr", array[0, 0], version="0.6"), False)
    zarr.create_array(str(tmp_path / "plain.zarr"), shape=(2, 2), dtype="u1")
    (tmp_path / "empty.zarr").mkdir()
    for name in ("plain.zarr", "empty.zarr"):
        with pytest.raises(UnreadableError, match=f"{name} holds no OME-Zarr image"):
            read(tmp_path / name, False)


def test_chunks_that_no_empty_region_explains_are_lost(tmp_path: Path) -> None:
    array = counting((4, 6, 6), np.uint8) + 1
    array[:, 2:4, 2:4] = 0
    sparse = ngff(tmp_path / "sparse.zarr", array)  # zarr leaves empty chunks out
    np.testing.assert_array_equal(read(sparse, False).array[0], array.transpose(2, 1, 0))
    assert "2 of 18 chunks have no file and read as 0" in warnings(sparse)[0]
    full = ngff(tmp_path / "full.zarr", array, config={"write_empty_chunks": True})
    assert warnings(full) == []
    (full / "0/1/2/0").unlink()
    assert "1 of 18 chunks have no file" in warnings(full)[0]
    with pytest.raises(UnreadableError, match=r"full\.zarr: 1 of 18 chunk files of its picture are lost; copy it again"):
        read(full, False)
    bare = ngff(tmp_path / "bare.zarr", np.zeros((Z, Y, X), np.uint8))
    assert not read(bare, True).array.any()
    with pytest.raises(UnreadableError, match="holds none of the 12 chunk files"):
        read(bare, False)


def test_a_lost_chunk_of_a_label_image_is_found(tmp_path: Path) -> None:
    scan = ngff(tmp_path / "a.zarr", counting((40, 8, 8), np.uint8))
    labels = np.zeros((8, 8, 40), np.uint8)
    labels[..., 33:] = 1
    write(labels, scan, tmp_path / "l.ome.zarr")
    (tmp_path / "l.ome.zarr/0/1/0/0").unlink()
    with pytest.raises(UnreadableError, match="1 of 2 chunk files"):
        read(tmp_path / "l.ome.zarr", True)


COMPRESSORS: dict[str, tuple[str, Any]] = {
    "none v2": ("0.4", None),
    "none v3": ("0.5", None),
    "blosc v2": ("0.4", {"id": "blosc", "cname": "lz4", "clevel": 5, "shuffle": 1}),
    "blosc v3": ("0.5", zarr.codecs.BloscCodec(cname="lz4")),
    "zstd v2": ("0.4", {"id": "zstd", "level": 3}),
    "zstd v3": ("0.5", zarr.codecs.ZstdCodec()),
    "zlib v2": ("0.4", {"id": "zlib", "level": 3}),
    "gzip v3": ("0.5", zarr.codecs.GzipCodec()),
}


@pytest.mark.parametrize(("name", "sharded"), [(n, s) for n in COMPRESSORS for s in (False, True) if not (s and "v2" in n)])
def test_truncated_chunks_are_unreadable(tmp_path: Path, name: str, sharded: bool) -> None:
    version, compressor = COMPRESSORS[name]
    options: dict[str, Any] = {"chunks": (8, 8, 8), **({"shards": (8, 16, 16)} if sharded else {})}
    array = np.random.default_rng(0).integers(1, 2**16, (8, 32, 32), np.uint16)
    path = ngff(tmp_path / "a.zarr", array, version=version, compressors=compressor, **options)
    np.testing.assert_array_equal(read(path, False).array[0], array.transpose(2, 1, 0))
    chunk = path / "0" / ("c/0/1/1" if version == "0.5" else "0/1/1")
    whole = chunk.read_bytes()
    for kept in (0, 1, 17, len(whole) // 2, len(whole) - 1):
        chunk.write_bytes(whole[:kept])
        with pytest.raises(UnreadableError, match=r"truncated|damaged in the chunks at z 0 to 8, y 0 to 32, x 0 to 32"):
            read(path, False)


def test_no_second_copy_of_a_large_volume(tmp_path: Path) -> None:
    array = counting((96, 1024, 1024), np.uint16)  # 192 MiB
    path = ngff(tmp_path / "a.zarr", array, version="0.5", chunks=(32, 256, 256), compressors=None)
    corner = array[5, 6, 7], array[-1, -1, -1]
    size = array.nbytes
    del array
    tracemalloc.start()
    found = read(path, False).array
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (found[0, 7, 6, 5], found[0, -1, -1, -1]) == corner
    assert peak < 1.6 * size


def test_a_label_image_replaces_the_old_one_whole(tmp_path: Path) -> None:
    scan, path = ngff(tmp_path / "a.zarr", counting((Z, Y, X), np.uint8)), tmp_path / "out/l.ome.zarr"
    write(np.ones((X, Y, Z), np.uint8), scan, path)
    (path / "foreign").write_text("of the old one")
    write(np.full((X, Y, Z), 2, np.uint8), scan, path)
    assert read(path, True).array.min() == 2 and not (path / "foreign").exists()
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_the_scan_is_never_overwritten(tmp_path: Path) -> None:
    scan = ngff(tmp_path / "a.zarr", counting((Z, Y, X), np.uint8))
    for target in (scan, tmp_path):
        with pytest.raises(OutputError, match="holds the scan itself"):
            write(np.ones((X, Y, Z), np.uint8), scan, target)
    assert read(scan, False).array.max() == X * Y * Z - 1


def test_nothing_of_the_scans_texts_reaches_a_label_image(tmp_path: Path) -> None:
    scan = ngff(tmp_path / "a.zarr", counting((Z, Y, X), np.uint8))
    metadata = json.loads((scan / ".zattrs").read_text())
    metadata |= {"omero": {"name": "Planted Name"}, "creator": "Planted Name"}
    metadata["multiscales"][0] |= {"name": "Planted Name", "metadata": {"patient": "Planted Name"}}
    metadata["multiscales"][0]["axes"][0]["note"] = "Planted Name"
    (scan / ".zattrs").write_text(json.dumps(metadata))
    labels = relabelled(scan)
    assert all(b"Planted" not in file.read_bytes() for file in labels.rglob("*") if file.is_file())
