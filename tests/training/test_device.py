"""What a training computes on and in, by rule; and what of it follows to another machine."""

from __future__ import annotations

import pytest
import torch

from medseg.core.errors import ConfigError
from medseg.training import decide, device
from medseg.training.config import TrainingConfig
from medseg.training.decide import take_over
from medseg.training.device import choose_layout, choose_precision, computes_in, why_not_compiled
from medseg.training.schedule import Schedule

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def processor(monkeypatch):
    def make(unit: str | None, compiler: bool = True) -> None:
        monkeypatch.setattr(device, "bfloat16_unit", lambda: unit)
        for module in (device, decide):
            monkeypatch.setattr(module, "compiler_present", lambda: compiler)

    return make


def config(**settings) -> TrainingConfig:
    return TrainingConfig(**({} if "budget_minutes" in settings else {"epochs": 1}), **settings)


def test_the_precision_is_what_the_processor_multiplies_in(processor):
    for unit in ("AMX", "AVX-512 BF16"):
        processor(unit)
        assert choose_precision("auto", CPU, False) == ("bfloat16", f"the processor has {unit}")
        assert computes_in("bfloat16", CPU, False) and not computes_in("float16", CPU, False)
    processor(None)
    precision, reason = choose_precision("auto", CPU, False)
    assert precision == "float32" and "neither AMX nor AVX-512 BF16" in reason
    assert choose_precision("bfloat16", CPU, False) == ("bfloat16", "stated in the configuration")
    assert computes_in("float32", CPU, False) and not computes_in("bfloat16", CPU, False) and computes_in("float16", GPU, False)
    with pytest.raises(ConfigError, match="needs a GPU"):
        choose_precision("float16", CPU, False)


def test_where_bfloat16_comes_out_wrong_the_network_trains_in_float32(processor):
    processor("AMX")
    precision, reason = choose_precision("auto", CPU, True)
    assert precision == "float32" and "come out wrong" in reason and not computes_in("bfloat16", CPU, True)
    with pytest.raises(ConfigError, match="their gradients come out wrong"):
        choose_precision("bfloat16", CPU, True)
    assert choose_precision("bfloat16", GPU, True)[0] == "bfloat16" and computes_in("float16", GPU, True)
    assert take_over(schedule(precision="bfloat16"), config(), CPU, True).precision == "float32"


@pytest.mark.parametrize(
    ("where", "precision", "planar", "compiled", "last"),
    [
        (CPU, "float32", True, False, False),
        (CPU, "float32", False, False, True),
        (CPU, "bfloat16", False, False, False),
        (CPU, "bfloat16", True, False, False),
        (CPU, "bfloat16", True, True, True),
        (GPU, "bfloat16", True, False, True),
    ],
)
def test_the_layout_is_what_the_arithmetic_is_fast_in(where, precision, planar, compiled, last):
    assert choose_layout("auto", where, precision, planar, compiled)[0] is last
    assert choose_layout("true", where, precision, planar, compiled)[0]


def test_what_is_not_compiled_says_why(processor):
    processor(None)
    assert why_not_compiled(config(budget_minutes=5), CPU) is None
    assert "below 5 minutes" in why_not_compiled(config(budget_minutes=4.9), CPU)
    assert "counted in epochs" in why_not_compiled(config(), CPU)
    assert why_not_compiled(config(), GPU) is None and why_not_compiled(config(compile=True), CPU) is None
    assert why_not_compiled(config(compile=False), GPU) == "stated in the configuration"
    processor(None, compiler=False)
    assert why_not_compiled(config(compile=True), CPU) == "there is no C++ compiler"


def schedule(**choices) -> Schedule:
    return Schedule(steps=10, steps_per_epoch=5, validation_interval=1, **choices)


def test_choices_stand_where_a_training_goes_on(processor):
    processor("AMX")
    before = schedule(precision="bfloat16", compile=True, channels_last=True, workers=3)
    assert take_over(before, config(), CPU, False) == before
    processor(None)
    slow = schedule(precision="bfloat16")
    assert take_over(slow, config(precision="bfloat16"), CPU, False) == slow  # stated, emulated as it may be


def test_what_speed_alone_depends_on_follows_the_configuration():
    here = take_over(schedule(workers=3, augment_on="device"), config(workers=0, augment_on="cpu"), CPU, False)
    assert (here.workers, here.augment_on) == (0, "cpu")
    assert here.reasons["workers"] == here.reasons["augment_on"] == "stated in the configuration"


def test_what_this_machine_cannot_do_is_replaced(processor):
    processor(None, compiler=False)
    begun = schedule(device="cuda", precision="bfloat16", compile=True, augment_on="device", workers=4)
    here = take_over(begun, config(), CPU, False)
    assert (here.device, here.precision, here.compile, here.augment_on, here.workers) == ("cpu", "float32", False, "cpu", 4)
    assert here.reasons["precision"].endswith("the training was begun in bfloat16")
    assert here.reasons["device"] == "the training was begun on cuda"
