"""`medseg cases-needed`: how many patients (or cases) give a mean an interval of a wished width."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd

from medseg.core.errors import ConfigError, StageError
from medseg.core.progress import say
from medseg.evaluation.console import text_table
from medseg.evaluation.intervals import CONFIDENCE
from medseg.evaluation.sample_size import cases_for_width, cases_needed_from_pilot
from medseg.evaluation.table import Evaluation, load_evaluation, write_table

HEADERS = ["structure", "metric", "pilot n", "mean", "sd", "normal", "t", "cautious", "bootstrap width at t"]


def cases_needed(
    evaluation: Path | None = None,
    *,
    width: float,
    sd: float | None = None,
    metric: str = "dice",
    confidence: float = CONFIDENCE,
    output: Path | None = None,
) -> int:
    """Print the numbers, from an evaluation's own spread or from a given one.

    Args:
        evaluation: folder with per_case.csv.
        width: of the whole interval, from its lower to its upper limit, in the metric's unit.
        sd: standard deviation between patients, in place of the folder.
        metric: column of per_case.csv or name of a metric, where there is a folder.
        output: CSV to write the folder's table to.
    Returns: 0.
    Raises: ConfigError where not one of folder and `sd` is given, or they do not do; StageError for a folder without a finished
        evaluation.
    """
    if (evaluation is None) == (sd is None):
        raise ConfigError("give the folder of an evaluation or --sd, one of the two.")
    goal = f"needed for a {100 * confidence:.4g} % interval of the mean that is {width:g} wide"
    if sd is not None:
        if output is not None:
            raise ConfigError("--output is for the folder of an evaluation; leave it out with --sd.")
        needed = cases_for_width(sd, width, confidence)
        say(text_table(f"patients {goal}", ["sd", "normal", "t"], [[f"{sd:g}", f"{needed.n_normal}", f"{needed.n_t}"]]))
        return 0
    pilot = _load(Path(str(evaluation)))
    table = cases_needed_from_pilot(pilot, metric, width, confidence)
    units = "patients" if (pilot.cases["patient_id"] != "").any() else "cases"
    say(text_table(f"{units} {goal}", HEADERS, _rows(table)))
    if silent := [name for name in pilot.structures if name not in set(table["structure"])]:
        say(f"of {', '.join(silent)} the pilot cannot tell, as it has no two {units} there that differ; give --sd.")
    say("plan with t; after a pilot of few patients with cautious (its standard deviation may be too small by chance).")
    if output is not None:
        write_table(output, table)
    return 0


def _load(folder: Path) -> Evaluation:
    if not (folder / "per_case.csv").is_file():
        raise StageError(f"{folder} has no per_case.csv; name the folder of an evaluation, such as runs/<name>/evaluate/<model>.")
    return load_evaluation(folder)


def _rows(table: pd.DataFrame) -> list[list[str]]:
    return [
        [
            *(row["structure"], row["metric"], f"{row['n_pilot']}", f"{row['mean']:.3g}", f"{row['sd']:.3g}"),
            *(f"{row['n_normal']}", f"{row['n_t']}", f"{row['n_cautious']}"),
            "" if math.isnan(row["bootstrap_width"]) else f"{row['bootstrap_width']:.3g}",
        ]
        for row in table.to_dict("records")
    ]
