"""One model's training: what it depends on, and what it starts with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from medseg.core.labels import LabelScheme
from medseg.data.store import PreparedStore
from medseg.losses.registry import build_loss
from medseg.losses.supervised import supervised
from medseg.models.registry import build_network
from medseg.planning.plan import Plan
from medseg.training.augment import training_transforms
from medseg.training.config import TrainingConfig
from medseg.training.dataset import PatchDataset
from medseg.training.device import DTYPES, arrange, choose_device, choose_layout, choose_precision
from medseg.training.optimizer import build_optimizer
from medseg.training.schedule import Schedule, often_enough, validation_interval
from medseg.training.step import Trainer
from medseg.training.validate import count_windows


@dataclass(frozen=True)
class Job:
    """All that the training of one model depends on.

    Args:
        name: of the model in its run. architecture, options: what `build_network` takes.
        train_ids, val_ids: cases of the store.
        folder: where the model file, the log and the checkpoints go.
    """

    name: str
    architecture: str
    options: dict[str, Any]
    settings: TrainingConfig
    plan: Plan
    labels: LabelScheme
    store: PreparedStore
    train_ids: list[str]
    val_ids: list[str]
    folder: Path
    seed: int = 0

    @property
    def batch_size(self) -> int:
        return self.settings.batch_size or self.plan.batch_size


def set_up(job: Job) -> tuple[Trainer, Schedule]:
    """The network with its first weights, and the choices that follow from rules (or were made when the training began)."""
    settings, plan = job.settings, job.plan
    device, device_reason = choose_device(settings.device)
    precision, precision_reason = choose_precision(settings.precision, device)
    channels_last, layout_reason = choose_layout(settings.channels_last, device, precision, 1 in plan.patch_voxels)
    interval, interval_reason = _validation_interval(job)
    schedule = Schedule.load(job.folder / "schedule.json") or Schedule(
        steps=(settings.epochs or 0) * settings.steps_per_epoch,
        steps_per_epoch=settings.steps_per_epoch,
        validation_interval=interval,
        channels_last=channels_last,
        precision=precision,
        device=device.type,
        reasons={
            "device": device_reason,
            "precision": precision_reason,
            "channels_last": layout_reason,
            "validation_interval": interval_reason,
            "steps": f"{settings.epochs} epochs of {settings.steps_per_epoch} steps",
        },
    )
    torch.manual_seed(job.seed)
    network = build_network(
        job.architecture,
        job.options,
        in_channels=plan.n_channels,
        n_classes=job.labels.n_classes,
        patch_voxels=plan.patch_voxels,
    )
    arrange(network, device, schedule.channels_last).train()
    loss = supervised(build_loss(settings.loss, settings.loss_options, job.labels.n_classes), network.deep_supervision_weights)
    optimizer = build_optimizer(settings.optimizer, network.parameters())
    dtype = DTYPES[schedule.precision]
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    return Trainer(network, network, loss, optimizer, device, dtype, settings.gradient_clip, scaler), schedule


def _validation_interval(job: Job) -> tuple[int, str]:
    if job.settings.validation_interval is not None:
        return job.settings.validation_interval, "stated in the configuration"
    windows = validation_windows(job)
    interval = validation_interval(sum(windows), job.batch_size, job.settings.steps_per_epoch)
    if job.settings.epochs is not None:
        interval = often_enough(interval, job.settings.epochs)
    return interval, f"{len(windows)} validation cases are {sum(windows)} windows, for about 7 % of the time"


def validation_windows(job: Job) -> list[int]:
    """Windows that the sliding window takes over each validation case."""
    shapes = (job.store.open(case_id).classes.shape for case_id in job.val_ids)
    return [count_windows(shape, job.plan.patch_voxels, job.settings.validation_overlap) for shape in shapes]


def training_samples(job: Job) -> PatchDataset:
    """The training samples. Each case is opened here once, so that one that is missing is found before the first step."""
    for case_id in job.train_ids:
        job.store.open(case_id)
    patch = job.plan.patch_voxels
    spacing = job.plan.preprocessing.spacing or (1.0, 1.0, 1.0)
    transforms = training_transforms(job.settings.augmentation, patch, spacing, job.plan.flips)
    return PatchDataset(job.store, job.train_ids, transforms, patch, job.batch_size, job.settings.foreground_fraction, job.seed)
