"""`medseg compare` over finished evaluations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from medseg.core.errors import ConfigError, StageError
from pipelines.compare import compare, name_evaluations
from pipelines.evaluate import evaluate_folders


def _evaluated(folder: Path, shift: int, n: int = 7, grow: int = 0) -> Path:
    """An evaluation of squares that are `shift` pixels off; the references are `grow` pixels longer."""
    for number in range(n):
        for side, offset, more in (("references", 0, grow), ("predictions", shift, 0)):
            array = np.zeros((30, 30), np.uint8)
            array[5 : 15 + more, 5 + offset : 15 + offset + number] = 1
            path = folder / "masks" / side / f"c{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(path)
    evaluate_folders(folder / "masks" / "predictions", folder / "masks" / "references", folder / "out")
    return folder / "out"


def test_two_evaluations(tmp_path, capsys):
    good, poor = _evaluated(tmp_path / "good", 1), _evaluated(tmp_path / "poor", 3)
    assert compare([good, poor], tmp_path / "both") == 0
    table = pd.read_csv(tmp_path / "both" / "comparison.csv")
    assert list(table.columns) == [
        *("case_id", "patient_id", "structure", "metric", "good/out", "poor/out", "difference", "note")
    ]
    dice = table[table["metric"] == "dice"]
    assert dice["difference"].iloc[0] == pytest.approx(0.9 - 0.7)
    summary = pd.read_csv(tmp_path / "both" / "comparison_summary.csv").set_index("metric")
    assert summary.loc["dice", ["wins", "ties", "losses", "n_missing"]].tolist() == [7, 0, 0, 0]
    assert summary.loc["hd95_px", "mean_difference"] == pytest.approx(-2)
    assert summary.loc["dice", "p_wilcoxon"] == pytest.approx(2 / 2**7)
    assert "different references" not in capsys.readouterr().err


def test_a_case_that_one_lacks(tmp_path):
    whole, part = _evaluated(tmp_path / "whole", 1), _evaluated(tmp_path / "part", 1, n=5)
    assert compare([whole, part], tmp_path / "both") == 1
    table = pd.read_csv(tmp_path / "both" / "comparison.csv")
    assert (table["note"] == "part/out: absent, counted as worst").sum() == 2 * table["metric"].nunique()


def test_other_references_are_said(tmp_path, capsys):
    compare([_evaluated(tmp_path / "a", 1), _evaluated(tmp_path / "b", 1, grow=3)], tmp_path / "both")
    assert "7 cases were measured against different references (such as c0)" in capsys.readouterr().err


def test_names_tell_the_models_of_runs_apart(tmp_path):
    for run, model in (("first", "unet"), ("first", "fcn8s"), ("second", "unet")):
        path = tmp_path / run / "evaluate" / model / "per_case.csv"
        path.parent.mkdir(parents=True)
        path.touch()
    assert list(name_evaluations([tmp_path / "first"])) == ["fcn8s", "unet"]
    both = name_evaluations([tmp_path / "first", tmp_path / "second", tmp_path / "first" / "evaluate" / "unet"])
    assert list(both) == ["first/fcn8s", "first/unet", "second/unet"]


def test_what_cannot_be_compared(tmp_path):
    with pytest.raises(StageError, match="no finished evaluation"):
        compare([tmp_path], tmp_path / "both")
    with pytest.raises(ConfigError, match="two evaluations"):
        compare([_evaluated(tmp_path / "a", 1, n=1)], tmp_path / "both")
    assert not (tmp_path / "both").exists()
