"""The same summary for groups of cases: by site, sex, age band, scanner, or any other column that describes cases.

Groups are described, not tested. With several columns, structures and metrics some difference always looks striking, so no p
value and no difference between groups is given: intervals and n show what is known of each, and a difference that matters is a
question for a study planned to answer it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd

from medseg.core.errors import ConfigError
from medseg.core.manifest import Case
from medseg.evaluation.config import EvaluateConfig
from medseg.evaluation.summary import COUNTS, both_conventions, summary_rows
from medseg.evaluation.table import Evaluation

UNKNOWN = "unknown"
ABSENT = ("na", "n/a", "nan", "none", "unknown")  # what stands among numbers for one that is not known
FEW_NUMBERS = 5  # a column of no more different numbers is taken for codes: each is a group
MOST_GROUPS = 20
SUBGROUP_COLUMNS = [
    *("covariate", "group", "n_cases", "structure", "metric", "unit", "convention", "n", "n_undefined", "n_units"),
    *("mean", "ci_low", "ci_high", "median", "q1", "q3", *COUNTS),
]


@dataclass(frozen=True, eq=False)
class Subgroups:
    """Summaries of groups of cases.

    Args:
        table: subgroups.csv, see `summarise_subgroups`.
        left_out: one sentence for each column that does not part the cases into groups.
    """

    table: pd.DataFrame
    left_out: list[str]


def covariates_of(cases: Sequence[Case]) -> pd.DataFrame:
    """What the manifest says of each case besides its files: a row a case_id, a column a covariate, text."""
    index = pd.Index([case.case_id for case in cases], name="case_id")
    return pd.DataFrame([case.covariates for case in cases], index=index).fillna("")


def summarise_subgroups(
    evaluation: Evaluation,
    covariates: pd.DataFrame,
    settings: EvaluateConfig,
    seed: int,
    bands: Mapping[str, Sequence[float]] | None = None,
) -> Subgroups:
    """subgroups.csv: each structure and measure, under both conventions, in each group of cases.

    Columns: covariate, group, n_cases (cases of the group), then as in summary.csv, and n_units (patients or units with a
    figure). Intervals resample the patients (or units) of the group; they are NaN below six.

    Args:
        covariates: a row a case (index: case_id), a column a covariate; empty cells, and cases without a row, are the group
            `unknown`. A column with more than five different numbers is cut into thirds of the cases; others are groups as
            they stand.
        bands: column -> where to cut it, ascending; a number on an edge belongs to the band above.
    Raises: ConfigError where bands are given for a column that is not there, or holds text.
    """
    ids = evaluation.cases["case_id"]
    aligned = covariates.reindex(ids)
    stated = {name: tuple(edges) for name, edges in (bands or {}).items()}
    if unknown := [name for name in stated if name not in aligned]:
        raise ConfigError(
            f"bands are given for `{unknown[0]}`, which is no column (there are: {', '.join(map(str, aligned.columns))})."
        )
    left_out, parts = [], []
    for name in aligned:
        groups = group_cases(aligned[name], stated.get(str(name)))
        n_known = groups.nunique() - int((groups == UNKNOWN).any())
        if n_known < 2 or n_known > MOST_GROUPS:
            left_out.append(f"{name}: {n_known or 'no'} {'value' if n_known == 1 else 'values'}, no groups to sum up")
        else:
            parts += [(str(name), *group) for group in _members(groups, aligned.index)]
    rows, tables = [], both_conventions(evaluation)
    for covariate, group, members in parts:
        chosen = evaluation.per_case["case_id"].isin(members).to_numpy()
        names = {"covariate": covariate, "group": group, "n_cases": len(members)}
        rows += [names | row for row in summary_rows(evaluation, tables, settings, seed, chosen)]
    return Subgroups(pd.DataFrame(rows, columns=SUBGROUP_COLUMNS), left_out)


def _members(groups: pd.Series[str], case_ids: pd.Index[str]) -> list[tuple[str, set[str]]]:
    """The cases of each group; bands in their order, other groups by name, unknown last."""
    banded = isinstance(groups.dtype, pd.CategoricalDtype)
    order = list(groups.cat.categories) if banded else [*sorted(set(groups) - {UNKNOWN}, key=_place), UNKNOWN]
    found = [(group, set(case_ids[(groups == group).to_numpy()])) for group in order]
    return [(group, members) for group, members in found if members]


def _place(name: str) -> tuple[float, str]:
    """Numbers in their order, then names."""
    try:
        return float(name), name
    except ValueError:
        return math.inf, name


def group_cases(values: pd.Series, edges: Sequence[float] | None = None) -> pd.Series[str]:
    """The group of each case by one covariate.

    Args:
        values: text or numbers. Empty cells are the group `unknown`, as are NA, n/a, nan, none and unknown among numbers.
        edges: where to cut numbers, ascending; by default thirds of the cases, where there are more than five numbers.
    Returns: names of groups, in an ordered categorical where they are bands, such as `< 50`, `50 to < 65`, `>= 65`.
    Raises: ConfigError where there are edges and the values are no numbers, or the edges do not ascend.
    """
    text = values.map(lambda v: "" if pd.isna(v) else str(v).strip())
    stated = ~text.str.lower().isin(["", *ABSENT])
    numbers = pd.to_numeric(text.where(stated), errors="coerce").astype(float)
    numeric = bool((numbers.notna() == stated).all()) and bool(numbers.notna().any())
    if edges is not None:
        if not numeric or not len(edges) or not np.isfinite(edges).all() or (np.diff(edges) <= 0).any():
            raise ConfigError(
                f"`{values.name}` is to be cut at {', '.join(f'{e:g}' for e in edges)}; give it numbers and ascending edges."
            )
        return _banded(numbers, edges)
    if numeric and numbers.nunique() > FEW_NUMBERS:
        return _banded(numbers, _thirds(numbers.dropna()))
    return text.where(stated if numeric else text != "", UNKNOWN)


def _thirds(numbers: pd.Series[float]) -> list[float]:
    """Where to cut; where the least number is that of a third of the cases or more (no cigarettes), above it."""
    edges = np.unique(np.quantile(numbers, (1 / 3, 2 / 3), method="higher"))
    above = numbers[numbers > numbers.min()].min()
    return list(edges[edges > numbers.min()].tolist() or [float(above)])


def _banded(numbers: pd.Series[float], edges: Sequence[float]) -> pd.Series[str]:
    texts = [np.format_float_positional(edge, trim="-") for edge in edges]  # in full: dates as numbers have eight digits
    names = [f"< {texts[0]}", *(f"{a} to < {b}" for a, b in pairwise(texts)), f">= {texts[-1]}", UNKNOWN]
    place = np.where(numbers.isna(), len(edges) + 1, np.digitize(numbers.to_numpy(float), edges))
    return pd.Series(pd.Categorical.from_codes(place, pd.Index(names), ordered=True), index=numbers.index)
