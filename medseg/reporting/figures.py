"""The report's figures: each as a PNG in `figures/` and as something to stand in the page."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure

from medseg.drawing.curves import training_figure
from medseg.drawing.strips import Scale, Strip, strip_figure
from medseg.drawing.style import save_png, to_svg
from medseg.reporting.collect import ReportData
from medseg.reporting.gallery import Exhibit
from medseg.reporting.words import describe, find_metric

STRIP_METRICS = ("dice", "hd95")


@dataclass(frozen=True)
class PlacedFigure:
    """A figure in the page: its markup, which is trusted, and the file it also stands in."""

    markup: Markup
    file: str


def strips(data: ReportData, folder: Path) -> PlacedFigure | None:
    """Every case of every model as a dot, for Dice and HD95; None where neither was measured."""
    columns = [column for name in STRIP_METRICS if (column := find_metric(data, name))]
    if not columns:
        return None
    rows = [
        Strip(structure, model.name, place, tuple(_values(model.per_case, structure, c) for c in columns))
        for place, structure in enumerate(data.structures)
        for model in data.models
        if (model.per_case["structure"] == structure).any()
    ]
    texts = [describe(c) for c in columns]
    scales = [Scale(t.label, "lower" if t.better == "lower" else "higher", t.share) for t in texts]
    names = " and ".join(t.label for t in texts)
    alt = f"Strip plots of {names} of every case, for each structure and model; the tables give the figures."
    return _place_plot(strip_figure(rows, scales), folder, "cases", alt)


def curves(data: ReportData, folder: Path) -> PlacedFigure | None:
    """The training curves of every model that has a log."""
    logs = {title: log for model in data.models for title, log in model.logs.items() if len(log)}
    if not logs:
        return None
    alt = f"Training loss and validation Dice over the epochs, for {' and '.join(logs)}."
    return _place_plot(training_figure(logs), folder, "training", alt)


def place_exhibit(exhibit: Exhibit, folder: Path, number: int) -> PlacedFigure | None:
    """A gallery picture as an embedded PNG; None where the case could not be drawn."""
    if exhibit.figure is None:
        return None
    name = f"{_file_name(exhibit.model)}_{exhibit.pick.kind}_{number}.png"
    path = save_png(exhibit.figure, folder / name, transparent=True)
    width, height = exhibit.figure.get_size_inches()
    alt = (
        f"{exhibit.pick.kind.capitalize()} case {exhibit.pick.case_id} of {exhibit.model}: the image, the image with the "
        f"reference outlined, and the image with the prediction outlined. {exhibit.reason}"
    ).strip()
    data = base64.b64encode(path.read_bytes()).decode()
    markup = Markup('<img src="data:image/png;base64,{}" alt="{}" width="{}" height="{}">').format(
        Markup(data), alt, round(width * 100), round(height * 100)
    )
    return PlacedFigure(markup, path.name)


def _place_plot(figure: Figure, folder: Path, name: str, alt: str) -> PlacedFigure:
    path = save_png(figure, folder / f"{name}.png")
    figure.set_layout_engine("none")  # it is laid out; doing so again for the SVG would take as long
    # matplotlib escapes what users named, so the SVG is trusted; the label is not from there and is escaped here.
    label = Markup('<svg role="img" aria-label="{}" ').format(alt)
    return PlacedFigure(Markup(to_svg(figure, name).replace("<svg ", label, 1)), path.name)


def _values(per_case: pd.DataFrame, structure: str, column: str) -> Any:
    rows = per_case[per_case["structure"] == structure]
    if column not in rows:
        return pd.Series(dtype=float).to_numpy()
    return rows.loc[rows["status"] != "both_empty", column].to_numpy(float)


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name)
