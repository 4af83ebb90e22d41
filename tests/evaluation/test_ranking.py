"""Ranks and their stability: scipy as an oracle, and probabilities worked out by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from medseg.core.errors import ConfigError
from medseg.evaluation.config import EvaluateConfig
from medseg.evaluation.console import ranking_text
from medseg.evaluation.ranking import kendall_tau, rank_models, ranks_of
from medseg.evaluation.table import Evaluation
from medseg.metrics.measures import measures_for
from medseg.metrics.pair import Frame

SETTINGS = EvaluateConfig(bootstrap_resamples=10_000)
MEASURES = tuple(measures_for(["dice", "hd95", "reference_volume"], Frame(True, False), {"liver": 2.0}))


def _evaluation(dice, hd95=None, ids=None, patients=None):
    ids = ids or [f"c{i}" for i in range(len(dice))]
    patients = patients or [""] * len(ids)
    per_case = pd.DataFrame({"case_id": ids, "patient_id": patients, "structure": "liver", "dice": dice})
    per_case = per_case.assign(hd95_mm=np.ones(len(ids)) if hd95 is None else hd95, reference_volume_ml=1.0, status="ok")
    cases = pd.DataFrame({"case_id": ids, "patient_id": patients, "status": "ok", "reason": "", "diagonal": 50.0})
    return Evaluation(per_case, cases, MEASURES, "mm")


def _of(table, metric="dice"):
    return table[table["metric"] == metric].set_index("model")


def test_models_that_never_meet_keep_their_ranks():
    models = {name: _evaluation(np.linspace(low, low + 0.1, 8)) for name, low in (("mid", 0.5), ("best", 0.8), ("last", 0.2))}
    table = rank_models(models, SETTINGS, seed=0)
    assert table[table["metric"] == "dice"]["model"].tolist() == ["best", "mid", "last"]
    dice = _of(table)
    assert dice["rank"].to_dict() == {"best": 1, "mid": 2, "last": 3}
    assert dice.loc["mid", ["share_rank_1", "share_rank_2", "share_rank_3"]].tolist() == [0, 1, 0]
    assert (dice[["tau_mean", "tau_low", "tau_high"]] == 1).all(axis=None)
    assert dice.loc["mid", ["rank_low", "rank_high", "n"]].tolist() == [2, 2, 8]
    assert "reference_volume_ml" not in set(table["metric"])
    assert "best" in ranking_text(table) and "100%" in ranking_text(table)


def test_equal_models_share_the_better_rank_and_have_no_tau():
    table = _of(rank_models({m: _evaluation([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]) for m in "abc"}, SETTINGS, seed=0))
    assert table["rank"].tolist() == [1, 1, 1] and (table["share_rank_1"] == 1).all() and table["tau_mean"].isna().all()


def test_shares_are_the_probabilities_of_resampling():
    # a is better than b by 1 in five patients and worse by 4 in one: with that one drawn k times of six, a is ahead where
    # 6 - k > 4 k, so where k is 0 or 1; there is no tie. c is always last.
    b = np.full(6, 0.5)
    a = b + np.array([0.01] * 5 + [-0.04])
    table = _of(rank_models({"a": _evaluation(a), "b": _evaluation(b), "c": _evaluation(b - 0.4)}, SETTINGS, seed=1))
    ahead = stats.binom.cdf(1, 6, 1 / 6)
    assert table.loc["a", "rank"] == 1
    assert table.loc["a", "share_rank_1"] == pytest.approx(ahead, abs=0.015)
    assert table.loc["b", "share_rank_1"] == pytest.approx(1 - ahead, abs=0.015)
    assert table.loc["c", "share_rank_3"] == 1
    # Where a and b change places one of three pairs is discordant: tau is 1/3.
    assert table.loc["c", "tau_mean"] == pytest.approx(ahead + (1 - ahead) / 3, abs=0.01)
    assert table.loc["a", ["rank_low", "rank_high"]].tolist() == [1, 2]


def test_distances_are_ranked_the_other_way_and_missing_cases_count_as_worst():
    whole = _evaluation([0.8] * 7, [3.0] * 7)
    better_but_part = _evaluation([0.9] * 4, [1.0] * 4)
    far = _evaluation([0.7] * 7, [4.0] * 7)
    table = rank_models({"whole": whole, "part": better_but_part, "far": far}, SETTINGS, seed=0)
    hd95 = _of(table, "hd95_mm")
    assert hd95["rank"].to_dict() == {"whole": 1, "far": 2, "part": 3}
    assert hd95.loc["part", "mean"] == pytest.approx((4 * 1 + 3 * 50) / 7)
    assert _of(table).loc["part", "mean"] == pytest.approx(0.9 * 4 / 7)
    nothing = rank_models({m: _evaluation([0.0] * 7) for m in "abc"}, SETTINGS, seed=0)
    assert not np.signbit(_of(nothing)["mean"]).any()


def test_patients_are_resampled_and_below_six_there_is_no_stability():
    patients = [f"p{i // 2}" for i in range(10)]
    models = {m: _evaluation(np.linspace(0.1 * i, 0.9, 10), patients=patients) for i, m in enumerate("abc")}
    table = rank_models(models, SETTINGS, seed=0)
    assert table["rank"].notna().all()
    assert table[["share_rank_1", "rank_low", "tau_mean"]].isna().all(axis=None)
    assert "100%" not in ranking_text(table)


def test_shares_of_a_model_add_up_where_nothing_ties():
    generator = np.random.default_rng(0)
    models = {m: _evaluation(generator.uniform(0.4, 0.9, 12)) for m in "abcd"}
    table = _of(rank_models(models, SETTINGS, seed=0))
    assert np.allclose(table.filter(like="share_").sum(axis=1), 1) and np.allclose(table.filter(like="share_").sum(), 1)
    again = _of(rank_models(models, SETTINGS, seed=0))
    pd.testing.assert_frame_equal(table, again)


def test_ranks_and_tau_are_scipys():
    generator = np.random.default_rng(5)
    means = generator.integers(0, 4, (50, 5)).astype(float)  # with ties
    assert (ranks_of(means) == [stats.rankdata(row, method="min") for row in means]).all()
    ranks = ranks_of(means)
    expected = [stats.kendalltau(ranks[0], row).statistic for row in ranks]
    assert kendall_tau(ranks[0], ranks) == pytest.approx(expected, nan_ok=True)


def test_two_models_are_no_ranking():
    with pytest.raises(ConfigError, match="needs 3 evaluations, not 2"):
        rank_models({"a": _evaluation([0.5]), "b": _evaluation([0.5])}, SETTINGS, seed=0)
