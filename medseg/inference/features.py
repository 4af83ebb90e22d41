"""What can be measured of a case without its reference: the scan, its mask, and how sure the network was."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import expit

from medseg.core.components import Components, boxes_of, mask_of
from medseg.core.grid import Grid
from medseg.core.labels import LabelScheme
from medseg.core.volume import LabelMap

Array = npt.NDArray[Any]
Picture = npt.NDArray[np.float32]
Features = dict[str, float]
# Of each structure or region, entropy and voxels; of all voxels, their entropy and how many are of any structure.
Sums = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], tuple[float, float]]

AXES = ("x", "y", "z")  # of the prepared grid: to the right, to the front, upwards
CELLS = 8  # of a coarse picture along each axis
QUANTILES = (1, 25, 50, 75, 99)  # percent
MOST_OF_SLAB = 2**20  # logits of a slab that are looked at
MOST_ALONG = 64  # voxels of a scan along each axis that its intensities are measured at


class Observer:
    """How sure the network was of a case, summed up while its answer is made slab by slab.

    Args:
        labels: of the model; a network answers for its classes or for its regions.
    """

    def __init__(self, labels: LabelScheme) -> None:
        self.labels = labels
        self.entropy = np.zeros(len(labels.measured))  # in nats, over the voxels of each structure or region
        self.voxels = np.zeros(len(labels.measured))
        self.anywhere = self.foreground = 0.0  # entropy over all voxels; voxels of any structure
        self.agreeing = self.compared = 0.0

    def add(self, logits: torch.Tensor, temperature: float = 1.0) -> None:
        """Look at a finished slab; of a large one at every n-th line, which count for those between them.

        Args:
            logits: (K, x, y, z) float32 on any device.
            temperature: what they are still to be divided by.
        """
        step = max(1, math.ceil(math.sqrt(logits.numel() / MOST_OF_SLAB)))
        seen = logits[:, ::step, ::step].float()
        weight = logits.numel() / max(1, seen.numel())
        # In numpy, on one thread: on a busy machine, threads would wait for each other longer than this takes.
        flat = np.divide(seen.reshape(len(seen), -1).cpu().numpy(), temperature, dtype=np.float32)
        entropy, inside, anywhere = _sums_of_regions(flat) if self.labels.regions else _sums_of_classes(flat)
        self.entropy += weight * entropy
        self.voxels += weight * inside
        self.anywhere += weight * anywhere[0]
        self.foreground += weight * anywhere[1]

    def compare(self, answer: torch.Tensor, mean: torch.Tensor) -> None:
        """Look at how far the answer for one mirror image, mirrored back, says what the mean of all answers says.

        Args:
            answer, mean: (..., K, x, y, z), of one window or several.
        """
        step = max(1, math.ceil(math.sqrt(mean.numel() / MOST_OF_SLAB)))
        one, other = (part[..., ::step, ::step, :] for part in (answer, mean))
        if self.labels.regions:
            one, other = one > 0, other > 0
            both = (one & other).sum()
        else:
            one, other = one.max(-4).indices, other.max(-4).indices  # many times faster than argmax
            both = ((one == other) & (one > 0)).sum()
        self.agreeing += 2 * float(both)
        self.compared += float((one > 0).sum() + (other > 0).sum())

    def features(self) -> Features:
        """Mean entropy in each structure, entropy of all voxels for each of any structure, agreement when mirrored."""
        found = {
            f"entropy:{name}": float(e / n) if n else math.nan
            for name, e, n in zip(self.labels.measured, self.entropy, self.voxels, strict=True)
        }
        found["doubt"] = self.anywhere / self.foreground if self.foreground else math.nan
        found["mirror_dice"] = self.agreeing / self.compared if self.compared else math.nan
        return found


def _sums_of_classes(logits: Picture) -> Sums:
    below = logits - logits.max(0)
    share = np.exp(below)
    total = share.sum(0)
    entropy = np.log(total) - (share * below).sum(0) / total
    voxels, within = np.zeros(len(logits) - 1), np.zeros(len(logits) - 1)
    taken = below[0] == 0  # np.argmax takes three times as long as all the rest; of equals the first counts, as in `decide`
    for index, row in enumerate(below[1:]):
        inside = (row == 0) & ~taken
        taken |= inside
        voxels[index], within[index] = np.count_nonzero(inside), entropy @ inside
    return within, voxels, (float(entropy.sum(dtype=np.float64)), float(voxels.sum()))


def _sums_of_regions(logits: Picture) -> Sums:
    size = np.abs(logits)
    entropy = np.log1p(np.exp(-size)) + size * expit(-size)
    inside = logits > 0
    within = np.where(inside, entropy, 0).sum(1, dtype=np.float64)
    voxels = np.count_nonzero(inside, axis=1).astype(float)
    return within, voxels, (float(entropy.sum(dtype=np.float64)), float(np.count_nonzero(inside.any(0))))


def scan_features(image: Picture, prepared_grid: Grid) -> Features:
    """The field of view, the spread of each channel's intensities, and how rough they are.

    Args:
        image: (C, X, Y, Z) float32, normalised, on `prepared_grid`.
    Returns: `extent_mm:x` (`extent_px:x` where no physical size is known) and so on; `intensity_p50` and `roughness`, with
        `:2` and so on for a second channel.
    """
    sizes = zip(AXES, prepared_grid.shape, prepared_grid.spacing, strict=True)
    found = {f"extent_{prepared_grid.unit}:{axis}": n * s if n > 1 else math.nan for axis, n, s in sizes}
    for number, channel in enumerate(image, start=1):
        ending = f":{number}" if len(image) > 1 else ""
        thin = channel[tuple(slice(None, None, -(-n // MOST_ALONG)) for n in channel.shape)]
        ordered = np.sort(thin, axis=None)  # a tenth of the time of np.percentile
        found |= {f"intensity_p{q:02d}{ending}": float(ordered[round(q / 100 * (ordered.size - 1))]) for q in QUANTILES}
        found[f"roughness{ending}"] = roughness(channel)
    return found


def roughness(channel: Picture) -> float:
    """Mean squared difference of neighbours over that of any two voxels: 1 in white noise, near 0 in a smooth picture.

    Of the axes the least counts, so that thick slices are not taken for noise.
    """
    steps = [-(-n // MOST_ALONG) for n in channel.shape]
    spread = float(channel[tuple(slice(None, None, s) for s in steps)].var(dtype=np.float64))
    values = []
    for axis, size in enumerate(channel.shape):
        if size > 1 and spread > 0:
            here = [slice(None, None, s) for s in steps]
            here[axis], there = slice(0, size - 1, steps[axis]), list(here)
            there[axis] = slice(1, size, steps[axis])
            values.append(float(np.square(channel[tuple(there)] - channel[tuple(here)]).mean(dtype=np.float64)) / (2 * spread))
    return min(values, default=math.nan)


def coarse_picture(image: Picture) -> Picture:
    """(C, 8, 8, 8) float32 means over equal parts of the picture, each channel with mean 0 and deviation 1."""
    thin: Array = image[(slice(None), *(slice(None, None, max(1, n // (4 * CELLS))) for n in image.shape[1:]))]
    for axis in (1, 2, 3):
        size = thin.shape[axis]
        starts = np.arange(CELLS) * size // CELLS
        counts = np.maximum(1, np.diff([*starts, size]))  # a picture of fewer voxels repeats them
        shape = [-1 if a == axis else 1 for a in range(4)]
        thin = np.add.reduceat(thin, starts, axis) / counts.reshape(shape)
    centred = thin - thin.mean((1, 2, 3), keepdims=True)
    spread = np.maximum(centred.std((1, 2, 3), keepdims=True), 1e-6)
    return (centred / spread).astype(np.float32)


def resemblance(coarse: Picture, mean: Picture) -> Features:
    """How far a coarse picture resembles the mean of others, and by how much more so than when it is turned over.

    Args:
        coarse, mean: (C, 8, 8, 8), each channel with mean 0.
    Returns: `resemblance`, a correlation, and `upright:x` and so on: it, less what it is when turned over along the axis.
    """

    def correlation(other: Picture) -> float:
        size = float(np.linalg.norm(coarse) * np.linalg.norm(other))
        return float(coarse.ravel() @ other.ravel()) / size if size else 0.0

    here = correlation(mean)
    turned = {f"upright:{axis}": here - correlation(np.flip(mean, a)) for a, axis in enumerate(AXES, start=1)}
    return {"resemblance": here} | turned


def mask_features(classes: LabelMap, prepared_grid: Grid, labels: LabelScheme) -> Features:
    """Size, pieces, place and cut surface of each structure or region.

    Args:
        classes: (X, Y, Z) uint8 class indices, on any grid.
        prepared_grid: in whose field of view the places are told.
    Returns: for each name `volume_ml:<name>` (`area_mm2` of a picture one voxel thick, `volume_px` where no physical size is
        known), `pieces:<name>`, `cut_share:<name>` (voxels on the faces of the scan over those of the surface that a cube of its
        size has), and `position:<name>:x` and so on: its centre, from 0 to 1 through the prepared picture. Places of what is
        absent are NaN.
    """
    grid, boxes = classes.grid, boxes_of(classes.array)
    size_name, voxel = size_unit(grid)
    to_prepared = np.linalg.solve(prepared_grid.affine, grid.affine)
    found: Features = {}
    for name, members in labels.measured.items():
        box, mask = mask_of(classes.array, members, boxes)
        corner = [side.start for side in box]
        along = [np.count_nonzero(mask, axis=tuple(a for a in range(3) if a != axis)) for axis in range(3)]
        count = int(along[0].sum())
        centre = np.full(3, math.nan)
        if count:
            index = [float(n @ np.arange(c, c + len(n))) / count for n, c in zip(along, corner, strict=True)]
            centre = ((to_prepared @ [*index, 1])[:3] + 0.5) / prepared_grid.shape
        found[f"{size_name}:{name}"] = count * voxel
        found[f"pieces:{name}"] = float(len(Components(mask)))
        found[f"cut_share:{name}"] = _cut_share(along, corner, grid.shape) if count else 0.0
        found |= {f"position:{name}:{axis}": float(v) for axis, v in zip(AXES, centre, strict=True)}
    return found


def size_unit(grid: Grid) -> tuple[str, float]:
    """What the size of a structure is called, and that of one voxel."""
    if not grid.physical:
        return "volume_px", 1.0
    if grid.planar:
        return "area_mm2", grid.spacing[0] * grid.spacing[1]
    return "volume_ml", grid.voxel_volume / 1000


def _cut_share(along: list[Array], corner: list[int], shape: tuple[int, int, int]) -> float:
    sides = [axis for axis in range(3) if shape[axis] > 1]
    on_faces = sum(
        (int(along[a][0]) if corner[a] == 0 else 0) + (int(along[a][-1]) if corner[a] + len(along[a]) == shape[a] else 0)
        for a in sides
    )
    count, d = int(along[0].sum()), max(1, len(sides))
    return on_faces / (2 * d * count ** ((d - 1) / d))


def describe(
    image: Picture,
    prepared_grid: Grid,
    scan_grid: Grid,
    classes: LabelMap,
    labels: LabelScheme,
    observer: Observer | None = None,
    mean_picture: Picture | None = None,
) -> Features:
    """All features of one case, always the same names in the same order; what cannot be told is NaN.

    Args:
        image: (C, X, Y, Z) float32, normalised, on `prepared_grid`.
        classes: (X, Y, Z) uint8 class indices on `scan_grid`.
        observer: that saw the network's answer.
        mean_picture: of the training scans (`Typical.mean_picture`); without it nothing is told of the scan's resemblance.
    """
    found: Features = {}
    if scan_grid.physical:
        canonical = scan_grid.canonical()
        sides = zip(AXES, canonical.spacing, canonical.shape, strict=True)
        found = {f"spacing_mm:{axis}": spacing if size > 1 else math.nan for axis, spacing, size in sides}
    found |= scan_features(image, prepared_grid)
    if mean_picture is not None and len(mean_picture) == len(image):
        found |= resemblance(coarse_picture(image), mean_picture)
    found |= mask_features(classes, prepared_grid, labels)
    return found | (observer.features() if observer is not None else {})
