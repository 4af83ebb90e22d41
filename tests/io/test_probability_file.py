"""Probabilities read back from the file that stands beside a mask."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from medseg.core.errors import GridMismatchError, UnreadableError
from medseg.core.grid import Grid
from medseg.core.labels import LabelScheme, Structure
from medseg.inference.probabilities import Probabilities
from medseg.inference.window import Slab
from medseg.io.probabilities import read_probabilities

SCHEME = LabelScheme(structures=[Structure(name="liver", id=3), Structure(name="tumour", id=300)])
GRID = Grid((5, 4, 3), np.array([[0, 0, 2.0, -30], [-1.0, 0, 0, 12], [0, 1.5, 0, 7], [0, 0, 0, 1]]))


@pytest.fixture
def written(tmp_path: Path) -> tuple[Path, np.ndarray]:
    logits = torch.randn(3, *GRID.shape, generator=torch.Generator().manual_seed(0))
    path = tmp_path / "a.probabilities.nii.gz"
    with Probabilities(path, GRID, GRID, SCHEME) as file:
        file.add(Slab(0, 0, logits))
        file.finish()
    return path, logits.softmax(0).numpy()


def test_what_was_written_is_read(written: tuple[Path, np.ndarray]) -> None:
    path, expected = written
    maps = read_probabilities(path, GRID)
    assert maps.names == ("liver", "tumour")
    for channel, name in enumerate(maps.names, start=1):
        found = maps.of(name)
        assert found is not None and found.dtype == np.float32
        np.testing.assert_allclose(found, expected[channel], atol=1 / 65535)
    assert maps.of("kidney") is None


def test_pictures_in_pixels_lie_on_their_own_grid(tmp_path: Path) -> None:
    grid = Grid.pixels((6, 5, 1))
    path = tmp_path / "a.probabilities.nii.gz"
    with Probabilities(path, grid, grid, SCHEME) as file:
        file.add(Slab(0, 0, torch.zeros(3, 6, 5, 1)))
        file.finish()
    assert read_probabilities(path, grid).values.shape == (6, 5, 1, 2)


def test_another_grid_is_refused(written: tuple[Path, np.ndarray]) -> None:
    with pytest.raises(GridMismatchError, match=r"a\.probabilities.*shape"):
        read_probabilities(written[0], Grid((5, 4, 4), GRID.affine))
    with pytest.raises(GridMismatchError, match="origin"):
        moved = GRID.affine.copy()
        moved[:3, 3] += 1
        read_probabilities(written[0], Grid(GRID.shape, moved))


@pytest.mark.parametrize("keep", [0, 100, -20])
def test_a_damaged_file_is_one_sentence(written: tuple[Path, np.ndarray], keep: int) -> None:
    path = written[0]
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UnreadableError, match=r"(a\.probabilities\.nii\.gz is).*\.$"):
        read_probabilities(path, GRID)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UnreadableError, match=r"predict\.probabilities: true"):
        read_probabilities(tmp_path / "none.probabilities.nii.gz", GRID)
