"""Several models used as one."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import SCHEME, tiny_bundle, tiny_plan, write_tiny_model

from medseg.core.errors import ModelFileError
from medseg.core.labels import LabelScheme, Region, Structure
from medseg.data.normalise import CaseNormalisation, FixedNormalisation
from medseg.data.preprocess import Preprocessing
from medseg.inference.bundle import Bundle, Description, Kind, read_bundle, write_bundle
from medseg.inference.postprocess import Postprocessing, Rule
from medseg.inference.together import read_models
from medseg.models.registry import build_network

LARGEST = Postprocessing(rules={"liver": Rule(keep_largest=True)})
NO_SMALL = Postprocessing(rules={"liver": Rule(smallest_volume=5)})


def write(path: Path, seed: int = 0, **about: Any) -> Path:
    """A tiny model whose description has other values."""
    bundle = tiny_bundle(seed=seed)
    write_bundle(path, replace(bundle, description=bundle.description.model_copy(update=about)))
    return path


def write_fcn(path: Path, **about: Any) -> Path:
    """A tiny FCN-8s for the same scans as `tiny_bundle`."""
    options = {"width": 0.02, "depth": 11, "head_width": 8}
    torch.manual_seed(5)
    network = build_network("fcn8s", options, in_channels=1, n_classes=SCHEME.n_outputs, patch_voxels=(16, 16, 8))
    description = Description(model="fcn8s", architecture="fcn8s", options=options, plan=tiny_plan(), labels=SCHEME, **about)
    write_bundle(path, Bundle(description, (network.state_dict(),), "# fcn8s\n"))
    return path


def hash_of(*texts: str, kind: str = "") -> str:
    return hashlib.sha256((kind + "\n".join(sorted(texts))).encode()).hexdigest()


def test_one_file_is_what_read_bundle_gives(tmp_path: Path) -> None:
    path = write(tmp_path / "train/unet/model.medseg", temperature=1.5, postprocessing=LARGEST)
    expected = read_bundle(path)
    for place in (path, path.parent):
        found = read_models([place])
        assert found.sha256 == expected.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
        assert found.description == expected.description and found.card == expected.card and found.mixed == ()


def test_several_files_in_any_order_are_one_model(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{n}.medseg", seed=n, temperature=1.0 + n, postprocessing=LARGEST) for n in range(3)]
    parts = [read_bundle(path) for path in paths]
    whole, other = read_models(paths), read_models(paths[::-1])
    assert whole.sha256 == other.sha256 == hash_of(*(part.sha256 for part in parts))
    assert whole.temperatures == other.temperatures and sorted(whole.temperatures) == [1.0, 2.0, 3.0]
    for temperature, weights in zip(whole.temperatures, whole.weights, strict=True):  # each network keeps its own
        part = parts[round(temperature) - 1]
        assert all(torch.equal(weights[key], part.weights[0][key]) for key in weights)
    assert whole.description.postprocessing == LARGEST and whole.mixed == ()
    assert whole.description.model == "tiny" and whole.card == parts[0].card
    assert read_models([*paths[:2], paths[2]]).sha256 != read_models(paths[:2]).sha256


def test_networks_of_several_kinds(tmp_path: Path) -> None:
    unet, fcn = write(tmp_path / "u.medseg", temperature=2.0), write_fcn(tmp_path / "f.medseg", temperature=3.0)
    whole = read_models([unet, fcn])
    assert whole.description.model == "fcn8s + tiny" and len(whole.mixed) == 2
    x = torch.rand(1, 1, 16, 16, 8)
    of = {"unet": read_bundle(unet), "fcn8s": read_bundle(fcn)}
    for kind, network, temperature in zip(whole.kinds, whole.networks(), whole.temperatures, strict=True):
        part = of[kind.architecture]
        assert kind == Kind(part.description.architecture, part.description.options) and temperature == part.temperatures[0]
        with torch.inference_mode():
            torch.testing.assert_close(network(x), part.networks()[0](x), rtol=0, atol=0)
    assert "# fcn8s" in whole.card and "# tiny" in whole.card


def folds(folder: Path, chosen: list[Postprocessing | None]) -> Path:
    for number, rules in enumerate(chosen):
        write(folder / f"fold_{number}" / "model.medseg", seed=number, temperature=1.0 + number, postprocessing=rules)
    return folder


def test_the_folds_of_a_training_are_joined_as_train_joins_them(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = folds(tmp_path / "unet", [LARGEST] * 6 + [None] * 5)
    whole = read_models([folder])
    assert whole.temperatures == [1.0 + n for n in range(11)]  # 10 after 9, not after 1
    assert whole.description.postprocessing == LARGEST  # most of them chose it
    assert "its 11 folds are joined" in capfd.readouterr().err
    parts = [read_bundle(folder / f"fold_{n}/model.medseg").sha256 for n in range(11)]
    assert whole.sha256 == hash_of(*parts, kind="folds\n")


def test_the_joined_file_of_a_training_is_preferred(tmp_path: Path) -> None:
    folder = folds(tmp_path / "unet", [None, None])
    joined = write_tiny_model(folder / "model.medseg", weights=2)
    assert read_models([folder]).sha256 == read_bundle(joined).sha256


def test_one_by_one_folds_must_agree_in_their_postprocessing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = folds(tmp_path / "unet", [LARGEST, LARGEST, NO_SMALL])
    places = [folder / f"fold_{n}" for n in range(3)]
    whole = read_models(places)
    assert whole.description.postprocessing is None
    said = capfd.readouterr().err
    assert "have different postprocessing, so together they have none" in said and str(places[1]) in said
    assert whole.sha256 != read_models([folder], quiet=True).sha256  # other masks, so another hash
    read_models(places, quiet=True)
    assert capfd.readouterr().err == ""
    assert read_models(places[:2]).description.postprocessing == LARGEST


@pytest.mark.parametrize("missing", [0, 1])
def test_a_fold_that_is_missing(tmp_path: Path, missing: int) -> None:
    folder = folds(tmp_path / "unet", [None] * 3)
    (folder / f"fold_{missing}/model.medseg").unlink()
    with pytest.raises(ModelFileError, match=rf"fold_{missing}/model\.medseg does not exist; finish the training"):
        read_models([folder])
    (folder / f"fold_{missing}").rmdir()
    with pytest.raises(ModelFileError, match=rf"fold_{missing}/model\.medseg does not exist"):
        read_models([folder])


def test_places_that_hold_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="no model is named"):
        read_models([])
    with pytest.raises(ModelFileError, match=r"holds neither a model\.medseg nor folds"):
        read_models([tmp_path])
    with pytest.raises(ModelFileError, match="does not exist"):
        read_models([tmp_path / "none.medseg"])


def test_no_network_counts_twice(tmp_path: Path) -> None:
    one, other = write(tmp_path / "1.medseg"), write(tmp_path / "2.medseg", seed=1)
    for places in ([one, one], [one, other, Path(str(one))], [one, write(tmp_path / "3.medseg", postprocessing=LARGEST)]):
        with pytest.raises(ModelFileError, match=r"hold the same network, which would count twice"):
            read_models(places)
    folder = folds(tmp_path / "unet", [None, None])
    with pytest.raises(ModelFileError, match=r"fold_1 and .*unet hold the same network"):
        read_models([folder, folder / "fold_1"])


def test_joined_models_are_joined_further(tmp_path: Path) -> None:
    folder, third = folds(tmp_path / "unet", [LARGEST, LARGEST]), write(tmp_path / "3.medseg", seed=9, temperature=7.0)
    whole = read_models([folder, third], quiet=True)
    assert len(whole.weights) == 3 and sorted(whole.temperatures) == [1.0, 2.0, 7.0]
    with pytest.raises(ModelFileError, match="hold the same network"):
        read_models([folder, third, folder / "fold_0"])


def preparing(**values: Any) -> dict[str, Any]:
    about = {"physical": True, "spacing": (1.0, 1.5, 2.0), "order": 1, "normalisation": [CaseNormalisation()]}
    return {"plan": tiny_plan(preprocessing=Preprocessing(**(about | values)))}


def labelled(**values: Any) -> dict[str, Any]:
    return {"labels": LabelScheme(**({"structures": SCHEME.structures} | values))}


@pytest.mark.parametrize(
    ("about", "what"),
    [
        (preparing(spacing=(1.0, 1.5, 2.5)), r"voxel size \(1 x 1\.5 x 2\.5 and 1 x 1\.5 x 2\)"),
        (preparing(spacing=None), r"voxel size \(each scan's own and 1 x 1\.5 x 2\)"),
        (preparing(physical=False), r"physical size \(pixels and mm\)"),
        (preparing(crop_nonzero=True), "cropping"),
        (preparing(order=3), r"interpolation order \(3 and 1\)"),
        (preparing(normalisation=[FixedNormalisation(low=0, high=9, mean=1, std=1)]), "normalisation"),
        (preparing(normalisation=[CaseNormalisation(clip=True)]), "normalisation"),
        ({"plan": tiny_plan(channels=["t2"])}, r"channels \(t2: 1 and image: 1\)"),
        ({"plan": tiny_plan(patch_voxels=(16, 16, 16))}, r"patch \(16 x 16 x 16 and 16 x 16 x 8\)"),
        ({"plan": tiny_plan(flips=[0])}, r"mirroring \(\[0\] and \[0, 1\]\)"),
        ({"plan": tiny_plan(swaps=[(1, 2)])}, "paired structures"),
        (labelled(structures=[Structure(name="liver", id=3), Structure(name="tumour", id=4)]), "structures"),
        (labelled(structures=[Structure(name="liver", id=3), Structure(name="cyst", id=300)]), "structures"),
        (labelled(structures=SCHEME.structures[::-1]), "structures"),
        (labelled(regions=[Region(name="all", structures=SCHEME.names), Region(name="t", structures=["tumour"])]), "regions"),
    ],
)
def test_models_for_other_scans_are_refused(tmp_path: Path, about: dict[str, Any], what: str) -> None:
    one, other = write(tmp_path / "one.medseg"), write(tmp_path / "other.medseg", seed=1, **about)
    with pytest.raises(ModelFileError, match=rf"other\.medseg differs from .*one\.medseg in {what}.*; models work together only"):
        read_models([one, other])


def test_every_file_that_differs_is_named(tmp_path: Path) -> None:
    one, alike = write(tmp_path / "one.medseg"), write(tmp_path / "alike.medseg", seed=1)
    odd = [write(tmp_path / f"odd{n}.medseg", seed=2 + n, **preparing(order=3, spacing=None)) for n in range(2)]
    with pytest.raises(
        ModelFileError, match=r"odd0\.medseg .* voxel size .* and interpolation order .*, and .*odd1\.medseg"
    ) as info:
        read_models([one, alike, *odd])
    assert "alike" not in str(info.value)


def test_what_is_true_of_one_model_only_is_left_out(tmp_path: Path) -> None:
    figures = {"bfloat16": {"allowed": True, "runtime": "openvino", "structures": {}}}
    shared = {"fingerprint": {"cases": 3}, "precision_figures": figures, "finish": {"dice": {"before": 0.1, "after": 0.2}}}
    one, other = write(tmp_path / "1.medseg", **shared), write(tmp_path / "2.medseg", seed=1, **shared)
    about = read_models([one, other]).description
    assert about.fingerprint == {"cases": 3} and about.finish == {}
    assert about.precision_figures is not None and about.precision_figures["bfloat16"]["allowed"]
    third = write(tmp_path / "3.medseg", seed=2, fingerprint={"cases": 4})
    together = read_models([one, third]).description
    assert together.fingerprint == {} and together.precision_figures is None
    figures["bfloat16"]["allowed"] = False
    worse = write(tmp_path / "4.medseg", seed=3, precision_figures=figures)
    about = read_models([one, worse]).description
    assert about.precision_figures is not None and not about.precision_figures["bfloat16"]["allowed"]


def test_the_answer_is_the_mean_of_all(tmp_path: Path) -> None:
    """Weights and temperatures keep together whatever the order."""
    paths = [write(tmp_path / "1.medseg", temperature=0.5), write_fcn(tmp_path / "2.medseg", temperature=4.0)]
    x = torch.rand(1, 1, 16, 16, 8)

    def answer(bundle: Bundle) -> np.ndarray:
        with torch.inference_mode():
            pairs = zip(bundle.networks(), bundle.temperatures, strict=True)
            return sum((network(x) / temperature).numpy() for network, temperature in pairs) / len(bundle.weights)  # type: ignore[return-value]

    expected = (answer(read_bundle(paths[0])) + answer(read_bundle(paths[1]))) / 2
    np.testing.assert_allclose(answer(read_models(paths)), expected, rtol=1e-5, atol=1e-6)
