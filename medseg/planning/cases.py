"""What `prepare` does to each case: measure it, and store it as the network will see it; each once, also after a kill."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medseg.core.errors import StageError
from medseg.core.files import json_sha256, write_json
from medseg.core.labels import LabelScheme
from medseg.core.manifest import Case
from medseg.core.volume import Volume
from medseg.data.normalise import require_finite
from medseg.data.preprocess import Preprocessing
from medseg.data.store import PreparedStore
from medseg.data.transforms import LoadVolumed, apply, training_transform
from medseg.planning.fingerprint import CaseFingerprint, Fingerprint, measure

Spacing = tuple[float, float, float] | None
MEASUREMENT = 4  # counts up where `measure` measures something else, so that old records are not taken for new ones


@dataclass(frozen=True)
class Measured:
    fingerprint: CaseFingerprint
    channels: int


@dataclass(frozen=True)
class MeasureCase:
    """Measure one case on its own grid, unless a record in `folder` says that it was.

    Args:
        hashes: of each case's files.
    """

    folder: Path
    scheme: LabelScheme
    spacing_mm: Spacing
    hashes: dict[str, list[str]]

    def __call__(self, case: Case) -> Measured:
        """Raises: CaseError where the case cannot be used."""
        if (known := self.known(case)) is not None:
            return known
        loaded = LoadVolumed(["image", "label"], ("label",), self.scheme, self.spacing_mm)(
            {"image": case.images, "label": case.label}
        )
        volume = Volume(np.asarray(loaded["image"]), loaded["image_grid"])
        require_finite(volume.array, case.case_id)
        measured = Measured(measure(volume, np.asarray(loaded["label"])[0], self.scheme), len(volume.array))
        fingerprint = measured.fingerprint.model_dump(mode="json")
        write_json(
            _record_of(self.folder, case.case_id),
            {"key": self._key(case), "channels": measured.channels, "fingerprint": fingerprint},
        )
        return measured

    def known(self, case: Case) -> Measured | None:
        """What a record says of the case, if there is one that fits its files."""
        try:
            content = json.loads(_record_of(self.folder, case.case_id).read_text(encoding="utf-8"))
            if content["key"] != self._key(case):
                return None
            return Measured(CaseFingerprint.model_validate(content["fingerprint"]), int(content["channels"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _key(self, case: Case) -> str:
        return json_sha256([MEASUREMENT, self.scheme.model_dump(), self.spacing_mm, self.hashes[case.case_id]])


def class_voxels_of(folder: Path, case_ids: Iterable[str]) -> list[int]:
    """Voxels of each class in these cases together, background first, by the records that `MeasureCase` left in `folder`.

    Raises: StageError where a record is missing or damaged.
    """
    counts = []
    for case_id in case_ids:
        path = _record_of(folder, case_id)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            counts.append(CaseFingerprint.model_validate(content["fingerprint"]).class_voxels)
        except (OSError, ValueError, KeyError, TypeError):
            raise StageError(f"{path} is missing or damaged; run `medseg prepare` again.") from None
    return [sum(of_class) for of_class in zip(*counts, strict=True)]


def _record_of(folder: Path, case_id: str) -> Path:
    return folder / f"{case_id}.json"


@dataclass(frozen=True)
class StoreCase:
    """Preprocess one case and store it, unless the same case stands there already.

    Args:
        hashes: of each case's files.
        redo: store it even then.
    """

    folder: Path
    preprocessing: Preprocessing
    scheme: LabelScheme
    spacing_mm: Spacing
    hashes: dict[str, list[str]]
    redo: bool = False

    def __call__(self, case: Case) -> None:
        """Raises: CaseError where the case cannot be used."""
        if self.stands(case):
            return
        transform = training_transform(self.preprocessing, self.scheme, self.spacing_mm)
        prepared = apply(transform, {"image": case.images, "label": case.label, "case_id": case.case_id})
        image, classes = np.asarray(prepared["image"]), np.asarray(prepared["label"])[0]
        PreparedStore(self.folder).write(case.case_id, self._key(case), image, classes)

    def stands(self, case: Case) -> bool:
        """Whether there is nothing to do."""
        return not self.redo and PreparedStore(self.folder).holds(case.case_id, self._key(case))

    def _key(self, case: Case) -> str:
        settings = [self.preprocessing.model_dump(), self.scheme.model_dump(), self.spacing_mm]
        return json_sha256([settings, self.hashes[case.case_id]])


def together(measured: list[Measured]) -> Fingerprint:
    """The fingerprint of the set. Raises: StageError where cases differ in channels, or in having a physical size."""
    if not measured:
        raise StageError("there is no training case; give some cases of the manifest the split train.")
    channels = {m.channels for m in measured}
    physical = {m.fingerprint.physical for m in measured}
    if len(channels) > 1:
        raise StageError(
            f"the training images have different numbers of channels ({sorted(channels)}); `medseg check` names them."
        )
    if len(physical) > 1:
        raise StageError(
            "some training images state a physical size and others do not; state `data.spacing_mm` or separate them."
        )
    return Fingerprint(channels=channels.pop(), physical=physical.pop(), cases=[m.fingerprint for m in measured])
