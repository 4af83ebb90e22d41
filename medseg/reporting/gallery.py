"""The best, median and worst cases of each model, as pictures. The worst include cases that failed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure

from medseg.core.errors import CaseError
from medseg.core.labels import LabelScheme
from medseg.core.manifest import Case
from medseg.core.volume import Volume
from medseg.drawing.contours import draw_case
from medseg.io.formats import read_channels, read_labels
from medseg.metrics.table import METRICS
from medseg.reporting.cases import UNUSABLE, failures, unread_references
from medseg.reporting.collect import ModelResults, ReportData
from medseg.reporting.config import ReportConfig
from medseg.reporting.words import find_metric

Kind = Literal["best", "median", "worst"]
Layout = Literal["flat", "stack", "anatomical"]
Classes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Pick:
    """A case to show, with its Dice of the mean over structures under the convention `worst`."""

    kind: Kind
    case_id: str
    dice: float


@dataclass(frozen=True, eq=False)
class Exhibit:
    """A case as it is shown: a figure, or the reason why there is none. `layout`: what `draw_case` made of its grid."""

    pick: Pick
    model: str
    figure: Figure | None
    reason: str = ""
    layout: Layout = "flat"


def case_scores(model: ModelResults) -> pd.Series[float]:
    """Dice of each case, mean over structures, under the convention `worst`, so that a missed case is a bad case.

    A structure in neither mask counts as perfect; one that is in one mask only, or a case without a usable mask, as 0.
    Cases whose reference could not be read have no score and are left out. The worst case comes first; ties go by case_id.
    """
    metric = METRICS["dice"]
    per_case = model.per_case[~model.per_case["case_id"].isin(unread_references(model))]
    assumed = dict.fromkeys(("reference_empty", "prediction_empty", *UNUSABLE), metric.when_one_empty)
    assumed["both_empty"] = metric.when_both_empty
    scores = pd.to_numeric(per_case["dice"]).fillna(per_case["status"].map(assumed).astype(float))
    means = scores.groupby(per_case["case_id"]).mean().dropna()
    return means.sort_index().sort_values(kind="stable")


def choose_cases(scores: pd.Series[float], number: int) -> list[Pick]:
    """`number` cases of each kind, no case twice; with few cases the worst are chosen first, then the best.

    Args:
        scores: one for each case_id, the worst first.
    """
    n = len(scores)
    order: dict[int, Kind] = {}
    middle = sorted(range(n), key=lambda i: abs(i - (n - 1) / 2))
    for kind, places in (("worst", range(n)), ("best", range(n - 1, -1, -1)), ("median", middle)):
        free = [i for i in places if i not in order][:number]
        order |= dict.fromkeys(free, kind)  # type: ignore[arg-type]
    rank = ["best", "median", "worst"]
    chosen = sorted(order, key=lambda i: (rank.index(order[i]), -i if order[i] == "best" else i))
    return [Pick(order[i], str(scores.index[i]), float(scores.iloc[i])) for i in chosen]


def exhibits(data: ReportData, model: ModelResults, config: ReportConfig) -> list[Exhibit]:
    """The pictures of one model's best, median and worst cases; empty where the images are unknown."""
    cases = {case.case_id: case for case in data.cases}
    if data.labels is None or find_metric(data, "dice") != "dice" or not set(model.per_case["case_id"]) & set(cases):
        return []
    reasons = {f.case_id: f.reason for f in failures(data) if f.model in ("", model.name)}
    picks = choose_cases(case_scores(model), config.gallery_cases)
    return [_exhibit(data, model, config, pick, cases.get(pick.case_id), reasons.get(pick.case_id, "")) for pick in picks]


def _exhibit(data: ReportData, model: ModelResults, config: ReportConfig, pick: Pick, case: Case | None, failed: str) -> Exhibit:
    if case is None:
        return Exhibit(pick, model.name, None, "The manifest no longer names this case.")
    assert data.labels is not None
    try:
        image = read_channels(case.images, spacing_mm=data.facts.spacing_mm)
    except CaseError as error:
        return Exhibit(pick, model.name, None, str(error))
    reference, problem = _classes(case.label, image, data.labels, data.facts.spacing_mm, False)
    prediction, reason = _classes(mask_path(model, pick.case_id), image, data.labels, data.facts.spacing_mm, True)
    # The reason why the case failed says more than that its mask is not there.
    absence = "" if prediction is not None else failed or reason
    figure = draw_case(
        image,
        reference,
        prediction,
        planes=config.planes,
        channel=_channel(config.channel, data.channels),
        percentiles=config.window_percentiles,
        missing=absence,
    )
    layout: Layout = "flat" if image.grid.planar else "anatomical" if image.grid.physical else "stack"
    return Exhibit(pick, model.name, figure, " ".join(filter(None, [problem, absence])), layout)


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
