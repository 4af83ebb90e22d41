"""Small label files for the tests of pairs and cases."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest

SaveLabels = Callable[..., Path]
AFFINE = np.array([[-1.0, 0, 0, 20], [0, 0, 2.5, -7], [0, 1.5, 0, 3], [0, 0, 0, 1]])  # flipped, with Y and Z exchanged


@pytest.fixture
def save_labels(tmp_path: Path) -> SaveLabels:
    """Writes a NIfTI label map under the test's folder; returns its path."""

    def save(name: str, array: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(array.astype(np.uint8), affine), path)
        return path

    return save
