from pathlib import Path

import pytest

from medseg.core.errors import ManifestError
from medseg.core.manifest import read_manifest
from medseg.data.build_manifest import build_manifest


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def test_equal_names_are_a_case(tmp_path: Path) -> None:
    images = touch(tmp_path / "set" / "images", "p02.nii.gz", "p01.nii.gz", ".hidden.nii.gz", "notes.txt")
    labels = touch(tmp_path / "set" / "labels", "p01.nii.gz", "p02.nrrd")
    draft = build_manifest(images, labels)
    assert draft.root == tmp_path / "set"
    assert list(draft.table.columns) == ["case_id", "patient_id", "image", "label", "split"]
    assert draft.table.to_numpy().tolist() == [
        ["p01", "", "images/p01.nii.gz", "labels/p01.nii.gz", ""],
        ["p02", "", "images/p02.nii.gz", "labels/p02.nrrd", ""],
    ]
    assert draft.images_without_label == draft.labels_without_image == []


@pytest.mark.parametrize("ending", ["_seg", "_mask", "_label", "-label", "_Segmentation", "_gt"])
def test_a_label_may_say_that_it_is_one(tmp_path: Path, ending: str) -> None:
    images, labels = touch(tmp_path / "i", "p01.png"), touch(tmp_path / "l", f"p01{ending}.png")
    assert build_manifest(images, labels).table["case_id"].tolist() == ["p01"]


def test_scans_and_labels_may_share_a_folder_with_folders_in_it(tmp_path: Path) -> None:
    folder = touch(tmp_path, "a/p01.nii.gz", "a/p01_seg.nii.gz", "b/p02.nii.gz", "b/p02_seg.nii.gz", "b/p03.nii.gz")
    draft = build_manifest(folder, folder)
    assert draft.table["image"].tolist() == ["a/p01.nii.gz", "b/p02.nii.gz"]
    assert draft.table["label"].tolist() == ["a/p01_seg.nii.gz", "b/p02_seg.nii.gz"]
    assert draft.images_without_label == [folder / "b/p03.nii.gz"]


def test_numbered_channels_are_columns(tmp_path: Path) -> None:
    images = touch(tmp_path / "imagesTr", *(f"p{n}_000{c}.nii.gz" for n in (1, 2) for c in (0, 1)))
    labels = touch(tmp_path / "labelsTr", "p1.nii.gz", "p2.nii.gz")
    draft = build_manifest(images, labels)
    assert draft.table["image_0001"].tolist() == ["imagesTr/p1_0001.nii.gz", "imagesTr/p2_0001.nii.gz"]
    (tmp_path / "set.csv").write_text(draft.table.to_csv(index=False))
    manifest = read_manifest(tmp_path / "set.csv", draft.root)
    assert manifest.channels == ("0000", "0001")
    assert manifest.cases[0].images[1] == images / "p1_0001.nii.gz"


def test_a_single_numbered_channel_is_the_image(tmp_path: Path) -> None:
    images, labels = touch(tmp_path / "i", "p1_0000.nii.gz"), touch(tmp_path / "l", "p1.nii.gz")
    assert build_manifest(images, labels).table.iloc[0].tolist() == ["p1", "", "i/p1_0000.nii.gz", "l/p1.nii.gz", ""]


def test_a_number_that_is_part_of_the_name_is_no_channel(tmp_path: Path) -> None:
    images = touch(tmp_path / "i", "scan_0001.nii.gz", "scan_0002.nii.gz")
    labels = touch(tmp_path / "l", "scan_0001.nii.gz", "scan_0002.nii.gz")
    assert build_manifest(images, labels).table["case_id"].tolist() == ["scan_0001", "scan_0002"]


def test_files_without_partner_are_listed(tmp_path: Path) -> None:
    images, labels = touch(tmp_path / "i", "p1.nii", "p2.nii"), touch(tmp_path / "l", "p1.nii", "p3.nii")
    draft = build_manifest(images, labels)
    assert draft.images_without_label == [images / "p2.nii"]
    assert draft.labels_without_image == [labels / "p3.nii"]


@pytest.mark.parametrize(
    ("images", "labels", "said"),
    [
        (["p1.nii"], ["q1.nii"], "no scan in"),
        (["p1.nii"], ["readme.txt"], "holds no scan"),
        (["p1.nii", "p1.nrrd"], ["p1.nii"], "both the scan of case p1"),
        (["p1.nii"], ["p1.nii", "p1_seg.nii"], "both the label of case p1"),
        (["p1_0000.nii", "p1_0001.nii", "p2_0000.nii"], ["p1.nii", "p2.nii"], "case p2 has the channels _0000 and case p1"),
    ],
)
def test_what_cannot_be_matched_is_one_sentence(tmp_path: Path, images: list[str], labels: list[str], said: str) -> None:
    with pytest.raises(ManifestError) as caught:
        build_manifest(touch(tmp_path / "i", *images), touch(tmp_path / "l", *labels))
    assert said in str(caught.value)
    assert "; " in str(caught.value)


def test_a_missing_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="is not a folder"):
        build_manifest(tmp_path / "no", tmp_path)


def test_the_labels_folder_may_lie_in_the_scans_folder(tmp_path: Path) -> None:
    images = touch(tmp_path, "p01.nii", "p02.nii", "labels/p01.nii", "labels/p02.nii", ".trash/p02.nii")
    draft = build_manifest(images, tmp_path / "labels")
    assert draft.table[["image", "label"]].to_numpy().tolist() == [["p01.nii", "labels/p01.nii"], ["p02.nii", "labels/p02.nii"]]
    assert draft.images_without_label == []


def test_linked_folders_are_gone_through(tmp_path: Path) -> None:
    touch(tmp_path / "elsewhere", "p01.nii")
    images, labels = touch(tmp_path / "i", "p02.nii"), touch(tmp_path / "l", "p01.nii", "p02.nii")
    (images / "more").symlink_to(tmp_path / "elsewhere")
    assert build_manifest(images, labels).table["image"].tolist() == ["i/more/p01.nii", "i/p02.nii"]
