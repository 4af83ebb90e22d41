"""The agreement between readers that a report shows beside the models."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from medseg.core.errors import StageError
from medseg.core.record import read_record
from medseg.evaluation.intervals import CONFIDENCE
from medseg.reporting.inputs import read_table


@dataclass(frozen=True, eq=False)
class ReaderAgreement:
    """What `medseg readers` has found: the band to see the models in.

    Args:
        table: readers.csv.
        cases: that two readers or more have read.
        sampling_unit, confidence: of the readers' intervals.
    """

    table: pd.DataFrame
    cases: frozenset[str]
    sampling_unit: str
    confidence: float


def read_agreement(folder: Path, structures: Iterable[str], metrics: Iterable[str]) -> ReaderAgreement:
    """What stands in a folder that `medseg readers` has written.

    Args:
        structures, metrics: of the evaluations that it is shown beside; `metrics` are columns, such as `hd95_mm`.
    Raises: StageError where the folder holds none, or it has no structure or no metric of the evaluations.
    """
    if not (folder / "readers.csv").is_file():
        raise StageError(f"{folder} holds no readers.csv; give a folder that `medseg readers` has written.")
    table, record = read_table(folder / "readers.csv"), read_record(folder) or {}
    _require_common(folder, "structure", table["structure"], structures, "measure them with the evaluations' labels.yaml")
    _require_common(folder, "metric", table["metric"], metrics, "evaluate with one of these, in the same unit")
    inputs = record.get("inputs", {})
    return ReaderAgreement(
        table,
        frozenset(read_table(folder / "reader_cases.csv")["case_id"]),
        str(inputs.get("sampling_unit", "case")),
        float(inputs.get("evaluate", {}).get("confidence", CONFIDENCE)),
    )


def _require_common(folder: Path, what: str, theirs: Iterable[str], ours: Iterable[str], cure: str) -> None:
    theirs, ours = list(dict.fromkeys(theirs)), list(dict.fromkeys(ours))
    if not set(theirs) & set(ours):
        raise StageError(
            f"{folder}: the readers have no {what} in common with the evaluations (readers: {', '.join(theirs) or 'none'}; "
            f"evaluations: {', '.join(ours)}); {cure}."
        )
