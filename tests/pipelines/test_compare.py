"""`medseg compare` over finished evaluations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from medseg.core.errors import ConfigError, StageError
from medseg.evaluation.table import name_evaluations
from pipelines.compare import compare, parse_margins
from pipelines.evaluate_folders import evaluate_folders
from pipelines.report import report_folders


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
    with pytest.raises(StageError, match="holds no per_case"):
        compare([tmp_path], tmp_path / "both")
    with pytest.raises(ConfigError, match="two evaluations"):
        compare([_evaluated(tmp_path / "a", 1, n=1)], tmp_path / "both")
    assert not (tmp_path / "both").exists()


def test_margins_and_a_ranking_of_three(tmp_path, capsys):
    runs = [_evaluated(tmp_path / name, shift) for name, shift in (("near", 1), ("mid", 2), ("far", 4))]
    assert compare(runs, tmp_path / "all", margins={"dice": 0.2}) == 0
    summary = pd.read_csv(tmp_path / "all" / "comparison_summary.csv", keep_default_na=False)
    dice = summary[summary["metric"] == "dice"].set_index(["model_a", "model_b"])
    assert dice.loc[("near/out", "mid/out"), ["verdict_a", "verdict_b"]].tolist() == ["superior", "non-inferior"]
    assert set(summary[summary["metric"] != "dice"]["verdict_a"]) == {""}
    ranking = pd.read_csv(tmp_path / "all" / "ranking.csv")
    assert ranking[ranking["metric"] == "hd95_px"]["model"].tolist() == ["near/out", "mid/out", "far/out"]
    assert (ranking[ranking["metric"] == "dice"]["share_rank_1"].tolist()) == [1, 0, 0]
    assert "ranking by the mean" in capsys.readouterr().err
    compare(runs[:2], tmp_path / "all")
    assert not (tmp_path / "all" / "ranking.csv").exists()  # of another comparison


def test_margins_as_they_are_typed():
    assert parse_margins(["dice=0.02", " hd95_mm = 1.5 "]) == {"dice": 0.02, "hd95_mm": 1.5}
    assert parse_margins([]) == {}
    for wrong in (["dice"], ["dice="], ["=0.1"], ["dice=0"], ["dice=-1"], ["dice=nan"], ["dice=0.1", "dice=0.2"]):
        with pytest.raises(ConfigError, match="METRIC=VALUE"):
            parse_margins(wrong)
    with pytest.raises(ConfigError, match="no metric: `dicee`"):
        parse_margins(["dicee=0.1"])


def test_a_report_over_two_evaluations_compares_them_too(tmp_path, capsys):
    good, poor = _evaluated(tmp_path / "good", 1), _evaluated(tmp_path / "poor", 3, grow=3)
    page = report_folders([good, poor], tmp_path / "report", margins={"dice": 0.05}).read_text(encoding="utf-8")
    assert "7 cases were measured against different references" in capsys.readouterr().err
    assert "the models were measured against references of different sizes" in page
    table = pd.read_csv(tmp_path / "report" / "tables" / "comparison_summary.csv").set_index("metric")
    assert table.loc["dice", ["model_a", "model_b", "verdict_a"]].tolist() == ["good/out", "poor/out", "superior"]
    assert "--margin dice=0.05" in page[page.index("To repeat it") :]


def test_a_report_over_evaluations_with_nothing_in_common_compares_nothing(tmp_path, capsys):
    one, other = _evaluated(tmp_path / "one", 1), _evaluated(tmp_path / "other", 1)
    for path in (tmp_path / "other" / "masks").rglob("*.png"):
        path.rename(path.with_name(f"x_{path.name}"))
    evaluate_folders(tmp_path / "other" / "masks" / "predictions", tmp_path / "other" / "masks" / "references", other)
    report_folders([one, other], tmp_path / "report")
    assert "not compared: one/out, other/out have no case" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "report" / "tables" / "comparison_summary.csv").exists()
