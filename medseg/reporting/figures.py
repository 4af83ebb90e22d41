"""The report's figures: each as PNG at 300 dpi and as SVG in `figures/`, and as something to stand in the page."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure

from medseg.drawing.agreement import Agreement, agreement_figure
from medseg.drawing.curves import training_figure
from medseg.drawing.flow import flow_figure
from medseg.drawing.reliability import Diagram, reliability_figure
from medseg.drawing.strips import Scale, Strip, strip_figure
from medseg.drawing.style import PRINT_DPI, save_png, save_svg, to_svg
from medseg.evaluation.agreement import Estimate, bland_altman, unit_means
from medseg.evaluation.summary import units_of
from medseg.metrics.calibration import Reliability, expected_calibration_error
from medseg.reporting.bands import reader_spans, spans_text
from medseg.reporting.cases import case_flow
from medseg.reporting.collect import ModelResults, ReportData
from medseg.reporting.recipe import listing
from medseg.reporting.words import describe, find_metric

STRIP_METRICS = ("dice", "hd95")
LARGEST = 1.3  # times its own size a figure is shown, so that a small one has no huge letters
MOST_PANELS = 24  # of volume agreement: the structures beyond stand in the tables only


@dataclass(frozen=True)
class PlacedFigure:
    """A figure in the page: its markup, which is trusted, the file it also stands in, and what its caption must say of it."""

    markup: Markup
    file: str
    note: str = ""


def flow(data: ReportData, folder: Path) -> PlacedFigure:
    """How far the cases came, as a CONSORT-style chart."""
    chart = case_flow(data)
    alt = "Flow of the cases: given, readable, segmented and evaluated, with those left out and why; the table has the figures."
    return _place_plot(flow_figure(chart.trunk, chart.columns), folder, "flow", alt)


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
    spans = reader_spans(data, columns)
    alt = f"Strip plots of {names} of every case, for each structure and model; the tables give the figures."
    figure = strip_figure(rows, scales, spans)
    bent = [t.label for axes, t in zip(figure.axes, texts, strict=True) if axes.get_xscale() == "symlog"]
    note = f"The scale of {listing(bent)} is logarithmic beyond the usual values." if bent else ""
    return replace(_place_plot(figure, folder, "cases", alt + spans_text(spans, columns)), note=note)


def agreement(data: ReportData, folder: Path) -> PlacedFigure | None:
    """Reference and predicted sizes after Bland and Altman, by structure and model; None where they were not measured.

    As in the convention `worst`, what has no prediction counts as size 0.
    """
    columns = [find_metric(data, f"{which}_{size}") for size in ("volume", "area") for which in ("reference", "predicted")]
    pairs = [(a, b) for a, b in (columns[:2], columns[2:]) if a and b]
    if not pairs:
        return None
    panels = [
        panel
        for place, structure in enumerate(data.structures)
        for model in data.models
        if (panel := _agreement(data, model, structure, place, *pairs[0])) is not None
    ]
    if not panels:
        return None
    shown = panels[: MOST_PANELS - MOST_PANELS % len(data.models)]
    alt = "Bland-Altman plots: the mean of reference and predicted size against their difference, for each structure and model."
    return _place_plot(agreement_figure(shown, len(data.models)), folder, "agreement", alt)


def _agreement(
    data: ReportData, model: ModelResults, structure: str, place: int, reference: str, predicted: str
) -> Agreement | None:
    rows = model.per_case[(model.per_case["structure"] == structure) & (model.per_case["status"] != "unreadable")]
    if reference not in rows or predicted not in rows:
        return None
    values = rows[[reference, predicted]].fillna({predicted: 0.0}).to_numpy(float)
    means = unit_means(values, units_of(rows))
    first, second = means[np.isfinite(means).all(axis=1)].T
    if not first.size:
        return None
    found = bland_altman(first, second, data.facts.confidence)
    return Agreement(
        title=f"{structure}, {model.name}" if len(data.models) > 1 else structure,
        colour=place,
        mean=(first + second) / 2,
        difference=second - first,
        bias=found.bias.value,
        lower=found.lower.value,
        upper=found.upper.value,
        unit=describe(reference).unit,
        bias_interval=_interval(found.bias),
        lower_interval=_interval(found.lower),
        upper_interval=_interval(found.upper),
    )


def _interval(estimate: Estimate) -> tuple[float, float] | None:
    return (estimate.low, estimate.high) if np.isfinite(estimate.low) else None


def reliability(data: ReportData, folder: Path) -> PlacedFigure | None:
    """Reliability diagrams by structure and model; None where no probabilities were measured."""
    panels = [
        Diagram(
            f"{structure}, {model.name}" if len(data.models) > 1 else structure,
            place,
            bins.mean_confidence,
            bins.hit_rate,
            bins.counts,
            expected_calibration_error(bins),
        )
        for place, structure in enumerate(data.structures)
        for model in data.models
        if model.reliability is not None and (bins := _bins(model.reliability, structure)).counts.any()
    ]
    if not panels:
        return None
    alt = (
        "Reliability diagrams: the probability given against the share of voxels in the structure, for each structure and model."
    )
    shown = panels[: MOST_PANELS - MOST_PANELS % len(data.models)]
    return _place_plot(reliability_figure(shown, len(data.models)), folder, "reliability", alt)


def _bins(table: pd.DataFrame, structure: str) -> Reliability:
    """The rows of reliability.csv as the bins that they were written from."""
    rows = table[table["structure"] == structure]
    counts = rows["n"].to_numpy(int)
    sums = counts * rows[["mean_probability", "hit_rate"]].fillna(0.0).to_numpy(float).T
    return Reliability(counts, sums[0], sums[1].round().astype(int), math.nan)


def curves(data: ReportData, folder: Path) -> PlacedFigure | None:
    """The training curves of every model that has a log."""
    logs = {title: log for model in data.models for title, log in model.logs.items() if len(log)}
    if not logs:
        return None
    alt = f"Training loss and validation Dice over the epochs, for {' and '.join(logs)}."
    return _place_plot(training_figure(logs), folder, "training", alt)


def save_print(figure: Figure, path: Path) -> Path:
    """Write a figure for a paper: as PNG at 300 dpi to `path`, and as SVG beside it. Returns the PNG's path."""
    save_png(figure, path, dpi=PRINT_DPI)
    figure.set_layout_engine("none")  # it is laid out; doing so again would take as long
    save_svg(figure, path.with_suffix(".svg"))
    return path


def _place_plot(figure: Figure, folder: Path, name: str, alt: str) -> PlacedFigure:
    path = save_print(figure, folder / f"{name}.png")
    # matplotlib escapes what users named, so the SVG is trusted; the label is not from there and is escaped here.
    label = Markup('<svg role="img" aria-label="{}" width="{}" ').format(alt, round(96 * figure.get_size_inches()[0]))
    markup = to_svg(figure, name).replace("<svg ", label, 1)
    markup = markup.replace('style="', f'style="max-width: {round(96 * LARGEST * figure.get_size_inches()[0])}px; ', 1)
    return PlacedFigure(Markup(markup), path.name)


def _values(per_case: pd.DataFrame, structure: str, column: str) -> Any:
    rows = per_case[per_case["structure"] == structure]
    if column not in rows:
        return pd.Series(dtype=float).to_numpy()
    return rows.loc[rows["status"] != "both_empty", column].to_numpy(float)
