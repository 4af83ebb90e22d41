from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex

from medseg.core.grid import Grid
from medseg.core.labels import IGNORE
from medseg.core.volume import Volume
from medseg.drawing.contours import draw_case, draw_outlines, lighter
from medseg.drawing.scene import ANATOMICAL, STACK, pick_planes, set_scene
from medseg.drawing.style import save_png, structure_colour, styled
from medseg.drawing.windows import BONE, LUNG, SOFT_TISSUE, tissue_limits, window


def test_window_maps_the_percentiles_to_black_and_white_and_survives_nan():
    image = np.arange(101, dtype=np.float32)
    image[50] = np.nan
    shown = window(image, (10, 90))
    assert shown[5] == 0 and shown[95] == 1 and np.isfinite(shown).all()
    assert shown[30] < shown[70]


def test_window_of_a_constant_picture_is_black():
    assert window(np.full((4, 4), 7.0)).max() == 0


@pytest.mark.parametrize(("units", "limits"), [(-800, LUNG), (60, SOFT_TISSUE), (700, BONE), (None, SOFT_TISSUE)])
def test_a_ct_is_windowed_by_the_tissue_of_the_structure(units, limits):
    assert tissue_limits(np.array([] if units is None else [units - 20, units, units + 300])) == limits


def test_planes_run_through_the_centre_of_mass():
    mask = np.zeros((20, 30, 10), bool)
    mask[4:7, 20:25, 2:5] = True
    assert pick_planes(mask) == (5, 22, 3)


def test_planes_of_two_far_parts_show_one_of_them():
    mask = np.zeros((40, 20, 20), bool)
    mask[2:6, 8:12, 8:12] = mask[34:38, 8:12, 8:12] = True  # as a left and a right kidney; between them there is nothing
    x, _, _ = pick_planes(mask)
    assert mask[x].any()


def test_planes_of_an_empty_mask_are_the_middle():
    assert pick_planes(np.zeros((11, 9, 7), bool)) == (5, 4, 3)


@pytest.mark.parametrize(
    ("plane", "corner"), [("axial", "right anterior"), ("coronal", "right superior"), ("sagittal", "anterior superior")]
)
def test_anatomical_views_have_right_or_front_on_the_left_and_the_top_up(plane, corner):
    # In a canonical array the last index along each axis is the rightmost, foremost and topmost voxel.
    array = np.zeros((4, 5, 6))
    array[-1, -1, -1] = 1
    view = ANATOMICAL[plane]
    shown = view.slice(array, array.shape[view.axis] - 1)
    assert shown[0, 0] == 1 and shown.sum() == 1, corner


def test_stack_views_are_as_stored():
    array = np.arange(24).reshape(2, 3, 4)
    np.testing.assert_array_equal(STACK["axial"].slice(array, 1), array[:, :, 1].T)
    np.testing.assert_array_equal(STACK["sagittal"].slice(array, 1), array[1].T)


def rendered(figure):
    canvas = FigureCanvasAgg(figure)
    with styled():
        canvas.draw()
    return np.asarray(canvas.buffer_rgba()).astype(int)


@pytest.mark.parametrize("flips", [(1, 1), (-1, -1), (-1, 1)])
def test_a_scan_looks_the_same_however_its_voxels_are_stored(flips):
    """One bright block in the patient's right front must come out upper left, whatever the file's axis directions."""
    sx, sy = flips
    array = np.zeros((1, 40, 40, 8), np.float32)
    x, y = (30 if sx > 0 else 5), (30 if sy > 0 else 5)  # towards +x (right) and +y (front) of the world
    array[0, x : x + 5, y : y + 5] = 1
    scan = Volume(array, Grid((40, 40, 8), np.diag([sx, sy, 3.0, 1])))
    picture = rendered(draw_case(set_scene(scan, None, None), planes=["axial"]))
    panel = picture[:, : picture.shape[1] // 2, :3].min(-1)
    height, width = panel.shape
    block = panel[int(0.14 * height) : int(0.24 * height), int(0.14 * width) : int(0.24 * width)]
    assert block.min() > 200
    assert panel[int(0.6 * height) : int(0.9 * height), int(0.3 * width) : int(0.6 * width)].max() < 40


@pytest.mark.parametrize(("depth", "side_by_side"), [(20, True), (2, False)])
def test_planes_have_their_true_proportions_and_one_scale(depth, side_by_side):
    shape = (30, 30, depth)
    volume = Volume(np.random.default_rng(0).random((1, *shape), np.float32), Grid(shape, np.diag([1, 1, 1.5, 1])))
    figure = draw_case(set_scene(volume, None, None))
    axial, coronal = figure.axes[0], figure.axes[2]
    heights = [np.ptp(a.images[0].get_extent()[2:]) for a in (axial, coronal)]
    assert heights == [30, 1.5 * depth]  # mm
    scales = [(a.bbox.height / abs(np.ptp(a.get_ylim())), a.bbox.width / np.ptp(a.get_xlim())) for a in (axial, coronal)]
    np.testing.assert_allclose(scales, scales[0][0], rtol=0.02)
    assert (axial.bbox.x0 != coronal.bbox.x0) == side_by_side  # thin planes stand below one another, or the paper stays empty


def test_outlines_have_the_structures_colour_and_leave_ignored_voxels_alone():
    classes = np.zeros((10, 12), np.uint8)
    classes[2:5, 2:5] = 2
    classes[7:, 7:] = IGNORE
    axes = draw_case(set_scene(flat(), None, None)).axes[0]
    draw_outlines(axes, classes, (1.0, 1.0))
    colours = {tuple(np.round(c.get_edgecolor()[0], 3)) for c in axes.collections if len(c.get_edgecolor())}
    wanted = tuple(int(structure_colour(1)[i : i + 2], 16) / 255 for i in (1, 3, 5))
    assert {c[:3] for c in colours} == {tuple(np.round(wanted, 3))}
    points = np.concatenate([p.vertices for c in axes.collections for p in c.get_paths()])
    assert points.min() >= 2 and points.max() <= 5


def flat(channels=1):
    return Volume(np.random.default_rng(0).random((channels, 12, 10, 1), np.float32), Grid.pixels((12, 10)))


def test_a_structure_at_the_edge_has_a_closed_outline():
    classes = np.ones((10, 12), np.uint8)
    axes = draw_case(set_scene(flat(), None, None)).axes[0]
    draw_outlines(axes, classes, (1.0, 1.0))
    line = axes.collections[-1].get_paths()[0].vertices
    assert np.ptp(line[:, 0]) == pytest.approx(12) and np.ptp(line[:, 1]) == pytest.approx(10)


def test_a_prediction_is_dashed_and_lighter_than_the_reference_in_the_second_panel_only():
    reference, prediction = np.zeros((2, 12, 10, 1), np.uint8)
    reference[2:6, 2:6] = prediction[4:9, 3:7] = 1
    plain, outlined = draw_case(set_scene(flat(), reference, prediction)).axes
    assert not plain.collections
    lines = [c for c in outlined.collections if len(c.get_edgecolor()) and c.get_linewidth()[0] > 1]
    assert [c.get_linestyle()[0][1] is None for c in lines] == [True, False]
    colours = [to_hex(c.get_edgecolor()[0]) for c in lines]
    assert colours == [structure_colour(0), lighter(structure_colour(0))]


def test_colour_pictures_are_shown_in_colour_and_a_channel_in_grey():
    assert draw_case(set_scene(flat(3), None, None)).axes[0].images[0].get_array().shape == (10, 12, 3)
    assert draw_case(set_scene(flat(3), None, None, channel=1)).axes[0].images[0].get_array().shape == (10, 12)


def test_a_missing_prediction_is_said_with_its_reason_and_dollars_stay_dollars(tmp_path):
    classes = np.ones((12, 10, 1), np.uint8)
    figure = draw_case(set_scene(flat(), classes, None), missing="the file $p07_x^$ is truncated")
    texts = [t.get_text() for t in figure.axes[1].texts]
    assert "No prediction" in texts and any("$p07_x^$" in t for t in texts)
    assert save_png(figure, tmp_path / "case.png", transparent=True).stat().st_size > 1000


def blocks():
    """Two structures far apart in a volume, the second of them in the prediction only."""
    volume = Volume(np.zeros((1, 200, 200, 60), np.float32) + np.arange(60), Grid((200, 200, 60), np.eye(4)))
    reference, prediction = np.zeros((2, 200, 200, 60), np.uint8)
    reference[90:110, 90:110, 25:35] = prediction[90:110, 90:110, 25:35] = 1
    prediction[20:40, 150:170, 5:15] = 2
    return set_scene(volume, reference, prediction)


@pytest.mark.parametrize("focus", [[1], [2]])
def test_volumes_are_cropped_to_what_is_looked_at_with_context(focus):
    shapes = [a.images[0].get_array().shape for a in draw_case(blocks(), focus=focus).axes[::2]]
    deep = 34 if focus == [1] else 27  # 12 voxels on either side, or as many as there are
    assert shapes == [(50, 50), (deep, 50), (deep, 50)]


def test_a_structure_that_only_the_prediction_has_is_looked_at_there():
    assert pick_planes(blocks().inside([2])) == (30, 160, 10)
    assert blocks().inside()[100, 100, 30] and not blocks().inside()[30, 160, 10]


def scene_of(shape, spacing, reference, prediction=None):
    physical = spacing is not None
    grid = Grid(shape, np.diag([*(spacing or (1, 1, 1)), 1.0]), physical)
    picture = np.arange(np.prod(shape), dtype=np.float32).reshape(1, *shape)
    return set_scene(Volume(picture, grid), reference, prediction)


def marked(shape, *boxes):
    mask = np.zeros(shape, np.uint8)
    for box in boxes:
        mask[tuple(slice(*ends) for ends in box)] = 1
    return mask


def test_context_is_as_long_along_thick_slices_as_along_thin_ones():
    shape = (160, 160, 14)
    reference = marked(shape, ((70, 90), (70, 90), (6, 7)))
    scene = scene_of(shape, (0.5, 0.5, 8.0), reference)
    near = scene.cropped(scene.inside())
    assert near.grid.shape == (50, 50, 5)  # 7.5 mm around it, and at least two slices


@pytest.mark.parametrize("corner", [0, 1])
def test_a_voxel_at_the_edge_of_the_volume_is_shown_in_its_planes(corner):
    shape = (40, 50, 30)
    box = tuple((0, 1) if corner == 0 else (n - 1, n) for n in shape)
    scene = scene_of(shape, (1.0, 1.0, 2.0), marked(shape, box))
    near = scene.cropped(scene.inside())
    indices = pick_planes(near.inside())
    assert near.reference[indices] == 1 and near.grid.shape == (13, 13, 7)
    figure = draw_case(scene)
    assert len(figure.axes) == 6 and all(axes.collections for axes in figure.axes[1::2])  # its outline in each plane


def test_a_picture_that_structures_fill_little_of_is_cropped_to_all_of_them():
    shape = (900, 600, 1)
    reference, prediction = marked(shape, ((400, 410), (300, 310), (0, 1))), marked(shape, ((440, 450), (300, 310), (0, 1)))
    scene = scene_of(shape, None, reference, prediction)
    near = scene.cropped(scene.inside())
    assert near.prediction.sum() == near.reference.sum() == 100 and near.grid.shape == (50 + 2 * 38, 10 + 2 * 32, 1)
    whole = scene_of(shape, None, marked(shape, ((0, 10), (0, 10), (0, 1)), ((800, 810), (500, 510), (0, 1))))
    assert whole.cropped(whole.inside()).grid.shape == shape


def test_without_a_picture_the_outlines_stand_alone():
    shape = (40, 50, 30)
    scene = scene_of(shape, (1.0, 1.0, 2.0), marked(shape, ((10, 20), (10, 20), (10, 20))))
    assert [len(draw_case(replace(scene, blank=blank)).axes) for blank in (False, True)] == [6, 3]


def test_a_long_picture_stands_over_its_twin():
    shape = (400, 40, 1)
    scene = scene_of(shape, None, marked(shape, ((0, 300), (5, 35), (0, 1))))
    width, height = draw_case(scene).get_size_inches()
    assert width / height == pytest.approx(5, rel=0.1)
