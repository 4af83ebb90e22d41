from pathlib import Path

import pytest
from pydantic import Field

from medseg.core.config import Section, load_yaml, merge, override, parse
from medseg.core.errors import ConfigError


class Inner(Section):
    rate: float = Field(0.1, gt=0)


class Outer(Section):
    epochs: int = 1
    inner: Inner = Inner()


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_bases_are_merged_left_to_right_and_own_keys_win(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", "training: {epochs: 1, rate: 1}\nname: a\n")
    write(tmp_path / "sub/b.yaml", "base: ../a.yaml\ntraining: {rate: 2, loss: dice}\n")
    write(tmp_path / "c.yaml", "training: {loss: dice_ce}\n")
    own = write(tmp_path / "own.yaml", "base: [sub/b.yaml, c.yaml]\ntraining: {epochs: 9}\n")
    assert load_yaml(own) == {"training": {"epochs": 9, "rate": 2, "loss": "dice_ce"}, "name": "a"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("base: own.yaml\n", "its own base"),
        ("base: elsewhere.yaml\n", "elsewhere.yaml does not exist"),
        ("base: 3\n", "`base`"),
        ("base: [3]\n", "`base`"),
        ("- a\n- b\n", "holds no settings"),
        ("", "holds no settings"),
        ("a: [1\n", "not a readable YAML file"),
        ("a: {b: 1, b: 2}\n", "`b` stands twice"),
        ("a: !!python/object/apply:os.getcwd []\n", "not a readable YAML file"),
    ],
)
def test_a_bad_file_is_one_sentence_naming_it(tmp_path: Path, text: str, said: str) -> None:
    own = write(tmp_path / "own.yaml", text)
    with pytest.raises(ConfigError) as caught:
        load_yaml(own)
    assert said in str(caught.value)
    assert ".yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml does not exist"):
        load_yaml(tmp_path / "nowhere.yaml")


def test_an_empty_base_is_no_base(tmp_path: Path) -> None:
    assert load_yaml(write(tmp_path / "own.yaml", "base:\nname: x\n")) == {"name": "x"}


def test_merging_replaces_lists_and_leaves_its_inputs_alone() -> None:
    below, above = {"a": {"list": [1, 2], "keep": 1}, "b": {"x": 1}}, {"a": {"list": [3]}, "b": None}
    merged = merge(below, above)
    assert merged == {"a": {"list": [3], "keep": 1}, "b": None}
    merged["a"]["list"].append(4)
    assert below == {"a": {"list": [1, 2], "keep": 1}, "b": {"x": 1}}
    assert above["a"]["list"] == [3]


def test_assignments_are_yaml_and_make_the_sections_that_they_need() -> None:
    settings = {"training": {"epochs": 1}, "data": None}
    result = override(settings, ["training.epochs=20", "data.root=../x=y", "plan.patch_voxels=[40, 56, 40]", "note="])
    assert result == {
        "training": {"epochs": 20},
        "data": {"root": "../x=y"},
        "plan": {"patch_voxels": [40, 56, 40]},
        "note": None,
    }
    assert settings == {"training": {"epochs": 1}, "data": None}


@pytest.mark.parametrize("assignment", ["training.epochs", "=3", "name.first=3", "name=[1", "seed.x.y=1"])
def test_a_bad_assignment_is_repeated_to_the_user(assignment: str) -> None:
    with pytest.raises(ConfigError) as caught:
        override({"name": "x", "seed": 0}, [assignment])
    assert assignment in str(caught.value)


def test_every_wrong_key_is_named_in_one_sentence() -> None:
    with pytest.raises(ConfigError) as caught:
        parse(Outer, {"epoch": 3, "epochs": "many", "inner": {"rate": -1, "momentum": 0}}, "x.yaml: training")
    said = str(caught.value)
    assert said.startswith("x.yaml: training: ")
    for key in ("`epoch` (known: epochs, inner)", "`epochs`", "`inner.rate`", "`inner.momentum`"):
        assert key in said
    assert "\n" not in said
    assert ";" not in said  # what follows one is taken for the cure


def test_an_absent_section_has_its_defaults_and_a_list_is_no_section() -> None:
    assert parse(Outer, None, "x") == Outer()
    with pytest.raises(ConfigError, match=r"x\.yaml: training"):
        parse(Outer, [1, 2], "x.yaml: training")
