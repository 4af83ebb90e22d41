"""What augmentation does, to be looked at: a sheet of patches, plain and changed, with the outlines of their structures."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from monai.transforms.compose import Compose
from monai.transforms.transform import Randomizable

from medseg.data.store import PreparedCase, PreparedStore
from medseg.drawing.contact_sheet import draw_contact_sheet
from medseg.planning.plan import Plan
from medseg.training.augment import CENTRE, CLASSES, IMAGE, training_transforms
from medseg.training.config import AugmentationConfig
from medseg.training.dataset import patch_centre

Array = npt.NDArray[Any]

MOST_CASES, CHANGED = 5, 5  # rows of the sheet, and augmented patches in each
MOST_DRAWS = 6  # for each augmented patch that is shown
VISIBLE = 0.02  # mean change, of the grey scale's width
PERCENTILES = (0.5, 99.5)


def draw_preview(
    path: Path, store: PreparedStore, case_ids: Sequence[str], plan: Plan, augmentation: AugmentationConfig, seed: int
) -> Path:
    """Draw a PNG with a row for each of a few training cases: a patch as it is, then as training may see it.

    All patches of a row have the same centre, a voxel of a structure where the case has one, and the grey scale of the plain
    one, so that changes of brightness and contrast are seen. Random changes leave many patches nearly as they were; such draws
    are left out. Of a 3D patch the middle slice is shown.

    Args:
        case_ids: of the training cases; a few of them, evenly spread, are drawn.
        augmentation: the run's own settings. seed: of the run; the same one gives the same picture.
    """
    preprocessing = plan.preprocessing
    spacing = preprocessing.spacing or (1.0, 1.0, 1.0)
    plain = training_transforms(_nothing(), plan.patch_voxels, spacing, [])
    changed = training_transforms(augmentation, plan.patch_voxels, spacing, plan.flips, plan.swaps)
    colour = plan.n_channels == 3 and getattr(preprocessing.normalisation[0], "joint", False)
    images, classes, titles = [], [], []
    for row, case_id in enumerate(_spread(case_ids)):
        case, random = store.open(case_id), np.random.default_rng([seed, row])
        centre = _centre(case, plan.patch_voxels, random)
        first = _plane(_sample(plain, case, centre, [seed, row]), plan, colour)
        window = _window(first[0])
        draws = (_plane(_sample(changed, case, centre, [seed, row, draw]), plan, colour) for draw in range(CHANGED * MOST_DRAWS))
        shown = list(islice((d for d in draws if _differ(d[0], first[0], window)), CHANGED))
        shown += [first] * (CHANGED - len(shown))  # settings that change next to nothing
        for title, (image, labels) in zip((case_id, *["augmented"] * CHANGED), (first, *shown), strict=True):
            images.append(np.clip((image - window[0]) / (window[1] - window[0]), 0, 1))
            classes.append(labels)
            titles.append(title)
    return draw_contact_sheet(images, classes, titles, path, columns=1 + CHANGED, stretched=False)


def _differ(image: Array, other: Array, window: tuple[float, float]) -> bool:
    return float(np.abs(image - other).mean()) > VISIBLE * (window[1] - window[0])


def _nothing() -> AugmentationConfig:
    """Settings that leave every patch as it is."""
    off = {
        name: {"probability": 0}
        for name, field in AugmentationConfig.model_fields.items()
        if name not in ("flip", "interpolation")
    }
    return AugmentationConfig.model_validate(off | {"flip": 0})


def _spread(case_ids: Sequence[str]) -> list[str]:
    places = np.linspace(0, len(case_ids) - 1, min(MOST_CASES, len(case_ids))).round().astype(int)
    return [case_ids[place] for place in places]


def _centre(case: PreparedCase, patch: tuple[int, int, int], random: np.random.Generator) -> Array:
    """A voxel of one of the case's structures, as training aims at them."""
    structure = int(random.choice(sorted(case.foreground))) if case.foreground else None
    return patch_centre(case, patch, random, structure)


def _sample(transforms: Compose, case: PreparedCase, centre: Array, seed: list[int]) -> dict[str, Any]:
    state = np.random.RandomState(np.random.PCG64(np.random.SeedSequence(seed)))
    for transform in transforms.transforms:
        if isinstance(transform, Randomizable):
            transform.set_random_state(state=state)
    return dict(transforms({IMAGE: case.image, CLASSES: case.classes[None], CENTRE: centre}))


def _plane(patch: dict[str, Any], plan: Plan, colour: bool) -> tuple[Array, Array]:
    """The patch's plane as (X, Y) or (X, Y, 3), and its classes: front, or top, upwards where axes are anatomical."""
    axis = plan.patch_voxels.index(1) if 1 in plan.patch_voxels else _across_slices(plan)
    middle = plan.patch_voxels[axis] // 2
    channels: Array = np.take(np.asarray(patch[IMAGE], np.float32), [middle], axis + 1).squeeze(axis + 1)
    classes: Array = np.take(np.asarray(patch[CLASSES])[0], [middle], axis).squeeze(axis)
    image = np.moveaxis(channels, 0, -1) if colour else channels[0]
    if plan.preprocessing.physical:
        return image[::-1, ::-1], classes[::-1, ::-1]
    return image, classes


def _across_slices(plan: Plan) -> int:
    """The axis with the longest voxels; the last where all are alike."""
    spacing = plan.preprocessing.spacing or (1.0, 1.0, 1.0)
    return max(range(3), key=lambda axis: (round(spacing[axis], 3), axis))


def _window(image: Array) -> tuple[float, float]:
    low, high = np.percentile(image, PERCENTILES)
    return float(low), float(max(high, low + 1e-6))
