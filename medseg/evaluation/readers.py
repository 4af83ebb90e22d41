"""Several readers of the same cases: how far they agree, as the band to see a model in, and one reference made of all of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, permutations
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from medseg.core.components import box_around, box_of
from medseg.core.errors import ConfigError
from medseg.core.labels import IGNORE, LabelScheme
from medseg.core.volume import LabelMap
from medseg.evaluation.config import EvaluateConfig
from medseg.evaluation.intervals import mean_intervals
from medseg.evaluation.layouts import find_masks
from medseg.evaluation.masks import read_masks
from medseg.evaluation.pairs import Pair, on_grid, pair_folders, place, widen
from medseg.evaluation.summary import under_worst
from medseg.evaluation.table import Evaluation
from medseg.metrics.measures import Measure

Array = npt.NDArray[np.float64]
Classes = npt.NDArray[np.uint8]
Readers = tuple[str, str]
Method = Literal["majority", "staple"]
Ties = Literal["background", "ignore"]
Standing = Literal["better", "within", "worse", ""]
BAND_COLUMNS = [
    *("structure", "metric", "unit", "n_readers", "n_pairs", "n", "n_undefined"),
    *("mean", "ci_low", "ci_high", "lowest", "highest"),
]
FIELD_MARGIN = 1  # voxels of agreed background around all marks that STAPLE sees


@dataclass(frozen=True)
class Band:
    """Agreement between readers.

    Args:
        n, n_undefined: cases in which at least one pair of readers can be measured, and the others.
        mean: over cases, of the mean over pairs; `ci_low`, `ci_high` is its interval over patients.
        lowest, highest: means over cases of the pairs of readers with the lowest and the highest.
    """

    n_pairs: int
    n: int
    n_undefined: int
    mean: float
    ci_low: float
    ci_high: float
    lowest: float
    highest: float

    def place(self, value: float, better: Literal["higher", "lower"]) -> Standing:
        """Where a model's mean lies: within the readers' interval, or on its better or worse side; empty if there is none."""
        if math.isnan(value) or math.isnan(self.ci_low):
            return ""
        if self.ci_low <= value <= self.ci_high:
            return "within"
        return "better" if (value > self.ci_high) == (better == "higher") else "worse"


def band_of(figures: npt.ArrayLike, units: Sequence[str], resamples: int, confidence: float, seed: int) -> Band:
    """The band of one structure and metric.

    Args:
        figures: (pairs of readers, cases); NaN where undefined, or where one of the two did not read the case.
        units: whom each case belongs to.
    """
    table = np.asarray(figures, np.float64)
    cases, pairs = _means(table, axis=0), _means(table, axis=1)
    known, of_pairs = cases[np.isfinite(cases)], pairs[np.isfinite(pairs)]
    n_undefined = len(cases) - len(known)
    if not len(known):
        return Band(len(pairs), 0, n_undefined, *[math.nan] * 5)
    ((low, high),) = mean_intervals(cases[:, None], units, resamples, confidence, seed)
    ends = (float(known.mean()), float(low), float(high), float(of_pairs.min()), float(of_pairs.max()))
    return Band(len(pairs), len(known), n_undefined, *ends)


def _means(table: Array, axis: int) -> Array:
    """Means of what is defined; NaN where nothing is."""
    known = np.isfinite(table)
    count = known.sum(axis)
    return np.where(count, np.where(known, table, 0).sum(axis) / np.maximum(count, 1), np.nan)


def pair_readers(folders: Mapping[str, Path], patients: Mapping[str, str] | None = None) -> dict[Readers, list[Pair]]:
    """Every reader against every other, in both orders, on the cases that both have read.

    Args:
        folders: of each reader's masks, matched by case name.
        patients: patient_id of each case_id, where cases share patients.
    Returns: for (a, b) the pairs with a as the reference and b as the prediction.
    Raises: ConfigError where there are fewer than two readers, or two of them share no case.
    """
    if len(folders) < 2:
        raise ConfigError(f"agreement between readers needs two of them, not {len(folders)}; name a folder for each reader.")
    known = patients or {}
    return {
        (a, b): [
            replace(pair, patient_id=known.get(pair.case_id, pair.patient_id))
            for pair in pair_folders(folders[b], folders[a])[0]
            if pair.prediction
        ]
        for a, b in permutations(folders, 2)
    }


def readers_of_cases(pairs: Mapping[Readers, Sequence[Pair]]) -> pd.DataFrame:
    """reader_cases.csv: every case that two readers or more have read, and which ones (case_id, readers)."""
    found: dict[str, list[str]] = {}
    for (reader, _), of_two in pairs.items():
        for pair in of_two:
            names = found.setdefault(pair.case_id, [])
            names += [reader] if reader not in names else []
    return pd.DataFrame([(case, ";".join(names)) for case, names in sorted(found.items())], columns=["case_id", "readers"])


def read_once(folders: Mapping[str, Path], pairs: Mapping[Readers, Sequence[Pair]]) -> list[str]:
    """The masks that only their own reader has drawn, so that there is nothing to compare, as `reader: case`."""
    shared = {pair.reference for of_two in pairs.values() for pair in of_two}
    return [
        f"{reader}: {name}"
        for reader, folder in folders.items()
        for name, path in find_masks(folder, "masks").items()
        if path not in shared
    ]


def not_compared(evaluations: Mapping[Readers, Evaluation]) -> dict[str, str]:
    """The cases of which two masks could not be compared, and why: what `reader_bands` leaves out."""
    return {
        row["case_id"]: row["reason"]
        for evaluation in evaluations.values()
        for row in evaluation.cases.to_dict("records")
        if row["status"] != "ok"
    }


def scheme_of_readers(scheme: LabelScheme) -> LabelScheme:
    """`scheme` for `evaluate_cases` of readers: what stands as a prediction is a reading too, with the references' values."""
    structures = [s.model_copy(update={"prediction_values": [s.id] if s.values is None else s.values}) for s in scheme.structures]
    return scheme.model_copy(update={"structures": structures})


def reader_bands(evaluations: Mapping[Readers, Evaluation], settings: EvaluateConfig, seed: int) -> pd.DataFrame:
    """readers.csv: the band of every structure and measure that has a better and a worse.

    Under the convention `worst`, as the model's own mean that is compared with it: a structure that one reader did not mark
    counts as worst, one that neither marked as perfect. Two masks of which one cannot be read, or that lie on different voxels,
    are no disagreement of readers: undefined. A figure that depends on who is the reference, such as precision, is
    the mean of both orders.

    Args:
        evaluations: for (a, b) reader b measured against reader a, as `evaluate_cases` makes them of `pair_readers` with
            `scheme_of_readers`.
        settings: of the intervals.
    Raises: ConfigError where readers were not measured alike, such as one in mm and one in pixels.
    """
    if len({evaluation.measures for evaluation in evaluations.values()}) > 1:
        raise ConfigError("not all readers were measured with the same metrics and units; give masks of the same scans.")
    tables = {readers: _compared(evaluation) for readers, evaluation in evaluations.items()}
    patients = {
        case: patient or case
        for evaluation in evaluations.values()
        for case, patient in zip(evaluation.cases["case_id"], evaluation.cases["patient_id"], strict=True)
    }
    names = list(dict.fromkeys(name for readers in evaluations for name in readers))
    first = next(iter(evaluations.values()))
    options = (list(patients.values()), settings.bootstrap_resamples, settings.confidence, seed)
    rows = []
    for structure in first.structures:
        for measure in first.measures:
            if measure.better and measure.applies(structure):
                band = band_of(_figures(tables, names, structure, measure, list(patients)), *options)
                texts = {"structure": structure, "metric": measure.column, "unit": measure.unit, "n_readers": len(names)}
                rows.append(texts | vars(band))
    return pd.DataFrame(rows, columns=BAND_COLUMNS)


def _compared(evaluation: Evaluation) -> pd.DataFrame:
    """per_case under `worst`; NaN where the two masks could not be compared."""
    table = under_worst(evaluation)
    failed = evaluation.cases.loc[evaluation.cases["status"] != "ok", "case_id"]
    table.loc[table["case_id"].isin(failed), [measure.column for measure in evaluation.measures]] = np.nan
    return table


def _figures(
    tables: Mapping[Readers, pd.DataFrame], names: Sequence[str], structure: str, measure: Measure, cases: Sequence[str]
) -> Array:
    """(pairs of readers, cases) the mean of both orders of each pair."""
    columns = {
        readers: table[table["structure"] == structure].set_index("case_id")[measure.column].reindex(list(cases)).to_numpy(float)
        for readers, table in tables.items()
    }
    pairs = [[columns[order] for order in ((a, b), (b, a)) if order in columns] for a, b in combinations(names, 2)]
    return np.stack([_means(np.stack(both), axis=0) for both in pairs if both])


@dataclass(frozen=True, eq=False)
class Consensus:
    """One reference made of several readings.

    Args:
        classes: (X, Y, Z) uint8 class indices, 255 where ignored.
        n_ties: voxels without a winner, which became background or ignored as `ties` says.
        sensitivity: (readers, structures) what STAPLE estimates each reader finds of each structure; NaN for a majority, and
            where no voxel of the structure is found.
    """

    classes: Classes
    n_readers: int
    method: Method
    ties: Ties
    n_ties: int
    sensitivity: Array


def consensus(readings: Sequence[Classes], n_classes: int, method: Method = "majority", ties: Ties = "background") -> Consensus:
    """The reference on which readers agree, by SimpleITK.

    A majority takes each voxel's most frequent class. STAPLE (Warfield et al. 2004; for several classes Rohlfing et al. 2004)
    weighs readers by how well they agree with the rest; as the amount of background decides what it thinks of them, it sees the
    box around everything marked and one voxel more, and nothing else. A voxel that readers ignore (255) is ignored where that
    wins.

    Args:
        readings: at least two, (X, Y, Z) uint8 class indices on one grid.
        n_classes: structures plus background.
        ties: what a voxel without a winner becomes; ignored voxels are left out of every figure.
    Raises: ConfigError where there is one reading; ValueError where they are of different shapes.
    """
    if len(readings) < 2:
        raise ConfigError(f"a consensus needs two readings, not {len(readings)}; name the masks of another reader.")
    if len({r.shape for r in readings}) > 1:
        raise ValueError(f"readings are of different shapes: {sorted({r.shape for r in readings})}")
    ignored, undecided = n_classes, n_classes + 1
    box = _marked_box(readings)
    kind = np.uint8 if undecided < 256 else np.uint16
    pieces = [np.where(r[box] == IGNORE, ignored, r[box]).astype(kind) for r in readings]
    won, sensitivity = _vote(pieces, undecided) if method == "majority" else _staple(pieces, n_classes, undecided)
    tied = won == undecided
    won[tied] = 0 if ties == "background" else IGNORE
    won[won == ignored] = IGNORE
    classes = np.zeros_like(readings[0])
    classes[box] = won
    return Consensus(classes, len(readings), method, ties, int(tied.sum()), sensitivity[:, : n_classes - 1])


def _marked_box(readings: Sequence[Classes]) -> tuple[slice, ...]:
    """The box around what anyone marked, with a margin; one voxel where nobody marked anything."""
    box = box_around(box_of(r != 0) for r in readings)
    if box is None:
        return (slice(0, 1),) * readings[0].ndim
    return tuple(slice(max(0, side.start - FIELD_MARGIN), side.stop + FIELD_MARGIN) for side in box)


def _vote(pieces: Sequence[npt.NDArray[Any]], undecided: int) -> tuple[npt.NDArray[Any], Array]:
    import SimpleITK as sitk  # noqa: N813

    won = sitk.LabelVoting([sitk.GetImageFromArray(p) for p in pieces], undecided)
    return sitk.GetArrayFromImage(won), np.full((len(pieces), undecided), np.nan)


def _staple(pieces: Sequence[npt.NDArray[Any]], n_classes: int, undecided: int) -> tuple[npt.NDArray[Any], Array]:
    import SimpleITK as sitk  # noqa: N813

    present = np.unique(np.concatenate([np.unique(p) for p in pieces]))
    sensitivity = np.full((len(pieces), n_classes), np.nan)
    if len(present) == 1:  # one class everywhere: nothing to estimate
        if 0 < present[0] < n_classes:
            sensitivity[:, present[0] - 1] = 1
        return pieces[0].copy(), sensitivity
    # The filter wants classes without gaps: one that nobody marked would have a prior of nought.
    dense = [np.searchsorted(present, p).astype(p.dtype) for p in pieces]
    staple = sitk.MultiLabelSTAPLEImageFilter()
    staple.SetLabelForUndecidedPixels(len(present))
    won = sitk.GetArrayFromImage(staple.Execute([sitk.GetImageFromArray(d) for d in dense]))
    for reader in range(len(pieces)):
        matrix = np.asarray(staple.GetConfusionMatrix(reader)).reshape(-1, len(present))
        for column, index in enumerate(present):
            if 0 < index < n_classes and (total := matrix[:, column].sum()):
                sensitivity[reader, index - 1] = matrix[column, column] / total
    return np.append(present, undecided).astype(pieces[0].dtype)[won], sensitivity


def read_readings(sources: Sequence[Path], scheme: LabelScheme) -> tuple[dict[str, LabelMap], Path | None]:
    """The masks of one case in the values of `scheme`, each by its source; those that are cut to what they mark, filled up.

    Returns: the maps, and the first source that covers its scan, on whose voxels those lie that were cut; None where all are
        cut, and lie on the smallest grid that holds them.
    Raises: CaseError as `read_masks`; GridMismatchError where marks lie outside of that grid.
    """
    found = {source: read_masks(source, scheme) for source in sources}
    whole = next((source for source, masks in found.items() if not masks.cut), None)
    around = found[whole or sources[0]].labels
    for masks in found.values() if whole is None else ():
        around = widen(around, masks.labels.grid)
    return {str(s): place(m.labels, around.grid) if m.cut else m.labels for s, m in found.items()}, whole


def consensus_of_maps(
    maps: Mapping[str, LabelMap], scheme: LabelScheme, method: Method = "majority", ties: Ties = "background"
) -> tuple[LabelMap, Consensus]:
    """The consensus of readers' label maps, with the values that `scheme` reads in references.

    Args:
        maps: by the file or the reader, for errors; the others are laid on the grid of the first, which only undoes flips and
            axis orders.
    Raises: GridMismatchError, LabelError; ConfigError where voxels are ignored and the scheme has no value for them.
    """
    grid = next(iter(maps.values())).grid
    readings = [scheme.encode(on_grid(labels, grid)[0].array, name) for name, labels in maps.items()]
    found = consensus(readings, scheme.n_classes, method, ties)
    return LabelMap(_reference_values(found.classes, scheme), grid), found


def _reference_values(classes: Classes, scheme: LabelScheme) -> npt.NDArray[Any]:
    """Class indices as values that `scheme.encode` reads in a reference."""
    ignored = classes == IGNORE
    if ignored.any() and not scheme.ignore_values:
        raise ConfigError("the consensus has ignored voxels and the label scheme no value for them; name one in `ignore_values`.")
    values = [scheme.background_values[0] if scheme.background_values else 0]
    for structure in scheme.structures:
        values.append(structure.values[0] if isinstance(structure.values, list) else structure.id)
    values.append(scheme.ignore_values[0] if scheme.ignore_values else 0)
    table = np.array(values)
    places = np.where(ignored, len(values) - 1, classes)
    return table.astype(np.uint8 if table.max() < 256 else np.uint16)[places]
