"""What is typical of a training's cases, as its model file will tell it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from medseg.core.grid import Grid
from medseg.core.labels import IGNORE, LabelScheme, Structure
from medseg.core.volume import LabelMap
from medseg.inference.bundle import empty_network
from medseg.inference.features import Observer, mask_features
from medseg.inference.postprocess import Postprocessing, Rule, postprocess
from medseg.training.finish import choose_finish
from medseg.training.ordinary import Seen, agreement
from medseg.training.schedule import Schedule

TWO = LabelScheme(structures=[Structure(name="large", id=1), Structure(name="small", id=2)])
SHAPE = (20, 18, 10)
GRID = Grid(SHAPE, np.diag([1.0, 1.5, 2.0, 1.0]))


def blobs(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Smooth logits and what is decided of them."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1, (3, *SHAPE)).astype(np.float32) + 3 * np.linspace(-1, 1, 20, dtype=np.float32)[:, None, None]
    return logits, TWO.decide(logits)


@pytest.mark.parametrize("temperature", [0.1, 0.7, 1.35, 3.0])
def test_doubt_at_the_temperature_that_is_chosen_later(temperature: float) -> None:
    logits, classes = blobs(0)
    found = Seen(logits, classes, classes, TWO).features(None, temperature, GRID)
    observer = Observer(TWO)
    observer.add(torch.from_numpy(logits), temperature)
    for name in ("entropy:large", "entropy:small", "doubt"):
        assert found[name] == pytest.approx(observer.features()[name], rel=0.03)


def test_the_mask_is_the_one_that_users_will_get() -> None:
    logits, classes = blobs(0)
    seen = Seen(logits, classes, classes, TWO)
    np.testing.assert_array_equal(seen.classes, classes)
    rules = Postprocessing(rules={"small": Rule(keep_largest=True)})
    expected = mask_features(LabelMap(postprocess(classes, rules, TWO, GRID), GRID), GRID, TWO)
    assert expected["pieces:small"] == 1 < mask_features(LabelMap(classes, GRID), GRID, TWO)["pieces:small"]
    found = seen.features(rules, 1.0, GRID)
    assert {name: found[name] for name in expected} == expected


def test_agreement_is_what_mirrored_answers_are_compared_by() -> None:
    a, b = blobs(0)[1], blobs(1)[1]
    observer = Observer(TWO)
    as_logits = [torch.from_numpy(np.stack([classes == k for k in range(3)])).float() for classes in (a, b)]
    observer.compare(*as_logits)
    assert agreement(a, b, TWO) == pytest.approx(observer.features()["mirror_dice"])
    assert agreement(a, a, TWO) == 1
    ignored = np.where(a > 0, a, IGNORE).astype(np.uint8)
    assert agreement(np.maximum(a, 1), ignored, TWO) == 1  # what is ignored is not wrong
    assert agreement(np.maximum(a, 1), a, TWO) < 1
    assert np.isnan(agreement(np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8), TWO))


def test_a_model_knows_what_is_typical(make_job) -> None:  # type: ignore[no-untyped-def]
    job = make_job()
    torch.manual_seed(3)
    network = empty_network(job.architecture, job.options, job.plan, job.labels.n_outputs)
    typical = choose_finish(job, network.state_dict(), Schedule(steps=1, steps_per_epoch=1, validation_interval=1)).typical
    assert (typical.cases, typical.validated) == (3, 2)
    assert typical.always == ["large", "small"]
    assert typical.picture is None  # of five cases it would show single ones
    text = json.dumps(typical.model_dump(mode="json"), allow_nan=False)
    assert not any(case_id in text for case_id in (*job.train_ids, *job.val_ids))
    volumes = [float((job.store.open(c).classes == 1).sum()) * 3 / 1000 for c in (*job.train_ids, *job.val_ids)]
    limit = typical.limits["volume_ml:large"]
    assert (limit.least, limit.greatest) == pytest.approx((min(volumes), max(volumes)), rel=1e-4)
    assert not any(name.startswith(("entropy", "doubt")) for name in typical.limits)  # of two validation cases
    assert typical.limits["extent_mm:y"].least == pytest.approx(18 * 1.5)
