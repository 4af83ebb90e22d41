"""What runs a network: PyTorch and OpenVINO agree, what was converted is kept, and the choice between them has reasons."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from phantoms import LPS_AFFINE, volume_case
from scipy.special import expit, softmax
from tiny_models import SCHEME, tiny_bundle, tiny_plan, write_tiny_model

from medseg.core.errors import ConfigError, MissingExtraError
from medseg.inference import runtime
from medseg.inference.bundle import Bundle, Description
from medseg.inference.config import EngineConfig
from medseg.inference.predict import LoadedModel, load_model, predict_case
from medseg.inference.runtime import OpenVinoNetwork, cache_folder, choose_arithmetic, converted, ready, together
from medseg.models.registry import build_network

ROOT = Path(__file__).resolve().parents[2]
CPU, GPU = torch.device("cpu"), torch.device("cuda")
SMALL_FCN = {"width": 0.05, "depth": 11, "head_width": 16}
NETWORKS = {
    "U-Net 3D": ("unet", {"features": [4, 8, 16]}, (16, 16, 8)),
    "U-Net 2D": ("unet", {"features": [4, 8, 16]}, (32, 24, 1)),
    "FCN 3D": ("fcn8s", SMALL_FCN, (32, 32, 16)),
    "FCN 2D": ("fcn8s", SMALL_FCN, (33, 40, 1)),  # poolings that round up, and a crop
}


def bundle_of(architecture: str, options: dict[str, Any], patch: tuple[int, int, int], **about: Any) -> Bundle:
    """With random weights."""
    torch.manual_seed(3)
    network = build_network(architecture, options, in_channels=1, n_classes=SCHEME.n_outputs, patch_voxels=patch)
    plan = tiny_plan(patch_voxels=patch)
    description = Description(model="m", architecture=architecture, options=options, plan=plan, labels=SCHEME, **about)
    return Bundle(description, (network.state_dict(),), "")


def loaded(bundle: Bundle, settings: EngineConfig, cache: Path) -> LoadedModel:
    arithmetic = choose_arithmetic(settings, bundle, CPU)
    return LoadedModel(bundle, ready(bundle, arithmetic, CPU, cache), CPU, arithmetic)


@pytest.mark.parametrize("kind", NETWORKS)
def test_openvino_and_pytorch_agree(tmp_path: Path, kind: str) -> None:
    bundle = bundle_of(*NETWORKS[kind])
    asked = {name: EngineConfig(device="cpu", runtime=name) for name in ("torch", "openvino")}  # type: ignore[arg-type]
    models = {name: loaded(bundle, settings, tmp_path) for name, settings in asked.items()}
    for count in (1, 3, 1):  # of windows at once; each has shapes of its own
        windows = torch.randn(count, 1, *bundle.plan.patch_voxels)
        with torch.inference_mode():
            one, other = (models[name].run(windows) for name in asked)
        assert one.shape == other.shape == (count, 3, *bundle.plan.patch_voxels) and other.dtype == torch.float32
        assert (one - other).abs().max() < 1e-4 * max(1.0, float(one.abs().max()))
    scan = tmp_path / "scan.nii.gz"
    nibabel.save(nibabel.Nifti1Image(volume_case(0, (40, 36, 20))[0], LPS_AFFINE), scan)
    masks = [predict_case(models[name], [scan], settings).array for name, settings in asked.items()]
    assert len(np.unique(masks[0])) > 1
    assert (masks[0] != masks[1]).mean() < 1e-4
    rough = OpenVinoNetwork(next(tmp_path.glob("*.xml")), "bfloat16")(windows)
    assert (one - rough).abs().max() < 0.1 * max(1.0, float(one.abs().max()))


def files(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir() if path.name != ".lock"}


def test_a_network_is_converted_once_and_again_where_its_file_was_damaged(tmp_path: Path) -> None:
    network = bundle_of(*NETWORKS["U-Net 2D"]).network(0)
    path, shape = tmp_path / "cache/network.xml", (1, 32, 24, 1)
    assert converted(network, shape, path) == path
    first, window = files(path.parent), torch.randn(1, *shape)
    answer = OpenVinoNetwork(path)(window)
    assert set(first) == {"network.xml", "network.bin", "network.json"}
    converted(network, shape, path)
    assert files(path.parent) == first  # the times too
    (path.parent / ".new-0123abcd").mkdir()  # what a killed process left
    (path.parent / ".new-0123abcd/network.bin").write_bytes(b"half")
    weights = first["network.bin"][1]
    damages = {
        "cut": lambda: path.with_suffix(".bin").write_bytes(weights[: len(weights) // 2]),
        "altered": lambda: path.with_suffix(".bin").write_bytes(weights[:100] + b"\x7f" + weights[101:]),
        "another": lambda: path.write_bytes(b"<net/>"),
        "lost": lambda: path.with_suffix(".json").unlink(),
    }
    for damage in damages.values():
        damage()
        converted(network, shape, path)
        made = files(path.parent)
        assert set(made) == set(first) and made["network.bin"][1] == weights
        assert made["network.json"][0] > first["network.json"][0]
        torch.testing.assert_close(OpenVinoNetwork(path)(window), answer, rtol=0, atol=0)


def test_another_network_or_other_weights_have_another_file(tmp_path: Path) -> None:
    settings = EngineConfig(device="cpu", runtime="openvino")
    first = bundle_of(*NETWORKS["U-Net 2D"])
    key = next(iter(first.weights[0]))
    other = replace(first, weights=({**first.weights[0], key: first.weights[0][key] + 1},))
    for bundle, count in ((first, 1), (first, 1), (other, 2)):
        loaded(bundle, settings, tmp_path)
        assert len(list(tmp_path.glob("*.xml"))) == count


CONVERT = """
import sys, time
told = []
sys.addaudithook(lambda event, _: told.append(event) if event.startswith("socket.") else None)
from pathlib import Path
import torch
from medseg.inference.bundle import read_bundle
from medseg.inference.runtime import OpenVinoNetwork, converted
folder, model, me = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
network, shape = read_bundle(model).network(0), (1, 16, 16, 8)
(folder / f"{me}.ready").touch()
while len(list(folder.glob("*.ready"))) < 2:
    time.sleep(0.001)
path = converted(network, shape, folder / "cache" / "network.xml")
window = torch.arange(16 * 16 * 8.0).reshape(1, *shape) / 1000
with torch.inference_mode():
    assert (OpenVinoNetwork(path)(window) - network(window)).abs().max() < 1e-4
print(path.stat().st_mtime_ns, told, sys.modules.get("openvino_telemetry"))
"""


def test_two_processes_convert_at_once_and_nothing_is_told_to_anyone(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model.medseg")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    commands = [[sys.executable, "-c", CONVERT, str(tmp_path), str(model), str(n)] for n in range(2)]
    both = [subprocess.Popen(c, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for c in commands]
    said = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert said[0] == said[1]  # made once
    assert said[0].endswith(" [] None\n")  # no socket was made, and the module that sends word was not imported
    assert {path.name for path in (tmp_path / "cache").iterdir()} == {".lock", "network.xml", "network.bin", "network.json"}


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A folder with a model in it that nobody may write to, root neither."""
    place = tmp_path / "models"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)]
    mounted = os.name == "posix" and shutil.which("mount") and not subprocess.run(mount, capture_output=True).returncode
    write_tiny_model(place / "model.medseg")
    if mounted:
        subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
    else:
        place.chmod(0o500)
    if os.access(place, os.W_OK):
        pytest.skip("a folder cannot be made read-only here")
    yield place
    if mounted:
        subprocess.run(["umount", str(place)], check=True)
    else:
        place.chmod(0o700)


@pytest.mark.skipif(sys.platform != "linux", reason="XDG_CACHE_HOME")
def test_beside_a_model_that_is_read_only_nothing_is_written(
    tmp_path: Path, read_only: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model = read_only / "model.medseg"
    load_model([model], EngineConfig(device="cpu", runtime="openvino"))
    assert [path.name for path in read_only.iterdir()] == ["model.medseg"]
    assert len(list((tmp_path / "cache/medseg/openvino").glob("*.bin"))) == 1


def test_beside_other_models_it_lies_in_a_hidden_folder(tmp_path: Path) -> None:
    assert cache_folder(tmp_path / "model.medseg") == tmp_path / ".openvino"
    assert cache_folder(tmp_path) == tmp_path / ".openvino"  # a folder of folds


ALLOWED, REFUSED = ({"bfloat16": {"allowed": allowed, "runtime": "openvino"}} for allowed in (True, False))


@pytest.mark.parametrize(
    ("figures", "unit", "asked", "precision", "reason"),
    [
        (None, "AMX", "auto", "float32", "the model has no figures on bfloat16"),
        (ALLOWED, "AMX", "auto", "bfloat16", "the processor has AMX, and the masks of the validation cases are the same in it"),
        (ALLOWED, None, "auto", "float32", "the processor has no bfloat16"),
        (REFUSED, "AMX", "auto", "float32", "in bfloat16 the masks of the validation cases were worse"),
        (REFUSED, "AMX", "bfloat16", "bfloat16", "as asked"),
        (ALLOWED, "AMX", "float32", "float32", "as asked"),
    ],
)
def test_which_numbers_a_processor_computes_in(
    monkeypatch: pytest.MonkeyPatch, figures: Any, unit: str | None, asked: Any, precision: str, reason: str
) -> None:
    monkeypatch.setattr(runtime, "bfloat16_unit", lambda: unit)
    for name, expected in (("auto", "openvino"), ("openvino", "openvino"), ("torch", "torch")):
        measured = figures and {"bfloat16": figures["bfloat16"] | {"runtime": expected}}
        bundle = bundle_of(*NETWORKS["U-Net 3D"], precision_figures=measured)
        found = choose_arithmetic(EngineConfig(precision=asked, runtime=name), bundle, CPU, scans=1000)  # type: ignore[arg-type]
        assert (found.runtime, found.precision, found.reason, found.compiled) == (expected, precision, reason, False)


def test_figures_of_another_runtime_prove_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "bfloat16_unit", lambda: "AMX")
    found = choose_arithmetic(EngineConfig(runtime="torch"), bundle_of(*NETWORKS["U-Net 3D"], precision_figures=ALLOWED), CPU)
    assert (found.precision, found.reason) == ("float32", "the model's figures on bfloat16 were measured with openvino")


@pytest.mark.parametrize(
    ("figures", "has", "asked", "precision", "reason"),
    [
        (None, True, "auto", "bfloat16", "the GPU computes in it"),
        (None, False, "auto", "float32", "the GPU has no bfloat16"),
        (REFUSED, True, "auto", "float32", "in bfloat16 the masks of the validation cases were worse"),
        (ALLOWED, True, "float32", "float32", "as asked"),
    ],
)
def test_which_numbers_a_gpu_computes_in(
    monkeypatch: pytest.MonkeyPatch, figures: Any, has: bool, asked: Any, precision: str, reason: str
) -> None:
    monkeypatch.setattr(runtime, "has_bfloat16", lambda device: has)
    bundle = bundle_of(*NETWORKS["U-Net 3D"], precision_figures=figures)
    found = choose_arithmetic(EngineConfig(precision=asked), bundle, GPU, scans=runtime.COMPILING_PAYS_FROM)
    assert (found.runtime, found.precision, found.reason, found.compiled) == ("torch", precision, reason, True)
    assert not choose_arithmetic(EngineConfig(precision=asked), bundle, GPU, runtime.COMPILING_PAYS_FROM - 1).compiled


def test_long_convolutions_over_small_pictures_are_not_trusted_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "bfloat16_unit", lambda: "AMX")
    found = choose_arithmetic(EngineConfig(), bundle_of(*NETWORKS["FCN 3D"], precision_figures=ALLOWED), CPU)
    assert found.precision == "float32" and "longer than the pictures that they see" in found.reason  # fc6: 3 over 1 voxel
    assert (
        choose_arithmetic(EngineConfig(), bundle_of(*NETWORKS["FCN 2D"], precision_figures=ALLOWED), CPU).precision == "bfloat16"
    )


def test_openvino_where_there_is_none_or_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = tiny_bundle()
    with pytest.raises(ConfigError, match="`runtime` openvino works on the CPU; leave it out to use the GPU"):
        choose_arithmetic(EngineConfig(runtime="openvino"), bundle, GPU)
    monkeypatch.setattr(runtime, "has_openvino", lambda: False)
    assert choose_arithmetic(EngineConfig(), bundle, CPU).runtime == "torch"
    with pytest.raises(MissingExtraError, match="pip install openvino"):
        choose_arithmetic(EngineConfig(runtime="openvino"), bundle, CPU)


@pytest.mark.parametrize("size", [1.0, 90.0])  # of logits; the larger ones are certain beyond float32
@pytest.mark.parametrize("regions", [False, True])
def test_together_is_the_mean_of_the_probabilities(regions: bool, size: float) -> None:
    rng = np.random.default_rng(0)
    logits = [rng.normal(0, size, (2, 3, 4, 5, 2)) for _ in range(3)]
    temperatures = [1.0, 2.5, 0.7]
    runs = [lambda stack, answer=answer: torch.from_numpy(answer).float() for answer in logits]
    answer = together(runs, temperatures, regions)(torch.zeros(2, 1, 4, 5, 2)).double().numpy()
    scaled = [one / temperature for one, temperature in zip(logits, temperatures, strict=True)]
    shares = [expit(one) if regions else softmax(one, 1) for one in scaled]
    mean = np.mean(shares, 0)
    np.testing.assert_allclose(expit(answer) if regions else softmax(answer, 1), mean, atol=1e-6)
    assert np.isfinite(answer).all()
    if regions:
        sure = np.abs(mean - 0.5) > 1e-5
        np.testing.assert_array_equal((answer > 0)[sure], (mean > 0.5)[sure])
        with np.errstate(divide="ignore"):
            plain = np.log(mean) - np.log(np.mean([expit(-one) for one in scaled], 0))
        np.testing.assert_allclose(answer, plain, rtol=1e-4, atol=1e-4)
    else:
        np.testing.assert_allclose(answer, np.log(mean), rtol=1e-4, atol=1e-4)


def test_one_alone_keeps_its_logits() -> None:
    logits = torch.randn(1, 3, 2, 2, 2)
    assert together([lambda stack: logits], [1.0], False)(logits) is logits
    torch.testing.assert_close(together([lambda stack: logits], [4.0], True)(logits), logits / 4)
