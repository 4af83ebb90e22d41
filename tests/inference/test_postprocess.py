"""Postprocessing of masks: pieces with known sizes, in voxels and in millimetres, alone and in regions."""

from __future__ import annotations

import numpy as np
import pytest
from skimage.measure import label as skimage_label

from medseg.core.grid import Grid
from medseg.core.labels import LabelScheme, Region, Structure
from medseg.inference.postprocess import Postprocessing, Rule, beneath, from_large_to_small, postprocess

SCHEME = LabelScheme(structures=[Structure(name="liver", id=3), Structure(name="tumour", id=300)])
TUMOURS = LabelScheme(
    structures=[Structure(name=n, id=i) for i, n in enumerate(("necrosis", "oedema", "enhancing"), start=1)],
    regions=[
        Region(name="enhancing_tumour", structures=["enhancing"]),
        Region(name="whole", structures=["oedema", "necrosis", "enhancing"]),
        Region(name="core", structures=["necrosis", "enhancing"]),
    ],
)
VOXELS = Grid.pixels((12, 10, 8))


def rules(**of_names: Rule) -> Postprocessing:
    return Postprocessing(rules=of_names)


def three_pieces() -> np.ndarray:
    """Livers of 27, 8 and 1 voxels, and a tumour of 8 that touches the first."""
    classes = np.zeros((12, 10, 8), np.uint8)
    classes[0:3, 0:3, 0:3] = 1
    classes[6:8, 0:2, 0:2] = 1
    classes[10, 8, 6] = 1
    classes[3:5, 0:2, 0:2] = 2
    return classes


def test_only_the_largest_piece_stays() -> None:
    classes = three_pieces()
    before = classes.copy()
    result = postprocess(classes, rules(liver=Rule(keep_largest=True)), SCHEME, VOXELS)
    assert result.dtype == np.uint8
    assert (result == 1).sum() == 27
    assert (result[0:3, 0:3, 0:3] == 1).all()
    np.testing.assert_array_equal(result == 2, classes == 2)
    np.testing.assert_array_equal(classes, before)


@pytest.mark.parametrize(("least", "voxels"), [(0, 36), (1, 36), (2, 35), (8, 35), (8.5, 27), (27, 27), (28, 0)])
def test_pieces_below_a_size_go(least: float, voxels: int) -> None:
    result = postprocess(three_pieces(), rules(liver=Rule(smallest_volume=least)), SCHEME, VOXELS)
    assert (result == 1).sum() == voxels
    assert (result == 2).sum() == 8


def test_the_largest_piece_goes_too_where_it_is_small() -> None:
    both = Rule(keep_largest=True, smallest_volume=20)
    assert (postprocess(three_pieces(), rules(liver=both), SCHEME, VOXELS) == 1).sum() == 27
    assert not (postprocess(three_pieces(), rules(tumour=both), SCHEME, VOXELS) == 2).any()


def test_sizes_are_volumes_not_voxels() -> None:
    turned = np.eye(4)
    turned[:3, :3] = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0] * (0.5, 0.5, 2.0)
    fine = Grid((12, 10, 8), turned)  # voxels of 0.5 mm3
    assert (postprocess(three_pieces(), rules(liver=Rule(smallest_volume=4)), SCHEME, fine) == 1).sum() == 35
    assert (postprocess(three_pieces(), rules(liver=Rule(smallest_volume=4.1)), SCHEME, fine) == 1).sum() == 27


def test_corners_connect_in_a_volume_and_in_a_picture() -> None:
    volume = np.zeros((4, 4, 4), np.uint8)
    volume[0, 0, 0] = volume[1, 1, 1] = volume[2, 2, 2] = 1
    assert postprocess(volume, rules(liver=Rule(keep_largest=True)), SCHEME, Grid.pixels((4, 4, 4))).sum() == 3
    picture = np.zeros((5, 5, 1), np.uint8)
    picture[0, 0] = picture[1, 1] = picture[4, 4] = 1
    assert postprocess(picture, rules(liver=Rule(keep_largest=True)), SCHEME, Grid.pixels((5, 5, 1))).sum() == 2


def test_agrees_with_scikit_image_on_noise() -> None:
    classes = (np.random.default_rng(1).random((30, 28, 20)) < 0.12).astype(np.uint8)
    pieces = skimage_label(classes, connectivity=3)
    counts = np.bincount(pieces.ravel())
    counts[0] = 0
    expected = np.isin(pieces, np.flatnonzero(counts >= 5))
    grid = Grid.pixels(classes.shape)
    np.testing.assert_array_equal(postprocess(classes, rules(liver=Rule(smallest_volume=5)), SCHEME, grid) == 1, expected)
    largest = postprocess(classes, rules(liver=Rule(keep_largest=True)), SCHEME, grid)
    np.testing.assert_array_equal(largest == 1, pieces == counts.argmax())


def test_an_absent_structure_and_an_empty_mask() -> None:
    both = rules(liver=Rule(keep_largest=True), tumour=Rule(smallest_volume=3))
    assert not postprocess(np.zeros((4, 4, 4), np.uint8), both, SCHEME, Grid.pixels((4, 4, 4))).any()
    only = np.zeros((4, 4, 4), np.uint8)
    only[0, 0, 0] = 2
    assert not postprocess(only, both, SCHEME, Grid.pixels((4, 4, 4))).any()


def test_regions_go_through_from_large_to_small() -> None:
    assert from_large_to_small(TUMOURS, TUMOURS.measured) == ["whole", "core", "enhancing_tumour"]
    assert [beneath(TUMOURS, n) for n in ("whole", "core", "enhancing_tumour")] == [0, 2, 1]


def test_a_piece_of_a_region_becomes_the_region_around_it() -> None:
    classes = np.zeros((12, 10, 8), np.uint8)
    classes[0:8, 0:8, 0:6] = 2  # oedema
    classes[1:4, 1:4, 1:4] = 1  # a core of 27 with
    classes[2, 2, 2] = 3  # one enhancing voxel,
    classes[6, 6, 4] = 3  # and a core of one
    classes[11, 9, 7] = 3  # and a whole tumour of one
    grid = VOXELS
    largest = Rule(keep_largest=True)
    result = postprocess(classes, rules(whole=largest), TUMOURS, grid)
    assert result[11, 9, 7] == 0
    assert result[6, 6, 4] == 3
    result = postprocess(classes, rules(core=largest), TUMOURS, grid)
    assert result[6, 6, 4] == 2
    assert result[2, 2, 2] == 3
    result = postprocess(classes, rules(enhancing_tumour=Rule(smallest_volume=2)), TUMOURS, grid)
    assert result[2, 2, 2] == result[6, 6, 4] == 1
    assert result[11, 9, 7] == 1


def test_a_region_written_as_part_of_a_smaller_one_leaves_background() -> None:
    scheme = LabelScheme(
        structures=[Structure(name="a", id=1), Structure(name="b", id=2)],
        regions=[
            Region(name="both", structures=["a", "b"], written_as="a"),
            Region(name="one", structures=["a"]),
            Region(name="other", structures=["b"]),
        ],
    )
    assert beneath(scheme, "other") == 0


def test_rules_are_checked_and_told() -> None:
    with pytest.raises(ValueError, match="greater than or equal to 0"):
        Rule(smallest_volume=-1)
    with pytest.raises(ValueError, match="at least 1"):
        Postprocessing(rules={})
    assert Rule(keep_largest=True, smallest_volume=12.5).text("mm3") == "its largest piece only, no piece below 12.5 mm3"
    assert Rule().text("mm3") == "unchanged"
