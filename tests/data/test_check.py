"""Each bad input of a case gives a problem that names the case, the file and the cure."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from medseg.core.labels import LabelScheme, Structure
from medseg.core.manifest import Case
from medseg.data.check import CaseFindings, Problem, check_case, check_together, problem_of

SHAPE = (8, 7, 6)
AFFINE = np.diag([1.0, 1.5, 2.0, 1.0])
SCHEME = LabelScheme(structures=[Structure(name="a", id=1), Structure(name="b", id=2)])


def save(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> None:
    nibabel.save(nibabel.Nifti1Image(array, affine), path)


@pytest.fixture
def case(tmp_path: Path) -> Case:
    """A sound case: a scan of noise, and a label with both structures."""
    image, label = tmp_path / "p07.nii.gz", tmp_path / "p07_seg.nii.gz"
    save(image, np.random.default_rng(0).normal(100, 10, SHAPE).astype(np.float32))
    labels = np.zeros(SHAPE, np.uint8)
    labels[1:3], labels[5:7] = 1, 2
    save(label, labels)
    return Case("p07", (image,), label, "train")


def the_problem(findings: CaseFindings, severity: str = "error") -> Problem:
    assert [p.severity for p in findings.problems] == [severity], findings.problems
    problem = findings.problems[0]
    assert problem.case_id == "p07"
    assert problem.sentence.startswith("case p07: ")
    assert problem.cure
    assert "\n" not in problem.sentence
    return problem


def changed(case: Case, change: Callable[[np.ndarray], np.ndarray], which: str = "image", affine: np.ndarray = AFFINE) -> None:
    path = case.images[0] if which == "image" else case.label
    assert path is not None
    save(path, change(np.asarray(nibabel.load(path).dataobj)), affine)


def test_a_sound_case_has_no_problem(case: Case) -> None:
    findings = check_case(case, SCHEME, None)
    assert findings.problems == []
    assert (findings.channels, findings.physical, findings.planar) == (1, True, False)
    assert findings.structures == {"a", "b"}


@pytest.mark.parametrize("which", ["image", "label"])
def test_a_missing_file(case: Case, which: str) -> None:
    path = case.images[0] if which == "image" else case.label
    assert path is not None
    path.unlink()
    problem = the_problem(check_case(case, SCHEME, None))
    assert f"{path} does not exist" in problem.sentence
    assert problem.file == str(path)


@pytest.mark.parametrize("which", ["image", "label"])
@pytest.mark.parametrize("keep", [0, 5, 60, 0.5, 0.99])
def test_a_truncated_or_empty_file(case: Case, which: str, keep: float) -> None:
    path = case.images[0] if which == "image" else case.label
    assert path is not None
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if 0 < keep < 1 else int(keep)])
    problem = the_problem(check_case(case, SCHEME, None))
    assert str(path) in problem.problem
    assert problem.file == str(path)


def test_a_file_that_is_not_what_its_name_says(case: Case) -> None:
    case.images[0].write_text("<html>not found</html>")
    assert str(case.images[0]) in the_problem(check_case(case, SCHEME, None)).sentence


@pytest.mark.parametrize(
    ("change", "affine", "said"),
    [
        (lambda labels: labels[:-1], AFFINE, "shape 8 x 7 x 6 against 7 x 7 x 6"),
        (lambda labels: labels, np.diag([1.0, 1.5, 2.5, 1.0]), "spacing 1 x 1.5 x 2 against 1 x 1.5 x 2.5 mm"),
        (lambda labels: labels, AFFINE + np.array([[0, 0, 0, 3.0], *np.zeros((3, 4))]), "origin differs by 3 x 0 x 0 mm"),
        (lambda labels: labels, np.diag([-1.0, 1.5, 2.0, 1.0]), "direction differs by 180.0 degrees"),
    ],
)
def test_a_label_on_another_grid(case: Case, change: Callable[[np.ndarray], np.ndarray], affine: np.ndarray, said: str) -> None:
    changed(case, change, "label", affine)
    problem = the_problem(check_case(case, SCHEME, None))
    assert said in problem.problem
    assert problem.file == str(case.label)
    assert "resample the label" in problem.cure


def test_unknown_label_values(case: Case) -> None:
    changed(case, lambda labels: labels + 5, "label")
    problem = the_problem(check_case(case, SCHEME, None))
    assert "5, 6, 7" in problem.problem
    assert str(case.label) in problem.problem
    assert "`structures`" in problem.cure


@pytest.mark.parametrize("value", [0.5, np.nan, -1.0])
def test_label_values_that_are_no_whole_numbers(case: Case, value: float) -> None:
    def change(labels: np.ndarray) -> np.ndarray:
        labels = labels.astype(np.float32)
        labels[0, 0, 0] = value
        return labels

    changed(case, change, "label")
    assert str(case.label) in the_problem(check_case(case, SCHEME, None)).sentence


def test_whole_numbers_written_as_float_are_labels(case: Case) -> None:
    changed(case, lambda labels: labels.astype(np.float32), "label")
    assert check_case(case, SCHEME, None).problems == []


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinite_voxels(case: Case, value: float) -> None:
    def change(image: np.ndarray) -> np.ndarray:
        image = image.copy()
        image[2, 2, :3] = value
        return image

    changed(case, change)
    assert "holds 3 NaN or infinite voxels" in the_problem(check_case(case, SCHEME, None)).problem


def test_a_constant_image(case: Case) -> None:
    changed(case, lambda image: np.full_like(image, 7))
    assert "is constant" in the_problem(check_case(case, SCHEME, None)).problem


def test_an_empty_label_is_a_warning(case: Case) -> None:
    changed(case, np.zeros_like, "label")
    problem = the_problem(check_case(case, SCHEME, None), "warning")
    assert "is empty" in problem.problem


@pytest.mark.parametrize("which", ["image", "label"])
def test_a_4d_file(case: Case, which: str) -> None:
    changed(case, lambda array: np.stack([array, array], -1), which)
    assert "4D" in the_problem(check_case(case, SCHEME, None)).problem


def test_a_qform_and_an_sform_that_disagree_are_a_warning(case: Case) -> None:
    image = nibabel.load(case.images[0])
    image.set_qform(np.diag([1.0, 1.5, 4.0, 1.0]), code=1)
    image.set_sform(AFFINE, code=1)
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), None, image.header), case.images[0])
    problem = the_problem(check_case(case, SCHEME, None), "warning")
    assert "qform and sform disagree" in problem.problem
    assert problem.file == str(case.images[0])


def test_a_missing_label_hinders_training_but_not_prediction(case: Case) -> None:
    problem = the_problem(check_case(replace(case, label=None), SCHEME, None))
    assert "used for training" in problem.problem
    problem = the_problem(check_case(replace(case, label=None, split="test"), SCHEME, None), "warning")
    assert "evaluated" in problem.problem


def test_channels_on_different_grids_name_the_channel(case: Case, tmp_path: Path) -> None:
    second = tmp_path / "p07_t1.nii.gz"
    save(second, np.random.default_rng(1).normal(0, 1, SHAPE).astype(np.float32), np.diag([1.0, 1.5, 3.0, 1.0]))
    problem = the_problem(check_case(replace(case, images=(*case.images, second)), SCHEME, None))
    assert problem.file == str(second)
    assert "spacing" in problem.problem


def test_every_problem_of_a_case_is_found_at_once(case: Case) -> None:
    def change(image: np.ndarray) -> np.ndarray:
        image = image[:-1].copy()
        image[0, 0, 0] = np.nan
        return image

    changed(case, change)
    changed(case, lambda labels: labels * 9, "label")
    found = " | ".join(p.problem for p in check_case(case, SCHEME, None).problems)
    assert "NaN" in found
    assert "grid differs" in found
    assert "label values 9, 18" in found


def test_stated_spacing_makes_a_picture_physical(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 255, (9, 8, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")
    Image.fromarray((picture[..., 0] > 99).astype(np.uint8)).save(tmp_path / "a_seg.png")
    case = Case("p07", (tmp_path / "a.png",), tmp_path / "a_seg.png", "train")
    findings = check_case(case, SCHEME, None)
    assert findings.problems == []
    assert (findings.channels, findings.physical, findings.planar) == (3, False, True)
    assert check_case(case, SCHEME, (0.5, 0.5, 1.0)).physical


def test_an_empty_dye_in_a_file_of_its_own_is_a_warning(case: Case, tmp_path: Path) -> None:
    dye = tmp_path / "dye.nii.gz"
    save(dye, np.zeros(SHAPE, np.float32))
    findings = check_case(replace(case, images=(*case.images, dye)), SCHEME, None)
    assert "dye.nii.gz is constant" in the_problem(findings, "warning").problem
    changed(case, lambda image: np.full_like(image, 7))
    empty = check_case(replace(case, images=(*case.images, dye)), SCHEME, None)
    assert [p.severity for p in empty.problems] == ["error", "error"]


def test_a_constant_colour_is_a_warning(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 255, (9, 8, 3), dtype=np.uint8)
    picture[..., 2] = 0
    Image.fromarray(picture).save(tmp_path / "a.png")
    Image.fromarray(picture[..., 0]).save(tmp_path / "l.png")
    nuclei = LabelScheme(structures=[Structure(name="nuclei", id=1, values="nonzero")])
    findings = check_case(Case("p07", (tmp_path / "a.png",), tmp_path / "l.png", "train"), nuclei, None)
    assert "channel 3" in the_problem(findings, "warning").problem


def finding(case_id: str, split: str = "train", **facts: object) -> CaseFindings:
    case = Case(case_id, (Path(f"{case_id}.nii"),), Path(f"{case_id}_seg.nii"), split)  # type: ignore[arg-type]
    return replace(CaseFindings(case, [], 1, True, False, frozenset({"a", "b"})), **facts)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("facts", "said", "severity"),
    [
        ({"channels": 3}, "has 3 image channels where most cases have 1", "error"),
        ({"physical": False}, "has no physical size where most cases have a physical size", "error"),
        ({"planar": True}, "is one slice where most cases are a volume", "warning"),
    ],
)
def test_a_case_unlike_the_others_is_named(facts: dict[str, object], said: str, severity: str) -> None:
    others = [finding(f"p{n}") for n in range(3)]
    assert check_together(others, SCHEME) == []
    (problem,) = check_together([*others, finding("odd", **facts)], SCHEME)
    assert (problem.case_id, problem.severity) == ("odd", severity)
    assert said in problem.sentence


def test_one_picture_in_two_splits_is_an_error() -> None:
    pair = [finding("p1", content="x"), finding("p2", "test", content="x")]
    (problem,) = check_together(pair, SCHEME)
    assert problem.severity == "error"
    assert "different splits" in problem.sentence
    (problem,) = check_together([finding("p1", content="x"), finding("p2", content="x")], SCHEME)
    assert problem.severity == "warning"


def test_a_structure_in_no_training_case_is_named() -> None:
    findings = [finding("p1", structures=frozenset({"a"})), finding("p2", "test")]
    (problem,) = check_together(findings, SCHEME)
    assert "no training case holds `b`" in problem.sentence


def test_a_mirrored_scan_is_noticed(tmp_path: Path) -> None:
    kidneys = LabelScheme(
        structures=[
            Structure(name="left_kidney", id=1, paired_with="right_kidney"),
            Structure(name="right_kidney", id=2, paired_with="left_kidney"),
        ]
    )
    labels = np.zeros(SHAPE, np.uint8)
    labels[1:3], labels[5:7] = 1, 2  # along RAS x, so the left kidney lies to the left
    image = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    findings = []
    for name, array in {"p1": labels, "p2": labels[::-1]}.items():
        save(tmp_path / f"{name}.nii.gz", image)
        save(tmp_path / f"{name}_seg.nii.gz", array)
        image = image + 1
        findings.append(check_case(Case(name, (tmp_path / f"{name}.nii.gz",), tmp_path / f"{name}_seg.nii.gz"), kidneys, None))
    (problem,) = check_together(findings, kidneys)
    assert problem.case_id == "p2"
    assert "`left_kidney` lies to the right of `right_kidney`" in problem.sentence
    assert "mirrored" in problem.cure


def test_an_error_message_divides_into_problem_and_cure() -> None:
    problem = problem_of(ValueError("x.nii is odd (a; b); mend it."), "p1", "x.nii")
    assert problem.problem == "x.nii is odd (a; b)"
    assert problem.cure == "mend it"
    assert problem_of(ValueError("all wrong.")).sentence == "all wrong; correct it."


def test_the_real_sets_are_sound(real_data: Path) -> None:
    scheme = LabelScheme(structures=[Structure(name="anterior", id=1), Structure(name="posterior", id=2)])
    for path in sorted((real_data / "hippocampus" / "images").glob("*.nii.gz"))[:5]:
        case = Case(path.name, (path,), path.parents[1] / "labels" / path.name, "train")
        assert check_case(case, scheme, None).problems == []
