"""Model files: the one reader and writer of `model.medseg`.

A stored (uncompressed) zip with `weights_<n>.safetensors`, `model.json` and `card.md`. The same content gives the same bytes.
Nothing in it is code: no pickle is ever written or loaded.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, ValidationError
from safetensors import SafetensorError
from safetensors import torch as safetensors_torch
from torch import nn

from medseg.core.config import Section
from medseg.core.errors import ConfigError, ModelFileError
from medseg.core.files import atomic_path
from medseg.core.labels import LabelScheme
from medseg.inference.postprocess import Postprocessing
from medseg.inference.window import LEFT_RIGHT
from medseg.models.layers import Network
from medseg.models.registry import build_network
from medseg.planning.plan import Plan

FORMAT = 1
MEMBER = re.compile(r"weights_\d+\.safetensors|model\.json|card\.md")
FIXED_TIME = (1980, 1, 1, 0, 0, 0)
SEAL = b"model.json sha256 "  # in the archive's comment: model.json holds the hashes of the others

Weights = Mapping[str, torch.Tensor]
Temperature = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Origin(Section):
    """The model file that a training started with (fine-tuning).

    Args:
        model: its name in the run that made it.
        sha256: of the file.
    """

    model: str
    sha256: str


class Description(Section):
    """`model.json`.

    Args:
        format: version of the file format.
        model: the model's name in its run.
        architecture, options: what `build_network` takes.
        plan: with the axes along which pictures may be mirrored (`flips`).
        fingerprint: ranges of spacing, size and intensity in the training scans (`fingerprint_ranges`).
        postprocessing: chosen on the validation cases; None where masks are left as they are.
        temperature: what the logits are divided by before they become probabilities or are averaged (Guo et al. 2017): one
            number for all weights, or one for each; None is 1.
        finish: what was measured on the validation cases when these were chosen.
        started_from: where the training did not start with random numbers.
        precision_figures: what reduced precision costs; None where it was not measured.
        sha256: of every other member of the file.
    """

    format: int = FORMAT
    model: str
    architecture: str
    options: dict[str, Any] = {}
    plan: Plan
    labels: LabelScheme
    fingerprint: dict[str, Any] = {}
    postprocessing: Postprocessing | None = None
    temperature: Temperature | list[Temperature] | None = None
    finish: dict[str, Any] = {}
    started_from: Origin | None = None
    precision_figures: dict[str, Any] | None = None
    sha256: dict[str, str] = {}


@dataclass(frozen=True, eq=False)
class Bundle:
    """A trained model and all that is needed to use it.

    Args:
        weights: one state dict, or several whose logits are averaged.
        card: the model card, Markdown.
        sha256: of the file it was read from; empty before it is written.
    """

    description: Description
    weights: tuple[Weights, ...]
    card: str
    sha256: str = field(default="", compare=False)

    @property
    def plan(self) -> Plan:
        return self.description.plan

    @property
    def whole_plan(self) -> Plan:
        """The plan with the model in it, as the training had it."""
        network = {"architecture": self.description.architecture, "options": self.description.options}
        return self.plan.model_copy(update={"models": {self.description.model: network}})

    @property
    def labels(self) -> LabelScheme:
        return self.description.labels

    @property
    def temperatures(self) -> list[float]:
        """One for each of the weights."""
        temperature = self.description.temperature
        if isinstance(temperature, list):
            return temperature
        return [1.0 if temperature is None else temperature] * len(self.weights)

    @property
    def allowed_flips(self) -> tuple[int, ...]:
        """Axes of the prepared grid along which a mirrored scan is still a plausible scan that the model can name."""
        nameless = self.labels.swapped_outputs(self.plan.swaps) is None
        return tuple(axis for axis in self.plan.flips if not (nameless and axis == LEFT_RIGHT))

    @property
    def swaps(self) -> list[tuple[int, int]]:
        """Outputs that change places where a scan is mirrored left to right."""
        return self.labels.swapped_outputs(self.plan.swaps) or []

    def networks(self, device: torch.device | str = "cpu") -> list[nn.Module]:
        """The networks with their weights, in evaluation mode. Raises: ModelFileError where the weights do not fit."""
        return [self._network(weights).to(device).eval() for weights in self.weights]

    def _network(self, weights: Weights) -> nn.Module:
        about = self.description
        try:
            network = empty_network(about.architecture, about.options, about.plan, about.labels.n_outputs)
            network.load_state_dict(dict(weights), strict=True)
        except (RuntimeError, ConfigError) as error:
            first = str(error).strip().splitlines()
            raise ModelFileError(
                f"model {about.model}: its weights do not fit a {about.architecture} ({' '.join(first[:2])}); "
                "use the medseg version that wrote it."
            ) from None
        return network


def empty_network(architecture: str, options: dict[str, Any], plan: Plan, n_outputs: int) -> Network:
    """The network of a plan, to be filled with weights. Raises: ConfigError where options and patch do not fit each other."""
    return build_network(
        architecture,
        options,
        in_channels=plan.n_channels,
        n_classes=n_outputs,
        patch_voxels=plan.patch_voxels,
        pretrained=False,
    )


def write_bundle(path: Path, bundle: Bundle) -> None:
    """Write a model file, whole or not at all; equal bundles give equal bytes. Raises: OutputError."""
    members = {
        f"weights_{index}.safetensors": safetensors_torch.save(
            {k: v.detach().cpu().contiguous() for k, v in sorted(weights.items())}
        )
        for index, weights in enumerate(bundle.weights)
    }
    members["card.md"] = bundle.card.encode()
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in sorted(members.items())}
    description = bundle.description.model_copy(update={"sha256": hashes}).model_dump(mode="json")
    members["model.json"] = (json.dumps(description, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for name, content in sorted(members.items()):
            entry = zipfile.ZipInfo(name, FIXED_TIME)
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, content)
        archive.comment = SEAL + hashlib.sha256(members["model.json"]).hexdigest().encode()


def read_bundle(path: Path) -> Bundle:
    """Read and check a model file.

    Raises: ModelFileError where it is missing, no model file, truncated, altered, of an unknown version, or holds anything
        that does not belong in it (a pickle, a path).
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ModelFileError(f"{path} does not exist; give the path of a model.medseg file.") from None
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read ({error.strerror}); give the path of a model.medseg file.") from None
    members, comment = _members(content, path)
    description = _description(members, comment, path)
    weights = []
    for name in sorted((n for n in members if n.startswith("weights_")), key=lambda n: int(re.sub(r"\D", "", n.split(".")[0]))):
        try:
            weights.append(safetensors_torch.load(members[name]))
        except (SafetensorError, ValueError, KeyError) as error:
            raise ModelFileError(f"{path}: {name} is damaged ({error}); bring the file again.") from None
    if isinstance(description.temperature, list) and len(description.temperature) != len(weights):
        raise ModelFileError(f"{path} has {len(weights)} sets of weights and another number of temperatures; write it again.")
    return Bundle(description, tuple(weights), members["card.md"].decode(), hashlib.sha256(content).hexdigest())


def _members(content: bytes, path: Path) -> tuple[dict[str, bytes], bytes]:
    """The archive's members by name, and its comment."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = archive.infolist()
            for entry in entries:
                if not MEMBER.fullmatch(entry.filename) or entry.compress_type != zipfile.ZIP_STORED:
                    raise ModelFileError(
                        f"{path} is not a medseg model: it holds {entry.filename!r}, which is not loaded "
                        "(no pickle or other code ever is); train with medseg or bring a model.medseg file."
                    )
            members = {entry.filename: archive.read(entry) for entry in entries}
            comment = archive.comment
    except (zipfile.BadZipFile, EOFError, OSError, ValueError, NotImplementedError, RuntimeError) as error:
        raise ModelFileError(f"{path} is truncated or not a medseg model ({error}); bring the file again.") from None
    if len(members) != len(entries) or not {"weights_0.safetensors", "model.json", "card.md"} <= members.keys():
        raise ModelFileError(
            f"{path} is not a whole medseg model (it holds {', '.join(sorted(members)) or 'nothing'}); bring the file again."
        )
    return members, comment


def _description(members: dict[str, bytes], comment: bytes, path: Path) -> Description:
    altered = f"{path} was altered or damaged after it was written: {{}} does not agree with its hash; bring the file again."
    if comment != SEAL + hashlib.sha256(members["model.json"]).hexdigest().encode():
        raise ModelFileError(altered.format("model.json"))
    try:
        content = json.loads(members["model.json"])
        version, hashes = content["format"], content["sha256"]
    except (ValueError, KeyError, TypeError):
        raise ModelFileError(f"{path}: model.json is not one that medseg wrote; bring the file again.") from None
    if version != FORMAT:
        raise ModelFileError(
            f"{path} has format {version!r} and this medseg reads format {FORMAT}; install the medseg that wrote it."
        )
    for name in sorted(members.keys() - {"model.json"}):
        if hashes.get(name) != hashlib.sha256(members[name]).hexdigest():
            raise ModelFileError(altered.format(name))
    try:
        return Description.model_validate(content)
    except ValidationError as error:
        detail = error.errors()[0]
        key = ".".join(str(part) for part in detail["loc"])
        raise ModelFileError(f"{path}: model.json, `{key}`: {detail['msg']}; install the medseg that wrote it.") from None
