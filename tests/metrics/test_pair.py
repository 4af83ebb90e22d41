"""Structures of a case as pairs: the same from masks that lie in another order in memory."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from medseg.core.grid import Grid
from medseg.metrics.pair import Frame, pair_structures
from medseg.metrics.surface import average_symmetric_surface_distance, hausdorff

MASKS = np.zeros((2, 14, 12, 10), np.uint8)
MASKS[0, 2:9, 3:8, 1:6], MASKS[1, 3:11, 3:9, 2:7] = 1, 1
MASKS[0, 10:13, 9:11, 8:], MASKS[1, 10:14, 8:11, 7:] = 3, 3  # the second structure is in neither
GRID = Grid((14, 12, 10), np.diag([0.8, 1.0, 2.5, 1.0]))


def _pairs(reference, prediction):
    return pair_structures(reference, prediction, GRID, Frame(physical=True, planar=False), [[1], [2], [1, 3]], [1.0] * 3)


@pytest.mark.parametrize("ignored", [False, True])
def test_the_order_in_memory_changes_nothing(ignored):
    reference, prediction = MASKS.copy()
    if ignored:
        reference[:, :, 4] = 255
    expected = _pairs(reference, prediction)
    assert expected[0].box == (slice(2, 11), slice(3, 9), slice(1, 7))
    assert expected[1].box is None and expected[1].distances is None
    for one in (reference, np.asfortranarray(reference)):
        for other in (prediction, np.asfortranarray(prediction)):
            for pair, wanted in zip(_pairs(one, other), expected, strict=True):
                assert (pair.box, pair.counts) == (wanted.box, wanted.counts)
                if wanted.distances is not None:
                    assert pair.distances is not None
                    for figure in (average_symmetric_surface_distance, lambda d: hausdorff(d, 95)):
                        assert figure(pair.distances) == pytest.approx(figure(wanted.distances))


@pytest.mark.parametrize("planar", [False, True])
def test_objects_have_the_numbers_of_their_file_or_are_components(planar):
    reference, prediction = (mask[..., 3:4] if planar else mask for mask in MASKS.copy())
    numbers = np.arange(1, reference.size + 1, dtype=np.uint64).reshape(reference.shape) + np.uint64(2**40)
    reference[4] = 255  # parts what is left of the first structure
    frame, grid = Frame(physical=True, planar=planar), Grid(reference.shape, np.eye(4))
    (pair,) = pair_structures(reference, prediction, grid, frame, [[1]], [1.0])
    inside, found = pair.masks(pair.box)
    of_reference, of_prediction = pair.objects()
    assert set(np.unique(of_reference)) == {0, 1, 2} and set(np.unique(of_prediction)) == {0, 1, 2}
    numbered = replace(pair, reference_numbers=numbers, prediction_numbers=numbers)
    whole = (numbers[..., 0], reference[..., 0]) if planar else (numbers, reference)
    of_reference, of_prediction = numbered.objects()
    assert of_reference.dtype == np.uint64 and of_reference.shape == inside.shape
    assert (of_reference[inside] == whole[0][whole[1] == 1]).all() and not of_reference[~inside].any()
    assert ((of_prediction > 0) == found).all()
    half = replace(pair, reference_numbers=numbers)
    assert (half.objects()[0] == of_reference).all() and (half.objects()[1] == pair.objects()[1]).all()
