"""The end of a training: postprocessing and temperature, each against what is known or computed another way."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from phantoms import ball
from torch.nn import functional

from medseg.core.grid import Grid
from medseg.core.labels import IGNORE, LabelScheme, Region, Structure
from medseg.inference.bundle import empty_network
from medseg.inference.postprocess import Postprocessing, Rule, postprocess
from medseg.inference.window import predict_logits
from medseg.training.calibration import (
    Answers,
    best_temperature,
    calibration_error,
    cross_entropy,
    some_answers,
    together,
)
from medseg.training.finish import choose_finish
from medseg.training.pieces import choose_postprocessing, mean_dice, pieces_of
from medseg.training.schedule import Schedule

TWO = LabelScheme(structures=[Structure(name="large", id=1), Structure(name="small", id=2)])
NESTED = LabelScheme(
    structures=[Structure(name=n, id=i) for i, n in enumerate(("oedema", "necrosis", "enhancing"), start=1)],
    regions=[
        Region(name="whole", structures=["oedema", "necrosis", "enhancing"]),
        Region(name="core", structures=["necrosis", "enhancing"]),
        Region(name="active", structures=["enhancing"]),
    ],
)
SHAPE = (16, 14, 12)
SPACING = (1.0, 1.5, 2.0)


def grid() -> Grid:
    return Grid(SHAPE, np.diag([*SPACING, 1.0]))


def plain_dice(prediction: np.ndarray, reference: np.ndarray, members: list[int]) -> float:
    seen = reference != IGNORE
    a, b = np.isin(prediction, members) & seen, np.isin(reference, members)
    return 2 * (a & b).sum() / (a.sum() + b.sum()) if (a | b).any() else 1.0


def noisy_case(seed: int, scheme: LabelScheme) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    prediction, reference = (
        np.where(rng.random(SHAPE) < 0.25, rng.integers(1, scheme.n_classes, SHAPE), 0).astype(np.uint8) for _ in range(2)
    )
    reference[rng.random(SHAPE) < 0.1] = IGNORE
    return prediction, reference


@pytest.mark.parametrize("scheme", [TWO, NESTED], ids=["structures", "regions"])
@pytest.mark.parametrize(
    "rule", [Rule(keep_largest=True), Rule(smallest_volume=10), Rule(keep_largest=True, smallest_volume=1e4)], ids=str
)
def test_dice_from_the_pieces_is_dice_of_the_mask(scheme: LabelScheme, rule: Rule) -> None:
    cases = [noisy_case(seed, scheme) for seed in range(2)]
    pieces = [pieces_of(*case, scheme, math.prod(SPACING)) for case in cases]
    names = list(scheme.measured)
    for chosen in ({}, {names[0]: rule}, {names[-1]: rule}, dict.fromkeys(names, rule)):
        found = mean_dice(pieces, scheme, chosen)
        for name, members in scheme.measured.items():
            masks = [postprocess(p, Postprocessing(rules=chosen), scheme, grid()) if chosen else p for p, _ in cases]
            expected = np.mean([plain_dice(m, r, members) for m, (_, r) in zip(masks, cases, strict=True)])
            assert found[name] == pytest.approx(expected, abs=1e-12)


def scene(balls: Mapping[tuple[float, float, float], float], index: int = 1) -> np.ndarray:
    classes = np.zeros(SHAPE, np.uint8)
    for centre, radius in balls.items():
        classes[ball(SHAPE, centre, radius)] = index
    return classes


def chosen(cases: list[tuple[np.ndarray, np.ndarray]], scheme: LabelScheme = TWO) -> Postprocessing | None:
    return choose_postprocessing([pieces_of(p, r, scheme, 1.0) for p, r in cases], scheme)


def test_a_stray_piece_makes_the_largest_the_only_one() -> None:
    organ = {(5.0, 6.0, 6.0): 4.0}
    cases = [(scene(organ | {(13.0, 11.0, y): 1.5}), scene(organ)) for y in (2.0, 8.0)]
    assert chosen(cases) == Postprocessing(rules={"large": Rule(keep_largest=True)})


def test_specks_beside_two_true_pieces_give_a_least_size() -> None:
    organs = {(4.0, 6.0, 6.0): 3.0, (12.0, 6.0, 6.0): 2.5}
    cases = [(scene(organs | {(8.0, 12.0, y): 0.5}), scene(organs)) for y in (2.0, 9.0)]
    found = chosen(cases)
    assert found is not None
    rule = found.rules["large"]
    assert not rule.keep_largest
    assert 1 < rule.smallest_volume < scene({(12.0, 6.0, 6.0): 2.5}).sum()
    after = [postprocess(p, found, TWO, Grid.pixels(SHAPE)) for p, _ in cases]
    for mask, (_, reference) in zip(after, cases, strict=True):
        np.testing.assert_array_equal(mask, reference)


def test_no_rule_where_none_helps() -> None:
    organs = {(4.0, 6.0, 6.0): 3.0, (12.0, 6.0, 6.0): 2.5}
    assert chosen([(scene(organs), scene(organs))]) is None
    # One wrong voxel in one case of ten is a gain that counts less than luck; in every case it counts.
    big = {(7.0, 7.0, 6.0): 5.5}
    prediction = scene(big)
    prediction[0, 0, 0] = 1
    assert 0.0005 < 1 - plain_dice(prediction, scene(big), [1]) < 0.005
    assert chosen([(prediction, scene(big))] * 2) is not None
    assert chosen([(prediction, scene(big))] + [(scene(big), scene(big))] * 9) is None


def test_an_invented_structure_is_removed_and_an_absent_one_harms_nobody() -> None:
    organ = {(5.0, 6.0, 6.0): 4.0}
    found_once = scene(organ, 2)
    nothing = np.zeros(SHAPE, np.uint8)
    speck = scene({(12.0, 11.0, 6.0): 1.0}, 2)
    found = chosen([(found_once, found_once), (speck, nothing)])
    assert found is not None
    assert list(found.rules) == ["small"]
    assert not postprocess(speck, found, TWO, Grid.pixels(SHAPE)).any()


def test_no_rule_at_the_cost_of_another_region() -> None:
    reference = scene({(5.0, 6.0, 6.0): 4.0})
    prediction = reference.copy()
    prediction[ball(SHAPE, (13.0, 10.0, 6.0), 1.5)] = 1  # a stray whole tumour
    alone = chosen([(prediction, reference)], NESTED)
    assert alone is not None
    assert list(alone.rules) == ["whole"]
    reference[13, 10, 6] = prediction[13, 10, 6] = 3  # that holds the only enhancing voxel: removing it would lose that
    assert chosen([(prediction, reference)], NESTED) is None


def test_no_rule_that_would_leave_a_hole_in_the_region_around() -> None:
    """What the core loses would become background, and the Dice of the whole would change unseen."""
    structures = [Structure(name="core", id=1), Structure(name="rim", id=2)]
    regions = [
        Region(name="whole", structures=["core", "rim"], written_as="core"),
        Region(name="core", structures=["core"]),
        Region(name="rim", structures=["rim"]),
    ]
    reference = scene({(5.0, 6.0, 6.0): 4.0}, 2)
    reference[ball(SHAPE, (5.0, 6.0, 6.0), 2.0)] = 1
    prediction = reference.copy()
    prediction[ball(SHAPE, (5.0, 9.0, 6.0), 0.5)] = 1  # a stray core in the rim
    prediction[1, 6, 6] = 1
    own = LabelScheme(structures=structures)
    assert chosen([(prediction, reference)], own) is not None
    assert chosen([(prediction, reference)], own.model_copy(update={"regions": regions})) is None


def sharpened(factor: float, binary: bool) -> Answers:
    """Answers whose truth is drawn from their own probabilities, and whose logits are then `factor` times as large."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (40_000, 3))
    if binary:
        return Answers((logits * factor).astype(np.float32), rng.random(logits.shape) < 1 / (1 + np.exp(-logits)))
    noise = rng.gumbel(size=logits.shape)  # the greatest of logit plus Gumbel noise is a draw from the softmax
    return Answers((logits * factor).astype(np.float32), (logits + noise).argmax(1).astype(np.uint8))


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
def test_the_temperature_undoes_too_much_confidence(factor: float, binary: bool) -> None:
    answers = sharpened(factor, binary)
    temperature = best_temperature(answers)
    assert temperature == pytest.approx(factor, rel=0.03)
    assert cross_entropy(answers, temperature) <= cross_entropy(answers) + 1e-9
    assert calibration_error(answers, temperature) < 0.01
    if factor != 1:
        assert calibration_error(answers) > 0.05


def test_the_temperature_stays_within_reason() -> None:
    perfect = Answers(np.array([[1, 0], [0, 1]] * 5, np.float32), np.array([0, 1] * 5, np.uint8))
    assert best_temperature(perfect) == pytest.approx(0.1, rel=0.01)
    assert best_temperature(Answers(np.zeros((0, 2), np.float32), np.zeros(0, np.uint8))) == 1


def test_cross_entropy_agrees_with_torch() -> None:
    for binary in (False, True):
        answers = sharpened(2.0, binary)
        z, truth = torch.from_numpy(answers.logits) / 1.7, torch.from_numpy(answers.truth)
        if binary:
            expected = functional.binary_cross_entropy_with_logits(z, truth.float())
        else:
            expected = functional.cross_entropy(z, truth.long())
        assert cross_entropy(answers, 1.7) == pytest.approx(float(expected), rel=1e-5)


def test_calibration_error_by_hand() -> None:
    sure = np.array([[100, 0]] * 4, np.float32)
    assert calibration_error(Answers(sure, np.array([0, 0, 0, 0], np.uint8))) == pytest.approx(0)
    assert calibration_error(Answers(sure, np.array([0, 1, 1, 1], np.uint8))) == pytest.approx(0.75)
    # Confidence 0.9 in bin 13 and right in 1 of 2; confidence 0.6 in bin 9 and right in 2 of 2.
    logits = np.log(np.array([[0.9, 0.1]] * 2 + [[0.4, 0.6]] * 2)).astype(np.float32)
    assert calibration_error(Answers(logits, np.array([0, 1, 1, 1], np.uint8))) == pytest.approx((0.8 + 0.8) / 4, abs=1e-6)


def test_the_draw_of_voxels() -> None:
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 4, SHAPE).astype(np.uint8)
    classes[:8] = IGNORE
    logits = np.stack([classes.astype(np.float32) * 10 + k for k in range(3)])
    few = some_answers(logits, classes, NESTED, 50, rng)
    assert few.logits.shape == few.truth.shape == (50, 3)
    index = few.logits[:, 0] / 10
    assert set(index) == {0, 1, 2, 3}  # never the ignored
    np.testing.assert_array_equal(few.truth, np.stack([index > 0, index > 1, index == 3], axis=1))
    every = some_answers(logits, classes, TWO, 10**6, rng)
    assert len(every.truth) == (classes != IGNORE).sum()
    np.testing.assert_array_equal(every.logits[:, 0], every.truth * 10.0)
    assert len(together([few, few]).logits) == 100


@pytest.mark.parametrize("wanted", [True, False])
def test_the_end_of_a_training(make_job, wanted: bool) -> None:  # type: ignore[no-untyped-def]
    job = make_job(postprocessing=wanted)
    torch.manual_seed(3)
    network = empty_network(job.architecture, job.options, job.plan, job.labels.n_outputs)
    schedule = Schedule(steps=1, steps_per_epoch=1, validation_interval=1)
    finish = choose_finish(job, network.state_dict(), schedule)
    assert (finish.postprocessing is not None) <= wanted
    json.dumps(finish.figures, allow_nan=False)
    assert finish.figures["cases"] == 2
    scores = {"before": [], "after": []}
    spaced = Grid((20, 18, 10), np.diag([*job.plan.preprocessing.spacing, 1.0]))
    for case_id in job.val_ids:
        case = job.store.open(case_id)
        logits = predict_logits(network.eval(), np.array(case.image), job.plan.patch_voxels)
        masks = {"before": job.labels.decide(logits)}
        rules = finish.postprocessing
        masks["after"] = postprocess(masks["before"], rules, job.labels, spaced) if rules else masks["before"]
        for when, mask in masks.items():
            scores[when].append([plain_dice(mask, np.array(case.classes), [k]) for k in (1, 2)])
    for when, values in scores.items():
        assert finish.figures["dice"][when] == pytest.approx(np.mean(values), abs=1e-5)
    assert finish.figures["cross_entropy"]["after"] <= finish.figures["cross_entropy"]["before"] + 1e-6
    assert choose_finish(job, network.state_dict(), schedule) == finish


def test_the_batch_is_what_the_memory_held_in_training(make_job, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    job, asked = make_job(batch_size=4), []

    def counted(network, image, patch, overlap, batch, **more):  # type: ignore[no-untyped-def]
        asked.append(batch)
        return predict_logits(network, image, patch, overlap, batch, **more)

    monkeypatch.setattr("medseg.training.finish.predict_logits", counted)
    network = empty_network(job.architecture, job.options, job.plan, job.labels.n_outputs)
    for count in (1, 2, 8):
        choose_finish(job, network.state_dict(), Schedule(steps=1, steps_per_epoch=1, validation_interval=1, micro_batches=count))
    assert asked == [4, 4, 2, 2, 1, 1]
