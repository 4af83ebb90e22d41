"""The works that the methods cite."""

from __future__ import annotations

import re

import pytest

from medseg.reporting.citations import REFERENCES, bibtex, cite, number, plain, sources
from medseg.reporting.methods import PAPERS, SOFTWARE_PAPERS
from medseg.reporting.recipe import LOSSES


def test_every_entry_is_read():
    text = REFERENCES.read_text(encoding="utf-8")
    assert len(sources()) == text.count("\n@") + 1
    assert bibtex(sources().values()) == text


@pytest.mark.parametrize("key", sources())
def test_an_entry_has_what_a_reference_needs(key):
    source = sources()[key]
    assert {"author", "title", "year"} <= set(source.fields)
    assert ("journal" in source.fields) or ("booktitle" in source.fields)
    assert re.fullmatch(r"(19|20)\d\d", source.fields["year"]) and source.fields["year"] in source.text
    assert re.match(r"https://(doi\.org/10\.\d{4,}/\S+|arxiv\.org/abs/\d{4}\.\d{4,5}|www\.jstor\.org/\S+)$", source.link)
    assert key.startswith(re.sub("[^a-z]", "", plain(source.fields["author"]).split(",")[0].lower().replace("ç", "c")))


def test_a_reference_reads_as_in_a_paper():
    assert sources()["dice1945"].text == (
        "Dice LR. Measures of the Amount of Ecologic Association Between Species. Ecology 1945; 26:297–302."
    )
    assert sources()["tejani2024"].text.startswith("Tejani AS, Klontzas ME, Gatti AA, et al. ")


def test_works_are_numbered_in_the_order_of_their_first_citation():
    texts, found = number(["a" + cite("long2015", "dice1945"), "b", "c" + cite("dice1945")])
    assert texts == ["a [1, 2]", "b", "c [2]"]
    assert [source.key for source in found] == ["long2015", "dice1945"]


def test_a_user_cannot_forge_a_citation():
    assert number([plain(cite("long2015"))]) == (["long2015"], [])


def test_unknown_works_are_not_cited():
    with pytest.raises(KeyError):
        cite("nobody1900")


def test_every_work_that_the_text_may_cite_is_there():
    keys = [key for papers in [*PAPERS.values(), *(p for _, p in LOSSES.values())] for key in papers]
    assert {*keys, *SOFTWARE_PAPERS.values()} <= set(sources())
