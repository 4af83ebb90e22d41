"""Samples are a function of (seed, step, place in the batch), wherever they are made."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from medseg.core.errors import StageError
from medseg.data.store import PreparedCase
from medseg.training.augment import training_transforms
from medseg.training.config import AugmentationConfig
from medseg.training.dataset import PatchDataset, batches, patch_centre

EVERYTHING = AugmentationConfig(
    **{name: {"probability": 1} for name in AugmentationConfig.model_fields if name not in ("flip", "noise")}
)


@pytest.fixture
def dataset(store):
    return make(store)


def make(store, seed=0, foreground_fraction=0.5, config=EVERYTHING):
    patch = (12, 10, 6)
    transforms = training_transforms(config, patch, (1, 1, 1), [0, 1, 2])
    return PatchDataset(store, ["c0", "c1", "c2"], transforms, patch, 2, foreground_fraction, seed)


def same(a, b):
    return torch.equal(a["image"], b["image"]) and torch.equal(a["classes"], b["classes"]) and a["case_id"] == b["case_id"]


def test_a_batch_has_the_plans_shapes(dataset):
    batch = next(batches(dataset, 0, 1, workers=0, pin=False))
    assert batch["image"].shape == (2, 1, 12, 10, 6) and batch["image"].dtype == torch.float32
    assert batch["classes"].shape == (2, 12, 10, 6) and batch["classes"].dtype == torch.uint8
    assert set(batch["case_id"]) <= {"c0", "c1", "c2"}


def test_the_seed_the_step_and_the_place_decide(store, dataset):
    samples = [dataset[i] for i in range(4)]
    again = make(store)
    assert all(same(again[i], samples[i]) for i in (3, 1, 0, 2))
    assert not same(samples[0], samples[1]) and not same(samples[0], samples[2])
    assert not same(make(store, seed=1)[0], samples[0])


def test_starting_at_a_later_step_gives_the_same_batches(dataset):
    whole = list(batches(dataset, 0, 5, workers=0, pin=False))
    rest = list(batches(dataset, 3, 5, workers=0, pin=False))
    assert len(whole) == 5 and len(rest) == 2
    assert all(same(a, b) for a, b in zip(whole[3:], rest, strict=True))


def test_workers_and_threads_change_nothing(dataset):
    here = list(batches(dataset, 0, 3, workers=0, pin=False))
    torch.set_num_threads(2)  # as in a training; a worker has one
    with_threads = list(batches(dataset, 0, 3, workers=0, pin=False))
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
    worked = list(batches(dataset, 0, 3, workers=1, pin=False))
    assert all(same(a, b) and same(a, c) for a, b, c in zip(here, with_threads, worked, strict=True))


def test_a_dataset_travels_without_its_open_files(dataset):
    dataset[0]
    assert len(pickle.dumps(dataset)) < 50_000


def test_the_last_share_of_a_batch_is_centred_on_a_structure(store):
    plain = AugmentationConfig(flip=0, **{n: {"probability": 0} for n in AugmentationConfig.model_fields if n not in ("flip",)})
    dataset = make(store, config=plain)
    middles = np.array([int(dataset[i]["classes"][6, 5, 3]) for i in range(120)])
    # A middle that was moved to keep the patch in the case may fall beside the structure.
    assert (middles[1::2] > 0).mean() > 0.7 > 0.5 > (middles[::2] > 0).mean()
    assert set(middles[1::2]) >= {1, 2}
    assert make(store, foreground_fraction=0).n_foreground == 0 and make(store, foreground_fraction=0.01).n_foreground == 1


def test_the_centre_keeps_the_patch_in_the_case_and_centres_small_cases():
    random = np.random.default_rng(0)
    case = PreparedCase(
        "a", np.zeros((1, 30, 5, 8), np.float32), np.zeros((30, 5, 8), np.uint8), {1: np.array([[29, 0, 7]], np.int32)}
    )
    centre = patch_centre(case, (10, 8, 8), random, foreground=True)
    np.testing.assert_array_equal(centre - np.array([5, 4, 4]), [20, -1, 0])
    starts = np.array([patch_centre(case, (10, 8, 8), random, foreground=False) for _ in range(300)]) - [5, 4, 4]
    assert starts[:, 0].min() == 0 and starts[:, 0].max() == 20 and set(starts[:, 1]) == {-1} and set(starts[:, 2]) == {0}


def test_a_missing_case_is_a_sentence(store):
    dataset = make(store)
    dataset.case_ids = ["gone"]
    with pytest.raises(StageError, match="gone: the prepared case is missing or damaged"):
        dataset[0]
