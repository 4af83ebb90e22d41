"""`medseg segment`: every scan of a folder through a model file; no configuration needed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medseg.core.config import parse
from medseg.data.config import DataConfig
from medseg.inference.config import SegmentConfig
from medseg.inference.segment import exit_code, segment_folder


def segment(
    models: Path | Sequence[Path],
    input: Path,
    output: Path,
    spacing_mm: tuple[float, float, float] | None = None,
    redo: bool = False,
    keep_identifiers: bool = False,
    linkage: Path | None = None,
    **options: Any,
) -> int:
    """Segment a scan, or every scan of a folder tree, into `output`.

    Args:
        models: a model file, or several files or folders of folds that answer together.
        spacing_mm: voxel size along X, Y, Z of scans that state none.
        redo: make masks again that already stand there.
        keep_identifiers: name DICOM cases after their patients, in place of pseudonyms.
        linkage: a file that is to say which pseudonym is which patient.
        options: of `SegmentConfig`.
    Returns: the exit code: 0 where every scan was segmented, 1 where some could not be (`predictions.csv` says why).
    Raises: MedsegError where nothing can be done: no such model, no scan, an output that would touch the input, disk full.
    """
    settings = parse(SegmentConfig, options, "segment")
    spacing_mm = parse(DataConfig, {"spacing_mm": spacing_mm}, "segment").spacing_mm
    places = [models] if isinstance(models, Path) else list(models)
    return exit_code(segment_folder(places, input, output, settings, spacing_mm, redo, keep_identifiers, linkage))
