from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from itertools import combinations

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import PolyCollection
from PIL import Image
from skimage.color import deltaE_ciede2000, rgb2lab

from medseg.drawing.contact_sheet import draw_contact_sheet
from medseg.drawing.curves import draw_training_curves, training_figure
from medseg.drawing.strips import Scale, Span, Strip, strip_figure
from medseg.drawing.style import INK, MUTED, STRUCTURE_COLOURS, structure_colour, to_svg

LIGHT, DARK = "#ffffff", "#14171a"
# Machado, Oliveira & Fernandes 2009, severity 1, on linear RGB.
SIGHT = {
    "normal": np.eye(3),
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def linear(colour):
    c = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def contrast(one, other):
    low, high = sorted(linear(c) @ [0.2126, 0.7152, 0.0722] + 0.05 for c in (one, other))
    return high / low


@pytest.mark.parametrize("page", [LIGHT, DARK])
@pytest.mark.parametrize("colour", STRUCTURE_COLOURS)
def test_structure_colours_stand_out_from_both_pages(colour, page):
    assert contrast(colour, page) >= 3


@pytest.mark.parametrize("sight", SIGHT)
def test_structure_colours_can_be_told_apart_by_everyone(sight):
    seen = []
    for colour in STRUCTURE_COLOURS:
        c = np.clip(np.asarray(SIGHT[sight]) @ linear(colour), 0, 1)
        seen.append(rgb2lab(np.where(c <= 0.0031308, 12.92 * c, 1.055 * c ** (1 / 2.4) - 0.055)))
    assert min(deltaE_ciede2000(a, b) for a, b in combinations(seen, 2)) > 12


def test_text_has_contrast_on_white():
    assert contrast(INK, LIGHT) > 12 and contrast(MUTED, LIGHT) >= 4.5


def log(epochs=10, **more):
    e = np.arange(1, epochs + 1)
    columns = {"epoch": e, "step": e * 5, "train_loss": 1 / e, "val_dice": np.where(e % 2 == 0, 1 - 1 / e, np.nan)}
    return pd.DataFrame(columns | more)


def test_training_curves_are_written_and_leave_no_temporary_file(tmp_path):
    before = dict(matplotlib.rcParams)
    path = draw_training_curves(log(), tmp_path / "progress.png")
    assert [p.name for p in tmp_path.iterdir()] == ["progress.png"]
    with Image.open(path) as picture:
        assert min(picture.size) > 300
    assert dict(matplotlib.rcParams) == before  # nothing global is left behind


def test_training_curves_skip_epochs_without_validation_and_mark_the_best():
    dice = [np.nan, 0.5, np.nan, 0.8, np.nan, 0.7]
    figure = training_figure({"unet": log(6, val_dice=dice)})
    line, dot = figure.axes[1].lines
    np.testing.assert_array_equal(line.get_xdata(), [2, 4, 6])
    assert (dot.get_xdata()[0], dot.get_ydata()[0]) == (4, 0.8)
    assert figure.axes[1].get_title(loc="right") == "best 0.800 in epoch 4"


def test_training_curves_of_one_epoch_or_without_any_validation(tmp_path):
    draw_training_curves(log(1), tmp_path / "one.png")
    draw_training_curves(log(3, val_dice=[np.nan] * 3), tmp_path / "none.png")
    draw_training_curves(log(0), tmp_path / "empty.png")


def test_structures_keep_their_colours_and_models_their_scale():
    logs = {
        "unet": log(val_dice_a=np.linspace(0, 0.9, 10), val_dice_b=np.linspace(0, 0.8, 10)),
        "fcn8s": log(val_dice_a=np.linspace(0, 0.5, 10), val_dice_b=np.linspace(0, 0.4, 10)),
    }
    figure = training_figure(logs)
    above, below = figure.axes[:2], figure.axes[2:]
    assert [line.get_color() for line in below[0].lines[:2]] == [structure_colour(0), structure_colour(1)]
    assert below[0].get_ylim() == below[1].get_ylim() and above[0].get_ylim() == above[1].get_ylim()


SCALES = [Scale("Dice", "higher"), Scale("HD95 (mm)", "lower", bounded=False)]


def strip(name="unet", group="a", dice=(0.9, 0.8, 0.7, np.nan), hd95=(1.0, 2.0, np.nan, np.nan)):
    return Strip(group, name, 0, (np.array(dice), np.array(hd95)))


def test_every_case_is_a_dot_or_a_cross_at_the_worse_end():
    dice, hd95 = strip_figure([strip()], SCALES).axes
    dots, crosses = dice.collections
    np.testing.assert_allclose(sorted(dots.get_offsets()[:, 0]), [0.7, 0.8, 0.9])
    assert crosses.get_offsets()[:, 0].tolist() == [dice.get_xlim()[0]]
    assert hd95.collections[1].get_offsets()[:, 0].tolist() == [hd95.get_xlim()[1]] * 2


def test_a_span_stands_behind_the_rows_of_its_group_and_the_axis_holds_it():
    strips = [strip(group="a"), strip("fcn", group="a"), strip(group="b")]
    spans = {"a": (Span(0.5, 0.4, 0.6, "3 readers"), None), "b": (Span(0.7, np.nan, np.nan, "2 readers"), None)}
    figure = strip_figure(strips, SCALES, spans)
    dice, hd95 = figure.axes
    (band,) = [c for c in dice.collections if isinstance(c, PolyCollection)]  # where there is no interval there is a line alone
    box, rows = band.get_paths()[0].get_extents(), list(dice.get_yticks())
    assert (box.x0, box.x1) == pytest.approx((0.4, 0.6)) and box.y0 < rows[0] < rows[1] < box.y1 < rows[2]
    assert dice.get_xlim()[0] <= 0.4
    assert [line.get_xdata()[0] for line in dice.lines if line.get_linestyle() == "--"] == pytest.approx([0.5, 0.7])
    assert [t.get_text() for t in hd95.texts] == []
    figure.canvas.draw()
    boxes = {t.get_text(): t.get_window_extent() for t in dice.texts}
    assert set(boxes) == {"a", "b", "3 readers", "2 readers"}
    assert not [(i, j) for i in boxes for j in boxes if i < j and boxes[i].overlaps(boxes[j])]


def test_the_box_shows_quartiles_and_median():
    values = np.linspace(0.5, 0.9, 9)
    axes = strip_figure([strip(dice=values, hd95=values)], SCALES).axes[0]
    xs = [set(np.round(line.get_xdata(), 6)) for line in axes.lines]
    assert {0.7} in xs  # the median's bar
    assert any({0.6, 0.8} <= x for x in xs)  # the box


def test_strips_without_any_figure_are_drawn():
    nothing = strip(dice=[np.nan] * 3, hd95=[np.nan] * 3)
    strip_figure([nothing], SCALES)
    strip_figure([], SCALES)


def test_a_far_outlier_does_not_squeeze_the_others():
    values = np.array([*np.linspace(1, 3, 20), 200.0])
    figure = strip_figure([strip(dice=values, hd95=values)], SCALES)
    assert figure.axes[1].get_xscale() == "symlog"
    assert "mathdefault" not in to_svg(figure, "x")  # tick labels are plain numbers


def test_many_dots_become_one_picture():
    rng = np.random.default_rng(0)
    many = strip(dice=rng.random(2000), hd95=rng.random(2000))
    svg = to_svg(strip_figure([many], SCALES), "x")
    assert len(svg) < 500_000 and "data:image/png;base64" in svg


def test_svg_is_themed_and_self_contained_and_escapes_names():
    svg = to_svg(strip_figure([strip("<script>$x$", "a & b")], SCALES), "cases")
    ElementTree.fromstring(svg.replace("xlink:href", "href"))  # well formed
    assert "<script>" not in svg and "&lt;script&gt;$x$" in svg and "a &amp; b" in svg
    assert "http" not in svg and "<style" not in svg and "<metadata" not in svg
    assert "var(--ink)" in svg and INK not in svg
    ids = re.findall(r'id="([^"]+)"', svg)
    assert all(i.startswith("cases-") for i in ids) and len(ids) == len(set(ids))
    assert set(re.findall(r'(?:url\(|href=")#([^")]+)', svg)) <= set(ids)


def test_svg_is_the_same_each_time():
    assert to_svg(strip_figure([strip()], SCALES), "a") == to_svg(strip_figure([strip()], SCALES), "a")


def test_contact_sheet_has_a_row_for_every_six_pictures(tmp_path):
    rng = np.random.default_rng(0)
    images = [rng.normal(size=(20, 30)) for _ in range(7)] + [rng.random((20, 30, 3))]
    classes = [np.pad(np.ones((6, 8), np.uint8), ((7, 7), (11, 11))) for _ in images]
    path = draw_contact_sheet(images, classes, [f"case $_{i}" for i in range(8)], tmp_path / "sheet.png")
    with Image.open(path) as picture:
        assert picture.size[0] > 1200 and picture.size[1] > 600


def test_contact_sheet_of_nothing(tmp_path):
    assert draw_contact_sheet([], [], [], tmp_path / "none.png").exists()
