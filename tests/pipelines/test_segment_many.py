"""`medseg segment` over many scans, by several commands at once, and asked to stop: each scan once, and each bad one a row."""

from __future__ import annotations

import csv
import os
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
from phantoms import LPS_AFFINE, volume_case
from test_killed import Medseg, workers_of
from test_segment_killed import SMALL, Folder, times, write_scan
from tiny_models import tiny_bundle, write_tiny_model

from medseg.core.errors import StageError
from medseg.inference.bundle import write_bundle
from medseg.inference.segment import working_alike
from pipelines.segment import segment

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="signals of POSIX systems, and /proc")

TABLES = ("predictions.csv", "volumes.csv", "qc.csv")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model") / "model.medseg")


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("scans")
    for number in range(24):
        write_scan(place / f"s{number:02d}.nii.gz", SMALL, number)
    (place / "s07.nii.gz").write_bytes(b"\x1f\x8b broken")
    return place


@pytest.fixture(scope="module")
def undisturbed(model: Path, scans: Path, tmp_path_factory: pytest.TempPathFactory) -> Folder:
    folder = Folder(model, scans, tmp_path_factory.mktemp("undisturbed") / "masks")
    assert folder.finish() == 1
    return folder


def rows(output: Path) -> dict[str, dict[str, str]]:
    return {row["case_id"]: row for row in csv.DictReader((output / "predictions.csv").read_text().splitlines())}


class Watched:
    """How often each mask and each record has appeared."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self.seen: Counter[str] = Counter()
        self.files: dict[str, tuple[int, int]] = {}

    def look(self) -> None:
        for path in [*self.folder.output.glob("[!.]*.nii.gz"), *(self.folder.output / "records").glob("[!.]*.json")]:
            try:
                inode = path.stat().st_ino, path.stat().st_mtime_ns
            except FileNotFoundError:
                continue
            if self.files.get(path.name) != inode:
                self.files[path.name] = inode
                self.seen[path.name] += 1


def test_two_commands_share_a_folder_and_do_no_scan_twice(undisturbed: Folder, tmp_path: Path) -> None:
    folder = undisturbed.elsewhere(tmp_path / "masks")
    watch = Watched(folder)
    runs = [folder.start("--redo"), folder.start("--redo")]  # not even then: the other has just done it
    while any(run.process.poll() is None for run in runs):
        watch.look()
        time.sleep(0.002)
    assert [run.end() for run in runs] == [1, 1], [run.text for run in runs]
    masks = {name: count for name, count in watch.seen.items() if name.endswith(".nii.gz")}
    assert len(masks) == 23 and set(masks.values()) == {1}, masks
    assert all("23 done, 1 failed" in run.text for run in runs)
    assert folder.content() == undisturbed.content()
    assert folder.hidden() == []


def test_a_command_with_other_options_is_refused_and_one_takes_over_the_scans_of_a_killed_one(
    undisturbed: Folder, tmp_path: Path
) -> None:
    folder = undisturbed.elsewhere(tmp_path / "masks")
    first = folder.start()
    assert first.wait_for(lambda: folder.records() >= 3)
    first.process.send_signal(signal.SIGSTOP)  # its worker finishes what it has in hand, and gets no more
    before = folder.records()
    other = folder.start("--overlap", "0.25")
    assert other.end() == 2
    assert other.text == (
        f"StageError: {folder.output}: another process works there with another model, other options or other scans; "
        "wait for it to end, or choose another output.\n"
    )
    second = folder.start()
    assert second.wait_for(lambda: folder.records() >= before + 6)  # works beside the first
    first.process.kill()
    first.end()
    assert second.end() == 1, second.text
    assert folder.content() == undisturbed.content()
    assert folder.hidden() == []


def test_other_models_and_other_scans_are_refused_too_and_afterwards_are_not(
    undisturbed: Folder, model: Path, tmp_path: Path
) -> None:
    output = tmp_path / "masks"
    few = tmp_path / "few"
    few.mkdir()
    shutil.copy(undisturbed.scans / "s00.nii.gz", few)
    with working_alike(output, "another command's"), pytest.raises(StageError, match="another process works there"):
        segment(model, few, output)
    assert not list(output.glob("*.nii.gz"))
    assert segment(model, few, output) == 0


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_asked_to_stop_it_finishes_what_is_in_hand_and_asked_again_it_drops_it(
    undisturbed: Folder, tmp_path: Path, number: signal.Signals
) -> None:
    folder, code = undisturbed.elsewhere(tmp_path / "masks"), 128 + number
    once = folder.start()
    assert once.wait_for(lambda: folder.records() >= 4)
    interrupt(once, number)
    assert once.end() == code, once.text
    assert "stopping after the cases in hand; press Ctrl-C again to drop them" in once.text
    before = times(folder)
    assert folder.hidden() == [] and len(before) == folder.records() < 24
    assert not any((folder.output / name).exists() for name in TABLES)
    twice = folder.start()
    assert twice.wait_for(lambda: folder.records() >= len(before) + 3)
    stop(twice)  # so that what is in hand does not end meanwhile
    interrupt(twice, number)
    time.sleep(0.8)
    interrupt(twice, number)
    begun = time.monotonic()
    go_on(twice)
    assert twice.end() in (code, 130), twice.text
    assert time.monotonic() - begun < 6
    early = folder.start()
    time.sleep(1.5)  # still importing
    interrupt(early, number)
    assert early.end() in (code, -number, 130), early.text
    assert before.items() <= times(folder).items()
    assert folder.finish() == 1
    assert folder.content() == undisturbed.content()
    assert before.items() <= times(folder).items()
    assert folder.hidden() == []


def interrupt(run: Medseg, number: int) -> None:
    os.killpg(run.process.pid, number)  # as a terminal does: the workers get it too


def stop(run: Medseg) -> None:
    for worker in workers_of(run.process.pid):
        os.kill(worker, signal.SIGSTOP)


def go_on(run: Medseg) -> None:
    for worker in workers_of(run.process.pid):
        os.kill(worker, signal.SIGCONT)


def nifti(path: Path, array: np.ndarray, affine: np.ndarray = LPS_AFFINE) -> None:
    nibabel.save(nibabel.Nifti1Image(array, affine), path)


def truncated(path: Path, good: Path) -> None:
    whole = good.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def not_a_number(path: Path, good: Path) -> None:
    array = np.asarray(nibabel.load(good).dataobj, np.float32)
    array[0, 0, 0] = np.nan
    nifti(path, array)


def singular(path: Path, good: Path) -> None:
    image = nibabel.load(good)
    image.header["sform_code"], image.header["qform_code"] = 1, 0
    image.header["srow_x"], image.header["srow_y"] = [1, 0, 0, 0], [1, 0, 0, 0]
    raw = nibabel.Nifti1Image(np.asarray(image.dataobj, np.float32), None, image.header)
    raw.header["srow_x"], raw.header["srow_y"], raw.header["sform_code"] = [1, 0, 0, 0], [1, 0, 0, 0], 1
    content = bytearray(raw.to_bytes())
    content[252:256] = np.array([0, 1], "<i2").tobytes()  # qform_code, sform_code
    content[280:328] = np.array([[1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0]], "<f4").tobytes()
    path.with_suffix("").with_suffix(".nii").write_bytes(bytes(content))


def without_voxels(path: Path, good: Path) -> None:
    place = path.with_suffix("").with_suffix(".mhd")
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(np.asarray(nibabel.load(good).dataobj, np.float32).T), str(place))
    place.with_suffix(".raw").unlink()


def colour(path: Path, good: Path) -> None:
    array = np.random.default_rng(0).integers(0, 255, (12, 13, 14, 3), np.uint8)
    place = path.with_suffix("").with_suffix(".mha")
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(array, isVector=True), str(place))


def folder_of_files(path: Path, good: Path) -> None:
    """A folder with a scan's name is no scan; the scan in it is damaged."""
    path.mkdir()
    (path / f"{path.name.split('.')[0]}.nii.gz").write_bytes(good.read_bytes()[:300])


# What may be wrong with a scan, and what the reason must say.
FAULTS: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "truncated": (truncated, "damaged"),
    "empty": (lambda path, good: path.write_bytes(b""), "empty"),
    "text": (lambda path, good: path.write_text("these are notes\n" * 40), "NIfTI"),
    "nan": (not_a_number, "NaN"),
    "constant": (lambda path, good: nifti(path, np.full((9, 9, 9), 7, np.float32)), "constant"),
    "four_d": (lambda path, good: nifti(path, np.random.default_rng(0).normal(size=(8, 8, 8, 3)).astype(np.float32)), "4D file"),
    "singular": (singular, "affine"),
    "link": (lambda path, good: path.symlink_to(path.parent / "moved_away.nii.gz"), "link to a file that does not exist"),
    "colour": (colour, "3 channels where the plan expects 1"),
    "voxels": (without_voxels, "voxels.raw, which does not exist"),
    "folder": (folder_of_files, "damaged"),
}


def check_many(model: Path, scans: Path, good: Path, masks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Add 20 broken scans to a folder of 180, and segment it."""
    kinds = [*FAULTS, *list(FAULTS)[:9]]
    for number, kind in enumerate(kinds):
        FAULTS[kind][0](scans / f"bad{number:02d}_{kind}.nii.gz", good)
    assert segment(model, scans, masks) == 1
    said, table = capsys.readouterr().err, rows(masks)
    assert len(table) == 200 and Counter(row["status"] for row in table.values()) == {"done": 180, "failed": 20}
    assert (
        len(list(masks.glob("*.nii.gz"))) == 180
        and f"segment: 180 done, 20 failed; masks and predictions.csv are in {masks}" in said
    )
    reasons = {row["case_id"]: row["reason"] for row in table.values() if row["status"] == "failed"}
    for number, kind in enumerate(kinds):
        reason = reasons[f"bad{number:02d}_{kind}"]
        assert FAULTS[kind][1].lower() in reason.lower(), (kind, reason)
        assert "unexpected" not in reason and "\n" not in reason and "Traceback" not in reason
        assert f"  bad{number:02d}_{kind}: {reason}" in said.splitlines()
        assert reason.count(". ") == 0 and len(reason) < 400, reason  # one sentence
    good_rows = [row for row in table.values() if row["status"] == "done"]
    assert all(row["reason"] == "" and (masks / row["output"]).is_file() for row in good_rows)
    assert len((masks / "volumes.csv").read_text().splitlines()) == 181
    assert len((masks / "qc.csv").read_text().splitlines()) == 201


def test_200_scans_of_which_20_are_broken(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scans = tmp_path / "scans"
    for number in range(180):
        path = scans / f"part{number % 3}/s{number:03d}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        nifti(path, volume_case(number)[0])
    check_many(model, scans, scans / "part0/s000.nii.gz", tmp_path / "masks", capsys)


def test_200_real_scans_of_which_20_are_broken(real_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = sorted((real_data / "hippocampus/images").glob("*.nii.gz"))
    bundle = tiny_bundle(patch_voxels=(40, 56, 40), spacing=(1.0, 1.0, 1.0))
    write_bundle(tmp_path / "model.medseg", bundle)
    scans = tmp_path / "scans"
    scans.mkdir()
    for number in range(180):
        shutil.copy(found[number % len(found)], scans / f"s{number:03d}.nii.gz")
    begun = time.monotonic()
    check_many(tmp_path / "model.medseg", scans, found[0], tmp_path / "masks", capsys)
    seconds, table = time.monotonic() - begun, rows(tmp_path / "masks")
    with capsys.disabled():
        print(f"\n200 scans in {seconds:.0f} s", *(f"{n:16} {r['reason']}" for n, r in table.items() if r["reason"]), sep="\n")  # noqa: T201
