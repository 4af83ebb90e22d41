"""The file of probabilities: its numbers, where they lie, what its header says, and that it agrees with the mask."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from phantoms import LPS_AFFINE, volume_case
from PIL import Image
from scipy.ndimage import map_coordinates
from scipy.special import expit, softmax
from tiny_models import write_tiny_model

from medseg.core.errors import CaseError
from medseg.core.grid import Grid
from medseg.core.labels import LabelScheme, Region, Structure
from medseg.inference.probabilities import Probabilities
from medseg.inference.restore import restore
from medseg.inference.window import Slab
from pipelines.segment import segment

ONE = LabelScheme(structures=[Structure(name="all", id=1)])
TWO = LabelScheme(structures=[Structure(name="liver", id=3), Structure(name="Größe", id=300)])
NESTED = LabelScheme(
    structures=[Structure(name="oedema", id=2), Structure(name="core", id=1)],
    regions=[Region(name="whole", structures=["core", "oedema"]), Region(name="core", structures=["core"])],
)
STEP = 1 / 65535
TURNED = np.array([[0, 0, 2.0, -30], [-1.0, 0, 0, 12], [0, 1.5, 0, 7], [0, 0, 0, 1]])  # stored as P, S, R


def smooth_logits(channels: int, grid: Grid, seed: int = 0) -> np.ndarray:
    """(K, X, Y, Z) float32 that vary over some voxels, from sure to undecided."""
    coarse = np.random.default_rng(seed).normal(0, 3, (channels, 5, 5, 5))
    places = np.stack(np.meshgrid(*(np.linspace(0, 4, n) for n in grid.shape), indexing="ij"))
    return np.stack([map_coordinates(one, places, order=1) for one in coarse]).astype(np.float32)


def expected(logits: np.ndarray, prepared: Grid, scan: Grid, labels: LabelScheme) -> np.ndarray:
    """(X, Y, Z, K) probabilities by scipy; NaN outside of the middles of the prepared voxels."""
    to_prepared = np.linalg.solve(prepared.affine, scan.affine)
    index = np.tensordot(to_prepared[:3, :3], np.indices(scan.shape), 1) + to_prepared[:3, 3].reshape(3, 1, 1, 1)
    last = np.array(prepared.shape).reshape(3, 1, 1, 1) - 1
    inside = ((index > -1e-6) & (index < last + 1e-6)).all(0)
    between = np.stack([map_coordinates(one, index, order=1, mode="nearest") for one in logits.astype(np.float64)])
    shares = expit(between) if labels.regions else softmax(between, 0)[1:]
    return np.where(inside, shares, np.nan).transpose(1, 2, 3, 0)


def written(
    path: Path, logits: np.ndarray, prepared: Grid, scan: Grid, labels: LabelScheme, axis: int = 2, rows: int = 3
) -> bytes:
    """The file, from slabs of some rows along an axis."""
    with Probabilities(path, prepared, scan, labels) as file:
        for start in range(0, prepared.shape[axis], rows):
            part = [slice(None)] * 4
            part[axis + 1] = slice(start, start + rows)
            file.add(Slab(axis, start, torch.from_numpy(logits[tuple(part)])))
        file.finish()
    assert [found.name for found in path.parent.iterdir()] == [path.name]
    return path.read_bytes()


def of_file(path: Path) -> np.ndarray:
    return np.asarray(nibabel.load(path).get_fdata())


def structures_in(path: Path) -> list[str]:
    """The names in the header's comment."""
    (extension,) = nibabel.load(path).header.extensions
    assert extension.get_code() == 6
    text = extension.get_content()
    return json.loads(text if isinstance(text, str) else bytes(text).rstrip(b"\0"))["structures"]


@pytest.mark.parametrize("labels", [TWO, NESTED], ids=["classes", "regions"])
@pytest.mark.parametrize("spacing", [(1.0, 1.5, 2.0), (1.3, 1.3, 1.3), (2.2, 2.0, 3.1)])
@pytest.mark.parametrize("affine", [LPS_AFFINE, TURNED], ids=["flipped", "turned"])
def test_every_voxel_has_its_probability(
    tmp_path: Path, affine: np.ndarray, spacing: tuple[float, float, float], labels: LabelScheme
) -> None:
    scan = Grid((22, 19, 17), affine)
    prepared = scan.canonical().respaced(spacing)
    logits = smooth_logits(labels.n_outputs, prepared)
    path = tmp_path / "a.probabilities.nii.gz"
    content = written(path, logits, prepared, scan, labels)
    image = nibabel.load(path)
    assert image.shape == (*scan.shape, len(labels.measured)) and image.get_data_dtype() == np.uint16
    np.testing.assert_allclose(image.affine, scan.affine, atol=1e-5)
    assert structures_in(path) == list(labels.measured)
    found, right = of_file(path), expected(logits, prepared, scan, labels)
    sure = ~np.isnan(right)
    assert sure.mean() > 0.7 and found.min() >= 0 and found.max() <= 1
    assert np.abs(found - right)[sure].max() < 0.51 * STEP + 1e-5  # logits in single precision
    mask = restore(logits, prepared, scan, labels).array
    np.testing.assert_array_equal((decided(found, labels) != mask)[surely(found, labels)], False)
    # However the answer comes in, the bytes are the same.
    for axis, rows in ((0, 1), (1, 50)):
        assert written(path, logits, prepared, scan, labels, axis, rows) == content


def decided(shares: np.ndarray, labels: LabelScheme) -> np.ndarray:
    """(X, Y, Z) class indices from probabilities alone."""
    if not labels.regions:
        return np.concatenate([1 - shares.sum(-1, keepdims=True), shares], -1).argmax(-1)
    classes = np.zeros(shares.shape[:3], np.uint8)
    for channel, index in labels.painting:
        classes[shares[..., channel] > 0.5] = index
    return classes


def surely(shares: np.ndarray, labels: LabelScheme) -> np.ndarray:
    """Where the roundings of a few steps cannot turn a decision."""
    if labels.regions:
        return (np.abs(shares - 0.5) > 3 * STEP).all(-1)
    ranked = np.sort(np.concatenate([1 - shares.sum(-1, keepdims=True), shares], -1), -1)
    return ranked[..., -1] - ranked[..., -2] > 3 * STEP * shares.shape[-1]


def test_outside_of_the_prepared_picture_nothing_is_probable(tmp_path: Path) -> None:
    scan = Grid((12, 12, 12), np.eye(4))
    prepared = scan.cropped((3, 4, 5), (6, 5, 4))
    path = tmp_path / "a.probabilities.nii.gz"
    written(path, np.stack([np.zeros(prepared.shape), np.full(prepared.shape, 9.0)]).astype(np.float32), prepared, scan, ONE)
    right = np.zeros((12, 12, 12, 1))
    right[3:9, 4:9, 5:9] = expit(9)
    np.testing.assert_allclose(of_file(path), right, atol=STEP)


def test_certainty_is_exactly_one_and_nothing_else_is_more(tmp_path: Path) -> None:
    grid = Grid((4, 4, 4), np.eye(4))
    path = tmp_path / "a.probabilities.nii.gz"
    written(path, np.stack([np.full(grid.shape, v) for v in (-99.0, 99.0, -99.0)]).astype(np.float32), grid, grid, TWO)
    np.testing.assert_array_equal(of_file(path)[..., 0], of_file(path).max())
    assert of_file(path).max() == pytest.approx(1, abs=1e-7) and not of_file(path)[..., 1].any()


def test_an_answer_that_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    grid = Grid((4, 4, 4), np.eye(4))

    def broken() -> None:
        with Probabilities(tmp_path / "a.probabilities.nii.gz", grid, grid, ONE) as file:
            file.add(Slab(0, 0, torch.zeros(2, 2, 4, 4)))
            raise CaseError("the network's answer is not finite")

    with pytest.raises(CaseError, match="not finite"):
        broken()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("labels", [TWO, NESTED], ids=["classes", "regions"])
def test_the_command_writes_them_beside_the_mask(tmp_path: Path, labels: LabelScheme) -> None:
    model = write_tiny_model(tmp_path / "m.medseg", scheme=labels)
    scan = tmp_path / "scans/a.nii.gz"
    scan.parent.mkdir()
    affine = TURNED @ np.diag([0.8, 1.2, 0.9, 1])  # another spacing than the model's
    nibabel.save(nibabel.Nifti1Image(volume_case(1)[0], affine), scan)
    for output in ("one", "two"):
        assert segment(model, scan.parent, tmp_path / output, probabilities=True) == 0
    path = tmp_path / "one/a.probabilities.nii.gz"
    assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
    mask, found = nibabel.load(tmp_path / "one/a.nii.gz"), of_file(path)
    np.testing.assert_array_equal(nibabel.load(path).affine, mask.affine)
    assert structures_in(path) == list(labels.measured)
    assert labels.regions or found.sum(-1).max() <= 1 + 2 * STEP
    assert 0.2 < found.max(-1).mean() < 0.99  # neither all nor nothing
    agreed = labels.decode(decided(found, labels).astype(np.uint8)) == np.asarray(mask.dataobj)
    assert agreed[surely(found, labels)].all() and agreed.mean() > 0.999
    # Altered, they are made again; no longer asked for, they go.
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert segment(model, scan.parent, tmp_path / "one", probabilities=True) == 0
    assert path.read_bytes() == whole
    assert segment(model, scan.parent, tmp_path / "one") == 0
    assert not path.exists() and (tmp_path / "one/a.nii.gz").is_file()


def test_of_a_picture_in_pixels(tmp_path: Path) -> None:
    scheme = LabelScheme(structures=[Structure(name="nucleus", id=1)])
    model = write_tiny_model(tmp_path / "m.medseg", scheme=scheme, patch_voxels=(32, 32, 1), physical=False, spacing=None)
    (tmp_path / "scans").mkdir()
    grey = np.random.default_rng(0).integers(0, 255, (40, 50), np.uint8)
    Image.fromarray(grey).save(tmp_path / "scans/a.png")
    assert segment(model, tmp_path / "scans", tmp_path / "out", probabilities=True) == 0
    found = of_file(tmp_path / "out/a.probabilities.nii.gz")
    assert found.shape == (50, 40, 1, 1)  # columns, rows
    mask = np.asarray(Image.open(tmp_path / "out/a.png")).T
    assert 0 < mask.mean() < 1
    np.testing.assert_array_equal(found[:, :, 0, 0] > 0.5, mask == 1)
    (row,) = csv.DictReader((tmp_path / "out/volumes.csv").read_text().splitlines())
    assert row == {"case_id": "a", "nucleus_px": str(int(mask.sum()))}
