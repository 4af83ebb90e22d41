"""What the folds' models decide together."""

from __future__ import annotations

from tiny_models import tiny_bundle

from medseg.inference.postprocess import Postprocessing, Rule
from medseg.inference.together import join_folds, join_postprocessing


def chose(**rules: Rule) -> Postprocessing:
    return Postprocessing(rules=rules)


def test_more_than_half_must_agree() -> None:
    largest = chose(liver=Rule(keep_largest=True))
    assert join_postprocessing([largest, largest, None]) == largest
    assert join_postprocessing([largest, None, None]) is None
    assert join_postprocessing([largest, None]) is None  # half is not most
    assert join_postprocessing([None, None]) is None


def test_the_smallest_volume_is_the_median_of_all_folds() -> None:
    volumes = [chose(liver=Rule(smallest_volume=v)) if v else None for v in (5.0, 9.0, 7.0)]
    assert join_postprocessing(volumes) == chose(liver=Rule(smallest_volume=7.0))
    assert join_postprocessing([*volumes[:1], None, None]) is None
    assert join_postprocessing([*volumes[:2], None, None]) is None  # the lower of the two middle ones: fewer pieces go


def test_structures_are_decided_one_by_one() -> None:
    folds = [
        chose(liver=Rule(keep_largest=True), tumour=Rule(smallest_volume=3)),
        chose(liver=Rule(keep_largest=True)),
        chose(tumour=Rule(smallest_volume=4)),
    ]
    assert join_postprocessing(folds) == chose(liver=Rule(keep_largest=True), tumour=Rule(smallest_volume=3))


def test_weights_and_temperatures_stay_together() -> None:
    bundles = [tiny_bundle(seed=seed) for seed in range(3)]
    whole = join_folds("all", bundles)
    assert len(whole.weights) == 3 and whole.temperatures == [1.0, 1.0, 1.0]
    assert whole.description.model == "all" and whole.plan == bundles[0].plan
