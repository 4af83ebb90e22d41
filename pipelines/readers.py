"""`medseg readers`: how far several readers of the same cases agree, and one reference made of all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from medseg.core.errors import CaseError, ConfigError
from medseg.core.labels import LabelScheme, load_label_scheme
from medseg.core.progress import say
from medseg.core.record import StageRecord
from medseg.core.wording import FEW, some_of
from medseg.evaluation.config import EvaluateConfig
from medseg.evaluation.console import interval_text, text_table
from medseg.evaluation.pairs import Pair
from medseg.evaluation.readers import (
    Method,
    Readers,
    Ties,
    consensus_of_maps,
    not_compared,
    pair_readers,
    read_once,
    read_readings,
    reader_bands,
    readers_of_cases,
    scheme_of_readers,
)
from medseg.evaluation.schemes import scheme_from_references
from medseg.evaluation.table import evaluate_cases, write_table
from medseg.io.formats import label_name, write_labels
from pipelines.evaluate_folders import read_case_table

METHODS: tuple[Method, ...] = ("majority", "staple")


def readers(
    folders: Mapping[str, Path],
    output: Path,
    labels: Path | None = None,
    consensus: str | None = None,
    ties: Ties = "background",
    cases: Path | None = None,
) -> int:
    """Write readers.csv, the agreement between readers as the band to see a model in; with a method also a consensus.

    reader_cases.csv says who has read which case. The consensus of each case that two readers or more have read stands in
    `consensus/`, and consensus.csv says how it came about.

    Args:
        folders: of each reader's masks, by the reader's name; files are matched by case name.
        labels: labels.yaml with the structures; without it each whole number above 0 is one.
        consensus: majority or staple.
        cases: a table with a row a case, `case_id` and `patient_id`, where patients have several scans.
    Returns: 0, or 1 where masks of a case cannot be compared, or it has no consensus.
    Raises: ConfigError where there are fewer than two readers, or they share no case.
    """
    method = next((method for method in METHODS if method == consensus), None)
    if consensus is not None and method is None:
        raise ConfigError(f"--consensus {consensus} is no method; give {' or '.join(METHODS)}.")
    pairs = pair_readers(folders, dict(read_case_table(Path(cases))["patient_id"]) if cases else None)
    scheme = load_label_scheme(labels) if labels else scheme_from_references([pair for found in pairs.values() for pair in found])
    settings = EvaluateConfig()  # type: ignore[call-arg]
    of_readers = scheme_of_readers(scheme)
    evaluations = {(a, b): evaluate_cases(found, of_readers, settings, title=f"{a} and {b}") for (a, b), found in pairs.items()}
    bands = reader_bands(evaluations, settings, 0)
    unusable = not_compared(evaluations)
    unit = "patient" if any(pair.patient_id for found in pairs.values() for pair in found) else "case"
    inputs: dict[str, Any] = {"readers": {name: str(folder) for name, folder in folders.items()}, "consensus": consensus}
    record = StageRecord(output, inputs | {"sampling_unit": unit, "evaluate": settings.model_dump(mode="json")})
    write_table(output / "readers.csv", bands)
    write_table(output / "reader_cases.csv", readers_of_cases(pairs))
    say(_bands_text(bands))
    if alone := read_once(folders, pairs):
        say(f"{len(alone)} masks of cases that nobody else has drawn are left out: {some_of(alone)}")
    _say_left_out(unusable)
    failed = _write_consensus(pairs, scheme, method, ties, output) if method else 0
    record.write("readers", 0, {"readers": len(folders), "not_compared": len(unusable), "failed": failed})
    say(f"readers: {output / 'readers.csv'}")
    return int(bool(failed or unusable))


def _say_left_out(unusable: Mapping[str, str]) -> None:
    told = [f"  {case}: {reason}" for case, reason in unusable.items()]
    more = [f"  and {len(told) - FEW} more"] if len(told) > FEW else []
    if told:
        say("\n".join(["cases with masks that cannot be compared, which are left out:", *told[:FEW], *more]))


def parse_readers(stated: Sequence[str]) -> dict[str, Path]:
    """`anna=DIR`, as the command's arguments give it, to reader -> folder.

    Raises: ConfigError where one is not NAME=DIR, or a name stands twice.
    """
    found: dict[str, Path] = {}
    for text in stated:
        name, equals, folder = text.partition("=")
        if not (name and equals and folder) or name in found:
            raise ConfigError(f"{text} is not NAME=DIR, each reader once, such as anna=masks/anna; correct it.")
        found[name] = Path(folder)
    return found


def _bands_text(bands: pd.DataFrame) -> str:
    rows = [
        [
            *(row["structure"], row["metric"], interval_text(row["mean"], row["ci_low"], row["ci_high"])),
            *(f"{row['lowest']:.3f} to {row['highest']:.3f}", f"{row['n_pairs']}", f"{row['n']}"),
        ]
        for row in bands.to_dict("records")
    ]
    headers = ["structure", "metric", "mean [interval]", "pairs from to", "pairs", "n"]
    return text_table("agreement between readers, convention worst", headers, rows)


def _write_consensus(
    pairs: Mapping[Readers, Sequence[Pair]], scheme: LabelScheme, method: Method, ties: Ties, output: Path
) -> int:
    """Write the consensus of each case that at least two have read, and consensus.csv. Returns: how many cases have none."""
    masks: dict[str, dict[str, Path]] = {}
    for (reader, _), found in pairs.items():
        for pair in found:
            if pair.reference is not None:
                masks.setdefault(pair.case_id, {})[reader] = pair.reference
    rows = [_consensus_row(case_id, of_case, scheme, method, ties, output) for case_id, of_case in sorted(masks.items())]
    write_table(output / "consensus.csv", pd.DataFrame(rows))
    failed = sum(row["status"] != "ok" for row in rows)
    say(f"readers: {len(rows) - failed} of {len(rows)} cases have a consensus; see {output / 'consensus.csv'}")
    return failed


def _consensus_row(
    case_id: str, masks: Mapping[str, Path], scheme: LabelScheme, method: Method, ties: Ties, output: Path
) -> dict[str, Any]:
    row: dict[str, Any] = {"case_id": case_id, "readers": ";".join(masks), "method": method}
    try:
        maps, whole = read_readings(list(masks.values()), scheme)
        labels, found = consensus_of_maps(maps, scheme, method, ties)
        name = label_name(case_id, whole) if whole else f"{case_id}.nii.gz"
        write_labels(output / "consensus" / name, labels, whole)
    except CaseError as error:
        return row | {"status": "failed", "reason": str(error)}
    sensitivity = {
        f"sensitivity_{structure}_{reader}": found.sensitivity[place, column]
        for column, structure in enumerate(s.name for s in scheme.structures)
        for place, reader in enumerate(masks)
        if method == "staple"
    }
    return row | {"status": "ok", "reason": "", "output": name, "n_ties": found.n_ties} | sensitivity
