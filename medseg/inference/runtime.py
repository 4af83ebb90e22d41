"""Networks ready to be asked: by PyTorch or by OpenVINO, in float32 or bfloat16, one alone or several together.

OpenVINO computes convolutions on a CPU two to four times as fast as PyTorch does. A network is converted once; the result lies
beside the model, named by a hash of the weights.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import os
import shutil
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from importlib import metadata, util
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import torch
from filelock import FileLock
from platformdirs import user_cache_path
from torch import nn
from torch.nn import functional

import medseg
from medseg.core.errors import ConfigError, MedsegError, MissingExtraError, OutputError
from medseg.core.files import file_sha256, write_json
from medseg.core.limits import available_cores
from medseg.core.progress import say
from medseg.inference.bundle import Bundle, Kind, Weights
from medseg.inference.config import EngineConfig
from medseg.inference.device import DTYPES, has_bfloat16
from medseg.inference.window import Run
from medseg.models.cost import step_cost
from medseg.models.layers import to_channels_last
from medseg.planning.machine import bfloat16_unit

Precision = Literal["float32", "bfloat16"]
Runtime = Literal["torch", "openvino"]
CONVERSION = 2  # counts up where `_convert` makes something else of the same network
PARTS = (".xml", ".bin")
# OpenVINO tells its makers, over the network, of each program that imports it, unless this package of theirs is not there.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
UNFINISHED = ".new-"
HINTS = {"float32": "f32", "bfloat16": "bf16"}
MOST_AT_ONCE = 32
COMPILING_PAYS_FROM = 50  # scans on a GPU; compiling takes about as long as some dozens


@dataclass(frozen=True)
class Arithmetic:
    """By what, in which numbers, and why; the first two are a part of what a mask depends on.

    Args:
        compiled: whether PyTorch compiles the network first.
    """

    runtime: Runtime
    precision: Precision
    reason: str
    compiled: bool = False


def choose_arithmetic(settings: EngineConfig, bundle: Bundle, device: torch.device, scans: int = 1) -> Arithmetic:
    """What the settings ask for; `auto` is what is fastest here without making the masks worse.

    That is OpenVINO on a CPU, and bfloat16 where the processor multiplies in it and the model's own figures, measured on its
    validation cases, allow it (`medseg.training.precision`). A model without figures is run in float32 on a CPU.

    Args:
        scans: how many there are; many make compiling worth while on a GPU.
    Raises: ConfigError for OpenVINO on a GPU; MissingExtraError where it is asked for and not installed.
    """
    if settings.runtime == "openvino" and device.type == "cuda":
        raise ConfigError("`runtime` openvino works on the CPU; leave it out to use the GPU, or state the device cpu.")
    if settings.runtime == "openvino" and not has_openvino():
        raise MissingExtraError("`runtime` openvino needs the package openvino; pip install openvino, or use the runtime torch.")
    openvino = device.type == "cpu" and settings.runtime != "torch" and has_openvino()
    runtime: Runtime = "openvino" if openvino else "torch"
    precision, reason = _precision(settings.precision, bundle, device, runtime)
    return Arithmetic(runtime, precision, reason, device.type == "cuda" and scans >= COMPILING_PAYS_FROM)


def has_openvino() -> bool:
    """Whether OpenVINO is installed."""
    return util.find_spec("openvino") is not None


def _precision(asked: str, bundle: Bundle, device: torch.device, runtime: Runtime) -> tuple[Precision, str]:
    if asked != "auto":
        return asked, "as asked"  # type: ignore[return-value]
    figures = (bundle.description.precision_figures or {}).get("bfloat16")
    if figures is not None and not figures["allowed"]:
        return "float32", "in bfloat16 the masks of the validation cases were worse"
    if device.type == "cuda":
        return ("bfloat16", "the GPU computes in it") if has_bfloat16(device) else ("float32", "the GPU has no bfloat16")
    if figures is None:
        return "float32", "the model has no figures on bfloat16"
    if figures["runtime"] != runtime:
        return "float32", f"the model's figures on bfloat16 were measured with {figures['runtime']}"
    if (unit := bfloat16_unit()) is None:
        return "float32", "the processor has no bfloat16"
    if overhanging(bundle):
        return "float32", "convolutions longer than the pictures that they see are not trusted in bfloat16"
    return "bfloat16", f"the processor has {unit}, and the masks of the validation cases are the same in it"


def overhanging(bundle: Bundle) -> bool:
    """Whether some network has convolutions longer than the pictures that they see (`medseg.models.cost.overhangs`)."""
    about = bundle.description
    size = {"in_channels": about.plan.n_channels, "n_outputs": about.labels.n_outputs, "patch_voxels": about.plan.patch_voxels}
    return any(step_cost(kind.architecture, kind.options, **size).overhangs for kind in bundle.kinds)  # type: ignore[arg-type]


def ready(bundle: Bundle, arithmetic: Arithmetic, device: torch.device, cache: Path, threads: int | None = None) -> Run:
    """The networks of a bundle as one that can be asked.

    Args:
        cache: folder for converted networks.
        threads: of the processor; None takes those that this process may use.
    Raises: ModelFileError where the weights do not fit; OutputError where a converted network can be written nowhere.
    """
    runs: list[Run] = []
    for index in range(len(bundle.weights)):
        network = bundle.network(index)
        if arithmetic.runtime == "openvino":
            shape = (bundle.plan.n_channels, *bundle.plan.patch_voxels)
            name = _name(bundle.kinds[index], bundle.weights[index], shape)
            try:
                runs.append(OpenVinoNetwork(converted(network, shape, cache / name), arithmetic.precision, threads))
                continue
            except MedsegError:
                raise
            except Exception as error:  # of an operation that it does not have; they are of many kinds
                say(f"OpenVINO does not run this network ({type(error).__name__}); PyTorch runs it")
        if device.type == "cuda":
            torch.set_float32_matmul_precision("high")
        if device.type == "cuda" or arithmetic.precision == "float32":  # norms in bfloat16 on a CPU are slower channels-last
            to_channels_last(network)
        runs.append(TorchNetwork(network.to(device), device, DTYPES[arithmetic.precision], arithmetic.compiled))
    return together(runs, bundle.temperatures, bool(bundle.labels.regions))


def windows_at_once(run: Run, bundle: Bundle, device: torch.device) -> int:
    """One on a CPU, whose cores one window keeps busy; on a GPU as many as half of its free memory holds, by the first one."""
    if device.type == "cpu":
        return 1
    window = torch.zeros(1, bundle.plan.n_channels, *bundle.plan.patch_voxels, device=device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    try:
        with torch.inference_mode():
            run(window)
    except torch.OutOfMemoryError:  # `predict_slabs` says so, or finds a way
        return 1
    of_one = torch.cuda.max_memory_allocated(device) - before
    return max(1, min(MOST_AT_ONCE, int(torch.cuda.mem_get_info(device)[0] / 2 / max(1, of_one))))


class TorchNetwork:
    """A network in evaluation mode asked by PyTorch, with autocast where the numbers are shorter than float32."""

    def __init__(self, network: nn.Module, device: torch.device, dtype: torch.dtype, compiled: bool = False) -> None:
        self.eager, self.device, self.dtype = network, device, dtype
        self.network: Any = torch.compile(network) if compiled else network

    def __call__(self, stack: torch.Tensor) -> torch.Tensor:
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32):
            try:
                return self.network(stack).float()
            except torch.OutOfMemoryError:
                raise
            except Exception as error:
                if self.network is self.eager:
                    raise
                say(f"the network could not be compiled ({type(error).__name__}); it is used as it is")
                self.network = self.eager
                return self.network(stack).float()


class OpenVinoNetwork:
    """A converted network on the CPU.

    Args:
        path: what `converted` gives.
    """

    def __init__(self, path: Path, precision: Precision = "float32", threads: int | None = None) -> None:
        import openvino

        self.core = openvino.Core()
        self.core.set_property({"ENABLE_MMAP": False})  # a file that is cut short while it is mapped ends the process
        self.model = self.core.read_model(path)
        self.settings = {
            "INFERENCE_PRECISION_HINT": HINTS[precision],
            "INFERENCE_NUM_THREADS": threads or available_cores(),
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,  # other workers, and the steps beside this one, need the cores too
        }
        self.requests: dict[int, Any] = {}
        self._request(1)

    def __call__(self, stack: torch.Tensor) -> torch.Tensor:
        request = self._request(len(stack))
        answer = request.infer({0: np.ascontiguousarray(stack.numpy())}, share_inputs=True)
        return torch.from_numpy(answer[0])

    def _request(self, batch: int) -> Any:
        """Made for this number of windows: of fixed shapes OpenVINO makes more."""
        if batch not in self.requests:
            model = self.model.clone()
            model.reshape([batch, *list(model.input(0).get_partial_shape())[1:]])
            self.requests[batch] = self.core.compile_model(model, "CPU", self.settings).create_infer_request()
        return self.requests[batch]


def converted(network: nn.Module, shape: Sequence[int], path: Path) -> Path:
    """The file of a network in OpenVINO's form (an .xml, its weights in float32 in a .bin beside it); made where it is not there.

    Where the folder is somebody else's, it is made where the user's programs keep such things.

    Args:
        shape: (C, X, Y, Z) of a window.
    Raises: OutputError where it cannot be written.
    """
    own = user_cache_path("medseg") / "openvino" / path.name
    if there := next((place for place in (path, own) if _intact(place)), None):
        return there
    path = path if _may_write(path.parent) else own
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _alone(path.parent):
            if not _intact(path):
                _convert(network, shape, path)
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror}); free space, or use the runtime torch.") from error
    return path


def cache_folder(model: Path) -> Path:
    """Where the networks of a model are kept in OpenVINO's form: beside it."""
    return (model if model.is_dir() else model.parent) / ".openvino"


def _may_write(folder: Path) -> bool:
    return os.access(folder if folder.exists() else folder.parent, os.W_OK)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other processes from converting there; where the disk has no locks, two may make the same files."""
    lock = FileLock(folder / ".lock")
    with suppress(NotImplementedError):
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _convert(network: nn.Module, shape: Sequence[int], path: Path) -> None:
    """Write the .xml and the .bin, and last their hashes. To be called under the lock of the folder."""
    # Through its parts, not by `openvino.convert_model`, which sends word of each use to its makers.
    from openvino import save_model
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    window, network = torch.zeros(1, *shape), as_instance_norms(copy.deepcopy(network))
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of the tracer, on every size that it takes for a constant: they are
        traced = torch.jit.trace(network.eval(), window, check_trace=False)  # type: ignore[no-untyped-call]
        decoder = TorchScriptPythonDecoder(traced, example_input=window)
        frontend = FrontEndManager().load_by_framework("pytorch")
        model = frontend.convert(frontend.load(decoder))
    model.reshape([1, *shape])
    for left in path.parent.glob(f"{UNFINISHED}*"):  # by a kill
        shutil.rmtree(left, ignore_errors=True)
    with TemporaryDirectory(dir=path.parent, prefix=UNFINISHED) as folder:
        new = Path(folder) / path.name
        save_model(model, new, compress_to_fp16=False)
        hashes = {part: file_sha256(new.with_suffix(part)) for part in PARTS}
        for part in PARTS:
            os.replace(new.with_suffix(part), path.with_suffix(part))
    write_json(path.with_suffix(".json"), hashes)


def as_instance_norms(network: nn.Module) -> nn.Module:
    """The network with each group norm of one channel a group as what it is, an instance norm, in place.

    PyTorch is faster with the first, OpenVINO with the second: a 3D U-Net takes 0.8 s in place of 1.3 s a window in it.
    """
    for name, layer in network.named_children():
        if isinstance(layer, nn.GroupNorm) and layer.num_groups == layer.num_channels:
            setattr(network, name, InstanceNorm(layer))
        else:
            as_instance_norms(layer)
    return network


class InstanceNorm(nn.Module):
    """Of pictures with any number of axes."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.instance_norm(x, weight=self.weight, bias=self.bias, eps=self.eps)


def _intact(path: Path) -> bool:
    """Whether the file is there with the weights that belong to it."""
    try:
        hashes = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        return all(file_sha256(path.with_suffix(part)) == hashes[part] for part in PARTS)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _name(kind: Kind, weights: Weights, shape: Sequence[int]) -> str:
    """A file name that stands for the network, its weights and the version of OpenVINO."""
    about = [medseg.__version__, CONVERSION, kind.architecture, kind.options, list(shape)]
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name, tensor in sorted(weights.items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return f"{digest.hexdigest()[:16]}-{metadata.version('openvino')}.xml"


def together(runs: Sequence[Run], temperatures: Sequence[float], regions: bool) -> Run:
    """Several networks as one: the logits of the mean of their probabilities, each at its own temperature.

    Args:
        regions: whether each output is a probability of its own; else they sum to 1.
    """
    if len(runs) == 1:
        return runs[0] if temperatures[0] == 1 else lambda stack: runs[0](stack) / temperatures[0]
    log = functional.logsigmoid if regions else partial(functional.log_softmax, dim=1)

    def run(stack: torch.Tensor) -> torch.Tensor:
        logits = [one(stack) / temperature for one, temperature in zip(runs, temperatures, strict=True)]
        mean = torch.logsumexp(torch.stack([log(value) for value in logits]), 0)
        if not regions:
            return mean - math.log(len(logits))
        # log p - log (1 - p): the complement is averaged too, for little is left of 1 - p where p is nearly 1.
        return mean - torch.logsumexp(torch.stack([log(-value) for value in logits]), 0)

    return run
