"""What `prepare` does to each case: measure it, and store it as the network will see it; each once, also after a kill."""

from __future__ import annotations

import json
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
MEASUREMENT = 2  # counts up where `measure` measures something else, so that old records are not taken for new ones


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
        path = self.folder / f"{case.case_id}.json"
        key = json_sha256([MEASUREMENT, self.scheme.model_dump(), self.spacing_mm, self.hashes[case.case_id]])
        if (known := _recorded(path, key)) is not None:
            return known
        loaded = LoadVolumed(["image", "label"], ("label",), self.scheme, self.spacing_mm)(
            {"image": case.images, "label": case.label}
        )
        volume = Volume(np.asarray(loaded["image"]), loaded["image_grid"])
        require_finite(volume.array, case.case_id)
        measured = Measured(measure(volume, np.asarray(loaded["label"])[0], self.scheme), len(volume.array))
        content = {"key": key, "channels": measured.channels, "fingerprint": measured.fingerprint.model_dump(mode="json")}
        write_json(path, content)
        return measured


def _recorded(path: Path, key: str) -> Measured | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["key"] != key:
            return None
        return Measured(CaseFingerprint.model_validate(content["fingerprint"]), int(content["channels"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


@dataclass(frozen=True)
class StoreCase:
    """Preprocess one case and store it, unless the same case stands there already."""

    folder: Path
    preprocessing: Preprocessing
    scheme: LabelScheme
    spacing_mm: Spacing
    hashes: dict[str, list[str]]

    def __call__(self, case: Case) -> None:
        """Raises: CaseError where the case cannot be used."""
        store = PreparedStore(self.folder)
        settings = [self.preprocessing.model_dump(), self.scheme.model_dump(), self.spacing_mm]
        key = json_sha256([settings, self.hashes[case.case_id]])
        if store.key(case.case_id) == key:
            return
        transform = training_transform(self.preprocessing, self.scheme, self.spacing_mm)
        prepared = apply(transform, {"image": case.images, "label": case.label, "case_id": case.case_id})
        store.write(case.case_id, key, np.asarray(prepared["image"]), np.asarray(prepared["label"])[0])


def together(measured: list[Measured]) -> Fingerprint:
    """The fingerprint of the set. Raises: StageError where cases differ in channels, or in having a physical size."""
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
