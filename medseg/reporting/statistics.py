"""Tables of further statistics, where there are any: readers, thresholds, sizes, subgroups, ranking, gains of `defined`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from medseg.evaluation.summary import GAIN_COLUMNS, gains_of_defined
from medseg.evaluation.thresholds import best_of_mean
from medseg.reporting.bands import reader_table
from medseg.reporting.collect import ModelResults, ReportData
from medseg.reporting.exports import Table
from medseg.reporting.tables import confidence, units_repeat
from medseg.reporting.words import NONE, MetricText, describe, format_number, unit_words

# statistic in agreement.csv -> how it is called; those of a size carry the unit.
AGREEMENT = {
    "bias": "Bias",
    "limit_lower": "Lower limit of agreement",
    "limit_upper": "Upper limit of agreement",
    "bias_slope": "Slope of the difference over the mean",
    "icc_2_1": "ICC(2,1)",
    "icc_3_1": "ICC(3,1)",
    "passing_bablok_slope": "Passing-Bablok slope",
    "passing_bablok_intercept": "Passing-Bablok intercept",
    "deming_slope": "Deming slope",
    "deming_intercept": "Deming intercept",
    "within_subject_cv": "Within-subject CV",
}


def statistics_tables(data: ReportData, headline: Sequence[str]) -> list[Table]:
    """The tables that there are.

    Args:
        headline: columns of the metrics that subgroups are shown for.
    """
    found = (
        reader_table(data),
        _best_thresholds(data),
        _agreement(data),
        _subgroups(data, headline),
        _ranking(data),
        _gains(data),
    )
    return [table for table in found if table is not None]


def _best_thresholds(data: ReportData) -> Table | None:
    table = _of_models(data, "thresholds")
    if table is None:
        return None
    rows = [
        [structure, describe(row["metric"]).label, model, f"{row['threshold']:.1f}", describe(row["metric"]).format(row["mean"])]
        + [format_number(row["n"], 0), format_number(row["n_undefined"], 0)]
        for structure, model, part in _parts(data, table)
        for row in best_of_mean(part).to_dict("records")
    ]
    headers = ["Structure", "Metric", "Model", "Threshold", "Mean", "n", "Undefined"]
    caption = "Best thresholds. Where the mean over all cases is highest, as the ISBI 2012 challenge ranks; a pixel is in a cell "
    caption += "where 1 − probability is above the threshold. The best of each case by itself is never lower."
    return Table("thresholds", caption, table, headers, rows, [False] * 3 + [True] * 4)


def _agreement(data: ReportData) -> Table | None:
    table = _of_models(data, "agreement")
    if table is None:
        return None
    parts = {(structure, model): part.set_index("statistic") for structure, model, part in _parts(data, table)}
    models = [model.name for model in data.models if any(model.name == name for _, name in parts)]
    shown = [s for s in AGREEMENT if (table["statistic"] == s).any()]
    rows = [
        [structure, text, *cells]
        for structure in dict.fromkeys(structure for structure, _ in parts)
        for text, cells in _statistics([parts.get((structure, model)) for model in models], shown)
    ]
    caption = f"Agreement of predicted and reference sizes, with {confidence(data)} intervals. Limits of agreement after Bland "
    caption += "and Altman; where the difference’s slope is not 0, the bias grows with the size or the two differ in spread. "
    caption += "ICC(2,1) is of absolute agreement, ICC(3,1) of consistency; lines are of prediction over reference, and a slope "
    caption += f"of 1 with an intercept of 0 is agreement. n counts {unit_words(data)}. What has no prediction counts as size 0, "
    caption += f"and a structure in neither mask is a pair of zeros{_averaged(data)}."
    return Table("agreement", caption, table, ["Structure", "Statistic", *models], rows, [False] * 2 + [True] * len(models))


def _statistics(models: Sequence[pd.DataFrame | None], shown: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """A structure's rows: what stands in each, and the cell of each model."""
    known = [part for part in models if part is not None]
    for name in shown:
        found = [_row(part, name) for part in models]
        unit = next((row["unit"] for row in found if row is not None and row["unit"]), "")
        cells = [NONE if row is None else _with_limits(describe(name), row, "value") for row in found]
        yield f"{AGREEMENT[name]}{f' ({unit})' if unit else ''}", cells
    if known:
        yield "n", [NONE if part is None else format_number(part["n"].iloc[0], 0) for part in models]


def _row(part: pd.DataFrame | None, statistic: str) -> pd.Series[Any] | None:
    rows = part[part.index == statistic] if part is not None else ()
    return rows.iloc[0] if len(rows) else None  # type: ignore[union-attr]


def _averaged(data: ReportData) -> str:
    """Where it matters, that several cases of a unit are one value."""
    return f"; the cases of each of the {unit_words(data)} are averaged first" if units_repeat(data) else ""


def _subgroups(data: ReportData, headline: Sequence[str]) -> Table | None:
    table = _of_models(data, "subgroups")
    if table is None:
        return None
    chosen = table[(table["convention"] == "worst") & table["metric"].isin(list(headline))]
    rows = [
        [row["covariate"], row["group"], structure, describe(row["metric"]).label, model]
        + [_with_limits(describe(row["metric"]), row, "mean"), format_number(row["n"], 0), format_number(row["n_undefined"], 0)]
        for structure, model, part in _parts(data, chosen)
        for _, row in part.iterrows()
    ]
    rows.sort(key=lambda row: row[0])
    headers = ["Column", "Group", "Structure", "Metric", "Model", f"Mean [{confidence(data)} interval]", "n", "Undefined"]
    caption = f"Groups of cases. Mean under the convention “worst” with {confidence(data)} intervals over {unit_words(data)}. "
    caption += "Groups are described, not tested: no difference between them was looked for, and none is claimed."
    return Table("subgroups", caption, table, headers, rows, [False] * 5 + [True] * 3) if rows else None


def _ranking(data: ReportData) -> Table | None:
    table = data.ranking
    if table is None or table.empty:
        return None
    rows = []
    for row in table[table["structure"].isin(data.structures)].to_dict("records"):
        text, first = describe(row["metric"]), row.get("share_rank_1")
        known = pd.notna(row["rank_low"])
        among = f"{row['rank_low']:.0f} to {row['rank_high']:.0f}" if known else NONE
        share = f"{100 * first:.0f} %" if first is not None and pd.notna(first) else NONE
        rows.append([row["structure"], text.label, format_number(row["rank"], 0), row["model"], text.format(row["mean"])])
        rows[-1] += [among, share, format_number(row["n"], 0)]
    headers = ["Structure", "Metric", "Rank", "Model", "Mean", f"{confidence(data)} of resamples", "First in", "n"]
    caption = "Ranking of the models by their means under the convention “worst”. Beside each rank, where it lies when "
    caption += f"{unit_words(data)} are resampled, and how often the model is the first."
    return Table("ranking", caption, table, headers, rows, [False] * 2 + [True, False] + [True] * 4)


def _gains(data: ReportData) -> Table | None:
    """Where leaving undefined figures out looks better, by how much and for how many cases."""
    found = [_gains_of(model).assign(model=model.name) for model in data.models]
    table = pd.concat(found, ignore_index=True)[["model", *GAIN_COLUMNS]]
    rows = []
    for structure, model, part in _parts(data, table):
        for row in part.to_dict("records"):
            text = describe(row["metric"])
            means = [text.format(row[column]) for column in ("worst", "defined", "gain")]
            if means[0] != means[1]:  # as printed
                of = f"{format_number(row['n_filled'], 0)} of {format_number(row['n'], 0)}"
                rows.append([structure, text.label, model, *means, of])
    if not rows:
        return None
    headers = ["Structure", "Metric", "Model", "Mean, missed as worst", "Mean, defined only", "Looks better by", "Cases left out"]
    caption = "Where leaving undefined figures out looks better. The mean to quote is the one in which what was missed, invented "
    caption += "or not segmented counts as worst. Beside it stand the mean over defined figures only, by how much that looks "
    caption += "better, and how many cases it leaves out that count as the worst."
    return Table("gains_of_defined", caption, table, headers, rows, [False] * 3 + [True] * 4)


def _gains_of(model: ModelResults) -> pd.DataFrame:
    summary = model.summary if "n_filled" in model.summary else model.summary.assign(n_filled=math.nan)
    return gains_of_defined(summary, {metric: describe(metric).better for metric in summary["metric"]})


def _of_models(data: ReportData, name: str) -> pd.DataFrame | None:
    found = [getattr(m, name).assign(model=m.name) for m in data.models if getattr(m, name) is not None]
    table = pd.concat(found, ignore_index=True) if found else None
    if table is None or table.empty:
        return None
    return table[["model", *(column for column in table.columns if column != "model")]]


def _parts(data: ReportData, table: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
    for structure in data.structures:
        for model in data.models:
            part = table[(table["structure"] == structure) & (table["model"] == model.name)]
            if len(part):
                yield structure, model.name, part


def _with_limits(text: MetricText, row: pd.Series[Any], column: str) -> str:
    if pd.isna(row["ci_low"]) or pd.isna(row["ci_high"]):
        return text.format(row[column])
    return f"{text.format(row[column])} [{text.format(row['ci_low'])} to {text.format(row['ci_high'])}]"
