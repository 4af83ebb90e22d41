"""`medseg segment` on what microscopes write: stacks, OME-TIFF and OME-Zarr in, label pictures of the same axes and sizes out."""

from __future__ import annotations

import csv
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import tifffile
import torch
import zarr
from phantoms import LPS_AFFINE, ball
from PIL import Image
from test_ome_zarr import ngff, scaled
from tiny_models import tiny_bundle, write_tiny_model

from medseg.core.folders import folder_sha256
from medseg.core.labels import LabelScheme, Structure
from medseg.inference.bundle import write_bundle
from medseg.inference.records import TABLES
from medseg.io.formats import read_labels
from medseg.io.tiff import OME_NAMESPACE
from pipelines.segment import segment

SHAPE = (30, 26, 12)  # X, Y, Z
SIZE_UM = (0.5, 0.4, 2.0)
SCHEME = LabelScheme(structures=[Structure(name="nucleus", id=1), Structure(name="spot", id=700)])
ML_OF_VOXEL = 0.5 * 0.4 * 2 / 1e12
CASES = ("plain", "set_a", "v4", "v5")


def cells() -> np.ndarray:
    """(Z, Y, X) uint16: two bright balls on noise."""
    picture = np.random.default_rng(7).normal(300, 20, SHAPE)
    picture += 400 * ball(SHAPE, (9, 9, 5), 4, SIZE_UM) + 800 * ball(SHAPE, (21, 17, 7), 3, SIZE_UM)
    return np.ascontiguousarray(picture.astype(np.uint16).T)


def ome_xml(files: dict[str, range], own: str) -> bytes:
    """OME metadata of a stack whose slices lie in several files; a file's UUID is its name."""
    planes = "".join(
        f'<TiffData IFD="{page}" FirstZ="{z}" FirstC="0" FirstT="0" PlaneCount="1"><UUID FileName="{f}">{f}</UUID></TiffData>'
        for f, slices in files.items()
        for page, z in enumerate(slices)
    )
    sizes = " ".join(f'Size{a}="{n}" PhysicalSize{a}="{um}"' for a, n, um in zip("XYZ", SHAPE, SIZE_UM, strict=True))
    return (
        f'<?xml version="1.0" encoding="UTF-8"?><OME xmlns="{OME_NAMESPACE}" UUID="{own}"><Image ID="Image:0">'
        f'<Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint16" {sizes} SizeC="1" SizeT="1">'
        f'<Channel ID="Channel:0:0" SamplesPerPixel="1"/>{planes}</Pixels></Image></OME>'
    ).encode()


def write_all(folder: Path) -> None:
    """The same cells as one OME-TIFF, as a set of two, and as OME-Zarr of two versions."""
    folder.mkdir()
    sizes = {f"PhysicalSize{a}": um for a, um in zip("XYZ", SIZE_UM, strict=True)}
    tifffile.imwrite(folder / "plain.ome.tif", cells(), photometric="minisblack", metadata={"axes": "ZYX", **sizes})
    files = {"set_a.ome.tif": range(5), "set_b.ome.tif": range(5, SHAPE[2])}
    for name, slices in files.items():
        options: dict[str, Any] = {"description": ome_xml(files, name), "metadata": None, "photometric": "minisblack"}
        tifffile.imwrite(folder / name, cells()[slices.start : slices.stop], **options)
    units = dict.fromkeys("zyx", "micrometer")
    for name, version in (("v4.ome.zarr", "0.4"), ("deep/v5.zarr", "0.5")):
        ngff(folder / name, cells(), version=version, steps=scaled([*SIZE_UM[::-1]]), units=units, levels=2, chunks=(6, 13, 15))


def rows(output: Path, name: str = "predictions.csv") -> dict[str, dict[str, str]]:
    return {row["case_id"]: row for row in csv.DictReader((output / name).read_text().splitlines())}


def whole(output: Path) -> dict[str, Any]:
    """Content and time of every output."""
    paths = [path for path in output.iterdir() if path.name not in (*TABLES, "records")]
    return {p.name: (folder_sha256(p) if p.is_dir() else p.read_bytes(), p.stat().st_mtime_ns) for p in paths}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in millimetres."""
    path = tmp_path_factory.mktemp("model") / "model.medseg"
    return write_tiny_model(path, scheme=SCHEME, spacing=tuple(um / 1000 for um in (0.5, 0.5, 2.0)), seed=3)


@pytest.fixture(scope="module")
def pixel_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.medseg"
    return write_tiny_model(path, scheme=SCHEME, physical=False, spacing=None, seed=3)


def check_ome_tiff(path: Path) -> np.ndarray:
    """(X, Y, Z) labels by tifffile, and the axes and sizes that its XML states."""
    with tifffile.TiffFile(path) as file:
        assert file.is_ome and file.series[0].axes == "ZYX"
        (pixels,) = [e for e in ElementTree.fromstring(file.ome_metadata).iter() if e.tag.endswith("}Pixels")]
        assert [float(pixels.get(f"PhysicalSize{a}")) for a in "XYZ"] == list(SIZE_UM)
        assert {pixels.get(f"PhysicalSize{a}Unit", "µm") for a in "XYZ"} == {"µm"}
        return file.asarray().T


def check_ome_zarr(path: Path, version: str) -> np.ndarray:
    """The same by zarr."""
    group = zarr.open_group(str(path), mode="r")
    attributes = dict(group.attrs)
    assert group.metadata.zarr_format == (3 if version == "0.5" else 2)
    attributes = attributes["ome"] if version == "0.5" else attributes
    (multiscale,) = attributes["multiscales"]
    assert "image-label" in attributes
    assert multiscale["axes"] == [{"name": a, "type": "space", "unit": "micrometer"} for a in "zyx"]
    scales = [level["coordinateTransformations"][0]["scale"] for level in multiscale["datasets"]]
    assert scales == [[2.0, 0.4, 0.5], [2.0, 0.8, 1.0]]
    first, second = (np.asarray(group[level["path"]]) for level in multiscale["datasets"])
    np.testing.assert_array_equal(second, first[:, ::2, ::2])
    return first.T


def test_pictures_of_microscopes(tmp_path: Path, model: Path) -> None:
    scans, output = tmp_path / "scans", tmp_path / "out"
    write_all(scans)
    assert segment(model, scans, output) == 0
    table = rows(output)
    assert set(table) == set(CASES)  # the set is one case
    assert {row["output"] for row in table.values()} == {"plain.ome.tif", "set_a.ome.tif", "v4.ome.zarr", "v5.ome.zarr"}
    assert table["v5"]["input"] == "deep/v5.zarr"
    labels = check_ome_tiff(output / "plain.ome.tif")
    assert labels.shape == SHAPE and set(np.unique(labels)) <= {0, 1, 700} and labels.dtype == np.uint16
    assert len(np.unique(labels)) > 1
    for found in (
        check_ome_tiff(output / "set_a.ome.tif"),
        check_ome_zarr(output / "v4.ome.zarr", "0.4"),
        check_ome_zarr(output / "v5.ome.zarr", "0.5"),
    ):
        np.testing.assert_array_equal(found, labels)
    for row in rows(output, "volumes.csv").values():
        assert float(row["nucleus_ml"]) == pytest.approx((labels == 1).sum() * ML_OF_VOXEL, rel=1e-5)
        assert float(row["spot_ml"]) == pytest.approx((labels == 700).sum() * ML_OF_VOXEL, rel=1e-5)
    first = whole(output)
    # A changed chunk of a scan, a changed second file of a set: done again. An altered chunk of an output: made again.
    change_chunk(scans / "v4.ome.zarr/0")
    change_last_byte(scans / "set_b.ome.tif")
    change_last_byte(max((output / "v5.ome.zarr/0/c").rglob("*"), key=lambda path: path.is_file()))
    assert segment(model, scans, output) == 0
    second = whole(output)
    assert {name for name in first if first[name][1] != second[name][1]} == {"set_a.ome.tif", "v4.ome.zarr", "v5.ome.zarr"}
    assert second["v5.ome.zarr"][0] == first["v5.ome.zarr"][0]
    assert rows(output)["v4"]["input_sha256"] != table["v4"]["input_sha256"]
    assert {name for name in CASES if rows(output)[name] == table[name]} == {"plain"}


def change_chunk(array: Path) -> None:
    picture = zarr.open_array(str(array), mode="r+")
    picture[0, 0, 0] = picture[0, 0, 0] + 1


def change_last_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_a_stack_of_pages_in_pixels(tmp_path: Path, pixel_model: Path, model: Path) -> None:
    scans = tmp_path / "scans"
    scans.mkdir()
    tifffile.imwrite(scans / "stack.tif", cells(), photometric="minisblack", metadata=None)
    assert segment(pixel_model, scans, tmp_path / "out") == 0
    with tifffile.TiffFile(tmp_path / "out/stack.tif") as file:
        assert len(file.pages) == SHAPE[2]
        labels = file.asarray().T
    assert labels.shape == SHAPE and len(np.unique(labels)) > 1
    np.testing.assert_array_equal(read_labels(tmp_path / "out/stack.tif").array, labels)
    assert rows(tmp_path / "out", "volumes.csv") == {
        "stack": {"case_id": "stack", "nucleus_px": f"{(labels == 1).sum()}", "spot_px": f"{(labels == 700).sum():g}"}
    }
    assert segment(model, scans, tmp_path / "mm") == 1
    assert "no physical size" in rows(tmp_path / "mm")["stack"]["reason"]
    assert segment(model, scans, tmp_path / "mm", spacing_mm=tuple(um / 1000 for um in SIZE_UM)) == 0


def test_the_file_that_is_missing_from_a_set_is_told(tmp_path: Path, model: Path) -> None:
    write_all(tmp_path / "all")
    (tmp_path / "scans").mkdir()
    shutil.move(tmp_path / "all/set_a.ome.tif", tmp_path / "scans")
    assert segment(model, tmp_path / "scans", tmp_path / "out") == 1
    assert "7 of the 12 planes" in rows(tmp_path / "out")["set_a"]["reason"]


def test_a_picture_given_as_a_folder(tmp_path: Path, model: Path) -> None:
    write_all(tmp_path / "all")
    scan = tmp_path / "all/deep/v5.zarr"
    before = folder_sha256(scan)
    assert segment(model, scan, tmp_path / "out") == 0
    assert rows(tmp_path / "out")["v5"]["input"] == "v5.zarr"
    assert folder_sha256(scan) == before
    damaged = sorted(path for path in (scan / "0/c").rglob("*") if path.is_file())[0]
    damaged.write_bytes(damaged.read_bytes()[:-5])
    assert segment(model, scan, tmp_path / "out") == 1
    assert "damaged" in rows(tmp_path / "out")["v5"]["reason"] or "truncated" in rows(tmp_path / "out")["v5"]["reason"]
    assert not (tmp_path / "out/v5.ome.zarr").exists()  # a mask does not outlive its scan


def write_sure_model(path: Path, **changes: Any) -> Path:
    """A model that says `nucleus` wherever it looks, and looks at the box that is not 0."""
    bundle = tiny_bundle(scheme=SCHEME, crop_nonzero=True, **changes)
    weight, bias = (values for name, values in bundle.weights[0].items() if "heads.0." in name)
    weight.zero_()
    bias[:] = torch.tensor([0.0, 9, 0])
    write_bundle(path, bundle)
    return path


def boxed(shape: tuple[int, ...], *sides: slice) -> np.ndarray:
    """Noise in a box on nothing."""
    picture = np.zeros(shape, np.uint8)
    picture[sides] = np.random.default_rng(0).integers(1, 255, picture[sides].shape)
    return picture


def test_volumes_in_ml_in_mm2_and_in_pixels(tmp_path: Path) -> None:
    flat = boxed((40, 50), slice(4, 24), slice(10, 40))  # 20 rows of 30
    for kind in ("ml", "mm2", "px"):
        (tmp_path / kind).mkdir()
    solid = boxed((24, 20, 16), slice(5, 15), slice(6, 14), slice(3, 9))  # 10 x 8 x 6 voxels of 3 mm3
    nibabel.save(nibabel.Nifti1Image(solid, LPS_AFFINE), tmp_path / "ml/a.nii.gz")
    sizes = {"PhysicalSizeX": 500.0, "PhysicalSizeY": 400.0}  # um
    tifffile.imwrite(tmp_path / "mm2/a.ome.tif", flat, photometric="minisblack", metadata={"axes": "YX", **sizes})
    Image.fromarray(flat).save(tmp_path / "px/a.png")
    planar = {"patch_voxels": (16, 16, 1), "flips": []}
    models = {
        "ml": write_sure_model(tmp_path / "ml.medseg"),
        "mm2": write_sure_model(tmp_path / "mm2.medseg", spacing=(0.5, 0.4, 1.0), **planar),
        "px": write_sure_model(tmp_path / "px.medseg", spacing=None, physical=False, **planar),
    }
    for kind, volume in (("ml", "1.44"), ("mm2", "120"), ("px", "600")):
        output = tmp_path / f"{kind} out"
        assert segment(models[kind], tmp_path / kind, output) == 0
        assert rows(output, "volumes.csv") == {"a": {"case_id": "a", f"nucleus_{kind}": volume, f"spot_{kind}": "0"}}
