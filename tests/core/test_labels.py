import pickle
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medseg.core.config import parse
from medseg.core.errors import ConfigError, LabelError
from medseg.core.labels import IGNORE, LabelScheme, load_label_scheme

NUMBERED = {"name": "a", "id": 1, "values": "nonzero", "objects": "numbered"}


def scheme(*structures: dict[str, Any], **rest: Any) -> LabelScheme:
    return parse(LabelScheme, {"structures": list(structures), **rest}, "x.yaml")


def test_values_become_classes_and_classes_become_ids() -> None:
    liver = scheme({"name": "liver", "id": 5, "values": [6, 7]}, {"name": "spleen", "id": 1}, ignore_values=[200])
    values = np.array([[0, 6, 7], [1, 200, 0]], np.uint16)
    classes = liver.encode(values, "p01")
    assert classes.dtype == np.uint8
    assert classes.tolist() == [[0, 1, 1], [2, IGNORE, 0]]
    assert liver.decode(np.array([0, 1, 2])).tolist() == [0, 5, 1]
    assert liver.n_classes == 3
    assert liver.names == ["liver", "spleen"]


def test_the_membrane_of_isbi_2012_is_the_value_zero() -> None:
    membrane = scheme({"name": "membrane", "id": 1, "values": [0]}, background_values=[255])
    assert membrane.encode(np.array([0, 255], np.uint8), "slice").tolist() == [1, 0]
    assert membrane.decode(np.array([0, 1])).tolist() == [0, 1]
    # Our own masks hold 0 for the background whatever the reference files hold.
    assert membrane.encode(np.array([0, 1], np.uint8), "slice", prediction=True).tolist() == [0, 1]


def test_instance_labels_are_foreground() -> None:
    nuclei = scheme({"name": "nuclei", "id": 1, "values": "nonzero"})
    assert nuclei.encode(np.array([0, 1, 40000], np.uint16), "x").tolist() == [0, 1, 1]
    with pytest.raises(LabelError, match="40000"):
        nuclei.encode(np.array([0, 40000], np.uint16), "x", prediction=True)


def test_masks_of_another_tool_have_their_own_values() -> None:
    liver = scheme({"name": "liver", "id": 1, "prediction_values": [5]}, ignore_values=[5])
    assert liver.encode(np.array([0, 5], np.uint8), "x", prediction=True).tolist() == [0, 1]
    assert liver.encode(np.array([0, 5, 1], np.uint8), "x").tolist() == [0, IGNORE, 1]


def test_masks_of_another_tool_in_the_coding_of_the_references() -> None:
    rest = {"background_values": [255]}
    same = scheme({"name": "membrane", "id": 1, "values": [0], "prediction_values": [0]}, **rest)
    assert same.encode(np.array([0, 255], np.uint8), "x", prediction=True).tolist() == [1, 0]
    inverted = scheme({"name": "membrane", "id": 1, "values": [0], "prediction_values": [255]}, **rest)
    assert inverted.encode(np.array([0, 255], np.uint8), "x", prediction=True).tolist() == [0, 1]
    anything = scheme({"name": "membrane", "id": 1, "values": [0], "prediction_values": "nonzero"}, **rest)
    assert anything.encode(np.array([0, 255], np.uint8), "x", prediction=True).tolist() == [0, 1]


def test_unknown_values_of_a_prediction_are_for_prediction_values() -> None:
    with pytest.raises(LabelError, match="say in `prediction_values` which structures they are"):
        scheme({"name": "liver", "id": 1}).encode(np.array([7], np.uint8), "x", prediction=True)


def test_ids_above_255_are_written_in_16_bits() -> None:
    assert scheme({"name": "a", "id": 255}).decode(np.array([1])).dtype == np.uint8
    assert scheme({"name": "a", "id": 256}).decode(np.array([1])).dtype == np.uint16


def test_unknown_values_are_named_with_the_file_and_the_cure() -> None:
    with pytest.raises(LabelError) as caught:
        scheme({"name": "liver", "id": 1}).encode(np.arange(30, dtype=np.uint8), "labels/p07.nii.gz")
    said = str(caught.value)
    assert said.startswith("labels/p07.nii.gz: label values 2, 3, 4, 5, 6, 7, 8, 9 and 20 more")
    assert "known: 0, 1" in said
    assert "`ignore_values`" in said


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"structures": []}, "structures"),
        ({"structures": [{"name": "a", "id": 1}, {"name": "a", "id": 2}]}, "name a"),
        ({"structures": [{"name": "a", "id": 1}, {"name": "b", "id": 1}]}, "id 1"),
        ({"structures": [{"name": "a", "id": 1, "values": [3]}, {"name": "b", "id": 2, "values": [3]}]}, "another structure"),
        ({"structures": [{"name": "a", "id": 1, "values": [0]}]}, "background_values"),
        ({"structures": [{"name": "a", "id": 1}], "ignore_values": [1]}, "ignored"),
        ({"structures": [{"name": "a", "id": 1}], "ignore_values": [0]}, "both background and ignored"),
        ({"structures": [{"name": "a", "id": 1, "values": "nonzero"}, {"name": "b", "id": 2}]}, "nonzero"),
        ({"structures": [{"name": "a", "id": 1, "values": "nonzero"}], "background_values": [9]}, "0 must be in"),
        ({"structures": [{"name": "a", "id": 1, "paired_with": "b"}]}, "no structure"),
        ({"structures": [{"name": "a", "id": 1, "objects": "numbered"}]}, "state `values: nonzero`"),
        ({"structures": [{"name": "a", "id": 1, "values": [7], "objects": "numbered"}]}, "state `values: nonzero`"),
        ({"structures": [{"name": "a", "id": 1, "values": [], "objects": "numbered"}]}, "state `values: nonzero`"),
        ({"structures": [NUMBERED | {"values": [0, 1]}], "background_values": [9]}, "0 is no number of an object"),
        ({"structures": [NUMBERED | {"prediction_values": [0, 1]}]}, "0 is no number of an object"),
        ({"structures": [NUMBERED, NUMBERED | {"name": "b", "id": 2}]}, "leaves no values to other structures"),
        ({"structures": [NUMBERED | {"objects": "touching"}]}, "structures.0.objects"),
        ({"structures": [{"name": "a", "id": 0}]}, "structures.0.id"),
        ({"structures": [{"name": "a", "id": 1, "colour": "red"}]}, "structures.0.colour"),
    ],
)
def test_an_ambiguous_scheme_is_refused(content: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(LabelScheme, content, "x.yaml")
    assert said in str(caught.value)


BRATS = [{"name": n, "id": i} for i, n in enumerate(("necrosis", "oedema", "non_enhancing", "enhancing"), start=1)]
REGIONS = [
    {"name": "whole_tumour", "structures": ["necrosis", "oedema", "non_enhancing", "enhancing"]},
    {"name": "enhancing", "structures": ["enhancing"]},
    {"name": "core", "structures": ["necrosis", "non_enhancing", "enhancing"]},
]


def test_without_regions_structures_are_learnt_and_measured() -> None:
    brats = scheme(*BRATS)
    assert brats.n_outputs == 5
    assert brats.measured == {"necrosis": [1], "oedema": [2], "non_enhancing": [3], "enhancing": [4]}
    assert brats.membership is None
    scores = np.eye(5, dtype=np.float32).reshape(5, 5, 1, 1)
    decided = brats.decide(scores)
    assert decided.dtype == np.uint8
    assert decided.ravel().tolist() == [0, 1, 2, 3, 4]


def test_regions_are_learnt_and_measured() -> None:
    brats = scheme(*BRATS, regions=REGIONS)
    assert brats.n_outputs == 3
    assert brats.measured == {"whole_tumour": [1, 2, 3, 4], "enhancing": [4], "core": [1, 3, 4]}
    membership = brats.membership
    assert membership is not None
    assert membership.astype(int).tolist() == [[0, 1, 1, 1, 1], [0, 0, 0, 0, 1], [0, 1, 0, 1, 1]]


def test_regions_are_painted_from_the_largest_to_the_smallest() -> None:
    brats = scheme(*BRATS, regions=REGIONS)
    #                  none  whole  whole+core  all  enhancing alone  a score of 0 is no region
    scores = np.array([[-1, 1, 1, 1, -1, 0], [-1, -1, -1, 1, 1, -1], [-1, -1, 1, 1, -1, -1]], np.float32)
    decided = brats.decide(scores.reshape(3, 6, 1, 1))
    assert decided.shape == (6, 1, 1) and decided.dtype == np.uint8
    assert decided.ravel().tolist() == [0, 2, 1, 4, 4, 0]  # oedema and necrosis are the first in no smaller region
    written = [REGIONS[0], REGIONS[1], REGIONS[2] | {"written_as": "non_enhancing"}]
    assert scheme(*BRATS, regions=written).decide(scores.reshape(3, 6, 1, 1)).ravel().tolist() == [0, 2, 3, 4, 4, 0]


def test_what_regions_decide_has_those_regions() -> None:
    brats = scheme(*BRATS, regions=REGIONS)
    classes = np.arange(5, dtype=np.uint8).reshape(5, 1, 1)
    assert brats.membership is not None
    truth = brats.membership[:, classes]
    np.testing.assert_array_equal(brats.membership[:, brats.decide(np.where(truth, 3, -3).astype(np.float32))], truth)


@pytest.mark.parametrize(
    ("regions", "said"),
    [
        ([*REGIONS[:2], {"name": "core", "structures": ["necrosys"]}], "`core` names `necrosys`, which is no structure"),
        ([*REGIONS, {"name": "core", "structures": ["oedema"]}], "`core` and `core` have one name"),
        ([*REGIONS, {"name": "active", "structures": ["enhancing"]}], "`enhancing` and `active` have one name or the same"),
        ([REGIONS[0], {"name": "oedema", "structures": ["necrosis"]}], "`oedema` has the name of a structure"),
        ([*REGIONS, {"name": "outer", "structures": ["oedema", "necrosis"]}], "`core` and `outer` cross"),
        ([REGIONS[2]], "`oedema` is in no region"),
        ([{"name": "all", "structures": ["oedema", "oedema"]}], "names a structure twice"),
        ([REGIONS[0], REGIONS[2] | {"written_as": "oedema"}], "which is not part of it"),
        ([REGIONS[0], REGIONS[2], {"name": "rim", "structures": ["oedema"]}], "state `written_as`"),
        ([{"name": "all", "structures": []}], "regions.0.structures"),
        ([{"name": "all", "members": ["oedema"]}], "regions.0.members"),
    ],
)
def test_regions_that_are_wrong_are_refused(regions: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        scheme(*BRATS, regions=regions)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_labels_file_has_the_same_form(tmp_path: Path) -> None:
    path = tmp_path / "labels.yaml"
    path.write_text("structures: [{name: liver, id: 1, prediction_values: nonzero}]\n")
    assert load_label_scheme(path).encode(np.array([0, 9], np.uint8), "x", prediction=True).tolist() == [0, 1]


@pytest.mark.parametrize("n", [2, 8])
def test_the_first_of_the_greatest_scores_wins_and_no_copy_of_all_is_made(n: int) -> None:
    labels = scheme(*({"name": f"s{k}", "id": k} for k in range(1, n)))
    scores = np.random.default_rng(0).integers(-4, 4, (n, 64, 32, 32)).astype(np.float32)  # many are equal
    before = scores.copy()
    tracemalloc.start()
    decided = labels.decide(scores)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(decided, scores.argmax(0))
    np.testing.assert_array_equal(scores, before)
    assert peak < 4 * scores[0].nbytes


def test_outputs_change_places_with_their_classes() -> None:
    def swapped(*regions: list[str]) -> list[tuple[int, int]] | None:
        structures = [{"name": name, "id": k} for k, name in enumerate(("left", "right", "cyst"), start=1)]
        named = [{"name": "+".join(names), "structures": names} for names in regions]
        return scheme(*structures, regions=named).swapped_outputs([(1, 2)])

    assert swapped() == [(1, 2)]
    assert swapped(["right"], ["cyst"], ["left"]) == [(0, 2)]
    assert swapped(["left", "right"], ["cyst"]) == []
    assert swapped(["left", "right", "cyst"], ["left"], ["right"]) == [(1, 2)]
    assert swapped(["left", "cyst"], ["right"]) is None


def test_numbered_structures_are_named_by_themselves_and_in_regions() -> None:
    cells = [
        {"name": "round", "id": 1, "values": [1, 2, 3], "objects": "numbered", "prediction_values": [0]},
        {"name": "long", "id": 2, "values": [4, 5], "objects": "numbered"},
        {"name": "scar", "id": 3, "values": [6, 7]},
    ]
    regions = [{"name": "tissue", "structures": ["round", "long", "scar"]}, {"name": "cells", "structures": ["round", "long"]}]
    assert scheme(*cells).numbered == ["round", "long"]
    assert scheme(*cells, regions=[*regions, {"name": "long", "structures": ["long"]}]).numbered == ["cells", "long"]
    assert scheme(NUMBERED).numbered == ["a"] and scheme(NUMBERED | {"objects": "components"}).numbered == []


def test_how_objects_are_told_apart_changes_nothing_that_is_learnt_or_kept() -> None:
    numbered, plain = scheme(NUMBERED, ignore_values=[9]), scheme(NUMBERED | {"objects": "components"}, ignore_values=[9])
    values = np.array([0, 1, 2, 9, 70_000, 2**32 - 1], np.uint32)
    for prediction in (False, True):
        known = values[:2] if prediction else values
        np.testing.assert_array_equal(numbered.encode(known, "x", prediction), plain.encode(known, "x", prediction))
    # What stages and models write down: a run that was trained before it was stated does not have to be trained again.
    assert numbered.model_dump() == plain.model_dump() and numbered.model_dump_json() == plain.model_dump_json()
    assert "objects" not in numbered.model_dump_json()
    assert numbered.model_copy().numbered == ["a"] and pickle.loads(pickle.dumps(numbered)).numbered == ["a"]
