"""`medseg manifest`, `medseg fetch` and `medseg doctor`."""

from pathlib import Path

import pandas as pd
import pytest

from medseg.core.errors import OutputError
from pipelines import doctor, fetch
from pipelines.config import RunConfig
from pipelines.manifest import manifest


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_manifest_writes_the_table_and_says_what_to_fill_in(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    touch(tmp_path / "i" / "p1.nii", tmp_path / "l" / "p1_seg.nii")
    assert manifest(tmp_path / "i", tmp_path / "l", tmp_path / "set.csv") == 0
    table = pd.read_csv(tmp_path / "set.csv", dtype=str, keep_default_na=False)
    assert table.to_dict("records") == [
        {"case_id": "p1", "patient_id": "", "image": "i/p1.nii", "label": "l/p1_seg.nii", "split": ""}
    ]
    said = capfd.readouterr().err
    assert "`patient_id` is empty" in said
    assert f"data.root: {tmp_path}" in said


def test_manifest_lists_files_without_partner_and_overwrites_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    touch(tmp_path / "i" / "p1.nii", tmp_path / "i" / "p2.nii", tmp_path / "l" / "p1.nii", tmp_path / "l" / "p3.nii")
    assert manifest(tmp_path / "i", tmp_path / "l", tmp_path / "set.csv") == 1
    said = capfd.readouterr().err
    assert str(tmp_path / "i" / "p2.nii") in said
    assert str(tmp_path / "l" / "p3.nii") in said
    with pytest.raises(OutputError, match=r"set\.csv exists already"):
        manifest(tmp_path / "i", tmp_path / "l", tmp_path / "set.csv")


def test_fetch_writes_where_configurations_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, Path]] = []
    monkeypatch.setattr(fetch, "fetch_dataset", lambda name, root, archive=None: asked.append((name, root)))
    monkeypatch.chdir(tmp_path)
    assert fetch.fetch("hippocampus") == 0
    assert fetch.fetch("hippocampus", output=Path("elsewhere")) == 0
    config = RunConfig(Path("x.yaml"), {"data": {"name": "hippocampus"}})
    fetch.bring_if_missing(config)
    assert asked == [
        ("hippocampus", Path("data/hippocampus")),
        ("hippocampus", Path("elsewhere")),
        ("hippocampus", config.data.root),
    ]
    (tmp_path / "data" / "hippocampus").mkdir(parents=True)
    fetch.bring_if_missing(config)
    fetch.bring_if_missing(RunConfig(Path("x.yaml"), {"data": {"name": "my own"}}))
    # A folder that the user named and that is not there was mistyped; nothing is put into it.
    fetch.bring_if_missing(RunConfig(Path("x.yaml"), {"data": {"name": "hippocampus", "root": "/mnt/hippocmpus"}}))
    assert len(asked) == 3


def test_a_fetch_that_was_cut_short_is_finished_by_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(fetch, "fetch_dataset", lambda name, root, archive=None: asked.append(name))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "set.csv").write_text("case_id,image,label,split\np1,i/p1.tif,l/p1.tif,train\n")
    config = RunConfig(Path("x.yaml"), {"data": {"name": "nuclei-sample", "manifest": "set.csv"}})
    root = tmp_path / "data" / "nuclei-sample"
    touch(root / "i" / "p1.tif")
    fetch.bring_if_missing(config)
    assert asked == ["nuclei-sample"]
    touch(root / "l" / "p1.tif")  # a folder laid out by hand is left alone
    fetch.bring_if_missing(config)
    (root / "l" / "p1.tif").unlink()
    touch(root / "SHA256SUMS")  # a finished one too: `check` names what was removed
    fetch.bring_if_missing(config)
    elsewhere = RunConfig(Path("x.yaml"), {"data": {"name": "nuclei-sample", "root": "data", "manifest": "set.csv"}})
    fetch.bring_if_missing(elsewhere)
    assert asked == ["nuclei-sample"]


def test_doctor_says_what_each_thing_means(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "LOOKS", tuple(look for look in doctor.LOOKS if look is not doctor.training_step))
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    assert doctor.doctor() == 0
    said = capfd.readouterr().err
    assert "missing" in said
    assert "install g++" in said
    assert "without chromium" in said
    assert "GiB free in the working folder" in said
    assert "to mend: a C++ compiler" in said


def test_doctor_names_the_command_that_brings_a_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_requirements", lambda: (["numpy", "no-such-package"], {"dev": ["no-such-tool"]}))
    first, second, third = doctor.packages()
    assert first.mark == "missing"
    assert "pip install no-such-package" in first.consequence
    assert "1 of 2" in second.what
    assert "medseg[dev]" in third.consequence


def test_doctor_knows_what_medseg_requires() -> None:
    required, optional = doctor._requirements()
    assert {"torch", "monai", "SimpleITK"} <= set(required)
    assert "ruff" in optional["dev"]
    assert "ruff" not in required


def test_doctor_times_a_real_training_step(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(doctor, "PATCH_VOXELS", (32, 32, 32))
    found = list(doctor.training_step())
    assert torch.cuda.is_available() or "900 such steps" in found[0].consequence
