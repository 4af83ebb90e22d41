"""Regions from the loss to the figures: learnt by a tiny network, decided, restored and measured."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from medseg.core.grid import Grid
from medseg.core.labels import LabelScheme, Region, Structure
from medseg.evaluation.case import Ruler, evaluate_case
from medseg.inference.restore import restore
from medseg.losses.registry import LOSSES, build_loss
from medseg.metrics.measures import measures_for
from medseg.metrics.pair import Frame

BRATS = LabelScheme(
    structures=[Structure(name=n, id=i) for i, n in enumerate(("necrosis", "oedema", "non_enhancing", "enhancing"), start=1)],
    regions=[
        Region(name="whole_tumour", structures=["necrosis", "oedema", "non_enhancing", "enhancing"]),
        Region(name="core", structures=["necrosis", "non_enhancing", "enhancing"]),
        Region(name="enhancing", structures=["enhancing"]),
    ],
)
FRAME = Frame(physical=True, planar=False)


def tumour() -> np.ndarray:
    """Shells about a necrotic middle: enhancing, non-enhancing, oedema."""
    x, y, z = np.indices((16, 16, 12)) - np.array([8, 7, 6]).reshape(3, 1, 1, 1)
    radius = np.sqrt(x**2 + y**2 + z**2)
    return np.select([radius < 2, radius < 3, radius < 4.2, radius < 5.5], [1, 4, 3, 2], 0).astype(np.uint8)


def dice_of(reference: np.ndarray, predicted: np.ndarray, grid: Grid) -> dict[str, float]:
    measures = tuple(measures_for(["dice"], FRAME, dict.fromkeys(BRATS.measured, 1.0)))
    rows = evaluate_case(reference, predicted, grid, Ruler(BRATS, measures, FRAME, (1.0,) * 3))
    return {row["structure"]: row["dice"] for row in rows}


def test_perfect_scores_have_a_dice_of_one_in_every_region() -> None:
    classes = tumour()
    grid = Grid(classes.shape, np.diag([-1.0, 1.0, 2.0, 1.0]))  # flipped against the prepared picture
    assert BRATS.membership is not None
    scores = np.where(BRATS.membership[:, classes[::-1]], 4.0, -4.0).astype(np.float32)
    restored = restore(scores, grid.canonical(), grid, BRATS).array
    assert dice_of(classes, restored, grid) == {"whole_tumour": 1, "core": 1, "enhancing": 1}
    assert set(np.unique(restored)) == {0, 1, 2, 4}  # non-enhancing and necrosis are one outside the enhancing part


@pytest.mark.parametrize("name", LOSSES)
def test_a_network_learns_regions(name: str) -> None:
    classes = tumour()
    image = torch.from_numpy(classes.astype(np.float32))[None, None]
    image = torch.cat([image == k for k in range(5)], 1).float()  # a voxel's appearance says what it is
    target = torch.from_numpy(classes)[None].clone()
    target[:, :2] = 255
    torch.manual_seed(0)
    network = nn.Conv3d(5, BRATS.n_outputs, 1)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.3)
    loss, values = build_loss(name, {}, BRATS), []
    for _ in range(40):
        value = loss(network(image), target)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < 0.3 * values[0]
    grid = Grid(classes.shape, np.eye(4))
    restored = restore(network(image)[0].detach().numpy(), grid, grid, BRATS).array
    assert min(dice_of(classes, restored, grid).values()) == 1
