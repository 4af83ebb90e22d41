"""The contact sheet of augmented patches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_models import tiny_plan

from medseg.data.store import PreparedStore
from medseg.training import preview
from medseg.training.config import AugmentationConfig
from medseg.training.preview import draw_preview

CASES = [f"c{number}" for number in range(5)]


@pytest.fixture
def sheets(monkeypatch: pytest.MonkeyPatch) -> list:
    """What each sheet was drawn from: images, classes, titles, columns."""
    drawn = []
    draw = preview.draw_contact_sheet

    def keep(images, classes, titles, path, columns, stretched):
        drawn.append((images, classes, titles, columns))
        return draw(images, classes, titles, path, columns, stretched)

    monkeypatch.setattr(preview, "draw_contact_sheet", keep)
    return drawn


def test_a_row_is_the_plain_patch_and_changed_ones(store: PreparedStore, tmp_path: Path, sheets: list) -> None:
    plan = tiny_plan(patch_voxels=(16, 16, 8), flips=[0, 1])
    path = draw_preview(tmp_path / "patches.png", store, CASES, plan, AugmentationConfig(), seed=0)
    with Image.open(path) as picture:
        assert min(picture.size) > 500
    ((images, classes, titles, columns),) = sheets
    assert titles == [t for case_id in CASES for t in (case_id, *["augmented"] * 5)] and columns == 6
    for row in range(5):
        plain, *changed = images[6 * row : 6 * row + 6]
        assert plain.shape == (16, 16) and plain.min() >= 0 and plain.max() <= 1
        assert classes[6 * row].any()  # centred on a structure
        assert sum(not np.array_equal(plain, image) for image in changed) >= 4
    # The first is a plain cut out of the stored case, turned so that front is up and the patient's right on the left.
    case, window = store.open("c0"), images[0][::-1, ::-1]
    planes = np.lib.stride_tricks.sliding_window_view(np.asarray(case.classes), (16, 16, 1))[..., 0]
    assert (planes == classes[0][::-1, ::-1]).all((-1, -2)).any() and window.std() > 0


def test_the_same_seed_gives_the_same_sheet(store: PreparedStore, tmp_path: Path) -> None:
    plan = tiny_plan(patch_voxels=(16, 16, 1))
    paths = [draw_preview(tmp_path / f"{n}.png", store, CASES[:2], plan, AugmentationConfig(), seed=n // 2) for n in range(3)]
    first, again, other = (np.asarray(Image.open(path)) for path in paths)
    np.testing.assert_array_equal(first, again)
    assert first.shape != other.shape or (first != other).any()


def test_settings_that_change_nothing_show_the_plain_patch(store: PreparedStore, tmp_path: Path, sheets: list) -> None:
    draw_preview(tmp_path / "p.png", store, CASES[:1], tiny_plan(), preview._nothing(), seed=0)
    images = sheets[0][0]
    assert all(np.array_equal(image, images[0]) for image in images)


def test_paired_structures_change_places_in_mirrored_patches(store: PreparedStore, tmp_path: Path, sheets: list) -> None:
    flipping = preview._nothing().model_copy(update={"flip": 1.0})
    plan = tiny_plan(flips=[0], swaps=[(1, 2)])
    draw_preview(tmp_path / "p.png", store, CASES[:1], plan, flipping, seed=0)
    _, classes, _, _ = sheets[0]
    swapped = np.array([0, 2, 1], np.uint8)[classes[0][::-1]]
    np.testing.assert_array_equal(classes[1], swapped)
