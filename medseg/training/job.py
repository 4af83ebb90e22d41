"""One model's training: what it depends on, and what it starts with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.transforms.compose import Compose
from torch import nn

from medseg.core.config import parse
from medseg.core.errors import ConfigError
from medseg.core.labels import LabelScheme
from medseg.data.store import PreparedStore
from medseg.inference.window import count_windows
from medseg.losses.registry import LOSSES, LossFunction, build_loss
from medseg.losses.supervised import supervised
from medseg.models.cost import step_cost
from medseg.models.registry import build_network
from medseg.planning.plan import Plan
from medseg.training.augment import training_transforms
from medseg.training.checkpoint import previous
from medseg.training.config import TrainingConfig
from medseg.training.dataset import PatchDataset
from medseg.training.decide import take_over
from medseg.training.device import DTYPES, arrange, choose_device, choose_layout, choose_precision, why_not_compiled
from medseg.training.distributed import ALONE, Processes
from medseg.training.optimizer import build_optimizer
from medseg.training.schedule import Schedule, often_enough, validation_interval
from medseg.training.start import load_start
from medseg.training.step import Trainer

WEIGHTS = (0.1, 10.0)  # least and greatest weight of a class that balancing gives


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
        return self.plan.batch_size

    @property
    def checkpoint(self) -> Path:
        return self.folder / "last.safetensors"

    @property
    def has_checkpoint(self) -> bool:
        return self.checkpoint.exists() or previous(self.checkpoint).exists()

    @property
    def best(self) -> Path:
        return self.folder / "best.safetensors"


def set_up(job: Job, processes: Processes = ALONE) -> tuple[Trainer, Schedule]:
    """The network with its first weights, and the choices that follow from rules (or were made when the training began).

    Raises: ConfigError; ModelFileError for the weights of `training.init_from`.
    """
    device, device_reason = choose_device(job.settings.device)
    begun = Schedule.load(job.folder / "schedule.json")
    here = take_over(begun, job.settings, device, _overhangs(job)) if begun else _first_schedule(job, device, device_reason)
    schedule = processes.gather(here)[0]
    share = max(1, job.batch_size // processes.world)  # the smallest that a process has; all take it in as many parts
    schedule = schedule.model_copy(update={"micro_batches": min(schedule.micro_batches, share)})
    network, sentences = _first_network(job, started=not job.has_checkpoint)
    for sentence in sentences:
        processes.say(f"train {job.name}: {sentence}")
    if processes.world > 1 and device.type == "cuda":
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
    arrange(network, device, schedule.channels_last).train()
    dtype = DTYPES[schedule.precision]
    trainer = Trainer(
        network=network,
        forward=processes.wrap(network, device),
        loss=supervised(loss_of(job), network.deep_supervision_weights),
        optimizer=build_optimizer(job.settings.optimizer, network.parameters()),
        device=device,
        dtype=dtype,
        gradient_clip=job.settings.gradient_clip,
        scaler=torch.amp.GradScaler(device.type, enabled=dtype == torch.float16),
        processes=processes,
        micro_batches=schedule.micro_batches,
    )
    return trainer, schedule


def begin_anew(job: Job, trainer: Trainer) -> None:
    """Put the first weights back, and an optimizer that has seen nothing."""
    trainer.network.load_state_dict(_first_network(job, started=True)[0].state_dict())
    trainer.optimizer.state.clear()


def _first_network(job: Job, started: bool) -> tuple[Any, list[str]]:
    """The network with random or pretrained weights, and sentences on them.

    Args:
        started: fill in the weights of `training.init_from`, which a checkpoint would replace anyway.
    """
    torch.manual_seed(job.seed)
    network = build_network(
        job.architecture,
        job.options,
        in_channels=job.plan.n_channels,
        n_classes=job.labels.n_outputs,
        patch_voxels=job.plan.patch_voxels,
        pretrained=job.settings.init_from is None,
    )
    if job.settings.init_from is None or not started:
        return network, []
    return network, load_start(job.settings.init_from, network, job.labels)


def _first_schedule(job: Job, device: torch.device, device_reason: str) -> Schedule:
    """The choices that follow from rules; `decide` adds those that follow from the clock."""
    settings, plan = job.settings, job.plan
    precision, precision_reason = choose_precision(settings.precision, device, _overhangs(job))
    planar, compiled = 1 in plan.patch_voxels, why_not_compiled(settings, device) is None
    channels_last, layout_reason = choose_layout(settings.channels_last, device, precision, planar, compiled)
    interval, interval_reason = _validation_interval(job)
    return Schedule(
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


def _overhangs(job: Job) -> bool:
    """Whether the network has convolutions longer than the pictures that they see in a patch."""
    shapes = {"in_channels": job.plan.n_channels, "n_outputs": job.labels.n_outputs, "patch_voxels": job.plan.patch_voxels}
    return step_cost(job.architecture, job.options, **shapes).overhangs  # type: ignore[arg-type]


def loss_of(job: Job) -> LossFunction:
    """The loss of one output. Raises: ConfigError."""
    settings = job.settings
    return build_loss(
        settings.loss, settings.loss_options, job.labels, class_weights(settings.class_weights, job.plan, job.labels)
    )


def class_weights(setting: str | Mapping[str, float] | None, plan: Plan, labels: LabelScheme) -> list[float] | None:
    """The weight of each class in the cross-entropy, the background's first; None where all weigh alike.

    `auto` is median frequency balancing: the median of the classes' frequencies over the class's own, within `WEIGHTS`; a class
    that no training case has weighs 1. Frequencies are over all cases; Eigen & Fergus 2015 count only those with the class.

    Raises: ConfigError for a name that is no structure, or a plan without voxel counts.
    """
    if setting is None:
        return None
    names = ["background", *labels.names]
    if not isinstance(setting, str):
        if unknown := [name for name in setting if name not in names]:
            raise ConfigError(f"`training.class_weights` names `{unknown[0]}`; there are {', '.join(names)}.")
        return [setting.get(name, 1.0) for name in names]
    counts = np.array(plan.class_voxels, float)
    if len(counts) != len(names):
        raise ConfigError(
            "`training.class_weights` auto needs a plan that counts the voxels of each class; run `medseg prepare`."
        )
    present = counts > 0
    weights = np.ones(len(counts))
    weights[present] = np.clip(np.median(counts[present]) / counts[present], *WEIGHTS)
    return [float(weight) for weight in weights]


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
    settings = job.settings
    transforms = training_transforms(settings.augmentation, patch, spacing, job.plan.flips, job.plan.swaps)
    row = LOSSES[settings.loss]
    if row.weight_map is not None:
        options = parse(row.config, settings.loss_options, f"training.loss: {settings.loss}")
        transforms = Compose([*transforms.transforms, row.weight_map(options)])
    return PatchDataset(job.store, job.train_ids, transforms, patch, job.batch_size, settings.foreground_fraction, job.seed)
