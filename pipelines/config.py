"""The configuration of a run: sections that each stage reads and checks for itself."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel

from medseg.core.config import load_yaml, override, parse
from medseg.core.errors import ConfigError
from medseg.core.files import write_text
from medseg.core.labels import LabelScheme
from medseg.core.manifest import Case, Manifest, Split, read_manifest
from medseg.data.config import DataConfig
from medseg.data.splits import Fold, fill_splits, make_folds, pool_for_folds
from medseg.inference.config import PredictConfig

LABEL_KEYS = ("structures", "regions", "background_values", "ignore_values")
KEYS = ("name", "seed", "folds", "output", "data", *LABEL_KEYS, "plan", "models", "training", "predict", "evaluate", "report")

S = TypeVar("S", bound=BaseModel)


class RunConfig:
    """A resolved configuration. The names of all sections are checked here; their contents by the stage that reads them.

    `folds` is the number of folds of a cross-validation, None where the manifest's splits are used.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path, self.settings = path, settings
        if unknown := [key for key in settings if key not in KEYS]:
            raise ConfigError(f"{path}: unknown key `{unknown[0]}` (known: {', '.join(KEYS)}).")
        self.name = str(settings.get("name") or path.stem)
        self.seed = settings.get("seed", 0)
        if not isinstance(self.seed, int) or isinstance(self.seed, bool) or self.seed < 0:
            raise ConfigError(f"{path}: `seed`: a whole number of at least 0, not {self.seed!r}.")
        self.folds = settings.get("folds")
        if self.folds is not None and (not isinstance(self.folds, int) or isinstance(self.folds, bool) or self.folds < 2):
            raise ConfigError(f"{path}: `folds`: a whole number of at least 2, not {self.folds!r}; leave it out for one split.")
        output = settings.get("output") or Path("runs") / self.name
        if not isinstance(output, (str, Path, int, float)):
            raise ConfigError(f"{path}: `output`: the path of a folder, not {output!r}.")
        self.output = Path(str(output))

    @classmethod
    def load(cls, path: Path, assignments: list[str] | None = None) -> RunConfig:
        """The configuration in a YAML file with its bases beneath and `--set` assignments on top. Raises: ConfigError."""
        return cls(Path(path), override(load_yaml(Path(path)), assignments or []))

    def section(self, name: str, model: type[S]) -> S:
        """The section `name` as a `model`; only this one is checked. Raises: ConfigError."""
        return parse(model, self.settings.get(name), f"{self.path}: {name}")

    def folder(self, *parts: str) -> Path:
        """A folder of the run, such as `folder("predict", "unet")`."""
        return self.output.joinpath(*parts)

    def fold_folder(self, model: str, number: int) -> Path:
        """Where the model of a fold is trained."""
        return self.folder("train", model, f"fold_{number}")

    @cached_property
    def labels(self) -> LabelScheme:
        present = {key: self.settings[key] for key in LABEL_KEYS if key in self.settings}
        return parse(LabelScheme, present, str(self.path))

    @cached_property
    def data(self) -> DataConfig:
        data = self.section("data", DataConfig)
        name = data.name or self.name
        root, manifest = data.root or Path("data") / name, data.manifest or Path("data_manifests") / f"{name}.csv"
        return data.model_copy(update={"name": name, "root": root, "manifest": manifest})

    @property
    def models(self) -> Any:
        """The raw value of `models`: a list of names, or a mapping of names to settings."""
        models = self.settings.get("models")
        if not models or not isinstance(models, (list, dict)):
            raise ConfigError(f"{self.path}: `models` names no model; write for example `models: [unet, fcn8s]`.")
        return models

    @property
    def model_names(self) -> list[str]:
        return [str(name) for name in self.models]

    def manifest(self) -> Manifest:
        """The cases, each with a split: the manifest's, or one drawn with the seed where the manifest leaves it empty.

        With `folds` every case that is not `test` has the split `train`; `cross_validation` says which fold holds it out.
        """
        data = self.data
        assert data.manifest is not None and data.root is not None
        manifest = read_manifest(data.manifest, data.root)
        if self.folds is not None:
            return pool_for_folds(manifest)
        return fill_splits(manifest, data.val_fraction, data.test_fraction, self.split_seed)

    @property
    def split_seed(self) -> int:
        """What splits and folds are drawn with."""
        return self.seed if self.data.split_seed is None else self.data.split_seed

    def cross_validation(self, manifest: Manifest) -> tuple[Fold, ...]:
        """The folds over the pool of `manifest()`; none without `folds`. Raises: ConfigError, ManifestError."""
        if self.folds is None:
            return ()
        data = self.data
        pool, where = manifest.of("train"), str(manifest.path)
        return make_folds(pool, self.folds, data.val_fraction, data.stratify_by, self.split_seed, where)

    def predicted_splits(self) -> tuple[Split, ...]:
        """The splits whose cases are predicted and evaluated: `predict.split`; with `folds` the pool (`train`), or `test`.

        Raises: ConfigError where a cross-validation is asked for anything else: one table would mix cases that no model saw
            with cases that some did.
        """
        predict = self.section("predict", PredictConfig)
        if self.folds is None:
            return tuple(predict.split)
        if "split" not in predict.model_fields_set:
            return ("train",)
        if predict.split != ["test"]:
            raise ConfigError(
                f"{self.path}: predict: `split` {', '.join(predict.split)} would mix cases that the folds' models have seen with "
                "others; with `folds` leave it out (each case by the model that did not see it) or write `test` (by all of them)."
            )
        return ("test",)

    @property
    def out_of_fold(self) -> bool:
        """True where each case is predicted by the model of the fold that held it out."""
        return self.folds is not None and self.predicted_splits() != ("test",)

    def sampling_unit(self, cases: Sequence[Case]) -> str:
        """What intervals are over: `patient` where the manifest names patients, else `case` or what the configuration says.

        Raises: ConfigError where the manifest names patients and the configuration another unit.
        """
        stated, named = self.data.sampling_unit, any(case.patient_id for case in cases)
        if named and stated != "patient":
            raise ConfigError(
                f"{self.path}: data: `sampling_unit` is {stated}, but {self.data.manifest} names patients, and intervals can be "
                "over one of them only; remove `sampling_unit` or the column patient_id."
            )
        return "case" if stated == "patient" and not named else stated

    def save(self) -> None:
        """Keep the resolved configuration in the run folder, as a file that repeats the run by itself."""
        settings = {"name": self.name, "output": str(self.output)} | self.settings
        write_text(self.output / "config.yaml", yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))
