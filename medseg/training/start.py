"""Fine-tuning: a training that starts with the weights of a model file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from medseg.core.errors import ModelFileError
from medseg.core.labels import LabelScheme
from medseg.inference.bundle import Bundle, Origin, empty_network, read_bundle

Tensors = Mapping[str, torch.Tensor]


def origin(path: Path) -> Origin:
    """What a model that starts with this file says of it. Raises: ModelFileError."""
    bundle = read_bundle(path)
    return Origin(model=bundle.description.model, sha256=bundle.sha256)


def load_start(path: Path, network: nn.Module, labels: LabelScheme) -> list[str]:
    """Fill a network with the weights of a model file, in place.

    The body must be the same and is taken over whole. In the heads (with deep supervision there are several) the rows of
    structures of the same name are taken over, the background's too; the others keep the random numbers they have. Regions are
    answered yes or no and structures against each other, so a row is taken over only where both files agree in that.

    Args:
        network: with `labels.n_outputs` outputs, on any device.
    Returns: sentences on what was taken over and what starts anew.
    Raises: ModelFileError where there is no such file, or its network has other channels, widths or stages.
    """
    bundle = read_bundle(path)
    theirs, mine = bundle.weights[0], network.state_dict()
    outputs = _output_tensors(bundle)
    stems = {_stem(name) for name in outputs}
    body = [name for name in mine if _stem(name) not in stems]
    _check_body(path, bundle, theirs, mine, body, stems)
    rows = _common_rows(bundle.labels, labels)
    heads = [name for name in mine if name not in body]
    with torch.no_grad():
        for name in body:
            mine[name].copy_(theirs[name])
        whole = [name for name in heads if name in outputs and _copy_rows(mine[name], theirs[name], rows)]
    return _sentences(bundle, labels, rows, len(body) + len(whole), len(mine), [n for n in heads if n not in outputs])


def _output_tensors(bundle: Bundle) -> set[str]:
    """Names of the tensors that have a row for each output: those that grow where a network of its kind has one output more."""
    about, count = bundle.description, bundle.labels.n_outputs
    with torch.device("meta"):  # shapes without numbers
        some, more = (empty_network(about.architecture, about.options, about.plan, n).state_dict() for n in (count, count + 1))
    return {name for name, tensor in some.items() if tensor.shape != more[name].shape}


def _stem(name: str) -> str:
    """The part of the network that a tensor belongs to: its name as far as the first number."""
    parts = name.split(".")
    return ".".join(parts[: next((i for i, part in enumerate(parts) if part.isdigit()), len(parts))])


def _check_body(path: Path, bundle: Bundle, theirs: Tensors, mine: Tensors, body: Sequence[str], stems: set[str]) -> None:
    """Raises: ModelFileError where anything but the heads differs in name or shape."""
    about = bundle.description
    wrong = [name for name in body if name not in theirs or theirs[name].shape != mine[name].shape]
    surplus = [name for name in sorted(theirs) if name not in mine and _stem(name) not in stems]
    if not wrong and not surplus:
        return
    if not surplus and all(_only_inputs_differ(theirs, mine, name) for name in wrong):
        raise ModelFileError(
            f"{path} takes {about.plan.n_channels} channel(s) ({', '.join(about.plan.channels)}) and this run has "
            f"{mine[wrong[0]].shape[1]}; start with a model of the same channels, or leave `training.init_from` out."
        )
    first = (wrong or surplus)[0]
    raise ModelFileError(
        f"{path}: its {about.architecture} does not fit the network of this run ({len(wrong) + len(surplus)} tensors differ; "
        f"`{first}` is {_shape(theirs.get(first))} there and {_shape(mine.get(first))} here); leave `models` and "
        "`plan.patch_voxels` to the plan, which takes them over from that file, or choose another `training.init_from`."
    )


def _only_inputs_differ(theirs: Tensors, mine: Tensors, name: str) -> bool:
    if name not in theirs or theirs[name].ndim < 2 or theirs[name].ndim != mine[name].ndim:
        return False
    differing = [axis for axis, (a, b) in enumerate(zip(theirs[name].shape, mine[name].shape, strict=True)) if a != b]
    return differing == [1] and name == next(iter(mine))


def _shape(tensor: torch.Tensor | None) -> str:
    return "absent" if tensor is None else " x ".join(map(str, tensor.shape)) or "a number"


def _outputs(labels: LabelScheme) -> list[tuple[str, str]]:
    """What each output stands for, and of which kind it is."""
    if labels.regions:
        return [("region", region.name) for region in labels.regions]
    return [("background", ""), *(("structure", name) for name in labels.names)]


def _common_rows(before: LabelScheme, now: LabelScheme) -> dict[int, int]:
    """Output now -> the output before that stood for the same."""
    known = {key: index for index, key in enumerate(_outputs(before))}
    return {index: known[key] for index, key in enumerate(_outputs(now)) if key in known}


def _copy_rows(mine: torch.Tensor, theirs: torch.Tensor, rows: Mapping[int, int]) -> bool:
    """Take rows over, in place; True where that is the whole tensor. A head of another width is left as it is."""
    if mine.shape[1:] != theirs.shape[1:]:
        return False
    for index, before in rows.items():
        mine[index].copy_(theirs[before])
    return len(rows) == len(mine)


def _sentences(
    bundle: Bundle, labels: LabelScheme, rows: Mapping[int, int], taken: int, count: int, absent: Sequence[str]
) -> list[str]:
    about = bundle.description
    names = [name or "background" for _, name in _outputs(labels)]
    anew = [name for index, name in enumerate(names) if index not in rows]
    kept = [name for index, name in enumerate(names) if index in rows]
    text = f"starts from {about.model} ({about.architecture}): {taken} of {count} tensors"
    if anew:
        text += f"; heads begin anew for {', '.join(anew)}" + (f" and keep {', '.join(kept)}" if kept else "")
    sentences = [text]
    if absent:
        sentences.append(f"{len(absent)} tensors of heads that the file does not have begin anew")
    if len(bundle.weights) > 1:
        sentences.append(f"of its {len(bundle.weights)} sets of weights the first")
    return sentences
