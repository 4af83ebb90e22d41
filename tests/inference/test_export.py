"""ONNX files: what onnxruntime makes of them is what PyTorch makes of the model."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import OPTIONS, SCHEME, tiny_bundle, tiny_plan, write_tiny_model
from typer.testing import CliRunner

from medseg.core.errors import ConfigError, MissingExtraError, ModelFileError
from medseg.core.labels import LabelScheme, Region
from medseg.inference import export as exporting
from medseg.inference.bundle import Bundle, Description, read_bundle, write_bundle
from medseg.inference.card import model_card
from medseg.inference.export import export_onnx, metadata
from medseg.inference.postprocess import Postprocessing, Rule
from medseg.models.registry import build_network
from pipelines.cli import app
from pipelines.export import export

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

SMALL = {"width": 0.02, "depth": 11, "head_width": 16}


def bundle_of(
    architecture: str, options: dict[str, Any], patch_voxels: tuple[int, int, int], n_channels: int = 1, **about: Any
) -> Bundle:
    """A model with random weights; one whose options name VGG weights is built without reading them, as from a model file."""
    plan = tiny_plan(patch_voxels=patch_voxels, n_channels=n_channels)
    torch.manual_seed(3)
    network = build_network(
        architecture,
        options,
        in_channels=n_channels,
        n_classes=SCHEME.n_outputs,
        patch_voxels=patch_voxels,
        pretrained=False,
    )
    with torch.no_grad():  # some scores start at zero, and so would every answer
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.01)
    description = Description(model="m", architecture=architecture, options=options, plan=plan, labels=SCHEME, **about)
    return Bundle(description, (network.state_dict(),), "# m\n", "ab" * 32)


def run(path: Path, patches: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (answer,) = session.run(["logits"], {"image": patches})
    return answer


@pytest.mark.parametrize(
    ("architecture", "options", "patch_voxels", "n_channels"),
    [
        ("unet", {"features": [4, 8, 16]}, (24, 32, 24), 1),
        ("unet", {"features": [4, 8, 16], "deep_supervision": False}, (16, 16, 16), 2),
        ("unet", {"features": [4, 8, 16], "convs_per_stage": 3, "dropout": 0.3}, (32, 32, 8), 1),  # anisotropic strides
        ("unet", {"features": [4, 8]}, (17, 19, 15), 1),  # padded and cropped inside
        ("unet", {"features": [4, 8, 16]}, (32, 40, 1), 3),
        ("unet", {"features": [4, 8, 16]}, (33, 1, 27), 1),
        ("unet", {"features": [4, 8]}, (1, 16, 24), 1),
        ("fcn32s", SMALL, (32, 40, 24), 1),
        ("fcn16s", SMALL, (33, 40, 24), 2),
        ("fcn8s", SMALL | {"depth": 16, "head_kernel": 5, "dropout": 0.1}, (32, 33, 32), 1),
        ("fcn32s", SMALL, (64, 50, 1), 3),
        ("fcn16s", SMALL, (1, 64, 40), 1),
        ("fcn8s", SMALL | {"weights": "vgg.safetensors"}, (45, 1, 64), 3),  # as published: without batch norm
    ],
)
def test_onnxruntime_answers_as_pytorch(
    tmp_path: Path, architecture: str, options: dict[str, Any], patch_voxels: tuple[int, int, int], n_channels: int
) -> None:
    bundle = bundle_of(architecture, options, patch_voxels, n_channels)
    (written,) = export_onnx(bundle, tmp_path / "m.onnx")
    assert 0 <= written.relative <= 1e-4 and written.path == tmp_path / "m.onnx"
    network = bundle.networks()[0]
    for batch in (1, 2, 5):
        patches = np.random.default_rng(batch + 10).standard_normal((batch, n_channels, *patch_voxels), np.float32)
        with torch.inference_mode():
            expected = network(torch.from_numpy(patches)).numpy()
        answer = run(written.path, patches)
        assert answer.shape == (batch, SCHEME.n_outputs, *patch_voxels) and answer.dtype == np.float32
        np.testing.assert_allclose(answer, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
        assert expected.std() > 0


def test_the_file_says_what_it_takes_and_holds_no_paths(tmp_path: Path) -> None:
    (written,) = export_onnx(bundle_of("unet", OPTIONS, (16, 16, 8)), tmp_path / "m.onnx")
    model = onnx.load(written.path)
    onnx.checker.check_model(model, full_check=True)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 18)]
    for value, name, channels in ((model.graph.input[0], "image", 1), (model.graph.output[0], "logits", SCHEME.n_outputs)):
        sizes = value.type.tensor_type.shape.dim
        assert value.name == name and value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
        assert sizes[0].dim_param == "batch" and [d.dim_value for d in sizes[1:]] == [channels, 16, 16, 8]
    content = written.path.read_bytes()
    for text in (b"stack_trace", b".py", str(Path(__file__).parents[2]).encode()):
        assert text not in content


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    bundle = bundle_of("unet", OPTIONS, (16, 16, 8))
    for name in ("a.onnx", "b.onnx"):
        export_onnx(bundle, tmp_path / name)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_what_someone_needs_to_use_it_is_in_it(tmp_path: Path) -> None:
    rules = Postprocessing(rules={"liver": Rule(keep_largest=True)})
    card = model_card("m", "unet", tiny_plan(), SCHEME, "livers", 8, 2, {"liver": 0.9}, licence="CC BY-SA 4.0")
    bundle = bundle_of("unet", OPTIONS, (16, 16, 8), temperature=1.25, postprocessing=rules)
    bundle = Bundle(bundle.description, bundle.weights, card, bundle.sha256)
    (written,) = export_onnx(bundle, tmp_path / "m.onnx")
    found = {p.key: p.value for p in onnx.load(written.path).metadata_props}
    assert found.pop("card") == card and found.pop("data_licence") == "CC BY-SA 4.0"
    facts = {key: json.loads(value) for key, value in found.items()}
    assert LabelScheme.model_validate(facts["labels"]) == SCHEME
    assert facts["preprocessing"] == json.loads(tiny_plan().preprocessing.model_dump_json()) == facts["plan"]["preprocessing"]
    assert facts["patch_voxels"] == [16, 16, 8] and facts["temperature"] == 1.25 and facts["flips"] == [0, 1]
    assert facts["outputs"] == ["background", "liver", "tumour"] and facts["values"] == [0, 3, 300]
    assert facts["activation"] == "softmax" and facts["postprocessing"] == rules.model_dump(mode="json")
    assert facts["model_sha256"] == "ab" * 32 and facts["network"] == {"index": 0, "of": 1, "architecture": "unet"}


def test_regions_are_told_with_the_values_that_they_are_painted_with() -> None:
    regions = [Region(name="all", structures=SCHEME.names), Region(name="core", structures=["tumour"])]
    facts = metadata(tiny_bundle(scheme=LabelScheme(structures=SCHEME.structures, regions=regions)))
    assert json.loads(facts["outputs"]) == ["all", "core"] and json.loads(facts["activation"]) == "sigmoid"
    assert json.loads(facts["painting"]) == [[0, 3], [1, 300]]
    assert facts["data_licence"] == "not stated"


def test_each_of_several_networks_is_a_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    bundle = tiny_bundle(weights=2)
    about = bundle.description.model_copy(update={"temperature": [1.5, 2.5]})
    write_bundle(tmp_path / "unet/model.medseg", Bundle(about, bundle.weights, bundle.card))
    assert export(tmp_path / "unet") == 0  # a training folder
    said = capfd.readouterr()
    assert said.out == "" and len(said.err.splitlines()) == 2 and "differs from PyTorch's by at most" in said.err
    x = np.random.default_rng(0).standard_normal((1, 1, 16, 16, 8), np.float32)
    for index, network in enumerate(read_bundle(tmp_path / "unet/model.medseg").networks()):
        path = tmp_path / f"unet/model_{index}.onnx"
        with torch.inference_mode():
            np.testing.assert_allclose(run(path, x), network(torch.from_numpy(x)).numpy(), atol=1e-4)
        facts = {p.key: p.value for p in onnx.load(path).metadata_props}
        assert json.loads(facts["temperature"]) == (1.5, 2.5)[index] and json.loads(facts["network"])["index"] == index
    assert not (tmp_path / "unet/model.onnx").exists()


def test_the_command(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "liver.v2.medseg")
    assert CliRunner().invoke(app, ["export", str(model)]).exit_code == 0
    assert (
        CliRunner().invoke(app, ["export", str(model), "--format", "onnx", "--output", str(tmp_path / "x/y.onnx")]).exit_code == 0
    )
    names = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.*"))
    assert names == ["liver.v2.medseg", "liver.v2.onnx", "x/y.onnx"]


def test_what_cannot_be_exported(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "m.medseg")
    before = model.read_bytes()
    with pytest.raises(ConfigError, match=r"--format tflite: no such format \(known: onnx\)"):
        export(model, "tflite")
    with pytest.raises(ConfigError, match="is the model itself"):
        export(model, output=model)
    with pytest.raises(ConfigError, match="is a folder"):
        export(model, output=tmp_path)
    with pytest.raises(ModelFileError, match="does not exist"):
        export(tmp_path / "none.medseg")
    assert model.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["m.medseg"]


def test_an_answer_that_differs_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = exporting._exported

    def wrong(network: torch.nn.Module, shape: tuple[int, ...]) -> Any:
        with torch.no_grad():
            network.get_parameter("heads.0.bias").add_(0.5)
        model = written(network, shape)
        with torch.no_grad():
            network.get_parameter("heads.0.bias").sub_(0.5)
        return model

    monkeypatch.setattr(exporting, "_exported", wrong)
    with pytest.raises(ModelFileError, match=r"m\.onnx: onnxruntime's answer differs from PyTorch's by .* nothing was written"):
        export_onnx(tiny_bundle(), tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_a_network_that_is_too_large_for_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "MOST_BYTES", 1000)
    with pytest.raises(ModelFileError, match=r"would hold .* an ONNX file holds 2"):
        export_onnx(tiny_bundle(), tmp_path / "m.onnx")


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "onnxscript"])
def test_a_package_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    found = importlib.import_module

    def importing(name: str) -> Any:
        if name == package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return found(name)

    monkeypatch.setattr(importlib, "import_module", importing)
    with pytest.raises(MissingExtraError, match=rf'{package}\); run `pip install "medseg\[onnx\]"`'):
        export_onnx(tiny_bundle(), tmp_path / "m.onnx")
