"""The best threshold of the mean over cases, and what it says beside each case's own best."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from medseg.core.grid import Grid
from medseg.evaluation.thresholds import best_of_mean, best_text, threshold_table
from medseg.metrics.membranes import ISBI_THRESHOLDS, CellScores, best_scores, score_cells_at, threshold_scores
from medseg.metrics.pair import Frame, pair_structures


def _scores(*v_rand: float, v_info: float = 0.5) -> list[CellScores]:
    """Scores that rise to 1 at the thresholds given and are 0.25 elsewhere."""
    return [CellScores(1.0 if t in v_rand else 0.25, 0, 0, v_info, 0, 0) for t in ISBI_THRESHOLDS]


def _membranes(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A grid of cells, and a probability that is sure of it to a different degree along each line."""
    membrane, probability = np.zeros((2, 33, 33))
    membrane[::8] = membrane[:, ::8] = 1
    strength = np.random.default_rng(seed).uniform(0.15, 0.95, (2, 5))
    for line in range(5):
        probability[8 * line] = np.maximum(probability[8 * line], strength[0, line])
        probability[:, 8 * line] = np.maximum(probability[:, 8 * line], strength[1, line])
    return membrane.astype(np.uint8), (probability + 0.3 * np.random.default_rng(seed).random((33, 33)) * (1 - membrane)).astype(
        np.float32
    )


def test_the_mean_is_taken_before_the_best():
    cases = [{"membrane": _scores(0.3, 0.5)}, {"membrane": _scores(0.5)}, {"membrane": _scores(0.7)}, {}]
    table = threshold_table(cases)
    assert list(table) == ["structure", "metric", "threshold", "n", "n_undefined", "mean"] and len(table) == 2 * 11
    v_rand = table[table["metric"] == "v_rand"].set_index("threshold")
    assert v_rand.loc[[0.3, 0.5, 0.7], "mean"].tolist() == [0.5, 0.75, 0.5] and v_rand.loc[0, "mean"] == 0.25
    assert set(v_rand["n"]) == {3} and set(v_rand["n_undefined"]) == {1}
    best = best_of_mean(table)
    assert best[["metric", "threshold", "mean"]].values.tolist() == [["v_rand", 0.5, 0.75], ["v_info", 0.0, 0.5]]
    assert best_text("evaluate unet", table).splitlines()[0] == (
        "evaluate unet: membrane: the mean V-Rand over 3 cases is best at threshold 0.5: 0.750 (1 undefined)"
    )


def test_a_threshold_with_fewer_figures_does_not_win():
    nan = [CellScores(math.nan if t == 0.5 else 0.4, 0, 0, math.nan, 0, 0) for t in ISBI_THRESHOLDS]
    best = best_of_mean(threshold_table([{"a": _scores(0.5, v_info=math.nan)}, {"a": nan}]))
    assert best[["metric", "threshold", "n"]].values.tolist() == [["v_rand", 0.0, 2]]  # V-Info is defined nowhere


def test_without_scores_there_is_no_table():
    assert threshold_table([{}, {}]).empty and best_of_mean(threshold_table([])).empty
    assert threshold_table([{"a": []}]).empty


def test_the_best_of_each_case_is_never_below_the_best_of_the_mean():
    cases = [score_cells_at(mask == 1, probability) for mask, probability in map(_membranes, range(6))]
    table = threshold_table([{"membrane": scores} for scores in cases])
    own = np.mean([(best_scores(s).v_rand, best_scores(s).v_info) for s in cases], axis=0)
    shared = best_of_mean(table)["mean"].to_numpy()
    assert (own >= shared).all() and own[0] > shared[0] + 0.005
    # The challenge's stack: one case of six slices has the same mean.
    stacked = [np.stack(parts, axis=2) for parts in zip(*map(_membranes, range(6)), strict=True)]
    stack = threshold_table([{"membrane": score_cells_at(stacked[0] == 1, stacked[1])}])
    assert stack["mean"].tolist() == pytest.approx(table["mean"].tolist())


def test_scores_of_a_pair_are_those_of_its_mask_and_probability():
    mask, probability = (array[..., None] for array in _membranes(1))
    (pair,) = pair_structures(mask, mask, Grid.pixels((33, 33)), Frame(physical=False, planar=True), [[1]], [1.0])
    assert threshold_scores(pair) == []
    kept = replace(pair, probability=lambda: probability)
    assert threshold_scores(kept) == score_cells_at(mask[..., 0] == 1, probability[..., 0])
