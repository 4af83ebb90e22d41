"""Stage `prepare`: what its results depend on, and what is no longer finished while it works."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
import SimpleITK
from phantoms import LPS_AFFINE, volume_case, write_config, write_volume_set

from medseg.core.errors import StageError
from pipelines import prepare
from pipelines.config import RunConfig

STRUCTURES = [{"name": "large", "id": 1}, {"name": "small", "id": 2}]


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    manifest = write_volume_set(tmp_path, {"train": 2, "val": 1})
    return RunConfig.load(write_config(tmp_path, manifest, structures=STRUCTURES, models=["unet"], plan={"workers": 1}))


def finished(config: RunConfig) -> bool:
    return (config.folder("prepare") / "stage.json").is_file()


def test_a_stage_cut_short_is_not_finished(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    assert prepare.run(config) == 0
    assert finished(config)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare.PreparedStore, "write", killed)
    config.settings["plan"] = {"workers": 1, "spacing_mm": [2, 2, 2]}
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
