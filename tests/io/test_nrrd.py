"""NRRD against SimpleITK and pynrrd, and header fields copied word for word."""

from __future__ import annotations

import bz2
import gzip
import re
from pathlib import Path

import nrrd
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from io_phantoms import SHAPE, counting, itk_affine, itk_image, itk_voxels, ras_affine

from medseg.core.errors import UnreadableError
from medseg.core.volume import LabelMap
from medseg.io.formats import geometry_warnings, read_grid, read_labels, read_volume, write_labels

DIRECTIONS = "space directions: (0,1,0) (0,0,2) (3,0,0)\nspace origin: (10,20,30)"


def by_hand(
    path: Path, fields: str, array: np.ndarray | None = None, payload: bytes | None = None, encoding: str = "raw"
) -> Path:
    """An NRRD file of this header text; `path` holds the header alone where the text names a data file."""
    array = counting(dtype="<i2") if array is None else array
    kind = {"i2": "short", "u1": "uchar", "u2": "ushort", "f4": "float"}[array.dtype.str[1:]]
    sizes = " ".join(map(str, array.shape))
    text = f"NRRD0005\n# by hand\ntype: {kind}\ndimension: {array.ndim}\nsizes: {sizes}\nendian: little\nencoding: {encoding}\n"
    text += f"{fields}\n\n"
    path.write_bytes(text.encode() + (array.tobytes(order="F") if payload is None else payload))
    return path


@pytest.mark.parametrize("compressed", [False, True])
def test_reads_what_simpleitk_writes(tmp_path: Path, compressed: bool) -> None:
    path = tmp_path / "scan.nrrd"
    sitk.WriteImage(itk_image(), str(path), compressed)
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.array[0], counting())
    np.testing.assert_allclose(volume.grid.affine, ras_affine(), atol=1e-12)
    assert volume.grid.unit == "mm" and geometry_warnings(path) == []


@pytest.mark.parametrize(
    ("space", "signs"),
    [
        ("left-posterior-superior", (-1, -1, 1)),
        ("LPS", (-1, -1, 1)),
        ("right-anterior-superior", (1, 1, 1)),
        ("RAS", (1, 1, 1)),
        ("left-anterior-superior", (-1, 1, 1)),
        ("LAS", (-1, 1, 1)),
    ],
)
def test_each_space_becomes_ras(tmp_path: Path, space: str, signs: tuple[int, int, int]) -> None:
    path = by_hand(tmp_path / "scan.nrrd", f"space: {space}\n{DIRECTIONS}")
    own = np.array([[0, 0, 3, 10], [1, 0, 0, 20], [0, 2, 0, 30], [0, 0, 0, 1]], float)
    np.testing.assert_array_equal(read_grid(path).affine, np.diag([*signs, 1]) @ own)
    np.testing.assert_allclose(read_grid(path).affine, itk_affine(path))


def test_spacings_without_a_space_lie_as_itk_lays_them(tmp_path: Path) -> None:
    path = by_hand(tmp_path / "scan.nrrd", "spacings: 0.5 2 3")
    assert read_grid(path).spacing == (0.5, 2, 3) and read_grid(path).physical
    np.testing.assert_array_equal(read_grid(path).affine, itk_affine(path))
    assert "no anatomical space" in geometry_warnings(path)[0]
    path = by_hand(tmp_path / "mins.nrrd", "spacings: 0.5 2 3\naxis mins: 4 5 6\ncenters: cell cell node")
    np.testing.assert_allclose(read_grid(path).affine[:3, 3], [-4.25, -6, 6])


def test_without_spacings_there_is_no_physical_size(tmp_path: Path) -> None:
    path = by_hand(tmp_path / "scan.nrrd", "kinds: domain domain domain")
    assert read_grid(path).unit == "px" and geometry_warnings(path) == []


def test_micrometres_become_millimetres(tmp_path: Path) -> None:
    for unit in ('"µm" "µm" "µm"', '"um" "um" "um"', '"microns" "microns" "microns"'):
        path = by_hand(tmp_path / "scan.nrrd", f"space: RAS\n{DIRECTIONS}\nspace units: {unit}")
        np.testing.assert_allclose(read_grid(path).spacing, (0.001, 0.002, 0.003))
        np.testing.assert_allclose(read_grid(path).affine[:3, 3], (0.01, 0.02, 0.03))
    path = by_hand(tmp_path / "scan.nrrd", f'space: RAS\n{DIRECTIONS}\nspace units: "mm" "mm" "furlong"')
    with pytest.raises(UnreadableError, match="furlong"):
        read_grid(path)


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("bz2", bz2.compress), ("raw", bytes)])
def test_encodings_and_detached_headers(tmp_path: Path, encoding: str, pack: type) -> None:
    array = counting(dtype="<i2")
    payload = pack(array.tobytes(order="F"))
    path = by_hand(tmp_path / "scan.nrrd", "byte skip: 0", array, payload, encoding)
    np.testing.assert_array_equal(read_volume(path).array[0], array)
    (tmp_path / "voxels.bin").write_bytes(payload)
    path = by_hand(tmp_path / "scan.nhdr", f"{DIRECTIONS}\ndata file: voxels.bin", array, b"", encoding)
    np.testing.assert_array_equal(read_volume(path).array[0], array)
    np.testing.assert_array_equal(nrrd.read(str(path))[0], array)


def test_text_line_skip_and_byte_skip(tmp_path: Path) -> None:
    array = counting(dtype="<i2")
    text = " ".join(map(str, array.ravel(order="F"))).encode()
    np.testing.assert_array_equal(read_volume(by_hand(tmp_path / "a.nrrd", "", array, text, "ascii")).array[0], array)
    raw = array.tobytes(order="F")
    path = by_hand(tmp_path / "b.nrrd", "line skip: 2\nbyte skip: 3", array, b"one\ntwo\nabc" + raw)
    np.testing.assert_array_equal(read_volume(path).array[0], array)
    np.testing.assert_array_equal(read_volume(by_hand(tmp_path / "c.nrrd", "byte skip: -1", array, b"xyz" + raw)).array[0], array)


def test_colour_axes_are_channels_and_alpha_is_dropped(tmp_path: Path) -> None:
    for kind, values in (("RGB-color", 3), ("RGBA-color", 4), ("vector", 3)):
        array = counting((values, *SHAPE), "u1")
        path = by_hand(
            tmp_path / "scan.nrrd",
            f"kinds: {kind} domain domain domain\nspace: RAS\nspace directions: none (1,0,0) (0,2,0) (0,0,3)",
            array,
        )
        np.testing.assert_array_equal(read_volume(path).array, array[:3])
        grid = read_grid(path)
        write_labels(tmp_path / "labels.nrrd", LabelMap(counting(dtype=np.uint8), grid), path)
        assert np.array_equal(read_grid(tmp_path / "labels.nrrd").affine, grid.affine)
        assert "none" not in nrrd.read_header(str(tmp_path / "labels.nrrd"))["kinds"]


@pytest.mark.parametrize(
    ("shape", "fields"),
    [
        ((*SHAPE, 2), ""),
        ((2, *SHAPE), "kinds: list domain domain domain"),
        ((5, *SHAPE), "kinds: vector domain domain domain"),
        ((*SHAPE, 6), "kinds: domain domain domain time"),
    ],
)
def test_series_and_vectors_are_refused(tmp_path: Path, shape: tuple[int, ...], fields: str) -> None:
    path = by_hand(tmp_path / "series.nrrd", fields, counting(shape, "<i2"))
    with pytest.raises(UnreadableError, match=r"series\.nrrd (is a 4D file|holds vectors of 5)"):
        read_volume(path)


def test_flat_pictures(tmp_path: Path) -> None:
    array = counting((5, 4), "<i2")
    path = by_hand(tmp_path / "flat.nrrd", "space dimension: 2\nspace directions: (0.5,0) (0,2)\nspace origin: (1,2)", array)
    assert read_volume(path).array.shape == (1, 5, 4, 1) and read_grid(path).spacing == (0.5, 2, 1)
    sloping = by_hand(tmp_path / "sloping.nrrd", "space: RAS\nspace directions: (0,0.5,0) (0,0,2)\nspace origin: (7,8,9)", array)
    assert read_grid(sloping).spacing == (0.5, 2, 1) and read_grid(sloping).affine[:, 2].tolist() == [1, 0, 0, 0]
    for scan in (path, sloping):
        labels = LabelMap(counting((5, 4, 1), np.uint8), read_grid(scan))
        write_labels(tmp_path / "labels.nrrd", labels, scan)
        assert nrrd.read(str(tmp_path / "labels.nrrd"))[0].shape == (5, 4)
        assert np.array_equal(read_labels(tmp_path / "labels.nrrd").array, labels.array)


def test_labels_copy_the_fields_word_for_word(tmp_path: Path) -> None:
    scan, path = tmp_path / "scan.nrrd", tmp_path / "labels.nrrd"
    sitk.WriteImage(itk_image(), str(scan))
    labels = LabelMap(counting(dtype=np.uint16) * 500, read_grid(scan))
    write_labels(path, labels, scan)
    for field in ("space", "space directions", "space origin"):
        line = re.compile(rf"^{field}: .*$".encode(), re.MULTILINE)
        assert line.findall(scan.read_bytes()) == line.findall(path.read_bytes()) != []
    assert read_grid(path).affine.tobytes() == read_grid(scan).affine.tobytes()
    np.testing.assert_array_equal(itk_voxels(path), labels.array)
    np.testing.assert_array_equal(itk_affine(path), itk_affine(scan))


def test_texts_about_the_patient_are_not_copied(tmp_path: Path) -> None:
    scan = by_hand(tmp_path / "scan.nrrd", f"space: LPS\n{DIRECTIONS}\ncontent: a name\nPatientName:=a name")
    write_labels(tmp_path / "labels.nrrd", LabelMap(counting(dtype=np.uint8), read_grid(scan)), scan)
    assert b"a name" not in (tmp_path / "labels.nrrd").read_bytes()


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ("space: RAS\nspace directions: (1,0,0) (1,0,0) (0,0,1)", "singular"),
        ("space: RAS\nspace directions: (1,0,0) (0,1,0)", "one value for each axis"),
        ("kinds: domain domain", "one value for each axis"),
        ("spacings: 1 nan 1", "vectors of 4"),
        ("no separator", "damaged"),
        ("data file: gone.raw", "does not exist; bring that file too"),
    ],
)
def test_nonsense_headers_are_unreadable(tmp_path: Path, fields: str, reason: str) -> None:
    with pytest.raises(UnreadableError, match=reason):
        read_volume(by_hand(tmp_path / "scan.nrrd", fields))


def test_damage_is_unreadable(tmp_path: Path) -> None:
    scan, path = tmp_path / "scan.nrrd", tmp_path / "cut.nrrd"
    sitk.WriteImage(itk_image(counting((20, 20, 20))), str(scan), True)
    whole = scan.read_bytes()
    for kept in (0, 3, 50, whole.index(b"\n\n") + 2, len(whole) // 2, len(whole) - 8, len(whole) - 1):
        path.write_bytes(whole[:kept])
        with pytest.raises(UnreadableError, match=r"cut\.nrrd.*(intact copy|write the file again)"):
            read_volume(path)
