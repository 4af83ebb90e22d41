"""`medseg fetch`: bring a public data set."""

from __future__ import annotations

from pathlib import Path

from medseg.data.fetch import DATASETS, fetch_dataset
from pipelines.config import RunConfig


def fetch(name: str, archive: Path | None = None, output: Path | None = None) -> int:
    """Bring the data set `name` to `output`, by default `data/<name>`, where configurations look for it."""
    fetch_dataset(name, output or Path("data") / name, archive)
    return 0


def bring_if_missing(config: RunConfig) -> None:
    """Bring the data of a run where they are a public data set and their folder is not there yet."""
    data = config.data
    if data.name in DATASETS and data.root is not None and not data.root.exists():
        fetch_dataset(data.name, data.root)
