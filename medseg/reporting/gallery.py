"""The cases of the gallery as pictures: planes through what each stands for, and its slices. Each case is read once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from medseg.core.errors import CaseError
from medseg.core.labels import LabelScheme
from medseg.core.manifest import Case
from medseg.core.resample import resample
from medseg.core.volume import Volume
from medseg.drawing.contours import draw_case
from medseg.drawing.scene import Scene, set_scene
from medseg.drawing.slices import SliceStack, draw_slices
from medseg.drawing.windows import LEAST_OF_CT, Limits, tissue_limits
from medseg.io.formats import read_channels, read_labels
from medseg.reporting.cases import failures
from medseg.reporting.collect import ModelResults, ReportData
from medseg.reporting.config import ReportConfig
from medseg.reporting.picks import LACKING, Choice, Pick, pick_cases
from medseg.reporting.words import find_metric

Layout = Literal["flat", "stack", "anatomical"]
Classes = npt.NDArray[np.uint8]
LEAST_PICTURES = 3  # of each model, however many models share the report's


@dataclass(frozen=True, eq=False)
class Exhibit:
    """A case as it is shown: its pictures, or the reason why there are none.

    Args:
        picks: what it stands for.
        slices: of a volume.
        limits: the intensities shown as black and white where they are Hounsfield units, else None.
        layout: how its grid is shown.
    """

    case_id: str
    model: str
    picks: list[Pick]
    figure: Figure | None = None
    slices: SliceStack | None = None
    reason: str = ""
    limits: Limits | None = None
    layout: Layout = "flat"


@dataclass(frozen=True, eq=False)
class Gallery:
    """One model's exhibits, the worst first; `left_out` cases that stand for something too are not drawn."""

    model: ModelResults
    exhibits: list[Exhibit] = field(default_factory=list)
    left_out: int = 0


def galleries(data: ReportData, config: ReportConfig) -> list[Gallery]:
    """The pictures of every model; empty where the images or the Dice are unknown."""
    cases = {case.case_id: case for case in data.cases}
    models = [m for m in data.models if set(m.per_case["case_id"]) & set(cases)]
    if data.labels is None or find_metric(data, "dice") != "dice" or not models or not config.gallery_cases:
        return []
    most = max(LEAST_PICTURES, config.gallery_pictures // len(models))
    choices = {m.name: pick_cases(data, m, config.gallery_cases, most) for m in models}
    wanted = dict.fromkeys(case_id for choice in choices.values() for case_id in choice.cases)
    shown = {case_id: _exhibits(data, models, choices, config, case_id, cases.get(case_id)) for case_id in wanted}
    found = [Gallery(m, [shown[c][m.name] for c in choices[m.name].cases], choices[m.name].left_out) for m in models]
    return [gallery for gallery in found if gallery.exhibits]


def _exhibits(
    data: ReportData,
    models: Sequence[ModelResults],
    choices: dict[str, Choice],
    config: ReportConfig,
    case_id: str,
    case: Case | None,
) -> dict[str, Exhibit]:
    """One case as every model that shows it has it."""
    assert data.labels is not None
    blank = {m.name: Exhibit(case_id, m.name, choices[m.name].cases[case_id]) for m in models if case_id in choices[m.name].cases}
    if case is None:
        return {name: replace(e, reason="The manifest no longer names this case.") for name, e in blank.items()}
    try:
        image = read_channels(case.images, spacing_mm=data.facts.spacing_mm)
    except CaseError as error:
        return {name: replace(e, reason=str(error)) for name, e in blank.items()}
    reference, problem = _classes(case.label, image, data.labels, data.facts.spacing_mm, False)
    channel = _channel(config.channel, data.channels)
    scene = set_scene(image, reference, None, channel, config.window_percentiles)
    reasons = {(f.model, f.case_id): f.reason for f in failures(data)}
    found = {}
    for model in (m for m in models if m.name in blank):
        prediction, reason = _classes(mask_path(model, case_id), image, data.labels, data.facts.spacing_mm, True)
        # The reason why the case failed says more than that its mask is not there.
        failed = reasons.get((model.name, case_id)) or reasons.get(("", case_id), "")
        absence = "" if prediction is not None else failed or reason
        turned = None if prediction is None else resample(prediction, image.grid, scene.grid, 0)
        ready = replace(blank[model.name], reason=" ".join(filter(None, [problem, absence])))
        found[model.name] = _draw(ready, replace(scene, prediction=turned), data, config, absence)
    return found


def _draw(exhibit: Exhibit, scene: Scene, data: ReportData, config: ReportConfig, absence: str) -> Exhibit:
    focus = focus_classes(exhibit.picks, data.labels)
    limits = ct_limits(scene, focus, _rule(data, config)) if "window_percentiles" not in config.model_fields_set else None
    scene = replace(scene, limits=limits or scene.limits)
    grid = scene.grid
    return replace(
        exhibit,
        figure=draw_case(scene, config.planes, focus, absence),
        slices=None if grid.planar else draw_slices(scene, focus),
        limits=limits,
        layout="flat" if grid.planar else "anatomical" if grid.physical else "stack",
    )


def focus_classes(picks: Sequence[Pick], labels: LabelScheme | None) -> list[int]:
    """The classes to look at: of what was missed or is not there, else of all structures that the case stands for.

    Empty for all classes.
    """
    lacking = [p.structure for p in picks if p.kind in LACKING]
    names = lacking or [p.structure for p in picks]
    measured = labels.measured if labels else {}
    if any(name not in measured for name in names):
        return []  # the mean over structures, or one that the labels do not know
    return sorted({value for name in names for value in measured[name]})


def ct_limits(scene: Scene, focus: Sequence[int], rule: dict[str, Any]) -> Limits | None:
    """The window of a CT: the one that suits the structure. None for other scans, which the percentiles suit.

    Args:
        rule: how the plan normalises the channel. A fixed scale is a CT's; where nothing lies in a CT's air and fat it is of
            something else, and its own ends are the window.
    """
    if rule.get("kind") != "fixed":
        return None
    if scene.picture.min() > LEAST_OF_CT:
        return float(rule["low"]), float(rule["high"])
    return tissue_limits(scene.picture[scene.inside(focus)])


def _rule(data: ReportData, config: ReportConfig) -> dict[str, Any]:
    rules = data.plan.get("preprocessing", {}).get("normalisation") or [{}]
    channel = _channel(config.channel, data.channels) or 0
    return dict(rules[channel]) if channel < len(rules) else {}


def mask_path(model: ModelResults, case_id: str) -> Path | None:
    """Where the model's mask of a case stands: predictions.csv names it, relative to its own folder."""
    if model.predictions is None or model.predictions_folder is None:
        return None
    rows = model.predictions[(model.predictions["case_id"] == case_id) & (model.predictions["status"] != "failed")]
    output = str(rows["output"].iloc[0]) if len(rows) else ""
    return model.predictions_folder / output if output else None


def _classes(
    path: Path | None, image: Volume, labels: LabelScheme, spacing_mm: Any, prediction: bool
) -> tuple[Classes | None, str]:
    """The class indices in a label file on the image's grid, or None and the reason."""
    if path is None:
        return None, ""
    try:
        found = read_labels(path, spacing_mm=spacing_mm)
        if difference := found.grid.difference(image.grid):
            return None, f"{path.name} does not lie on the image's voxels: {difference}."
        return labels.encode(found.array, path.name, prediction=prediction), ""
    except CaseError as error:
        return None, str(error)


def _channel(name: str | None, channels: Sequence[str]) -> int | None:
    return channels.index(name) if name in channels else None
