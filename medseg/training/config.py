"""Section `training`: how models are trained."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from medseg.core.config import Section

Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]


def _ordered(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] > pair[1]:
        raise ValueError(f"the least stands first, then the greatest, not {list(pair)}")
    return pair


Range = Annotated[tuple[float, float], AfterValidator(_ordered)]
Points = Annotated[int, Field(ge=2)]
Share = Annotated[float, Field(ge=0)]
Choice = Literal["auto", "true", "false"]


class ElasticConfig(Section):
    """Elastic deformation (Ronneberger et al. 2015, U-Net: a 3 x 3 grid and 10 pixels on a picture of 572, about 0.04).

    nnU-Net v2 has it switched off. Probability and range are ours; the paper's magnitude lies within the range.

    Args:
        control_points: fewest and most along the patch's longest side.
        magnitude: least and greatest standard deviation of the displacement, as a share of the distance between control
            points; displacements are cut where the picture could fold (Choi & Lee 2000).
    """

    probability: Probability = 0.3
    control_points: Annotated[tuple[Points, Points], AfterValidator(_ordered)] = (3, 6)
    magnitude: Annotated[tuple[Share, Share], AfterValidator(_ordered)] = (0.02, 0.1)


class RotationConfig(Section):
    """Rotation about each axis (nnU-Net v2, `SpatialTransform`: probability 0.2, 30 degrees either way in 3D, any angle in 2D).

    Args:
        degrees: least and greatest; by default 30 either way in 3D and 180 in 2D, and where the slices are over three times
            thicker than the pixels, 180 within the slice and none out of it. Never 180 where an axis of the slice
            may not be mirrored, or only with left and right swapped.
    """

    probability: Probability = 0.2
    degrees: Range | None = None


class ScalingConfig(Section):
    """Zoom (nnU-Net v2, `SpatialTransform`: probability 0.2, factor 0.7 to 1.4, the same along all axes).

    As in nnU-Net v1, half of the draws shrink and half enlarge, whatever the range.
    """

    probability: Probability = 0.2
    factor: Annotated[tuple[Positive, Positive], AfterValidator(_ordered)] = (0.7, 1.4)


class ShearConfig(Section):
    """Shear; tangent of the largest angle. Ours and mild: nnU-Net has none, and elastic deformation shears locally.

    Shear is one of the affine changes that Simard et al. 2003 train with beside elastic ones.
    """

    probability: Probability = 0.1
    tangent: Annotated[float, Field(ge=0, lt=1)] = 0.1


class IntensityConfig(Section):
    """One change of intensity: how often, and the range that its magnitude is drawn from."""

    probability: Probability
    range: Range


def _intensity(probability: float, low: float, high: float) -> Any:
    return Field(default_factory=lambda: IntensityConfig(probability=probability, range=(low, high)))


class AugmentationConfig(Section):
    """Random changes of each training patch: nnU-Net v2's recipe, in its order, and elastic deformation and shear.

    Source of what nnU-Net has: Isensee et al. 2021, supplement, "Data augmentation"; probabilities and magnitudes are those of
    its version 2 (`nnUNetTrainer.get_training_transforms` of nnunetv2 2.8.1 with batchgeneratorsv2), which differ from the
    paper's a little. `elastic`, `rotation`, `scaling` and `shear` name their own.

    Args:
        interpolation: of the image where it is bent or turned; cubic (Keys 1981, a = -0.75) is for 2D, 3D is linear always.
        flip: probability of mirroring along each axis that the plan allows (nnU-Net v2, `MirrorTransform`: 0.5).
        noise: Gaussian, with one standard deviation for all channels, in units of the normalised image (nnU-Net v2,
            `GaussianNoiseTransform`: probability 0.1, range 0 to 0.1). The paper and the code call the range a variance; the code
            uses the number drawn as standard deviation, and so do we: the pictures are nnU-Net's.
        blur: Gaussian, sigma in voxels, drawn for each channel and axis; a channel is blurred with probability 0.5 (nnU-Net v2,
            `GaussianBlurTransform`: probability 0.2, sigma 0.5 to 1).
        brightness: factor, drawn for each channel (nnU-Net v2, `MultiplicativeBrightnessTransform`: 0.15, 0.75 to 1.25).
        contrast: factor about the channel's mean, cut to its range (nnU-Net v2, `ContrastTransform`: 0.15, 0.75 to 1.25).
        low_resolution: share of voxels kept along each axis (not across thick slices), nearest down and linear up; a channel is
            taken with probability 0.5 (nnU-Net v2, `SimulateLowResolutionTransform`: 0.25, 0.5 to 1).
        inverted_gamma: power of the negative of the picture, scaled to 0..1, drawn for each channel, half below 1; mean and
            deviation are kept (nnU-Net v2, `GammaTransform`: 0.1, 0.7 to 1.5).
        gamma: the same of the picture itself (nnU-Net v2, `GammaTransform`: 0.3, 0.7 to 1.5).
    """

    interpolation: Literal["linear", "cubic"] = "linear"
    elastic: ElasticConfig = ElasticConfig()
    rotation: RotationConfig = RotationConfig()
    scaling: ScalingConfig = ScalingConfig()
    shear: ShearConfig = ShearConfig()
    flip: Probability = 0.5
    noise: IntensityConfig = _intensity(0.1, 0.0, 0.1)
    blur: IntensityConfig = _intensity(0.2, 0.5, 1.0)
    brightness: IntensityConfig = _intensity(0.15, 0.75, 1.25)
    contrast: IntensityConfig = _intensity(0.15, 0.75, 1.25)
    low_resolution: IntensityConfig = _intensity(0.25, 0.5, 1.0)
    inverted_gamma: IntensityConfig = _intensity(0.1, 0.7, 1.5)
    gamma: IntensityConfig = _intensity(0.3, 0.7, 1.5)

    @model_validator(mode="after")
    def _above_zero(self) -> AugmentationConfig:
        for name in ("blur", "low_resolution", "gamma", "inverted_gamma"):
            if getattr(self, name).range[0] <= 0:
                raise ValueError(f"`{name}.range` starts at {getattr(self, name).range[0]:g}; it must be above 0")
        return self

    @model_validator(mode="before")
    @classmethod
    def _partial(cls, value: Any) -> Any:
        """`noise: {probability: 0}` keeps the default range, as every other section does."""
        if not isinstance(value, dict):
            return value
        result = dict(value)
        for name, field in cls.model_fields.items():
            if field.annotation is IntensityConfig and isinstance(result.get(name), dict):
                result[name] = field.get_default(call_default_factory=True, validated_data={}).model_dump() | result[name]
        return result


class OptimizerConfig(Section):
    """The optimizer. Left out, learning rate and weight decay are 0.01 and 3e-5 for sgd (nnU-Net), 0.001 and 0.01 for adamw.

    Args:
        momentum: of sgd. nesterov: look ahead along it.
    """

    name: Literal["sgd", "adamw"] = "adamw"
    learning_rate: Positive | None = None
    weight_decay: Annotated[float, Field(ge=0)] | None = None
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.99
    nesterov: bool = True

    @model_validator(mode="after")
    def _consistent(self) -> OptimizerConfig:
        if self.nesterov and self.momentum == 0 and self.name == "sgd":
            raise ValueError("`nesterov` needs `momentum`; set nesterov: false")
        if self.name != "sgd" and (given := {"momentum", "nesterov"} & self.model_fields_set):
            raise ValueError(f"`{min(given)}` belongs to sgd and the optimizer is {self.name}; remove it")
        return self

    @property
    def rate(self) -> float:
        return self.learning_rate or {"sgd": 0.01, "adamw": 0.001}[self.name]

    @property
    def decay(self) -> float:
        return {"sgd": 3e-5, "adamw": 0.01}[self.name] if self.weight_decay is None else self.weight_decay


class TrainingConfig(Section):
    """Section `training`: the same for all models of a run. Say either `epochs` or `budget_minutes`.

    Args:
        epochs: of `steps_per_epoch` steps each.
        budget_minutes: wall time for each model, compiling and validation included; turned once, after a few timed steps,
            into a number of steps that `schedule.json` keeps.
        init_from: a model.medseg whose weights the training starts with (fine-tuning); its structures may be others. The plan
            takes over the voxel size, patch, normalisation and network that those weights were made for.
        loss: a name in `LOSSES`, such as dice_ce.
        loss_options: settings of the loss, such as {gamma: 3}.
        class_weights: of the cross-entropy part: `auto` weighs rare classes up (median frequency; Eigen & Fergus 2015), or a
            weight for each name (`background` too; 1 where none is given). None weighs all voxels alike.
        schedule: the learning rate falls as half a cosine, or as (1 - t)^0.9 (poly; nnU-Net).
        warmup_steps: the learning rate rises evenly over so many first steps.
        gradient_clip: largest norm of all gradients together (12: nnU-Net).
        foreground_fraction: share of each batch that is centred on a structure (nnU-Net: a third); at least one patch. The
            structure is drawn first, then a case that has it, so that rare structures are seen as often as common ones.
        precision: `auto` is bfloat16 on a GPU or a CPU that computes in it (AMX, AVX-512 BF16), else float32.
        compile: `auto` compiles on a GPU, and on a CPU where `budget_minutes` is at least 5; it is kept where timed steps are
            faster for it.
        channels_last: the memory layout of images; on a CPU `auto` is false for 2D in float32, and in bfloat16 without compiling.
        workers: processes that augment; `auto` is none on a CPU where that costs under a tenth of a step.
        validation_interval: epochs between validations; by default so that they take about 7 % of the time.
        validation_overlap: of the sliding windows during training.
        checkpoint_minutes: longest time between two checkpoints (there is one at the end of each epoch too).
        device: `auto` is the GPU where there is one.
        augment_on: where patches are bent and changed: by workers on the cpu, or a batch at a time on the training's device;
            `auto` is the device where it is a GPU and the workers cannot keep up with it.
        postprocessing: choose on the validation cases, at the end, whether only the largest piece of a structure is kept, or
            pieces above a size; it travels in the model.
        track: also log to TensorBoard or MLflow (`pip install medseg[track]`).
    """

    epochs: Annotated[int, Field(ge=1)] | None = None
    budget_minutes: Positive | None = None
    steps_per_epoch: Annotated[int, Field(ge=1)] = 50
    init_from: Path | None = None
    loss: str = "dice_ce"
    loss_options: dict[str, Any] = {}
    class_weights: Literal["auto"] | dict[str, Positive] | None = None
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: Literal["cosine", "poly"] = "cosine"
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    gradient_clip: Positive = 12.0
    foreground_fraction: Probability = 0.33
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    compile: Choice = "auto"
    channels_last: Choice = "auto"
    workers: Literal["auto"] | Annotated[int, Field(ge=0)] = "auto"
    validation_interval: Annotated[int, Field(ge=1)] | None = None
    validation_overlap: Annotated[float, Field(ge=0, lt=1)] = 0.25
    checkpoint_minutes: Positive = 3.0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    augment_on: Literal["auto", "cpu", "device"] = "auto"
    postprocessing: bool = True
    track: list[Literal["tensorboard", "mlflow"]] = []
    augmentation: AugmentationConfig = AugmentationConfig()

    @model_validator(mode="before")
    @classmethod
    def _words(cls, value: Any) -> Any:
        """YAML reads true and false as truth values; here they are two of three words."""
        if not isinstance(value, dict):
            return value
        return {k: str(v).lower() if k in ("compile", "channels_last") and isinstance(v, bool) else v for k, v in value.items()}

    @model_validator(mode="after")
    def _one_length(self) -> TrainingConfig:
        if self.epochs is not None and self.budget_minutes is not None:
            raise ValueError("`epochs` and `budget_minutes` contradict each other; keep one of them")
        if self.epochs is None and self.budget_minutes is None:
            raise ValueError("say how long to train: `epochs` or `budget_minutes`")
        return self
