"""One case through a model: the road there is the road of `prepare`, and the way back ends on the scan's own voxels."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from phantoms import LPS_AFFINE, volume_case
from tiny_models import SCHEME, tiny_bundle, write_tiny_model

from medseg.core.errors import ConfigError, GridMismatchError, IntensityError, ModelFileError, UnreadableError
from medseg.core.grid import Grid
from medseg.core.labels import LabelScheme, Region
from medseg.data.preprocess import preprocess
from medseg.inference.bundle import Bundle
from medseg.inference.config import EngineConfig, PredictConfig, SegmentConfig
from medseg.inference.device import find_device
from medseg.inference.job import SegmentScan
from medseg.inference.postprocess import Postprocessing, Rule, postprocess
from medseg.inference.predict import LoadedModel, load_model, mirror_axes, predict_case
from medseg.inference.restore import restore
from medseg.inference.runtime import together
from medseg.inference.scans import Scan
from medseg.inference.window import predict_logits
from medseg.io.formats import read_volume

CPU = EngineConfig(device="cpu", runtime="torch")


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scans") / "p01.nii.gz"
    nibabel.save(nibabel.Nifti1Image(volume_case(0)[0], LPS_AFFINE), path)
    return path


def loaded(folder: Path, **changes: object) -> LoadedModel:
    return load_model([write_tiny_model(folder / "m.medseg", **changes)], CPU)


class Threshold(torch.nn.Module):
    """Says `liver` where the normalised image is bright: what it should give on the scan is known."""

    def __init__(self, level: float = 1.0) -> None:
        super().__init__()
        self.level = level

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.zeros_like(x), 10 * (x - self.level), torch.full_like(x, -50)], 1)


def with_network(model: LoadedModel, network: torch.nn.Module) -> LoadedModel:
    return with_networks(model, [network])


def with_networks(model: LoadedModel, networks: list[torch.nn.Module], **about: object) -> LoadedModel:
    bundle = Bundle(model.bundle.description.model_copy(update=about), model.bundle.weights[:1] * len(networks), "")
    return LoadedModel(
        bundle, together(networks, bundle.temperatures, bool(bundle.labels.regions)), model.device, model.arithmetic
    )


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
    logits = predict_logits(model.bundle.network(0), prepared.array, plan.patch_voxels, batch=2)
    expected = restore(logits, prepared.grid, volume.grid, model.bundle.labels).array
    np.testing.assert_array_equal(predict_case(model, [scan], CPU).array, expected)
    assert len(np.unique(expected)) > 1


def test_several_weights_are_averaged(tmp_path: Path, scan: Path) -> None:
    model = loaded(tmp_path, weights=2)
    networks = model.bundle.networks()
    one = [predict_case(with_network(model, n), [scan], CPU).array for n in networks]
    both = predict_case(model, [scan], CPU).array
    assert (one[0] != one[1]).any()
    assert ((both == one[0]) | (both == one[1])).mean() > 0.9
    twice = with_networks(model, [networks[0]] * 2)
    np.testing.assert_array_equal(predict_case(twice, [scan], CPU).array, one[0])


class Always(torch.nn.Module):
    """The same logits everywhere, whatever the scan."""

    def __init__(self, *logits: float) -> None:
        super().__init__()
        self.logits = torch.tensor(logits)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.logits.reshape(1, -1, 1, 1, 1).expand(len(x), -1, *x.shape[2:])


def test_each_answer_is_divided_by_its_temperature(tmp_path: Path, scan: Path) -> None:
    model, networks = loaded(tmp_path), [Always(0, 9, 0), Always(0, 0, 4)]
    for temperature, expected in ((None, 1), (2.0, 1), ([1.0, 1.0], 1), ([10.0, 1.0], 2), ([9.0, 3.9], 2), ([9.0, 4.1], 1)):
        classes = predict_case(with_networks(model, networks, temperature=temperature), [scan], CPU)  # type: ignore[arg-type]
        assert (classes.array == expected).all()


def test_postprocessing_happens_on_the_scans_own_grid(tmp_path: Path, scan: Path) -> None:
    model = with_network(loaded(tmp_path, spacing=(1.3, 1.3, 1.3)), Threshold(-0.1))  # noise too
    plain = predict_case(model, [scan], CPU)
    rules = Postprocessing(rules={"liver": Rule(smallest_volume=40.0)})
    cleaned = predict_case(with_networks(model, [Threshold(-0.1)], postprocessing=rules), [scan], CPU)
    np.testing.assert_array_equal(cleaned.array, postprocess(plain.array, rules, SCHEME, plain.grid))
    assert 0 < cleaned.array.sum() < plain.array.sum()
    assert cleaned.grid == plain.grid


def test_regions_are_yes_or_no(tmp_path: Path, scan: Path) -> None:
    scheme = LabelScheme(
        structures=SCHEME.structures,
        regions=[Region(name="organ", structures=["liver", "tumour"]), Region(name="tumour", structures=["tumour"])],
    )
    model = loaded(tmp_path, scheme=scheme, swaps=[(1, 2)])
    assert predict_case(model, [scan], CPU).array.max() <= 2
    mirror = EngineConfig(device="cpu", runtime="torch", mirror=True)
    for logits, expected in (((1, -1), 1), ((1, 0.5), 2), ((-1, -2), 0)):
        assert (predict_case(with_network(model, Always(*logits)), [scan], mirror).array == expected).all()


class Sides(torch.nn.Module):
    """The first half along X is the second channel's, the other half the third's."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        right = (torch.arange(x.shape[2]) >= x.shape[2] // 2).float().reshape(1, 1, -1, 1, 1).expand_as(x)
        return torch.cat([torch.full_like(x, -1), 2 - 3 * right, 3 * right - 1], dim=1)


@pytest.mark.parametrize(
    ("regions", "axes"),
    [
        ([], (0,)),
        ([["liver", "tumour"], ["liver"], ["tumour"]], (0,)),  # the sides change places, their union keeps its own
        ([["liver", "tumour"], ["liver"]], ()),  # what the one side becomes is no region
    ],
)
def test_a_mirrored_pair_keeps_its_sides(tmp_path: Path, scan: Path, regions: list[list[str]], axes: tuple[int, ...]) -> None:
    mirror = EngineConfig(device="cpu", runtime="torch", mirror=True)
    named = [Region(name=" and ".join(names), structures=names, written_as=names[0]) for names in regions]
    scheme = LabelScheme(structures=SCHEME.structures, regions=named)
    pair = {"flips": [0], "swaps": [(1, 2)], "patch_voxels": (24, 24, 16), "spacing": None}
    model = loaded(tmp_path, scheme=scheme, **pair)
    assert mirror_axes(model.bundle, mirror) == axes
    if len(regions) == 2:
        return
    model = with_network(model, Sides())
    plain = predict_case(model, [scan], CPU).array
    assert set(np.unique(plain)) == {1, 2}
    np.testing.assert_array_equal(predict_case(model, [scan], mirror).array, plain)


def test_mirroring_obeys_the_model(tmp_path: Path, scan: Path) -> None:
    mirrored = EngineConfig(device="cpu", runtime="torch", mirror=True)
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


def test_device() -> None:
    cpu = torch.device("cpu")
    assert find_device("cpu") == cpu
    if not torch.cuda.is_available():
        assert find_device("auto") == cpu
        with pytest.raises(ConfigError, match=r"`training\.device` is cuda and this machine has no GPU"):
            find_device("cuda", "training.device")


def test_a_model_that_is_replaced_meanwhile(tmp_path: Path, scan: Path) -> None:
    path = write_tiny_model(tmp_path / "m.medseg")
    job = SegmentScan((path,), "0" * 64, "", SegmentConfig(device="cpu"), tmp_path, tmp_path)
    with pytest.raises(ModelFileError, match="was replaced while it was in use"):
        job.read(Scan("p01", (scan,)))


def test_the_section_predict() -> None:
    assert PredictConfig().split == ["test"]
    assert PredictConfig(split="val").split == ["val"]  # type: ignore[arg-type]
    assert PredictConfig(split=["val", "test"], overlap=0.25).engine == SegmentConfig(overlap=0.25)
    for wrong in ({"split": "tset"}, {"overlap": 1.0}, {"split": []}, {"batch": 0}, {"device": "tpu"}):
        with pytest.raises(ValueError, match=r"\w"):
            PredictConfig(**wrong)  # type: ignore[arg-type]


def test_a_slice_model_takes_a_volume_slice_by_slice(tmp_path: Path, scan: Path) -> None:
    model = loaded(tmp_path, patch_voxels=(16, 16, 1))
    classes = predict_case(model, [scan], CPU)
    assert classes.array.shape == (24, 20, 16)
    assert isinstance(classes.grid, Grid)
