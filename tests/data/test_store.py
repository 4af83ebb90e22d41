from __future__ import annotations

import numpy as np
import pytest

from medseg.core.errors import StageError
from medseg.core.labels import IGNORE
from medseg.data.store import MOST_COORDINATES, Contents, PreparedStore, foreground_coordinates


def test_a_case_comes_back_as_it_was_stored(tmp_path):
    image = np.random.default_rng(0).random((2, 5, 6, 7), np.float32)
    classes = np.zeros((5, 6, 7), np.uint8)
    classes[1, 2, 3], classes[4, 5, 6], classes[0, 0, 0] = 1, 2, 255
    store = PreparedStore(tmp_path)
    store.write("p01", "key", image, classes)
    case = store.open("p01")
    np.testing.assert_array_equal(case.image, image)
    np.testing.assert_array_equal(case.classes, classes)
    assert case.image.dtype == np.float32 and isinstance(case.image, np.memmap)
    assert {k: v.tolist() for k, v in case.foreground.items()} == {1: [[1, 2, 3]], 2: [[4, 5, 6]]}
    assert store.key("p01") == "key"
    loaded = store.open("p01", in_memory=True)
    assert not isinstance(loaded.image, np.memmap) and not isinstance(loaded.classes, np.memmap)
    np.testing.assert_array_equal(loaded.image, image)
    np.testing.assert_array_equal(loaded.classes, classes)


def test_contents_are_told_without_the_arrays(tmp_path):
    classes = np.zeros((5, 6, 7), np.uint8)
    classes[1, 2, 3], classes[4, 5, 6] = 2, 1
    store = PreparedStore(tmp_path)
    store.write("p01", "key", np.zeros((2, 5, 6, 7), np.float32), classes)
    for name in ("image.npy", "classes.npy"):
        (tmp_path / "p01" / name).unlink()
    assert store.contents("p01") == Contents((2, 5, 6, 7), (1, 2), True)
    assert store.contents("p01").n_bytes == 5 * 6 * 7 * (2 * 4 + 1)
    (tmp_path / "p01" / "case.json").write_text('{"key": "key", "shape": "wide"}')
    (tmp_path / "p01" / "foreground.npz").unlink()
    with pytest.raises(StageError, match=r"p01: the prepared case is missing or damaged"):
        store.contents("p01")


def test_annotated_voxels_are_kept_where_others_are_ignored(tmp_path):
    store = PreparedStore(tmp_path)
    sparse = np.full((4, 4, 4), IGNORE, np.uint8)
    sparse[0, 1, 2], sparse[3, 3, 3] = 0, 1
    for case_id, classes in {"sparse": sparse, "none": np.full_like(sparse, IGNORE), "whole": np.zeros_like(sparse)}.items():
        store.write(case_id, "key", np.zeros((1, 4, 4, 4), np.float32), classes)
    case = store.open("sparse")
    assert case.annotated is not None and case.annotated.tolist() == [[0, 1, 2], [3, 3, 3]]
    assert list(case.foreground) == [1] and store.contents("sparse") == Contents((1, 4, 4, 4), (1,), True)
    assert store.contents("none") == Contents((1, 4, 4, 4), (), False) and store.open("none").annotated.shape == (0, 3)
    assert store.open("whole").annotated is None and store.contents("whole").annotated


def test_what_a_kill_left_is_cleared_away(tmp_path):
    store = PreparedStore(tmp_path)
    (tmp_path / "p01").mkdir()
    (tmp_path / "p01" / ".0123abcd.image.npy").write_bytes(b"half")
    store.write("p01", "key", np.zeros((1, 4, 4, 4), np.float32), np.zeros((4, 4, 4), np.uint8))
    assert sorted(path.name for path in (tmp_path / "p01").iterdir()) == [
        "case.json",
        "classes.npy",
        "foreground.npz",
        "image.npy",
    ]


def test_a_case_that_is_not_whole_is_not_there(tmp_path):
    store = PreparedStore(tmp_path)
    assert store.key("p01") is None
    with pytest.raises(StageError, match=r"p01: the prepared case is missing or damaged .* `medseg prepare`"):
        store.open("p01")
    store.write("p01", "key", np.zeros((1, 4, 4, 4), np.float32), np.zeros((4, 4, 4), np.uint8))
    (tmp_path / "p01" / "image.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(StageError, match="missing or damaged"):
        store.open("p01")


@pytest.mark.parametrize("name", ["image.npy", "foreground.npz", "case.json"])
@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 cut short"])
def test_a_case_that_was_being_written_again_is_damaged(tmp_path, name, content):
    store = PreparedStore(tmp_path)
    store.write("p01", "key", np.zeros((1, 4, 4, 4), np.float32), np.zeros((4, 4, 4), np.uint8))
    if content is None:
        (tmp_path / "p01" / name).unlink()
    else:
        (tmp_path / "p01" / name).write_bytes(content)
    with pytest.raises(StageError, match="missing or damaged"):
        store.open("p01")


def test_coordinates_are_bounded_and_the_same_every_time():
    classes = np.ones((40, 40, 40), np.uint8)
    first, second = foreground_coordinates(classes), foreground_coordinates(classes)
    assert len(first[1]) == MOST_COORDINATES
    np.testing.assert_array_equal(first[1], second[1])
