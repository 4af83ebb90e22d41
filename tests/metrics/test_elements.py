"""Sizes of surface elements against the table of surface-distance and against solids of known surface."""

from __future__ import annotations

import numpy as np
import pytest

from medseg.metrics.elements import corners, element_sizes, neighbourhood_codes

lookup_tables = pytest.importorskip("surface_distance.lookup_tables")


def _code_of_oracle(code: int, kernel: np.ndarray) -> int:
    return sum(int(kernel[corner]) for bit, corner in enumerate(corners(kernel.ndim)) if code >> bit & 1)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.5, 1.0, 3.0), (2.0, 0.7, 1.3)])
def test_every_surface_element_has_the_area_that_surface_distance_gives_it(spacing):
    oracle = lookup_tables.create_table_neighbour_code_to_surface_area(spacing)
    kernel = lookup_tables.ENCODE_NEIGHBOURHOOD_3D_KERNEL
    assert element_sizes(spacing) == pytest.approx([oracle[_code_of_oracle(code, kernel)] for code in range(256)])


def test_every_contour_element_has_the_length_that_surface_distance_gives_it():
    oracle = lookup_tables.create_table_neighbour_code_to_contour_length((0.5, 3.0))
    kernel = lookup_tables.ENCODE_NEIGHBOURHOOD_2D_KERNEL
    assert element_sizes((0.5, 3.0)) == pytest.approx([oracle[_code_of_oracle(code, kernel)] for code in range(16)])


def test_a_mask_and_its_complement_have_the_same_surface():
    sizes = element_sizes((1.0, 2.0, 3.0))
    assert sizes == pytest.approx(sizes[::-1])


def test_codes_name_the_neighbours():
    codes = neighbourhood_codes(np.ones((1, 1), bool))
    # The one pixel is the last neighbour of the first corner and the first neighbour of the last.
    assert codes.tolist() == [[8, 4], [2, 1]]


@pytest.mark.parametrize("shape", [(5, 7), (5, 4, 6), (3, 1, 2)])
def test_codes_are_those_of_their_definition_in_noise(shape):
    mask = np.random.default_rng(1).random(shape) > 0.5
    padded, codes = np.pad(mask, 1), neighbourhood_codes(mask)
    assert codes.dtype == np.uint8 and codes.shape == tuple(n + 1 for n in shape)
    for place in np.ndindex(codes.shape):
        around = [padded[tuple(np.add(place, corner))] for corner in corners(mask.ndim)]
        assert codes[place] == sum(int(inside) << bit for bit, inside in enumerate(around))


def test_surface_of_a_large_box_is_nearly_that_of_the_box():
    box = np.ones((30, 40, 50), bool)
    spacing = (0.5, 1.0, 2.0)
    area = element_sizes(spacing)[neighbourhood_codes(box)].sum()
    x, y, z = np.array(box.shape) * spacing
    assert area == pytest.approx(2 * (x * y + y * z + x * z), rel=0.02)  # the edges are bevelled
