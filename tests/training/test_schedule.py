from __future__ import annotations

from itertools import pairwise

import pytest

from medseg.core.errors import StageError
from medseg.training.schedule import Schedule, learning_rate_factor, often_enough, steps_in, validation_interval


def test_cosine_and_poly_fall_from_one_towards_zero():
    for kind, middle in (("cosine", 0.5), ("poly", 0.5**0.9)):
        factors = [learning_rate_factor(kind, step, 100) for step in range(100)]
        assert factors[0] == 1 and factors[50] == pytest.approx(middle) and 0 < factors[99] < 0.02
        assert all(a > b for a, b in pairwise(factors))


def test_warmup_rises_evenly_and_then_the_decay_begins():
    factors = [learning_rate_factor("poly", step, 100, warmup=4) for step in range(100)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0]) and factors[99] < 0.02
    assert max(learning_rate_factor("cosine", step, 6, warmup=50) for step in range(6)) == 1


def test_the_last_epoch_is_always_validated():
    schedule = Schedule(steps=47, steps_per_epoch=10, validation_interval=3)
    assert schedule.epochs == 5 and [e for e in range(1, 6) if schedule.validates(e)] == [3, 5]


def test_steps_fill_the_time_that_is_left():
    steps = steps_in(600, step_seconds=0.5, validation_seconds=5, steps_per_epoch=50, interval=2)
    used = steps * 0.5 + 5 * (steps // 100) + 5
    assert 0.9 * 600 < used <= 600


def test_a_budget_below_one_step_is_a_sentence():
    with pytest.raises(StageError, match="give more time"):
        steps_in(3, 10, 1, 50, 1)


@pytest.mark.parametrize(("windows", "batch", "interval"), [(16, 2, 1), (400, 2, 18), (3, 8, 1)])
def test_validation_takes_about_seven_percent(windows, batch, interval):
    assert validation_interval(windows, batch, 50) == interval
    cost = windows / (3 * batch)
    assert cost / (cost + 50 * interval) <= 0.07


def test_a_saved_schedule_is_read_back(tmp_path):
    schedule = Schedule(steps=9, steps_per_epoch=3, validation_interval=1, compile=True, reasons={"steps": "because"})
    schedule.save(tmp_path / "schedule.json")
    assert Schedule.load(tmp_path / "schedule.json") == schedule
    assert Schedule.load(tmp_path / "other.json") is None


def test_a_short_training_is_validated_a_few_times():
    assert [often_enough(12, epochs) for epochs in (1, 3, 8, 100)] == [1, 1, 2, 12]
