"""Splits for manifests that name none: drawn by patient, with a seed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from medseg.core.errors import ManifestError
from medseg.core.manifest import Manifest, Split


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
