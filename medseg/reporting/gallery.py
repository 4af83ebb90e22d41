"""The cases of the gallery as pictures: planes through what each stands for, and its slices. Each case is read once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from medseg.core.errors import CaseError, GridMismatchError
from medseg.core.grid import Grid
from medseg.core.labels import LabelScheme
from medseg.core.manifest import Case
from medseg.core.resample import resample
from medseg.core.volume import Volume
from medseg.drawing.contours import draw_case
from medseg.drawing.scene import Scene, set_scene
from medseg.drawing.slices import SliceStack, draw_slices
from medseg.drawing.windows import AIR_OF_CT, BONE_ABOVE, LEAST_OF_CT, Limits, tissue_limits
from medseg.evaluation.masks import read_masks
from medseg.evaluation.pairs import on_grid, place, widen
from medseg.io.formats import read_channels, read_grid
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
        blank: whether only outlines are shown.
        layout: how its grid is shown.
    """

    case_id: str
    model: str
    picks: list[Pick]
    figure: Figure | None = None
    slices: SliceStack | None = None
    reason: str = ""
    limits: Limits | None = None
    blank: bool = False
    layout: Layout = "flat"


@dataclass(frozen=True, eq=False)
class Gallery:
    """One model's exhibits, the worst first; `left_out` cases that stand for something too are not drawn."""

    model: ModelResults
    exhibits: list[Exhibit] = field(default_factory=list)
    left_out: int = 0


def galleries(data: ReportData, config: ReportConfig) -> list[Gallery]:
    """The pictures of every model; empty where the images or the Dice are unknown."""
    cases = {case.case_id: case for case in (data.pictures.cases if data.pictures else data.cases)}
    masks = data.pictures.masks if data.pictures else {m.name: {} for m in data.models}
    models = [m for m in data.models if m.name in masks and set(m.per_case["case_id"]) & set(cases)]
    if labels_of(data) is None or find_metric(data, "dice") != "dice" or not models or not config.gallery_cases:
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
    blank = {m.name: Exhibit(case_id, m.name, choices[m.name].cases[case_id]) for m in models if case_id in choices[m.name].cases}
    if case is None:
        return {name: replace(e, reason="The manifest no longer names this case.") for name, e in blank.items()}
    try:
        image, reference, problem = _background(data, case)
    except CaseError as error:
        return {name: replace(e, reason=str(error)) for name, e in blank.items()}
    channel = _channel(config.channel, data.channels)
    scene = set_scene(image, reference, None, channel, config.window_percentiles)
    scene = replace(scene, blank=data.pictures is not None and not image.array.any())
    reasons = {(f.model, f.case_id): f.reason for f in failures(data)}
    found = {}
    for model in (m for m in models if m.name in blank):
        prediction, reason = _classes(data, mask_path(data, model, case_id), image.grid, model.name)
        # The reason why the case failed says more than that its mask is not there.
        failed = reasons.get((model.name, case_id)) or reasons.get(("", case_id), "")
        absence = "" if prediction is not None else failed or reason
        turned = None if prediction is None else resample(prediction, image.grid, scene.grid, 0)
        ready = replace(blank[model.name], reason=" ".join(filter(None, [problem, absence])))
        found[model.name] = _draw(ready, replace(scene, prediction=turned), data, config, absence)
    return found


def _draw(exhibit: Exhibit, scene: Scene, data: ReportData, config: ReportConfig, absence: str) -> Exhibit:
    focus = focus_classes(exhibit.picks, labels_of(data))
    limits = ct_limits(scene, focus, _rule(data, config)) if "window_percentiles" not in config.model_fields_set else None
    scene = replace(scene, limits=limits or scene.limits)
    grid = scene.grid
    return replace(
        exhibit,
        figure=draw_case(scene, config.planes, focus, absence),
        slices=None if grid.planar else draw_slices(scene, focus),
        limits=limits,
        blank=scene.blank,
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
    if not rule and not scene.grid.planar and scene.picture.min() <= AIR_OF_CT and scene.picture.max() >= BONE_ABOVE:
        return tissue_limits(scene.picture[scene.inside(focus)])  # no plan is known, but nothing else has such values
    if rule.get("kind") != "fixed":
        return None
    if scene.picture.min() > LEAST_OF_CT:
        return float(rule["low"]), float(rule["high"])
    return tissue_limits(scene.picture[scene.inside(focus)])


def _rule(data: ReportData, config: ReportConfig) -> dict[str, Any]:
    rules = data.plan.get("preprocessing", {}).get("normalisation") or [{}]
    channel = _channel(config.channel, data.channels) or 0
    return dict(rules[channel]) if channel < len(rules) else {}


def labels_of(data: ReportData) -> LabelScheme | None:
    """What the values of masks mean."""
    return data.pictures.labels if data.pictures else data.labels


def mask_path(data: ReportData, model: ModelResults, case_id: str) -> Path | None:
    """Where the model's mask of a case stands: predictions.csv names it, relative to its own folder."""
    if data.pictures:
        return data.pictures.masks[model.name].get(case_id)
    if model.predictions is None or model.predictions_folder is None:
        return None
    rows = model.predictions[(model.predictions["case_id"] == case_id) & (model.predictions["status"] != "failed")]
    output = str(rows["output"].iloc[0]) if len(rows) else ""
    return model.predictions_folder / output if output else None


def _background(data: ReportData, case: Case) -> tuple[Volume, Classes | None, str]:
    """The image, the reference on its voxels, and what is wrong with it in a sentence.

    Of evaluations over folders the reference's grid is that of the masks: without an image that lies on it, an empty one does.
    Raises: CaseError where there is nothing to draw on.
    """
    spacing_mm, problem = data.facts.spacing_mm, ""
    if not data.pictures:
        image = read_channels(case.images, spacing_mm=spacing_mm)
        return image, *_classes(data, case.label, image.grid)
    grid = _mask_grid(data, case)
    if case.images:
        try:
            image = read_channels(case.images)
            if (reference := _classes(data, case.label, image.grid)[0]) is not None:
                return image, reference, ""
            problem = _differing(case.images[0], image.grid, grid)
        except CaseError as error:
            problem = str(error)
    empty = Volume(np.zeros((1, *grid.shape), np.float32), grid)
    reference, reason = _classes(data, case.label, grid)
    return empty, reference, " ".join(filter(None, [problem, reason]))


def _mask_grid(data: ReportData, case: Case) -> Grid:
    """The reference's grid and, where the reference may be cut to its structures, all that the predictions cover."""
    assert data.pictures and case.label
    labels, cut, _ = read_masks(case.label, data.pictures.labels, missing_empty=data.pictures.missing_empty)
    for mask in (of[case.case_id] for of in data.pictures.masks.values() if cut and case.case_id in of):
        labels = widen(labels, read_grid(mask))
    return labels.grid


def _differing(image: Path, grid: Grid, reference: Grid) -> str:
    difference = grid.difference(reference)
    return f"{image.name} does not lie on the reference’s voxels ({difference}), so it is not shown." if difference else ""


def _classes(data: ReportData, path: Path | None, grid: Grid, model: str = "") -> tuple[Classes | None, str]:
    """The class indices in masks on a grid, or None and the reason; axis orders and flips are undone, as the evaluation does.

    Args:
        model: whose prediction it is; by default it is the reference.
    """
    labels = labels_of(data)
    if path is None or labels is None:
        return None, ""
    nearest, missing_empty = (model in p.nearest, p.missing_empty) if (p := data.pictures) else (False, False)
    try:
        read, cut, _ = read_masks(path, labels, bool(model), data.facts.spacing_mm, missing_empty)
        try:
            found, _ = on_grid(place(read, grid) if cut else read, grid, nearest)
        except GridMismatchError:
            what = "reference" if data.pictures else "image"
            return None, f"{path.name} does not lie on the {what}’s voxels: {read.grid.difference(grid)}."
        return labels.encode(found.array, path.name, prediction=bool(model)), ""
    except CaseError as error:
        return None, str(error)


def _channel(name: str | None, channels: Sequence[str]) -> int | None:
    return channels.index(name) if name in channels else None
