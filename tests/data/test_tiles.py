from pathlib import Path

import numpy as np
import pytest
import tifffile

from medseg.core.manifest import read_manifest
from medseg.data.tiles import NUCLEI_SAMPLE, Band, tile_layout, write_tiles

ROOT = Path(__file__).resolve().parents[2]


def test_tiles_cover_their_bands_once_and_leave_the_gaps() -> None:
    count = np.zeros((512, 512), int)
    owner = np.full((512, 512), "", object)
    for tile in NUCLEI_SAMPLE:
        tile.of(count)[...] += 1
        tile.of(owner)[...] = tile.split
    assert count.max() == 1
    used = [owner[row, 0] for row in range(512)]
    assert (owner == np.array(used, object)[:, None]).all()  # a band is as wide as the picture
    for split, rows in {"train": range(256), "val": range(288, 352), "test": range(384, 512)}.items():
        assert [row for row in range(512) if used[row] == split] == list(rows)


def test_there_are_enough_test_tiles_for_an_interval() -> None:
    splits = [tile.split for tile in NUCLEI_SAMPLE]
    assert {split: splits.count(split) for split in ("train", "val", "test")} == {"train": 16, "val": 4, "test": 8}


def test_the_committed_manifest_names_these_tiles() -> None:
    manifest = read_manifest(ROOT / "data_manifests/nuclei-sample.csv", Path("root"))
    rows = [(case.case_id, case.split, case.images[0], case.label) for case in manifest.cases]
    assert rows == [
        (t.name, t.split, Path("root/images") / f"{t.name}.tif", Path("root/labels") / f"{t.name}.tif") for t in NUCLEI_SAMPLE
    ]


@pytest.mark.parametrize(
    "bands",
    [
        (Band("train", 0, 64), Band("test", 90, 64)),  # too near
        (Band("train", 0, 64), Band("test", 96, 96)),  # beyond the end
        (Band("train", 0, 60),),  # no whole number of tiles
    ],
)
def test_an_impossible_layout_is_refused(bands: tuple[Band, ...]) -> None:
    with pytest.raises(ValueError, match="Band"):
        tile_layout((160, 64), (32, 32), bands, gap=32, prefix="t")


def test_written_tiles_are_the_picture_s_own_pixels(tmp_path: Path) -> None:
    picture = np.arange(64 * 32, dtype=np.uint16).reshape(64, 32)
    tiles = tile_layout((64, 32), (16, 16), (Band("train", 0, 16), Band("test", 32, 32)), gap=16, prefix="t")
    files = write_tiles({"images": picture, "labels": picture}, tiles, tmp_path)
    assert len(files) == 2 * len(tiles) == 12
    written = tifffile.imread(tmp_path / "images" / "t_y048_x016.tif")
    assert written.dtype == np.uint16
    assert np.array_equal(written, picture[48:64, 16:32])


def test_no_real_nucleus_is_in_two_splits(real_data: Path) -> None:
    mask = tifffile.imread(real_data / "stardist_small" / "mask2d.tif")
    nuclei: dict[str, set[int]] = {"train": set(), "val": set(), "test": set()}
    for tile in NUCLEI_SAMPLE:
        nuclei[tile.split] |= set(np.unique(tile.of(mask)).tolist()) - {0}
    assert not nuclei["train"] & nuclei["val"]
    assert not nuclei["val"] & nuclei["test"]
    assert not nuclei["train"] & nuclei["test"]
    assert min(len(found) for found in nuclei.values()) > 10
