"""Reliability diagrams: bins at their places, empty ones left out."""

from __future__ import annotations

import numpy as np

from medseg.drawing.reliability import Diagram, reliability_figure


def diagram(title: str) -> Diagram:
    probability = np.array([0.02, np.nan, 0.5, 0.97])
    hits = np.array([0.0, np.nan, 0.3, 1.0])
    return Diagram(title, 0, probability, hits, np.array([900, 0, 50, 500]), 0.031)


def test_a_panel_shows_the_bins_that_hold_voxels() -> None:
    figure = reliability_figure([diagram("liver")])
    (axes,) = [a for a in figure.axes if a.get_visible()]
    (dots,) = axes.collections
    np.testing.assert_allclose(dots.get_offsets(), [[0.02, 0], [0.5, 0.3], [0.97, 1]])
    assert axes.get_title(loc="left") == "liver" and any("0.031" in text.get_text() for text in axes.texts)


def test_panels_stand_three_in_a_row() -> None:
    figure = reliability_figure([diagram(str(n)) for n in range(4)])
    shown = [a for a in figure.axes if a.get_visible()]
    assert len(shown) == 4 and [a.get_ylabel() != "" for a in shown] == [True, False, False, True]


def test_two_models_of_a_structure_stand_side_by_side() -> None:
    figure = reliability_figure([diagram(str(n)) for n in range(4)], models=2)
    assert [a.get_ylabel() != "" for a in figure.axes if a.get_visible()] == [True, False, True, False]
