"""Configurations: YAML files that build on each other, checked section by section."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from medseg.core.errors import ConfigError
from medseg.core.wording import one_line


class Section(BaseModel):
    """One section of a configuration. A key that it does not know is an error that names the key."""

    model_config = ConfigDict(extra="forbid", frozen=True)


S = TypeVar("S", bound=BaseModel)
Millimetres = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def load_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file, with its `base:` files merged beneath it, left to right.

    `base` paths count from the file that names them.

    Raises: ConfigError where a file is missing, is not a YAML mapping, or is its own base.
    """
    return _load(Path(path), ())


def _load(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in seen:
        raise ConfigError(f"{path} is its own base; remove the circle in `base:`.")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeys)
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist; give the path of a configuration file.") from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path} is not a readable YAML file: {one_line(error)}.") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds no settings; it should be a YAML mapping of sections.")
    bases = content.pop("base", None) or []
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ConfigError(f"{path}: `base`: name one file or a list of files, not {bases!r}.")
    merged: dict[str, Any] = {}
    for base in bases:
        merged = merge(merged, _load(path.parent / base, (*seen, path.resolve())))
    return merge(merged, content)


class _UniqueKeys(yaml.SafeLoader):
    """YAML in which a key stands once; plain PyYAML would silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if double := [key for key in keys if keys.count(key) > 1 and key != "<<"]:
            raise yaml.constructor.ConstructorError(
                problem=f"key `{double[0]}` stands twice, remove one", problem_mark=node.start_mark
            )
        return super().construct_mapping(node, deep)


def merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """`above` laid over `below`: mappings key by key, anything else replaced."""
    result = copy.deepcopy(below)
    for key, value in above.items():
        if isinstance(value, dict) and isinstance(result.get(key), dict):
            result[key] = merge(result[key], value)
        else:
            result[key] = copy.deepcopy(value)
    return result


def override(settings: dict[str, Any], assignments: list[str]) -> dict[str, Any]:
    """`settings` with `key.path=value` assignments applied; values are read as YAML.

    Raises: ConfigError for an assignment without `=` or through something that is not a mapping.
    """
    result = copy.deepcopy(settings)
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key:
            raise ConfigError(f"--set {assignment}: write it as key.path=value.")
        *parents, last = key.split(".")
        place = result
        for parent in parents:
            if place.get(parent) is None:
                place[parent] = {}
            place = place[parent]
            if not isinstance(place, dict):
                raise ConfigError(f"--set {assignment}: `{parent}` is a single value and has no `{last}`.")
        try:
            place[last] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ConfigError(f"--set {assignment}: the value is not valid YAML; put it in quotes.") from None
    return result


def parse(section: type[S], content: Any, where: str) -> S:
    """`content` as a `section`, or one sentence naming every key that is wrong.

    Args:
        where: what the user would call the place, such as `quickstart.yaml: training`.
    """
    try:
        return section.model_validate({} if content is None else content)
    except ValidationError as error:
        # What follows a semicolon is the cure, in every sentence of ours.
        problems = ", and ".join(_problem(section, detail) for detail in error.errors())
        raise ConfigError(f"{where}: {problems}.") from None


def _problem(section: type[BaseModel], detail: Any) -> str:
    key = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        known = ", ".join(section.model_fields) if len(detail["loc"]) == 1 else ""
        return f"unknown key `{key}`" + (f" (known: {known})" if known else "")
    message = detail["msg"].removeprefix("Value error, ")
    return f"`{key}`: {message}" if key else message
