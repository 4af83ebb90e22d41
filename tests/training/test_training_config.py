from __future__ import annotations

import subprocess
import sys

import pytest

from medseg.core.config import parse
from medseg.core.errors import ConfigError
from medseg.training.config import AugmentationConfig, TrainingConfig


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"epochs": 3, "budget_minutes": 2}, "`epochs` and `budget_minutes` contradict each other"),
        ({}, "`epochs` or `budget_minutes`"),
        ({"epochs": 0}, "`epochs`"),
        ({"epochs": 3, "epoch": 3}, "unknown key `epoch`"),
        ({"epochs": 3, "augmentation": {"elastic": {"control_points": [6, 3]}}}, "the least stands first"),
        ({"epochs": 3, "augmentation": {"blur": {"range": [0, 1]}}}, "`blur.range` starts at 0"),
        ({"epochs": 3, "optimizer": {"name": "adamw", "momentum": 0.5}}, "`momentum` belongs to sgd"),
        ({"epochs": 3, "optimizer": {"name": "sgd", "momentum": 0}}, "`nesterov` needs `momentum`"),
        ({"epochs": 3, "augmentation": {"elastic": {"probability": 2}}}, "augmentation.elastic.probability"),
        ({"epochs": 3, "augmentation": {"noise": {"rnge": [0, 1]}}}, "augmentation.noise.rnge"),
    ],
)
def test_what_is_wrong_is_named(content, sentence):
    with pytest.raises(ConfigError, match=r"x.yaml: training: .*" + sentence.replace("(", r"\(")):
        parse(TrainingConfig, content, "x.yaml: training")


def test_defaults_follow_the_optimizer():
    adamw = TrainingConfig(epochs=1).optimizer
    sgd = TrainingConfig(epochs=1, optimizer={"name": "sgd"}).optimizer
    assert (adamw.rate, adamw.decay) == (0.001, 0.01) and (sgd.rate, sgd.decay, sgd.momentum) == (0.01, 3e-5, 0.99)
    assert TrainingConfig(epochs=1, optimizer={"learning_rate": 0.5, "weight_decay": 0}).optimizer.decay == 0


def test_true_and_false_are_words_here():
    assert TrainingConfig(epochs=1, compile=False, channels_last=True).compile == "false"
    assert parse(TrainingConfig, {"epochs": 1, "compile": "auto"}, "x").compile == "auto"


def test_one_magnitude_may_be_changed_alone():
    config = AugmentationConfig(noise={"probability": 0}, gamma={"range": [0.9, 1.1]})
    assert config.noise.probability == 0 and config.noise.range == (0.0, 0.1)
    assert config.gamma.probability == 0.3 and config.gamma.range == (0.9, 1.1)


def test_a_dumped_config_is_the_same_config():
    config = TrainingConfig(budget_minutes=2, optimizer={"name": "sgd"}, augmentation={"blur": {"probability": 1}})
    assert TrainingConfig(epochs=1, augmentation=config.augmentation.model_dump()).augmentation == config.augmentation


def test_reading_a_configuration_imports_no_torch():
    code = "import sys, medseg.training.config; sys.exit('torch' in sys.modules or 'monai' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
