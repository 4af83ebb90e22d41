from __future__ import annotations

from pathlib import Path

import pytest

from medseg.core.errors import ManifestError
from medseg.core.manifest import Case, Manifest
from medseg.data.splits import fill_splits


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
