"""Rules for what the network sees at once: two or three dimensions, the patch, and patches a step."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from medseg.planning.config import PlanConfig
from medseg.planning.machine import Granted
from medseg.planning.sides import AXIS_NAMES, STATED

Patch = tuple[int, int, int]
Memory = Callable[[Patch, int], float]  # GB that a step of the hungriest model takes with so many of these patches

FEWEST_SLICES = 8  # below it a 3D network cannot halve the axis once
PATCH_MULTIPLE = 8  # three halvings fit; networks pad further where they need more
SHRINK = 0.9
CPU_PATCH_VOXELS = {2: 256**2, 3: 64**3}  # larger ones leave a CPU too few steps
CPU_BATCH = {2: 8, 3: 2}
GPU_BATCH = {2: 12, 3: 2}  # for which the patch must fit (nnU-Net's reference batches)
FEWEST_PATCHES = 2
MOST_OF_THE_DATA = 0.05  # of all training voxels in one batch (Isensee et al. 2021)


def plan_patch(
    shape: Patch,
    spacing: tuple[float, float, float],
    granted: Granted,
    config: PlanConfig,
    memory: Memory,
    reasons: dict[str, str],
) -> Patch:
    """Voxels of a patch along each axis.

    Args:
        shape: of the median prepared case.
        spacing: voxel size; only its ratios matter.
        memory: of a step at the widest network that may be planned.
    """
    if config.patch_voxels:
        reasons["patch_voxels"] = STATED
        reasons["dimensions"] = _dimensions(config.patch_voxels) + " follows from the stated patch"
        return config.patch_voxels
    thin = int(np.argmin(shape)) if min(shape) < FEWEST_SLICES else None
    reasons["dimensions"] = _why_dimensions(shape, thin)
    patches = _shrinking(shape, spacing, thin)
    patch, why = _largest(patches, 2 if thin is not None else 3, granted, memory)
    shrunk = "is taken whole: then" if patch == patches[0][1] else "shrinks, its physically longest side first, until"
    reasons["patch_voxels"] = (
        f"the median prepared case, {_times(shape)} voxels, {shrunk} {why}; rounded up to multiples of {PATCH_MULTIPLE}"
    )
    return patch


def _why_dimensions(shape: Patch, thin: int | None) -> str:
    if thin is None:
        return f"3D: the median prepared case has at least {FEWEST_SLICES} voxels along each axis"
    if shape[thin] == 1:
        return "2D: the cases are pictures, one voxel thick"
    return (
        f"2D, one voxel thick along the {AXIS_NAMES[thin]} axis: the median prepared case has {shape[thin]} there, and a 3D "
        f"network needs {FEWEST_SLICES}"
    )


def plan_batch(
    patch: Patch, training_voxels: int, granted: Granted, config: PlanConfig, memory: Memory, reasons: dict[str, str]
) -> int:
    """Patches a step.

    Args:
        training_voxels: of all prepared training cases.
    """
    if config.batch_size:
        reasons["batch_size"] = STATED
        return config.batch_size
    fixed = memory(patch, 0)
    each = memory(patch, 1) - fixed
    fitting = max(FEWEST_PATCHES, int((granted.memory_gb - fixed) / each))
    if granted.device == "cpu":
        wanted = CPU_BATCH[_axes(patch)]
        reasons["batch_size"] = f"{wanted} patches a step on a CPU: many small steps learn faster than few large ones" + (
            f"; {fitting} fit into {granted.memory_gb:g} GB" if fitting < wanted else ""
        )
        return min(wanted, fitting)
    most = max(FEWEST_PATCHES, int(MOST_OF_THE_DATA * training_voxels / np.prod(patch)))
    reasons["batch_size"] = (
        f"{fitting} patches fit into {granted.memory_gb:g} GB, and {most} are {MOST_OF_THE_DATA:.0%} of all training voxels "
        f"(at least {FEWEST_PATCHES}); the smaller number"
    )
    return min(fitting, most)


def _largest(patches: list[tuple[float, Patch]], axes: int, granted: Granted, memory: Memory) -> tuple[Patch, str]:
    """The first of ever smaller patches that fits, and what it had to fit."""
    batch = GPU_BATCH[axes] if granted.device == "gpu" else FEWEST_PATCHES
    fit = f"{batch} patches fit into {granted.memory_gb:g} GB"
    if granted.device == "cpu":
        most = CPU_PATCH_VOXELS[axes]
        patches = [(voxels, patch) for voxels, patch in patches if voxels <= most] or patches[-1:]
        fit = f"it has at most {most} voxels, on a CPU, and {fit}"
    low, high = 0, len(patches) - 1
    middle = 0  # the largest fits more often than not
    while low < high:  # memory falls along the list
        if memory(patches[middle][1], batch) <= granted.memory_gb:
            high = middle
        else:
            low = middle + 1
        middle = (low + high) // 2
    return patches[low][1], fit


def _shrinking(shape: Patch, spacing: tuple[float, float, float], thin: int | None) -> list[tuple[float, Patch]]:
    """Ever smaller patches, the median case first, each with its voxels before rounding.

    The physically longest side gives way first, so that patches near a cube in millimetres.
    """
    size = np.array([1 if axis == thin else n for axis, n in enumerate(shape)], float)
    result = [(float(size.prod()), _rounded(size, thin))]
    while (large := size > PATCH_MULTIPLE).any():
        axis = int(np.where(large, size * spacing, 0).argmax())
        size[axis] = max(PATCH_MULTIPLE, size[axis] * SHRINK)
        result.append((float(size.prod()), _rounded(size, thin)))
    return result


def _rounded(size: np.ndarray, thin: int | None) -> Patch:
    x, y, z = (
        1 if axis == thin else max(PATCH_MULTIPLE, int(np.ceil(n / PATCH_MULTIPLE - 1e-9)) * PATCH_MULTIPLE)
        for axis, n in enumerate(size)
    )
    return x, y, z


def _axes(patch: Patch) -> int:
    return 2 if 1 in patch else 3


def _dimensions(patch: Patch) -> str:
    return f"{_axes(patch)}D"


def _times(shape: Patch) -> str:
    return " x ".join(map(str, shape))
