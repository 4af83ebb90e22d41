"""`medseg segment`: every scan of a folder through a model file; no configuration needed."""

from __future__ import annotations

from pathlib import Path

from medseg.core.config import parse
from medseg.data.config import DataConfig
from medseg.inference.config import EngineConfig
from medseg.inference.segment import exit_code, segment_folder


def segment(
    model: Path,
    input: Path,
    output: Path,
    overlap: float = 0.5,
    mirror: bool = False,
    device: str = "auto",
    precision: str = "auto",
    batch: int | None = None,
    workers: int = 1,
    spacing_mm: tuple[float, float, float] | None = None,
    redo: bool = False,
) -> int:
    """Segment a scan, or every scan of a folder tree, into `output`.

    Args:
        spacing_mm: voxel size along X, Y, Z of scans that state none.
        redo: make masks again that already stand there.
    Returns: the exit code: 0 where every scan was segmented, 1 where some could not be (`predictions.csv` says why).
    Raises: MedsegError where nothing can be done: no such model, no scan, an output that would touch the input, disk full.
    """
    asked = {"overlap": overlap, "mirror": mirror, "device": device, "precision": precision, "batch": batch, "workers": workers}
    settings = parse(EngineConfig, asked, "segment")
    spacing_mm = parse(DataConfig, {"spacing_mm": spacing_mm}, "segment").spacing_mm
    return exit_code(segment_folder(model, input, output, settings, spacing_mm, redo))
