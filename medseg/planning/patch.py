"""Rules for what the network sees at once: two or three dimensions, the patch, and patches a step."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from medseg.core.errors import ConfigError
from medseg.planning.config import PlanConfig
from medseg.planning.machine import Granted
from medseg.planning.sides import AXIS_NAMES, STATED

Patch = tuple[int, int, int]
Memory = Callable[[Patch, int], float]  # GB that a step of the hungriest model takes with so many of these patches

FEWEST_SLICES = 8  # below it a 3D network cannot halve the axis once
PATCH_MULTIPLE = 8  # three halvings fit; networks pad further where they need more
SHRINK = 0.9
# Larger patches leave a CPU too few steps; smaller ones are taken only where the narrowest networks need them.
ENOUGH_VOXELS = {2: 256**2, 3: 64**3}
CPU_BATCH = {2: 8, 3: 2}
GPU_BATCH = {2: 12, 3: 2}  # for which the patch must fit (nnU-Net's reference batches)
FEWEST_PATCHES = 2
MOST_OF_THE_DATA = 0.05  # of all training voxels in one batch (Isensee et al. 2021)


def plan_patch(
    shape: Patch,
    spacing: tuple[float, float, float],
    granted: Granted,
    config: PlanConfig,
    widest: Memory,
    narrowest: Memory,
    reasons: dict[str, str],
) -> Patch:
    """Voxels of a patch along each axis.

    Args:
        shape: of the median prepared case.
        spacing: voxel size; only its ratios matter.
        widest, narrowest: of a step with all networks as wide, or as narrow, as they may be planned.
    Raises: ConfigError where a network cannot be built for the largest patch that is looked at.
    """
    if config.patch_voxels:
        reasons["patch_voxels"] = STATED
        reasons["dimensions"] = _dimensions(config.patch_voxels) + " follows from the stated patch"
        return config.patch_voxels
    thin = int(np.argmin(shape)) if min(shape) < FEWEST_SLICES else None
    reasons["dimensions"] = _why_dimensions(shape, thin)
    patches = _shrinking(shape, spacing, thin)
    index, fit = _largest(patches, 2 if thin is not None else 3, granted, widest, narrowest)
    if fit is None:
        why = (
            "is made as small as the networks allow: even the narrowest do not fit into "
            f"{granted.memory_gb:g} GB with {FEWEST_PATCHES} patches"
        )
    elif index == 0:
        why = f"is taken whole: then {fit}"
    else:
        why = f"shrinks, its physically longest side first, until {fit}"
    reasons["patch_voxels"] = (
        f"the median prepared case, {_times(shape)} voxels, {why}; rounded up to multiples of {PATCH_MULTIPLE}"
    )
    return patches[index][1]


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
        memory: of a step with all networks as wide as they may be planned.
    """
    if config.batch_size:
        reasons["batch_size"] = STATED
        return config.batch_size
    fixed = memory(patch, 0)
    each = memory(patch, 1) - fixed
    fitting = max(0, int((granted.memory_gb - fixed) / each))
    if granted.device == "cpu":
        wanted = CPU_BATCH[_axes(patch)]
        reasons["batch_size"] = f"{wanted} patches a step on a CPU: many small steps learn faster than few large ones" + (
            f"; {fitting} fit into {granted.memory_gb:g} GB with the widest networks (at least {FEWEST_PATCHES} are taken)"
            if fitting < wanted
            else ""
        )
        return max(FEWEST_PATCHES, min(wanted, fitting))
    most = max(FEWEST_PATCHES, int(MOST_OF_THE_DATA * training_voxels / np.prod(patch)))
    reasons["batch_size"] = (
        f"{fitting} patches fit into {granted.memory_gb:g} GB, and {most} are {MOST_OF_THE_DATA:.0%} of all training voxels "
        f"(at least {FEWEST_PATCHES}); the smaller number"
    )
    return max(FEWEST_PATCHES, min(fitting, most))


def _largest(
    patches: list[tuple[float, Patch]], axes: int, granted: Granted, widest: Memory, narrowest: Memory
) -> tuple[int, str | None]:
    """Which of ever smaller patches is the first that fits, and what it had to fit; None where none does.

    A GPU's patch shrinks for the widest networks, but not below what is enough: there the networks become narrower first.
    """
    sizes, most = [patch for _, patch in patches], ENOUGH_VOXELS[axes]
    start = next(index for index, (voxels, _) in enumerate(patches) if voxels <= most)
    if granted.device == "gpu":
        batch = GPU_BATCH[axes]
        start, fits = _first_fitting(sizes[: start + 1], batch, granted, widest)
        if fits:
            return start, f"{batch} patches fit into {granted.memory_gb:g} GB"
    further, fits = _first_fitting(sizes[start:], FEWEST_PATCHES, granted, narrowest)
    if not fits:
        return start + further, None
    bound = f"it has at most {most} voxels{', on a CPU,' if granted.device == 'cpu' else ''}"
    narrow = " with the narrowest networks" if further or granted.device == "gpu" else ""
    return start + further, f"{bound} and {FEWEST_PATCHES} patches fit into {granted.memory_gb:g} GB{narrow}"


def _first_fitting(patches: list[Patch], batch: int, granted: Granted, memory: Memory) -> tuple[int, bool]:
    """The first of ever smaller patches of which so many fit, else the last that networks can be built for; whether it fits."""
    low, high, last = 0, len(patches), len(patches) - 1
    middle = 0  # the largest fits more often than not
    while low < high:  # memory falls along the list
        try:
            fits = memory(patches[middle], batch) <= granted.memory_gb
        except ConfigError:
            if middle == 0:
                raise
            fits, last = True, middle - 1
        low, high = (low, middle) if fits else (middle + 1, high)
        middle = (low + high) // 2
    return min(low, last), low <= last


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
