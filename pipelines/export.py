"""`medseg export`: a model's networks for other programs."""

from __future__ import annotations

from pathlib import Path

from medseg.core.errors import ConfigError
from medseg.core.progress import say
from medseg.inference.export import export_onnx
from medseg.inference.together import read_models

FORMATS = {"onnx": export_onnx}


def export(model: Path, format: str = "onnx", output: Path | None = None) -> int:
    """Write the networks of a model file, or of a training folder, for another program.

    Args:
        format: one of `FORMATS`.
        output: the file; by default the model's name beside it. Several networks get its name with `_0`, `_1`, ...
    Returns: 0.
    Raises: ConfigError for a format that there is not, or an output that is the model or a folder; ModelFileError,
        MissingExtraError, OutputError.
    """
    if format not in FORMATS:
        raise ConfigError(f"--format {format}: no such format (known: {', '.join(FORMATS)}).")
    path = output or (model / "model" if model.is_dir() else model).with_suffix(f".{format}")
    if path.is_dir() or path.resolve() == model.resolve():
        raise ConfigError(f"--output {path} is {'a folder' if path.is_dir() else 'the model itself'}; name a file to write.")
    for written in FORMATS[format](read_models([model]), path):
        say(
            f"export: {written.path}; on random patches its answer differs from PyTorch's by at most {written.difference:.2g} "
            f"({written.relative:.1g} of the greatest logit)"
        )
    return 0
