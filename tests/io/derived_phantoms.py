"""Label maps that are hard to draw, and what the tests of DICOM SEG and RTSTRUCT have in common."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_phantoms import ct, only
from pydicom import config, uid

from medseg.core.errors import CaseError
from medseg.core.labels import LabelScheme
from medseg.core.resample import resample
from medseg.io.derived import MadeBy
from medseg.io.dicom import read_grid
from medseg.io.formats import read_labels
from medseg.io.series import Series, find_series, is_dicom

SCHEME = LabelScheme.model_validate(
    {
        "structures": [
            {"name": "liver", "id": 3},
            {"name": "kidney_left", "id": 200},
            {"name": "Größe, Ω", "id": 7, "code": {"scheme": "SCT", "value": "78961009", "meaning": "Spleen"}},
            {"name": "never there", "id": 9},
        ]
    }
)
MADE_BY = MadeBy("unet of livers", "ab" * 32, "medseg 0.1.0")
# Rows and columns along other axes of the patient, and a copy that looks into the body the other way round.
TURNS = {
    "axial": np.eye(3),
    "sagittal": np.array([[0, 0, 1], [1, 0, 0], [0, -1, 0]]).astype(float) * [1, 1, -1],
    "coronal": np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]]).astype(float),
    "prone": np.diag([-1.0, -1, 1]),
}
PLANTED = "PLANTED"
# Headers that libraries stumble over, or complain of with the value in their words.
STRANGE: list[dict[str, Any]] = [
    {"FrameOfReferenceUID": None},
    {"SOPInstanceUID": "1.2.3.4"},
    {"SOPClassUID": "1.2.3.4.5"},
    {"Modality": PLANTED},
    {"PatientSex": PLANTED, "PatientBirthDate": PLANTED, "StudyDate": PLANTED, "PatientAge": PLANTED},
    {"PatientWeight": "7777777", "SeriesNumber": "7777777"},
    {"PatientName": f"{PLANTED}^A\\{PLANTED}=" * 9, "AccessionNumber": PLANTED * 9, "SpecificCharacterSet": PLANTED},
]
MR = {"SOPClassUID": uid.MRImageStorage, "Modality": "MR"}


def pieces(shape: tuple[int, int, int] = (21, 17, 6)) -> np.ndarray:
    """(X, Y, Z) uint8 ids 3, 7, 200: noise (corners that touch, holes, single voxels, the border), nested rings, an empty slice
    and one that is full."""
    noise = np.random.default_rng(3).choice(np.array([0, 3, 7, 200], np.uint8), shape, p=[0.4, 0.4, 0.1, 0.1])
    x, y = np.indices(shape[:2])
    distance = np.maximum(np.abs(x - shape[0] // 2), np.abs(y - shape[1] // 2))
    noise[:, :, 1:2] = np.where(distance % 2, 3, np.where(distance % 4, 200, 0))[..., None]
    noise[:, :, 2:3] = 0
    noise[:, :, 3:4] = 200
    return noise


def structures_of(labels: np.ndarray) -> dict[str, np.ndarray]:
    """The mask of each structure that occurs, by name."""
    return {s.name: labels == s.id for s in SCHEME.structures if (labels == s.id).any()}


def series_of(folder: Path, labels: np.ndarray, **values: Any) -> Series:
    """A series with the voxels of `labels`."""
    ct(folder, np.zeros(labels.shape, np.uint16), **values)
    return only(folder)


def what_is_said(encode: Callable[..., bytes], folder: Path, values: dict[str, Any], caplog, capfd, recwarn) -> str:
    """Everything that is raised, printed, warned of or logged while an object is made from strange headers."""
    named = {"PatientName": PLANTED, "PatientID": PLANTED, "InstitutionName": PLANTED}
    with config.disable_value_validation():
        paths = ct(folder / PLANTED, np.zeros(pieces().shape, np.uint16), **{**named, **values})
    for path in paths:  # pydicom would not write what is no number
        path.write_bytes(path.read_bytes().replace(b"7777777 ", PLANTED.encode() + b" "))
    series = only(folder)
    caplog.set_level(logging.DEBUG)
    capfd.readouterr()
    recwarn.clear()
    said = ""
    try:
        encode(pieces(), series, SCHEME, MADE_BY)
    except CaseError as error:
        assert error.__cause__ is None and (error.__suppress_context__ or error.__context__ is None)
        said = str(error)
    return "".join([said, *capfd.readouterr(), caplog.text, *(str(warning.message) for warning in recwarn)])


def real_series(folder: Path) -> Series:
    """The one scan below a folder of real files."""
    (series,) = [s for s in find_series(p for p in folder.rglob("*") if p.is_file() and is_dicom(p)) if not s.skipped]
    return series


def real_ct(real_data: Path) -> tuple[np.ndarray, Series]:
    """A series of 20 slices and the label map of its voxels, which comes as NIfTI with an axis the other way round."""
    series = real_series(real_data / "totalseg_ct_mr_small/dicom/example_ct_dicom")
    reference = read_labels(real_data / "totalseg_ct_mr_small/labels/example_ct_dicom_seg.nii.gz")
    labels = resample(reference.array, reference.grid, read_grid(series), 0)
    assert np.array_equal(np.bincount(labels.ravel()), np.bincount(reference.array.ravel()))  # the same voxels, turned
    return labels, series


def real_masks(folder: Path, series: Series) -> tuple[np.ndarray, LabelScheme]:
    """Liver, spine and heart of three real slices, drawn with another tool, and a scheme of the three."""
    labels = np.zeros(read_grid(series).shape, np.uint8)
    for number, name in ((3, "heart"), (2, "spine"), (1, "liver")):  # they overlap a little; the last one wins
        mask = read_labels(folder / f"{name}_seg.nrrd")
        labels[resample(mask.array, mask.grid, read_grid(series), 0) > 0] = number
    return labels, LabelScheme.model_validate(
        {"structures": [{"name": name, "id": number} for number, name in enumerate(("liver", "spine", "heart"), start=1)]}
    )


def run_tool(name: str, *arguments: str | Path) -> str:
    """What a command line tool of the environment prints; the test is skipped where it is not installed."""
    tool = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if tool is None:
        pytest.skip(f"{name} is not installed")
    done = subprocess.run([tool, *map(str, arguments)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def check_standard(path: Path) -> None:
    """dciodvfy of dicom3tools finds no error in a file."""
    errors = [line for line in run_tool("dciodvfy", path).splitlines() if line.startswith("Error")]
    assert errors == []
