"""Stage `prepare`: what its results depend on, and what is no longer finished while it works."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
import SimpleITK
from phantoms import LPS_AFFINE, volume_case, write_config, write_volume_set
from tiny_models import OPTIONS, write_tiny_model

from medseg.core.errors import ConfigError, StageError
from medseg.data.store import PreparedStore
from medseg.planning import cases
from medseg.planning.fingerprint import measure
from medseg.planning.plan import Plan
from pipelines import prepare
from pipelines.config import RunConfig
from pipelines.prepare import plan_of

STRUCTURES = [{"name": "large", "id": 1}, {"name": "small", "id": 2}]


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    manifest = write_volume_set(tmp_path, {"train": 2, "val": 1})
    return RunConfig.load(
        write_config(tmp_path, manifest, structures=STRUCTURES, models={"unet": {}}, plan={"workers": 1, "memory_gb": 1})
    )


def finished(config: RunConfig) -> bool:
    return (config.folder("prepare") / "stage.json").is_file()


def test_a_stage_cut_short_is_not_finished(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    assert prepare.run(config) == 0
    assert finished(config)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare.PreparedStore, "write", killed)
    config.settings["plan"] = {"workers": 1, "memory_gb": 1, "spacing_mm": [2, 2, 2]}
    with pytest.raises(KeyboardInterrupt):
        prepare.run(config)
    assert not finished(config)


def test_the_names_of_the_channels_count(config: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare.run(config)
    assert prepare.run(config) == 0
    assert "prepare: unchanged, skipped" in capsys.readouterr().err
    pd.read_csv(tmp_path / "manifest.csv").rename(columns={"image": "image_t1"}).to_csv(tmp_path / "manifest.csv", index=False)
    assert prepare.run(config) == 0
    assert "skipped" not in capsys.readouterr().err


def test_voxels_that_are_no_numbers_are_named_with_their_case(config: RunConfig, tmp_path: Path) -> None:
    image = volume_case(0)[0]
    image[12, 10, 8] = np.nan
    nibabel.save(nibabel.Nifti1Image(image, LPS_AFFINE), tmp_path / "images/train00.nii.gz")
    config.settings["data"]["modality"] = "ct"
    with pytest.raises(StageError, match=r"\(train00: train00 holds 1 NaN or infinite voxels"):
        prepare.run(config)


def test_a_changed_voxel_file_of_a_header_is_seen(config: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scan = SimpleITK.ReadImage(str(tmp_path / "images/train00.nii.gz"))
    SimpleITK.WriteImage(scan, str(tmp_path / "images/train00.mhd"))
    manifest = tmp_path / "manifest.csv"
    manifest.write_text(manifest.read_text().replace("images/train00.nii.gz", "images/train00.mhd"))
    prepare.run(config)
    capsys.readouterr()
    voxels = tmp_path / "images/train00.raw"
    (np.fromfile(voxels, np.float32)[::-1] + 1).tofile(voxels)
    assert prepare.run(config) == 0
    assert "skipped" not in capsys.readouterr().err


def edit(config: RunConfig, *path: str, value: object) -> None:
    """Change one value of plan.json by hand."""
    file = config.folder("prepare") / "plan.json"
    content = json.loads(file.read_text())
    place = content
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    file.write_text(json.dumps(content))


def test_the_plan_is_derived_the_same_each_time(config: RunConfig) -> None:
    prepare.run(config)
    first = plan_of(config)
    assert first.class_voxels[0] > first.class_voxels[1] > first.class_voxels[2] > 0
    assert first.models["unet"]["options"]["features"]
    assert prepare.run(config, redo=True) == 0
    assert plan_of(config) == first


def test_cases_are_measured_once(config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second prepare after a kill goes on where the first was; a changed case is measured again."""
    measured: list[object] = []
    monkeypatch.setattr(cases, "measure", lambda volume, *a: (measured.append(volume), measure(volume, *a))[1])
    label = tmp_path / "labels/train01.nii.gz"
    sound = label.read_bytes()
    nibabel.save(nibabel.Nifti1Image(np.full((24, 20, 16), 9, np.uint8), LPS_AFFINE), label)
    with pytest.raises(StageError, match="train01"):
        prepare.run(config)
    assert len(measured) == 1 and not finished(config)
    label.write_bytes(sound)
    prepare.run(config)
    assert len(measured) == 2
    (config.folder("prepare") / "stage.json").unlink()
    prepare.run(config)
    assert len(measured) == 2
    (config.folder("prepare", "fingerprints") / "train00.json").write_text('{"key": "cut sho')
    (config.folder("prepare") / "stage.json").unlink()
    prepare.run(config)
    assert len(measured) == 3 and finished(config)


def test_an_edited_plan_is_kept(config: RunConfig, capsys: pytest.CaptureFixture[str]) -> None:
    prepare.run(config)
    before, folder = plan_of(config), config.folder("prepare")
    shape = PreparedStore(folder / "cases").open("train00").classes.shape
    edit(config, "batch_size", value=3)
    with pytest.raises(StageError, match=r"plan.json was edited after the cases were prepared; run `medseg prepare` first\."):
        plan_of(config)
    edit(config, "preprocessing", "spacing", value=[2, 3, 4])
    with pytest.raises(StageError, match=r"plan.json was edited after the cases were prepared; run `medseg prepare` first\."):
        plan_of(config)
    capsys.readouterr()
    assert prepare.run(config) == 0
    assert "plan.json was edited: kept (spacing, batch_size)" in capsys.readouterr().err
    plan = plan_of(config)
    assert plan.preprocessing.spacing == (2, 3, 4) and plan.batch_size == 3
    assert plan.reasons == before.reasons | {"spacing": "edited by hand", "batch_size": "edited by hand"}
    stored = PreparedStore(folder / "cases").open("train00").classes.shape
    assert stored == tuple(n // 2 for n in shape)
    assert prepare.run(config) == 0
    assert "prepare: unchanged, skipped" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("section", "value", "named"),
    [
        ("structures", [{"name": "liver", "id": 1}, {"name": "small", "id": 2}], "labels.structures"),
        ("plan", {"spacing_mm": [2, 2, 2]}, "plan.spacing_mm, plan.memory_gb"),
        ("models", {"unet": {"features": [4, 8]}}, "models.unet.options.features"),
        ("training", {"epochs": 1}, "training"),
    ],
)
def test_a_configuration_that_changed_since_is_named(config: RunConfig, section: str, value: object, named: str) -> None:
    prepare.run(config)
    changed = RunConfig(config.path, config.settings | {section: value})
    with pytest.raises(StageError, match=rf": {named} changed since the cases were prepared; run `medseg prepare` first"):
        plan_of(changed)
    prepare.run(changed)
    assert plan_of(changed)


def test_another_split_and_another_start_are_named_without_reading_a_scan(config: RunConfig, tmp_path: Path) -> None:
    start = write_tiny_model(tmp_path / "start.medseg", spacing=(2.0, 2.0, 2.0))
    config.settings["training"] = {"epochs": 1, "init_from": str(start)}
    prepare.run(config)
    for image in tmp_path.glob("images/*"):
        image.write_bytes(b"another")
    assert plan_of(config)
    manifest = tmp_path / "manifest.csv"
    rows = manifest.read_text()
    manifest.write_text(rows.replace(",train,", ",val,", 1))
    with pytest.raises(StageError, match=r": cases.train00 changed since the cases were prepared"):
        plan_of(config)
    manifest.write_text(rows)
    write_tiny_model(start, seed=1)
    with pytest.raises(StageError, match=r": training.init_from changed since the cases were prepared"):
        plan_of(config)


def test_what_is_missing_or_damaged_is_made_again(config: RunConfig, capsys: pytest.CaptureFixture[str]) -> None:
    prepare.run(config)
    folder = config.folder("prepare")
    made = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    image, label = (folder / "cases/train01" / name for name in ("image.npy", "classes.npy"))
    image.write_bytes(made[image][:-1])
    label.unlink()
    for name in ("fingerprint.json", "fingerprints/train00.json", "cases/val00/foreground.npz"):
        (folder / name).write_bytes(b"{")
    capsys.readouterr()
    assert prepare.run(config) == 0
    assert "prepare: unchanged, but 2 stored cases were damaged" in capsys.readouterr().err
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == made
    before = image.stat().st_mtime_ns
    prepare.run(config)
    assert image.stat().st_mtime_ns == before
    prepare.run(config, redo=True)
    assert image.stat().st_mtime_ns > before and image.read_bytes() == made[image]


def test_an_edit_outlives_a_kill_while_the_cases_are_stored(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare.run(config)
    edit(config, "preprocessing", "spacing", value=[2, 3, 4])

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(prepare.PreparedStore, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            prepare.run(config)
    with pytest.raises(StageError, match="edited after the cases were prepared"):
        plan_of(config)
    prepare.run(config)
    assert plan_of(config).preprocessing.spacing == (2, 3, 4)
    assert plan_of(config).reasons["spacing"] == "edited by hand"


def test_an_edit_is_set_aside_where_the_configuration_changed(config: RunConfig, capsys: pytest.CaptureFixture[str]) -> None:
    prepare.run(config)
    edit(config, "batch_size", value=3)
    prepare.run(config)
    config.settings["plan"] = {"workers": 1, "patch_voxels": [16, 16, 8]}
    assert prepare.run(config) == 0
    assert "derived anew, the edited one is kept as" in capsys.readouterr().err
    assert plan_of(config).batch_size == 2 and plan_of(config).patch_voxels == (16, 16, 8)
    assert Plan.load(config.folder("prepare") / "plan.edited.json").batch_size == 3


def test_an_edit_that_cannot_stand_is_an_error(config: RunConfig) -> None:
    prepare.run(config)
    edit(config, "patch_voxels", value=[0, 16, 16])
    with pytest.raises(ConfigError, match=r"plan.json: `patch_voxels.0`"):
        prepare.run(config)
    edit(config, "patch_voxels", value=[16, 1, 1])
    with pytest.raises(ConfigError, match=r"plan\.json: "):
        prepare.run(config)


def test_fine_tuning_prepares_cases_for_the_model_that_it_starts_from(config: RunConfig, tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "start.medseg", spacing=(2.0, 2.0, 2.0), batch_size=5)
    config.settings["training"] = {"epochs": 1, "init_from": str(model)}
    prepare.run(config)
    plan = plan_of(config)
    assert plan.preprocessing.spacing == (2, 2, 2) and plan.batch_size == 5
    assert plan.models["unet"]["options"]["features"] == OPTIONS["features"]
    assert plan.reasons["spacing"] == "as the model that the training starts from"
    write_tiny_model(model, n_channels=2, channels=["t1", "t2"])
    with pytest.raises(ConfigError, match=r"2 channels \(t1, t2\) and these scans have 1"):
        prepare.run(config)


def test_augmented_patches_are_drawn_anew_where_they_would_differ(config: RunConfig) -> None:
    prepare.run(config)
    picture = config.folder("prepare") / "augmentation/patches.png"
    assert not picture.exists()  # nothing says how to train
    config.settings["training"] = {"epochs": 1}
    prepare.run(config)
    drawn = picture.stat().st_mtime_ns
    config.settings["training"]["optimizer"] = {"name": "sgd"}
    prepare.run(config)
    assert picture.stat().st_mtime_ns == drawn
    config.settings["training"]["augmentation"] = {"flip": 0}
    prepare.run(config)
    assert picture.stat().st_mtime_ns > drawn


def test_unpaired_sides_are_told(config: RunConfig, capsys: pytest.CaptureFixture[str]) -> None:
    config.settings["structures"] = [{"name": "left ball", "id": 1}, {"name": "small", "id": 2}]
    prepare.run(config)
    assert (
        "flips [1, 2]: none along left-right: the name of left ball tells its ends apart and no pair" in capsys.readouterr().err
    )
