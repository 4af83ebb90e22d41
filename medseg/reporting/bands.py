"""How far readers agree with one another, beside what the models reach: as a band in the figure, and as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import pandas as pd

from medseg.drawing.strips import Span
from medseg.evaluation.intervals import FEWEST_UNITS
from medseg.evaluation.readers import Band, Standing
from medseg.reporting.collect import ReportData
from medseg.reporting.exports import Table
from medseg.reporting.readers import ReaderAgreement
from medseg.reporting.words import NONE, MetricText, describe, format_number, plural, unit_words

PLACES = {"better": "better than the band", "within": "in the band", "worse": "worse than the band", "": NONE}


def reader_spans(data: ReportData, columns: Sequence[str]) -> dict[str, list[Span | None]]:
    """The readers' bands for the figure of every case, by structure: one or None for each of these metrics."""
    if data.readers is None:
        return {}
    found = {(row["structure"], row["metric"]): row for row in data.readers.table.to_dict("records") if row["n"]}
    spans = {s: [_span(found.get((s, column))) for column in columns] for s in data.structures}
    return {structure: of_structure for structure, of_structure in spans.items() if any(of_structure)}


def _span(row: dict[Any, Any] | None) -> Span | None:
    if row is None:
        return None
    label = f"{row['n_readers']:.0f} readers, {row['n']:.0f} cases: {_with_interval(describe(row['metric']), row)}"
    return Span(row["mean"], row["ci_low"], row["ci_high"], label)


def spans_text(spans: dict[str, list[Span | None]], columns: Sequence[str]) -> str:
    """The bands in words, for who does not see them."""
    told = [
        f"{describe(column).label} of {structure}: {span.label}"
        for structure, of_structure in spans.items()
        for column, span in zip(columns, of_structure, strict=True)
        if span
    ]
    return f" Bands of readers: {'; '.join(told)}." if told else ""


def reader_table(data: ReportData) -> Table | None:
    """The readers' means and the models', for every structure and metric that both have."""
    if (readers := data.readers) is None:
        return None
    if (frame := _beside_models(data, readers)).empty:
        return None
    several = bool((frame["n_pairs"] > 1).any())
    placed = bool((frame["place"] != "").any())
    rows = [_printed(row, several, placed) for row in frame.to_dict("records")]
    headers = ["Structure", "Metric", "Readers", *["Pairs of readers"] * several, "n", "Model", "Mean", "n"]
    headers += ["The model’s mean is"] * placed
    numeric = [False] * 2 + [True] * (2 + several) + [False] + [True] * 2 + [False] * placed
    caption = f"Agreement between readers, beside the models. {_meaning(data, readers)}"
    return Table("readers", caption, frame, headers, rows, numeric)


def _beside_models(data: ReportData, readers: ReaderAgreement) -> pd.DataFrame:
    """The rows of readers.csv, one a model, with its figures as `<column>_model` and `place`: where its mean lies."""
    columns = ["structure", "metric", "model", "mean", "ci_low", "ci_high", "n"]
    models = pd.concat([m.summary[m.summary["convention"] == "worst"].assign(model=m.name)[columns] for m in data.models])
    frame = readers.table.merge(models, on=["structure", "metric"], suffixes=("", "_model"))
    order = {structure: place for place, structure in enumerate(data.structures)}
    frame = frame.sort_values("structure", key=lambda names: names.map(order), kind="stable", ignore_index=True)
    return frame.assign(place=[_place(row) for row in frame.to_dict("records")])


def _place(row: dict[Any, Any]) -> Standing:
    band = Band(**{f.name: row[f.name] for f in fields(Band)})
    return band.place(row["mean_model"], "lower" if describe(row["metric"]).better == "lower" else "higher")


def _printed(row: dict[Any, Any], several: bool, placed: bool) -> list[str]:
    text = describe(row["metric"])
    pairs = [f"{text.format(row['lowest'])} to {text.format(row['highest'])}"] if several else []
    theirs = [row["structure"], text.label, _with_interval(text, row), *pairs, format_number(row["n"], 0)]
    place = [PLACES[row["place"]].replace(" ", "\u00a0")] if placed else []
    return [*theirs, row["model"], _with_interval(text, row, "_model"), format_number(row["n_model"], 0), *place]


def _with_interval(text: MetricText, row: dict[Any, Any], whose: str = "") -> str:
    mean, low, high = (text.format(row[f"{column}{whose}"]) for column in ("mean", "ci_low", "ci_high"))
    return mean if low == NONE else f"{mean} [{low} to {high}]"


def _meaning(data: ReportData, readers: ReaderAgreement) -> str:
    n, banded = f"{readers.table['n_readers'].max():.0f}", readers.table["ci_low"].notna()
    what = f"Readers: mean over their cases of how far every two of the {n} readers agree with each other. Models: mean "
    what += "agreement with the reference of the evaluation. Both are under the convention “worst”, with "
    what += f"{_intervals(data, readers)}. A model {'in the band' if banded.any() else 'at the line'} agrees with its reference "
    what += "as well as readers agree with one another on average. It need not agree with these readers, and is not shown to be "
    what += "as good as they are: the means are of different pairs of masks, and nothing is tested."
    if not banded.all():
        theirs = plural(readers.sampling_unit)
        what += f" Where fewer than {FEWEST_UNITS} of the readers’ {theirs} have a figure there is a line and no band."
    return " ".join(filter(None, [what, cases_in_common(data), _without_band(data, readers)]))


def _intervals(data: ReportData, readers: ReaderAgreement) -> str:
    facts = data.facts
    theirs = f"{100 * readers.confidence:g} % intervals over {plural(readers.sampling_unit)}"
    ours = f"{100 * facts.confidence:g} % intervals over {unit_words(data)}"
    return ours if ours == theirs else f"{theirs} of the readers and {ours} of the models"


def cases_in_common(data: ReportData) -> str:
    """How many of the evaluated cases the readers have read, in a sentence; empty without readers."""
    if data.readers is None:
        return ""
    ours, theirs = {str(c) for m in data.models for c in m.per_case["case_id"]}, data.readers.cases
    common, others = len(ours & theirs), len(theirs - ours)
    more = f", and {others} {'other' if others == 1 else 'others'}" if others else ""
    if not common:
        return f"The readers have read none of the {len(ours)} evaluated cases: the band is of {len(theirs)} others."
    return f"The readers have read {common} of the {len(ours)} evaluated cases{more}."


def _without_band(data: ReportData, readers: ReaderAgreement) -> str:
    without = [s for s in data.structures if s not in set(readers.table["structure"])]
    return f"The readers have no figures of {', '.join(without)}." if without else ""
