"""Small pieces of sentences."""

from __future__ import annotations

import pytest

from medseg.core.wording import FEW, one_line, some_of


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ([], ""),
        (["a"], "a"),
        (list("abcde"), "a, b, c, d, e"),
        (list("abcdefg"), "a, b, c, d, e and 2 more"),
        ({3: 0, 4: 0}, "3, 4"),
    ],
)
def test_a_few_names_and_how_many_more(names, said):
    assert FEW == 5 and some_of(names) == said


def test_another_number_of_names():
    assert some_of((f"`{name}`" for name in "abc"), most=2) == "`a`, `b` and 1 more"


def test_what_an_error_says_on_one_line():
    assert one_line(ValueError("bad\n   header\t\n")) == "bad header"
    assert one_line(ValueError("bad\n   header"), 5) == "bad h"
    assert one_line(ValueError()) == ""
