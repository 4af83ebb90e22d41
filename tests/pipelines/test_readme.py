"""The README names commands and files that are there."""

from __future__ import annotations

import re
from pathlib import Path

import yaml
from typer.main import get_command

from medseg.data.fetch import DATASETS
from pipelines.cli import app
from pipelines.config import RunConfig

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_command_is_named_and_every_named_command_is_there():
    commands = set(get_command(app).commands)  # type: ignore[attr-defined]
    named = {word for group in re.findall(r"medseg ([a-z|\\-]+)", README) for word in group.replace("\\", "").split("|")}
    assert commands <= named
    assert not set(re.findall(r"`medseg ([a-z-]+) ", README)) - commands


def test_every_link_leads_somewhere():
    targets = [t for t in re.findall(r"\]\(([^)]+)\)", README) if not t.startswith("http")]
    assert targets and not [t for t in targets if not (ROOT / t).exists()]


def test_the_configuration_in_it_is_complete(tmp_path):
    text = re.search(r"```yaml\n(.*?)```", README, re.DOTALL)
    assert text
    config = RunConfig(tmp_path / "mine.yaml", yaml.safe_load(text[1]))
    from pipelines.check import config_problems

    assert config_problems(config) == []


def test_the_data_sets_to_fetch_are_those_there_are():
    fetch = re.search(r"`medseg fetch ([^`]+)`", README)
    assert fetch and set(fetch[1].replace("\\", "").split("|")) == set(DATASETS)
