"""labels.yaml and the dataset.json of nnU-Net and the Decathlon."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medseg.core.errors import ConfigError
from medseg.core.labels import LabelScheme, load_label_scheme


def load(folder: Path, content: dict[str, Any]) -> LabelScheme:
    path = folder / "dataset.json"
    path.write_text(json.dumps(content, indent="\t"))
    return load_label_scheme(path)


def test_structures_of_nnunet(tmp_path: Path) -> None:
    found = load(tmp_path, {"labels": {"background": 0, "liver": 1, "tumour": 5, "ignore": 9}, "numTraining": 3})
    assert [(s.name, s.id) for s in found.structures] == [("liver", 1), ("tumour", 5)] and not found.regions
    assert found.encode(np.array([0, 1, 5, 9], np.uint8), "x").tolist() == [0, 1, 2, 255]


def test_regions_of_nnunet(tmp_path: Path) -> None:
    labels = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": [3]}
    found = load(tmp_path, {"labels": labels, "regions_class_order": [1, 2, 3]})
    assert found.measured == {"whole": [1, 2, 3], "core": [2, 3], "enhancing": [3]}
    assert [(s.name, s.id) for s in found.structures] == [("label_1", 1), ("label_2", 2), ("enhancing", 3)]
    assert [r.written_as for r in found.regions] == ["label_1", "label_2", "enhancing"]
    with pytest.raises(ConfigError, match="`one` and `other` cross"):
        load(tmp_path, {"labels": {"background": 0, "one": [1, 2], "other": [2, 3]}})


def test_structures_of_the_decathlon(tmp_path: Path) -> None:
    found = load(tmp_path, {"labels": {"0": "background", "1": "Anterior", "2": "Posterior"}})
    assert {s.name: s.id for s in found.structures} == {"Anterior": 1, "Posterior": 2}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"name": "x"}, "has no `labels`; give nnU-Net's dataset.json"),
        ({"labels": {"background": 0, "liver": 1.5}}, "should name whole numbers from 0 on"),
        ({"labels": {"background": 0, "liver": "one"}}, "should name whole numbers from 0 on"),
        ({"labels": {"background": 0}}, "structures"),
        ({"labels": {"background": 0, "liver": 1, "spleen": 1}}, "the id 1"),
    ],
)
def test_files_that_are_wrong(tmp_path: Path, content: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load(tmp_path, content)


def test_a_file_that_is_no_json(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text("{")
    for name in ("dataset.json", "nowhere.json"):
        with pytest.raises(ConfigError, match="is not a readable JSON file"):
            load_label_scheme(tmp_path / name)
