"""`medseg evaluate --predictions DIR --references DIR`: masks of two folders, made by any tool."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd

from medseg.core.config import override, parse
from medseg.core.errors import ConfigError
from medseg.core.labels import load_label_scheme
from medseg.core.progress import say
from medseg.core.wording import one_line, some_of
from medseg.evaluation.config import EvaluateConfig
from medseg.evaluation.pairs import Pair, Unmatched, pair_folders
from medseg.evaluation.schemes import scheme_from_references
from medseg.evaluation.table import read_text_table, write_table
from pipelines.evaluate import evaluate_pairs, some_failed


def evaluate_folders(
    predictions: Path,
    references: Path,
    output: Path,
    labels: Path | None = None,
    cases: Path | None = None,
    assignments: Sequence[str] = (),
    redo: bool = False,
) -> int:
    """Evaluate masks made by any tool; those of the two folders are matched by name (see `pair_folders`).

    Writes per_case.csv, cases.csv, summary.csv, agreement.csv (of volumes), subgroups.csv, unmatched.csv and stage.json to
    `output`.

    Args:
        labels: labels.yaml or nnU-Net's dataset.json with the structures; without it each whole number above 0 in the references
            is one, or each name where masks have names.
        cases: a table with a row a case: `case_id`, and where they are known `patient_id` and other columns to group cases by.
        assignments: `evaluate.<key>=<value>`, as in a configuration.
    Returns: 0, or 1 where some references have no usable prediction, or cannot be read.
    """
    settings = _stated_settings(assignments)
    pairs, unmatched = pair_folders(Path(predictions), Path(references))
    known = read_case_table(Path(cases)) if cases else pd.DataFrame()
    if cases:
        _check_named(pairs, known, Path(cases))
    pairs = [replace(pair, patient_id=known["patient_id"].get(pair.case_id, "")) if len(known) else pair for pair in pairs]
    scheme = load_label_scheme(Path(labels)) if labels else scheme_from_references(pairs)
    _write_unmatched(Path(output), unmatched)
    _say_what_differs(pairs)
    unit = "patient" if any(pair.patient_id for pair in pairs) else "case"
    folders = {"predictions": str(Path(predictions).absolute()), "references": str(Path(references).absolute())}
    inputs = folders | {"sampling_unit": unit}
    columns = known.drop(columns="patient_id", errors="ignore")
    evaluation = evaluate_pairs(pairs, scheme, settings, Path(output), "evaluate", inputs, 0, covariates=columns, redo=redo)
    return int(some_failed(evaluation))


def _say_what_differs(pairs: Sequence[Pair]) -> None:
    """Say how names were matched that are not equal."""
    for differing, count in Counter(pair.differing for pair in pairs if pair.differing).items():
        example = next(pair for pair in pairs if pair.differing == differing)
        assert example.prediction and example.reference
        names = f"{example.prediction.name} with {example.reference.name}"
        say(f"{count} matched apart from {differing}, such as {names}")


def _stated_settings(assignments: Sequence[str]) -> EvaluateConfig:
    content = override({}, list(assignments))
    if other := sorted(content.keys() - {"evaluate"}):
        raise ConfigError(f"--set {other[0]}: of two folders only `evaluate.<key>` can be set; leave it out.")
    return parse(EvaluateConfig, content.get("evaluate"), "--set evaluate")


def read_case_table(path: Path) -> pd.DataFrame:
    """What is known of cases: a table with `case_id` (the index of the result), `patient_id` (empty where it has none) and any
    other columns, as text.

    Raises: ConfigError where it cannot be read, has no `case_id`, or names a case twice.
    """
    try:
        table = read_text_table(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} is not a readable CSV table ({one_line(error)}); correct it.") from None
    if "case_id" not in table:
        apart = len(table.columns) == 1 and any(mark in table.columns[0] for mark in ";\t")
        mend = "save it with commas between its columns" if apart else "add it"
        raise ConfigError(f"{path} has no column case_id (it has: {', '.join(map(str, table.columns))}); {mend}.")
    if (double := table["case_id"].duplicated()).any():
        raise ConfigError(f"{path} names case `{table['case_id'][double].iloc[0]}` twice; remove one row.")
    return table.assign(patient_id=table.get("patient_id", "")).set_index("case_id")


def _check_named(pairs: Sequence[Pair], known: pd.DataFrame, path: Path) -> None:
    """Say which cases the table does not name: they count as patients of their own. Raises: ConfigError where it names none."""
    absent = [pair.case_id for pair in pairs if pair.case_id not in known.index]
    if len(absent) == len(pairs):
        raise ConfigError(f"{path} names none of the cases ({some_of(absent)}); correct its column case_id.")
    if absent:
        say(f"{path} does not name {len(absent)} of {len(pairs)} cases, such as {absent[0]}; each counts as a patient of its own")


def _write_unmatched(folder: Path, unmatched: Sequence[Unmatched]) -> None:
    """Write unmatched.csv (case_id, missing, file) and say what stands in it."""
    rows = pd.DataFrame([asdict(u) for u in unmatched], columns=["case_id", "missing", "file"])
    write_table(folder / "unmatched.csv", rows)
    for missing, part in rows.groupby("missing"):
        fate = "counted as missed" if missing == "prediction" else "not evaluated"
        say(f"{len(part)} without a {missing}, {fate}: {some_of(part['case_id'])} (all in {folder / 'unmatched.csv'})")
