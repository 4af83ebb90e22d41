"""Splits and folds: drawn by patient, with a seed, where the manifest states none."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from medseg.core.errors import ConfigError, ManifestError
from medseg.core.manifest import Case, Manifest, Split

FOLD = "fold"  # the manifest column that states folds


@dataclass(frozen=True)
class Fold:
    """One round of a cross-validation, as case ids.

    Args:
        number: from 0.
        train, val: what the fold's model learns from, and what chooses its checkpoint, postprocessing and temperature.
        held_out: what it is measured on; these cases choose nothing.
    """

    number: int
    train: tuple[str, ...]
    val: tuple[str, ...]
    held_out: tuple[str, ...]


def fill_splits(manifest: Manifest, val_fraction: float, test_fraction: float, seed: int) -> Manifest:
    """The manifest with every case in a split; a manifest that states its splits is returned as it is.

    Patients are drawn, not cases, so that no patient is in two splits.

    Raises: ManifestError where some cases have a split and others have none, where a split needed for training is
        empty, or where there are too few patients to draw from.
    """
    without = [case for case in manifest.cases if not case.split]
    if not without:
        for split in ("train", "val"):
            if not manifest.of(split):
                raise ManifestError(f"{manifest.path} has no case with split `{split}`; training needs at least one.")
        return manifest
    if len(without) < len(manifest.cases):
        raise ManifestError(
            f"{manifest.path}: case {without[0].case_id} has no split while others have; state all splits or none."
        )
    units = sorted({case.unit for case in manifest.cases})
    shuffled = [units[i] for i in np.random.default_rng(seed).permutation(len(units))]
    n_test = round(len(units) * test_fraction) if test_fraction else 0
    n_val = max(1, round(len(units) * val_fraction))
    if len(units) - n_test - n_val < 1:
        raise ManifestError(
            f"{manifest.path}: {len(units)} patients are too few to split into train, val and test; state `split`."
        )
    split_of: dict[str, Split] = dict.fromkeys(shuffled, "train")
    split_of |= dict.fromkeys(shuffled[:n_test], "test") | dict.fromkeys(shuffled[n_test : n_test + n_val], "val")
    return replace(manifest, cases=tuple(replace(case, split=split_of[case.unit]) for case in manifest.cases))


def pool_for_folds(manifest: Manifest) -> Manifest:
    """The manifest of a cross-validation: whatever is not `test` is the pool, and has the split `train`; nothing is drawn."""
    return replace(
        manifest, cases=tuple(case if case.split == "test" else replace(case, split="train") for case in manifest.cases)
    )


def make_folds(
    pool: Sequence[Case], folds: int, val_fraction: float, stratify_by: Sequence[str], seed: int, where: str
) -> tuple[Fold, ...]:
    """The rounds of a cross-validation, grouped by patient.

    The pool's column `fold` (0 to `folds` - 1) states them; else patients are drawn so that every fold has about as many cases,
    in all and with each combination of values of `stratify_by`. A patient's values are those of its first case by name. A fold's
    validation cases are drawn by patient from the other folds. The order of `pool` changes nothing.

    Args:
        where: the manifest, for errors.
    Raises: ConfigError for a column that the manifest has not; ManifestError for too few patients, for stated folds that are
        incomplete, or for a patient in two of them.
    """
    for column in stratify_by:
        if any(column not in case.covariates for case in pool):
            known = ", ".join(name for name in pool[0].covariates if name != FOLD) or "none"
            raise ConfigError(f"data: `stratify_by` names `{column}`, which is no column of {where}; name one of: {known}.")
    pool = sorted(pool, key=lambda case: case.case_id)
    cases_of: dict[str, list[Case]] = defaultdict(list)
    for case in pool:
        cases_of[case.unit].append(case)
    if any(case.covariates.get(FOLD) for case in pool):
        fold_of = _stated_folds(pool, folds, where)
    else:
        fold_of = _drawn_folds(cases_of, folds, stratify_by, seed, where)
    return tuple(_round(number, pool, fold_of, val_fraction, seed, where) for number in range(folds))


def fold_of_cases(folds: Iterable[Fold]) -> dict[str, int]:
    """For each case of the pool the fold that holds it out."""
    return {case_id: fold.number for fold in folds for case_id in fold.held_out}


def _drawn_folds(
    cases_of: Mapping[str, Sequence[Case]], folds: int, stratify_by: Sequence[str], seed: int, where: str
) -> dict[str, int]:
    """Patients one by one, each into the fold that has fewest cases of its stratum, then fewest cases, then fewest patients."""
    if len(cases_of) < folds:
        raise ManifestError(f"{where}: {len(cases_of)} patients are too few for {folds} folds; lower `folds`.")
    strata: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for unit, cases in sorted(cases_of.items()):
        strata[tuple(cases[0].covariates[column] for column in stratify_by)].append(unit)
    generator = np.random.default_rng(seed)
    n_cases, n_units, fold_of = np.zeros(folds, int), np.zeros(folds, int), {}
    for stratum in sorted(strata, key=lambda s: (-len(strata[s]), s)):
        units = [strata[stratum][i] for i in generator.permutation(len(strata[stratum]))]
        own = np.zeros(folds, int)
        for unit in sorted(units, key=lambda u: -len(cases_of[u])):  # the largest first, so that small ones even it out
            fold = min(range(folds), key=lambda f: (own[f], n_cases[f], n_units[f], f))
            fold_of[unit] = fold
            n_units[fold] += 1
            own[fold] += len(cases_of[unit])
            n_cases[fold] += len(cases_of[unit])
    return fold_of


def _stated_folds(pool: Sequence[Case], folds: int, where: str) -> dict[str, int]:
    numbers = {str(number): number for number in range(folds)}
    first: dict[str, Case] = {}
    for case in pool:
        stated = case.covariates[FOLD]
        if stated not in numbers:
            raise ManifestError(
                f"{where}: case {case.case_id} states fold `{stated}`; with `folds: {folds}` write 0 to {folds - 1} for every "
                "case that is not `test`, or remove the column.",
                case.case_id,
            )
        before = first.setdefault(case.unit, case)
        if before.covariates[FOLD] != stated:
            raise ManifestError(
                f"{where}: patient `{case.unit}` is in two folds, {before.covariates[FOLD]} (case {before.case_id}) and {stated} "
                f"(case {case.case_id}); put all cases of a patient into one fold.",
                case.case_id,
            )
    fold_of = {unit: numbers[case.covariates[FOLD]] for unit, case in first.items()}
    if empty := sorted(set(range(folds)) - set(fold_of.values())):
        raise ManifestError(f"{where}: no case states fold {empty[0]}; with `folds: {folds}` use every number, or lower it.")
    return fold_of


def _round(number: int, pool: Sequence[Case], fold_of: Mapping[str, int], val_fraction: float, seed: int, where: str) -> Fold:
    others = sorted(unit for unit, fold in fold_of.items() if fold != number)
    n_val = min(max(1, round(len(others) * val_fraction)), len(others) - 1)
    if n_val < 1:
        raise ManifestError(f"{where}: fold {number} leaves one patient to train and to validate on; raise `folds`.")
    order = np.random.default_rng([seed, number]).permutation(len(others))
    val = {others[i] for i in order[:n_val]}

    def ids(units: Iterable[str]) -> tuple[str, ...]:
        return tuple(case.case_id for case in pool if case.unit in units)

    return Fold(number, train=ids(set(others) - val), val=ids(val), held_out=ids(fold_of.keys() - set(others)))
