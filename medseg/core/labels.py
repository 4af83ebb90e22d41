"""Names and numbers of structures: the only place that knows label ids."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from medseg.core.config import Section, load_yaml, parse
from medseg.core.errors import ConfigError, LabelError
from medseg.core.wording import one_line, some_of

IGNORE = 255  # class index of voxels that neither training nor evaluation looks at
MOST_STRUCTURES = 254
MOST_VALUES = 8  # named in an error


class Structure(Section):
    """One thing to segment.

    Args:
        id: the value that we write for it.
        values: the values that reference files hold for it; by default its id; `nonzero` for all that are not 0.
        prediction_values: the same for masks made by another tool; by default its id.
        objects: how cells, nuclei and the like are told apart where they are compared one by one: `components`, each connected
            piece of the mask is one; `numbered`, each value of a reference file is one, so that neighbours may touch.
        paired_with: the structure on the other side of the body; where a picture is mirrored left to right, the two change names.
        code: a coded term, such as {scheme: SCT, value: "10200004", meaning: Liver}.
    """

    name: str = Field(min_length=1)
    id: int = Field(ge=1, le=65535)
    values: list[int] | Literal["nonzero"] | None = None
    prediction_values: list[int] | Literal["nonzero"] | None = None
    # Left out of what is written down: no model depends on it, so that trained ones stay valid when it is stated later.
    objects: Literal["components", "numbered"] = Field(default="components", exclude=True)
    paired_with: str | None = None
    code: dict[str, str] | None = None


class Region(Section):
    """Structures that are learnt and measured together, such as the whole tumour; regions may contain each other.

    Args:
        structures: names of its structures.
        written_as: the structure that a mask gets where this is the smallest region found; by default the first of the
            region that is in no smaller one.
    """

    name: str = Field(min_length=1)
    structures: list[str] = Field(min_length=1)
    written_as: str | None = None


class LabelScheme(Section):
    """What the values of label files mean. Classes are numbered 0 (background), then 1, 2, ... in the order given.

    Where `regions` are given (BraTS: whole tumour, core, enhancing), a network answers for each region yes or no, and these are
    what is measured; masks still hold the ids of structures.

    Raises: a ConfigError through `parse` where two structures share a name, an id or a value, or regions cross.
    """

    structures: list[Structure] = Field(min_length=1, max_length=MOST_STRUCTURES)
    regions: list[Region] = []
    background_values: list[int] = [0]
    ignore_values: list[int] = []

    @model_validator(mode="after")
    def _unambiguous(self) -> LabelScheme:
        for what, items in (("name", self.names), ("id", [str(s.id) for s in self.structures])):
            if double := {i for i in items if items.count(i) > 1}:
                raise ValueError(f"two structures have the {what} {', '.join(sorted(double))}")
        for prediction in (False, True):
            self._table(prediction)
        for structure in self.structures:
            _check_objects(structure)
            if structure.paired_with and structure.paired_with not in self.names:
                raise ValueError(f"`{structure.name}` is paired_with `{structure.paired_with}`, which is no structure")
        if self.regions:
            self._check_regions()
        return self

    def _check_regions(self) -> None:
        """Raises: ValueError where regions name what does not exist, cross, repeat each other or leave a structure out."""
        members = {structure: {structure} for structure in self.names}
        for region in self.regions:
            if unknown := [s for s in region.structures if s not in self.names]:
                raise ValueError(f"the region `{region.name}` names `{unknown[0]}`, which is no structure")
            if len(own := set(region.structures)) < len(region.structures):
                raise ValueError(f"the region `{region.name}` names a structure twice")
            if region.written_as is not None and region.written_as not in own:
                raise ValueError(f"the region `{region.name}` is written_as `{region.written_as}`, which is not part of it")
            if members.get(region.name, own) != own:
                raise ValueError(f"the region `{region.name}` has the name of a structure that is something else; rename it")
        for a, b in combinations(self.regions, 2):
            one, other = set(a.structures), set(b.structures)
            if a.name == b.name or one == other:
                raise ValueError(f"the regions `{a.name}` and `{b.name}` have one name or the same structures; remove one")
            if one & other and not (one < other or other < one):
                raise ValueError(f"the regions `{a.name}` and `{b.name}` cross; one must lie in the other, or they share nothing")
        if left_out := [name for name in self.names if not any(name in r.structures for r in self.regions)]:
            raise ValueError(
                f"`{left_out[0]}` is in no region, so nothing would learn it; give it one, or make its values background_values"
            )
        for region in self.regions:
            self._written_as(region)

    @property
    def names(self) -> list[str]:
        """Names of the structures, without the background."""
        return [s.name for s in self.structures]

    @property
    def n_classes(self) -> int:
        """Structures plus background."""
        return len(self.structures) + 1

    @property
    def n_outputs(self) -> int:
        """Channels of a network's answer: the classes, or the regions."""
        return len(self.regions) or self.n_classes

    @property
    def measured(self) -> dict[str, list[int]]:
        """What is learnt and measured, by name: the class indices of each structure, or of each region."""
        index = {name: k for k, name in enumerate(self.names, start=1)}
        if not self.regions:
            return {name: [k] for name, k in index.items()}
        return {region.name: [index[name] for name in region.structures] for region in self.regions}

    @property
    def numbered(self) -> list[str]:
        """The names in `measured` whose objects references number: structures, and regions of nothing but such structures."""
        told = [structure.objects == "numbered" for structure in self.structures]
        return [name for name, classes in self.measured.items() if all(told[index - 1] for index in classes)]

    @property
    def membership(self) -> npt.NDArray[np.bool_] | None:
        """(n_outputs, n_classes) which classes belong to which region; None without regions."""
        if not self.regions:
            return None
        table = np.zeros((len(self.regions), self.n_classes), bool)
        for row, classes in zip(table, self.measured.values(), strict=True):
            row[classes] = True
        return table

    @property
    def painting(self) -> list[tuple[int, int]]:
        """Regions from the largest to the smallest: (channel of the network's answer, class index that its voxels get)."""
        order = sorted(range(len(self.regions)), key=lambda r: -len(self.regions[r].structures))
        return [(r, self.names.index(self._written_as(self.regions[r])) + 1) for r in order]

    def _written_as(self, region: Region) -> str:
        smaller = {name for r in self.regions if len(r.structures) < len(region.structures) for name in r.structures}
        own = [name for name in region.structures if name not in smaller]
        if region.written_as is None and not own:
            raise ValueError(
                f"each structure of the region `{region.name}` is in a smaller region too; state `written_as`, the structure "
                "that masks get where no smaller region is found"
            )
        return region.written_as or own[0]

    def decide(self, scores: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
        """The classes that a network's answer stands for.

        The greatest score wins; regions are painted from the largest to the smallest where their score is above 0 (a
        probability above one half), so that a smaller region stays visible in a larger one.

        Args:
            scores: (n_outputs, X, Y, Z) logits of the classes, or of the regions.
        Returns: (X, Y, Z) uint8 class indices.
        """
        return self.decide_by_channel(lambda channel: scores[channel], np.zeros(scores.shape[1:], np.uint8))

    def decide_by_channel(self, scores_of: Callable[[int], Any], classes: Any) -> Any:
        """As `decide`, of scores that are asked for one channel at a time: never all at once.

        Args:
            scores_of: (X, Y, Z) scores of a channel, as numpy or torch has them.
            classes: (X, Y, Z) uint8 zeros of the same kind and place; filled and returned.
        """
        if self.regions:
            for channel, index in self.painting:
                classes[scores_of(channel) > 0] = index
            return classes
        best = scores_of(0)
        for index in range(1, self.n_classes):
            there = scores_of(index)
            classes[there > best] = index
            if index + 1 < self.n_classes:
                best = best.clip(min=there)  # the greater of the two
        return classes

    def swapped_outputs(self, swaps: Sequence[tuple[int, int]]) -> list[tuple[int, int]] | None:
        """The outputs that change places where these classes do, each pair once: the classes themselves, or regions.

        None where a region has no partner: what its classes become is no region.
        """
        if not self.regions:
            return list(swaps)
        partner = {a: b for pair in swaps for a, b in (pair, pair[::-1])}
        regions = [set(classes) for classes in self.measured.values()]
        mirrored = [{partner.get(k, k) for k in region} for region in regions]
        if any(region not in regions for region in mirrored):
            return None
        places = [regions.index(region) for region in mirrored]
        return [(a, b) for a, b in enumerate(places) if a < b]

    def encode(self, values: npt.NDArray[Any], where: str, prediction: bool = False) -> npt.NDArray[np.uint8]:
        """Class indices of the values that a label file holds.

        Args:
            values: unsigned integers, any shape.
            where: the file, for the error.
            prediction: the file is a prediction: ids (ours) or `prediction_values` (another tool's).
        Returns: uint8 of the same shape: 0 background, k for the k-th structure, 255 (`IGNORE`) for ignored voxels.
        Raises: LabelError naming the values that mean nothing.
        """
        table, other = self._table(prediction)
        present = np.unique(values)
        if unknown := [int(v) for v in present if int(v) not in table and other is None]:
            known = some_of(sorted(table), MOST_VALUES)
            mend = (
                "say in `prediction_values` which structures they are, and in `background_values` that they are none (in the "
                "configuration, or the file of --labels)"
                if prediction  # not in `ignore_values`: what references hold there would be left out with them
                else "add them to `structures`, `background_values` or `ignore_values`"
            )
            raise LabelError(
                f"{where}: label values {some_of(unknown, MOST_VALUES)} are not in the label scheme (known: {known}); {mend}."
            )
        classes = np.array([table.get(int(v), other) for v in present], dtype=np.uint8)
        return classes[np.searchsorted(present, values)]

    def decode(self, classes: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The ids to write for class indices; uint8 where every id fits, else uint16."""
        ids = np.array([0, *(s.id for s in self.structures)])
        return ids.astype(np.uint8 if ids.max() < 256 else np.uint16)[classes]

    def _table(self, prediction: bool) -> tuple[dict[int, int], int | None]:
        """Class of each known value, and the class of any other value (None: there must be no other)."""
        table = dict.fromkeys(self._prediction_background() if prediction else self.background_values, 0)
        table |= dict.fromkeys(self.ignore_values, IGNORE)
        if not prediction and (both := set(self.background_values) & set(self.ignore_values)):
            raise ValueError(f"the value {min(both)} is both background and ignored")
        other = None
        for index, structure in enumerate(self.structures, start=1):
            values = structure.prediction_values if prediction else structure.values
            if values == "nonzero":
                if other is not None or len(self.structures) > 1:
                    raise ValueError("`nonzero` leaves no values to other structures; name their values")
                if 0 not in table:
                    raise ValueError(f"`{structure.name}` has the values `nonzero`, so 0 must be in `background_values`")
                other = index
                continue
            for value in [structure.id] if values is None else values:
                if value in table and not (prediction and value in self.ignore_values):
                    role = "background" if table[value] == 0 else "ignored" if table[value] == IGNORE else "another structure"
                    raise ValueError(
                        f"the value {value} of `{structure.name}` is also {role}; state `background_values` and `values`"
                    )
                table[value] = index
        return table, other

    def _prediction_background(self) -> set[int]:
        """Values of the background in predictions: 0 in our own masks, whatever the reference files hold.

        Where a structure has `prediction_values`, another tool made the masks, perhaps in the references' coding: then
        `background_values` and 0 are background, as far as no structure claims them.
        """
        named = [s.prediction_values for s in self.structures if s.prediction_values is not None]
        if not named or "nonzero" in named:
            return {0}
        claimed = {v for s in self.structures for v in ([s.id] if s.prediction_values is None else s.prediction_values)}
        return {0, *self.background_values} - claimed


def load_label_scheme(path: Path) -> LabelScheme:
    """The scheme in a labels.yaml file, or in the dataset.json of nnU-Net (and the Medical Segmentation Decathlon).

    Raises: ConfigError.
    """
    if Path(path).suffix.lower() != ".json":
        return parse(LabelScheme, load_yaml(path), str(path))
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} is not a readable JSON file ({one_line(error)}); correct it.") from None
    if not isinstance(content, dict) or not isinstance(labels := content.get("labels"), dict):
        raise ConfigError(f"{path} has no `labels`; give nnU-Net's dataset.json or a labels.yaml.")
    return parse(LabelScheme, _of_dataset(labels, content.get("regions_class_order"), path), str(path))


def _of_dataset(labels: dict[Any, Any], written: Any, path: Path) -> dict[str, Any]:
    """`labels` of a dataset.json as the content of a scheme: name -> value (or values: a region), or in old ones value -> name.

    Values that only regions name become structures `label_<v>`. `written`: the value that masks get for each region, in order.
    """
    old = all(isinstance(name, str) and str(value).isdecimal() for value, name in labels.items())
    named = {name: [int(value)] for value, name in labels.items()} if old else {str(n): _values(v) for n, v in labels.items()}
    if any(not values or any(not isinstance(v, int) or v < 0 for v in values) for values in named.values()):
        raise ConfigError(f"{path}: `labels` should name whole numbers from 0 on, or lists of them; correct it.")
    ignored = named.pop("ignore", [])
    found = {name: values for name, values in named.items() if name != "background" and values != [0]}
    if all(len(values) == 1 for values in found.values()):
        return {"structures": [{"name": name, "id": value[0]} for name, value in found.items()], "ignore_values": ignored}
    single = {values[0]: name for name, values in found.items() if len(values) == 1}
    of_value = {v: single.get(v, f"label_{v}") for values in found.values() for v in values}
    regions: list[dict[str, Any]] = [{"name": name, "structures": [of_value[v] for v in vs]} for name, vs in found.items()]
    for region, value in zip(regions, written if isinstance(written, list) else [], strict=False):
        if of_value.get(value) in region["structures"]:
            region["written_as"] = of_value[value]
    structures = [{"name": name, "id": value} for value, name in sorted(of_value.items())]
    return {"structures": structures, "regions": regions, "ignore_values": ignored}


def _values(stated: Any) -> list[Any]:
    return stated if isinstance(stated, list) else [stated]


def _check_objects(structure: Structure) -> None:
    """Raises: ValueError where the values of a structure cannot number its objects."""
    if structure.objects != "numbered":
        return
    values, found = structure.values or [structure.id], structure.prediction_values
    if values != "nonzero" and len(values) < 2:
        raise ValueError(
            f"the objects of `{structure.name}` are numbered, so its values are their numbers; state `values: nonzero`, or two "
            "values and more"
        )
    if any(isinstance(numbers, list) and len(numbers) > 1 and 0 in numbers for numbers in (values, found)):
        raise ValueError(f"the objects of `{structure.name}` are numbered, and 0 is no number of an object; leave it out")
