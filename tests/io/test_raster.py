"""PNG and JPEG: modes, palettes, orientation of axes, damage."""

from __future__ import annotations

import io
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from io_phantoms import counting
from PIL import Image, ImageFile

from medseg.core.errors import LabelError, OutputError, UnreadableError
from medseg.core.volume import LabelMap
from medseg.io.formats import geometry_warnings, label_name, read_grid, read_labels, read_volume, write_labels

ROWS, COLUMNS = 4, 7


def save(path: Path, array: np.ndarray, **options: object) -> Path:
    Image.fromarray(array).save(path, **options)
    return path


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_columns_are_x_and_rows_are_y(tmp_path: Path, dtype: type) -> None:
    array = counting((ROWS, COLUMNS), dtype) * (1 if dtype == np.uint8 else 2000)
    volume = read_volume(save(tmp_path / "a.png", array))
    assert volume.array.shape == (1, COLUMNS, ROWS, 1) and volume.array.dtype == np.float32
    assert volume.array[0, 5, 2, 0] == array[2, 5]
    assert (
        volume.grid.unit == "px"
        and volume.grid.spacing == (1, 1, 1)
        and read_grid(tmp_path / "a.png").shape == (COLUMNS, ROWS, 1)
    )


def test_colours_without_alpha(tmp_path: Path) -> None:
    array = counting((ROWS, COLUMNS, 4), np.uint8)
    for values in (3, 4):
        volume = read_volume(save(tmp_path / "c.png", array[..., :values]))
        np.testing.assert_array_equal(volume.array[..., 0], array[..., :3].transpose(2, 1, 0))
    grey_alpha = save(tmp_path / "la.png", array[..., :2])
    np.testing.assert_array_equal(read_volume(grey_alpha).array[0, ..., 0], array[..., 0].T)


@pytest.mark.parametrize("values", [2, 3, 4])
def test_sixteen_bit_colours_keep_their_bits(tmp_path: Path, values: int) -> None:
    array = counting((ROWS, COLUMNS, values), np.uint16) * 333
    (tmp_path / "wide.png").write_bytes(imagecodecs.png_encode(array))
    kept = 1 if values == 2 else 3
    np.testing.assert_array_equal(read_volume(tmp_path / "wide.png").array[..., 0], array[..., :kept].transpose(2, 1, 0))


def test_a_palette_is_colours_in_scans_and_indices_in_labels(tmp_path: Path) -> None:
    image = Image.new("P", (COLUMNS, ROWS))
    image.putdata((counting((ROWS, COLUMNS)).ravel() % 3).tolist())
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 10, 20])
    image.save(tmp_path / "p.png")
    assert read_volume(tmp_path / "p.png").array[:, 1, 0, 0].tolist() == [255, 0, 0]
    assert read_volume(tmp_path / "p.png").array[:, 2, 0, 0].tolist() == [0, 10, 20]
    np.testing.assert_array_equal(read_labels(tmp_path / "p.png").array[..., 0], counting((ROWS, COLUMNS)).T % 3)


def test_one_bit_masks_are_0_and_1(tmp_path: Path) -> None:
    array = counting((ROWS, COLUMNS)) % 2 == 1
    labels = read_labels(save(tmp_path / "m.png", array))
    assert labels.array.dtype == np.uint8 and np.array_equal(labels.array[..., 0], array.T)


def test_colour_pictures_are_no_labels(tmp_path: Path) -> None:
    path = save(tmp_path / "c.png", np.zeros((ROWS, COLUMNS, 3), np.uint8))
    with pytest.raises(LabelError, match=r"c\.png is a colour picture"):
        read_labels(path)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_jpeg(tmp_path: Path, mode: str) -> None:
    Image.new(mode, (COLUMNS, ROWS)).save(tmp_path / "j.JPG", "JPEG")
    volume = read_volume(tmp_path / "j.JPG")
    assert volume.array.shape == (1 if mode == "L" else 3, COLUMNS, ROWS, 1)


def test_exif_orientation_is_reported_and_not_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    turned = save(tmp_path / "t.jpg", np.zeros((ROWS, COLUMNS), np.uint8), exif=exif)
    assert read_volume(turned).grid.shape == (COLUMNS, ROWS, 1) == read_grid(turned).shape
    assert "EXIF orientation 6" in geometry_warnings(turned)[0]
    assert geometry_warnings(save(tmp_path / "u.jpg", np.zeros((ROWS, COLUMNS), np.uint8))) == []


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".jpeg"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_labels_are_png_and_lie_on_the_scan(tmp_path: Path, suffix: str, dtype: type) -> None:
    scan = save(tmp_path / f"scan{suffix}", np.zeros((ROWS, COLUMNS), np.uint8))
    path = tmp_path / label_name("p01", scan)
    array = np.zeros((COLUMNS, ROWS, 1), dtype)
    array[6, 1] = 3
    write_labels(path, LabelMap(array, read_grid(scan)), scan)
    assert path.name == "p01.png" and path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    pixels = np.asarray(Image.open(path))
    assert pixels.shape == (ROWS, COLUMNS) and pixels[1, 6] == 3 and pixels.sum() == 3 and pixels.dtype == dtype
    with pytest.raises(OutputError, match=r"call it x\.png"):
        write_labels(tmp_path / "x.jpg", LabelMap(array, read_grid(scan)), scan)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_damage_is_unreadable(tmp_path: Path, suffix: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (60, 50), np.uint8)
    whole = save(tmp_path / f"whole{suffix}", noise).read_bytes()
    path = tmp_path / f"cut{suffix}"
    for kept in (0, 5, 30, len(whole) // 2):
        path.write_bytes(whole[:kept])
        with pytest.raises(UnreadableError, match=rf"cut\{suffix}.*intact copy") as error:
            read_volume(path)
        assert kept > 5 or "cannot identify image file" in str(error.value)


def test_of_a_pair_of_pictures_the_first_is_read(tmp_path: Path) -> None:
    first, second = (Image.new("L", (8, 8), value) for value in (40, 200))
    first.save(tmp_path / "pair.jpg", "MPO", save_all=True, append_images=[second])
    assert np.abs(read_volume(tmp_path / "pair.jpg").array - 40).max() <= 1


def test_a_lenient_library_does_not_make_readers_lenient(tmp_path, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40), np.uint8)).save(tmp_path / "whole.png")
    whole = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "part.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UnreadableError, match=r"part\.png"):
        read_volume(tmp_path / "part.png")


def test_a_flipped_bit_in_a_png_is_noticed(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (60, 50), np.uint8)
    whole = save(tmp_path / "whole.png", noise).read_bytes()
    middle = len(whole) // 2
    (tmp_path / "bit.png").write_bytes(whole[:middle] + bytes([whole[middle] ^ 4]) + whole[middle + 1 :])
    with pytest.raises(UnreadableError, match=r"bit\.png"):
        read_volume(tmp_path / "bit.png")


def test_other_files_by_that_name_and_animations_are_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("L", (3, 3)).save(buffer, "GIF")
    (tmp_path / "gif.png").write_bytes(buffer.getvalue())
    frames = [Image.new("L", (3, 3), value) for value in (0, 90)]
    frames[0].save(tmp_path / "moving.png", save_all=True, append_images=frames[1:])
    for name, reason in (("gif.png", "damaged or no PNG or JPEG"), ("moving.png", "animation of 2")):
        with pytest.raises(UnreadableError, match=reason):
            read_volume(tmp_path / name)
