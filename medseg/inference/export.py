"""Networks for other programs: ONNX files that onnxruntime answers as PyTorch does."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import logging
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

import medseg
from medseg.core.errors import MissingExtraError, ModelFileError
from medseg.core.files import atomic_path
from medseg.inference.bundle import Bundle

OPSET = 18  # what the exporter writes without a conversion; onnxruntime reads it since 1.14
MOST_BYTES = 2**31 - 2**20  # of weights in one protobuf message, with room for the graph
TOLERANCE = 1e-3  # relative to the greatest logit
PACKAGES = ("onnx", "onnxruntime", "onnxscript")
LICENCE = re.compile(r"^\| Data licence \| (.*) \|$", re.MULTILINE)


class Exported(NamedTuple):
    """A file that was written, and how far its answer was from PyTorch's on a random patch.

    Args:
        difference: the greatest absolute one.
        relative: the same, as a share of the greatest absolute logit.
    """

    path: Path
    difference: float
    relative: float


def export_onnx(bundle: Bundle, path: Path) -> list[Exported]:
    """Write each network of a model as an ONNX file.

    Input `image` (N, C, X, Y, Z) float32, a batch of any size of patches of the prepared scan (resampled and normalised as the
    file's metadata say); output `logits` (N, K, X, Y, Z) float32, not yet divided by the temperature. Each file is run by
    onnxruntime before it gets its name.

    Args:
        path: of the file; of several networks `<stem>_<n><suffix>` beside it.
    Returns: the files, in the order of the weights.
    Raises: MissingExtraError; ModelFileError where onnxruntime's answer is another, or a network is too large; OutputError.
    """
    for package in PACKAGES:
        _require(package)
    names = [path.name] if len(bundle.weights) == 1 else [f"{path.stem}_{n}{path.suffix}" for n in range(len(bundle.weights))]
    return [_export(bundle, index, path.with_name(name)) for index, name in enumerate(names)]


def _export(bundle: Bundle, index: int, path: Path) -> Exported:
    network = bundle.network(index)
    content = onnx_model(network, (bundle.plan.n_channels, *bundle.plan.patch_voxels), metadata(bundle, index), str(path))
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
        difference, relative = _compare(network, temporary, (bundle.plan.n_channels, *bundle.plan.patch_voxels))
        if not relative <= TOLERANCE:
            raise ModelFileError(
                f"{path}: onnxruntime's answer differs from PyTorch's by {relative:.2g} of the greatest logit, so nothing was "
                'written; run `pip install --upgrade "medseg[onnx]"`.'
            )
    return Exported(path, difference, relative)


def metadata(bundle: Bundle, index: int = 0) -> dict[str, str]:
    """What someone needs to use one network of a model without medseg: JSON texts (card and licence: plain text) by name.

    `outputs` names the channels of the logits; `activation` is softmax over them, or sigmoid of each (regions, which are painted
    in the order of `painting`: channel, value to write). `swaps` are outputs that change places where axis 0 is mirrored.
    """
    about, labels, plan = bundle.description, bundle.labels, bundle.plan.model_dump(mode="json", exclude={"models", "reasons"})
    regions = [region.name for region in labels.regions]
    values = [0, *(structure.id for structure in labels.structures)]
    facts = {
        "medseg_version": medseg.__version__,
        "model": about.model,
        "model_sha256": bundle.sha256,
        "network": {"index": index, "of": len(bundle.weights), "architecture": bundle.kinds[index].architecture},
        "plan": plan,
        "preprocessing": plan["preprocessing"],
        "patch_voxels": plan["patch_voxels"],
        "labels": labels.model_dump(mode="json"),
        "outputs": regions or ["background", *labels.names],
        "activation": "sigmoid" if regions else "softmax",
        "values": values,
        "painting": [[channel, values[index]] for channel, index in labels.painting],
        "temperature": bundle.temperatures[index],
        "flips": list(bundle.allowed_flips),
        "swaps": bundle.swaps,
        "postprocessing": about.postprocessing and about.postprocessing.model_dump(mode="json"),
    }
    texts = {"card": bundle.card, "data_licence": "; ".join(dict.fromkeys(LICENCE.findall(bundle.card))) or "not stated"}
    return {name: json.dumps(value, sort_keys=True, ensure_ascii=False) for name, value in facts.items()} | texts


def onnx_model(network: nn.Module, shape: tuple[int, ...], facts: dict[str, str], where: str) -> bytes:
    """A network as the bytes of an ONNX file; the same network gives the same bytes.

    Args:
        network: in evaluation mode, on the CPU.
        shape: of its input without the batch: channels and patch.
        facts: the file's metadata.
        where: the file, for the error.
    Raises: ModelFileError where it is too large for one file, or this PyTorch cannot write it.
    """
    size = sum(weight.nbytes for weight in network.state_dict().values())
    if size > MOST_BYTES:
        raise ModelFileError(f"{where} would hold {size / 2**30:.1f} GiB and an ONNX file holds 2; train a narrower network.")
    try:
        model = _exported(network, shape)
    except Exception as error:  # theirs are of many types
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelFileError(
            f"{where}: PyTorch {torch.__version__} cannot write it as ONNX ({reason}); "
            'run `pip install --upgrade torch "medseg[onnx]"`.'
        ) from error
    _strip(model)
    model.producer_name, model.producer_version = "medseg", medseg.__version__
    _require("onnx").helper.set_model_props(model, facts)
    return bytes(model.SerializeToString(deterministic=True))


def _exported(network: nn.Module, shape: tuple[int, ...]) -> Any:
    """The network as an ONNX protobuf message."""
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            network,
            (torch.zeros(2, *shape),),  # torch.export takes a size of 1 for a constant
            dynamo=True,
            opset_version=OPSET,
            input_names=["image"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            external_data=False,
            verbose=False,
        )
    assert program is not None
    return program.model_proto


def _strip(model: Any) -> None:
    """Take out what the exporter notes for its own developers: stack traces with the paths of this machine."""
    graph = model.graph
    for entry in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        entry.ClearField("metadata_props")
        entry.ClearField("doc_string")


def _compare(network: nn.Module, path: Path, shape: tuple[int, ...]) -> tuple[float, float]:
    """Greatest difference between onnxruntime's answer and PyTorch's to three random patches; absolute, and relative."""
    runtime = _require("onnxruntime")
    settings = runtime.SessionOptions()
    settings.log_severity_level = 3  # errors
    session = runtime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    worst, greatest = 0.0, 0.0
    for batch in (1, 2):
        patches = np.random.default_rng(batch).standard_normal((batch, *shape), np.float32)
        (found,) = session.run(["logits"], {"image": patches})
        with torch.inference_mode():
            expected = network(torch.from_numpy(patches)).numpy()
        if found.shape != expected.shape or found.dtype != np.float32:
            return np.inf, np.inf
        worst = float(np.maximum(worst, np.abs(found - expected).max()))  # NaN stays NaN
        greatest = max(greatest, float(np.abs(expected).max()))
    return worst, worst / greatest if greatest else worst


def _require(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise MissingExtraError(
            f'an ONNX file needs a package that is not installed ({error.name or error}); run `pip install "medseg[onnx]"`.'
        ) from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's notes to its developers, kept from the user."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
