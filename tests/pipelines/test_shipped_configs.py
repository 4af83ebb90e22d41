"""Every configuration and every manifest that is shipped."""

from pathlib import Path

import pytest

from medseg.core.manifest import Manifest, read_manifest
from pipelines.check import check, config_problems
from pipelines.config import RunConfig

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
FOLDERS = {"hippocampus": "hippocampus", "isbi2012": "isbi2012_em", "nuclei": "dsb2018_nuclei", "brats": "brats2015"}
SIZES = {
    "nuclei-sample": (16, 4, 8),
    "hippocampus": (144, 16, 40),
    "isbi2012": (16, 2, 6),
    "nuclei": (242, 34, 69),
    "brats": (2, 1, 1),
}


def manifest_of(name: str) -> Manifest:
    return read_manifest(ROOT / "data_manifests" / f"{name}.csv", Path("root"))


def test_all_are_there() -> None:
    names = {"quickstart", *FOLDERS, *(f"{name}_cpu" for name in FOLDERS)}
    assert {path.stem for path in CONFIGS} == names
    assert {path.stem for path in (ROOT / "data_manifests").glob("*.csv")} == set(SIZES)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_section_is_right(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    config = RunConfig.load(path)
    assert config_problems(config) == []
    assert config.name == path.stem
    assert config.model_names == ["unet", "fcn8s"]
    assert config.data.citation
    assert config.data.licence
    assert config.data.root == Path("data") / config.data.name
    assert len(config.manifest().of("train", "val", "test")) == sum(SIZES[config.data.name])
    assert (config.data.sampling_unit == "patient") == any(case.patient_id for case in config.manifest().cases)


@pytest.mark.parametrize("name", SIZES)
def test_the_splits_are_as_the_readme_says(name: str) -> None:
    manifest = manifest_of(name)
    counts = tuple(len(manifest.of(split)) for split in ("train", "val", "test"))  # type: ignore[arg-type]
    assert counts == SIZES[name]
    (row,) = (line for line in (ROOT / "data_manifests/README.md").read_text().splitlines() if line.startswith(f"| `{name}.csv`"))
    assert " / ".join(map(str, counts)) in row


@pytest.mark.parametrize("name", ["hippocampus", "nuclei"])
def test_random_splits_are_drawn_as_the_readme_says(name: str) -> None:
    import numpy as np

    cases = manifest_of(name).cases
    ids = sorted(case.case_id for case in cases)
    order = [ids[i] for i in np.random.default_rng(0).permutation(len(ids))]
    _, n_val, n_test = SIZES[name]
    expected = {case_id: "test" if k < n_test else "val" if k < n_test + n_val else "train" for k, case_id in enumerate(order)}
    assert {case.case_id: case.split for case in cases} == expected


def test_slices_of_one_stack_are_split_in_blocks() -> None:
    splits = [case.split for case in manifest_of("isbi2012").cases]
    assert splits == ["train"] * 16 + ["val"] * 2 + ["test"] * 6


@pytest.mark.parametrize("name", ["isbi2012", "brats"])
def test_the_real_data_pass_the_check(name: str, real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    settings = [f"data.root={real_data / FOLDERS[name]}", f"output={tmp_path}"]
    assert check(ROOT / "configs" / f"{name}_cpu.yaml", settings) == 0


@pytest.mark.parametrize("name", FOLDERS)
def test_the_manifests_name_real_files(name: str, real_data: Path) -> None:
    manifest = read_manifest(ROOT / "data_manifests" / f"{name}.csv", real_data / FOLDERS[name])
    for case in manifest.cases:
        assert all(path.is_file() for path in (*case.images, case.label) if path is not None), case.case_id
        assert case.label is not None
