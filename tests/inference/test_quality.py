"""Flags and their sentences, and qc.csv."""

from __future__ import annotations

import csv
import io
import math
import re
from pathlib import Path

import numpy as np
import pytest
from phantoms import ball
from tiny_models import SCHEME, tiny_bundle

from medseg.core.grid import Grid
from medseg.core.labels import LabelScheme, Region, Structure
from medseg.core.resample import resample
from medseg.core.volume import LabelMap, Volume
from medseg.data.normalise import CaseNormalisation, normalise
from medseg.inference.features import Features, coarse_picture
from medseg.inference.quality import QC_COLUMNS, Flag, describe, judge, qc_csv, qc_row, typical_of
from medseg.inference.typical import Limit, Typical, learn
from medseg.io.formats import read_labels, read_volume

SHAPE = (32, 28, 24)
GRID = Grid(SHAPE, np.diag([2.0, 2.0, 2.0, 1.0]))


def phantom(seed: int) -> tuple[Volume, np.ndarray]:
    """A smooth picture, brighter to the top, with two bright organs: normalised as a plan would."""
    rng = np.random.default_rng(seed)
    classes = np.zeros(SHAPE, np.uint8)
    classes[ball(SHAPE, tuple(rng.normal((10, 14, 8), 0.5)), rng.uniform(5, 6))] = 1
    classes[ball(SHAPE, tuple(rng.normal((24, 14, 15), 0.5)), rng.uniform(3, 4))] = 2
    image = np.indices(SHAPE)[2] / 24 + 1.5 * (classes == 1) + 3 * (classes == 2) + rng.normal(0, 0.15, SHAPE)
    return Volume(((image - image.mean()) / image.std()).astype(np.float32)[None], GRID), classes


def threshold(scan: Volume) -> np.ndarray:
    """What a network that looks at brightness alone would say."""
    return ((scan.array[0] > 1.2).astype(np.uint8) + (scan.array[0] > 3)).astype(np.uint8)


def described(scan: Volume, classes: np.ndarray, typical: Typical | None = None) -> Features:
    mean = typical.mean_picture if typical else None
    return describe(scan.array, scan.grid, scan.grid, LabelMap(classes, scan.grid), SCHEME, mean_picture=mean)


@pytest.fixture(scope="module")
def typical() -> Typical:
    cases = [phantom(seed) for seed in range(40)]
    known = [described(*case) for case in cases]
    return learn(known, known[:6], [coarse_picture(scan.array) for scan, _ in cases], SCHEME.names)


def kinds(scan: Volume, classes: np.ndarray, typical: Typical) -> set[str]:
    return {flag.kind for flag in judge(described(scan, classes, typical), typical, SCHEME)}


def test_ordinary_cases_have_no_flag(typical: Typical) -> None:
    flagged = [bool(kinds(*phantom(seed), typical)) for seed in range(100, 160)]
    assert sum(flagged) <= 2


def test_upside_down(typical: Typical) -> None:
    for seed in range(100, 110):
        scan, classes = phantom(seed)
        turned = Volume(scan.array[..., ::-1].copy(), scan.grid)
        assert {"upright", "resemblance", "position"} <= kinds(turned, classes[..., ::-1].copy(), typical)


def test_cropped(typical: Typical) -> None:
    for seed in range(100, 110):
        scan, classes = phantom(seed)
        half = Volume(scan.array[:, 10:].copy(), scan.grid.cropped((10, 0, 0), (22, 28, 24)))
        assert {"extent", "cut"} <= kinds(half, classes[10:].copy(), typical)


def test_noise_and_another_modality(typical: Typical) -> None:
    rng = np.random.default_rng(0)
    noise = Volume(rng.normal(size=(1, *SHAPE)).astype(np.float32), GRID)
    assert {"roughness", "resemblance", "pieces"} <= kinds(noise, threshold(noise), typical)
    scan, classes = phantom(100)
    assert {"intensity", "resemblance"} <= kinds(Volume(-scan.array, GRID), classes, typical)


def test_an_absent_structure(typical: Typical) -> None:
    scan, classes = phantom(100)
    flags = judge(described(scan, np.where(classes == 2, 0, classes).astype(np.uint8), typical), typical, SCHEME)
    assert flags == [Flag("absent", "no tumour was found; every training case has it")]


LIMITS = Typical(
    limits={
        "volume_ml:liver": Limit(least=900, greatest=2300, low=700, high=2900),
        "spacing_mm:z": Limit(least=1, greatest=1, low=0.8, high=1.25),
        "extent_mm:x": Limit(least=300, greatest=400, low=250, high=480),
        "extent_mm:z": Limit(least=300, greatest=400, low=250, high=480),
        "intensity_p99:2": Limit(least=1.5, greatest=2, low=1.2, high=2.4),
        "upright:z": Limit(least=0.5, greatest=0.9, low=0.3),
        "cut_share:liver": Limit(least=0, greatest=0, high=0.01),
        "position:liver:x": Limit(least=0.5, greatest=0.7, low=0.4, high=0.8),
        "pieces:liver": Limit(least=1, greatest=1, high=2),
        "entropy:liver": Limit(least=0.1, greatest=0.2, high=0.3),
        "mirror_dice": Limit(least=0.85, greatest=0.95, low=0.7),
    }
)
RANGES = {"cases": 9, "unit": "mm", "shape": [[10, 20, 30], [20, 20, 30]], "spacing": [[1, 1, 2], [1, 2, 2]], "foreground": []}


@pytest.mark.parametrize(
    ("features", "kind", "sentence"),
    [
        ({"volume_ml:liver": 310.0}, "size", "the liver has 310 ml; in the training cases it had 900 to 2300 ml"),
        ({"spacing_mm:z": 3.0}, "spacing", "the voxels are 3 mm long from bottom to top; in the training cases they were 1 mm"),
        ({"extent_mm:x": 120.0}, "extent", "the scan measures 120 mm from left to right; in the training cases it was 300 to"),
        ({"intensity_p99:2": 4.0}, "intensity", "99 % of the voxels lie below 4 (normalised) in channel 2; in the training"),
        ({"upright:z": -0.4}, "upright", "looks more like the training scans when it is turned over from bottom to top"),
        ({"cut_share:liver": 0.1}, "cut", "the liver is cut by the edge of the scan; in the training cases it was not"),
        (
            {"position:liver:x": 0.2},
            "position",
            "lies at 20 % of the way from left to right; in the training cases at 50 to 70 %",
        ),
        ({"pieces:liver": 7.0}, "pieces", "the liver is in 7 pieces; in the training cases in 1"),
        (
            {"entropy:liver": 0.5},
            "doubt",
            "doubts what is liver: mean entropy 0.5; in the validation cases it was 0.1 to",
        ),
        ({"mirror_dice": 0.4}, "mirroring", "the mirrored scan agree by Dice 0.4 only; in the validation cases masks and"),
    ],
)
def test_sentences(features: Features, kind: str, sentence: str) -> None:
    (flag,) = judge(features, LIMITS, SCHEME)
    assert flag.kind == kind
    assert sentence in flag.sentence
    assert not flag.sentence.endswith(".")


def test_of_one_thing_the_most_unusual_is_said() -> None:
    flags = judge({"extent_mm:x": 240.0, "extent_mm:z": 120.0, "volume_ml:liver": 310.0}, LIMITS, SCHEME)
    assert [flag.kind for flag in flags] == ["extent", "size"]
    assert "from bottom to top" in flags[0].sentence


def test_what_is_unknown_or_within_is_no_flag() -> None:
    features: dict[str, float | None] = {"volume_ml:liver": None, "extent_mm:x": math.nan, "entropy:liver": 0.25, "other": 5.0}
    assert judge(features, LIMITS, SCHEME) == []
    for still_as_good in (0.1, -0.05):
        assert judge({"upright:z": still_as_good}, LIMITS, SCHEME) == []


def test_a_region_with_colons_in_its_name() -> None:
    scheme = LabelScheme(structures=SCHEME.structures, regions=[Region(name="a: all", structures=["liver", "tumour"])])
    typical = Typical(limits={"position:a: all:y": Limit(least=0.4, greatest=0.5, low=0.3, high=0.6)}, always=["a: all"])
    position, absent = judge({"position:a: all:y": 0.9, "volume_px:a: all": 0.0}, typical, scheme)
    assert position.sentence.startswith("the a: all lies at 90 % of the way from back to front")
    assert absent.sentence.startswith("no a: all was found")


def test_a_model_that_has_its_fingerprint_only() -> None:
    about = tiny_bundle().description.model_copy(update={"fingerprint": RANGES})
    limits = typical_of(about).limits
    assert limits.keys() == {f"{what}_mm:{axis}" for what in ("spacing", "extent") for axis in "xyz"}
    ordinary = {"spacing_mm:x": 1.0, "spacing_mm:z": 2.4, "extent_mm:x": 24.0, "extent_mm:y": 17.0}
    assert judge(ordinary, typical_of(about), SCHEME) == []
    found = judge({"spacing_mm:z": 5.0, "extent_mm:x": 7.0}, typical_of(about), SCHEME)
    assert [flag.kind for flag in found] == ["spacing", "extent"]
    assert typical_of(tiny_bundle().description).limits == {}
    cut_out = tiny_bundle(crop_nonzero=True).description.model_copy(update={"fingerprint": RANGES})
    assert not any(name.startswith("extent") for name in typical_of(cut_out).limits)
    pixels = about.model_copy(update={"fingerprint": RANGES | {"unit": "px"}})
    assert typical_of(pixels).limits.keys() == {f"extent_px:{axis}" for axis in "xyz"}


def test_what_was_learnt_goes_before_the_fingerprint() -> None:
    about = tiny_bundle().description.model_copy(update={"fingerprint": RANGES, "typical": LIMITS})
    limits = typical_of(about).limits
    assert limits["extent_mm:x"] == LIMITS.limits["extent_mm:x"]
    assert "spacing_mm:x" in limits and "volume_ml:liver" in limits


def test_qc_csv(typical: Typical) -> None:
    scan, classes = phantom(100)
    features = described(scan, np.where(classes == 2, 0, classes).astype(np.uint8), typical)
    flags = [*judge(features, typical, SCHEME), Flag("cut", "the liver is cut, by the edge")]
    text = qc_csv([qc_row("p01", {}, None), qc_row("p02", features, flags), qc_row("p03", features, [])])
    rows = list(csv.DictReader(io.StringIO(text)))
    assert tuple(rows[0])[:3] == QC_COLUMNS
    assert [(row["case_id"], row["flags"]) for row in rows] == [("p01", ""), ("p02", "2"), ("p03", "0")]
    assert rows[1]["sentences"] == "no tumour was found; every training case has it; the liver is cut, by the edge"
    assert float(rows[2]["volume_ml:liver"]) == pytest.approx((classes == 1).sum() * 8 / 1000, rel=1e-4)
    assert rows[2]["position:tumour:x"] == rows[0]["volume_ml:liver"] == ""
    assert not re.search(r"nan|None", text)


def test_real_scans_and_their_references(real_data: Path) -> None:
    """Without any network: references stand for masks, so only what is spoilt about the scan or its place can tell."""
    labels = LabelScheme(structures=[Structure(name="anterior", id=1), Structure(name="posterior", id=2)])
    files = sorted((real_data / "hippocampus" / "images").glob("*.nii.gz"))[:100]
    rules = [CaseNormalisation()]

    def case(file: Path, turned: bool = False) -> tuple[Volume, LabelMap]:
        scan, mask = read_volume(file), read_labels(real_data / "hippocampus" / "labels" / file.name)
        array = scan.array[..., ::-1].copy() if turned else scan.array
        classes = labels.encode(mask.array, file.name)
        grid = scan.grid.canonical()
        array = resample(normalise(array, rules), scan.grid, grid, 0)
        return Volume(array, grid), LabelMap(classes[..., ::-1].copy() if turned else classes, scan.grid)

    def features(scan: Volume, mask: LabelMap, typical: Typical | None = None) -> Features:
        mean = typical.mean_picture if typical else None
        return describe(scan.array, scan.grid, mask.grid, mask, labels, mean_picture=mean)

    known = [case(file) for file in files[:60]]
    typical = learn([features(*c) for c in known], [], [coarse_picture(scan.array) for scan, _ in known], labels.names)
    flagged = {
        turned: [judge(features(*case(f, turned), typical), typical, labels) for f in files[60:]] for turned in (False, True)
    }
    assert sum(bool(flags) for flags in flagged[False]) <= 2
    assert all({"upright", "position"} <= {flag.kind for flag in flags} for flags in flagged[True])
