"""One case through a model: the road there is the road of `prepare`, and the way back ends on the scan's own voxels."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from phantoms import LPS_AFFINE, volume_case
from tiny_models import tiny_bundle, write_tiny_model

from medseg.core.errors import ConfigError, GridMismatchError, IntensityError, ModelFileError, UnreadableError
from medseg.core.grid import Grid
from medseg.data.preprocess import preprocess
from medseg.inference.config import EngineConfig, PredictConfig
from medseg.inference.predict import LoadedModel, load_model, mirror_axes, predict_case, resolve_device, resolve_dtype
from medseg.inference.restore import restore
from medseg.inference.window import predict_logits
from medseg.io.formats import read_volume

CPU = EngineConfig(device="cpu")


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scans") / "p01.nii.gz"
    nibabel.save(nibabel.Nifti1Image(volume_case(0)[0], LPS_AFFINE), path)
    return path


def loaded(folder: Path, **changes: object) -> LoadedModel:
    return load_model(write_tiny_model(folder / "m.medseg", **changes), CPU)


class Threshold(torch.nn.Module):
    """Says `liver` where the normalised image is bright: what it should give on the scan is known."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.zeros_like(x), 10 * (x - 1), torch.full_like(x, -50)], 1)


def with_network(model: LoadedModel, network: torch.nn.Module) -> LoadedModel:
    return LoadedModel(model.bundle, [network], model.device, model.dtype)


def test_the_answer_lies_on_the_scans_own_voxels(tmp_path: Path, scan: Path) -> None:
    model = with_network(loaded(tmp_path), Threshold())
    classes = predict_case(model, [scan], CPU)
    volume = read_volume(scan)
    assert classes.grid == volume.grid
    np.testing.assert_array_equal(classes.grid.affine, LPS_AFFINE)
    # Same voxel size, other axis directions: an exact copy, so the answer is known voxel by voxel.
    expected = (volume.array[0] - volume.array.mean()) / volume.array.std() > 1
    assert (classes.array.astype(bool) != expected).mean() < 1e-3
    assert expected.sum() > 100


def test_it_is_preprocess_window_and_restore(tmp_path: Path, scan: Path) -> None:
    model = loaded(tmp_path, spacing=(1.3, 1.3, 1.3), crop_nonzero=True)
    volume, plan = read_volume(scan), model.bundle.plan
    prepared = preprocess(volume, plan.preprocessing)
    logits = predict_logits(model.networks[0], prepared.array, plan.patch_voxels, batch=2)
    expected = restore(logits, prepared.grid, volume.grid).array
    np.testing.assert_array_equal(predict_case(model, [scan], CPU).array, expected)
    assert len(np.unique(expected)) > 1


def test_several_weights_are_averaged(tmp_path: Path, scan: Path) -> None:
    model = loaded(tmp_path, weights=2)
    one = [predict_case(with_network(model, n), [scan], CPU).array for n in model.networks]
    both = predict_case(model, [scan], CPU).array
    assert (one[0] != one[1]).any()
    assert ((both == one[0]) | (both == one[1])).mean() > 0.9
    twice = LoadedModel(model.bundle, [model.networks[0]] * 2, model.device, model.dtype)
    np.testing.assert_array_equal(predict_case(twice, [scan], CPU).array, one[0])


def test_mirroring_obeys_the_model(tmp_path: Path, scan: Path) -> None:
    mirrored = EngineConfig(device="cpu", mirror=True)
    assert mirror_axes(tiny_bundle(flips=[1]), mirrored) == (1,)
    assert mirror_axes(tiny_bundle(flips=[1]), CPU) == ()
    none = loaded(tmp_path, flips=[])
    np.testing.assert_array_equal(predict_case(none, [scan], mirrored).array, predict_case(none, [scan], CPU).array)
    some = loaded(tmp_path, flips=[0, 1])
    assert (predict_case(some, [scan], mirrored).array != predict_case(some, [scan], CPU).array).any()


def test_a_scan_that_does_not_fit_the_model(tmp_path: Path, scan: Path) -> None:
    with pytest.raises(IntensityError, match="p01 has 1 channels where the plan expects 3"):
        predict_case(loaded(tmp_path, n_channels=3), [scan], CPU, where="p01")
    with pytest.raises(GridMismatchError, match="p01 states a physical size"):
        predict_case(loaded(tmp_path, physical=False, spacing=None), [scan], CPU, where="p01")
    with pytest.raises(UnreadableError, match=r"none\.nii\.gz does not exist"):
        predict_case(loaded(tmp_path), [tmp_path / "none.nii.gz"], CPU)


def test_not_a_number(tmp_path: Path) -> None:
    array = volume_case(0)[0]
    array[3, 4, 5] = np.nan
    array[0, 0, 0] = np.inf
    nibabel.save(nibabel.Nifti1Image(array, LPS_AFFINE), tmp_path / "p.nii.gz")
    with pytest.raises(IntensityError, match="p holds 2 NaN or infinite voxels"):
        predict_case(loaded(tmp_path), [tmp_path / "p.nii.gz"], CPU, where="p")


def test_device_and_precision() -> None:
    cpu = torch.device("cpu")
    assert resolve_device("cpu") == cpu
    assert resolve_dtype("auto", cpu) == torch.float32
    assert resolve_dtype("bfloat16", cpu) == torch.bfloat16
    if not torch.cuda.is_available():
        assert resolve_device("auto") == cpu
        with pytest.raises(ConfigError, match="has no GPU"):
            resolve_device("cuda")


def test_a_model_that_is_replaced_meanwhile(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "m.medseg")
    with pytest.raises(ModelFileError, match="was replaced while it was in use"):
        load_model(path, CPU, sha256="0" * 64)


def test_the_section_predict() -> None:
    assert PredictConfig().split == ["test"]
    assert PredictConfig(split="val").split == ["val"]  # type: ignore[arg-type]
    assert PredictConfig(split=["val", "test"], overlap=0.25).engine == EngineConfig(overlap=0.25)
    for wrong in ({"split": "tset"}, {"overlap": 1.0}, {"split": []}, {"batch": 0}, {"device": "tpu"}):
        with pytest.raises(ValueError, match=r"\w"):
            PredictConfig(**wrong)  # type: ignore[arg-type]


def test_a_slice_model_takes_a_volume_slice_by_slice(tmp_path: Path, scan: Path) -> None:
    model = loaded(tmp_path, patch_voxels=(16, 16, 1))
    classes = predict_case(model, [scan], CPU)
    assert classes.array.shape == (24, 20, 16)
    assert isinstance(classes.grid, Grid)
