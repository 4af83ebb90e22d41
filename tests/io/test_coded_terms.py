"""Coded terms: every name of the table is in the standard's dictionary, and what names and codes become."""

from __future__ import annotations

import pytest
from pydicom.sr.codedict import codes

from medseg.core.errors import ConfigError
from medseg.core.labels import Structure
from medseg.io.coded_terms import KEYWORDS, LOCAL_SCHEME, SYNONYMS, find_terms


def structure(name: str, **code: str) -> Structure:
    return Structure(name=name, id=1, code=code or None)


@pytest.mark.parametrize("keyword", sorted({*KEYWORDS, *SYNONYMS.values()}))
def test_the_dictionary_has_every_keyword(keyword: str) -> None:
    assert find_terms(structure(keyword)).kind == getattr(codes.SCT, keyword)


@pytest.mark.parametrize(
    ("name", "keyword", "side"),
    [
        ("liver", "Liver", None),
        ("Kidney_left", "Kidney", "Left"),
        ("right kidney", "Kidney", "Right"),
        ("lung_upper_lobe_left", "UpperLobeOfLung", "Left"),
        ("lung_middle_lobe_right", "MiddleLobeOfRightLung", None),
        ("vertebrae_L1", "L1Vertebra", None),
        ("heart_atrium_left", "LeftAtrium", None),
        ("urinary_bladder", "Bladder", None),
        ("Oesophagus", "Esophagus", None),
        ("grey matter", "GrayMatter", None),
    ],
)
def test_names_of_common_anatomy(name: str, keyword: str, side: str | None) -> None:
    terms = find_terms(structure(name))
    assert terms.kind == getattr(codes.SCT, keyword)
    assert terms.side == (side and getattr(codes.SCT, side))


def test_categories() -> None:
    assert find_terms(structure("liver")).category == codes.SCT.AnatomicalStructure
    assert find_terms(structure("liver tumour")).category == codes.SCT.MorphologicallyAbnormalStructure
    assert find_terms(structure("white matter")).category == codes.SCT.Tissue


def test_the_schemes_own_code_comes_first() -> None:
    terms = find_terms(structure("liver", scheme="99ME", value="7", meaning="My liver lesion"))
    assert terms.kind[:3] == ("7", "99ME", "My liver lesion")
    assert terms.category == codes.SCT.MorphologicallyAbnormalStructure


def test_unknown_names_have_a_local_code_of_their_own() -> None:
    one, same, other = (find_terms(structure(name)).kind for name in ("Anterior", "anterior", "Posterior"))
    assert one.scheme_designator == LOCAL_SCHEME and one.meaning == "Anterior"
    assert one.value == same.value != other.value and len(one.value) == 16
    assert find_terms(structure("left and right thing")).side is None


def test_a_code_without_a_part_is_refused() -> None:
    with pytest.raises(ConfigError, match="`liver` has no `meaning`"):
        find_terms(structure("liver", scheme="SCT", value="10200004"))
