"""What a stage did, kept beside its results: `stage.json`, and the rule for skipping what is done."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import medseg
from medseg.core.errors import StageError
from medseg.core.files import file_sha256, json_sha256, write_json

PACKAGES = ("torch", "monai", "openvino", "numpy", "scipy", "nibabel", "SimpleITK", "scikit-image", "pandas")


class StageRecord:
    """The provenance of one stage in one folder.

    Args:
        folder: where the stage's results stand.
        inputs: everything that its results depend on (settings read, hashes of files read), as JSON values.
    """

    def __init__(self, folder: Path, inputs: dict[str, Any]) -> None:
        self.folder, self.inputs = Path(folder), inputs
        self.begin()

    def begin(self) -> None:
        """Count the seconds from here: of a record that was made before its turn came."""
        self.started = time.time()

    @property
    def path(self) -> Path:
        return self.folder / "stage.json"

    def previous(self) -> dict[str, Any] | None:
        """The record that stands in the folder, or None where the stage has not finished here."""
        return read_record(self.folder)

    def unchanged(self) -> bool:
        """True where the stage has finished here with these very inputs."""
        before = self.previous()
        return before is not None and before.get("inputs_sha256") == json_sha256(self.inputs)

    def write(self, stage: str, seed: int | None = None, counts: dict[str, int] | None = None, **facts: Any) -> None:
        """Say that the stage has finished. Written last, so a stage cut short is done again."""
        write_json(
            self.path,
            {
                "stage": stage,
                "medseg": medseg.__version__,
                "commit": commit(),
                "inputs_sha256": json_sha256(self.inputs),
                "inputs": self.inputs,
                "seed": seed,
                "counts": counts or {},
                "versions": versions(),
                "machine": machine(),
                "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
                "seconds": round(time.time() - self.started, 1),
                **facts,
            },
        )


def read_record(folder: Path) -> dict[str, Any] | None:
    """The stage.json of a folder, or None where there is none that can be read."""
    try:
        return dict(json.loads((Path(folder) / "stage.json").read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None


def require_models(predictions: Path, hashes: Iterable[str], training: Path) -> None:
    """See to it that predictions were made by the models that stand in the folder of a training.

    Args:
        predictions: the table that names `hashes`, the sha256 of the models that made it; empty ones say nothing.
        training: holds model.medseg, and those of its folds; where there is no such folder, nothing can be said.
    Raises: StageError: figures of one training would stand beside the log and the times of another.
    """
    if not Path(training).is_dir() or not (used := {text for text in hashes if text}):
        return
    models = [path for pattern in ("model.medseg", "fold_*/model.medseg") for path in Path(training).glob(pattern)]
    if not models:
        raise StageError(f"{training} holds no finished training; run `medseg train`, then `medseg predict`.")
    if used - {file_sha256(path) for path in models}:
        raise StageError(f"{predictions} was made by another model than {training} holds now; run `medseg predict` first.")


def differences(before: Any, after: Any, path: str = "") -> list[str]:
    """The dotted keys at which two JSON values differ."""
    if isinstance(before, dict) and isinstance(after, dict):
        keys = [*before, *(key for key in after if key not in before)]
        return [d for key in keys for d in differences(before.get(key), after.get(key), f"{path}.{key}" if path else key)]
    return [] if before == after else [path]


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on; nothing is imported."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """Processor, cores and memory, and the GPU where PyTorch is loaded and can use one; no host or user name."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    except OSError:
        pass
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30 if hasattr(os, "sysconf") else None
    facts = {"system": sys.platform, "processor": name, "cores": os.cpu_count(), "memory_gib": memory and round(memory, 1)}
    torch = sys.modules.get("torch")
    return facts | ({"gpu": torch.cuda.get_device_name()} if torch is not None and torch.cuda.is_available() else {})


@lru_cache
def commit() -> str | None:
    """The git commit of the code with `+` for uncommitted changes, or None outside a checkout."""
    here = Path(medseg.__file__).parent.parent
    if not (here / ".git").exists():
        return None
    try:
        head = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=here, capture_output=True, text=True, check=True)
        dirty = subprocess.run(["git", "status", "--porcelain", "-uno"], cwd=here, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "")
