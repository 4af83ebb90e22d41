"""Samples are a function of (seed, step, place in the batch), wherever they are made."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.transforms.compose import Compose
from monai.transforms.transform import MapTransform

from medseg.core.errors import StageError
from medseg.data.store import PreparedCase, PreparedStore
from medseg.training import dataset as dataset_module
from medseg.training.augment import training_transforms
from medseg.training.config import AugmentationConfig
from medseg.training.dataset import PatchDataset, batches, patch_centre

PATCH = (12, 10, 6)


def augmentation(probability: float, **settings) -> AugmentationConfig:
    names = [n for n in AugmentationConfig.model_fields if hasattr(getattr(AugmentationConfig(), n), "probability")]
    return AugmentationConfig(**{name: {"probability": probability} for name in names} | settings)


@pytest.fixture
def dataset(store):
    return make(store)


def make(store, seed=0, foreground_fraction=0.5, config=None, cases=("c0", "c1", "c2"), batch_size=2, patch=PATCH):
    transforms = training_transforms(config or augmentation(1), patch, (1, 1, 1), [0, 1, 2])
    return PatchDataset(store, list(cases), transforms, patch, batch_size, foreground_fraction, seed)


def same(a, b):
    return torch.equal(a["image"], b["image"]) and torch.equal(a["classes"], b["classes"]) and a["case_id"] == b["case_id"]


def test_a_batch_has_the_plans_shapes(dataset):
    batch = next(batches(dataset, 0, 1, workers=0, pin=False))
    assert batch["image"].shape == (2, 1, 12, 10, 6) and batch["image"].dtype == torch.float32
    assert batch["classes"].shape == (2, 12, 10, 6) and batch["classes"].dtype == torch.uint8
    assert set(batch["case_id"]) <= {"c0", "c1", "c2"} and set(batch) == {"image", "classes", "case_id"}


def test_the_seed_the_step_and_the_place_decide(store, dataset):
    places = [(0, 0), (0, 1), (1, 0), (1, 1)]
    samples = {place: dataset.sample(*place) for place in places}
    again = make(store)
    assert all(same(again.sample(*place), samples[place]) for place in reversed(places))
    assert not same(samples[0, 0], samples[0, 1]) and not same(samples[0, 0], samples[1, 0])
    assert not same(make(store, seed=1).sample(0, 0), samples[0, 0])


def test_starting_at_a_later_step_gives_the_same_batches(dataset):
    whole = list(batches(dataset, 0, 5, workers=0, pin=False))
    rest = list(batches(dataset, 3, 5, workers=0, pin=False))
    assert len(whole) == 5 and len(rest) == 2
    assert all(same(a, b) for a, b in zip(whole[3:], rest, strict=True))


def test_memory_and_mapped_files_give_the_same_samples(store, dataset, monkeypatch):
    monkeypatch.setattr(dataset_module, "MOST_IN_MEMORY", 3 * 20 * 18 * 10 * 5 - 1)
    mapped = make(store)
    assert dataset.in_memory and not mapped.in_memory
    assert all(same(dataset.sample(step, 1), mapped.sample(step, 1)) for step in range(4))
    assert isinstance(next(iter(mapped._open.values())).image, np.memmap)
    assert not isinstance(next(iter(dataset._open.values())).image, np.memmap)


def test_workers_and_threads_change_nothing(dataset):
    here = list(batches(dataset, 0, 5, workers=0, pin=False))
    torch.set_num_threads(2)  # as in a training; a worker has one
    with_threads = list(batches(dataset, 0, 5, workers=0, pin=False))
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
    worked = list(batches(dataset, 0, 5, workers=1, pin=False))
    assert all(same(a, b) and same(a, c) for a, b, c in zip(here, with_threads, worked, strict=True))


def test_processes_share_each_step_of_the_same_global_batch(store):
    dataset = make(store, batch_size=5)
    whole = list(batches(dataset, 2, 4, workers=0, pin=False))
    parts = [list(batches(dataset, 2, 4, workers=0, pin=False, rank=rank, world=3)) for rank in range(3)]
    for step, batch in enumerate(whole):
        assert [len(part[step]["case_id"]) for part in parts] == [1, 2, 2]
        together = {key: torch.cat([part[step][key] for part in parts]) for key in ("image", "classes")}
        assert same(batch, together | {"case_id": [c for part in parts for c in part[step]["case_id"]]})
    with pytest.raises(StageError, match="a batch of 5 cannot be shared by 6 processes"):
        next(batches(dataset, 0, 1, workers=0, pin=False, rank=0, world=6))


def test_the_cases_of_a_step_are_told_without_making_it(store, dataset):
    for step, batch in enumerate(batches(dataset, 0, 6, workers=0, pin=False)):
        assert make(store).cases_of(step) == batch["case_id"]


def test_a_dataset_travels_without_its_open_cases(dataset):
    dataset.sample(0, 0)
    assert len(pickle.dumps(dataset)) < 50_000


def test_a_transforms_weights_are_a_part_of_the_batch(store):
    class Weigh(MapTransform):
        def __call__(self, data):
            return {**data, "weight": np.asarray(data["classes"]) + np.float32(0.5)}

    dataset = make(store)
    dataset.transforms = Compose([*dataset.transforms.transforms, Weigh("classes")])
    batch = next(batches(dataset, 0, 1, workers=0, pin=False))
    assert torch.equal(batch["weight"], batch["classes"] + 0.5) and batch["weight"].shape == (2, *PATCH)


def test_the_last_share_of_a_batch_is_centred_on_a_structure(store):
    dataset = make(store, config=augmentation(0, flip=0))
    middles = np.array([[int(dataset.sample(step, place)["classes"][6, 5, 3]) for place in (0, 1)] for step in range(60)])
    # A middle that was moved to keep the patch in the case may fall beside the structure.
    assert (middles[:, 1] > 0).mean() > 0.7 > 0.5 > (middles[:, 0] > 0).mean()
    assert set(middles[:, 1]) >= {1, 2}
    assert make(store, foreground_fraction=0).n_foreground == 0 and make(store, foreground_fraction=0.01).n_foreground == 1


def write_case(store: PreparedStore, case_id: str, classes: np.ndarray) -> None:
    store.write(case_id, case_id, np.zeros((1, *classes.shape), np.float32), classes)


@pytest.fixture
def rare(tmp_path):
    """Nine cases of the common structure 1; only r0 has the rare 2, one voxel of it; r9 has neither."""
    store = PreparedStore(tmp_path)
    for number in range(10):
        classes = np.zeros((30, 20, 10), np.uint8)
        if number < 9:
            classes[2:8, 2:8, 2:8] = 1
        if number == 0:
            classes[20, 10, 5] = 2
        write_case(store, f"r{number}", classes)
    return store, [f"r{number}" for number in range(10)]


def test_the_structure_is_drawn_before_the_case(rare):
    store, cases = rare
    dataset = make(store, cases=cases, config=augmentation(0, flip=0), batch_size=2)
    steps = range(600)
    aimed = Counter(dataset.cases_of(step)[1] for step in steps)
    assert aimed["r0"] / len(steps) == pytest.approx(1 / 2 + 1 / 18, abs=0.06) and aimed["r9"] == 0
    anywhere = Counter(dataset.cases_of(step)[0] for step in steps)
    assert set(anywhere) == set(cases) and max(anywhere.values()) < 1.5 * len(steps) / 10
    seen = [int((dataset.sample(step, 1)["classes"][6, 5, 3] == 2).item()) for step in range(100)]
    assert np.mean(seen) == pytest.approx(0.5, abs=0.15)


def test_a_store_of_an_earlier_version_is_read(rare):
    store, cases = rare
    expected = make(store, cases=cases).having
    assert expected == [(1, cases[:9]), (2, ["r0"])]
    for case_id in cases:
        path = store.folder / case_id / "case.json"
        path.write_text('{"key": "k", "shape": [1, 30, 20, 10]}')
    assert make(store, cases=cases).having == expected


def test_patches_of_sparse_annotation_hold_annotated_voxels(tmp_path):
    store = PreparedStore(tmp_path)
    for number, annotated in enumerate([(3, 1), (40, 0)]):
        classes = np.full((50, 40, 12), 255, np.uint8)
        classes[annotated[0], 5:15, 6] = annotated[1]
        write_case(store, f"s{number}", classes)
    write_case(store, "none", np.full((50, 40, 12), 255, np.uint8))
    dataset = make(store, cases=["s0", "s1", "none"], config=augmentation(0, flip=0))
    samples = [dataset.sample(step, place) for step in range(20) for place in (0, 1)]
    assert {sample["case_id"] for sample in samples} == {"s0", "s1"}
    assert all((sample["classes"] != 255).any() for sample in samples)
    # Where there is nothing else, a training that was asked for still gets samples.
    assert (make(store, cases=["none"]).sample(0, 0)["classes"] == 255).any()


def test_the_centre_keeps_the_patch_in_the_case_and_centres_small_cases():
    random = np.random.default_rng(0)
    case = PreparedCase(
        "a", np.zeros((1, 30, 5, 8), np.float32), np.zeros((30, 5, 8), np.uint8), {1: np.array([[29, 0, 7]], np.int32)}
    )
    centre = patch_centre(case, (10, 8, 8), random, structure=1)
    np.testing.assert_array_equal(centre - np.array([5, 4, 4]), [20, -1, 0])
    starts = np.array([patch_centre(case, (10, 8, 8), random, structure=None) for _ in range(300)]) - [5, 4, 4]
    assert starts[:, 0].min() == 0 and starts[:, 0].max() == 20 and set(starts[:, 1]) == {-1} and set(starts[:, 2]) == {0}


def test_a_missing_case_is_a_sentence(store):
    with pytest.raises(StageError, match="gone: the prepared case is missing or damaged"):
        make(store, cases=["c0", "gone"])


@pytest.fixture
def own_store(tmp_path):
    """A store that a test may damage."""
    store = PreparedStore(tmp_path)
    classes = np.zeros((20, 18, 10), np.uint8)
    classes[5:15, 5:15, 3:7] = 1
    write_case(store, "p1", classes)
    return store


@pytest.mark.parametrize("damage", ["delete", "cut"])
def test_a_prepared_file_that_goes_under_way_is_a_sentence(own_store, monkeypatch, damage):
    monkeypatch.setattr(dataset_module, "MOST_IN_MEMORY", 0)
    dataset = make(own_store, cases=["p1"])
    dataset.sample(0, 0)
    path = own_store.folder / "p1" / "image.npy"
    if damage == "delete":
        path.unlink()
    else:
        os.truncate(path, 200)  # reading the mapped rest would end this process
    with pytest.raises(StageError, match=r"p1: the prepared case is missing or damaged \(.*\); run `medseg prepare` again"):
        dataset.sample(1, 0)


class Break(MapTransform):
    """A transform with a fault, or one in which the process dies; at module level so that a worker finds it."""

    def __init__(self, how: str) -> None:
        super().__init__("image")
        self.how, self.left = how, 2

    def __call__(self, data):
        self.left -= 1
        if self.left < 0 and self.how == "fault":
            raise ValueError("no such voxel")
        if self.left < 0:
            os.kill(os.getpid(), getattr(signal, self.how))
        return dict(data)


def broken(store, how: str) -> PatchDataset:
    dataset = make(store, cases=["c0", "c1"], batch_size=1)
    dataset.transforms = Compose([*dataset.transforms.transforms, Break(how)])
    return dataset


@pytest.mark.parametrize("workers", [0, 1])
def test_a_fault_in_a_transform_names_case_step_and_cause(store, workers):
    dataset = broken(store, "fault")
    stream = batches(dataset, 5, 9, workers=workers, pin=False)
    assert len([next(stream), next(stream)]) == 2
    with pytest.raises(StageError) as error:
        next(stream)
    case_id = dataset.cases_of(7)[0]
    assert str(error.value).startswith(f"case {case_id}: no training sample could be made from it at step 8 (ValueError: no such")
    assert "test_patch_dataset.py line" in str(error.value)


@pytest.mark.parametrize(("how", "advice"), [("SIGKILL", "most likely memory ran out"), ("SIGBUS", "most likely shared memory")])
def test_a_killed_worker_names_its_cases_and_its_cause(store, how, advice):
    dataset = broken(store, how)
    stream = batches(dataset, 5, 50, workers=1, pin=False)
    with pytest.raises(StageError) as error:
        list(stream)
    number = int(getattr(signal, how))
    text = f"was killed (signal {number}) while it made the samples of cases {dataset.cases_of(7)[0]} (step 8); {advice}"
    assert text in str(error.value) and str(error.value).endswith("run the same command again to go on.")


def children(pid: int) -> set[int]:
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found.add(int(path.parent.name))
    return found


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")

MAIN = """
import sys, time
import torch
from medseg.training.workers import in_workers

class Samples:  # no more than workers ask of a data set, and quick to import
    def batch(self, step, places):
        return {"image": torch.full((2, 8), step)}

if __name__ == "__main__":
    stream = in_workers(Samples(), range(10**6), range(2), workers=1)
    next(stream)
    print("ready", flush=True)
    if sys.argv[1] == "leave":
        raise SystemExit(3)  # with the stream still held
    for batch in stream:
        time.sleep(0.01)
"""


@needs_proc
@pytest.mark.parametrize("end", ["leave", "kill", "interrupt"])
def test_workers_end_with_the_training_process(tmp_path, end):
    script = tmp_path / "main.py"
    script.write_text(MAIN)
    root = Path(__file__).resolve().parents[2]
    process = subprocess.Popen(
        [sys.executable, str(script), end],
        env=os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    workers = children(process.pid)
    if end == "kill":
        process.kill()
    elif end == "interrupt":
        os.killpg(process.pid, signal.SIGINT)  # Ctrl-C reaches the whole group
    _, errors = process.communicate(timeout=20)
    assert process.returncode == {"leave": 3, "kill": -signal.SIGKILL, "interrupt": -signal.SIGINT}[end]
    assert errors.count("Traceback") == (end == "interrupt") and "leaked" not in errors  # the training's own, not the workers'
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]
