"""Bland-Altman plots, and figures as files for print."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from medseg.drawing.agreement import Agreement, agreement_figure
from medseg.drawing.style import PRINT_DPI, save_png, save_svg


def panel(colour=0, bias=0.5, spread=2.0, **more):
    differences = np.array([0.0, 1.0, 0.5])
    title = more.pop("title", "liver")
    return Agreement(title, colour, np.array([1.0, 2.0, 3.0]), differences, bias, bias - spread, bias + spread, "ml", **more)


def test_a_panel_shows_each_point_the_bias_and_the_limits():
    axes = agreement_figure([panel(upper_interval=(2.0, 3.0))]).axes[0]
    assert axes.collections[0].get_offsets().tolist() == [[1.0, 0.0], [2.0, 1.0], [3.0, 0.5]]
    assert {line.get_ydata()[0] for line in axes.lines} == {0, 0.5, -1.5, 2.5}
    assert [t.get_text() for t in axes.texts] == ["+2.50", "+0.50", "−1.50"]
    assert axes.get_ylim()[0] < -1.5 and axes.get_ylim()[1] > 3.0
    assert axes.get_ylabel() == "Prediction − reference (ml)"


def test_panels_of_one_structure_share_their_axis():
    figure = agreement_figure([panel(0), panel(0, spread=9.0), panel(1)], models=2)
    first, second, third = (axes.get_ylim() for axes in figure.axes[:3])
    assert first == second != third


def test_labels_of_lines_that_lie_close_do_not_overlap():
    narrow = agreement_figure([panel(0, spread=0.02), panel(0, spread=9.0)], models=2)
    narrow.canvas.draw()
    boxes = [text.get_window_extent() for text in narrow.axes[0].texts]
    assert len(boxes) == 3
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_labels_stand_beside_the_axes_where_no_dot_is_and_set_thousands_apart():
    figure = agreement_figure([panel(bias=-12345.0, spread=2.0)])
    figure.canvas.draw()
    (axes,) = figure.axes
    assert all(text.get_window_extent().x0 >= axes.bbox.x1 for text in axes.texts)
    assert axes.texts[1].get_text() == "−12\u202f345.00" and axes.yaxis.get_major_formatter()(-10000.0) == "−10\u202f000"


def test_without_limits_only_the_points_stand():
    axes = agreement_figure([panel(bias=math.nan)]).axes[0]
    assert len(axes.lines) == 1 and not axes.texts


@pytest.mark.parametrize("title", ["$x$ <b>", "long " * 30])
def test_files_for_print_are_sharp_and_whole(tmp_path, title):
    figure = agreement_figure([panel(title=title)])
    with Image.open(save_png(figure, tmp_path / "a.png", dpi=PRINT_DPI)) as image:
        assert image.info["dpi"] == pytest.approx((300, 300), abs=0.1)
    root = ElementTree.parse(save_svg(figure, tmp_path / "a.svg")).getroot()
    assert root.tag.endswith("svg") and any("Mean of both" in (e.text or "") for e in root.iter())
