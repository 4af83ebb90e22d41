from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from phantoms import ball
from tiny_models import tiny_plan

from medseg.core.labels import LabelScheme, Structure
from medseg.data.store import PreparedStore
from medseg.training.config import TrainingConfig
from medseg.training.job import Job

SCHEME = LabelScheme(structures=[Structure(name="large", id=1), Structure(name="small", id=2)])


def prepared_case(seed: int, shape: tuple[int, int, int] = (20, 18, 10)) -> tuple[np.ndarray, np.ndarray]:
    """(1, X, Y, Z) float32 noise with a bright and a brighter ball, and their classes."""
    rng = np.random.default_rng(seed)
    centre = np.array(shape) / 2 + rng.uniform(-1, 1, 3)
    classes = np.zeros(shape, np.uint8)
    classes[ball(shape, tuple(centre - (4, 0, 0)), 4)] = 1
    classes[ball(shape, tuple(centre + (5, 0, 0)), 3)] = 2
    image = rng.normal(0, 0.3, shape) + 1.5 * (classes == 1) + 3 * (classes == 2)
    return image[None].astype(np.float32), classes


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> PreparedStore:
    """Five prepared cases, c0 to c4."""
    result = PreparedStore(tmp_path_factory.mktemp("cases"))
    for number in range(5):
        result.write(f"c{number}", str(number), *prepared_case(number))
    return result


@pytest.fixture
def make_job(store: PreparedStore, tmp_path: Path):
    """Jobs on the five cases: `make_job("a", epochs=2, ...)` trains in the folder a."""

    def make(folder="run", architecture="unet", options=None, seed=0, batch_size=2, **settings) -> Job:
        defaults = {"steps_per_epoch": 3, "device": "cpu"} | ({} if "budget_minutes" in settings else {"epochs": 2})
        return Job(
            name=architecture,
            architecture=architecture,
            options={"features": [4, 8]} if options is None else options,
            settings=TrainingConfig(**(defaults | settings)),
            plan=tiny_plan(patch_voxels=(16, 16, 8), batch_size=batch_size),
            labels=SCHEME,
            store=store,
            train_ids=["c0", "c1", "c2"],
            val_ids=["c3", "c4"],
            folder=tmp_path / folder,
            seed=seed,
        )

    return make
