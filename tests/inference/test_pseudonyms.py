"""Names for DICOM cases: stable, told apart, keyed; the key; the table that leads back."""

from __future__ import annotations

import csv
import re
import shutil
import stat
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from dicom_phantoms import ct
from phantoms import LPS_AFFINE

from medseg.core.errors import ConfigError
from medseg.inference.job import untold
from medseg.inference.pseudonyms import COLUMNS, Pseudonyms, identified, own_pseudonyms, write_linkage
from medseg.inference.scans import Scan, find_scans
from medseg.io.series import Series

KEY = Pseudonyms(bytes(range(32)))
PLANTED = "Planted"


@pytest.fixture(autouse=True)
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home/settings"))
    return tmp_path / "home/settings/medseg/pseudonyms.key"


def series(**values: Any) -> Series:
    stated = {"files": (), "uid": "1.2", "number": 4, "modality": "CT", "patient": "P1", "name": PLANTED, "study": "1.1"}
    return Series(**(stated | values))


def names(scans: list[Scan]) -> dict[str, str]:
    """The case of each series, by its UID."""
    return {image.uid: scan.case_id for scan in scans for image in scan.images if isinstance(image, Series)}


def test_a_name_is_two_hashes_the_patients_first() -> None:
    first = KEY.case_id(series())
    assert re.fullmatch("[0-9a-f]{10}-[0-9a-f]{10}", first)
    assert KEY.case_id(series()) == first
    # Of what is not the patient or the series, nothing enters.
    assert KEY.case_id(series(number=9, name="Other", study="1.7", modality="MR", files=(Path("a"),))) == first
    patient, scan = first.split("-")
    assert KEY.case_id(series(uid="1.3")).split("-")[0] == patient != KEY.case_id(series(patient="P2")).split("-")[0]
    assert KEY.case_id(series(patient="P2")).split("-")[1] == scan != KEY.case_id(series(uid="1.3")).split("-")[1]


def test_names_of_ten_thousand_patients_differ_and_no_plain_hash_gives_them() -> None:
    found = {KEY.case_id(series(patient=str(number))).split("-")[0] for number in range(10000)}
    assert len(found) == 10000
    guesses = {sha256(text).hexdigest()[:10] for n in range(10000) for text in (f"{n}".encode(), f"patient\0{n}".encode())}
    assert not found & guesses


def test_another_key_gives_other_names() -> None:
    other = Pseudonyms(bytes(32))
    assert not set(other.case_id(series()).split("-")) & set(KEY.case_id(series()).split("-"))
    assert other.file("a/b.pdf") != KEY.file("a/b.pdf") == KEY.file("a/b.pdf")


def test_the_key_is_made_once_for_its_owner_alone(settings: Path) -> None:
    first = own_pseudonyms()
    assert stat.S_IMODE(settings.stat().st_mode) == 0o600
    assert [path.name for path in settings.parent.iterdir()] == ["pseudonyms.key"]
    assert re.fullmatch("[0-9a-f]{64}", settings.read_text()) and first.secret.hex() == settings.read_text()
    assert own_pseudonyms() == first
    settings.unlink()
    assert own_pseudonyms() != first


def test_processes_that_start_together_share_one_key(settings: Path) -> None:
    code = (
        "from medseg.inference.pseudonyms import own_pseudonyms as own; print(len({own() for _ in range(9)}), own().secret.hex())"
    )
    running = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = {process.communicate(timeout=60)[0] for process in running}
    assert said == {f"1 {settings.read_text()}\n"}


def test_a_key_that_another_process_has_just_made_is_never_replaced(settings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = own_pseudonyms()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "exists", lambda path: False)  # as it was a moment ago
        assert own_pseudonyms() == first
    assert [path.name for path in settings.parent.iterdir()] == ["pseudonyms.key"]


@pytest.mark.parametrize("text", ["", "ab", "g" * 64, "ab" * 33])
def test_a_damaged_key_is_never_used_nor_replaced(settings: Path, text: str) -> None:
    settings.parent.mkdir(parents=True)
    settings.write_text(text)
    with pytest.raises(ConfigError, match=r"pseudonyms\.key, the key of the pseudonyms, is damaged; bring back its copy"):
        own_pseudonyms()
    assert settings.read_text() == text


def test_a_key_that_cannot_be_made(settings: Path) -> None:
    settings.parent.parent.mkdir(parents=True)
    settings.parent.write_text("a file in the place of the folder")
    with pytest.raises(ConfigError, match=r"cannot be read or made \(.*\); give yourself permission, or use --keep-identifiers"):
        own_pseudonyms()


def test_names_hold_over_folders_and_without_dicom_no_key_is_made(tmp_path: Path, settings: Path) -> None:
    scans = tmp_path / "scans"
    scans.mkdir()
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 4), np.float32), LPS_AFFINE), scans / "a.nii.gz")
    find_scans(scans, ["image"])
    find_scans(scans, ["image"], keep_identifiers=True)
    assert not settings.exists()
    for place, patient, uid in (("x/1", "P1", "1.2.31"), ("x/2", "P1", "1.2.32"), ("y", "P2", "1.2.33")):
        ct(scans / PLANTED / place, PatientID=patient, SeriesInstanceUID=uid)
    first = names(find_scans(scans, ["image"]))
    assert len(set(first.values())) == 3 and len({name.split("-")[0] for name in first.values()}) == 2
    shutil.move(scans / PLANTED / "x", scans / "elsewhere")
    assert names(find_scans(scans, ["image"])) == first
    # A folder of one series, and one of its files, have the same name as the tree.
    assert names(find_scans(scans / "elsewhere/1", ["image"])).items() <= first.items()
    assert names(find_scans(next((scans / "elsewhere/1").iterdir()), ["image"])).items() <= first.items()


def test_keeping_identifiers_needs_no_key_and_names_the_patient(tmp_path: Path, settings: Path) -> None:
    for study in (1, 2):  # both with a series 4
        ct(tmp_path / f"{study}", StudyInstanceUID=f"1.2.{study}", SeriesInstanceUID=f"1.2.4{study}", PatientID="P/1 é")
    found = find_scans(tmp_path, ["image"], keep_identifiers=True)
    assert [re.sub("_[0-9a-f]{6}$", "_hash", scan.case_id) for scan in found] == ["P_1_é_4_hash"] * 2
    assert found[0].case_id != found[1].case_id
    assert not settings.exists() and not any(scan.private or scan.reason for scan in found)


@pytest.mark.parametrize(
    ("patient", "number", "name"),
    [
        ("P1", 4, "P1_4"),
        ("P1\\H", None, "P1_H"),
        ("../../etc", 1, "etc_1"),
        ("山田", 2, "山田_2"),
        ("^^^", None, "patient"),
        (".", 3, "patient_3"),
        ("x" * 999, 3, "x" * 64 + "_3"),
    ],
)
def test_identifiers_as_file_names(patient: str, number: int | None, name: str) -> None:
    assert identified(series(patient=patient, number=number)) == name


def test_the_linkage_table_is_for_its_owner(tmp_path: Path) -> None:
    table = tmp_path / "linkage.csv"
    table.write_text("old")
    table.chmod(0o644)
    one = series(patient="P1\\H", name='Doe, "Jane"\n^X', files=(tmp_path / "a", tmp_path / "b"), number=None)
    write_linkage(table, [("x-y", "x-y series 4", one)])
    assert stat.S_IMODE(table.stat().st_mode) == 0o600
    with open(table, newline="") as file:
        (row,) = csv.DictReader(file)
    assert tuple(row) == COLUMNS
    assert (row["patient_id"], row["patient_name"], row["series_number"]) == ("P1\\H", 'Doe, "Jane"\n^X', "")
    assert row["files"] == f"{tmp_path / 'a'};{tmp_path / 'b'}"
    other = tmp_path / "other"
    other.write_text("")
    assert stat.S_IMODE(other.stat().st_mode) != 0o600  # what this process writes otherwise is as before


def test_reasons_lose_the_folders_of_files_among_dicom_files() -> None:
    folder = Path("/scans") / PLANTED
    scan = Scan("a", (folder / "a.mhd",), shown="a.mhd", private=True)
    assert untold(scan, f"{folder}/a.mhd is damaged.") == "a.mhd is damaged."
    assert untold(scan, f"{folder}/a.raw does not exist.") == "a.raw does not exist."
    assert untold(scan, f"unexpected KeyError: {PLANTED}") == "unexpected KeyError"
    assert untold(Scan("a", (folder / "a.mhd",)), f"{folder}/a.mhd is damaged.") == f"{folder}/a.mhd is damaged."


def test_scans_of_one_name_among_dicom_files_are_told_without_their_folders(tmp_path: Path) -> None:
    ct(tmp_path / PLANTED / "dicom")
    for name in ("twin.nii", "sub/twin.mha", f"{PLANTED}.pdf"):
        path = tmp_path / PLANTED / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    found = find_scans(tmp_path, ["image"])
    assert sorted(scan.shown for scan in found if not scan.case_id.startswith("twin"))[1].startswith("file-")
    assert {scan.shown: scan.reason for scan in found if scan.case_id == "twin"} == {
        "twin.mha": "two scans would have the same name `twin` (the other is twin.nii); rename one",
        "twin.nii": "two scans would have the same name `twin` (the other is twin.mha); rename one",
    }
    assert PLANTED not in "".join(f"{scan.case_id} {scan.shown} {scan.reason}" for scan in found)
