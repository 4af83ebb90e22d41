"""Connected components that are numbered slab by slab, beside those of the whole mask at once."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from medseg.core.components import Components, box_of, boxes_of, mask_of, number_components


@pytest.mark.parametrize("density", [0.02, 0.08, 0.2, 0.6])
@pytest.mark.parametrize("slab_voxels", [1, 300, 1500, 10**6])
def test_slabs_give_the_numbers_of_the_whole(density: float, slab_voxels: int) -> None:
    mask = np.random.default_rng(3).random((23, 17, 14)) < density
    expected, count = ndimage.label(mask, np.ones((3, 3, 3)))
    found = Components(mask, slab_voxels)
    assert len(found) == count
    np.testing.assert_array_equal(found.numbers(), expected)
    np.testing.assert_array_equal(found.counts, np.bincount(expected.ravel())[1:])


@pytest.mark.parametrize("slab_voxels", [1, 60, 10**6])
def test_a_snake_through_all_slabs_is_one(slab_voxels: int) -> None:
    """It goes up and down again, so that two parts of a slab are one through another."""
    mask = np.zeros((12, 6, 6), bool)
    mask[:, 0, 0] = mask[:, 4, 4] = True
    mask[-1, range(5), range(5)] = True
    assert Components(mask, slab_voxels).counts.tolist() == [12 + 12 + 3]


@pytest.mark.parametrize("shape", [(0, 0, 0), (3, 0, 2), (4, 5, 1), (1, 1, 1)])
def test_nothing_has_no_components(shape: tuple[int, int, int]) -> None:
    found = Components(np.zeros(shape, bool), 4)
    assert len(found) == 0 and found.numbers().shape == shape
    assert all(not numbers.any() for _, numbers in found.slabs())


def test_the_mask_of_a_region_in_the_box_around_it() -> None:
    classes = np.zeros((9, 8, 7), np.uint8)
    classes[1, 2, 3], classes[6, 5, 4], classes[8, 7, 6] = 1, 3, 2
    box, mask = mask_of(classes, [1, 3], boxes_of(classes))
    assert box == (slice(1, 7), slice(2, 6), slice(3, 5)) and np.argwhere(mask).tolist() == [[0, 0, 0], [5, 3, 1]]
    assert mask_of(classes, [4], boxes_of(classes))[1].shape == (0, 0, 0)


@pytest.mark.parametrize("ndim", [2, 3])
def test_voxels_that_touch_at_a_corner_are_one_component(ndim):
    mask = np.zeros((4,) * ndim, bool)
    mask[(0,) * ndim] = mask[(1,) * ndim] = mask[(3,) * ndim] = True
    numbers, count = number_components(mask)
    assert count == 2 and numbers[mask].tolist() == [1, 1, 2] and numbers[~mask].max() == 0
    assert number_components(~mask & mask)[1] == 0


def test_the_box_around_a_mask():
    mask = np.zeros((5, 6), bool)
    assert box_of(mask) is None
    mask[1, 2] = mask[3, 4] = True
    assert box_of(mask) == (slice(1, 4), slice(2, 5)) == box_of(np.asfortranarray(mask))
