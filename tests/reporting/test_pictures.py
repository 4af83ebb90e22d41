"""Pictures of evaluations over folders of masks: which image belongs to a case, and what is drawn without one."""

from __future__ import annotations

import json
import re
import shutil

import nibabel as nib
import numpy as np
import pytest
from reporting.phantom_run import FAILED, TEST, write_volume_run

from medseg.core.errors import ConfigError
from medseg.reporting.collect import collect_folders
from medseg.reporting.pictures import find_images, find_pictures
from pipelines.evaluate_folders import evaluate_folders
from pipelines.report import report_folders

SETTINGS = ["evaluate.bootstrap_resamples=100", "evaluate.metrics=[dice,hd95]"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folders of images, references and predictions, and the evaluation of the latter two."""
    root = tmp_path_factory.mktemp("folders")
    write_volume_run(root)
    for case in TEST:
        for kind in ("images", "labels"):
            (root / kind).mkdir(exist_ok=True)
            shutil.copy(root / "data" / kind / f"{case}.nii.gz", root / kind / f"{case}.nii.gz")
    evaluate_folders(root / "run" / "predict" / "unet", root / "labels", root / "scores", assignments=SETTINGS)
    return root


def page(root, images=None, folders=("scores",)):
    output = root / "report"
    return report_folders([root / name for name in folders], output, images=images).read_text(encoding="utf-8")


def cards(text):
    return re.findall(r'<figure class="case.*?</figure>', text, re.DOTALL)


def records(root, name="scores"):
    return {name: json.loads((root / name / "stage.json").read_text())}


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_images_are_matched_by_case_name_and_the_first_channel_is_shown(tmp_path):
    touch(
        tmp_path,
        "P1.nii.gz",
        "p2_0000.nii.gz",
        "p2_0001.nii.gz",
        "p3/ct.nii.gz",
        "p3/liver.nii.gz",
        "p4/1.dcm",
        "p9.png",
        "x.txt",
    )
    found = find_images(tmp_path, ["p1", "p2", "p3", "p4", "p5"])
    assert {c: str(p.relative_to(tmp_path)) for c, p in found.items()} == {
        "p1": "P1.nii.gz", "p2": "p2_0000.nii.gz", "p3": "p3/ct.nii.gz", "p4": "p4",
    }  # fmt: skip


def test_a_case_whose_own_name_ends_like_a_channel_is_itself(tmp_path):
    touch(tmp_path, "scan_0001.png", "scan_0002.png")
    assert {c: p.name for c, p in find_images(tmp_path, ["scan_0001", "scan_0002"]).items()} == {
        "scan_0001": "scan_0001.png",
        "scan_0002": "scan_0002.png",
    }


@pytest.mark.parametrize(
    ("names", "words"), [(["p1.png", "p1.nii.gz"], "are both case `p1`"), (["other.png"], r"like a case \(such as `p1`\)")]
)
def test_a_folder_that_does_not_tell_is_named(tmp_path, names, words):
    touch(tmp_path, *names)
    with pytest.raises(ConfigError, match=words):
        find_images(tmp_path, ["p1"])


def test_images_named_later_are_in_the_gallery(made):
    text = page(made, made / "images")
    shown = cards(text)
    assert len(shown) >= 3 and all('class="planes"' in card for card in shown)
    assert all("the image, and the image with" in card for card in shown) and "No images are known" not in text
    assert f"--images {made / 'images'}" in text  # the command that repeats it
    failed = next(card for card in shown if f"<h4>{FAILED}</h4>" in card)
    assert "no mask in" in failed


def test_without_images_outlines_stand_alone_and_a_sentence_says_how_to_have_them(made):
    text = page(made)
    assert "outlines stand on black" in text and "--images DIR" in text
    assert cards(text) and all('class="planes"' in card and "the image, and" not in card for card in cards(text))


def test_cases_without_an_image_are_named(made, tmp_path):
    for case in TEST[1:]:
        shutil.copy(made / "images" / f"{case}.nii.gz", tmp_path)
    assert f"there is no image of {TEST[0]}; " in page(made, tmp_path)


def test_an_image_on_other_voxels_is_left_out_with_a_sentence(made, tmp_path):
    for case in TEST:
        scan = nib.load(made / "images" / f"{case}.nii.gz")
        affine = scan.affine.copy()
        affine[0, 3] += 7
        nib.save(nib.Nifti1Image(np.asarray(scan.dataobj), affine), tmp_path / f"{case}.nii.gz")
    shown = cards(page(made, tmp_path))
    assert shown and all("does not lie on the reference’s voxels" in card and 'class="planes"' in card for card in shown)


def test_flipped_masks_are_drawn_as_they_are_measured(made, tmp_path):
    (tmp_path / "masks").mkdir()
    for case in (c for c in TEST if c != FAILED):
        mask = nib.load(made / "run" / "predict" / "unet" / f"{case}.nii.gz")
        nib.save(nib.as_closest_canonical(mask), tmp_path / "masks" / f"{case}.nii.gz")
    evaluate_folders(tmp_path / "masks", made / "labels", tmp_path / "scores", assignments=SETTINGS)
    shown = cards(page(tmp_path, made / "images"))
    assert len(shown) >= 3 and not any("voxels" in card for card in shown)


def test_evaluations_against_other_references_are_not_drawn_together(made, tmp_path):
    shutil.copytree(made / "labels", tmp_path / "labels")
    evaluate_folders(made / "run" / "predict" / "fcn8s", tmp_path / "labels", tmp_path / "other", assignments=SETTINGS)
    found = find_pictures(records(made) | records(tmp_path, "other"))
    assert found is not None and list(found.masks) == ["scores"] and "Of other there are no pictures" in found.note


def test_masks_that_are_gone_are_said_to_be(made, tmp_path):
    record = records(made)
    record["scores"]["inputs"]["predictions"] = str(tmp_path / "gone")
    found = find_pictures(record)
    assert found is not None and not found.cases and "not where they were evaluated" in found.note


def test_the_images_of_a_run_are_its_configurations_to_name(made):
    data = collect_folders([made / "run" / "evaluate" / "unet"])
    record = {name: r for (_, name), r in data.records.items()}
    assert find_pictures(record) is None
    with pytest.raises(ConfigError, match="known to its configuration"):
        find_pictures(record, made / "images")
