from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from medseg.core.errors import ConfigError, ManifestError
from medseg.core.manifest import Case, Manifest
from medseg.data.splits import Fold, fill_splits, fold_of_cases, make_folds, pool_for_folds


def manifest(splits: list[str], patients: list[str] | None = None) -> Manifest:
    patients = patients or [""] * len(splits)
    cases = [
        Case(f"c{i}", (Path("x.png"),), split=s, patient_id=p)  # type: ignore[arg-type]
        for i, (s, p) in enumerate(zip(splits, patients, strict=True))
    ]
    return Manifest(Path("m.csv"), ("image",), tuple(cases))


def test_a_patient_never_crosses_and_the_seed_decides():
    patients = [f"p{i // 3}" for i in range(60)]
    filled = fill_splits(manifest([""] * 60, patients), 0.1, 0.2, seed=1)
    splits = {p: {c.split for c in filled.cases if c.patient_id == p} for p in patients}
    assert all(len(s) == 1 for s in splits.values())
    assert [len(filled.of(s)) for s in ("train", "val", "test")] == [42, 6, 12]
    assert fill_splits(manifest([""] * 60, patients), 0.1, 0.2, seed=1) == filled
    assert fill_splits(manifest([""] * 60, patients), 0.1, 0.2, seed=2) != filled


def test_stated_splits_stay():
    stated = manifest(["train", "val", "test"])
    assert fill_splits(stated, 0.1, 0.2, 0) is stated


def test_half_stated_splits_are_refused():
    with pytest.raises(ManifestError, match="case c1 has no split while others have"):
        fill_splits(manifest(["train", ""]), 0.1, 0.2, 0)


def test_training_without_validation_is_refused():
    with pytest.raises(ManifestError, match="no case with split `val`"):
        fill_splits(manifest(["train", "test"]), 0.1, 0.2, 0)


def pool(patients: list[str], **columns: list[str]) -> list[Case]:
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)] or [{}] * len(patients)
    return [
        Case(f"c{i:04d}", (Path("x.png"),), patient_id=patient, covariates=row)
        for i, (patient, row) in enumerate(zip(patients, rows, strict=True))
    ]


def folds_of(cases: list[Case], k: int, by: tuple[str, ...] = (), seed: int = 0, val: float = 0.2) -> tuple[Fold, ...]:
    return make_folds(cases, k, val, by, seed, "m.csv")


@pytest.mark.parametrize("seed", range(25))
def test_folds_of_random_manifests(seed: int):
    """Whatever the manifest: every case held out once, no patient on two sides, and folds of about one size."""
    rng = np.random.default_rng(seed)
    k = int(rng.integers(2, 7))
    n_patients = int(rng.integers(k + 1, 60))
    patients = [f"p{i}" for i in range(n_patients) for _ in range(rng.integers(1, 5))]
    patients = [patients[i] for i in rng.permutation(len(patients))]
    site = [str(rng.integers(0, 3)) for _ in patients]
    cases = pool(patients, site=site)
    unit = {case.case_id: case.unit for case in cases}
    folds = folds_of(cases, k, ("site",), seed)
    assert [fold.number for fold in folds] == list(range(k))
    assert sorted(case_id for fold in folds for case_id in fold.held_out) == sorted(unit)
    for fold in folds:
        parts = [set(fold.train), set(fold.val), set(fold.held_out)]
        assert all(parts) and set.union(*parts) == set(unit) and sum(map(len, parts)) == len(unit)
        people = [{unit[case_id] for case_id in part} for part in parts]
        assert not people[0] & people[1] and not people[0] & people[2] and not people[1] & people[2]
        n_others = len(people[0] | people[1])
        assert len(people[1]) == min(max(1, round(0.2 * n_others)), n_others - 1)
    sizes = [len({unit[case_id] for case_id in fold.held_out}) for fold in folds]
    assert min(sizes) >= 1 and max(len(f.held_out) for f in folds) - min(len(f.held_out) for f in folds) <= 3 * 4
    assert folds == folds_of(cases, k, ("site",), seed)
    assert fold_of_cases(folds) == {case_id: fold.number for fold in folds for case_id in fold.held_out}


def test_folds_are_stratified():
    site = ["a"] * 50 + ["b"] * 10 + ["c"] * 5
    cases = pool([f"p{i}" for i in range(65)], site=site)
    for seed in range(5):
        for fold in folds_of(cases, 5, ("site",), seed):
            held_out = [cases[int(case_id[1:])].covariates["site"] for case_id in fold.held_out]
            assert Counter(held_out) == {"a": 10, "b": 2, "c": 1}
    two = pool([f"p{i}" for i in range(40)], site=["a", "b"] * 20, sex=["f", "f", "m", "m"] * 10)
    for fold in folds_of(two, 5, ("site", "sex")):
        held_out = [tuple(two[int(case_id[1:])].covariates.values()) for case_id in fold.held_out]
        assert set(Counter(held_out).values()) == {2}


def test_a_patients_stratum_is_that_of_its_first_case():
    cases = pool(["p0", "p0", "p1", "p2", "p3"], site=["a", "b", "a", "b", "b"])
    folds = folds_of(cases, 2, ("site",))
    assert folds_of(cases[::-1], 2, ("site",)) == folds
    first = {"p0": "a", "p1": "a", "p2": "b", "p3": "b"}
    for fold in folds:
        assert sorted(first[u] for u in {cases[int(c[1:])].unit for c in fold.held_out}) == ["a", "b"]


def test_another_seed_draws_other_folds_and_the_order_of_rows_does_not():
    cases = pool([f"p{i}" for i in range(30)])
    folds = folds_of(cases, 5, seed=1)
    assert folds != folds_of(cases, 5, seed=2)
    assert fold_of_cases(folds) == fold_of_cases(folds_of(cases[::-1], 5, seed=1))


def test_stated_folds_are_kept():
    cases = pool(["p0", "p0", "p1", "p2"], fold=["1", "1", "0", "2"])
    assert fold_of_cases(folds_of(cases, 3)) == {"c0000": 1, "c0001": 1, "c0002": 0, "c0003": 2}


@pytest.mark.parametrize(
    ("patients", "stated", "k", "said"),
    [
        (
            ["p0", "p0", "p1", "p2"],
            ["1", "0", "0", "2"],
            3,
            r"patient `p0` is in two folds, 1 \(case c0000\) and 0 \(case c0001\)",
        ),
        (["p0", "p1", "p2"], ["1", "", "0"], 2, "case c0001 states fold ``; with `folds: 2` write 0 to 1"),
        (["p0", "p1", "p2"], ["1", "2", "3"], 3, "case c0002 states fold `3`"),
        (["p0", "p1", "p2"], ["0", "2", "0"], 3, "no case states fold 1"),
        (["p0", "p1"], None, 3, "2 patients are too few for 3 folds; lower `folds`"),
        (["p0", "p1"], None, 2, "fold 0 leaves one patient to train and to validate on"),
    ],
)
def test_folds_that_cannot_be(patients: list[str], stated: list[str] | None, k: int, said: str):
    with pytest.raises(ManifestError, match=said):
        folds_of(pool(patients, **({"fold": stated} if stated else {})), k)


def test_a_column_that_the_manifest_has_not():
    with pytest.raises(ConfigError, match=r"`stratify_by` names `sexe`, which is no column of m.csv; name one of: sex, site"):
        folds_of(pool(["p0", "p1", "p2"], sex=["f"] * 3, site=["a"] * 3), 2, ("sexe",))


def test_the_pool_is_whatever_is_not_test():
    pooled = pool_for_folds(manifest(["train", "val", "test", ""]))
    assert [case.split for case in pooled.cases] == ["train", "train", "test", "train"]
