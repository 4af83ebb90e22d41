"""The structures to evaluate where no labels file names them: what the references themselves hold."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from medseg.core.errors import CaseError, ConfigError
from medseg.core.labels import MOST_STRUCTURES, LabelScheme, Structure
from medseg.core.progress import say
from medseg.core.wording import some_of
from medseg.evaluation.masks import plain
from medseg.evaluation.pairs import Pair
from medseg.io.formats import read_labels, read_named_masks

FEWEST_SLICES = 3  # names that differ in a number alone are no longer a pair of organs
NUMBER = re.compile(r"\d+")


def scheme_from_references(pairs: Sequence[Pair]) -> LabelScheme:
    """A structure `label_<v>` for each value above 0 in the references that can be read, or one for each name of their masks.

    Raises: ConfigError where there is none, or no reference can be read; where there are too many to be structures, or some
        masks have names and others have values, which only a labels file can bring together.
    """
    if names := _names_of_masks(pairs):
        say(f"no labels file given: structures are the names of the references' masks ({', '.join(names)})")
        return LabelScheme(structures=[Structure(name=name, id=number) for number, name in enumerate(names, start=1)])
    found: set[int] = set()
    faults: list[CaseError] = []
    for pair in pairs:
        try:
            assert pair.reference is not None
            found |= set(np.unique(read_labels(pair.reference).array).tolist())
        except CaseError as error:
            faults.append(error)  # the evaluation meets the same file again and gives the reason
    if len(faults) == len(pairs):
        raise ConfigError(f"none of the references can be read; of the first: {faults[0]}")
    values = sorted(found - {0})
    if not values:
        raise ConfigError("no reference holds a value above 0, so there is no structure to evaluate; give --labels labels.yaml.")
    if len(values) > MOST_STRUCTURES or values[-1] > 65535:
        raise ConfigError(
            f"the references hold {len(values)} values up to {values[-1]}, too many to be structures; give --labels labels.yaml "
            "(`values: nonzero` reads numbered instances as one structure)."
        )
    say(f"no labels file given: structures are the values of the references ({', '.join(f'label_{v}' for v in values)})")
    return LabelScheme(structures=[Structure(name=f"label_{v}", id=v) for v in values])


def _names_of_masks(pairs: Sequence[Pair]) -> list[str]:
    """The names in the references, where all masks have names; none where none has. Raises: ConfigError where some have."""
    names: dict[str, list[str]] = {"references": [], "predictions": []}
    without: dict[str, Path] = {}
    for pair in pairs:
        for what, path in (("references", pair.reference), ("predictions", pair.prediction)):
            try:
                masks = read_named_masks(path) if path else None
            except CaseError:
                continue  # the evaluation meets the same file again and gives the reason
            if masks is not None:
                names[what] += masks.names
            elif path is not None:
                without.setdefault(what, path)
    named = [what for what, found in names.items() if found]
    if named and without:
        raise ConfigError(
            f"the {named[0]} name their structures ({some_of(dict.fromkeys(names[named[0]]))}) and "
            f"{next(iter(without.values()))} holds values; give --labels labels.yaml, which says which value is which structure."
        )
    plainly = {plain(name): name for name in reversed(names["references"])}
    if len(plainly) > MOST_STRUCTURES:
        raise ConfigError(f"the references name {len(plainly)} structures, too many; give --labels labels.yaml with some.")
    if len(plainly) >= FEWEST_SLICES and len({NUMBER.sub("#", name) for name in plainly}) == 1:
        raise ConfigError(
            f"the references' files in the folder of a case are only numbered ({some_of(sorted(plainly.values()))}), as slices "
            "are and structures are not; save the mask of a case as one file, or give --labels if these are structures."
        )
    return sorted(plainly.values())
