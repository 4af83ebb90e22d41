"""Names and numbers of structures: the only place that knows label ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from medseg.core.config import Section, load_yaml, parse
from medseg.core.errors import LabelError

IGNORE = 255  # class index of voxels that neither training nor evaluation looks at
MOST_STRUCTURES = 254


class Structure(Section):
    """One thing to segment.

    Args:
        id: the value that we write for it.
        values: the values that reference files hold for it; by default its id; `nonzero` for all that are not 0.
        prediction_values: the same for masks made by another tool; by default its id.
        paired_with: the structure on the other side of the body; where a pair is declared, no picture is mirrored left to right.
        code: a coded term, such as {scheme: SCT, value: "10200004", meaning: Liver}.
    """

    name: str = Field(min_length=1)
    id: int = Field(ge=1, le=65535)
    values: list[int] | Literal["nonzero"] | None = None
    prediction_values: list[int] | Literal["nonzero"] | None = None
    paired_with: str | None = None
    code: dict[str, str] | None = None


class LabelScheme(Section):
    """What the values of label files mean. Classes are numbered 0 (background), then 1, 2, ... in the order given.

    Raises: a ConfigError through `parse` where two structures share a name, an id or a value.
    """

    structures: list[Structure] = Field(min_length=1, max_length=MOST_STRUCTURES)
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
            if structure.paired_with and structure.paired_with not in self.names:
                raise ValueError(f"`{structure.name}` is paired_with `{structure.paired_with}`, which is no structure")
        return self

    @property
    def names(self) -> list[str]:
        """Names of the structures, without the background."""
        return [s.name for s in self.structures]

    @property
    def n_classes(self) -> int:
        """Structures plus background."""
        return len(self.structures) + 1

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
            known = ", ".join(str(v) for v in sorted(table))
            places = "`prediction_values`" if prediction else "`structures`, `background_values`"
            raise LabelError(
                f"{where}: label values {_some(unknown)} are not in the label scheme (known: {known}); "
                f"add them to {places} or `ignore_values`."
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
    """The scheme in a labels.yaml file. Raises: ConfigError."""
    return parse(LabelScheme, load_yaml(path), str(path))


def _some(values: list[int], most: int = 8) -> str:
    return ", ".join(str(v) for v in values[:most]) + (f" and {len(values) - most} more" if len(values) > most else "")
