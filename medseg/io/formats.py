"""Scans and label maps from files and back: the tables of formats, and the functions that everything else uses.

A new format is a file with `read`, `read_grid` and `encode`, and one row of FORMATS.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medseg.core.errors import CaseError, GridMismatchError, LabelError, OutputError, UnreadableError
from medseg.core.files import atomic_path
from medseg.core.grid import Grid
from medseg.core.volume import LabelMap, Volume
from medseg.io import metaimage, nifti, nrrd, raster, tiff
from medseg.io.picture import Array, Format, Picture, no_warnings

Spacing = Sequence[float] | None

_NIFTI = Format("NIfTI", nifti.read, nifti.read_grid, nifti.encode_gz, ".nii.gz", nifti.warnings)
_NRRD = Format("NRRD", nrrd.read, nrrd.read_grid, nrrd.encode, ".nrrd", nrrd.warnings)
_META = Format("MetaImage", metaimage.read, metaimage.read_grid, metaimage.encode, ".mha", no_warnings)
_RASTER = Format("PNG or JPEG", raster.read, raster.read_grid, raster.encode, ".png", raster.warnings)
_TIFF = Format("TIFF", tiff.read, tiff.read_grid, tiff.encode, ".tif", tiff.warnings)

# Of two suffixes that fit, the longer one stands first.
FORMATS: dict[str, Format] = {
    ".nii.gz": _NIFTI,
    ".nii": _NIFTI,
    ".nrrd": _NRRD,
    ".nhdr": _NRRD,
    ".mha": _META,
    ".mhd": _META,
    ".png": _RASTER,
    ".jpg": _RASTER,
    ".jpeg": _RASTER,
    ".ome.tif": _TIFF,
    ".ome.tiff": _TIFF,
    ".tif": _TIFF,
    ".tiff": _TIFF,
}
SCAN_SUFFIXES: tuple[str, ...] = tuple(FORMATS)
# Label maps are single files that are written whole, never a header with its voxels elsewhere, nor with loss.
WRITERS: dict[str, Callable[[Array, Path], bytes]] = {
    suffix: row.encode for suffix, row in FORMATS.items() if suffix not in (".nhdr", ".mhd", ".jpg", ".jpeg")
} | {".nii": nifti.encode}

WHOLE_TOLERANCE = 1e-5  # some tools store label 1 as 0.99999997
STATED_SPACING_TOLERANCE = 0.01


def read_volume(path: Path, spacing_mm: Spacing = None) -> Volume:
    """The scan in a file, intensity scaling applied: one channel for grey values, three for colours.

    Args:
        spacing_mm: voxel size along X, Y, Z for a file that states none.
    Returns: (C, X, Y, Z) float32; a 2D picture is one voxel thick, with X its columns and Y its rows.
    Raises: UnreadableError where the file is missing, damaged, 4D, or contradicts `spacing_mm`.
    """
    picture = _read(path, False, spacing_mm)
    # Copied in any case: the picture may be a view of the mapped file.
    return Volume(np.array(picture.array, dtype=np.float32, order="C"), picture.grid)


def read_channels(paths: Sequence[Path], spacing_mm: Spacing = None) -> Volume:
    """A scan of one file a channel, or of a single file with all of them.

    Raises: UnreadableError as `read_volume`; GridMismatchError where two files do not lie on the same voxels.
    """
    if len(paths) == 1:
        return read_volume(paths[0], spacing_mm)
    volumes = []
    for path in paths:
        volumes.append(read_volume(path, spacing_mm))
        if (channels := volumes[-1].array.shape[0]) != 1:
            raise UnreadableError(f"{path} holds {channels} channels where one file a channel is expected; split it.")
        if difference := volumes[0].grid.difference(volumes[-1].grid):
            raise GridMismatchError(
                f"{paths[0]} and {path} do not lie on the same voxels: {difference}; resample one to the other."
            )
    return Volume(np.concatenate([v.array for v in volumes]), volumes[0].grid)


def read_labels(path: Path, spacing_mm: Spacing = None) -> LabelMap:
    """The label map in a file, with the values that it holds.

    Returns: (X, Y, Z) of the smallest unsigned type that holds them.
    Raises: UnreadableError as `read_volume`; LabelError for colours, and for values that are not whole, not finite or negative.
    """
    picture = _read(path, True, spacing_mm)
    if picture.array.shape[0] != 1:
        raise LabelError(
            f"{path} is a colour picture of {picture.array.shape[0]} channels; save the labels as one grey value a voxel."
        )
    return LabelMap(_whole(picture.array[0], path), picture.grid)


def read_grid(path: Path, spacing_mm: Spacing = None) -> Grid:
    """Where the voxels of a file lie, from its header. Raises: UnreadableError."""
    with _reading(path) as row:
        return _stated(row.read_grid(Path(path)), spacing_mm, path)


def geometry_warnings(path: Path) -> list[str]:
    """What is doubtful in the geometry that a file states, one sentence each. Raises: UnreadableError."""
    with _reading(path) as row:
        return row.warnings(Path(path))


def write_labels(path: Path, labels: LabelMap, like: Path) -> None:
    """Write a label map that lies on the scan `like`, in its format family, whole or not at all.

    The geometry fields of the scan's header are copied, not computed, so the affine reads back bit by bit the same;
    intensity scaling, display range and texts are not. Equal labels give equal bytes. The file is read back and compared
    before it takes its name.

    Args:
        path: with the suffix that `label_name` gives (`.nii` will do for a NIfTI).
        labels: values up to 65535, on the grid of `like` (or on that grid with a spacing that the file does not state).
    Raises: GridMismatchError where the grids differ, LabelError where the values do not fit 16 bits,
        UnreadableError where `like` cannot be read, OutputError where the file cannot be written.
    """
    path, like = Path(path), Path(like)
    grid = read_grid(like)
    as_labelled = grid if grid.physical or not labels.grid.physical else _stated(grid, labels.grid.spacing, like)
    if difference := as_labelled.difference(labels.grid):
        raise GridMismatchError(
            f"{path}: the labels do not lie on the voxels of {like}: {difference}; restore them to the scan's grid."
        )
    array = _sixteen_bits(labels.array, path)
    writer = WRITERS.get(_suffix(path))
    with _reading(like) as row:
        if writer is None or FORMATS[_suffix(path)] is not row:
            raise OutputError(f"{path}: labels of {like.name} are {row.name} files; call it {label_name(case_name(path), like)}.")
        content = writer(array, like)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
        _check_written(temporary, array, grid, like)


def label_name(case_id: str, like: Path) -> str:
    """The file name of the label map of a scan. Raises: UnreadableError for a suffix that is not in the table."""
    return case_id + _row(like).label_suffix


def case_name(path: Path) -> str:
    """The file name without its suffix, be it a double one: `p01` for p01.nii.gz."""
    suffix = _suffix(path)
    return Path(path).name[: -len(suffix)] if suffix else Path(path).stem


def is_scan(path: Path) -> bool:
    """True where the name has a suffix that can be read and the file is not hidden."""
    return bool(_suffix(path)) and not Path(path).name.startswith(".")


def _suffix(path: Path) -> str:
    name = Path(path).name.lower()
    return next((suffix for suffix in FORMATS if name.endswith(suffix)), "")


def _row(path: Path) -> Format:
    if suffix := _suffix(path):
        return FORMATS[suffix]
    raise UnreadableError(f"{path} has no suffix that can be read; convert it to one of {', '.join(SCAN_SUFFIXES)}.")


@contextmanager
def _reading(path: Path) -> Iterator[Format]:
    """The row for a file; whatever its reader raises leaves as one UnreadableError that says what and where."""
    path, row = Path(path), _row(path)
    if not path.is_file():
        what = "is a folder; give a file in it" if path.is_dir() else "does not exist; correct the path or bring the file"
        raise UnreadableError(f"{path} {what}.")
    try:
        yield row
    except (CaseError, OutputError):
        raise
    except MemoryError as error:
        raise UnreadableError(
            f"{path} needs more memory than there is, or its header is damaged; crop it or replace it."
        ) from error
    except PermissionError as error:
        raise UnreadableError(f"{path} may not be read; give yourself permission to read it.") from error
    except Exception as error:  # the libraries raise almost anything on damaged bytes
        reason = " ".join(str(error).split())[:200].rstrip(" .") or type(error).__name__
        raise UnreadableError(f"{path} is damaged or no {row.name} file ({reason}); replace it with an intact copy.") from error


def _read(path: Path, as_labels: bool, spacing_mm: Spacing) -> Picture:
    with _reading(path) as row:
        picture = row.read(Path(path), as_labels)
    return Picture(picture.array, _stated(picture.grid, spacing_mm, path))


def _stated(grid: Grid, spacing_mm: Spacing, path: Path) -> Grid:
    """The grid with the voxel size that a configuration states, where the file states none."""
    if spacing_mm is None:
        return grid
    if not grid.physical:
        # A single slice is 1 mm thick whoever states its pixels, here or a TIFF: its volume in cubic mm is its area.
        x, y, z = spacing_mm
        return Grid(grid.shape, np.diag([x, y, 1.0 if grid.planar else z, 1.0]))
    axes = 2 if grid.planar else 3  # what a single slice has across it is seldom stated
    if not np.allclose(grid.spacing[:axes], spacing_mm[:axes], rtol=STATED_SPACING_TOLERANCE, atol=0):
        file, config = (" x ".join(f"{v:g}" for v in s[:axes]) for s in (grid.spacing, spacing_mm))
        raise UnreadableError(
            f"{path} states voxels of {file} mm and the configuration {config} mm; correct or remove data.spacing_mm."
        )
    return grid


def _whole(values: npt.NDArray[Any], path: Path) -> npt.NDArray[Any]:
    if values.dtype.kind == "f":
        with np.errstate(invalid="ignore"):
            whole = np.round(values)
            _refuse(values, ~np.isfinite(values), "is not finite", path)
            _refuse(values, np.abs(values - whole) > WHOLE_TOLERANCE, "is not a whole number", path)
        values = whole
    if values.dtype.kind != "u":
        _refuse(values, values < 0, "is negative", path)
    highest = values.max()
    if highest >= 2**32:
        _refuse(values, values >= 2**32, "is too large for a label", path)
    return np.array(values, dtype=np.min_scalar_type(int(highest)), order="C")


def _refuse(values: npt.NDArray[Any], wrong: npt.NDArray[np.bool_], what: str, path: Path) -> None:
    if not (count := int(np.count_nonzero(wrong))):
        return
    place = np.unravel_index(int(wrong.argmax()), wrong.shape)
    others = f", as are {count - 1} others" if count > 1 else ""
    where = ", ".join(map(str, place))
    raise LabelError(
        f"{path}: the value {values[place]:g} at voxel ({where}) {what}{others}; save labels as whole numbers from 0 on."
    )


def _sixteen_bits(array: npt.NDArray[Any], path: Path) -> npt.NDArray[Any]:
    if array.dtype.itemsize <= 2:
        return array
    if (highest := int(array.max())) > 65535:
        raise LabelError(f"{path}: the label value {highest} does not fit 16 bits; number the structures anew.")
    return array.astype(np.uint16)


def _check_written(temporary: Path, array: npt.NDArray[Any], grid: Grid, like: Path) -> None:
    written = _read(temporary, True, None)
    if not np.array_equal(written.array[0], array):
        raise OutputError(f"{temporary.parent}: a label map did not read back as it was written; check the disk.")
    if not np.array_equal(written.grid.affine, grid.affine) or written.grid.physical != grid.physical:
        raise GridMismatchError(
            f"{like}: its geometry cannot be copied to a label map; write the scan again with a plain header."
        )
