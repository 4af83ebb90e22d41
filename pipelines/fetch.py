"""`medseg fetch`: bring a public data set."""

from __future__ import annotations

from pathlib import Path

from medseg.core.errors import ManifestError
from medseg.core.manifest import read_manifest
from medseg.data.config import DataConfig
from medseg.data.fetch import CHECKSUMS, DATASETS, fetch_dataset
from pipelines.config import RunConfig


def fetch(name: str, archive: Path | None = None, output: Path | None = None) -> int:
    """Bring the data set `name` to `output`, by default `data/<name>`, where configurations look for it."""
    fetch_dataset(name, output or Path("data") / name, archive)
    return 0


def bring_if_missing(config: RunConfig) -> None:
    """Bring the data of a run where they are a public data set and are not there, or a fetch of them was cut short."""
    data = config.data
    if data.name not in DATASETS or data.root is None:
        return
    if data.root == Path("data") / data.name and (not data.root.exists() or _cut_short(data)):
        fetch_dataset(data.name, data.root)


def _cut_short(data: DataConfig) -> bool:
    """Files that the manifest names are absent, from a folder that no fetch has finished."""
    assert data.root is not None and data.manifest is not None
    if (data.root / CHECKSUMS).exists():
        return False
    try:
        cases = read_manifest(data.manifest, data.root).cases
    except ManifestError:
        return False  # `check` says what is wrong with it
    return not all(path.is_file() for case in cases for path in (*case.images, case.label) if path is not None)
