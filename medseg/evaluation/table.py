"""All cases of an evaluation as tables: per_case.csv with the figures, cases.csv with what became of each case."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from medseg.core.cases import Outcome, map_cases
from medseg.core.errors import CaseError, ConfigError, StageError
from medseg.core.files import remove, write_text
from medseg.core.grid import Grid
from medseg.core.labels import LabelScheme
from medseg.core.record import read_record
from medseg.core.wording import one_line
from medseg.evaluation.case import CaseResult, Ruler, measure_pair, rows_without_figures
from medseg.evaluation.config import EvaluateConfig
from medseg.evaluation.pairs import Pair
from medseg.evaluation.thresholds import threshold_table
from medseg.io.formats import read_grid
from medseg.metrics.calibration import Reliability
from medseg.metrics.measures import Measure, measures_for
from medseg.metrics.pair import Frame

Spacing = tuple[float, float, float]
NUMBERS = "%.8g"


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The measured cases of one model, or of one folder of masks.

    Args:
        per_case: case_id, patient_id, structure, one column a measure (NaN where undefined), status.
        cases: case_id, patient_id, status, reason, diagonal (NaN where the reference could not be read, so that the case
            cannot be evaluated), reference, prediction; one row a case.
        measures: what the columns are.
        length_unit: of the diagonal: mm or px.
        reliability: structure, bin_from, bin_to, n (voxels), mean_probability, hit_rate, over all cases; empty where no
            probabilities were measured. `load_evaluation` leaves it empty.
        thresholds: structure, metric, threshold, n, n_undefined, mean, as `threshold_table` makes it; empty where no best
            threshold was asked for. `load_evaluation` leaves it empty.
    """

    per_case: pd.DataFrame
    cases: pd.DataFrame
    measures: tuple[Measure, ...]
    length_unit: str
    reliability: pd.DataFrame = field(default_factory=pd.DataFrame)
    thresholds: pd.DataFrame = field(default_factory=pd.DataFrame)

    @property
    def structures(self) -> list[str]:
        """Names of structures, or of regions, in the order of the label scheme."""
        return list(self.per_case["structure"].unique())

    @property
    def counts(self) -> dict[str, int]:
        """Cases given; of these with a readable reference; of these with a prediction; of these measured."""
        readable = self.cases["diagonal"].notna()
        status = self.cases["status"]
        return {
            "given": len(self.cases),
            "readable": int(readable.sum()),
            "segmented": int((readable & (status != "prediction_missing")).sum()),
            "evaluated": int((readable & (status == "ok")).sum()),
        }


def evaluate_cases(
    pairs: Sequence[Pair],
    scheme: LabelScheme,
    settings: EvaluateConfig,
    spacing_mm: Spacing | None = None,
    title: str = "evaluate",
) -> Evaluation:
    """Measure every case; a case that cannot be measured has rows that say why.

    Args:
        spacing_mm: voxel size of files that state none.
        title: for the progress display.
    Raises: ConfigError where some cases have a physical size and others have none, or a setting does not fit the structures.
    """
    tolerances = settings.tolerances(list(scheme.measured))
    grids = _reference_grids(pairs, spacing_mm)
    frame = common_frame(grids)
    measures = tuple(measures_for(settings.metrics, frame, tolerances, settings.lesion_overlap))
    nearest = settings.resample == "nearest"
    missing_empty = settings.missing_structures == "empty"
    ruler = Ruler(
        scheme, measures, frame, tuple(tolerances.values()), spacing_mm, nearest, settings.lesion_overlap, missing_empty
    )
    outcomes = map_cases(partial(measure_pair, ruler=ruler), pairs, title, settings.processes(len(pairs)))
    results = [(o.item, o.result or _broken(o, ruler, grids)) for o in outcomes]
    per_case = [{"case_id": p.case_id, "patient_id": p.patient_id, **row} for p, result in results for row in result.rows]
    columns = ["case_id", "patient_id", "structure", *(m.column for m in measures), "status"]
    cases = pd.DataFrame([_case_row(pair, result) for pair, result in results])
    bins = _reliability([result for _, result in results])
    thresholds = threshold_table([result.thresholds for _, result in results])
    return Evaluation(pd.DataFrame(per_case, columns=columns), cases, measures, frame.length_unit, bins, thresholds)


def _reliability(results: Sequence[CaseResult]) -> pd.DataFrame:
    """The bins of all cases added up, a row a structure and bin."""
    total: dict[str, Reliability] = {}
    for result in results:
        for name, bins in result.reliability.items():
            total[name] = total[name] + bins if name in total else bins
    return pd.concat([_bins(name, bins) for name, bins in total.items()], ignore_index=True) if total else pd.DataFrame()


def _bins(name: str, bins: Reliability) -> pd.DataFrame:
    edges = np.linspace(0, 1, bins.counts.size + 1)
    return pd.DataFrame(
        {
            "structure": name,
            "bin_from": edges[:-1],
            "bin_to": edges[1:],
            "n": bins.counts,
            "mean_probability": bins.mean_confidence,
            "hit_rate": bins.hit_rate,
        }
    )


def common_frame(grids: dict[str, Grid]) -> Frame:
    """The frame that all cases share; a slice among volumes is measured as a volume.

    Args:
        grids: of the references, by case_id.
    Raises: ConfigError where physical and other cases are mixed.
    """
    without = [case for case, grid in grids.items() if not grid.physical]
    if without and len(without) < len(grids):
        with_size = next(case for case, grid in grids.items() if grid.physical)
        raise ConfigError(
            f"{len(without)} of {len(grids)} cases state no physical size (such as {without[0]}) while others do (such as "
            f"{with_size}), and mm and pixels cannot be averaged; state `data.spacing_mm` or evaluate them apart."
        )
    return Frame(physical=not without, planar=bool(grids) and all(grid.planar for grid in grids.values()))


def _reference_grids(pairs: Sequence[Pair], spacing_mm: Spacing | None) -> dict[str, Grid]:
    grids = {}
    for pair in pairs:
        try:
            if pair.reference is not None:
                grids[pair.case_id] = read_grid(pair.reference, spacing_mm=spacing_mm)
        except CaseError:
            continue  # measure_pair meets the same file again and gives the reason
    return grids


def _broken(outcome: Outcome[Pair, CaseResult], ruler: Ruler, grids: dict[str, Grid]) -> CaseResult:
    """A case that our own code failed on: it counts as unreadable, so that it cannot raise a mean."""
    grid = grids.get(outcome.item.case_id)
    return CaseResult(
        rows_without_figures(ruler, "unreadable"), "unreadable", outcome.reason, grid.diagonal if grid else math.nan
    )


def _case_row(pair: Pair, result: CaseResult) -> dict[str, Any]:
    return {
        "case_id": pair.case_id,
        "patient_id": pair.patient_id,
        "status": result.status,
        "reason": result.reason,
        "diagonal": result.diagonal,
        "reference": str(pair.reference or ""),
        "prediction": str(pair.prediction or ""),
    }


def write_evaluation(folder: Path, evaluation: Evaluation) -> None:
    """Write per_case.csv, cases.csv (with the unit of `diagonal`) and, where there are any, reliability.csv, thresholds.csv."""
    for name, table in (("reliability.csv", evaluation.reliability), ("thresholds.csv", evaluation.thresholds)):
        if table.empty:
            remove(folder / name)
        else:
            write_table(folder / name, table)
    write_table(folder / "per_case.csv", evaluation.per_case)
    write_table(folder / "cases.csv", evaluation.cases.rename(columns={"diagonal": f"diagonal_{evaluation.length_unit}"}))


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a CSV, whole or not at all; undefined cells are empty."""
    write_text(path, table.to_csv(index=False, float_format=NUMBERS, lineterminator="\n"))


def name_evaluations(folders: Sequence[Path]) -> dict[str, Path]:
    """The evaluations in run folders or folders that hold per_case.csv, each under the shortest name that tells them apart.

    Raises: StageError for a folder that holds no evaluation.
    """
    places = list(dict.fromkeys(place for folder in folders for place in _evaluations_in(Path(folder))))
    parts = [[p for p in place.resolve().parts if p != "evaluate"] for place in places]
    depth = 1
    while len({tuple(p[-depth:]) for p in parts}) < len(parts) and depth < max(map(len, parts)):
        depth += 1
    return {"/".join(p[-depth:]): place for p, place in zip(parts, places, strict=True)}


def _evaluations_in(folder: Path) -> list[Path]:
    """The folders with a finished evaluation: `folder` itself, or one for each model of a run. Raises: StageError for none."""
    if (folder / "per_case.csv").is_file():
        return [folder]
    inside = sorted(path.parent for path in folder.glob("evaluate/*/per_case.csv"))
    if not inside:
        raise StageError(f"{folder} holds no per_case.csv; give folders that `medseg evaluate` has written.")
    return inside


def read_text_table(path: Path) -> pd.DataFrame:
    """A CSV as text: a case called 007 or NA keeps its name, and an empty cell is an empty text. Raises: as pandas."""
    return pd.read_csv(path, dtype=str, keep_default_na=False)


def load_evaluation(folder: Path) -> Evaluation:
    """The evaluation that `write_evaluation` wrote, with the measures that the stage's record names.

    Raises: StageError where one of the files is missing or is not ours.
    """
    record = read_record(folder) or {}
    try:
        measures = tuple(Measure(**{**m, "structures": m["structures"] and tuple(m["structures"])}) for m in record["measures"])
        per_case, cases = (read_text_table(folder / f"{n}.csv") for n in ("per_case", "cases"))
        (diagonal,) = [c for c in cases.columns if c.startswith("diagonal_")]
        for table, column in [(cases, diagonal), *((per_case, m.column) for m in measures)]:
            table[column] = pd.to_numeric(table[column])
        per_case["structure"], cases["status"]  # both must be there
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise StageError(
            f"{folder} holds no finished evaluation ({one_line(error)}); run `medseg evaluate` there again."
        ) from None
    return Evaluation(per_case, cases.rename(columns={diagonal: "diagonal"}), measures, diagonal.removeprefix("diagonal_"))
