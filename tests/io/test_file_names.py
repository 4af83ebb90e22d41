"""What stands behind the name of a case."""

from __future__ import annotations

import pytest

from medseg.io.file_names import CHANNEL_SUFFIX, bare_name


@pytest.mark.parametrize(
    ("name", "bare"),
    [
        ("p01", "p01"),
        ("p01_seg", "p01"),
        ("p01.label", "p01"),
        ("p01-Mask", "p01"),
        ("p01_cp_masks", "p01"),
        ("p01_0000_pred", "p01"),  # of the first channel, by a tool that keeps the picture's name
        ("p01_0000", "p01"),
        ("p01_0001", "p01_0001"),  # of another channel: not the case's own name
        ("p01_segment", "p01_segment"),
        ("_seg", "_seg"),  # nothing would be left
        ("_0000", "_0000"),
    ],
)
def test_what_tools_put_behind_a_name(name, bare):
    assert bare_name(name) == bare


def test_the_number_of_a_channel():
    found = CHANNEL_SUFFIX.search("p01_0012")
    assert found and found[1] == "0012"
    assert not CHANNEL_SUFFIX.search("p01_12") and not CHANNEL_SUFFIX.search("_0001")
