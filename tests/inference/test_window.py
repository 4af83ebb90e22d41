"""Sliding windows: blending, padding, mirroring, and agreement with MONAI's inferer."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from monai.inferers import SlidingWindowInferer
from torch import nn

from medseg.core.errors import StageError
from medseg.inference.runtime import TorchNetwork
from medseg.inference.window import (
    Corner,
    Empty,
    count_windows,
    importance,
    predict_logits,
    predict_slabs,
    swapped,
    window_starts,
)


class Same(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class Constant(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([torch.full_like(x[:, 0], 2.5), torch.full_like(x[:, 0], -1.0)], dim=1)


class Position(nn.Module):
    """Answers the index along X inside the window: the same for any content, not symmetric."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.arange(x.shape[2], dtype=torch.float32).reshape(1, 1, -1, 1, 1).expand(x.shape[0], 1, *x.shape[2:])


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.batches: list[tuple[int, ...]] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.batches.append(tuple(x.shape))
        return x


def picture(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def smooth_network(channels: int, classes: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv3d(channels, 4, 3, padding=1), nn.Softplus(), nn.Conv3d(4, classes, 3, padding=1)).eval()


@pytest.mark.parametrize(
    ("size", "patch", "overlap", "starts"),
    [
        (8, 8, 0.5, [0]),
        (5, 8, 0.5, [0]),
        (16, 8, 0.5, [0, 4, 8]),
        (17, 8, 0.5, [0, 3, 6, 9]),
        (4, 1, 0.5, [0, 1, 2, 3]),
        (16, 8, 0, [0, 8]),
    ],
)
def test_starts_are_evenly_spread(size: int, patch: int, overlap: float, starts: list[int]) -> None:
    assert window_starts(size, patch, overlap) == starts


@pytest.mark.parametrize("overlap", [0.0, 0.3, 0.5, 0.75, 0.95])
@pytest.mark.parametrize("size", [9, 20, 31, 100])
def test_windows_cover_all_and_overlap_enough(size: int, overlap: float) -> None:
    starts = window_starts(size, 9, overlap)
    assert starts[0] == 0
    assert starts[-1] == size - 9
    assert all(1 <= b - a <= max(1, np.ceil(9 * (1 - overlap))) for a, b in itertools.pairwise(starts))


def test_importance_is_a_centred_gaussian_with_a_floor() -> None:
    weight = importance((9, 16, 1))
    assert weight.shape == (9, 16, 1)
    torch.testing.assert_close(weight, weight.flip(0, 1, 2))
    assert weight[4].max() == weight.max()
    assert weight.min() == pytest.approx(1e-3)
    # One standard deviation, an eighth of 16 voxels, from the centre at 7.5.
    middle = importance((1, 17, 1)).flatten()
    assert middle[8].item() == 1
    assert importance((1, 16, 1)).flatten()[10].item() == pytest.approx(np.exp(-0.5 * (2.5 / 2) ** 2))


@pytest.mark.parametrize("shape", [(23, 17, 11), (8, 8, 8), (3, 20, 8), (5, 4, 3)])
@pytest.mark.parametrize("overlap", [0.25, 0.5])
def test_a_network_that_returns_its_input_gives_the_input(shape: tuple[int, ...], overlap: float) -> None:
    image = picture(2, *shape)
    logits = predict_logits(Same(), image, (8, 8, 8), overlap=overlap, batch=3)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, image, atol=1e-5)


def test_a_constant_network_gives_its_constant() -> None:
    logits = predict_logits(Constant(), picture(1, 30, 22, 9), (8, 8, 8))
    assert logits.shape == (2, 30, 22, 9)
    np.testing.assert_allclose(logits[0], 2.5, atol=1e-5)
    np.testing.assert_allclose(logits[1], -1.0, atol=1e-5)


def test_one_window_is_the_network_itself() -> None:
    network, image = smooth_network(2, 3), picture(2, 12, 10, 8)
    with torch.inference_mode():
        direct = network(torch.from_numpy(image)[None])[0].numpy()
    np.testing.assert_array_equal(predict_logits(network, image, (12, 10, 8)), direct)


@pytest.mark.parametrize("shape", [(24, 16, 8), (16, 16, 16), (5, 16, 24)])
def test_agrees_with_monai_where_the_windows_are_the_same(shape: tuple[int, ...]) -> None:
    network, image = smooth_network(1, 3), picture(1, *shape)
    inferer = SlidingWindowInferer((8, 8, 8), sw_batch_size=2, overlap=0.5, mode="gaussian", sigma_scale=0.125)
    with torch.inference_mode():
        expected = inferer(torch.from_numpy(image)[None], network)[0].numpy()
    np.testing.assert_allclose(predict_logits(network, image, (8, 8, 8), batch=2), expected, atol=2e-5)


def test_the_centre_of_a_window_counts_most() -> None:
    logits = predict_logits(Position(), np.zeros((1, 12, 8, 8), np.float32), (8, 8, 8))[0, :, 4, 4]
    # Voxel 5 is index 5 of the first window (nearer its centre, 3.5) and index 1 of the second.
    assert 4.5 < logits[5] < 5
    assert 2 < logits[6] < 2.5 + 2  # both equally far from a centre: 6 and 2
    assert logits[0] == 0
    assert logits[11] == pytest.approx(7)


def test_a_flat_patch_takes_the_volume_slice_by_slice() -> None:
    network, image = Counting(), picture(1, 8, 8, 5)
    np.testing.assert_allclose(predict_logits(network, image, (8, 8, 1), batch=2), image, atol=1e-6)
    assert network.batches == [(2, 1, 8, 8, 1), (2, 1, 8, 8, 1), (1, 1, 8, 8, 1)]


def test_the_batch_changes_nothing() -> None:
    network, image = smooth_network(1, 2), picture(1, 20, 20, 12)
    one, many = (predict_logits(network, image, (8, 8, 8), batch=n) for n in (1, 5))
    np.testing.assert_allclose(one, many, atol=1e-6)
    np.testing.assert_array_equal(one, predict_logits(network, image, (8, 8, 8), batch=1))


def test_mirroring_averages_over_the_allowed_axes_only() -> None:
    image = np.zeros((1, 8, 8, 8), np.float32)
    np.testing.assert_allclose(predict_logits(Position(), image, (8, 8, 8), mirror_axes=(0,)), 3.5)
    along_y = predict_logits(Position(), image, (8, 8, 8), mirror_axes=(1, 2))
    np.testing.assert_allclose(along_y[0, :, 0, 0], np.arange(8), atol=1e-6)
    network, image = smooth_network(1, 2), picture(1, 8, 6, 8)
    mirrored = predict_logits(network, image, (8, 8, 8), mirror_axes=(0, 2))
    turned = predict_logits(network, image[:, ::-1, :, ::-1], (8, 8, 8), mirror_axes=(0, 2))[:, ::-1, :, ::-1]
    np.testing.assert_allclose(mirrored, turned, atol=1e-5)


class Sides(nn.Module):
    """Knows left from right: output 1 is what lies left in the window, 2 what lies right, 0 and 3 are the content's."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left = (torch.arange(x.shape[2]) < x.shape[2] // 2).float().reshape(1, 1, -1, 1, 1).expand_as(x)
        return torch.cat([x, left * 5, (1 - left) * 5, -x], dim=1)


@pytest.mark.parametrize("axes", [(0,), (0, 1, 2), (1, 2)])
@pytest.mark.parametrize("shape", [(8, 8, 8), (13, 8, 9)])
def test_pairs_change_places_where_left_and_right_do(axes: tuple[int, ...], shape: tuple[int, ...]) -> None:
    image = picture(1, *shape)
    plain = predict_logits(Sides(), image, (8, 8, 8))
    mirrored = predict_logits(Sides(), image, (8, 8, 8), mirror_axes=axes, swaps=[(1, 2)])
    np.testing.assert_allclose(mirrored, plain, atol=1e-5)
    if 0 in axes:  # without the pair, left and right are averaged away
        without = predict_logits(Sides(), image, (8, 8, 8), mirror_axes=axes)
        np.testing.assert_allclose(without[1], without[2], atol=1e-5)


def test_several_pairs() -> None:
    assert swapped(6, [(1, 4), (2, 3)]) == [0, 4, 3, 2, 1, 5]
    assert swapped(3, []) == [0, 1, 2]


def test_takes_read_only_arrays_and_tensors() -> None:
    image = picture(1, 10, 8, 8)
    image.setflags(write=False)
    np.testing.assert_array_equal(
        predict_logits(Same(), image, (8, 8, 8)), predict_logits(Same(), torch.from_numpy(image.copy()), (8, 8, 8))
    )


def test_bfloat16_is_near_and_only_when_asked() -> None:
    network, image = smooth_network(1, 2), picture(1, 12, 8, 8)
    exact = predict_logits(network, image, (8, 8, 8))
    rough = predict_logits(TorchNetwork(network, torch.device("cpu"), torch.bfloat16), image, (8, 8, 8))
    assert rough.dtype == np.float32
    assert 0 < np.abs(exact - rough).max() < 0.05


class Cramped(nn.Module):
    """A network on a device whose memory holds two windows at once, or as many as `most`."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most, self.sizes = most, []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(x))
        if len(x) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return torch.cat([x, -x], dim=1)


def test_fewer_windows_go_through_at_once_where_memory_does_not_hold_them() -> None:
    image, cramped = picture(1, 20, 8, 8), Cramped(2)
    expected = predict_logits(Cramped(9), image, (8, 8, 8), batch=5)
    np.testing.assert_array_equal(predict_logits(cramped, image, (8, 8, 8), batch=5), expected)
    assert cramped.sizes[:2] == [4, 2] or cramped.sizes[:2] == [5, 2]
    with pytest.raises(StageError, match="does not hold one window"):
        predict_logits(Cramped(0), image, (8, 8, 8), batch=2)


PATCH = (8, 6, 4)
SHAPES = [
    *[tuple(np.roll([40, 9, 7], turn)) for turn in range(3)],  # each axis the longest
    (8, 6, 4),  # one window
    (5, 6, 30),  # below, at and above the patch
    (20, 3, 4),
    (3, 2, 2),
    (9, 7, 5),
]


class Uneven(nn.Module):
    """Answers that depend on the content and on the place in the window, along all axes."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        places = [torch.linspace(0, 1 + a, n).reshape([-1 if d == a else 1 for d in range(3)]) for a, n in enumerate(x.shape[2:])]
        ramp = (places[0] * 1.5 - places[1] + places[2] ** 2)[None, None]
        return torch.cat([x[:, :1] * ramp, ramp.expand_as(x[:, :1]), x[:, -1:].sin() + ramp], dim=1)


def in_one_piece(
    network: nn.Module,
    image: np.ndarray,
    patch: Sequence[int],
    overlap: float,
    axes: Sequence[int] = (),
    left_out: Sequence[Corner] = (),
) -> tuple[np.ndarray, np.ndarray]:
    """The plain way, with sums as large as the picture: the answer (K, X, Y, Z), and the weights (X, Y, Z) that went into it.

    Windows whose corner in the padded picture is `left_out` are not asked.
    """
    size = image.shape[1:]
    room = [max(n, p) for n, p in zip(size, patch, strict=True)]
    before = [(r - n) // 2 for r, n in zip(room, size, strict=True)]
    padded = np.zeros((image.shape[0], *room), np.float64)
    inner = (slice(None), *(slice(b, b + n) for b, n in zip(before, size, strict=True)))
    padded[inner] = image
    weight = importance(tuple(patch)).double()  # type: ignore[arg-type]
    total, weights = None, torch.zeros(room, dtype=torch.float64)
    flips = [[a + 2 for a in some] for n in range(len(axes) + 1) for some in itertools.combinations(axes, n)]
    for corner in itertools.product(*(window_starts(r, p, overlap) for r, p in zip(room, patch, strict=True))):
        if corner in left_out:
            continue
        box = tuple(slice(c, c + p) for c, p in zip(corner, patch, strict=True))
        window = torch.from_numpy(padded[(slice(None), *box)]).float()[None]
        answer = torch.stack([network(window.flip(f)).flip(f) for f in flips]).double().mean(0)[0]
        if total is None:
            total = torch.zeros(len(answer), *room, dtype=torch.float64)
        total[(slice(None), *box)] += answer * weight
        weights[box] += weight
    assert total is not None
    return (total / weights).numpy()[inner], weights.numpy()[inner[1:]]


@pytest.mark.parametrize("axes", [(), (0, 2)])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.75])
@pytest.mark.parametrize("shape", SHAPES)
def test_slabs_joined_are_the_answer_in_one_piece(shape: tuple[int, ...], overlap: float, axes: tuple[int, ...]) -> None:
    image, network = picture(2, *shape), Uneven()
    expected, _ = in_one_piece(network, image, PATCH, overlap, axes)
    joined, rows = np.full_like(expected, np.nan), 0
    longest = min(range(3), key=lambda a: PATCH[a] / max(shape[a], PATCH[a]))
    for slab in predict_slabs(network, image, PATCH, overlap, batch=3, mirror_axes=axes):
        assert (slab.axis, slab.start) == (longest, rows)
        count = slab.logits.shape[slab.axis + 1]
        np.moveaxis(joined, slab.axis + 1, 1)[:, rows : rows + count] = np.moveaxis(slab.logits.numpy(), slab.axis + 1, 1)
        rows += count
    assert rows == shape[longest]
    np.testing.assert_allclose(joined, expected, atol=2e-5)
    np.testing.assert_array_equal(joined, predict_logits(network, image, PATCH, overlap, batch=3, mirror_axes=axes))


@pytest.mark.parametrize("axis", range(3))
def test_what_is_held_does_not_grow_with_the_length(axis: int) -> None:
    held: dict[int, set[int]] = {}
    for length in (50, 400):
        shape = [9, 9, 9]
        shape[axis] = length
        slabs = predict_slabs(Uneven(), np.zeros((1, *shape), np.float32), (8, 8, 8), 0.5)
        held[length] = {slab.logits.untyped_storage().nbytes() for slab in slabs}
    assert held[50] == held[400] == {3 * 8 * 9 * 9 * 4}  # outputs, rows of the patch, the cross-section, bytes of a float32


def test_the_sums_of_a_slab_are_let_go_of_before_the_next() -> None:
    """A slab is a view of the band: whoever keeps it without a copy sees it change, as its docstring says."""
    slabs = predict_slabs(Same(), picture(1, 40, 8, 8), (8, 8, 8), 0.5)
    first = next(slabs).logits
    place = first.untyped_storage().data_ptr()
    assert {slab.logits.untyped_storage().data_ptr() for slab in slabs} == {place}


def air(dark: np.ndarray, logits: Sequence[float] = (9.0, -7.0, -8.0)) -> Empty:
    """Boxes that hold dark voxels only."""
    return Empty(lambda first, last: bool(dark[tuple(map(slice, first, last))].all()), logits)


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("shape", SHAPES)
def test_windows_that_are_left_out_say_nothing_there_and_change_nothing_elsewhere(shape: tuple[int, ...], batch: int) -> None:
    image, network = picture(1, *shape), Uneven()
    dark = np.zeros(shape, bool)
    middle = np.argmax(shape)
    np.moveaxis(dark, middle, 0)[shape[middle] // 3 :] = True  # whole planes of windows, up to the end
    np.moveaxis(dark, middle, 0)[-1, 0, 0] = False
    room = [max(n, p) for n, p in zip(shape, PATCH, strict=True)]
    before = [(r - n) // 2 for r, n in zip(room, shape, strict=True)]
    left_out = []
    for corner in itertools.product(*(window_starts(r, p, 0.5) for r, p in zip(room, PATCH, strict=True))):
        first = [max(0, c - b) for c, b in zip(corner, before, strict=True)]
        last = [c + p - b for c, p, b in zip(corner, PATCH, before, strict=True)]
        if dark[tuple(map(slice, first, last))].all():
            left_out.append(corner)
    expected, weights = in_one_piece(network, image, PATCH, 0.5, left_out=left_out)
    whole, all_weights = in_one_piece(network, image, PATCH, 0.5)
    empty, given = air(dark), np.empty_like(expected, dtype=np.float32)
    for slab in predict_slabs(network, image, PATCH, 0.5, batch, empty=empty):
        rows = slice(slab.start, slab.start + slab.logits.shape[slab.axis + 1])
        np.moveaxis(given, slab.axis + 1, 1)[:, rows] = np.moveaxis(slab.logits.numpy(), slab.axis + 1, 1)
    assert empty.skipped == len(left_out) <= count_windows(shape, PATCH, 0.5)
    unseen, touched = weights == 0, weights < all_weights - 1e-9
    assert (given[:, unseen] == np.array(empty.logits, np.float32)[:, None]).all()
    assert dark[touched].all()
    np.testing.assert_allclose(given[:, ~unseen], expected[:, ~unseen], atol=2e-5)
    np.testing.assert_allclose(given[:, ~touched], whole[:, ~touched], atol=2e-5)
    if max(shape) >= 30:
        assert left_out and unseen.any()


def test_where_all_is_left_out_the_network_is_not_asked() -> None:
    for shape in SHAPES:
        network, empty = Counting(), air(np.ones(shape, bool), (1.0, -1.0))
        parts = [s.logits.clone() for s in predict_slabs(network, picture(1, *shape), PATCH, empty=empty)]
        assert sum(part[0].numel() for part in parts) == math.prod(shape)
        assert all((part[0] == 1).all() and (part[1] == -1).all() for part in parts)
        assert not network.batches and empty.skipped == count_windows(shape, PATCH, 0.5)


def test_comparing_shows_each_mirror_image_and_their_mean() -> None:
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def look(one: torch.Tensor, mean: torch.Tensor) -> None:
        seen.append((one.clone(), mean.clone()))

    list(predict_slabs(Uneven(), picture(1, 20, 8, 6), (8, 8, 6), 0.5, 1, (0, 1), compare=look))
    assert len(seen) == 4 * count_windows((20, 8, 6), (8, 8, 6), 0.5)
    for place in range(0, len(seen), 4):
        ones = torch.stack([one for one, _ in seen[place : place + 4]])
        torch.testing.assert_close(ones.mean(0), seen[place][1])
