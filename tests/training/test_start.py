"""Fine-tuning starts with the very weights of the file, and rows go by the names of structures, not by their places."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import SCHEME, tiny_bundle, tiny_plan, write_tiny_model

from medseg.core.errors import ModelFileError
from medseg.core.labels import LabelScheme, Region, Structure
from medseg.inference.bundle import Bundle, Description, empty_network, read_bundle, write_bundle
from medseg.models.layers import Network
from medseg.training.start import load_start, origin

OPTIONS = {"features": [4, 8, 16]}
FLAT = (16, 16, 1)


def scheme(*names: str) -> LabelScheme:
    return LabelScheme(structures=[Structure(name=name, id=index) for index, name in enumerate(names, start=1)])


def fresh(labels: LabelScheme, architecture: str = "unet", options: dict | None = None, **plan: object) -> Network:
    torch.manual_seed(99)
    return empty_network(architecture, OPTIONS if options is None else options, tiny_plan(**plan), labels.n_outputs)


def written(
    path: Path, labels: LabelScheme, architecture: str = "unet", options: dict | None = None, weights: int = 1, **plan: object
) -> Path:
    options = OPTIONS if options is None else options
    states = []
    for seed in range(weights):
        torch.manual_seed(seed)
        network = empty_network(architecture, options, tiny_plan(**plan), labels.n_outputs)
        for tensor in network.state_dict().values():  # norms and biases too, which all start alike
            tensor.copy_(torch.rand(tensor.shape) * 100)
        states.append(network.state_dict())
    about = Description(model="big", architecture=architecture, options=options, plan=tiny_plan(**plan), labels=labels)
    write_bundle(path, Bundle(about, tuple(states), "# big\n"))
    return path


def same(name: str, a: Network, b: dict[str, torch.Tensor]) -> bool:
    return torch.equal(a.state_dict()[name], b[name])


def test_the_same_structures_give_the_same_network(tmp_path: Path) -> None:
    path, labels = written(tmp_path / "m.medseg", scheme("a", "b")), scheme("a", "b")
    network, weights = fresh(labels), read_bundle(path).weights[0]
    count = len(weights)
    assert load_start(path, network, labels) == [f"starts from big (unet): {count} of {count} tensors"]
    assert set(network.state_dict()) == set(weights)
    assert all(same(name, network, weights) for name in weights)


def test_rows_go_by_name(tmp_path: Path) -> None:
    path = written(tmp_path / "m.medseg", scheme("a", "b", "c"))
    labels = scheme("c", "new", "a")
    network, weights = fresh(labels), read_bundle(path).weights[0]
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    (sentence,) = load_start(path, network, labels)
    assert "heads begin anew for new and keep background, c, a" in sentence
    assert f"{len(weights) - 2} of {len(weights)} tensors" in sentence
    heads = sorted(name for name in weights if "heads" in name)
    assert heads == ["heads.0.bias", "heads.0.weight"]
    for name in heads:
        after = network.state_dict()[name]
        for row, old in enumerate((0, 3, None, 1)):
            assert torch.equal(after[row], before[name][row] if old is None else weights[name][old])
    assert all(same(name, network, weights) for name in weights if name not in heads)


def test_as_many_structures_of_other_names_are_not_the_same(tmp_path: Path) -> None:
    path, labels = written(tmp_path / "m.medseg", scheme("a", "b")), scheme("b", "a")
    network, weights = fresh(labels), read_bundle(path).weights[0]
    load_start(path, network, labels)
    assert torch.equal(network.state_dict()["heads.0.bias"], weights["heads.0.bias"][[0, 2, 1]])


def test_all_deep_supervision_heads_follow(tmp_path: Path) -> None:
    options = {"features": [4, 8, 16, 16]}
    plan = {"patch_voxels": (32, 32, 32)}
    path = written(tmp_path / "m.medseg", scheme("hippocampus"), options=options, **plan)
    labels = scheme("anterior", "posterior")
    network, weights = fresh(labels, options=options, **plan), read_bundle(path).weights[0]
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    (sentence,) = load_start(path, network, labels)
    assert f"{len(weights) - 4} of {len(weights)} tensors" in sentence
    assert "anew for anterior, posterior and keep background" in sentence
    for name in ("heads.0.weight", "heads.0.bias", "heads.1.weight", "heads.1.bias"):
        after = network.state_dict()[name]
        assert torch.equal(after[0], weights[name][0])
        assert torch.equal(after[1:], before[name][1:])


def test_other_deep_supervision_is_no_other_network(tmp_path: Path) -> None:
    labels, plan = scheme("a"), {"patch_voxels": (32, 32, 32)}
    with_it, without = {"features": [4, 8, 16, 16]}, {"features": [4, 8, 16, 16], "deep_supervision": False}
    path = written(tmp_path / "m.medseg", labels, options=without, **plan)
    first, second = load_start(path, fresh(labels, options=with_it, **plan), labels)
    assert "tensors; " not in first
    assert second == "2 tensors of heads that the file does not have begin anew"
    path = written(tmp_path / "n.medseg", labels, options=with_it, **plan)
    assert len(load_start(path, fresh(labels, options=without, **plan), labels)) == 1


@pytest.mark.parametrize("architecture", ["unet", "fcn8s"])
def test_planar_networks_and_other_architectures(tmp_path: Path, architecture: str) -> None:
    options = {"features": [4, 8]} if architecture == "unet" else {"width": 0.03, "head_width": 4, "depth": 11}
    plan = {"patch_voxels": FLAT if architecture == "unet" else (64, 64, 1)}
    path = written(tmp_path / "m.medseg", scheme("a", "b"), architecture, options, **plan)
    labels = scheme("b")
    network, weights = fresh(labels, architecture, options, **plan), read_bundle(path).weights[0]
    load_start(path, network, labels)
    changed = [name for name in weights if network.state_dict()[name].shape != weights[name].shape]
    assert changed
    for name in weights:
        rows = [0, 2] if name in changed else slice(None)
        assert torch.equal(network.state_dict()[name], weights[name][rows] if weights[name].ndim else weights[name])


def test_regions_and_structures_share_no_rows(tmp_path: Path) -> None:
    structures = scheme("a", "b").structures
    regions = LabelScheme(
        structures=structures, regions=[Region(name="all", structures=["a", "b"]), Region(name="b", structures=["b"])]
    )
    path = written(tmp_path / "m.medseg", scheme("a", "b"))
    network = fresh(regions)
    before = network.state_dict()["heads.0.weight"].clone()
    (sentence,) = load_start(path, network, regions)
    assert sentence.endswith("heads begin anew for all, b")
    assert torch.equal(network.state_dict()["heads.0.weight"], before)
    again = written(tmp_path / "n.medseg", regions)
    network = fresh(regions)
    load_start(again, network, regions)
    assert all(same(name, network, read_bundle(again).weights[0]) for name in network.state_dict())


def test_of_an_ensemble_the_first(tmp_path: Path) -> None:
    labels = scheme("a")
    path = written(tmp_path / "m.medseg", labels, weights=3)
    network = fresh(labels)
    assert load_start(path, network, labels)[-1] == "of its 3 sets of weights the first"
    assert all(same(name, network, read_bundle(path).weights[0]) for name in network.state_dict())


def test_what_does_not_fit_is_told(tmp_path: Path) -> None:
    labels = scheme("a")
    path = written(tmp_path / "m.medseg", labels)
    with pytest.raises(ModelFileError, match=r"m\.medseg takes 1 channel\(s\) \(image\) and this run has 2; start with"):
        load_start(path, fresh(labels, n_channels=2, channels=["t1", "t2"]), labels)
    for options in ({"features": [4, 8]}, {"features": [4, 8, 12]}, {"features": [4, 8, 16], "convs_per_stage": 1}):
        network = fresh(labels, options=options)
        before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        with pytest.raises(ModelFileError, match=r"its unet does not fit the network of this run \(\d+ tensors differ"):
            load_start(path, network, labels)
        assert all(same(name, network, before) for name in before)
    with pytest.raises(ModelFileError, match="does not fit"):
        load_start(path, fresh(labels, options={"features": [4, 8]}, patch_voxels=FLAT), labels)
    with pytest.raises(ModelFileError, match="does not exist"):
        load_start(tmp_path / "none.medseg", fresh(labels), labels)


def test_where_a_model_comes_from(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "m.medseg")
    found = origin(path)
    assert found.model == tiny_bundle().description.model
    assert found.sha256 == read_bundle(path).sha256
    assert read_bundle(path).labels == SCHEME
