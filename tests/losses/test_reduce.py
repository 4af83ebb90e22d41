"""Sums over real processes (gloo, two of them), with the gradient that comes back through them."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from medseg.core.labels import LabelScheme, Region, Structure
from medseg.losses.reduce import total
from medseg.losses.registry import build_loss

STRUCTURES = [Structure(name="a", id=1), Structure(name="b", id=2)]
CLASSES = LabelScheme(structures=STRUCTURES)
REGIONS = LabelScheme(
    structures=STRUCTURES, regions=[Region(name="both", structures=["a", "b"]), Region(name="b", structures=["b"])]
)
CASES = [
    ("dice_ce", {}, CLASSES),
    ("dice_focal", {"batch": False}, CLASSES),
    ("tversky", {"gamma": 1.5}, REGIONS),
    ("dice_boundary_ce", {"batch": False}, REGIONS),
]


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    classes = torch.randint(0, 3, (4, 5, 4, 3), generator=generator, dtype=torch.uint8)
    classes[0, 1:] = 255  # the halves do not weigh the same
    classes[1] = 0
    return torch.randn(4, 3, 5, 4, 3, generator=generator), classes, torch.rand(4, 5, 4, 3, generator=generator)


def losses_and_gradients(part: slice) -> list[tuple[torch.Tensor, torch.Tensor]]:
    results = []
    logits, classes, weight = batch()
    for name, options, labels in CASES:
        scale = torch.ones((), requires_grad=True)  # stands for the parameters of a network
        loss = build_loss(name, options, labels)(scale * logits[part, : labels.n_outputs], classes[part], weight[part])
        loss.backward()
        assert scale.grad is not None
        results.append((loss.detach(), scale.grad))
    return results


def process(rank: int, folder: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The share of one of two processes, saved for the other to see."""
    torch.set_num_threads(1)
    patience = timedelta(seconds=120)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2, timeout=patience)
    try:
        with torch.inference_mode():  # validation: not even as many calls in both processes
            assert all(total(torch.tensor(rank)) == rank for _ in range(1 + rank))
        results = losses_and_gradients(slice(0, 1) if rank == 0 else slice(1, 4))
    finally:
        dist.destroy_process_group()
    torch.save(results, f"{folder}/{rank}.pt")
    return results


def test_alone_it_is_the_value_itself() -> None:
    value = torch.ones(2)
    assert total(value) is value


@pytest.mark.skipif(not dist.is_available(), reason="this PyTorch has no distributed package")
def test_two_processes_find_the_loss_and_the_gradient_of_the_whole_batch(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    second = mp.get_context("spawn").Process(target=process, args=(1, str(tmp_path)))
    second.start()
    first = process(0, str(tmp_path))
    second.join()
    torch.set_num_threads(threads)
    for whole, one, other in zip(losses_and_gradients(slice(None)), first, torch.load(tmp_path / "1.pt"), strict=True):
        torch.testing.assert_close(one[0], whole[0])
        torch.testing.assert_close(other[0], whole[0])
        torch.testing.assert_close((one[1] + other[1]) / 2, whole[1])  # DistributedDataParallel's mean
