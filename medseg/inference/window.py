"""Sliding-window inference: a volume of any size through a network that sees patches."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from medseg.core.errors import StageError

SIGMA = 1 / 8  # of the patch; centre voxels have the most context (Isensee et al. 2021)
LEAST_WEIGHT = 1e-3  # of a patch's corner, so that a voxel seen by corners only is not divided by almost nothing

LEFT_RIGHT = 0  # the axis along which left becomes right

Shape = tuple[int, int, int]


def window_starts(size: int, patch: int, overlap: float) -> list[int]:
    """First voxels of windows of `patch` voxels, evenly spread from the first to the last place where one fits.

    Neighbours share at least `overlap` of the patch (rounded down to whole voxels).
    """
    if size <= patch:
        return [0]
    step = max(1, math.floor(patch * (1 - overlap)))
    count = math.ceil((size - patch) / step) + 1
    return [round(i * (size - patch) / (count - 1)) for i in range(count)]


@lru_cache(maxsize=4)
def importance(patch_voxels: Shape) -> torch.Tensor:
    """(X, Y, Z) float32 weights of a patch's voxels: a Gaussian around its centre, at least `LEAST_WEIGHT`."""
    weight = torch.ones(1, 1, 1)
    for axis, size in enumerate(patch_voxels):
        distance = torch.arange(size, dtype=torch.float32) - (size - 1) / 2
        shape = [1, 1, 1]
        shape[axis] = size
        weight = weight * torch.exp(-0.5 * (distance / (SIGMA * size)) ** 2).reshape(shape)
    return weight.clamp_min(LEAST_WEIGHT)


def predict_logits(
    network: nn.Module,
    image: npt.NDArray[np.float32] | torch.Tensor,
    patch_voxels: Sequence[int],
    overlap: float = 0.5,
    batch: int = 1,
    mirror_axes: Sequence[int] = (),
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    swaps: Sequence[tuple[int, int]] = (),
) -> npt.NDArray[np.float32]:
    """The network's answer for a whole volume, windows blended by Gaussian weights.

    Args:
        network: (B, C, X, Y, Z) -> (B, K, X, Y, Z), already on `device` and in evaluation mode.
        image: (C, X, Y, Z) float32; where it is smaller than the patch it is padded with 0 on both sides.
        patch_voxels: window size along X, Y, Z; 1 along an axis takes the volume slice by slice.
        overlap: share of a window that neighbours have in common.
        batch: windows that go through the network together; it changes speed only. Halved where a GPU's memory holds fewer.
        mirror_axes: axes of X, Y, Z; the answer is averaged over all mirror images along them.
        dtype: of the network's arithmetic; sums are float32 always.
        swaps: outputs that change places where X is mirrored: the left and the right of a pair.
    Returns: (K, X, Y, Z) float32.
    Raises: StageError where a GPU's memory does not hold one window.
    """
    device = torch.device(device)
    patch: Shape = (int(patch_voxels[0]), int(patch_voxels[1]), int(patch_voxels[2]))
    picture = _plain(image)
    size = tuple(picture.shape[1:])
    before = [max(0, p - n) // 2 for p, n in zip(patch, size, strict=True)]
    padded = _padded(picture, patch, before)
    flips = [axes for count in range(len(mirror_axes) + 1) for axes in itertools.combinations(mirror_axes, count)]
    corners = list(itertools.product(*(window_starts(n, p, overlap) for n, p in zip(padded.shape[1:], patch, strict=True))))
    with torch.inference_mode(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        windows = _answers(network, padded, corners, patch, batch, flips, device, swaps)
        if len(corners) == 1:
            logits = next(windows)[1]
        else:
            logits = _blended(windows, patch, tuple(padded.shape[1:]), device)
        logits = logits[(slice(None), *(slice(b, b + n) for b, n in zip(before, size, strict=True)))]
        return np.ascontiguousarray(logits.float().cpu().numpy())


def _plain(image: npt.NDArray[np.float32] | torch.Tensor) -> torch.Tensor:
    """The image as an ordinary float32 tensor: no MetaTensor, no read-only memory map."""
    if isinstance(image, torch.Tensor):
        return image.as_subclass(torch.Tensor).float()
    return torch.from_numpy(np.require(image, np.float32, ["C", "W"]))


def _padded(picture: torch.Tensor, patch: Shape, before: list[int]) -> torch.Tensor:
    missing = [max(0, p - n) for p, n in zip(patch, picture.shape[1:], strict=True)]
    if not any(missing):
        return picture
    sides = [(b, m - b) for b, m in zip(before, missing, strict=True)]
    return functional.pad(picture, [n for pair in reversed(sides) for n in pair])


def _answers(
    network: nn.Module,
    picture: torch.Tensor,
    corners: list[tuple[int, ...]],
    patch: Shape,
    batch: int,
    flips: list[tuple[int, ...]],
    device: torch.device,
    swaps: Sequence[tuple[int, int]],
) -> Iterator[tuple[tuple[int, ...], torch.Tensor]]:
    """Each window's corner and its logits (K, *patch) float32, averaged over the mirror images, in order."""
    done = 0
    while done < len(corners):
        some = corners[done : done + batch]
        try:
            stack = torch.stack([_cut(picture, corner, patch) for corner in some]).to(device, non_blocking=True)
            answers = _mean_over_mirror_images(network, stack, flips, swaps)
        except torch.OutOfMemoryError:
            answers = None  # what failed lets go of its memory only outside of this block
        if answers is None:
            batch = _fewer_windows(batch)
            continue
        yield from zip(some, answers, strict=True)
        done += len(some)


def _mean_over_mirror_images(
    network: nn.Module, stack: torch.Tensor, flips: list[tuple[int, ...]], swaps: Sequence[tuple[int, int]]
) -> torch.Tensor:
    total: torch.Tensor | None = None
    for axes in flips:
        dimensions = [a + 2 for a in axes]
        answer = network(stack.flip(dimensions) if axes else stack).float()
        answer = answer.flip(dimensions) if axes else answer
        if LEFT_RIGHT in axes and swaps:
            answer = answer[:, swapped(answer.shape[1], swaps)]
        total = answer if total is None else total + answer
    assert total is not None
    return total / len(flips) if len(flips) > 1 else total


def _fewer_windows(batch: int) -> int:
    """Half as many at once. Raises: StageError where there was one only."""
    if batch == 1:
        raise StageError(
            "the GPU's memory does not hold one window of this network; end other programs that use it, or state the device cpu."
        )
    torch.cuda.empty_cache()
    return batch // 2


def swapped(count: int, swaps: Sequence[tuple[int, int]]) -> list[int]:
    """The numbers 0 to count - 1 with the pairs in each other's places."""
    order = list(range(count))
    for a, b in swaps:
        order[a], order[b] = b, a
    return order


def _blended(
    windows: Iterator[tuple[tuple[int, ...], torch.Tensor]], patch: Shape, size: tuple[int, ...], device: torch.device
) -> torch.Tensor:
    """(K, *size) float32: the weighted mean of the windows over every voxel."""
    weight = importance(patch)
    total: torch.Tensor | None = None
    weights = torch.zeros(size)
    for corner, logits in windows:
        if total is None:
            place = _room(logits.shape[0] * math.prod(size) * 4, device)
            total, weights, weight = torch.zeros(logits.shape[0], *size, device=place), weights.to(place), weight.to(place)
        _cut(total, corner, patch).addcmul_(logits.to(place), weight)
        _cut(weights[None], corner, patch).add_(weight)
    assert total is not None
    return total.div_(weights)


def _cut(picture: torch.Tensor, corner: tuple[int, ...], patch: Shape) -> torch.Tensor:
    x, y, z = corner
    return picture[:, x : x + patch[0], y : y + patch[1], z : z + patch[2]]


def _room(size_bytes: int, device: torch.device) -> torch.device:
    """Where the sums go: the GPU where they take at most half of what is free there, else main memory."""
    if device.type == "cuda" and size_bytes < torch.cuda.mem_get_info(device)[0] / 2:
        return device
    return torch.device("cpu")
