from __future__ import annotations

import json
import math

import numpy as np
import pytest

from medseg.core.config import parse
from medseg.core.errors import ConfigError, StageError
from medseg.core.labels import LabelScheme
from medseg.data.config import DataConfig
from medseg.models.cost import step_cost
from medseg.planning.config import PlanConfig
from medseg.planning.edited import edited_plan, values_of
from medseg.planning.fingerprint import CaseFingerprint, Fingerprint, Intensities, intensities, pooled
from medseg.planning.machine import Granted, granted_here
from medseg.planning.plan import Plan, make_plan


def liver_voxels(mean=40.0, std=20.0, low=-30.0, high=110.0) -> Intensities:
    return Intensities(mean=mean, std=std, quantiles=np.linspace(low, high, 100).tolist())


def case(shape=(180, 180, 100), spacing=(1.0, 1.0, 1.0), physical=True, **changes) -> CaseFingerprint:
    values = {
        "zero_share": 0.0,
        "nonzero_box_share": 1.0,
        "nonzero_shape": shape,
        "foreground": [liver_voxels()],
        "class_voxels": [1000, 100],
    }
    return CaseFingerprint(shape=shape, spacing=spacing, physical=physical, **(values | changes))


CPU, GPU = Granted(), Granted(device="gpu", memory_gb=10)
TINY = {"unet": {"architecture": "unet", "options": {"features": [4, 8], "deep_supervision": False}}}
UNET = {"unet": {"architecture": "unet", "options": {}}}


def scheme_of(names=("liver",), pairs=(), **more) -> LabelScheme:
    partner = dict(pairs)
    structures = [{"name": n, "id": i, "paired_with": partner.get(n)} for i, n in enumerate(names, 1)]
    return LabelScheme.model_validate({"structures": structures, **more})


def plan(cases, modality="mr", names=("liver",), granted=CPU, models=TINY, scheme=None, start=None, **settings) -> Plan:
    fingerprint = Fingerprint(channels=1, physical=cases[0].physical, cases=cases)
    scheme = scheme or scheme_of(names)
    return make_plan(fingerprint, PlanConfig(**settings), scheme, ("image",), modality, models, granted, start)


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


def test_ct_intensities_are_those_of_all_cases_voxels_together():
    rng = np.random.default_rng(0)
    voxels = [rng.normal(mean, 10, 20_000).astype(np.float32) for mean in (0, 60, 200)]
    together = np.concatenate(voxels)
    mean, std, low, high = pooled([intensities(v) for v in voxels])
    assert (mean, std) == pytest.approx((together.mean(), together.std()), rel=1e-3)
    assert (low, high) == pytest.approx(np.percentile(together, [0.5, 99.5]), abs=1.5)
    rule = plan([case(foreground=[intensities(v)]) for v in voxels], "ct").preprocessing.normalisation[0]
    assert (rule.low, rule.high, rule.mean, rule.std) == (low, high, mean, std)


def test_skull_stripped_scans_are_cropped_and_normalised_inside():
    made = plan([case(zero_share=0.6, nonzero_box_share=0.5)])
    assert made.preprocessing.crop_nonzero and made.preprocessing.normalisation[0].nonzero


@pytest.mark.parametrize(
    ("names", "flips"),
    [
        (("liver",), [0, 1, 2]),
        (("left kidney", "right kidney"), [1, 2]),
        (("anterior", "posterior"), [0, 2]),
        (("bright_spot", "cleft"), [0, 1, 2]),
        (("LeftLung",), [1, 2]),
        (("kidney_L", "kidney_R"), [1, 2]),
        (("leftkidney",), [1, 2]),
        (("kidneyright", "spleen"), [1, 2]),
        (("lh_hippocampus",), [1, 2]),
        (("Lung_Rt",), [1, 2]),
        (("hippocampusAnterior",), [0, 2]),
        (("vertebra_L3", "r2"), [0, 1, 2]),
    ],
)
def test_an_axis_whose_ends_have_names_is_not_mirrored(names, flips):
    made = plan([case()], names=names)
    assert made.flips == flips
    if len(flips) < 3:
        assert "tells its ends apart" in made.reasons["flips"]


def test_stated_values_win_and_every_value_has_a_reason():
    made = plan([case()], spacing_mm=(2, 2, 2), patch_voxels=(32, 32, 32), batch_size=5, flips=[0])
    assert made.preprocessing.spacing == (2, 2, 2)
    assert (made.patch_voxels, made.batch_size, made.flips) == ((32, 32, 32), 5, [0])
    assert {"spacing", "patch_voxels", "batch_size", "flips", "crop_nonzero", "normalisation"} <= set(made.reasons)
    rules = [{"kind": "fixed", "low": 0, "high": 9, "mean": 4, "std": 2}]
    made = plan([case()], crop_nonzero=True, order=1, normalisation=rules)
    assert (made.preprocessing.crop_nonzero, made.preprocessing.order, made.preprocessing.normalisation[0].high) == (True, 1, 9)
    assert all(made.reasons[key] == "stated in the configuration" for key in ("crop_nonzero", "order", "normalisation"))
    with pytest.raises(ConfigError, match="has 2 rules and the images have 1 channels"):
        plan([case()], normalisation=rules * 2)


def test_a_region_named_after_a_side_keeps_that_axis_too():
    regions = [{"name": "left_lung", "structures": ["lobe1"]}, {"name": "lungs", "structures": ["lobe1", "lobe2"]}]
    made = plan([case()], scheme=scheme_of(("lobe1", "lobe2"), regions=regions))
    assert made.flips == [1, 2] and "left_lung" in made.reasons["flips"]


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
        assert "or pairs tell sides apart and the files state no axes, so nothing is mirrored" in made.reasons["flips"]
    assert plan(cases, names=("left lung", "right lung"), flips=[1]).flips == [1]
    paired = scheme_of(("a", "b"), [("a", "b"), ("b", "a")])
    assert plan(cases, scheme=paired).flips == []


def test_paired_structures_change_places_and_the_axis_is_mirrored():
    names = ("left kidney", "right kidney", "liver", "LEFT_LUNG", "RIGHT_LUNG")
    pairs = [(names[0], names[1]), (names[1], names[0]), (names[3], names[4]), (names[4], names[3])]
    made = plan([case()], scheme=scheme_of(names, pairs))
    assert (made.flips, made.swaps) == ([0, 1, 2], [(1, 2), (4, 5)])
    assert (
        "paired structures changing places" in made.reasons["flips"] and "left kidney and right kidney" in made.reasons["swaps"]
    )
    half = plan([case()], scheme=scheme_of(names, pairs[:2]))
    assert half.flips == [1, 2] and "LEFT_LUNG" in half.reasons["flips"] and "no pair is declared" in half.reasons["flips"]
    regions = [{"name": "organs", "structures": list(names)}]
    assert plan([case()], scheme=scheme_of(names, pairs, regions=regions)).flips == [1, 2]


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([("a", "b")], "`a` is paired_with `b`, and `b` with `nothing`"),
        ([("a", "b"), ("b", "c"), ("c", "b")], "`a` is paired_with `b`, and `b` with `c`"),
        ([("a", "a")], "`a` is paired_with itself"),
    ],
)
def test_pairs_that_contradict_each_other_are_an_error(pairs, message):
    with pytest.raises(ConfigError, match=message):
        plan([case()], scheme=scheme_of(("a", "b", "c"), pairs))


@pytest.mark.parametrize("spacing", [(1, 0, 1), (1, 1, -2), (1, 1, float("nan")), (float("inf"), 1, 1)])
def test_a_spacing_is_positive_and_finite(spacing):
    for section in (PlanConfig, DataConfig):
        with pytest.raises(ConfigError, match=r"x: `spacing_mm\.[012]`"):
            parse(section, {"spacing_mm": spacing}, "x")


def test_the_voxels_of_each_class_are_summed():
    assert plan([case(), case(class_voxels=[10, 1])]).class_voxels == [1010, 101]


def test_distant_slices_are_interpolated_linearly():
    thick = plan([case(spacing=(0.8, 0.8, 4.0), shape=(400, 400, 40))])
    assert thick.preprocessing.order == (3, 3, 1) and "rings between distant slices" in thick.reasons["order"]
    assert plan([case(spacing=(4.0, 0.8, 0.8), shape=(40, 400, 400))]).preprocessing.order == (1, 3, 3)
    assert plan([case()]).preprocessing.order == 3


def test_a_stack_of_few_slices_gets_a_2d_network():
    made = plan([case(shape=(300, 280, 6), spacing=(1, 1, 8))])
    assert made.patch_voxels[2] == 1 and min(made.patch_voxels[:2]) > 100
    assert "2D, one voxel thick along the inferior-superior axis" in made.reasons["dimensions"]
    assert plan([case(shape=(5, 280, 300))]).patch_voxels[0] == 1
    assert plan([case(shape=(300, 280, 6))], patch_voxels=(64, 64, 8)).patch_voxels == (64, 64, 8)
    assert plan([case(shape=(300, 280, 8))]).patch_voxels[2] == 8


def test_a_patch_nears_a_cube_in_millimetres():
    x, y, z = plan([case(shape=(400, 400, 100), spacing=(0.5, 0.5, 2.0))]).patch_voxels
    assert abs(x - y) <= 8 and 3 <= x / z <= 5


def test_a_crop_makes_the_patch_of_what_is_left():
    made = plan([case(nonzero_box_share=0.2, nonzero_shape=(40, 48, 32))])
    assert made.patch_voxels == (40, 48, 32)


def memory_of(made: Plan) -> float:
    model = made.models["unet"]
    cost = step_cost("unet", model["options"], in_channels=1, n_outputs=2, patch_voxels=made.patch_voxels)
    return cost.memory_gb(made.batch_size)


def test_memory_decides_on_a_gpu():
    """As in nnU-Net: the largest patch of which two fit, and no more of them than fit or than 5 % of all voxels."""
    large = [case(shape=(512, 512, 300))] * 20
    made = plan(large, granted=GPU, models=UNET)
    less = plan(large, granted=Granted(device="gpu", memory_gb=3), models=UNET)
    assert made.batch_size == 2 and 5 < memory_of(made) <= 10
    assert memory_of(less) <= 3 and np.prod(less.patch_voxels) < np.prod(made.patch_voxels) / 2
    small = plan([case(shape=(36, 50, 35))] * 100, granted=GPU, models=UNET)
    assert small.patch_voxels == (40, 56, 40)
    assert small.batch_size == int(0.05 * 100 * 36 * 50 * 35 / (40 * 56 * 40))
    assert plan([case(shape=(36, 50, 35))] * 3, granted=GPU, models=UNET).batch_size == 2
    many = plan([case(shape=(36, 50, 35))] * 10_000, granted=GPU, models=UNET)
    assert memory_of(many) <= 10 < memory_of(many.model_copy(update={"batch_size": many.batch_size + 1}))


def test_time_decides_the_width_on_a_cpu():
    def widths(minutes: float | None, **settings) -> list[int]:
        granted = Granted(cores=2, minutes=minutes)
        return plan([case(shape=(64, 64, 64))], granted=granted, models=UNET, **settings).models["unet"]["options"]["features"]

    firsts = [widths(minutes)[0] for minutes in (1, 20, 60, 600)]
    assert firsts == sorted(firsts) and firsts[0] == 8 and firsts[-1] == 32 and len(set(firsts)) > 2
    assert widths(None) == [32, 64, 128, 256, 320]  # epochs: time is no limit
    assert widths(600, patch_voxels=(64, 64, 1)) == [32, 64, 128, 256, 512]
    assert widths(1) == [8, 16, 32, 64, 128]


def test_memory_narrows_a_network_whose_patch_and_batch_are_stated():
    made = plan([case()], granted=Granted(memory_gb=1), models=UNET, patch_voxels=(64, 64, 64), batch_size=2)
    assert made.models["unet"]["options"]["features"][0] < 32 and memory_of(made) <= 1
    assert "the widest that fits" in made.reasons["models.unet"] and "of the 1 granted" in made.reasons["models.unet"]
    none = plan([case()], granted=Granted(memory_gb=0.01), models=UNET, patch_voxels=(64, 64, 64), batch_size=2)
    assert "although it does not fit" in none.reasons["models.unet"]


BOTH = UNET | {"fcn8s": {"architecture": "fcn8s", "options": {"depth": 11}}}


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_networks_become_narrower_before_the_patch_shrinks_further(device):
    pictures = [case(shape=(512, 512, 1), physical=False)] * 30
    made = plan(pictures, granted=Granted(device=device, memory_gb=2), models=BOTH)
    assert made.patch_voxels == (248, 248, 1)
    assert 0.25 < made.models["fcn8s"]["options"]["width"] < 1 and "the widest that fits" in made.reasons["models.fcn8s"]
    assert "at most 65536 voxels" in made.reasons["patch_voxels"] and "fit into 2 GB" in made.reasons["patch_voxels"]
    less = plan(pictures, granted=Granted(device=device, memory_gb=0.22), models=BOTH)
    assert max(less.patch_voxels) < 248 and less.batch_size == 2
    assert (
        less.models["fcn8s"]["options"]["width"] == 0.25 and "fit into 0.22 GB with the narrowest" in less.reasons["patch_voxels"]
    )
    none = plan(pictures, granted=Granted(device=device, memory_gb=0.1), models=BOTH)
    assert none.patch_voxels == (8, 8, 1)
    assert "even the narrowest do not fit into 0.1 GB" in none.reasons["patch_voxels"]


def test_a_patch_is_not_made_too_small_for_the_stated_stages():
    stated = {"unet": {"architecture": "unet", "options": {"features": [32, 64, 128, 256, 512, 512]}}}
    made = plan([case(shape=(512, 512, 1))], granted=Granted(memory_gb=0.3), models=stated)
    assert 64 < made.patch_voxels[0] < 248 and "do not fit into 0.3 GB" in made.reasons["patch_voxels"]


def test_stated_sizes_of_networks_win():
    models = {
        "unet": {"architecture": "unet", "options": {"features": [5, 10]}},
        "fcn": {"architecture": "fcn8s", "options": {"width": 0.25}},
        "free": {"architecture": "fcn8s", "options": {}},
    }
    made = plan([case(shape=(40, 40, 40))], granted=Granted(minutes=1), models=models)
    assert made.models["unet"]["options"]["features"] == [5, 10]
    assert made.models["fcn"]["options"]["width"] == 0.25
    assert made.models["free"]["options"]["width"] == 0.375 * 0.25
    assert "stated in the configuration" in made.reasons["models.unet"] and "stated" in made.reasons["models.fcn"]


def test_every_value_has_a_reason_and_the_same_data_give_the_same_plan():
    made = plan([case()], granted=Granted(minutes=10, cores=2), models=UNET)
    assert set(made.reasons) == set(values_of(made)) - {"physical", "n_channels", "reasons"} | {"dimensions"}
    assert all(made.reasons.values())
    assert made == plan([case()], granted=Granted(minutes=10, cores=2), models=UNET)


def start_plan(**changes) -> Plan:
    model = {"big": {"architecture": "unet", "options": {"features": [6, 12, 24]}}}
    made = plan([case()], "ct", models=model, patch_voxels=(32, 24, 16), batch_size=3, spacing_mm=(2, 2, 2))
    return made.model_copy(update=changes)


def test_fine_tuning_takes_over_what_its_weights_were_made_for():
    made = plan([case(spacing=(1, 1, 1))], "mr", models=UNET, start=start_plan())
    assert made.preprocessing == start_plan().preprocessing
    assert (made.patch_voxels, made.batch_size) == ((32, 24, 16), 3)
    assert made.models["unet"]["options"]["features"] == [6, 12, 24]
    for key in ("spacing", "normalisation", "crop_nonzero", "order", "patch_voxels", "batch_size"):
        assert made.reasons[key] == "as the model that the training starts from", key
    assert "as the model that the training starts from" in made.reasons["models.unet"]
    stated = {"unet": {"architecture": "unet", "options": {"features": [4, 8]}}}
    mixed = plan([case()], models=stated, start=start_plan(), patch_voxels=(16, 16, 16), spacing_mm=(3, 3, 3))
    assert mixed.patch_voxels == (16, 16, 16) and mixed.preprocessing.spacing == (3, 3, 3)
    assert mixed.models["unet"]["options"]["features"] == [4, 8]
    assert mixed.reasons["spacing"] == mixed.reasons["patch_voxels"] == "stated in the configuration"


def test_fine_tuning_keeps_what_the_configuration_states():
    model = {"architecture": "unet", "options": {"dropout": 0.2, "convs_per_stage": 3}}
    start = start_plan(models={"big": {"architecture": "unet", "options": {"features": [6, 12], "dropout": 0.1}}})
    asked = {"unet": {"architecture": "unet", "options": {"dropout": 0.3, "features": None, "convs_per_stage": 2}}}
    options = plan([case()], models=asked, start=start).models["unet"]["options"]
    assert (options["features"], options["dropout"]) == ([6, 12], 0.3)
    made = plan([case()], models=asked, start=start_plan(models={"big": model | {"options": {"convs_per_stage": 3}}}))
    assert made.models["unet"]["options"]["convs_per_stage"] == 3
    assert "(dropout stated in the configuration)" in made.reasons["models.unet"]


def test_fine_tuning_takes_the_layers_that_pretrained_weights_asked_for():
    network = {"architecture": "fcn8s", "options": {"weights": "vgg16.pth", "width": 0.125, "head_width": 16}}
    start = start_plan(models={"big": network}, patch_voxels=(64, 64, 1))
    asked = {"fcn": {"architecture": "fcn8s", "options": {}}}
    options = plan([case(shape=(90, 90, 1))], models=asked, start=start).models["fcn"]["options"]
    assert (options["weights"], options["width"], options["head_width"]) == ("vgg16.pth", 0.125, 16)


def test_fine_tuning_needs_the_same_architecture():
    models = UNET | {"fcn8s": {"architecture": "fcn8s", "options": {"width": 0.125}}}
    with pytest.raises(ConfigError, match=r"models\.fcn8s: `training\.init_from` is a unet, .* leave fcn8s out of `models`"):
        plan([case()], models=models, start=start_plan())


def test_fine_tuning_needs_scans_of_the_same_kind():
    with pytest.raises(ConfigError, match=r"`init_from` is a model for 2 channels \(image\) and these scans have 1"):
        plan([case()], start=start_plan(n_channels=2))
    with pytest.raises(ConfigError, match=r"`init_from` takes the channels t1 and the manifest has image; order and name"):
        plan([case()], start=start_plan(channels=["t1"]))
    with pytest.raises(ConfigError, match="for scans in mm and these state no physical size"):
        plan([case(physical=False)], start=start_plan())


def test_an_edited_plan_is_looked_at():
    made = plan([case()], patch_voxels=(32, 32, 32))
    before = values_of(made)
    text = json.loads(made.model_dump_json())

    def edit(**changes) -> tuple[Plan, list[str]]:
        content = {**text, **changes}
        return edited_plan(Plan.model_validate(content), before, 2, "plan.json")

    plan_, changed = edit(batch_size=7, flips=[1])
    assert changed == ["batch_size", "flips"]
    assert plan_.reasons == made.reasons | dict.fromkeys(changed, "edited by hand")
    assert edit(reasons=plan_.reasons)[0] == made  # put back
    bad = [
        ({"class_voxels": [1, 2]}, "`class_voxels` follows from the data"),
        ({"swaps": [[1, 2]]}, "`swaps` holds"),
        ({"patch_voxels": [64, 64, 1], "flips": [2]}, "one voxel thick"),
        ({"patch_voxels": [64, 1, 1], "flips": []}, "models.unet: a patch of 64 x 1 x 1"),
        (
            {"preprocessing": text["preprocessing"] | {"normalisation": text["preprocessing"]["normalisation"] * 2}},
            "2 rules for 1",
        ),
        ({"preprocessing": text["preprocessing"] | {"spacing": None}}, "`spacing` is null and the files have a physical size"),
        ({"models": {}}, "`models.unet` follows from"),
        ({"models": {"unet": {"architecture": "unet", "options": {"feature": [1]}}}}, "unknown key `feature`"),
        ({"models": {"unet": {"architecture": "unet"}}}, "needs `architecture` and `options`"),
    ]
    for changes, message in bad:
        with pytest.raises(ConfigError, match=message):
            edit(**changes)


def test_a_stated_spacing_of_pictures_outlives_an_edit():
    made = plan([case(shape=(64, 64, 1), physical=False)], spacing_mm=(2, 2, 1))
    edited = made.model_copy(update={"batch_size": 7})
    assert edited_plan(edited, values_of(made), 2, "plan.json")[1] == ["batch_size"]
    other = made.preprocessing.model_copy(update={"spacing": (3.0, 3.0, 1.0)})
    with pytest.raises(ConfigError, match="`spacing` is stated and the files have no physical size"):
        edited_plan(made.model_copy(update={"preprocessing": other}), values_of(made), 2, "plan.json")


def test_the_machine_grants_a_share_of_its_memory(monkeypatch):
    monkeypatch.setattr("medseg.planning.machine.torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(
        "medseg.planning.machine.os.sysconf", lambda name: {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 2_000_000}[name]
    )
    monkeypatch.setattr("medseg.planning.machine.memory_limit", lambda: math.inf)
    here = granted_here(None, "auto", 5)
    assert (here.device, here.memory_gb, here.minutes, here.reason) == ("cpu", 4.1, 5, "50% of the machine's")
    assert granted_here(3, "cpu", None).memory_gb == 3
    assert granted_here(None, "cuda", None).memory_gb == 10  # planned here for a machine with a GPU

    class Card:
        total_memory = 80e9

    monkeypatch.setattr("medseg.planning.machine.torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("medseg.planning.machine.torch.cuda.get_device_properties", lambda _: Card)
    assert granted_here(None, "auto", None).memory_gb == 10
    assert granted_here(None, "cpu", None).memory_gb == 4.1
    Card.total_memory = 8e9
    here = granted_here(1, "cpu", None)
    assert granted_here(None, "auto", None) == here.model_copy(
        update={"device": "gpu", "memory_gb": 6.4, "reason": "80% of the GPU's"}
    )


@pytest.mark.parametrize(("amx", "avx512", "gflops"), [(True, True, 150), (False, True, 100), (False, False, 40)])
def test_a_processor_that_computes_in_bfloat16_is_taken_to_be_faster(monkeypatch, amx, avx512, gflops):
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: avx512)
    assert granted_here(1, "cpu", None).core_gflops == gflops
    assert granted_here(1, "cpu", None, "bfloat16").core_gflops == gflops
    assert granted_here(1, "cpu", None, "float32").core_gflops == 40


def test_a_job_that_may_not_use_the_whole_machine_is_granted_less(monkeypatch):
    monkeypatch.setattr("medseg.planning.machine.available_cores", lambda: 3)
    monkeypatch.setattr("medseg.planning.machine.memory_limit", lambda: math.inf)
    free = granted_here(None, "cpu", None)
    assert free.cores == 3 and "machine's" in free.reason
    monkeypatch.setattr("medseg.planning.machine.memory_limit", lambda: 2e9)
    here = granted_here(None, "cpu", None)
    assert (here.memory_gb, here.reason) == (1, "50% of what its control group (cgroup) may use")
