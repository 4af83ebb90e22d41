"""`medseg segment` on what a hospital exports: which files become which rows, and that nobody is named who should not be."""

from __future__ import annotations

import csv
import gzip
import os
import re
import shutil
import stat
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from derived_phantoms import PLANTED, check_standard, real_series
from dicom_phantoms import affine, ct, enhanced, only, slice_of, write
from phantoms import LPS_AFFINE, volume_case
from pydicom import config, uid
from pydicom.fileset import FileSet
from test_dicom_seg import by_dcmqi
from test_dicom_seg import by_hand as segments_of
from test_rtstruct import by_hand as contours_of
from tiny_models import SCHEME, write_tiny_model

from medseg.core.errors import ConfigError, UnreadableError
from medseg.inference.masks import Form
from medseg.inference.pseudonyms import COLUMNS
from medseg.io.derived import MadeBy
from medseg.io.dicom_seg import encode_seg
from medseg.io.formats import read_labels
from medseg.io.rtstruct import encode_rtstruct
from pipelines.segment import segment

ROOT = Path(__file__).resolve().parents[2]
SIZE = (7, 6, 5)
SHEAR_MM = 0.6  # from slice to slice: a gantry tilt of 13 degrees
BYTES = PLANTED.lower().encode()
PSEUDONYM = re.compile(r"[0-9a-f]{10}-[0-9a-f]{10}")
ALIAS = re.compile(r"file-[0-9a-f]{10}")

SEG_NUMBER, RTSTRUCT_NUMBER = 1001, 2001
# Series number: status and words of the reason.
EXPECTED = {
    1: ("done", ""),
    2: ("skipped", "a localizer, no scan"),
    3: ("skipped", "a secondary capture"),
    4: ("skipped", "a structured report"),
    5: ("done", ""),  # enhanced, of another study
    6: ("done", ""),  # headers that libraries complain of
    7: ("failed", "1 of its slices is missing"),
    8: ("failed", "1 of its 5 files cannot be used: one is truncated"),
    9: ("failed", "gantry tilt"),
    11: ("done", ""),  # copied from a disc with a DICOMDIR
    12: ("failed", "holds no pixels, or is cut off before them"),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, where settings of the user lie too."""
    folder = tmp_path_factory.mktemp("work")
    write_tiny_model(folder / "model.medseg")
    return folder


@pytest.fixture(autouse=True)
def own_settings(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in settings_in(place).items():
        monkeypatch.setenv(name, value)


def settings_in(folder: Path) -> dict[str, str]:
    return {"HOME": str(folder / "home"), "XDG_CONFIG_HOME": str(folder / "home/settings")}


def named(patient: str, series: int, study: int = 1, **values: Any) -> dict[str, Any]:
    """The elements that say whose and which a series is, names in every place where one can stand."""
    return {
        "PatientName": f"{PLANTED}^{patient}",
        "PatientID": f"{PLANTED}-{patient}",
        "IssuerOfPatientID": "Hospital",
        "OtherPatientNames": f"{PLANTED}^Born",
        "InstitutionName": f"{PLANTED} clinic",
        "ReferringPhysicianName": PLANTED,
        "StudyDescription": f"CT of {PLANTED}",
        "SeriesDescription": f"{PLANTED} thorax",
        "ImageComments": PLANTED,
        "StudyInstanceUID": f"1.2.3.{study}.{ord(patient[0])}",
        "SeriesInstanceUID": f"1.2.3.9.{series}",
        "SeriesNumber": series,
        "SOPInstanceUID": lambda k: f"1.2.3.9.{series}.{k + 1}",
        **values,
    }


def of_slice(values: dict[str, Any], k: int = 0) -> dict[str, Any]:
    return {keyword: value(k) if callable(value) else value for keyword, value in values.items()}


def no_pixels(path: Path, kind: str, **values: Any) -> None:
    data = slice_of(np.zeros((2, 2), np.uint16), 0, SOPClassUID=kind, **of_slice(values), Rows=None, Columns=None)
    del data.PixelData
    write(path, data)


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2000, SIZE).astype(np.uint16)


def export(folder: Path) -> Path:
    """A tree as a hospital's archive writes it, with folders and files called after patients."""
    ada, bob, cyd = folder / f"{PLANTED}_ADA", folder / f"{PLANTED}^BOB", folder / "DISC"
    for path in ct(ada / "2021-01-01/CT", noise(1), **named("ADA", 1)):
        path.rename(path.with_suffix(".dcm"))
    ct(ada / "2021-01-01/scout", noise(2), **named("ADA", 2, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]))
    ct(ada / "2021-01-01/screen", noise(3)[:, :, :1], **named("ADA", 3, SOPClassUID=uid.SecondaryCaptureImageStorage))
    no_pixels(ada / "2021-01-01/SR", uid.BasicTextSRStorage, **named("ADA", 4, Modality="SR"))
    enhanced(ada / f"2022-02-02/{PLANTED}.dcm", noise(5), **of_slice(named("ADA", 5, study=2)))
    strange = {"PatientBirthDate": PLANTED, "StudyDate": PLANTED, "Modality": PLANTED, "PatientAge": PLANTED}
    strange |= {"PatientName": f"{PLANTED}^A\\{PLANTED}=" * 9, "SpecificCharacterSet": PLANTED, "EchoTime": "7777777"}
    with config.disable_value_validation(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for path in ct(bob / "strange", noise(6), **(named("BOB", 6) | strange)):
            path.write_bytes(path.read_bytes().replace(b"7777777 ", BYTES.upper() + b" "))
    ct(bob / "gap", noise(7), **named("BOB", 7))[2].unlink()
    cut = ct(bob / "cut", noise(8), **named("BOB", 8))[1]
    cut.write_bytes(cut.read_bytes()[:-9])
    tilted = {"turn": np.eye(3), "ImagePositionPatient": lambda k: ["0", f"{SHEAR_MM * k:.1f}", f"{2.5 * k}"]}
    ct(bob / "tilt", noise(9), **named("BOB", 9, **tilted))
    half = ct(bob / "half", noise(12)[:, :, :1], **named("BOB", 12))[0]
    half.write_bytes(half.read_bytes()[: half.read_bytes().index(b"\x28\x00\x10\x00")])  # behind the names
    (bob / f"{PLANTED}.dcm").write_bytes(bytes(128) + b"DICM" + f"{PLANTED} no elements".encode() * 9)
    labels = np.zeros(SIZE, np.uint16)
    labels[2:5, 1:4, 1:3] = 3
    made_by = MadeBy("tiny", "ab" * 32, "medseg 0")
    (ada / "2021-01-01/seg.dcm").write_bytes(encode_seg(labels, only(ada / "2021-01-01/CT"), SCHEME, made_by))
    (ada / "2021-01-01/rt.dcm").write_bytes(encode_rtstruct(labels, only(ada / "2021-01-01/CT"), SCHEME, made_by))
    disc(folder, cyd)
    (ada / f"{PLANTED}.pdf").write_bytes(b"%PDF-1.4 " + BYTES)
    (bob / f"{PLANTED}.txt").write_text(PLANTED)
    for path in (bob / "converted.nii.gz", ada / "broken.nii.gz", ada / "twin.nii.gz", bob / "twin.nii"):
        nibabel.save(nibabel.Nifti1Image(volume_case(3)[0], LPS_AFFINE), path)
    (ada / "broken.nii.gz").write_bytes((ada / "broken.nii.gz").read_bytes()[:999])
    (bob / "lost.nii.gz").symlink_to(folder / PLANTED / "lost.nii.gz")
    return folder


def disc(folder: Path, target: Path) -> None:
    """A disc as a radiology hands it out: files of eight letters without extension, and a DICOMDIR."""
    about = {"StudyDate": "20210101", "StudyTime": "120000", "StudyID": "1", "AccessionNumber": "1"}
    files = FileSet()
    for path in ct(folder / "temporary", noise(11), **named("CYD", 11, **about)):
        files.add(path)
    files.write(target)
    files._stage["t"].cleanup()  # it leaves that to the end of the process, and complains
    shutil.rmtree(folder / "temporary")


def medseg(place: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    environment = os.environ | settings_in(place) | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pipelines.cli", "segment", place / "model.medseg", *arguments]
    return subprocess.run([str(word) for word in command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


def table(output: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((output / "predictions.csv").read_text().splitlines()))


def contents(path: Path) -> bytes:
    raw = path.read_bytes()
    return gzip.decompress(raw) if path.suffix == ".gz" else raw


def naming(folder: Path) -> set[str]:
    """Outputs that hold the planted name, in their content or in the path below the folder."""
    paths = list(folder.rglob("*"))
    assert paths
    return {
        path.relative_to(folder).as_posix()
        for path in paths
        if PLANTED.lower() in path.relative_to(folder).as_posix().lower()
        or (path.is_file() and BYTES in contents(path).lower().replace(b"\0", b""))
    }


def without_seconds(output: Path) -> dict[str, bytes]:
    """Every output but for the seconds that it took, by its path."""
    files = {path.relative_to(output).as_posix(): path.read_bytes() for path in output.rglob("*") if path.is_file()}
    files["predictions.csv"] = re.sub(rb",[0-9.]+,(?=[0-9a-f]*,[0-9a-f]{64},)", b",,", files["predictions.csv"])
    return {name: re.sub(rb'"seconds": [0-9.]+', b"", content) for name, content in files.items()}


@pytest.fixture(scope="module")
def pacs(place: Path) -> Path:
    return export(place / "pacs")


@pytest.fixture(scope="module")
def run(place: Path, pacs: Path) -> subprocess.CompletedProcess[str]:
    """The whole tree, with a linkage table."""
    return medseg(place, pacs, place / "out", "--linkage", place / "linkage.csv")


def linked(place: Path) -> dict[str, dict[str, str]]:
    """The rows of the linkage table, by pseudonym."""
    rows = list(csv.DictReader((place / "linkage.csv").read_text().splitlines()))
    assert tuple(rows[0]) == COLUMNS
    return {row["case_id"]: row for row in rows}


def test_a_tree_of_patients_is_a_row_a_series(place: Path, run: subprocess.CompletedProcess[str]) -> None:
    assert run.returncode == 1, run.stderr
    links, found, others = linked(place), {}, []
    for row in table(place / "out"):
        number = links.get(row["case_id"], {}).get("series_number")
        if not number:
            others.append((row["case_id"] if not PSEUDONYM.fullmatch(row["case_id"]) else "", row["status"], row["reason"]))
            continue
        found[int(number)] = row
        assert row["input"] == f"{row['case_id']} series {number}" and PSEUDONYM.fullmatch(row["case_id"])
        assert row["output"] == (f"{row['case_id']}.nii.gz" if row["status"] == "done" else "")
    assert set(found) == {*EXPECTED, SEG_NUMBER, RTSTRUCT_NUMBER}
    for number, (status, words) in EXPECTED.items():
        assert found[number]["status"] == status and words in found[number]["reason"]
    assert "a segmentation (SEG), no scan" in found[SEG_NUMBER]["reason"]
    assert "(contours), no scan" in found[RTSTRUCT_NUMBER]["reason"]
    assert sorted((status, reason.split(";")[0]) for name, status, reason in others if not name or ALIAS.fullmatch(name)) == [
        ("failed", "its file holds no pixels, or is cut off before them"),
        ("skipped", "a DICOMDIR, which only lists files, no scan"),
        ("skipped", "not a scan format that medseg reads"),
        ("skipped", "not a scan format that medseg reads"),
    ]
    # Files that are no DICOM keep their names and lose their folders.
    assert {name: status for name, status, _ in others if name and not ALIAS.fullmatch(name)} == {
        "broken": "failed", "converted": "done", "lost": "failed", "twin": "failed",
    }  # fmt: skip
    assert "5 done, 9 failed, 8 skipped" in run.stderr
    assert "7 scans, at most about" in run.stderr


def test_masks_lie_where_the_slices_do(place: Path, run: subprocess.CompletedProcess[str]) -> None:
    masks = [row["output"] for row in table(place / "out") if row["status"] == "done" and PSEUDONYM.match(row["output"])]
    assert len(masks) == 4
    for name in masks:
        image = nibabel.load(place / "out" / name)
        assert image.shape == SIZE
        np.testing.assert_allclose(image.affine, affine(), atol=1e-5)  # from the phantom's definition


def test_nobody_is_named(place: Path, run: subprocess.CompletedProcess[str]) -> None:
    assert naming(place / "pacs") >= {f"{PLANTED}_ADA", f"{PLANTED}^BOB/strange/00", "DISC/DICOMDIR"}  # the search finds it
    assert naming(place / "out") == set()
    assert BYTES not in (run.stdout + run.stderr).lower().encode()
    assert "Hospital" not in run.stderr and "Traceback" not in run.stderr
    assert naming(place / "home") == set()
    assert not list((place / "home").glob("intel/*"))  # nor does a library tell its makers that somebody uses it


def test_the_linkage_table_alone_tells_who_is_who(place: Path, run: subprocess.CompletedProcess[str]) -> None:
    path = place / "linkage.csv"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert f"{path} tells which pseudonym is which patient" in run.stderr
    for row in linked(place).values():
        if row["series_number"]:
            patient = next(name for name in ("ADA", "BOB", "CYD") if f"-{name}" in row["patient_id"])
            assert row["patient_id"] == f"{PLANTED}-{patient}\\Hospital" and row["patient_name"]
            assert row["input"] == f"{row['case_id']} series {row['series_number']}"
        assert all(Path(file).is_file() for file in row["files"].split(";"))
    first = {row["patient_id"]: case_id.split("-")[0] for case_id, row in linked(place).items()}
    assert all(case_id.startswith(f"{first[row['patient_id']]}-") for case_id, row in linked(place).items())
    assert len(set(first.values())) == len(first) == 5  # three patients, and two files that state none


def test_a_tree_that_moved_is_not_done_again(place: Path, pacs: Path, run: subprocess.CompletedProcess[str]) -> None:
    again, moved = place / "again", place / "elsewhere/export"
    shutil.copytree(place / "out", again)
    shutil.copytree(pacs, moved, symlinks=True)
    masks = {path: path.stat().st_mtime_ns for path in again.glob("*.nii.gz")}
    assert segment(place / "model.medseg", moved, again) == 1
    assert masks == {path: path.stat().st_mtime_ns for path in again.glob("*.nii.gz")}
    assert without_seconds(again) == without_seconds(place / "out")


def test_identifiers_are_kept_where_they_are_asked_for(place: Path, pacs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    output = place / "kept"
    few = place / "few"
    for folder in (f"{PLANTED}_ADA/2021-01-01", f"{PLANTED}^BOB/gap", f"{PLANTED}^BOB/strange"):
        shutil.copytree(pacs / folder, few / folder)
    assert segment(place / "model.medseg", few, output, keep_identifiers=True) == 1
    rows = {row["case_id"]: row for row in table(output)}
    ada, bob = f"{PLANTED}-ADA_Hospital", f"{PLANTED}-BOB_Hospital"
    assert set(rows) == {f"{ada}_{n}" for n in (1, 2, 3, 4, SEG_NUMBER, RTSTRUCT_NUMBER)} | {f"{bob}_6", f"{bob}_7"}
    assert rows[f"{ada}_1"]["output"] == f"{ada}_1.nii.gz"
    assert rows[f"{ada}_1"]["input"].split(";")[0] == f"{PLANTED}_ADA/2021-01-01/CT/00.dcm"
    assert f"{bob}_7: 1 of its slices is missing" in capfd.readouterr().err
    assert {"predictions.csv", "volumes.csv", "qc.csv", f"{ada}_1.nii.gz"} <= naming(output)


@pytest.mark.parametrize("form", ["dicom-seg", "rtstruct"])
def test_dicom_masks_alone_name_their_patient(place: Path, pacs: Path, form: Form, capfd: pytest.CaptureFixture[str]) -> None:
    scans, output = place / f"{form} scans", place / form
    shutil.copytree(pacs / f"{PLANTED}_ADA/2021-01-01/CT", scans / PLANTED)
    if form == "dicom-seg":
        shutil.copy(pacs / f"{PLANTED}^BOB/converted.nii.gz", scans / PLANTED)
        said = medseg(place, scans, output, "--output-format", form)  # the whole command
        code, text = said.returncode, said.stdout + said.stderr
    else:
        code = segment(place / "model.medseg", scans, output, output_format=form)
        text = "".join(capfd.readouterr())
    rows = {row["status"]: row for row in table(output)}
    mask = rows["done"]["output"]
    assert mask == f"{rows['done']['case_id']}{'.seg.dcm' if form == 'dicom-seg' else '.rtstruct.dcm'}"
    assert naming(output) == {mask}
    assert BYTES not in text.lower().encode()
    assert "DICOM masks carry the names and numbers of their patients, as the standard demands" in text
    data = pydicom.dcmread(output / mask)
    assert (data.PatientName, data.PatientID) == (f"{PLANTED}^ADA", f"{PLANTED}-ADA")
    assert data.Modality == ("SEG" if form == "dicom-seg" else "RTSTRUCT")
    assert code == (1 if form == "dicom-seg" else 0)
    if code:
        assert rows["failed"]["reason"].startswith("converted.nii.gz is no DICOM series, so there is nothing for a mask")


def test_errors_that_end_the_command_name_nobody(
    place: Path, pacs: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    model, output = place / "model.medseg", place / "none"
    only_report = place / "reports"
    shutil.copytree(pacs / f"{PLANTED}_ADA/2021-01-01/scout", only_report / PLANTED)
    with pytest.raises(UnreadableError, match=r"reports holds no scan \(a localizer, no scan\); give a scan") as caught:
        segment(model, only_report, output)
    said = [str(caught.value)]
    inside = place / "out/linkage.csv"
    with pytest.raises(ConfigError, match="lies among the outputs, which may be passed on") as caught:
        segment(model, pacs, place / "out", linkage=inside)
    with pytest.raises(ConfigError, match="lies among the scans") as caught:
        segment(model, pacs, output, linkage=pacs / "linkage.csv")
    assert not inside.exists() and not (pacs / "linkage.csv").exists()
    scandir = os.scandir

    def locked(folder: str) -> Any:  # root may read everything
        if PLANTED in str(folder):
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", locked)
        with pytest.raises(UnreadableError, match=r"a folder in .*pacs cannot be read") as caught:
            segment(model, pacs, output)
        said.append(str(caught.value))
        with pytest.raises(UnreadableError, match=f"{PLANTED}.* cannot be read"):
            segment(model, pacs, output, keep_identifiers=True)
    (place / "home/settings/medseg/pseudonyms.key").rename(place / "key")
    (place / "home/settings/medseg/pseudonyms.key").write_text("ff")
    try:
        with pytest.raises(ConfigError, match=r"pseudonyms\.key, the key of the pseudonyms, is damaged") as caught:
            segment(model, pacs, output)
    finally:
        (place / "key").rename(place / "home/settings/medseg/pseudonyms.key")
    said.append(str(caught.value))
    assert PLANTED not in "".join([*said, *capfd.readouterr()])
    assert not output.exists()


def read_back(path: Path, form: Form, scans: Path, folder: Path) -> list[dict[str, np.ndarray]]:
    """The masks of a DICOM object by name, as readers see them that share no code with the writer."""
    check_standard(path)
    data, series = path.read_bytes(), real_series(scans)
    if form == "dicom-seg":
        return [segments_of(data, series), by_dcmqi(data, series, folder)]
    return [contours_of(data, series)]


@pytest.mark.parametrize("name", ["totalseg_ct_mr_small/dicom/example_ct_dicom", "dicom/dcmqi_ct3slice_seg/ct-3slice"])
def test_real_series_in_all_three_forms(real_data: Path, tmp_path: Path, name: str) -> None:
    model = write_tiny_model(tmp_path / "model.medseg", spacing=(25.0, 25.0, 25.0))
    forms: tuple[Form, ...] = ("same", "dicom-seg", "rtstruct")
    outputs = {}
    for form in forms:
        assert segment(model, real_data / name, tmp_path / form, output_format=form) == 0
        (row,) = [row for row in table(tmp_path / form) if row["status"] == "done"]
        outputs[form] = tmp_path / form / row["output"]
    labels = read_labels(outputs["same"]).array
    ids = {structure.name: structure.id for structure in SCHEME.structures}
    assert {3, 300} <= set(np.unique(labels))
    for form in forms[1:]:
        for found in read_back(outputs[form], form, real_data / name, tmp_path / f"{form} back"):
            assert set(found) == set(ids)
            for structure, mask in found.items():
                np.testing.assert_array_equal(mask, labels == ids[structure])
