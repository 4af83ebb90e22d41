"""Damaged bytes of any kind: the right voxels, other voxels, or an UnreadableError; never anything else."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import tifffile
from io_phantoms import counting, itk_image, nifti, ras_affine
from PIL import Image

from medseg.core.errors import LabelError, UnreadableError
from medseg.io.formats import geometry_warnings, read_grid, read_labels, read_volume

ROUNDS = 80
HEADER = 600  # where most damage hits: voxels hit elsewhere are only other voxels


def plain_nii(path: Path) -> None:
    nifti(path, counting(), ras_affine())


def itk(compressed: bool):
    return lambda path: sitk.WriteImage(itk_image(), str(path), compressed)


def picture(path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 8, 3), np.uint8)).save(path)


def palette(path: Path) -> None:
    Image.new("P", (9, 8)).save(path)


def stack(**options: object):
    return lambda path: tifffile.imwrite(path, counting((3, 9, 8), np.uint8), photometric="minisblack", **options)


SUBJECTS = {
    "nii": ("a.nii", plain_nii),
    "nii.gz": ("a.nii.gz", plain_nii),
    "nrrd": ("a.nrrd", itk(False)),
    "nrrd gzip": ("a.nrrd", itk(True)),
    "mha": ("a.mha", itk(False)),
    "mha zlib": ("a.mha", itk(True)),
    "png": ("a.png", picture),
    "png palette": ("a.png", palette),
    "jpeg": ("a.jpg", picture),
    "tiff": ("a.tif", stack()),
    "tiff zlib": ("a.tif", stack(compression="zlib")),
    "tiff lzw": ("a.tif", stack(compression="lzw", predictor=True)),
    "tiff packbits": ("a.tif", stack(compression="packbits")),
    "tiff imagej": ("a.tif", stack(imagej=True, metadata={"unit": "um", "spacing": 2, "axes": "ZYX"})),
    "tiff ome": ("a.ome.tif", stack(metadata={"axes": "ZYX", "PhysicalSizeX": 0.3, "PhysicalSizeY": 0.3, "PhysicalSizeZ": 1})),
}


@pytest.mark.parametrize("subject", SUBJECTS)
# The libraries may warn of what they then refuse or pass over.
@pytest.mark.filterwarnings("ignore")
def test_damaged_bytes(tmp_path: Path, subject: str) -> None:
    name, make = SUBJECTS[subject]
    path = tmp_path / name
    make(path)
    whole, dice = path.read_bytes(), random.Random(subject)
    unreadable = 0
    for turn in range(ROUNDS):
        damaged = bytearray(whole[: dice.randrange(len(whole))] if turn % 3 == 0 else whole)
        for _ in range(dice.randrange(turn % 3 != 0, 4)):
            if damaged:
                damaged[dice.randrange(min(len(damaged), HEADER))] = dice.randrange(256)
        path.write_bytes(damaged)
        for function in (read_volume, read_grid, read_labels, geometry_warnings):
            try:
                function(path)
            except UnreadableError as error:
                unreadable += 1
                assert str(path) in str(error) and "\n" not in str(error)
            except LabelError:
                pass
    assert unreadable > ROUNDS / 3
