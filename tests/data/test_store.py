from __future__ import annotations

import numpy as np
import pytest

from medseg.core.errors import StageError
from medseg.data.store import MOST_COORDINATES, PreparedStore, foreground_coordinates


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
