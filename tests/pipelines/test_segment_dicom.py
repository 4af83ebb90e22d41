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
from collections.abc import Callable
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
    paths = [path for path in folder.rglob("*")]
    assert paths
    return {
        path.relative_to(folder).as_posix()
        for path in paths
        if PLANTED.lower() in path.relative_to(folder).as_posix().lower()
        or (path.is_file() and BYTES in contents(path).lower().replace(b"\0", b""))
    }


def without_seconds(output: Path) -> dict[str, bytes]:
    files = [path for path in output.rglob("*") if path.is_file()]
    return {str(path.relative_to(output)): re.sub(rb'"seconds": [0-9.]+', b"", path.read_bytes()) for path in files}
