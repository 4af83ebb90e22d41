"""The architectures by name, and the `models:` section of a configuration."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from medseg.core.config import Section, parse
from medseg.core.errors import ConfigError
from medseg.models import fcn, unet
from medseg.models.layers import Network
from medseg.models.planar import Planar

FOLDER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Architecture:
    """One row of `MODELS`: its settings, how to build it, how large it may be, and whom to cite.

    `build(config, *, in_channels, n_classes, patch, pretrained)` takes the axes that the network sees (2 or 3).
    `plan(config, patch)` gives the settings that `prepare` chooses among, widest first, with every size in them; one alone
    where the configuration states the size. `describe(config)` says such a size in words.
    """

    config: type[Section]
    build: Callable[..., Network]
    plan: Callable[[Any, Sequence[int]], Sequence[Section]]
    describe: Callable[[Any], str]
    cite: str


MODELS: dict[str, Architecture] = {
    "unet": Architecture(unet.UNetConfig, unet.build_unet, unet.unet_sizes, unet.describe_unet, unet.CITE),
    "fcn32s": Architecture(fcn.FCNConfig, partial(fcn.build_fcn, stride=32), fcn.fcn_sizes, fcn.describe_fcn, fcn.CITE),
    "fcn16s": Architecture(fcn.FCNConfig, partial(fcn.build_fcn, stride=16), fcn.fcn_sizes, fcn.describe_fcn, fcn.CITE),
    "fcn8s": Architecture(fcn.FCNConfig, partial(fcn.build_fcn, stride=8), fcn.fcn_sizes, fcn.describe_fcn, fcn.CITE),
}


@dataclass(frozen=True)
class ModelSettings:
    """One model of a run: which architecture, and its checked settings (an instance of the architecture's config)."""

    architecture: str
    options: Section


def parse_models(value: Any, where: str) -> dict[str, ModelSettings]:
    """The `models:` of a configuration, by the name that the model's folders get.

    Args:
        value: a list of architectures (`[unet, fcn8s]`), or a mapping from names to settings
            (`{unet: {features: [16, 32]}, small: {architecture: unet}}`); a name is its architecture unless it says another.
        where: what the user would call the place, such as `quickstart.yaml: models`.
    Raises: ConfigError.
    """
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        if twice := [name for name in value if value.count(name) > 1]:
            raise ConfigError(
                f"{where}: `{twice[0]}` is named twice; give one of them a name of its own and `architecture: {twice[0]}`."
            )
        value = dict.fromkeys(value)
    if not isinstance(value, dict) or not value:
        raise ConfigError(f"{where}: name at least one model, as in `models: [unet]` (known: {', '.join(MODELS)}).")
    return {name: _parse_model(name, content, f"{where}.{name}") for name, content in value.items()}


def _parse_model(name: Any, content: Any, where: str) -> ModelSettings:
    if not isinstance(name, str) or not FOLDER_NAME.fullmatch(name):
        raise ConfigError(f"{where}: `{name}` cannot name a folder; use letters, digits, `_`, `-` and `.`.")
    if content is not None and not isinstance(content, dict):
        raise ConfigError(f"{where}: should be a mapping of settings, as in `{name}: {{architecture: unet}}`.")
    options = dict(content or {})
    architecture = options.pop("architecture", name)
    return ModelSettings(architecture, parse(_architecture(architecture, where).config, options, where))


def _architecture(name: Any, where: str) -> Architecture:
    if not isinstance(name, str) or name not in MODELS:
        raise ConfigError(f"{where}: there is no architecture `{name}`; use one of {', '.join(MODELS)}.")
    return MODELS[name]


def sizes_of(architecture: str, options: dict[str, Any], patch_voxels: tuple[int, int, int]) -> list[tuple[dict[str, Any], str]]:
    """The settings that a plan chooses among, widest first, each with its size in words. Raises: ConfigError."""
    row = _architecture(architecture, "models")
    config = parse(row.config, options, f"models: {architecture}")
    patch = [size for size in patch_voxels if size > 1]
    return [(size.model_dump(mode="json"), row.describe(size)) for size in row.plan(config, patch)]


def build_network(
    architecture: str,
    options: dict[str, Any],
    *,
    in_channels: int,
    n_classes: int,
    patch_voxels: tuple[int, int, int],
    pretrained: bool = True,
) -> Network:
    """The network of a plan, with its starting weights.

    Its input is (B, in_channels, X, Y, Z) float of any size. In evaluation it gives logits (B, n_classes, X, Y, Z); in
    training a list of them, full resolution first, with `deep_supervision_weights`.

    Args:
        options: settings of the architecture.
        n_classes: structures plus background.
        patch_voxels: size 1 along one axis builds a 2D network.
        pretrained: False where the weights come from a model file: no other file of weights is then read.
    Raises: ConfigError for unknown names, wrong settings or a patch that does not fit; ModelFileError for `weights`.
    """
    row = _architecture(architecture, "models")
    config = parse(row.config, options, f"models: {architecture}")
    thin = [axis for axis, size in enumerate(patch_voxels) if size == 1]
    if len(patch_voxels) != 3 or len(thin) > 1 or min(patch_voxels) < 1:
        shape = " x ".join(str(n) for n in patch_voxels)
        raise ConfigError(f"a patch of {shape} voxels is neither a volume nor a plane; give three sizes, at most one of them 1.")
    patch = tuple(size for size in patch_voxels if size > 1)
    network = row.build(config, in_channels=in_channels, n_classes=n_classes, patch=patch, pretrained=pretrained)
    return Planar(network, thin[0]) if thin else network
