"""The flow of cases as a chart."""

from __future__ import annotations

import pytest

from medseg.drawing.flow import MOST_COLUMNS, Box, Column, flow_figure

TRUNK = [Box("Cases in the manifest", 28), Box("Test cases given", 8, ("16 used for training",))]
STEPS = (Box("Readable", 8), Box("Segmented", 7, ("1 out of memory",)), Box("Evaluated", 7))


def texts_of(figure):
    return [text for text in figure.axes[0].texts if text.get_text()]


@pytest.mark.parametrize("n", [1, 2, 3])
def test_every_box_stands_in_the_figure_and_none_on_another(n):
    figure = flow_figure(TRUNK, [Column(f"model {i}" if n > 1 else "", STEPS) for i in range(n)])
    figure.canvas.draw()
    texts = texts_of(figure)
    shown = [t.get_text() for t in texts]
    assert shown.count("n = 28") == 1 and shown.count("n = 7") == 2 * n and shown.count("1 out of memory") == n
    frame = figure.bbox
    boxes = [t.get_window_extent() for t in texts]
    assert all(frame.x0 <= b.x0 and b.x1 <= frame.x1 and frame.y0 <= b.y0 and b.y1 <= frame.y1 for b in boxes)
    assert not [(i, j) for i, a in enumerate(boxes) for j, b in enumerate(boxes[:i]) if a.overlaps(b)]


def test_more_columns_than_fit_are_left_to_the_table():
    figure = flow_figure(TRUNK, [Column(f"model {i}", STEPS) for i in range(MOST_COLUMNS + 2)])
    assert [t.get_text() for t in texts_of(figure)].count("Evaluated") == MOST_COLUMNS


def test_long_and_hostile_texts_are_drawn_as_they_stand():
    figure = flow_figure([Box("Cases", 3)], [Column("x" * 200, (Box("Readable", 2, ("1 $case$ <b> " + "long " * 40,)),))])
    figure.canvas.draw()
    assert any("$case$ <b>" in t.get_text() for t in texts_of(figure))
