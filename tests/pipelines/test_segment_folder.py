"""`medseg segment`: a folder of scans of every format, good and bad, cut short and gone on with."""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import os
import pickle
from pathlib import Path

import nibabel
import nrrd
import numpy as np
import pytest
import SimpleITK
import tifffile
from phantoms import LPS_AFFINE, volume_case
from PIL import Image
from tiny_models import SCHEME, write_tiny_model

from medseg.core.errors import ConfigError, MedsegError, ModelFileError, OutputError, UnreadableError
from medseg.core.labels import LabelScheme, Structure
from medseg.inference import job as steps
from medseg.inference.config import SegmentConfig
from medseg.inference.records import TABLES
from medseg.inference.scans import Scan
from medseg.io.formats import read_grid, read_labels
from pipelines.segment import segment

COLUMNS = (
    "case_id,input,output,status,reason,seconds,input_sha256,model_sha256,options_sha256,output_sha256,windows,windows_skipped"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model") / "model.medseg")


@pytest.fixture(scope="module")
def picture_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    scheme = LabelScheme(structures=[Structure(name="nucleus", id=1)])
    folder = tmp_path_factory.mktemp("model")
    return write_tiny_model(folder / "m.medseg", scheme=scheme, patch_voxels=(32, 32, 1), physical=False, spacing=None)


def write_scan(path: Path, seed: int = 0, affine: np.ndarray = LPS_AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = volume_case(seed)[0]
    if path.name.endswith((".nii", ".nii.gz")):
        nibabel.save(nibabel.Nifti1Image(array, affine), path)
    elif path.suffix == ".nrrd":
        header = {"space": "left-posterior-superior", "space directions": np.diag([1.0, 1.5, 2.0]), "space origin": [-30, 12, 7]}
        nrrd.write(str(path), array, header)
    else:
        image = SimpleITK.GetImageFromArray(array.T)
        image.SetSpacing((1.0, 1.5, 2.0))
        SimpleITK.WriteImage(image, str(path))
    return path


def rows(output: Path) -> dict[str, dict[str, str]]:
    text = (output / "predictions.csv").read_text()
    assert text.splitlines()[0] == COLUMNS
    return {row["case_id"]: row for row in csv.DictReader(text.splitlines())}


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def times(output: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in output.iterdir() if path.is_file() and path.name not in TABLES}


def test_every_volume_format_comes_back_in_its_own(tmp_path: Path, model: Path) -> None:
    scans, masks = tmp_path / "scans", tmp_path / "masks"
    turned = LPS_AFFINE[:, [2, 0, 1, 3]]  # another axis order
    write_scan(scans / "turned.nii.gz", affine=turned)
    for name in ("a.nii", "b.nii.gz", "sub/c.nrrd", "d.mha", "e.mhd"):
        write_scan(scans / name)
    assert segment(model, scans, masks) == 0
    table = rows(masks)
    assert {name: row["output"] for name, row in table.items()} == {
        "a": "a.nii.gz", "b": "b.nii.gz", "c": "c.nrrd", "d": "d.mha", "e": "e.mha", "turned": "turned.nii.gz",
    }  # fmt: skip
    for row in table.values():
        scan, mask = scans / row["input"], masks / row["output"]
        np.testing.assert_array_equal(read_grid(mask).affine, read_grid(scan).affine)
        assert set(np.unique(read_labels(mask).array)) <= {0, 3, 300}
        assert (row["status"], row["reason"]) == ("done", "")
        assert (row["output_sha256"], row["model_sha256"]) == (sha256(mask), sha256(model))
        assert float(row["seconds"]) > 0
    assert table["c"]["input"] == "sub/c.nrrd"
    assert table["a"]["input_sha256"] == sha256(scans / "a.nii")
    # The same voxels in every format give the same answer.
    first = read_labels(masks / "a.nii.gz").array
    assert len(np.unique(first)) > 1
    np.testing.assert_array_equal(first, read_labels(masks / "c.nrrd").array)
    # Names are written once, ids as the scheme says, and nothing temporary is left.
    assert SCHEME.names == ["liver", "tumour"]
    assert [path.name for path in masks.rglob("*") if path.name.startswith(".")] == [".claims"]


def test_pictures(tmp_path: Path, picture_model: Path) -> None:
    scans, masks = tmp_path / "scans", tmp_path / "masks"
    scans.mkdir()
    grey = np.random.default_rng(0).integers(0, 255, (40, 50), np.uint8)
    Image.fromarray(grey).save(scans / "a.png")
    Image.fromarray(grey).save(scans / "b.jpg")
    tifffile.imwrite(scans / "c.tif", grey.astype(np.uint16) * 9)
    Image.fromarray(np.stack([grey, grey // 2, grey // 3], -1)).save(scans / "colour.png")
    assert segment(picture_model, scans, masks) == 1
    table = rows(masks)
    assert [table[name]["output"] for name in ("a", "b", "c", "colour")] == ["a.png", "b.png", "c.tif", ""]
    assert "3 channels where the plan expects 1" in table["colour"]["reason"]
    assert np.asarray(Image.open(masks / "a.png")).shape == (40, 50)
    np.testing.assert_array_equal(read_labels(masks / "a.png").array, read_labels(masks / "c.tif").array)


def test_bad_scans_are_rows_and_the_others_go_on(tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scans, masks = tmp_path / "scans", tmp_path / "masks"
    for name in ("good", "truncated", "nan", "constant", "four_d"):
        write_scan(scans / f"{name}.nii.gz")
    whole = (scans / "truncated.nii.gz").read_bytes()
    (scans / "truncated.nii.gz").write_bytes(whole[: len(whole) // 2])
    array = volume_case(0)[0]
    array[0, 0, 0] = np.nan
    nibabel.save(nibabel.Nifti1Image(array, LPS_AFFINE), scans / "nan.nii.gz")
    nibabel.save(nibabel.Nifti1Image(np.ones((24, 20, 16), np.float32), LPS_AFFINE), scans / "constant.nii.gz")
    nibabel.save(nibabel.Nifti1Image(np.ones((8, 8, 8, 3), np.float32), LPS_AFFINE), scans / "four_d.nii.gz")
    (scans / "empty.nii.gz").write_bytes(b"")
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(scans / "no_size.png")
    write_scan(scans / "twin.nii.gz")
    write_scan(scans / "twin.mha")
    (scans / "notes.txt").write_text("hello")
    assert segment(model, scans, masks) == 1
    with open(masks / "predictions.csv") as file:
        table = list(csv.DictReader(file))
    assert [row["case_id"] for row in table] == [
        "constant", "empty", "four_d", "good", "nan", "no_size", "notes.txt", "truncated", "twin", "twin",
    ]  # fmt: skip
    reasons = {row["case_id"]: row["reason"] for row in table if row["status"] == "failed"}
    assert set(reasons) == {"constant", "empty", "four_d", "nan", "no_size", "truncated", "twin"}
    for name, text in (
        ("constant", "constant is constant"),
        ("empty", "empty.nii.gz"),
        ("nan", "1 NaN or infinite voxels"),
        ("no_size", "no physical size"),
        ("truncated", "truncated.nii.gz"),
        ("twin", "two scans would have the same name"),
    ):
        assert text in reasons[name]
    assert all("unexpected" not in reason and "\n" not in reason for reason in reasons.values())
    assert {row["status"] for row in table if row["case_id"] == "notes.txt"} == {"skipped"}
    assert sorted(path.name for path in masks.iterdir()) == ["good.nii.gz", "predictions.csv", "qc.csv", "records", "volumes.csv"]
    said = capsys.readouterr().err
    assert "segment: 1 done, 8 failed, 1 skipped" in said
    assert "nan holds 1 NaN" in said


def test_skipped_files_alone_do_not_fail(tmp_path: Path, model: Path) -> None:
    write_scan(tmp_path / "scans/a.nii.gz")
    (tmp_path / "scans/readme.md").write_text("hello")
    assert segment(model, tmp_path / "scans", tmp_path / "masks") == 0


def test_what_is_done_is_not_done_again(tmp_path: Path, model: Path) -> None:
    scans, masks = tmp_path / "scans", tmp_path / "masks"
    for number, name in enumerate("abcd"):
        write_scan(scans / f"{name}.nii.gz", seed=number)
    assert segment(model, scans, masks) == 0
    before, table = times(masks), (masks / "predictions.csv").read_text()
    assert segment(model, scans, masks) == 0
    assert times(masks) == before
    assert (masks / "predictions.csv").read_text() == table
    # A changed scan, an altered mask, a lost mask and a damaged record are made again; their neighbours are not.
    write_scan(scans / "a.nii.gz", seed=9)
    (masks / "b.nii.gz").write_bytes((masks / "a.nii.gz").read_bytes())
    (masks / "c.nii.gz").unlink()
    assert segment(model, scans, masks) == 0
    after = times(masks)
    assert [name for name in "abcd" if after[f"{name}.nii.gz"] != before[f"{name}.nii.gz"]] == ["a", "b", "c"]
    assert rows(masks)["b"] == {row["case_id"]: row for row in csv.DictReader(table.splitlines())}["b"] | {
        "seconds": rows(masks)["b"]["seconds"]
    }
    (masks / "records/d.json").write_text("{")
    assert segment(model, scans, masks) == 0
    assert times(masks)["d.nii.gz"] != before["d.nii.gz"]


def test_other_options_or_another_model_make_all_again(tmp_path: Path, model: Path) -> None:
    scans, masks = tmp_path / "scans", tmp_path / "masks"
    write_scan(scans / "a.nii.gz")
    segment(model, scans, masks)
    first = rows(masks)["a"]
    segment(model, scans, masks, batch=1, workers=1, device="cpu")
    assert rows(masks)["a"] == first  # speed settings change nothing
    segment(model, scans, masks, mirror=True)
    second = rows(masks)["a"]
    assert second["options_sha256"] != first["options_sha256"]
    other = write_tiny_model(tmp_path / "other.medseg", seed=5)
    segment(other, scans, masks, mirror=True)
    third = rows(masks)["a"]
    assert third["model_sha256"] == sha256(other)
    assert third["output_sha256"] not in (first["output_sha256"], second["output_sha256"])
    before = times(masks)
    segment(other, scans, masks, mirror=True, redo=True)
    assert times(masks) != before
    assert rows(masks)["a"]["output_sha256"] == third["output_sha256"]


def test_a_mask_does_not_outlive_its_scan_turning_bad(tmp_path: Path, model: Path) -> None:
    scans, masks = tmp_path / "scans", tmp_path / "masks"
    write_scan(scans / "a.nii.gz")
    write_scan(scans / "b.nii.gz")
    assert segment(model, scans, masks) == 0
    (scans / "a.nii.gz").write_bytes(b"\x1f\x8b broken")
    write_scan(scans / "b.mha")
    assert segment(model, scans, masks) == 1
    assert not times(masks)
    write_scan(scans / "a.nii.gz")
    (scans / "b.mha").unlink()
    assert segment(model, scans, masks) == 0
    assert sorted(times(masks)) == ["a.nii.gz", "b.nii.gz"]


def test_a_fault_of_ours_is_a_row_with_its_trace_in_the_record(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_scan(tmp_path / "scans/a.nii.gz")

    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(steps, "ask_network", broken)  # a scan alone is done in this process
    assert segment(model, tmp_path / "scans", tmp_path / "masks") == 1
    assert rows(tmp_path / "masks")["a"]["reason"] == "unexpected ZeroDivisionError: division by zero"
    assert "Traceback" in json.loads((tmp_path / "masks/records/a.json").read_text())["trace"]


def test_a_full_disk_stops_and_leaves_no_half_file(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scans, masks = tmp_path / "scans", tmp_path / "masks"
    write_scan(scans / "b.nii.gz")
    replace = os.replace

    def full(source: Path, target: Path) -> None:
        if Path(target).name == "b.nii.gz":
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    with monkeypatch.context() as patch, pytest.raises(OutputError, match=r"b\.nii\.gz cannot be written .*free space") as caught:
        patch.setattr(os, "replace", full)
        segment(model, scans, masks)
    assert caught.value.exit_code == 2
    assert sorted(path.name for path in masks.rglob("*") if path.is_file()) == ["gate"]
    assert segment(model, scans, masks) == 0


def test_the_work_can_be_sent_to_another_process(tmp_path: Path, model: Path) -> None:
    scan = Scan("a", (write_scan(tmp_path / "scans/a.nii.gz"),))
    job = steps.SegmentScan((model,), sha256(model), "x", SegmentConfig(), tmp_path / "scans", tmp_path / "masks", threads=1)
    job, work = pickle.loads(pickle.dumps(job)), pickle.loads(pickle.dumps(scan))
    for step in job.steps:
        work = step(work)
    assert pickle.loads(pickle.dumps(work)) == work
    assert work.output_sha256 == sha256(tmp_path / "masks/a.nii.gz")


@pytest.mark.slow
def test_workers_give_the_same_masks(tmp_path: Path, model: Path) -> None:
    scans = tmp_path / "scans"
    for number, name in enumerate("ab"):
        write_scan(scans / f"{name}.nii.gz", seed=number)
    (scans / "bad.nii.gz").write_bytes(b"no")
    assert segment(model, scans, tmp_path / "one", workers=1) == 1
    assert segment(model, scans, tmp_path / "two", workers=2) == 1
    for name in "ab":
        one, two = (read_labels(tmp_path / folder / f"{name}.nii.gz").array for folder in ("one", "two"))
        assert (one == two).mean() > 0.999  # the number of threads may round a voxel on a border the other way


def test_channels_of_a_model_with_several(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "m.medseg", channels=["flair", "t1"], n_channels=2)
    scans, masks = tmp_path / "scans", tmp_path / "masks"
    for name in ("p_flair", "p_t1", "q_0000", "q_0001", "r_t1", "s_flair"):
        write_scan(scans / f"{name}.nii.gz", seed=len(name))
    write_scan(scans / "s_t1.nii.gz", affine=np.diag([1.0, 1.5, 2.5, 1.0]))
    assert segment(model, scans, masks) == 1
    table = rows(masks)
    assert {name: row["status"] for name, row in table.items()} == {"p": "done", "q": "done", "r": "failed", "s": "failed"}
    assert table["p"]["input"] == "p_flair.nii.gz;p_t1.nii.gz"
    assert "channel flair is missing" in table["r"]["reason"]
    assert "do not lie on the same voxels" in table["s"]["reason"]
    assert (masks / "p.nii.gz").is_file()


def test_a_single_scan(tmp_path: Path, model: Path) -> None:
    write_scan(tmp_path / "a.nii.gz")
    write_scan(tmp_path / "b.nii.gz")
    assert segment(model, tmp_path / "a.nii.gz", tmp_path / "masks") == 0
    assert list(rows(tmp_path / "masks")) == ["a"]


def test_stated_spacing(tmp_path: Path, model: Path) -> None:
    (tmp_path / "scans").mkdir()
    tifffile.imwrite(tmp_path / "scans/stack.tif", volume_case(0)[0].T, photometric="minisblack")
    assert segment(model, tmp_path / "scans", tmp_path / "masks") == 1
    assert "no physical size" in rows(tmp_path / "masks")["stack"]["reason"]
    assert segment(model, tmp_path / "scans", tmp_path / "masks", spacing_mm=(1.0, 1.5, 2.0)) == 0
    assert read_labels(tmp_path / "masks/stack.tif").array.shape == (24, 20, 16)


@pytest.mark.parametrize(
    ("place", "output", "error", "sentence"),
    [
        ("scans", "scans", ConfigError, "lies in the input folder"),
        ("scans", "scans/masks", ConfigError, "lies in the input folder"),
        ("scans/a.nii.gz", "scans", ConfigError, "lies in the input folder"),
        ("none", "masks", UnreadableError, "does not exist"),
        ("empty", "masks", UnreadableError, "holds no scan"),
        ("scans", "scans/a.nii.gz", ConfigError, "lies in the input folder"),
        ("scans", "model.medseg", ConfigError, "is a file; give a folder"),
    ],
)
def test_bad_calls(tmp_path: Path, place: str, output: str, error: type[MedsegError], sentence: str) -> None:
    model = write_tiny_model(tmp_path / "model.medseg")
    scan = write_scan(tmp_path / "scans/a.nii.gz")
    (tmp_path / "empty").mkdir()
    before = sha256(scan), sha256(model)
    with pytest.raises(error, match=sentence):
        segment(model, tmp_path / place, tmp_path / output)
    assert (sha256(scan), sha256(model)) == before
    assert not (tmp_path / "masks").exists()


def test_bad_models_and_options(tmp_path: Path, model: Path) -> None:
    write_scan(tmp_path / "scans/a.nii.gz")
    with pytest.raises(ModelFileError, match="does not exist"):
        segment(tmp_path / "none.medseg", tmp_path / "scans", tmp_path / "masks")
    with pytest.raises(ModelFileError, match="not a medseg model"):
        segment(tmp_path / "scans/a.nii.gz", tmp_path / "scans", tmp_path / "masks")
    with pytest.raises(ConfigError, match="segment: `overlap`"):
        segment(model, tmp_path / "scans", tmp_path / "masks", overlap=1.5)
    with pytest.raises(ConfigError, match="segment: `device`"):
        segment(model, tmp_path / "scans", tmp_path / "masks", device="tpu")


def test_a_mask_never_replaces_a_scan(tmp_path: Path, model: Path) -> None:
    scan = write_scan(tmp_path / "out/scans/a.nii.gz")
    link = tmp_path / "in"
    link.mkdir()
    (link / "a.nii.gz").symlink_to(scan)
    before = sha256(scan)
    with pytest.raises(ConfigError, match="would replace the scan"):
        segment(model, link, scan.parent)
    assert sha256(scan) == before


def test_a_broken_link_is_a_failed_row(tmp_path: Path, model: Path) -> None:
    write_scan(tmp_path / "scans/a.nii.gz")
    (tmp_path / "scans/b.nii.gz").symlink_to(tmp_path / "none.nii.gz")
    (tmp_path / "scans/c.nii.gz").symlink_to(tmp_path / "scans/c.nii.gz")
    assert segment(model, tmp_path / "scans", tmp_path / "masks") == 1
    table = rows(tmp_path / "masks")
    assert {name: row["status"] for name, row in table.items()} == {"a": "done", "b": "failed", "c": "failed"}
    assert "is a link to a file that does not exist" in table["b"]["reason"]


def test_a_scan_that_moved_is_not_made_again_and_is_shown_where_it_is(tmp_path: Path, model: Path) -> None:
    scan, masks = write_scan(tmp_path / "scans/a.nii.gz"), tmp_path / "masks"
    segment(model, tmp_path / "scans", masks)
    before = times(masks)
    (tmp_path / "scans/sub").mkdir()
    scan.rename(tmp_path / "scans/sub/a.nii.gz")
    segment(model, tmp_path / "scans", masks)
    assert times(masks) == before
    assert rows(masks)["a"]["input"] == "sub/a.nii.gz"


@pytest.mark.parametrize("spacing", [(1.0, 0.0, 2.0), (1.0, float("nan"), 2.0), (-1.0, 1.0, 2.0)])
def test_a_spacing_that_is_none_is_refused(tmp_path: Path, model: Path, spacing: tuple[float, float, float]) -> None:
    with pytest.raises(ConfigError, match=r"segment: `spacing_mm\.[01]`: Input should be"):
        segment(model, tmp_path, tmp_path / "masks", spacing_mm=spacing)


def test_what_cannot_be_removed_is_one_sentence(tmp_path: Path, model: Path) -> None:
    write_scan(tmp_path / "scans/a.nii.gz")
    (tmp_path / "masks/predictions.csv").mkdir(parents=True)
    with pytest.raises(OutputError, match=r"predictions\.csv cannot be removed"):
        segment(model, tmp_path / "scans", tmp_path / "masks")
