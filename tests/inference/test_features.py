"""What is measured of a case, on phantoms whose sizes, places and entropies are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from phantoms import LPS_AFFINE, ball
from scipy.special import expit, softmax

from medseg.core.grid import Grid
from medseg.core.labels import LabelScheme, Region, Structure
from medseg.core.volume import LabelMap
from medseg.inference.features import (
    MOST_OF_SLAB,
    Observer,
    coarse_picture,
    describe,
    mask_features,
    resemblance,
    roughness,
    scan_features,
)

TWO = LabelScheme(structures=[Structure(name="liver", id=1), Structure(name="tumour", id=2)])
NESTED = TWO.model_copy(
    update={"regions": [Region(name="organ", structures=["liver", "tumour"]), Region(name="tumour", structures=["tumour"])]}
)
SHAPE, SPACING = (24, 20, 16), (1.0, 1.5, 2.0)


def grid(shape: tuple[int, int, int] = SHAPE, spacing: tuple[float, float, float] = SPACING, physical: bool = True) -> Grid:
    return Grid(shape, np.diag([*spacing, 1.0]), physical)


def scene() -> np.ndarray:
    classes = np.zeros(SHAPE, np.uint8)
    classes[2:8, 4:10, 3:7] = 1
    classes[20:24, 10:12, 8:10] = 2  # on the scan's right face
    classes[12, 12, 12] = 2
    return classes


def test_size_pieces_place_and_cut() -> None:
    found = mask_features(LabelMap(scene(), grid()), grid(), TWO)
    assert found["volume_ml:liver"] == pytest.approx(144 * 3 / 1000)
    assert found["volume_ml:tumour"] == pytest.approx(17 * 3 / 1000)
    assert (found["pieces:liver"], found["pieces:tumour"]) == (1, 2)
    assert [found[f"position:liver:{axis}"] for axis in "xyz"] == pytest.approx([5 / 24, 7 / 20, 5 / 16])
    assert found["cut_share:liver"] == 0
    assert found["cut_share:tumour"] == pytest.approx(4 / (6 * 17 ** (2 / 3)))


def test_the_axes_of_the_file_change_nothing() -> None:
    scan = Grid(SHAPE, LPS_AFFINE)
    canonical = scan.canonical()
    turned = mask_features(LabelMap(scene()[::-1, ::-1].copy(), scan), canonical, TWO)
    plain = mask_features(LabelMap(scene(), canonical), canonical, TWO)
    assert turned == pytest.approx(plain)


def test_a_region_is_all_of_its_structures() -> None:
    found = mask_features(LabelMap(scene(), grid()), grid(), NESTED)
    assert found["volume_ml:organ"] == pytest.approx(161 * 3 / 1000)
    assert (found["pieces:organ"], found["pieces:tumour"]) == (3, 2)


def test_an_absent_structure_has_no_place() -> None:
    found = mask_features(LabelMap(np.zeros(SHAPE, np.uint8), grid()), grid(), TWO)
    assert found["volume_ml:liver"] == found["pieces:liver"] == found["cut_share:liver"] == 0
    assert math.isnan(found["position:liver:x"])


def test_units_of_pictures() -> None:
    square = np.zeros((10, 10, 1), np.uint8)
    square[0:4, 3:8] = 1
    planar = mask_features(LabelMap(square, grid((10, 10, 1), (0.5, 0.5, 3.0))), grid((10, 10, 1), (0.5, 0.5, 3.0)), TWO)
    assert planar["area_mm2:liver"] == pytest.approx(20 * 0.25)
    assert planar["cut_share:liver"] == pytest.approx(5 / (4 * math.sqrt(20)))
    pixels = Grid.pixels((10, 10))
    assert mask_features(LabelMap(square, pixels), pixels, TWO)["volume_px:liver"] == 20
    extents = scan_features(np.random.default_rng(0).normal(size=(1, 10, 10, 1)).astype(np.float32), pixels)
    assert (extents["extent_px:x"], extents["extent_px:y"]) == (10, 10)
    assert math.isnan(extents["extent_px:z"])


def test_intensities_of_each_channel() -> None:
    rng = np.random.default_rng(0)
    image = np.stack([rng.uniform(0, 100, (40, 40, 40)), rng.normal(0, 1, (40, 40, 40))]).astype(np.float32)
    found = scan_features(image, grid((40, 40, 40)))
    for percent in (1, 25, 50, 75, 99):
        assert found[f"intensity_p{percent:02d}:1"] == pytest.approx(percent, abs=1)
    assert found["intensity_p50:2"] == pytest.approx(0, abs=0.05)
    assert "intensity_p50" in scan_features(image[:1], grid((40, 40, 40)))


def test_roughness_tells_noise_from_a_ramp_and_forgives_thick_slices() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(5, 3, (70, 80, 30)).astype(np.float32)
    assert roughness(noise) == pytest.approx(1, abs=0.05)
    ramp = np.add.outer(np.add.outer(np.arange(70.0), np.arange(80.0)), np.zeros(30)).astype(np.float32)
    assert roughness(ramp) < 0.01
    slices = np.broadcast_to(rng.normal(size=30), (70, 80, 30)).astype(np.float32)  # each slice another value
    assert roughness(slices) < 0.01
    assert math.isnan(roughness(np.ones((4, 4, 4), np.float32)))


@pytest.mark.parametrize("shape", [(1, 16, 24, 8), (2, 100, 67, 33), (1, 64, 64, 1), (1, 5, 3, 9)])
def test_a_coarse_picture_of_any_size(shape: tuple[int, ...]) -> None:
    image = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    coarse = coarse_picture(image)
    assert coarse.shape == (shape[0], 8, 8, 8)
    np.testing.assert_allclose(coarse.mean((1, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(coarse.std((1, 2, 3)), 1, atol=1e-3)


def test_a_coarse_picture_is_the_means_of_equal_parts() -> None:
    image = np.random.default_rng(0).normal(size=(1, 16, 24, 8)).astype(np.float32)
    means = image.reshape(1, 8, 2, 8, 3, 8, 1).mean((2, 4, 6))
    np.testing.assert_allclose(coarse_picture(image), (means - means.mean()) / means.std(), rtol=1e-4, atol=1e-5)


def test_turned_over_it_resembles_the_turned_mean() -> None:
    image = ball(SHAPE, (6.0, 10.0, 4.0), 5.0).astype(np.float32)[None]
    mean = coarse_picture(image)
    same, turned = resemblance(coarse_picture(image), mean), resemblance(coarse_picture(image[..., ::-1]), mean)
    assert same["resemblance"] == pytest.approx(1)
    assert same["upright:z"] > 0.3
    assert turned["upright:z"] == pytest.approx(-same["upright:z"], abs=1e-3)
    assert abs(turned["upright:y"]) < 0.1  # the ball lies in the middle there


def entropy_of(logits: np.ndarray, regions: bool) -> np.ndarray:
    if regions:
        p = expit(logits.astype(float))
        return -(p * np.log(p) + (1 - p) * np.log(1 - p))
    p = softmax(logits.astype(float), axis=0)
    return -(p * np.log(p)).sum(0)


@pytest.mark.parametrize("scheme", [TWO, NESTED], ids=["structures", "regions"])
def test_entropy_is_that_of_the_whole_answer_however_it_is_cut_into_slabs(scheme: LabelScheme) -> None:
    logits = np.random.default_rng(0).normal(0, 2, (scheme.n_outputs, *SHAPE)).astype(np.float32)
    whole, parts = Observer(scheme), Observer(scheme)
    whole.add(torch.from_numpy(logits) * 1.7, temperature=1.7)
    for slab in torch.from_numpy(logits).split(5, dim=2):
        parts.add(slab)
    expected = entropy_of(logits, bool(scheme.regions))
    for index, name in enumerate(scheme.measured):
        inside = logits[index] > 0 if scheme.regions else logits.argmax(0) == index + 1
        own = expected[index] if scheme.regions else expected
        assert whole.features()[f"entropy:{name}"] == pytest.approx(own[inside].mean(), rel=1e-4)
    anywhere = (logits > 0).any(0) if scheme.regions else logits.argmax(0) > 0
    assert whole.features()["doubt"] == pytest.approx(expected.sum() / anywhere.sum(), rel=1e-4)
    assert parts.features() == pytest.approx(whole.features(), rel=1e-4, nan_ok=True)


def test_of_a_large_slab_some_lines_stand_for_all() -> None:
    shape = (128, 128, 64)
    assert 3 * math.prod(shape) > 2 * MOST_OF_SLAB
    size = np.indices(shape).sum(0) / 320  # sure in one corner, in doubt in the other
    logits = np.stack([np.zeros(shape), 1 + 4 * size, 4 * size - 1]).astype(np.float32)
    observer = Observer(TWO)
    observer.add(torch.from_numpy(logits))
    assert observer.features()["entropy:liver"] == pytest.approx(entropy_of(logits, False).mean(), rel=0.01)
    assert observer.voxels[0] == pytest.approx(math.prod(shape))


def test_sure_answers_and_no_answers() -> None:
    sure = torch.zeros(3, *SHAPE)
    sure[1] = 200
    observer = Observer(TWO)
    observer.add(sure)
    found = observer.features()
    assert found["entropy:liver"] == pytest.approx(0, abs=1e-6)
    assert math.isnan(found["entropy:tumour"])
    assert math.isnan(found["mirror_dice"])
    assert math.isnan(Observer(TWO).features()["doubt"])


def test_agreement_of_mirrored_answers() -> None:
    plain = torch.zeros(1, 3, 4, 4, 4)
    plain[:, 1, :2] = 5  # liver in 32 voxels
    mirrored = plain.clone()
    mirrored[:, 2, 0] = 9  # half of it is tumour now
    observer = Observer(TWO)
    observer.compare(plain, plain)
    assert observer.features()["mirror_dice"] == 1
    observer = Observer(TWO)
    observer.compare(mirrored, plain)
    assert observer.features()["mirror_dice"] == pytest.approx(0.5)
    regions = Observer(NESTED)
    regions.compare(torch.tensor([1.0, 1.0]).reshape(2, 1, 1, 1), torch.tensor([1.0, -1.0]).reshape(2, 1, 1, 1))
    assert regions.features()["mirror_dice"] == pytest.approx(2 / 3)


def test_all_names_are_always_there() -> None:
    image = np.random.default_rng(0).normal(size=(1, *SHAPE)).astype(np.float32)
    empty = LabelMap(np.zeros(SHAPE, np.uint8), grid())
    mean = coarse_picture(image)
    some = describe(image, grid(), grid(), LabelMap(scene(), grid()), TWO, Observer(TWO), mean)
    assert list(describe(image, grid(), grid(), empty, TWO, Observer(TWO), mean)) == list(some)
    assert [some[f"spacing_mm:{axis}"] for axis in "xyz"] == pytest.approx(SPACING)
    assert [some[f"extent_mm:{axis}"] for axis in "xyz"] == pytest.approx([24, 30, 32])
    assert some["resemblance"] == pytest.approx(1)
    assert "resemblance" not in describe(image, grid(), grid(), empty, TWO)
