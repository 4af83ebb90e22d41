"""One case through a model, in three steps: read and prepare it, ask the network, finish the mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from medseg.core.errors import CaseError
from medseg.core.grid import Grid
from medseg.core.volume import LabelMap
from medseg.data.transforms import LookAtd, apply, scan_transform
from medseg.inference.air import Air
from medseg.inference.bundle import Bundle
from medseg.inference.config import EngineConfig
from medseg.inference.device import find_device
from medseg.inference.postprocess import postprocess
from medseg.inference.quality import Observer
from medseg.inference.restore import Restorer
from medseg.inference.runtime import Arithmetic, cache_folder, choose_arithmetic, ready, windows_at_once
from medseg.inference.together import read_models
from medseg.inference.window import Empty, Run, Slab, count_windows, predict_slabs
from medseg.io.formats import Source

Spacing = tuple[float, float, float] | None


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model on a device, ready to predict. `batch`: windows that go through it together."""

    bundle: Bundle
    run: Run
    device: torch.device
    arithmetic: Arithmetic
    batch: int = 1


@dataclass(eq=False)
class Prepared:
    """A scan as the network sees it.

    Args:
        image: (C, X, Y, Z) float32 on `grid`.
        scan_grid: the scan's own.
        empty: tells windows that need no network; None where every one is looked at.
    """

    image: npt.NDArray[np.float32]
    grid: Grid
    scan_grid: Grid
    empty: Empty | None
    where: str


@dataclass(eq=False)
class Answer:
    """What the network says of a scan.

    Args:
        classes: (X, Y, Z) uint8 class indices on the scan's grid, 0 the background.
        observer: how sure it was.
        windows, skipped: how many there were, and how many needed no network.
    """

    classes: LabelMap
    observer: Observer
    windows: int = 0
    skipped: int = 0


def load_model(
    places: Sequence[Path], settings: EngineConfig, bundle: Bundle | None = None, threads: int | None = None, scans: int = 1
) -> LoadedModel:
    """The model in one file, or in several places together, on the device and with the arithmetic that the settings ask for.

    Args:
        places: as `read_models` takes them.
        bundle: what it gave, where they have been read.
        threads: of the processor; None takes all that this process may use.
        scans: how many are to be segmented.
    Raises: ModelFileError; ConfigError where a GPU is asked for and there is none.
    """
    device = find_device(settings.device)
    bundle = bundle or read_models(places)
    arithmetic = choose_arithmetic(settings, bundle, device, scans)
    run = ready(bundle, arithmetic, device, cache_folder(Path(places[0])), threads)
    return LoadedModel(bundle, run, device, arithmetic, settings.batch or windows_at_once(run, bundle, device))


def read_scan(bundle: Bundle, images: Sequence[Source], settings: EngineConfig, spacing_mm: Spacing, where: str) -> Prepared:
    """Read a scan and prepare it.

    Args:
        images: one file a channel, in the order of the plan's channels.
        spacing_mm: voxel size of files that state none.
        where: the case, for errors.
    Raises: CaseError where the scan cannot be used with this model.
    """
    below = bundle.description.fingerprint.get("air_below") if settings.skip_air else None
    look = None if below is None else LookAtd("image", "air", lambda scan: Air(scan, below))
    scan = apply(scan_transform(bundle.plan.preprocessing, spacing_mm, look), {"image": tuple(images), "case_id": where})
    empty = scan["air"].empty(scan["grid"], bundle.labels) if look else None
    return Prepared(np.asarray(scan["image"]), scan["grid"], scan["image_grid"], empty, where)


def ask_network(model: LoadedModel, scan: Prepared, settings: EngineConfig, listeners: Sequence[Any] = ()) -> Answer:
    """The classes of a scan on its own grid, decided slab by slab while the windows go through the network.

    Args:
        listeners: have an `add(slab)` that is shown each slab of logits.
    Raises: CaseError where the answer is not finite.
    """
    bundle = model.bundle
    restorer, observer = Restorer(scan.grid, scan.scan_grid, bundle.labels), Observer(bundle.labels)
    slabs = predict_slabs(
        model.run,
        scan.image,
        bundle.plan.patch_voxels,
        settings.overlap,
        model.batch,
        mirror_axes(bundle, settings),
        model.device,
        bundle.swaps,
        scan.empty,
        observer.compare,
    )
    for slab in slabs:
        _check_finite(slab, scan.where)
        observer.add(slab.logits)
        for listener in (restorer, *listeners):
            listener.add(slab)
    windows = count_windows(scan.grid.shape, bundle.plan.patch_voxels, settings.overlap)
    return Answer(restorer.finish(), observer, windows, scan.empty.skipped if scan.empty else 0)


def finish_mask(bundle: Bundle, classes: LabelMap) -> LabelMap:
    """The classes without the pieces that the model's postprocessing leaves out."""
    if bundle.description.postprocessing is None:
        return classes
    return LabelMap(postprocess(classes.array, bundle.description.postprocessing, bundle.labels, classes.grid), classes.grid)


def predict_case(
    model: LoadedModel, images: Sequence[Source], settings: EngineConfig, spacing_mm: Spacing = None, where: str = "scan"
) -> LabelMap:
    """The three steps one after the other.

    Returns: (X, Y, Z) uint8 class indices, 0 the background; `LabelScheme.decode` gives the ids to write.
    Raises: CaseError where the scan cannot be used with this model.
    """
    scan = read_scan(model.bundle, images, settings, spacing_mm, where)
    return finish_mask(model.bundle, ask_network(model, scan, settings).classes)


def mirror_axes(bundle: Bundle, settings: EngineConfig) -> tuple[int, ...]:
    """The axes to mirror along: those that the model allows, where mirroring is asked for."""
    return bundle.allowed_flips if settings.mirror else ()


def _check_finite(slab: Slab, where: str) -> None:
    if not torch.isfinite(slab.logits.sum()):  # NaN and infinity reach the sum
        raise CaseError(f"{where}: the network's answer is not finite; use `precision: float32`, or train the model again.")
