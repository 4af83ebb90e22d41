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
from medseg.core.manifest import Case, Manifest, read_manifest
from medseg.data.config import DataConfig
from medseg.data.splits import fill_splits

LABEL_KEYS = ("structures", "background_values", "ignore_values")
KEYS = ("name", "seed", "output", "data", *LABEL_KEYS, "plan", "models", "training", "predict", "evaluate", "report")

S = TypeVar("S", bound=BaseModel)


class RunConfig:
    """A resolved configuration. The names of all sections are checked here; their contents by the stage that reads them."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path, self.settings = path, settings
        if unknown := [key for key in settings if key not in KEYS]:
            raise ConfigError(f"{path}: unknown key `{unknown[0]}` (known: {', '.join(KEYS)}).")
        self.name = str(settings.get("name") or path.stem)
        self.seed = settings.get("seed", 0)
        if not isinstance(self.seed, int) or isinstance(self.seed, bool) or self.seed < 0:
            raise ConfigError(f"{path}: `seed`: a whole number of at least 0, not {self.seed!r}.")
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
        """The cases, each with a split: the manifest's, or one drawn with the seed where the manifest leaves it empty."""
        data = self.data
        assert data.manifest is not None and data.root is not None
        manifest = read_manifest(data.manifest, data.root)
        return fill_splits(manifest, data.val_fraction, data.test_fraction, self.seed)

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
