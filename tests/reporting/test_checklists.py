"""The reporting checklists."""

from __future__ import annotations

import re

import pandas as pd
import pytest
import yaml
from reporting.phantom_run import MODELS, write_volume_run

from medseg.reporting.checklists import ANSWERS, CHECKLISTS, ORDER, fill_checklists, write_checklists
from medseg.reporting.citations import sources
from medseg.reporting.collect import Facts, collect_folders, collect_run
from medseg.reporting.hashes import hash_rows
from medseg.reporting.methods import compose_methods


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("checklists")
    write_volume_run(root)
    return root


@pytest.fixture(scope="module")
def data(root):
    return collect_run(root / "run", "phantoms", list(MODELS), Facts(name="phantoms", licence="CC0"))


@pytest.mark.parametrize("name", ORDER)
def test_a_checklist_says_where_it_comes_from_and_every_answer_exists(name):
    content = yaml.safe_load((CHECKLISTS / f"{name}.yaml").read_text(encoding="utf-8"))
    assert content["citation"] in sources() and content["address"].startswith("https://") and content["source"]
    keys = {item.get("answer") for item in content["items"]} - {None}
    parts = {"data", "partitions", "preprocessing", "network", "training", "inference", "evaluation", "statistics", "software"}
    assert keys <= set(ANSWERS) | parts
    assert all(item["topic"] and (item.get("answer") or item.get("ask")) for item in content["items"])


def test_numbers_are_the_published_ones():
    numbers = {}
    for name in ORDER:
        content = yaml.safe_load((CHECKLISTS / f"{name}.yaml").read_text(encoding="utf-8"))
        numbers[name] = [item.get("number") for item in content["items"]]
        assert not content["numbered"] or len(numbers[name]) == content["published_items"]
    assert numbers["claim_2024"] == [str(n) for n in range(1, 45)]
    assert len({n.rstrip("abcdefg") for n in numbers["tripod_ai"]}) == 27
    assert set(numbers["metrics_reloaded"]) == {None}


def test_what_could_not_be_had_is_named(data):
    *others, metrics = fill_checklists(data, compose_methods(data))
    assert "left out" in metrics.left_out and not metrics.numbered
    assert not any(checklist.left_out for checklist in others)


def test_items_are_answered_from_the_records_or_left_to_the_author(data):
    claim = fill_checklists(data, compose_methods(data))[0]
    by_number = {item.number: item for item in claim.items}
    assert by_number["17"].state == "author" and by_number["17"].answer == ""
    assert by_number["23"].state == "records" and "PyTorch 2.13.0" in by_number["23"].answer
    assert by_number["12"].answer.startswith("1 case could not be read")
    assert "fcn8s: 1 missed" in by_number["39"].answer
    assert sum(map(claim.count, ("records", "part", "author"))) == 44


def test_without_records_nothing_is_claimed(root):
    for model in MODELS:
        (root / "run" / "evaluate" / model / "stage.json").rename(root / f"{model}.json")
    try:
        data = collect_folders([root / "run" / "evaluate" / model for model in MODELS])
        claim = {item.number: item for item in fill_checklists(data, compose_methods(data))[0].items}
    finally:
        for model in MODELS:
            (root / f"{model}.json").rename(root / "run" / "evaluate" / model / "stage.json")
    for number in ("1", "9", "20", "22", "23", "24", "25", "26", "27", "29"):
        assert claim[number].state == "author", number
    assert hash_rows(data) == []


def test_the_hashes_of_the_models_are_told_in_full(data):
    rows = [row for row in hash_rows(data) if row.what == "model file"]
    assert [row.model for row in rows] == list(MODELS)
    assert all(len(row.sha256) == 64 for row in rows)


def test_checklists_stand_beside_the_report(data, tmp_path):
    filled = fill_checklists(data, compose_methods(data))
    write_checklists(filled, tmp_path)
    table = pd.read_csv(tmp_path / "claim_2024.csv", dtype=str, keep_default_na=False)
    assert len(table) == 44 and set(table["state"]) == {"records", "part", "author"}


def test_on_paper_paragraphs_of_the_methods_are_named_and_hashes_are_short(data):
    methods = compose_methods(data)
    items = [item for checklist in fill_checklists(data, methods) for item in checklist.items]
    assert any("Methods: " in item.brief for item in items)
    assert not any(part.text in item.brief for item in items for part in methods.parts)
    assert all(bool(item.brief) == bool(item.answer) for item in items)
    assert not any(re.search("[0-9a-f]{40}", item.brief) for item in items) and any("…" in item.brief for item in items)
