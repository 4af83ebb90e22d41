"""Limits of features: ordinary cases lie within, unusual ones outside, and few cases give wide limits."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from medseg.inference.features import Features, Picture
from medseg.inference.typical import LEAST_PICTURES, Limit, Typical, join_typical, learn

NAMES = ["liver"]


def case(rng: np.random.Generator, volume_sd: float = 0.2) -> Features:
    return {
        "extent_mm:x": 300 * math.exp(rng.normal(0, 0.1)),
        "intensity_p50": rng.normal(0, 0.1),
        "roughness": 0.1 * math.exp(rng.normal(0, 0.2)),
        "volume_ml:liver": 1500 * math.exp(rng.normal(0, volume_sd)),
        "pieces:liver": 1.0,
        "cut_share:liver": 0.0,
        "position:liver:x": rng.normal(0.6, 0.03),
    }


def answer(rng: np.random.Generator, reference: Features, error: float = 0.03) -> Features:
    wrong = {"volume_ml:liver": reference["volume_ml:liver"] * math.exp(rng.normal(0, error))}
    return reference | wrong | {"entropy:liver": 0.2 * math.exp(rng.normal(0, 0.1)), "mirror_dice": rng.normal(0.9, 0.01)}


def pictures(rng: np.random.Generator, count: int) -> list[Picture]:
    common = rng.normal(size=(1, 8, 8, 8))
    return [(common + rng.normal(0, 0.5, common.shape)).astype(np.float32) for _ in range(count)]


def learnt(seed: int, count: int, validated: int, error: float = 0.03) -> tuple[Typical, np.random.Generator]:
    rng = np.random.default_rng(seed)
    known = [case(rng) for _ in range(count + validated)]
    answers = [answer(rng, reference, error) for reference in known[:validated]]
    return learn(known, answers, pictures(rng, count + validated), NAMES), rng


def outside(features: Features, typical: Typical) -> list[str]:
    return [name for name, limit in typical.limits.items() if limit.excess(features.get(name, math.nan)) > 0]


@pytest.mark.parametrize(("count", "validated"), [(100, 12), (20, 4), (8, 3)])
def test_few_ordinary_cases_lie_outside_of_any_limit(count: int, validated: int) -> None:
    flagged = []
    for seed in range(10):
        typical, rng = learnt(seed, count, validated)
        flagged += [bool(outside(answer(rng, case(rng)), typical)) for _ in range(40)]
    assert np.mean(flagged) <= 0.03


def test_unusual_cases_lie_outside() -> None:
    typical, rng = learnt(0, 100, 12)
    plain = answer(rng, case(np.random.default_rng(1)))
    assert outside(plain, typical) == []
    unusual = {
        "extent_mm:x": 150.0,
        "intensity_p50": 1.0,
        "roughness": 1.0,
        "volume_ml:liver": 310.0,
        "pieces:liver": 9.0,
        "cut_share:liver": 0.1,
        "position:liver:x": 0.2,
        "entropy:liver": 0.6,
        "mirror_dice": 0.5,
    }
    for name, value in unusual.items():
        assert outside(plain | {name: value}, typical) == [name]
    for name, value in {"entropy:liver": 1e-3, "mirror_dice": 1.0, "pieces:liver": 1.0}.items():  # of these, one end is good
        assert outside(plain | {name: value}, typical) == []


def test_ranges_are_those_of_the_training_cases() -> None:
    rng = np.random.default_rng(0)
    known = [case(rng) for _ in range(30)]
    typical = learn(known, [], pictures(rng, 30), NAMES)
    volumes = [c["volume_ml:liver"] for c in known]
    limit = typical.limits["volume_ml:liver"]
    assert (limit.least, limit.greatest) == pytest.approx((min(volumes), max(volumes)), rel=1e-4)
    assert limit.low is not None and limit.high is not None
    assert limit.low < limit.least < limit.greatest < limit.high
    assert (typical.cases, typical.validated, typical.always) == (30, 0, ["liver"])


def test_fewer_cases_and_worse_masks_give_wider_limits() -> None:
    def width(typical: Typical, name: str) -> float:
        limit = typical.limits[name]
        assert limit.low is not None and limit.high is not None
        return limit.high / limit.low

    many = learnt(0, 100, 12)[0]
    few = [width(learnt(seed, 8, 3)[0], "extent_mm:x") for seed in range(10)]
    assert np.median(few) > 1.2 * width(many, "extent_mm:x")
    bad = learnt(0, 100, 12, error=0.5)[0]
    assert width(bad, "volume_ml:liver") > 2 * width(many, "volume_ml:liver")
    # One failed validation case of twelve decides nothing.
    rng = np.random.default_rng(0)
    known = [case(rng) for _ in range(112)]
    answers = [answer(rng, reference) for reference in known[:12]]
    answers[3]["volume_ml:liver"] = 1.0
    failed = learn(known, answers, pictures(rng, 112), NAMES)
    assert width(failed, "volume_ml:liver") < 3 * width(many, "volume_ml:liver")


def test_nothing_is_said_of_what_few_cases_have() -> None:
    rng = np.random.default_rng(0)
    known = [case(rng) for _ in range(4)]
    assert learn(known, [], pictures(rng, 4), NAMES).limits == {}
    known = [case(rng) for _ in range(20)]
    for features in known[3:]:
        features |= {"volume_ml:liver": 0.0, "position:liver:x": math.nan}
    typical = learn(known, [], pictures(rng, 20), NAMES)
    assert typical.always == []
    assert "volume_ml:liver" not in typical.limits
    assert "extent_mm:x" in typical.limits


def test_the_mean_picture_hides_single_patients() -> None:
    few, many = learnt(0, LEAST_PICTURES - 4, 3)[0], learnt(0, LEAST_PICTURES - 3, 3)[0]
    assert few.picture is None and few.mean_picture is None
    assert many.mean_picture is not None and many.mean_picture.shape == (1, 8, 8, 8)
    assert "resemblance" in many.limits and "resemblance" not in few.limits


def test_it_survives_json_and_refuses_half_a_picture() -> None:
    typical = learnt(0, 20, 4)[0]
    text = json.dumps(typical.model_dump(mode="json"), allow_nan=False)
    assert Typical.model_validate_json(text) == typical
    for wrong in ({"picture": [0.0] * 500}, {"limits": {"a": {"least": math.nan, "greatest": 1}}}, {"case_ids": ["p01"]}):
        with pytest.raises(ValueError, match=r"\w"):
            Typical.model_validate(wrong)


def test_an_ensemble_has_the_widest_limits() -> None:
    one, other = learnt(0, 20, 4)[0], learnt(1, 20, 4)[0]
    both = join_typical([one, other])
    assert both is not None
    assert both.limits.keys() == one.limits.keys()
    for name, limit in both.limits.items():
        for part in (one, other):
            for value in (part.limits[name].low, part.limits[name].high):
                assert value is None or limit.excess(value) == 0
    assert both.mean_picture is not None
    assert join_typical([one, None]) is None
    assert join_typical([]) is None
    assert join_typical([one]) == one


def test_excess_is_told_in_widths_of_the_range() -> None:
    limit = Limit(least=10, greatest=20, low=5, high=30)
    assert [limit.excess(v) for v in (5, 12, 30, 0, 50, math.nan)] == pytest.approx([0, 0, 0, 0.5, 2, 0])
    assert Limit(least=0, greatest=1, high=2).excess(-100) == 0
