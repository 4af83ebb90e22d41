"""NIfTI-1 and NIfTI-2, .nii and .nii.gz (https://nifti.nimh.nih.gov/nifti-1): headers by nibabel, voxels by their size."""

from __future__ import annotations

import gzip
import json
import logging
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from medseg.core.errors import UnreadableError
from medseg.core.grid import Grid
from medseg.io.payload import Buffer, gunzip, gzip_bytes, open_bytes, voxels
from medseg.io.picture import Array, Picture, grid_of

HEADER_BYTES = 540  # of NIfTI-2, the longer of the two
UNIT_MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # code of xyzt_units: unknown, metre, millimetre, micron
GEOMETRY_FIELDS = (
    "pixdim", "xyzt_units", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d",
    "qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z",
)  # fmt: skip
SEVERE = 40  # nibabel's level for what it cannot mend
FULL_SCALE = 65535
COMMENT = 6  # code of a header extension
SCANNER = 1  # code of a form whose millimetres are the scanner's
DISAGREEMENT_VOXELS = 0.1  # above what float32 quaternions lose

# nibabel mends harmless slips and logs each of them; `warnings` says the ones that matter.
_UNHEARD = logging.Logger("unheard")
_UNHEARD.addHandler(logging.NullHandler())


def read(path: Path, as_labels: bool) -> Picture:
    """The scan or label map in a NIfTI file, intensity scaling applied. Raises: UnreadableError and what nibabel raises."""
    data: Buffer = gunzip(open_bytes(path)) if _is_gzip(path) else open_bytes(path)
    header = _header(bytes(data[:HEADER_BYTES]), path)
    grid = _grid(header, path)
    dtype = header.get_data_dtype()
    raw = voxels(data, dtype, header.get_data_shape(), header.get_data_offset(), path).reshape(grid.shape, order="F")
    if dtype.names:
        return Picture(np.stack([raw[colour] for colour in "RGB"]), grid)
    if dtype.kind not in "iuf":
        raise UnreadableError(f"{path} holds {dtype} voxels; save it as integers or real numbers.")
    slope, inter = header.get_slope_inter()
    if slope is not None and (slope, inter) != (1.0, 0.0):
        raw = _scaled(raw, slope, inter, np.float64 if as_labels else np.float32)
    return Picture(raw[None], grid)


def _scaled(raw: Array, slope: float, inter: float, dtype: Any) -> Array:
    """The values that a header's scaling stands for, computed in double precision slice by slice."""
    result = np.empty(raw.shape, dtype, order="F")
    for k in range(raw.shape[-1]):
        result[..., k] = raw[..., k].astype(np.float64) * slope + inter
    return result


def read_grid(path: Path) -> Grid:
    """The grid in a NIfTI header, in mm: the sform where it is coded, else the qform, else nibabel's fallback."""
    return _grid(_read_header(path), path)


def encode(labels: Array, like: Path) -> bytes:
    """An uncompressed NIfTI file of `labels` with the geometry fields of `like` in a fresh header."""
    source = _read_header(like)
    header = type(source)()
    header.set_data_dtype(labels.dtype)
    # A slice stays a 2D file: the fallback affine depends on the number of dimensions.
    header.set_data_shape(labels.shape[: min(3, len(source.get_data_shape()))])
    for field in GEOMETRY_FIELDS:
        header[field] = source[field]
    header["pixdim"][4:] = 1
    header["vox_offset"] = header.single_vox_offset
    header.set_slope_inter(1, 0)
    return bytes(header.binaryblock) + bytes(4) + labels.tobytes(order="F")


def encode_gz(labels: Array, like: Path) -> bytes:
    """The same, compressed."""
    return gzip_bytes(encode(labels, like))


def encode_placed(labels: Array, grid: Grid) -> bytes:
    """A compressed NIfTI file of `labels` on a grid in mm that no NIfTI header states."""
    header = _placed(grid)
    header.set_data_dtype(labels.dtype)
    header.set_slope_inter(1, 0)
    return gzip_bytes(bytes(header.binaryblock) + bytes(4) + labels.tobytes(order="F"))


def probability_header(grid: Grid, names: list[str]) -> bytes:
    """The head of a NIfTI file of (X, Y, Z, K) unsigned 16-bit probabilities, `FULL_SCALE` for 1, first axis fastest.

    Args:
        names: of the K structures; a comment in the file.
    """
    header = _placed(grid)
    header.set_data_dtype(np.uint16)
    header.set_data_shape((*grid.shape, len(names)))
    header.set_slope_inter(1 / FULL_SCALE, 0)
    comment = json.dumps({"structures": names}).encode()
    size = -(-(len(comment) + 8) // 16) * 16
    header["vox_offset"] = header.single_vox_offset + size
    extension = np.array([size, COMMENT], header.endianness + "i4").tobytes() + comment.ljust(size - 8, b"\0")
    return bytes(header.binaryblock) + b"\1\0\0\0" + extension


def _placed(grid: Grid) -> Any:
    """A header that states a grid; of one without a physical size, as 1 mm a voxel."""
    header = nib.Nifti1Header()
    header.set_data_shape(grid.shape)
    header.set_xyzt_units("mm")
    header.set_qform(grid.affine, code=SCANNER, strip_shears=True)
    header.set_sform(grid.affine, code=SCANNER)
    header["vox_offset"] = header.single_vox_offset
    return header


def warnings(path: Path) -> list[str]:
    """Sentences on a qform and sform that disagree, and on a header that states no orientation or no voxel size."""
    header = _read_header(path)
    grid = _grid(header, path)
    found = []
    if not header["sform_code"] and not header["qform_code"]:
        found.append(f"{path} states no orientation (qform_code and sform_code are 0); left and right are a guess.")
    if header["sform_code"] and header["qform_code"] and (note := _disagreement(header, grid)):
        found.append(f"{path}: qform and sform disagree{note}; the sform is used, make sure that it is the right one.")
    if not header["sform_code"] and (_unchecked(path)["pixdim"][1:4] <= 0).any():
        found.append(f"{path} states a voxel size of zero or less; its absolute value, or 1 mm for zero, is used.")
    return found


def _disagreement(header: Any, grid: Grid) -> str:
    try:
        qform = header.get_qform()
    except ValueError:
        return " (the qform is not a rotation)"
    factor = _unit_mm(header)
    corners = np.array([[i, j, k, 1] for i in (0, 1) for j in (0, 1) for k in (0, 1)]) * [*(n - 1 for n in grid.shape), 1]
    apart_mm = np.linalg.norm(corners @ (header.get_sform() - qform).T[:, :3], axis=1).max() * factor
    return f" by up to {apart_mm:.3g} mm" if apart_mm > DISAGREEMENT_VOXELS * min(grid.spacing) else ""


def _grid(header: Any, path: Path) -> Grid:
    shape = tuple(int(n) for n in header.get_data_shape())
    if len(shape) > 3 and max(shape[3:]) != 1:
        times = " x ".join(map(str, shape))
        raise UnreadableError(
            f"{path} is a {len(shape)}D file ({times}) and not one 3D volume; save the volume to segment as a file of its own."
        )
    affine = header.get_best_affine()
    affine[:3] *= _unit_mm(header)
    return grid_of(shape[:3], affine, path)


def _unit_mm(header: Any) -> float:
    return UNIT_MM[int(header["xyzt_units"]) & 7]


def _read_header(path: Path) -> Any:
    return _header(_header_bytes(path), path)


def _unchecked(path: Path) -> Any:
    block = _header_bytes(path)
    kind = _kind(block)
    return kind(block[: kind.template_dtype.itemsize], check=False)


def _header_bytes(path: Path) -> bytes:
    with gzip.open(path) if _is_gzip(path) else path.open("rb") as file:
        return bytes(file.read(HEADER_BYTES))


def _header(block: bytes, path: Path) -> Any:
    kind = _kind(block)
    if len(block) < kind.template_dtype.itemsize:
        raise UnreadableError(f"{path} is truncated within its header; replace it with an intact copy.")
    header = kind(block[: kind.template_dtype.itemsize], check=False)
    header.check_fix(logger=_UNHEARD, error_level=SEVERE)
    if header["magic"].item()[:3] not in (b"n+1", b"n+2"):
        raise UnreadableError(f"{path} is no single-file NIfTI (or half of a .hdr/.img pair); convert it to .nii.gz.")
    if int(header["xyzt_units"]) & 7 not in UNIT_MM:
        raise UnreadableError(f"{path}: the header's spatial unit is none that NIfTI knows; write it again with mm.")
    return header


def _kind(block: bytes) -> Any:
    return nib.Nifti2Header if block[:4] in (b"\x1c\x02\0\0", b"\0\0\x02\x1c") else nib.Nifti1Header


def _is_gzip(path: Path) -> bool:
    return path.name.lower().endswith(".gz")
