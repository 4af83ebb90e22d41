"""The plan: everything that data decide about a model, each value with its reason in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from medseg.core.config import Section, parse
from medseg.core.errors import ConfigError, StageError
from medseg.core.files import write_text
from medseg.core.labels import LabelScheme
from medseg.data.preprocess import Preprocessing
from medseg.models.registry import MODELS, sizes_of
from medseg.planning.config import Axis, PlanConfig, Size
from medseg.planning.fingerprint import Fingerprint
from medseg.planning.machine import Granted
from medseg.planning.networks import Model, hungriest, plan_network
from medseg.planning.patch import Patch, plan_batch, plan_patch
from medseg.planning.preparation import plan_preparation, prepared_shapes, require_rules
from medseg.planning.sides import STATED, mirrored_axes, swapped_classes

AS_START = "as the model that the training starts from"
PREPARATION = ("crop_nonzero", "normalisation", "order")  # besides the spacing
SIZE_OPTIONS = ("features", "width")  # what states a network's size, in any architecture's options


class Plan(Section):
    """What a model must know of its data; it travels in the model file.

    Args:
        channels: names of the image files of a case; `n_channels` counts the network's inputs (RGB has three).
        patch_voxels: along right, anterior, superior; 1 along one axis makes a 2D network.
        flips: axes along which mirroring keeps the anatomy's meaning.
        swaps: pairs of class indices that change places where a picture is mirrored left to right (axis 0).
        class_voxels: voxels of each class in the training cases, background first, on their own grids.
        models: each model's architecture and options, every size in them.
        reasons: why each value is what it is.
    """

    preprocessing: Preprocessing
    channels: list[str]
    n_channels: Size
    patch_voxels: tuple[Size, Size, Size]
    batch_size: Size
    flips: list[Axis]
    swaps: list[tuple[Size, Size]] = Field(default_factory=list)
    class_voxels: list[Annotated[int, Field(ge=0)]] = Field(default_factory=list)
    models: dict[str, Model] = Field(default_factory=dict)
    reasons: dict[str, str] = Field(default_factory=dict)

    def save(self, path: Path) -> None:
        write_text(path, self.model_dump_json(indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> Plan:
        """The plan in a plan.json. Raises: StageError where there is none, ConfigError where an edit broke it."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except OSError:
            raise StageError(f"{path} does not exist; run `medseg prepare` first.") from None
        return parse_plan(text, str(path))


def parse_plan(text: str, where: str) -> Plan:
    """A plan from its JSON text. Raises: ConfigError."""
    import json

    try:
        content = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{where} is not valid JSON ({error}).") from None
    return parse(Plan, content, where)


def make_plan(
    fingerprint: Fingerprint,
    config: PlanConfig,
    scheme: LabelScheme,
    channels: tuple[str, ...],
    modality: str | list[str],
    models: dict[str, Model],
    granted: Granted,
    start: Plan | None = None,
) -> Plan:
    """The plan for these training cases; values that `config` states win over the rules. No clock, no machine, no file.

    Args:
        modality: one name for all channels, or one for each.
        models: architecture and options of each model.
        granted: what a training step may take.
        start: of the model that the training starts from, with that model alone in `models`.
    Raises: ConfigError where the number of modalities does not fit the channels, where pairs of structures contradict each
        other, where a network cannot be built for the patch, or where `start` was made for other scans.
    """
    n_channels, n_outputs = fingerprint.channels, scheme.n_outputs
    reasons = {"channels": f"{', '.join(channels)}: the manifest's, {n_channels} inputs of the network"}
    stated = config
    if start is None:
        preprocessing = plan_preparation(fingerprint, config, modality, reasons)
    else:
        require_same_scans(start, fingerprint.channels, fingerprint.physical, channels)
        require_same_architecture(start, models)
        if config.normalisation is not None:
            require_rules(config.normalisation, fingerprint.channels)
        config = _with_start(config, start)
        stated_ones = {key: getattr(stated, key) for key in PREPARATION if getattr(stated, key) is not None}
        preprocessing = start.preprocessing.model_copy(update={"spacing": config.spacing_mm, **stated_ones})
    networks = {name: _started(model, start) for name, model in models.items()}

    def widest(patch: Patch, batch: int) -> float:
        return hungriest([model for model, _ in networks.values()], patch, batch, n_channels, n_outputs)

    def narrowest(patch: Patch, batch: int) -> float:
        return hungriest([model for model, _ in networks.values()], patch, batch, n_channels, n_outputs, narrowest=True)

    shapes = prepared_shapes(fingerprint, preprocessing)
    x, y, z = (int(n) for n in np.median(shapes, axis=0).round())
    patch = plan_patch((x, y, z), preprocessing.spacing or (1.0, 1.0, 1.0), granted, config, widest, narrowest, reasons)
    batch = plan_batch(patch, int(shapes.prod(axis=1).sum()), granted, config, widest, reasons)
    planned = {
        name: plan_network(name, model, patch, batch, n_channels, n_outputs, granted, reasons, stated_by)
        for name, (model, stated_by) in networks.items()
    }
    flips = mirrored_axes(patch, scheme, fingerprint.physical, config, reasons)
    counts = np.sum([c.class_voxels for c in fingerprint.cases], axis=0)
    reasons["class_voxels"] = f"counted in {len(fingerprint.cases)} training cases"
    if start is not None:
        reasons |= _reasons_of_start(stated)
    return Plan(
        preprocessing=preprocessing,
        channels=list(channels),
        n_channels=n_channels,
        patch_voxels=patch,
        batch_size=batch,
        flips=flips,
        swaps=swapped_classes(scheme),
        class_voxels=[int(n) for n in counts],
        models=planned,
        reasons=reasons,
    )


def require_same_scans(start: Plan, n_channels: int, physical: bool, channels: Sequence[str]) -> None:
    """Raises: ConfigError where the model that the training starts from, with this plan, was made for other scans."""
    if start.n_channels != n_channels:
        raise ConfigError(
            f"training: `init_from` is a model for {start.n_channels} channels ({', '.join(start.channels)}) and these scans "
            f"have {n_channels}; start from a model for the same channels, or from none."
        )
    if start.channels != list(channels):
        raise ConfigError(
            f"training: `init_from` takes the channels {', '.join(start.channels)} and the manifest has {', '.join(channels)}; "
            "order and name its columns so, or start from none."
        )
    if start.preprocessing.physical != physical:
        has, needs = ("a", "without one") if physical else ("no", "in mm")
        raise ConfigError(
            f"training: `init_from` is a model for scans {needs} and these state {has} physical size; start from a model for "
            "such scans, or from none."
        )


def require_same_architecture(start: Plan, models: Mapping[str, Model]) -> None:
    """Raises: ConfigError for a model that cannot start from the one in the plan `start`."""
    (begun,) = {model["architecture"] for model in start.models.values()}
    if others := [name for name, model in models.items() if model["architecture"] != begun]:
        raise ConfigError(
            f"models.{others[0]}: `training.init_from` is a {begun}, and no other architecture can start from it; leave "
            f"{', '.join(others)} out of `models`."
        )


def _with_start(config: PlanConfig, start: Plan) -> PlanConfig:
    """What the configuration states, and beneath it what the model states that the training starts from."""
    return config.model_copy(
        update={
            "spacing_mm": config.spacing_mm or start.preprocessing.spacing,
            "patch_voxels": config.patch_voxels or start.patch_voxels,
            "batch_size": config.batch_size or start.batch_size,
        }
    )


def _reasons_of_start(stated: PlanConfig) -> dict[str, str]:
    """The reasons of the values that come from the model that the training starts from."""
    values = {key: getattr(stated, key) for key in (*PREPARATION, "patch_voxels", "batch_size")} | {"spacing": stated.spacing_mm}
    return {key: AS_START if value is None else STATED for key, value in values.items()}


def _started(model: Model, start: Plan | None) -> tuple[Model, str]:
    """The model as the one of its architecture that the training starts from, and who states its size.

    Options that differ from the architecture's defaults were stated, and win.
    """
    if start is None or any(model["options"].get(key) is not None for key in SIZE_OPTIONS):
        return model, STATED
    (begun,) = start.models.values()
    # `weights`, a file of the machine that trained the start, stays: it says which layers there are, and is not read again.
    options = sizes_of(model["architecture"], begun["options"], start.patch_voxels)[0][0]
    defaults = MODELS[model["architecture"]].config().model_dump(mode="json")
    stated = {key: value for key, value in model["options"].items() if value != defaults[key]}
    words = f" ({', '.join(stated)} {STATED})" if stated else ""
    return {"architecture": model["architecture"], "options": options | stated}, AS_START + words
