"""Small scans with known voxels and an oblique geometry that no short decimal holds."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK as sitk  # noqa: N813

SHAPE = (5, 4, 3)
SPACING = (0.7, 1 / 3, 2.5)
ORIGIN_LPS = (1 / 7, -12.3, 3e-7)


def rotation(degrees: tuple[float, float, float] = (20, -35, 50)) -> np.ndarray:
    """A (3, 3) rotation about the three axes one after the other."""
    matrix = np.eye(3)
    for axis, angle in enumerate(np.radians(degrees)):
        turn = np.eye(3)
        i, j = [k for k in range(3) if k != axis]
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        matrix = matrix @ turn
    return matrix


def counting(shape: tuple[int, ...] = SHAPE, dtype: Any = np.int16) -> np.ndarray:
    """Voxels that all differ, so that no flip or transposition goes unseen."""
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


def ras_affine() -> np.ndarray:
    """The affine of `itk_image`, from its definition: columns are direction times spacing, LPS to RAS."""
    affine = np.eye(4)
    affine[:3, :3] = rotation() * SPACING
    affine[:3, 3] = ORIGIN_LPS
    return np.diag([-1.0, -1, 1, 1]) @ affine


def itk_image(array: np.ndarray | None = None, vector: bool = False) -> sitk.Image:
    """An oblique image of (X, Y, Z[, C]) voxels."""
    array = counting() if array is None else array
    axes = (2, 1, 0, 3) if vector else (2, 1, 0)
    image = sitk.GetImageFromArray(array.transpose(axes), isVector=vector)
    image.SetSpacing(SPACING)
    image.SetOrigin(ORIGIN_LPS)
    image.SetDirection(rotation().ravel().tolist())
    return image


def itk_affine(path: Path) -> np.ndarray:
    """The RAS affine that SimpleITK, which works in LPS, sees in a 3D file."""
    image = sitk.ReadImage(str(path))
    corner = np.array(image.TransformIndexToPhysicalPoint((0, 0, 0)))
    steps = [np.array(image.TransformIndexToPhysicalPoint(i)) - corner for i in ((1, 0, 0), (0, 1, 0), (0, 0, 1))]
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = np.stack(steps, 1), corner
    return np.diag([-1.0, -1, 1, 1]) @ affine


def itk_voxels(path: Path) -> np.ndarray:
    """(X, Y, Z) voxels as SimpleITK reads them."""
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path))).transpose(2, 1, 0)


def nifti(path: Path, array: np.ndarray, affine: np.ndarray | None = None, **fields: Any) -> Path:
    """A NIfTI-1 file with header fields set to exactly these values, bypassing nibabel's bookkeeping."""
    header = nib.Nifti1Header()
    header.set_data_dtype(array.dtype)
    header.set_data_shape(array.shape)
    header["vox_offset"] = 352
    if affine is not None:
        header.set_sform(affine, 1)
        header.set_qform(affine, 1)
    for name, value in fields.items():
        header[name] = value
    content = header.binaryblock + bytes(4) + array.tobytes(order="F")
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path
