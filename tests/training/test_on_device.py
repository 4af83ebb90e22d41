"""Both roads give the same patches: all at once for each sample, or drawn first and applied to a batch."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from monai.transforms import Compose, MapTransform
from monai.transforms.transform import Randomizable

from medseg.training.augment import training_transforms
from medseg.training.config import AugmentationConfig
from medseg.training.elastic import RandElasticAffineCropd
from medseg.training.on_device import SAMPLING, SEED, deferred

CPU = torch.device("cpu")
NAMES = [name for name in AugmentationConfig.model_fields if name not in ("flip", "interpolation")]
EVERYTHING = {name: {"probability": 1} for name in NAMES}
OFTEN = {name: {"probability": 0.5} for name in NAMES}
PATCHES = {"3D": (12, 10, 8), "2D": (16, 14, 1), "larger than the case": (26, 10, 8)}


class Edges(MapTransform):
    """Stands for a loss's weight map: made of labels alone, on the CPU."""

    def __call__(self, data):
        assert type(data["classes"]) is torch.Tensor and data["classes"].shape[0] == 1
        return {**data, "weight": torch.from_numpy(1 + np.asarray(data["classes"], np.float32)) * 2}


def case():
    rng = np.random.default_rng(0)
    image = rng.normal(size=(2, 24, 20, 14)).astype(np.float32)
    return {"image": image, "classes": (image[:1] > 0.5).astype(np.uint8) + (image[:1] > 1)}


def seeded(transforms, seed):
    """As PatchDataset does: one stream for all."""
    state = np.random.RandomState(seed)
    for transform in transforms.transforms:
        if isinstance(transform, Randomizable):
            transform.set_random_state(state=state)
    return transforms


def sample(transforms, seed):
    centre = np.random.default_rng(seed).integers(4, 12, 3)
    result = seeded(transforms, seed)({**case(), "centre": centre})
    maps = {key: result[key][0] for key in ("classes", "weight") if key in result}
    return {key: value for key, value in result.items() if key != "centre"} | maps | {"case_id": f"c{seed}"}


def batch(transforms, seeds):
    """As PatchDataset does: stacked where it can be, else listed."""
    samples = [sample(transforms, seed) for seed in seeds]
    columns = {key: [s[key] for s in samples] for key in samples[0]}
    alike = {k: isinstance(v[0], torch.Tensor) and len({t.shape for t in v}) == 1 for k, v in columns.items()}
    return {key: torch.stack(values) if alike[key] else values for key, values in columns.items()}


@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize("probabilities", [EVERYTHING, OFTEN], ids=["everything", "often"])
@pytest.mark.parametrize("patch", PATCHES.values(), ids=PATCHES)
def test_both_roads_give_the_same_batches(patch, probabilities, weights):
    config = AugmentationConfig(**probabilities, interpolation="cubic")
    whole = training_transforms(config, patch, (1, 1, 1), [0, 1, 2], [(1, 2)])
    if weights:
        whole = Compose([*whole.transforms, Edges("classes")])
    reader, apply = deferred(whole)
    for first in range(0, 40, 4):
        seeds = range(first, first + 4)
        direct, read = batch(whole, seeds), batch(reader, seeds)
        ours = apply(read, CPU)
        assert set(ours) == set(direct) == {"image", "classes", "case_id"} | ({"weight"} if weights else set())
        assert ours["image"].shape == (4, 2, *patch) and ours["image"].dtype == torch.float32
        assert ours["classes"].shape == (4, *patch) and ours["classes"].dtype == torch.uint8
        assert all(torch.equal(ours[key], direct[key]) for key in ours if key != "case_id")
        assert ours["case_id"] == direct["case_id"]


def test_without_bending_boxes_are_stacked_and_still_come_out():
    config = AugmentationConfig(**{name: {"probability": 0} for name in NAMES})
    whole = training_transforms(config, (8, 8, 6), (1, 1, 1), [0])
    reader, apply = deferred(whole)
    read = batch(reader, range(6))
    assert isinstance(read["image"], torch.Tensor)
    assert torch.equal(apply(read, CPU)["image"], batch(whole, range(6))["image"])


def test_the_seeding_of_compose_agrees_too():
    whole = training_transforms(AugmentationConfig(**EVERYTHING), (12, 10, 8), (1, 1, 1), [0])
    reader, apply = deferred(whole)
    direct, read = (t.set_random_state(seed=9)({**case(), "centre": (12, 10, 7)}) for t in (whole, reader))
    ours = apply({key: [value] for key, value in read.items() if key != "centre"}, CPU)
    assert torch.equal(ours["image"][0], direct["image"]) and torch.equal(ours["classes"][0], direct["classes"])


def test_what_travels_is_small_and_whole():
    reader, apply = deferred(training_transforms(AugmentationConfig(**EVERYTHING), (12, 10, 8), (1, 1, 1), [0]))
    read = batch(reader, range(3))
    again = pickle.loads(pickle.dumps(read))
    assert torch.equal(apply(again, CPU)["image"], apply(read, CPU)["image"])
    without_pictures = {key: read[key] for key in (SAMPLING, SEED)}
    assert len(pickle.dumps(without_pictures)) < 3 * 8 * 9**3 * 3  # control values, never a field
    assert len(pickle.dumps(reader)) < 20_000


def test_nothing_asks_the_device_for_a_value():
    """On the meta device no value can be read back: what waits for a GPU raises here."""
    quiet = EVERYTHING | {"noise": {"probability": 0}}  # the meta device has no generator
    for patch in PATCHES.values():
        reader, apply = deferred(training_transforms(AugmentationConfig(**quiet), patch, (1, 1, 1), [0, 1, 2], [(1, 2)]))
        ours = apply(batch(reader, range(4)), torch.device("meta"))
        assert ours["image"].shape == (4, 2, *patch) and ours["classes"].shape == (4, *patch)
        assert ours["image"].device.type == ours["classes"].device.type == "meta"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_gpu_gives_the_patches_of_the_cpu_and_is_not_waited_for():
    quiet = OFTEN | {"noise": {"probability": 0}}  # a GPU draws other noise
    for patch in PATCHES.values():
        whole = training_transforms(AugmentationConfig(**quiet), patch, (1, 1, 1), [0, 1, 2], [(1, 2)])
        reader, apply = deferred(whole)
        read = batch(reader, range(20))
        apply(read, torch.device("cuda"))  # fills the caches of weights
        torch.cuda.set_sync_debug_mode("error")
        try:
            ours = apply(read, torch.device("cuda"))
        finally:
            torch.cuda.set_sync_debug_mode("default")
        direct = batch(whole, range(20))
        assert (ours["image"].cpu() - direct["image"]).abs().quantile(0.99) < 0.02
        assert (ours["classes"].cpu() == direct["classes"]).float().mean() > 0.999


def test_other_transforms_cannot_be_left_to_the_device():
    with pytest.raises(ValueError, match="OwnStream"):
        deferred(Compose([RandElasticAffineCropd(["image"], (8, 8, 8), "bilinear"), Edges("classes")]))
