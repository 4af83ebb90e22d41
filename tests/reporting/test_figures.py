"""The report's figures as the page and their captions have them."""

from __future__ import annotations

import re

import pytest
from reporting.test_report_tables import model, report, rows

from medseg.reporting.figures import LARGEST, strips


def measured(*distances):
    return [row | {"hd95_mm": d} for row, d in zip(rows(*["ok"] * len(distances)), distances, strict=True)]


@pytest.mark.parametrize(
    ("distances", "note"),
    [
        ((1.0, 2.0, 1.5, 1.8, 2.2, 1.1), ""),
        ((1.0, 2.0, 1.5, 1.8, 2.2, 400.0), "The scale of HD95\u00a0(mm) is logarithmic beyond the usual values."),
    ],
)
def test_a_scale_that_is_not_even_is_told_in_the_caption(tmp_path, distances, note):
    placed = strips(report(model(per_case=measured(*distances))), tmp_path)
    assert placed.note == note and (tmp_path / placed.file).is_file()


def test_a_figure_is_not_blown_up_to_the_page(tmp_path):
    placed = strips(report(model(per_case=measured(1.0, 2.0))), tmp_path)
    width, most = re.search(r'width="(\d+)".*?max-width: (\d+)px', placed.markup, re.DOTALL).groups()
    assert int(most) == pytest.approx(LARGEST * int(width), abs=1)
