"""The models of a cross-validation's folds as one."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median_low

from medseg.inference.bundle import Bundle
from medseg.inference.postprocess import Postprocessing, Rule


def join_folds(name: str, bundles: Sequence[Bundle]) -> Bundle:
    """One model of several whose plan, network and labels are the same: their logits, each by its own temperature, are averaged.

    Args:
        name: of the whole.
    Returns: a bundle with the weights of all, and without a card.
    """
    about = bundles[0].description.model_copy(
        update={
            "model": name,
            "postprocessing": join_postprocessing([bundle.description.postprocessing for bundle in bundles]),
            "temperature": [temperature for bundle in bundles for temperature in bundle.temperatures],
            "finish": {},
            "sha256": {},
        }
    )
    return Bundle(about, tuple(weights for bundle in bundles for weights in bundle.weights), card="")


def join_postprocessing(chosen: Sequence[Postprocessing | None]) -> Postprocessing | None:
    """What most folds chose: only the largest piece where more than half did, and the (lower) median of the smallest volumes.

    A fold that chose nothing for a structure counts as volume 0, so a limit needs more than half of the folds as well.
    """
    rules = {}
    for name in dict.fromkeys(name for fold in chosen if fold for name in fold.rules):
        of_folds = [fold.rules.get(name, Rule()) if fold else Rule() for fold in chosen]
        rule = Rule(
            keep_largest=2 * sum(r.keep_largest for r in of_folds) > len(of_folds),
            smallest_volume=median_low([r.smallest_volume for r in of_folds]),
        )
        if rule != Rule():
            rules[name] = rule
    return Postprocessing(rules=rules) if rules else None
