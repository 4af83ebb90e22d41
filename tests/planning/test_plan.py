from __future__ import annotations

import pytest

from medseg.core.config import parse
from medseg.core.errors import ConfigError, StageError
from medseg.core.labels import LabelScheme
from medseg.data.config import DataConfig
from medseg.planning.config import PlanConfig
from medseg.planning.fingerprint import CaseFingerprint, Fingerprint
from medseg.planning.plan import Plan, make_plan


def case(shape=(180, 180, 100), spacing=(1.0, 1.0, 1.0), physical=True, **changes) -> CaseFingerprint:
    values = {
        "zero_share": 0.0,
        "nonzero_box_share": 1.0,
        "foreground": [[40.0, 20.0, -30.0, 42.0, 110.0]],
        "class_voxels": [1000, 100],
    }
    return CaseFingerprint(shape=shape, spacing=spacing, physical=physical, **(values | changes))


def plan(cases, modality="mr", names=("liver",), **settings) -> Plan:
    scheme = LabelScheme.model_validate({"structures": [{"name": n, "id": i} for i, n in enumerate(names, 1)]})
    fingerprint = Fingerprint(channels=1, physical=cases[0].physical, cases=cases)
    return make_plan(fingerprint, PlanConfig(**settings), scheme, ("image",), modality, {})


def test_the_median_spacing_is_the_target():
    assert plan([case(spacing=(s, s, s)) for s in (0.5, 1.0, 3.0)]).preprocessing.spacing == (1.0, 1.0, 1.0)


def test_a_coarse_axis_is_not_blown_up_to_the_coarsest_scan():
    cases = [case(spacing=(0.8, 0.8, z), shape=(400, 400, 40)) for z in (4.0, 5.0, 6.0)]
    spacing = plan(cases).preprocessing.spacing
    assert spacing is not None and spacing[:2] == (0.8, 0.8) and spacing[2] == pytest.approx(4.2)


def test_pictures_without_a_physical_size_keep_their_pixels_and_make_a_2d_network():
    made = plan([case(shape=(520, 700, 1), physical=False)], "microscopy")
    assert made.preprocessing.spacing is None and made.patch_voxels[2] == 1
    assert made.flips == [0, 1]
    assert made.preprocessing.normalisation[0].clip


def test_a_patch_is_bounded_divisible_and_no_larger_than_a_small_case():
    assert all(n % 8 == 0 for n in plan([case()]).patch_voxels)
    x, y, z = plan([case()]).patch_voxels
    assert x * y * z <= 1.6 * 64**3
    assert plan([case(shape=(36, 50, 35))]).patch_voxels == (40, 56, 40)


def test_ct_is_scaled_by_the_training_foreground():
    rule = plan([case()], "ct").preprocessing.normalisation[0]
    assert (rule.low, rule.high, rule.mean, rule.std) == (-30.0, 110.0, 40.0, 20.0)
    with pytest.raises(ConfigError, match="no training case holds any structure"):
        plan([case(foreground=[])], "ct")


def test_skull_stripped_scans_are_cropped_and_normalised_inside():
    made = plan([case(zero_share=0.6, nonzero_box_share=0.5)])
    assert made.preprocessing.crop_nonzero and made.preprocessing.normalisation[0].nonzero


@pytest.mark.parametrize(
    ("names", "flips"),
    [
        (("liver",), [0, 1, 2]),
        (("left kidney", "right kidney"), [1, 2]),
        (("anterior", "posterior"), [0, 2]),
        (("bright_spot",), [0, 1, 2]),
    ],
)
def test_an_axis_whose_ends_have_names_is_not_mirrored(names, flips):
    made = plan([case()], names=names)
    assert made.flips == flips
    if len(flips) < 3:
        assert "tell its ends apart" in made.reasons["flips"]


def test_stated_values_win_and_every_value_has_a_reason():
    made = plan([case()], spacing_mm=(2, 2, 2), patch_voxels=(32, 32, 32), batch_size=5, flips=[0])
    assert made.preprocessing.spacing == (2, 2, 2)
    assert (made.patch_voxels, made.batch_size, made.flips) == ((32, 32, 32), 5, [0])
    assert {"spacing", "patch_voxels", "batch_size", "flips", "crop_nonzero", "normalisation"} <= set(made.reasons)


def test_the_number_of_modalities_must_fit():
    with pytest.raises(ConfigError, match="names 2 channels and the images have 1"):
        plan([case()], ["mr", "ct"])


def test_a_plan_comes_back_from_its_file(tmp_path):
    made = plan([case()], "ct")
    made.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == made
    with pytest.raises(StageError, match="run `medseg prepare` first"):
        Plan.load(tmp_path / "nothing.json")
    (tmp_path / "plan.json").write_text((tmp_path / "plan.json").read_text().replace('"batch_size"', '"batchsize"'))
    with pytest.raises(ConfigError, match="unknown key `batchsize`"):
        Plan.load(tmp_path / "plan.json")


def test_pictures_without_axes_are_not_mirrored_where_names_tell_sides_apart():
    cases = [case(shape=(520, 700, 1), physical=False)]
    for names in (("left lung", "right lung"), ("upper jaw", "lower jaw")):
        made = plan(cases, names=names)
        assert made.flips == []
        assert "tell sides apart and the files state no axes, so nothing is mirrored" in made.reasons["flips"]
    assert plan(cases, names=("left lung", "right lung"), flips=[1]).flips == [1]
    scheme = LabelScheme.model_validate({"structures": [{"name": "a", "id": 1, "paired_with": "b"}, {"name": "b", "id": 2}]})
    fingerprint = Fingerprint(channels=1, physical=False, cases=cases)
    assert make_plan(fingerprint, PlanConfig(), scheme, ("image",), "other", {}).flips == []


@pytest.mark.parametrize("spacing", [(1, 0, 1), (1, 1, -2), (1, 1, float("nan")), (float("inf"), 1, 1)])
def test_a_spacing_is_positive_and_finite(spacing):
    for section in (PlanConfig, DataConfig):
        with pytest.raises(ConfigError, match=r"x: `spacing_mm\.[012]`"):
            parse(section, {"spacing_mm": spacing}, "x")
