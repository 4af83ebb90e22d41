"""Scans and label maps from files and back: the tables of formats, and the functions that everything else uses.

A new format is a file with `read`, `read_grid` and `encode`, and one row of FORMATS. A scan's source is a file, a folder that is
one picture (OME-Zarr), or a DICOM series; a DICOM file, or a folder of them, that holds one series stands for the series.

Masks may stand by name instead of value: in a DICOM SEG, a segmentation of 3D Slicer, or a folder with a file a structure. These
are read by `read_named_masks`; how their structures share one label map is for a label scheme to say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medseg.core.errors import CaseError, GridMismatchError, LabelError, OutputError, UnreadableError
from medseg.core.files import atomic_path, files_below
from medseg.core.grid import Grid
from medseg.core.volume import LabelMap, Volume
from medseg.core.wording import one_line
from medseg.io import dicom, dicom_masks, metaimage, nifti, nrrd, ome_zarr, raster, segment_layers, tiff
from medseg.io.named_masks import NamedMasks, masks_of_files
from medseg.io.picture import Array, Format, Picture, no_warnings
from medseg.io.series import Series, find_series, is_dicom

Spacing = Sequence[float] | None
Source = Path | Series


def _by_name_only(path: Path, as_labels: bool) -> Picture:
    raise LabelError(
        f"{path} holds masks by name and not label values, which only evaluation reads; save it as one label map with a value a "
        "structure."
    )


_NIFTI = Format("NIfTI", nifti.read, nifti.read_grid, nifti.encode_gz, ".nii.gz", nifti.warnings)
_NRRD = Format("NRRD", nrrd.read, nrrd.read_grid, nrrd.encode, ".nrrd", nrrd.warnings)
_META = Format("MetaImage", metaimage.read, metaimage.read_grid, metaimage.encode, ".mha", no_warnings)
_RASTER = Format("PNG or JPEG", raster.read, raster.read_grid, raster.encode, ".png", raster.warnings)
_TIFF = Format("TIFF", tiff.read, tiff.read_grid, tiff.encode, ".tif", tiff.warnings)
_ZARR = Format("OME-Zarr", ome_zarr.read, ome_zarr.read_grid, None, ".ome.zarr", ome_zarr.warnings)
_DICOM = Format("DICOM", dicom.read, dicom.read_grid, None, ".nii.gz", dicom.warnings)  # for a series; it has no suffix
_SEG = Format("DICOM SEG", _by_name_only, lambda path: dicom_masks.read(path).grid, None, ".nii.gz", no_warnings)
_LAYERS = Format("3D Slicer", _by_name_only, lambda path: segment_layers.read(path).grid, None, ".nii.gz", no_warnings)
_STRUCTURES = Format("folder", _by_name_only, lambda path: _structure_files(path).grid, None, ".nii.gz", no_warnings)

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
    ".ome.zarr": _ZARR,
    ".zarr": _ZARR,
}
SCAN_SUFFIXES: tuple[str, ...] = tuple(FORMATS)
# Label maps are single files that are written whole, never a header with its voxels elsewhere, nor with loss.
WRITERS: dict[str, Callable[[Array, Path], bytes]] = {
    suffix: row.encode for suffix, row in FORMATS.items() if row.encode and suffix not in (".nhdr", ".mhd", ".jpg", ".jpeg")
} | {".nii": nifti.encode}

WHOLE_TOLERANCE = 1e-5  # some tools store label 1 as 0.99999997
STATED_SPACING_TOLERANCE = 0.01


def read_volume(path: Source, spacing_mm: Spacing = None) -> Volume:
    """The scan in a file, intensity scaling applied: one channel for grey values, three for colours.

    Args:
        spacing_mm: voxel size along X, Y, Z for a file that states none.
    Returns: (C, X, Y, Z) float32; a 2D picture is one voxel thick, with X its columns and Y its rows.
    Raises: UnreadableError where the file is missing, damaged, 4D, or contradicts `spacing_mm`.
    """
    picture = _read(path, False, spacing_mm)
    # Copied in any case: the picture may be a view of the mapped file.
    return Volume(np.array(picture.array, dtype=np.float32, order="C"), picture.grid)


def read_channels(paths: Sequence[Source], spacing_mm: Spacing = None) -> Volume:
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


def read_labels(path: Source, spacing_mm: Spacing = None) -> LabelMap:
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


def read_named_masks(path: Source, spacing_mm: Spacing = None) -> NamedMasks | None:
    """The masks that a DICOM SEG, a segmentation of 3D Slicer or a folder with a file a structure tells apart by name.

    Returns: None for anything else: a label map, whose structures are values.
    Raises: UnreadableError as `read_volume`; LabelError where a name stands twice. Reading a mask raises the same, and
        GridMismatchError where the files of a folder do not lie on the same voxels.
    """
    with _reading(path) as (row, place):
        if row is _STRUCTURES:
            return _structure_files(place, spacing_mm)
        if row is _SEG:
            return dicom_masks.read(place).guarded(lambda: _reading(path))
        if row in (_NRRD, _LAYERS) and segment_layers.is_segmentation(place):
            return segment_layers.read(place).guarded(lambda: _reading(path))
    return None


def _structure_files(folder: Path, spacing_mm: Spacing = None) -> NamedMasks:
    files: dict[str, Path] = {}
    for path in sorted(filter(is_scan, folder.iterdir())):
        if (first := files.setdefault(case_name(path), path)) != path:
            raise LabelError(f"{folder}: {first.name} and {path.name} are both masks of `{case_name(path)}`; remove one.")
    return masks_of_files(files, read_grid(next(iter(files.values())), spacing_mm), lambda path: read_labels(path, spacing_mm))


def read_grid(path: Source, spacing_mm: Spacing = None) -> Grid:
    """Where the voxels of a file lie, from its header. Raises: UnreadableError."""
    with _reading(path) as (row, source):
        return _stated(row.read_grid(source), spacing_mm, path)


def geometry_warnings(path: Source) -> list[str]:
    """What is doubtful in the geometry that a file states, one sentence each. Raises: UnreadableError."""
    with _reading(path) as (row, source):
        return row.warnings(source)


def write_labels(path: Path, labels: LabelMap, like: Source | None) -> None:
    """Write a label map that lies on the scan `like`, in its format family, whole or not at all.

    The geometry fields of the scan's header are copied, not computed, so the affine reads back bit by bit the same;
    intensity scaling, display range and texts are not. Equal labels give equal bytes. The file is read back and compared
    before it takes its name.

    Args:
        path: with the suffix that `label_name` gives (`.nii` will do for a NIfTI).
        labels: values up to 65535, on the grid of `like` (or on that grid with a spacing that the file does not state).
        like: of a folder with a file a structure, its first file; None for a NIfTI file on the grid of the labels.
    Raises: GridMismatchError where the grids differ, LabelError where the values do not fit 16 bits,
        UnreadableError where `like` cannot be read, OutputError where the file cannot be written.
    """
    path = Path(path)
    if like is None:
        _write_placed(path, labels)
        return
    like = _first_file(like)
    grid = read_grid(like)
    as_labelled = grid if grid.physical or not labels.grid.physical else _stated(grid, labels.grid.spacing, like)
    if difference := as_labelled.difference(labels.grid):
        raise GridMismatchError(
            f"{path}: the labels do not lie on the voxels of {named(like)}: {difference}; restore them to the scan's grid."
        )
    array = _sixteen_bits(labels.array, path)
    expected = label_name(case_name(path), like)
    if FORMATS.get(_suffix(path)) is not FORMATS[_suffix(Path(expected))] or _suffix(path) not in (*WRITERS, _ZARR.label_suffix):
        raise OutputError(
            f"{path}: labels of {named(like)} are {FORMATS[_suffix(Path(expected))].name} files; call it {expected}."
        )
    with _reading(like) as (row, source):
        if row is _ZARR:
            ome_zarr.write(array, source, path)  # reads back what it wrote before that takes its name
            return
        content = _beside_dicom(array, grid) if row is _DICOM else WRITERS[_suffix(path)](array, source)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
        _check_written(temporary, array, grid, like)


def label_name(case_id: str, like: Source) -> str:
    """The file name of the label map of a scan. Raises: UnreadableError for a suffix that is not in the table."""
    row, source = _row(_first_file(like))
    if row is _TIFF and _suffix(source).startswith(".ome"):
        return f"{case_id}.ome.tif"
    planar = row is _DICOM and not row.read_grid(source).physical  # a radiograph or a photograph, in pixels
    return case_id + (_RASTER if planar else row).label_suffix


def _first_file(source: Source) -> Source:
    """A source itself, and of a folder with a file a structure the first file."""
    row, place = _row(source)
    return min(filter(is_scan, place.iterdir())) if row is _STRUCTURES else source


def _write_placed(path: Path, labels: LabelMap) -> None:
    with atomic_path(path) as temporary:
        temporary.write_bytes(nifti.encode_placed(_sixteen_bits(labels.array, path), labels.grid))


def _beside_dicom(array: Array, grid: Grid) -> bytes:
    """Labels of a series, as a file of their own: NIfTI has a place for its geometry, and PNG needs none for pixels."""
    return nifti.encode_placed(array, grid) if grid.physical else raster.encode(array, Path())


def named(source: Source) -> str:
    """A source as messages call it: its path; of DICOM, whose folders may be called after patients, nothing."""
    return "the series" if isinstance(source, Series) else str(source)


def case_name(path: Path) -> str:
    """The file name without its suffix, be it a double one: `p01` for p01.nii.gz."""
    suffix = _suffix(path)
    return Path(path).name[: -len(suffix)] if suffix else Path(path).stem


def is_scan(path: Path) -> bool:
    """True where the name has a suffix that can be read and the file is not hidden."""
    return bool(_suffix(path)) and not Path(path).name.startswith(".")


def is_mask_object(path: Path) -> bool:
    """True for a DICOM SEG or RTSTRUCT, which have no suffix of their own."""
    return not Path(path).name.startswith(".") and not _suffix(path) and dicom_masks.is_mask_object(Path(path))


def is_folder_scan(path: Path) -> bool:
    """True where a folder is one picture, by its name."""
    return is_scan(path) and FORMATS[_suffix(path)] is _ZARR


def _suffix(path: Path) -> str:
    name = Path(path).name.lower()
    return next((suffix for suffix in FORMATS if name.endswith(suffix)), "")


def _row(source: Source) -> tuple[Format, Any]:
    """The format of a source, and what its functions take: a path, or the series that it stands for."""
    if isinstance(source, Series):
        return _DICOM, source
    path = Path(source)
    if suffix := _suffix(path):
        return (_LAYERS if suffix == ".nrrd" and segment_layers.is_layered(path) else FORMATS[suffix]), path
    if dicom_masks.is_mask_object(path):
        return _SEG, path
    if path.is_dir() and _holds_structures(path):
        return _STRUCTURES, path
    if path.is_dir() and not any(path.iterdir()):
        raise UnreadableError(f"{path} is an empty folder; bring its files.")
    if path.is_dir() or (path.is_file() and is_dicom(path)):
        return _DICOM, _only_series(path)
    raise UnreadableError(f"{path} has no suffix that can be read; convert it to one of {', '.join(SCAN_SUFFIXES)}.")


def _holds_structures(folder: Path) -> bool:
    """True where the files of a folder are masks and no slices of a scan."""
    try:
        files = [path for path in folder.iterdir() if path.is_file()]
    except OSError:
        return False
    return any(map(is_scan, files)) and not any(is_dicom(path) for path in files if not _suffix(path))


def _only_series(path: Path) -> Series:
    """The one scan among the DICOM files of a folder, or in a file. Raises: UnreadableError."""
    files = [file for file in files_below(path) if is_dicom(file)] if path.is_dir() else [path]
    found = find_series(files)
    scans = [series for series in found if not series.skipped]
    if len(scans) != 1:
        what = f"{len(scans)} DICOM series; give a folder for each" if scans else "no DICOM scan; give a scan"
        raise UnreadableError(f"{path} holds {what}.")
    return scans[0]


@contextmanager
def _reading(source: Source) -> Iterator[tuple[Format, Any]]:
    """The row for a source and what it takes; whatever its reader raises leaves as one UnreadableError with what and where."""
    row, place = _row(source)
    name = named(source)
    if isinstance(place, Path) and not (place.is_file() or (row in (_ZARR, _STRUCTURES) and place.is_dir())):
        what = "is a folder; give a file in it" if place.is_dir() else "does not exist; correct the path or bring the file"
        raise UnreadableError(f"{place} {what}.")
    try:
        yield row, place
    except (CaseError, OutputError):
        raise
    except MemoryError as error:
        raise UnreadableError(
            f"{name} needs more memory than there is, or its header is damaged; crop it or replace it."
        ) from error
    except PermissionError as error:
        raise UnreadableError(f"{name} may not be read; give yourself permission to read it.") from error
    except Exception as error:  # the libraries raise almost anything on damaged bytes
        if isinstance(place, Series):  # what they say of it may name the patient
            raise UnreadableError(f"the series is damaged ({type(error).__name__}); replace it with an intact copy.") from None
        if isinstance(error, FileNotFoundError):  # not this file, which was looked at above
            raise UnreadableError(
                f"{name}: its voxels should be in {error.filename}, which does not exist; bring that file too."
            ) from error
        reason = one_line(error, 200).rstrip(" .") or type(error).__name__
        raise UnreadableError(f"{name} is damaged or no {row.name} file ({reason}); replace it with an intact copy.") from error


def _read(source: Source, as_labels: bool, spacing_mm: Spacing) -> Picture:
    with _reading(source) as (row, place):
        picture = row.read(place, as_labels)
    return Picture(picture.array, _stated(picture.grid, spacing_mm, source))


def _stated(grid: Grid, spacing_mm: Spacing, path: Source) -> Grid:
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
            f"{named(path)} states voxels of {file} mm and the configuration {config} mm; correct or remove data.spacing_mm."
        )
    return grid


def _whole(values: npt.NDArray[Any], path: Source) -> npt.NDArray[Any]:
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


def _refuse(values: npt.NDArray[Any], wrong: npt.NDArray[np.bool_], what: str, path: Source) -> None:
    if not (count := int(np.count_nonzero(wrong))):
        return
    place = np.unravel_index(int(wrong.argmax()), wrong.shape)
    others = f", as are {count - 1} others" if count > 1 else ""
    where = ", ".join(map(str, place))
    raise LabelError(
        f"{named(path)}: the value {values[place]:g} at voxel ({where}) {what}{others}; save labels as whole numbers from 0 on."
    )


def _sixteen_bits(array: npt.NDArray[Any], path: Path) -> npt.NDArray[Any]:
    if array.dtype.itemsize <= 2:
        return array
    if (highest := int(array.max())) > 65535:
        raise LabelError(f"{path}: the label value {highest} does not fit 16 bits; number the structures anew.")
    return array.astype(np.uint16)


def _check_written(temporary: Path, array: npt.NDArray[Any], grid: Grid, like: Source) -> None:
    written = _read(temporary, True, None)
    if not np.array_equal(written.array[0], array):
        raise OutputError(f"{temporary.parent}: a label map did not read back as it was written; check the disk.")
    if isinstance(like, Series):  # whose numbers are decimal; a NIfTI header holds them in single precision
        same = written.grid.difference(grid) is None
    else:
        same = np.array_equal(written.grid.affine, grid.affine) and written.grid.physical == grid.physical
    if not same:
        raise GridMismatchError(
            f"{named(like)}: its geometry cannot be copied to a label map; write the scan again with a plain header."
        )
