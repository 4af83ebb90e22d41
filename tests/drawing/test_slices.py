"""The slices of a volume as one picture: which are there, where their contours lie, and how many bytes they take."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from medseg.core.grid import Grid
from medseg.core.labels import IGNORE
from medseg.core.volume import Volume
from medseg.drawing.contours import lighter
from medseg.drawing.scene import set_scene
from medseg.drawing.slices import MOST_CONTOUR_BYTES, MOST_PICTURE_BYTES, MOST_SLICES, dashes, draw_slices, outlines
from medseg.drawing.style import structure_colour


def scene(depth=40, affine=None, physical=True):
    """A bright slice in the middle of a dark volume, around it a reference; the prediction is the reference, moved."""
    array = np.zeros((1, 60, 80, depth), np.float32)
    array[..., depth // 2] = 1
    reference = np.zeros(array.shape[1:], np.uint8)
    reference[20:40, 30:50, depth // 4 : -depth // 4] = 1
    grid = Grid(array.shape[1:], np.eye(4) if affine is None else affine, physical)
    return set_scene(Volume(array, grid), reference, np.roll(reference, 6, axis=1))


def frames(stack, data):
    sheet = np.asarray(Image.open(io.BytesIO(data)).convert("RGBA")).astype(int)
    return sheet.reshape(len(stack.slices), stack.height, stack.width, 4)


def test_few_slices_are_all_there_and_many_are_evenly_spaced():
    few, many = draw_slices(scene(8)), draw_slices(scene(200))
    assert few.slices == tuple(range(1, 9)) and few.depth == 8
    assert len(many.slices) == MOST_SLICES and many.depth == 200
    assert set(np.diff(many.slices)) <= {8, 9}
    assert many.slices[0] == 1 and many.slices[-1] == 200  # the structure with its context is the whole length


def test_the_first_frame_shown_is_nearest_to_the_structure():
    stack = draw_slices(scene(200))
    assert abs(stack.slices[stack.start] - 100) <= 5


def test_frames_follow_the_slices_from_the_feet_upwards_however_they_are_stored():
    for up in (1, -1):
        volume = scene(20, np.diag([1.0, 1.0, up * 2.0, 1.0]))
        stack = draw_slices(volume)
        bright = frames(stack, stack.picture)[..., 0].mean((1, 2))
        assert stack.slices[int(bright.argmax())] == (
            11 if up > 0 else 10
        )  # slice 10 of 0 to 19 in the file, from above or below


def test_contours_lie_on_the_structures_edges_the_reference_solid_and_the_prediction_dashed():
    volume = scene(20, physical=False)
    stack = draw_slices(volume)
    near = volume.cropped(volume.inside())
    frame = frames(stack, stack.contours)[stack.start]
    drawn = frame[..., 3] > 120
    scale = stack.width / near.grid.shape[0]
    mask = near.reference[..., 10]
    left, right = (n * scale for n in (np.flatnonzero(mask.any(1))[0], np.flatnonzero(mask.any(1))[-1] + 1))
    top, bottom = (n * scale for n in (np.flatnonzero(mask.any(0))[0], np.flatnonzero(mask.any(0))[-1] + 1))
    rows, columns = np.nonzero(drawn)
    assert columns.min() == pytest.approx(left, abs=3) and columns.max() == pytest.approx(right, abs=3)
    assert rows.min() == pytest.approx(top, abs=3) and rows.max() == pytest.approx(bottom + 6 * scale, abs=3)
    across = slice(int(left) + 6, int(right) - 6)
    assert drawn[round(top) - 1 : round(top) + 2, across].any(0).all()  # the reference's upper edge has no gap
    share = drawn[round(bottom + 6 * scale) - 1 : round(bottom + 6 * scale) + 2, across].any(0).mean()
    assert 0.4 < share < 0.85  # the prediction's lower edge has


def test_contours_have_the_structures_colour_and_nothing_is_drawn_elsewhere():
    stack = draw_slices(scene(20))
    frame = frames(stack, stack.contours)[stack.start]
    colours = frame[frame[..., 3] == 255][:, :3]
    for colour in (structure_colour(0), lighter(structure_colour(0))):
        wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert (np.abs(colours - wanted).max(1) < 40).sum() > 50
    assert (frame[..., 3] == 0).mean() > 0.8
    assert not frames(stack, stack.contours)[0][..., 3].any()  # below the structure


def test_frames_have_the_volumes_true_proportions():
    thick = draw_slices(scene(8, np.diag([3.0, 1.0, 1.0, 1.0])))
    assert thick.aspect == pytest.approx(44 * 3 / 44)
    assert thick.width / thick.height == pytest.approx(thick.aspect, rel=0.05)


def test_noise_of_a_large_scan_stays_within_its_bytes():
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 1, (1, 160, 160, 24)).astype(np.float32)
    speckled = np.repeat(np.repeat(rng.integers(0, 7, (40, 40, 24)), 4, 0), 4, 1).astype(np.uint8)
    stack = draw_slices(set_scene(Volume(noise, Grid(noise.shape[1:], np.eye(4))), speckled, None))
    assert len(stack.picture) <= MOST_PICTURE_BYTES and len(stack.contours) <= MOST_CONTOUR_BYTES
    with Image.open(io.BytesIO(stack.picture)) as sheet:
        assert sheet.height / sheet.width == len(stack.slices) * stack.height / stack.width


def test_a_case_without_masks_has_its_slices_and_no_contours():
    bare = scene(8)
    stack = draw_slices(set_scene(Volume(bare.picture[None], bare.grid), None, None))
    assert len(stack.slices) == 8 and not frames(stack, stack.contours)[..., 3].any()


def test_outlines_are_closed_and_leave_ignored_voxels_alone():
    classes = np.zeros((10, 12), np.uint8)
    classes[0:4, 3:6] = 2  # runs into the picture's edge
    classes[7:, 7:] = IGNORE
    ((value, line),) = outlines(classes)
    assert value == 2 and np.array_equal(line[0], line[-1])
    assert line.min(0).tolist() == [-0.5, 2.5] and line.max(0).tolist() == [3.5, 5.5]


def test_dashes_cover_a_line_in_part_and_stay_on_it():
    parts = list(dashes(np.array([[0.0, 0.0], [0.0, 180.0]])))
    assert len(parts) == 10 and all((p[:, 0] == 0).all() for p in parts)
    assert sum(np.ptp(p[:, 1]) for p in parts) == pytest.approx(100)
