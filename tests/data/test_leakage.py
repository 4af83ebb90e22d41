"""The leakage audit: what it finds in planted copies, and what it leaves alone."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from medseg.core.manifest import Case
from medseg.data.check import CaseFindings, Problem, check_case, check_together
from medseg.data.leakage import NEAR, content_hash, near_pairs, shrink, thumbnail

SHAPE = (30, 26, 20)


def scan(seed: int, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """Something like anatomy: the same bright ellipsoid in each, with a texture of its own."""
    axes = np.indices(shape)
    body = sum(((a - n / 2) / (0.4 * n)) ** 2 for a, n in zip(axes, shape, strict=True) if n > 1) < 1
    texture = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), [1.5 if n > 1 else 0 for n in shape])
    return (300 * body + 400 * texture * body + 20).astype(np.float32)


def found(folder: Path, first: np.ndarray, second: np.ndarray, *places: str, **changes: object) -> list[Problem]:
    """The problems between two scans among three others; `places` are their splits."""
    cases = [(first, places[0]), (second, places[1]), *((scan(100 + n), "train") for n in range(3))]
    findings = []
    for number, (array, split) in enumerate(cases):
        path = folder / f"p{number}.nii.gz"
        nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), path)
        findings.append(check_case(Case(f"p{number}", (path,), None, split), None, None))  # type: ignore[arg-type]
    return check_together(findings, None, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("copy", "said"),
    [
        (lambda a: a * np.float32(1.0001), "nearly the same as case p0 (correlation 1.0000)"),
        (lambda a: np.round(a / 100), "nearly the same as case p0 (correlation 0.99"),
        (
            lambda a: a + np.random.default_rng(5).normal(0, 0.1 * a.std(), a.shape).astype(np.float32),
            "nearly the same as case p0",
        ),
        (lambda a: a[::-1], "nearly the same as case p0 mirrored"),
        (lambda a: a[::-1, :, ::-1], "nearly the same as case p0 mirrored"),
        (lambda a: 500 - a, None),  # a negative
        (lambda a: np.swapaxes(a, 0, 1), None),  # a quarter turn
        (lambda a: a[4:, 4:], None),  # another crop
        (lambda a: np.roll(a, 4, 0), None),
        (lambda _: scan(1), None),  # another patient
    ],
)
def test_planted_copies_across_splits_are_warnings(tmp_path: Path, copy: Callable, said: str | None) -> None:
    problems = found(tmp_path, scan(0), copy(scan(0)), "train", "test")
    if said is None:
        assert problems == []
        return
    (problem,) = problems
    assert (problem.severity, problem.case_id) == ("warning", "p1")
    assert said in problem.problem and "different splits (test, train)" in problem.problem
    # Within one split it is nobody's leak.
    assert found(tmp_path, scan(0), copy(scan(0)), "train", "train") == []


def test_the_same_voxels_in_another_file(tmp_path: Path) -> None:
    """Saved without compression, and as other numbers of the same value: the voxels count, not the file."""
    image = np.round(scan(0))
    for name, array in (("a.nii.gz", image.astype(np.float32)), ("b.nii", image.astype(np.int16))):
        nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), tmp_path / name)
    places = {("train", "val"): "error", ("val", "test"): "error", ("test", "train"): "error", ("train", "train"): "warning"}
    for (a, b), severity in places.items():
        cases = [Case("a", (tmp_path / "a.nii.gz",), None, a), Case("b", (tmp_path / "b.nii",), None, b)]  # type: ignore[arg-type]
        (problem,) = check_together([check_case(case, None, None) for case in cases], None)
        assert problem.severity == severity and "same image voxels as case a" in problem.problem


def test_across_folds_it_is_an_error(tmp_path: Path) -> None:
    folds = {f"p{n}": n % 2 for n in range(5)}
    (problem,) = found(tmp_path, scan(0), scan(0), "train", "train", fold_of=folds)
    assert problem.severity == "error" and "different folds (fold 1, fold 0)" in problem.problem
    assert "patient_id" in problem.cure
    (problem,) = found(tmp_path, scan(0), scan(0), "train", "train", fold_of=dict.fromkeys(folds, 1))
    assert problem.severity == "warning" and "different" not in problem.problem
    (problem,) = found(tmp_path, scan(0), scan(0), "train", "test", fold_of={c: f for c, f in folds.items() if c != "p1"})
    assert problem.severity == "error" and "different splits (test, fold 0)" in problem.problem
    (problem,) = found(tmp_path, scan(0), scan(0) * 2, "train", "train", fold_of=folds)
    assert problem.severity == "warning" and "nearly" in problem.problem


def test_colour_pictures_of_other_sizes(tmp_path: Path) -> None:
    """A picture re-saved at half its size is still the same picture."""
    rng = np.random.default_rng(0)
    grey = ndimage.gaussian_filter(rng.normal(size=(96, 80)), 5)
    picture = Image.fromarray(np.uint8(np.clip(128 + 800 * np.stack([grey, 0.8 * grey, grey**2], -1), 0, 255)))
    picture.save(tmp_path / "a.png")
    picture.resize((40, 48), Image.Resampling.BOX).save(tmp_path / "b.png")
    cases = [Case(n, (tmp_path / f"{n}.png",), None, s) for n, s in (("a", "train"), ("b", "test"))]  # type: ignore[arg-type]
    (problem,) = check_together([check_case(case, None, None) for case in cases], None)
    assert "nearly the same as case a" in problem.problem


def test_many_alike_do_not_drown_the_reader() -> None:
    one = thumbnail([scan(0)[None]])
    findings = [
        CaseFindings(Case(f"p{n:03d}", (Path("x.nii"),), split="train" if n % 2 else "test"), content=str(n), thumbnail=one)
        for n in range(60)
    ]
    problems = check_together(findings, None)
    assert len(problems) == 21 and "39 more cases" in problems[-1].problem
    assert len({p.case_id for p in problems}) == 21


def test_shrinking_is_the_mean_over_boxes() -> None:
    array = np.arange(24.0, dtype=np.float32).reshape(4, 6, 1)
    np.testing.assert_allclose(shrink(array, (2, 3, 1))[..., 0], array[..., 0].reshape(2, 2, 3, 2).mean((1, 3)))
    np.testing.assert_array_equal(shrink(array[:2], (4, 6, 1)), array[:2].repeat(2, 0))


def test_what_has_no_thumbnail() -> None:
    assert thumbnail([np.ones((1, 9, 9, 9), np.float32)]) is None
    assert thumbnail([np.full((1, 9, 9, 9), np.nan, np.float32)]) is None
    hot = scan(0)[None].copy()
    hot[0, 3, 3, 3] = 1e9  # one hot voxel
    assert float(np.sum(thumbnail([hot]) * thumbnail([scan(0)[None]]))) > 0.9  # type: ignore[operator]


def test_hashes_tell_shapes_apart() -> None:
    array = np.zeros((1, 4, 6, 2), np.float32)
    assert content_hash([array]) != content_hash([array.reshape(1, 6, 4, 2)])


def test_five_thousand_cases_take_seconds() -> None:
    rng = np.random.default_rng(0)
    thumbnails = rng.normal(size=(2000, 12, 12, 12)).astype(np.float32)
    thumbnails /= np.linalg.norm(thumbnails.reshape(2000, -1), axis=1)[:, None, None, None]
    thumbnails[1999] = thumbnails[3]
    start = time.perf_counter()
    (pair,) = near_pairs(thumbnails, ["train"] * 1500 + ["test"] * 500)
    assert (pair.first, pair.second) == (3, 1999) and not pair.flipped
    assert time.perf_counter() - start < 20  # about 1 s on an idle core; 5000 take six times as long


@pytest.mark.parametrize(("name", "highest"), [("hippocampus", 0.96), ("isbi2012_em", 0.9)])
def test_no_false_alarm_on_real_data(real_data: Path, name: str, highest: float) -> None:
    from medseg.io.formats import read_volume

    paths = sorted(p for p in (real_data / name / "images").iterdir() if p.is_file())
    thumbnails = [t for path in paths if (t := thumbnail([read_volume(path).array])) is not None]
    assert len(thumbnails) == len(paths)
    assert near_pairs(thumbnails, [str(n) for n in range(len(paths))], min(highest, NEAR)) == []
