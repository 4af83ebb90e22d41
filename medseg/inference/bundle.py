"""Model files: the one reader and writer of `model.medseg`.

A stored (uncompressed) zip with `weights_<n>.safetensors`, `model.json` and `card.md`. The same content gives the same bytes.
Nothing in it is code: no pickle is ever written or loaded. A file of which any byte lies outside of these members is refused.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import struct
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, ValidationError, model_validator
from safetensors import SafetensorError
from safetensors import torch as safetensors_torch
from torch import nn

from medseg.core.config import Section
from medseg.core.errors import ConfigError, ModelFileError
from medseg.core.files import atomic_path
from medseg.core.labels import LabelScheme
from medseg.inference.postprocess import Postprocessing
from medseg.inference.typical import Typical
from medseg.inference.window import LEFT_RIGHT
from medseg.models.layers import Network
from medseg.models.registry import build_network
from medseg.planning.plan import Plan

FORMAT = 1
MEMBER = re.compile(r"weights_[0-9]+\.safetensors|model\.json|card\.md")
FIXED_TIME = (1980, 1, 1, 0, 0, 0)
ORDINARY_FILE = 0o644 << 16  # as a zip says it; no link, no folder
END_BYTES = 22  # of a zip's last record, before the archive's comment
SEAL = b"model.json sha256 "  # in the archive's comment: model.json holds the hashes of the others

DTYPES = (torch.float32, torch.int64)  # of weights, and of what a norm counts

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
        temperature: what the logits are divided by before they become probabilities (Guo et al. 2017): one
            number for all weights, or one for each; None is 1.
        finish: what was measured on the validation cases when these were chosen.
        started_from: where the training did not start with random numbers.
        precision_figures: what reduced precision costs; None where it was not measured.
        typical: what a case is told by that differs from those of the training; None in a file of an earlier version.
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
    typical: Typical | None = None
    sha256: dict[str, str] = {}

    @model_validator(mode="after")
    def _consistent(self) -> Description:
        if len(self.plan.preprocessing.normalisation) != self.plan.n_channels:
            raise ValueError("the plan has another number of channels than of normalisations")
        if any(max(pair) >= self.labels.n_classes for pair in self.plan.swaps):
            raise ValueError("the plan swaps classes that the labels do not have")
        if self.postprocessing and (odd := sorted(self.postprocessing.rules.keys() - self.labels.measured.keys())):
            raise ValueError(f"the postprocessing has a rule for `{odd[0]}`, which the labels do not have")
        return self


@dataclass(frozen=True)
class Kind:
    """How a network is built: what `build_network` takes."""

    architecture: str
    options: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Bundle:
    """A trained model and all that is needed to use it.

    Args:
        weights: one state dict, or several whose probabilities are averaged.
        card: the model card, Markdown.
        sha256: of the file it was read from; of several files together, the hash of theirs; empty before it is written.
        mixed: the kind of network of each of the weights, where they are not all what the description says.
    """

    description: Description
    weights: tuple[Weights, ...]
    card: str
    sha256: str = field(default="", compare=False)
    mixed: tuple[Kind, ...] = ()

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
    def kinds(self) -> tuple[Kind, ...]:
        """How the network of each of the weights is built."""
        return self.mixed or (Kind(self.description.architecture, self.description.options),) * len(self.weights)

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
        return [self.network(index).to(device) for index in range(len(self.weights))]

    def network(self, index: int) -> nn.Module:
        """One of the networks, on the CPU, in evaluation mode. Raises: ModelFileError where the weights do not fit."""
        about, kind, weights = self.description, self.kinds[index], self.weights[index]
        try:
            with torch.device("meta"):  # the weights come from the file, and a false description must not cost memory
                network = empty_network(kind.architecture, kind.options, about.plan, about.labels.n_outputs)
            copies = {name: weight.clone() for name, weight in weights.items()}
            network.load_state_dict(copies, strict=True, assign=True)
        except (ConfigError, RuntimeError, TypeError, ValueError, OverflowError) as error:
            first = str(error).strip().splitlines()
            raise ModelFileError(
                f"model {about.model}: its weights do not fit a {kind.architecture} ({' '.join(first[:2])}); "
                "use the medseg version that wrote it."
            ) from None
        return network.eval()


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
    """Write a model file, whole or not at all; equal bundles give equal bytes.

    Raises: OutputError; ModelFileError for networks of several kinds, which one file cannot hold.
    """
    if bundle.mixed:
        raise ModelFileError(f"{path}: networks of several kinds do not go into one model file; keep the files that they are in.")
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
            archive.writestr(_entry(name), content)
        archive.comment = SEAL + hashlib.sha256(members["model.json"]).hexdigest().encode()


def _entry(name: str) -> zipfile.ZipInfo:
    """What the archive says of a member; the same on every system."""
    entry = zipfile.ZipInfo(name, FIXED_TIME)
    entry.create_system, entry.external_attr = 3, ORDINARY_FILE
    return entry


def read_bundle(path: Path) -> Bundle:
    """Read and check a model file.

    Raises: ModelFileError where it is missing, no model file, truncated, altered, of an unknown version, or holds anything
        that does not belong in it (a pickle, a path, a link, a byte between its members, weights that are not finite).
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
    weights = tuple(_weights(members, index, description.model, path) for index in range(len(members) - 2))
    if isinstance(description.temperature, list) and len(description.temperature) != len(weights):
        raise ModelFileError(f"{path} has {len(weights)} sets of weights and another number of temperatures; write it again.")
    card = str(members["card.md"], "utf-8", "replace")
    return Bundle(description, weights, card, hashlib.sha256(content).hexdigest())


def _members(content: bytes, path: Path) -> tuple[dict[str, memoryview], bytes]:
    """The archive's members by name, nothing copied, and its comment."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries, comment, directory = archive.infolist(), archive.comment, archive.start_dir
            _refuse_other_format(archive, path)
        _refuse_alien(entries, path)
        starts = _starts(content, entries, directory, len(comment))
    except (zipfile.BadZipFile, zipfile.LargeZipFile, struct.error, OSError, ValueError, RuntimeError, EOFError) as error:
        raise ModelFileError(f"{path} is truncated or not a medseg model ({error}); bring the file again.") from None
    whole = memoryview(content)
    members = {e.filename: whole[start : start + e.file_size] for e, start in zip(entries, starts, strict=True)}
    needed = {"card.md", "model.json", *(f"weights_{index}.safetensors" for index in range(max(1, len(entries) - 2)))}
    if len(members) != len(entries) or members.keys() != needed:
        raise ModelFileError(
            f"{path} is not a whole medseg model (it holds {', '.join(sorted(members)) or 'nothing'}); bring the file again."
        )
    return members, comment


def _refuse_other_format(archive: zipfile.ZipFile, path: Path) -> None:
    """Raises: ModelFileError for a file of another format, which may hold other members than this one."""
    try:
        entry = archive.getinfo("model.json")
        if entry.compress_type != zipfile.ZIP_STORED:
            return
        version = json.loads(archive.read(entry))["format"]
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, KeyError, TypeError, RuntimeError):
        return  # what is wrong with it is said where it is read
    if version != FORMAT:
        raise ModelFileError(
            f"{path} has format {version!r} and this medseg reads format {FORMAT}; install the medseg that wrote it."
        )


def _refuse_alien(entries: Sequence[zipfile.ZipInfo], path: Path) -> None:
    for entry in entries:
        if not MEMBER.fullmatch(entry.orig_filename) or entry.compress_type != zipfile.ZIP_STORED:
            raise ModelFileError(
                f"{path} is not a medseg model: it holds {entry.orig_filename!r}, which is not loaded "
                "(no pickle or other code ever is); train with medseg or bring a model.medseg file."
            )
        if entry.external_attr != ORDINARY_FILE or entry.comment:
            raise ModelFileError(f"{path} is not a medseg model: its {entry.filename} is no plain file; bring the file again.")


def _starts(content: bytes, entries: Sequence[zipfile.ZipInfo], directory: int, n_comment: int) -> list[int]:
    """Where each member's content starts. Raises: ValueError where a byte of the file belongs to none of them, or to two."""
    place, starts = 0, []
    for entry in entries:
        expected = _entry(entry.filename)
        expected.CRC, expected.file_size, expected.compress_size = entry.CRC, entry.file_size, entry.file_size
        header = expected.FileHeader(zip64=entry.file_size * 1.05 > zipfile.ZIP64_LIMIT)  # zipfile's own rule when it writes
        if entry.header_offset != place or not content.startswith(header, place):
            raise ValueError(f"{entry.filename} does not stand where it should")
        starts.append(place + len(header))
        place += len(header) + entry.file_size
    if place != directory or content[-END_BYTES - n_comment :][:4] != b"PK\5\6":
        raise ValueError("there is more in it than its members")
    return starts


def _weights(members: dict[str, memoryview], index: int, model: str, path: Path) -> Weights:
    name = f"weights_{index}.safetensors"
    try:
        weights = safetensors_torch.load(bytes(members[name]))
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError, OverflowError, AssertionError) as error:
        raise ModelFileError(f"{path}: {name} is damaged ({error}); bring the file again.") from None
    if odd := [key for key, weight in weights.items() if weight.dtype not in DTYPES]:
        raise ModelFileError(f"{path}: {name} holds `{odd[0]}` as {weights[odd[0]].dtype}; use the medseg version that wrote it.")
    if any(weight.numel() and not all(map(torch.isfinite, weight.aminmax())) for weight in weights.values()):
        raise ModelFileError(f"{path}: model {model} holds weights that are not finite; train it again, or use another.")
    return weights


def _description(members: Mapping[str, memoryview], comment: bytes, path: Path) -> Description:
    altered = f"{path} was altered or damaged after it was written: {{}} does not agree with its hash; bring the file again."
    if comment != SEAL + hashlib.sha256(members["model.json"]).hexdigest().encode():
        raise ModelFileError(altered.format("model.json"))
    try:
        content = json.loads(bytes(members["model.json"]))
        if content["format"] != FORMAT:  # the archive's checksum of it was wrong too
            raise ValueError
        hashes = dict(content["sha256"])
        found = Description.model_validate(content)
    except ValidationError as error:
        detail = error.errors()[0]
        key = ".".join(str(part) for part in detail["loc"])
        raise ModelFileError(f"{path}: model.json, `{key}`: {detail['msg']}; install the medseg that wrote it.") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ModelFileError(f"{path}: model.json is not one that medseg wrote; bring the file again.") from None
    for name in sorted(members.keys() - {"model.json"}):
        if hashes.get(name) != hashlib.sha256(members[name]).hexdigest():
            raise ModelFileError(altered.format(name))
    return found
