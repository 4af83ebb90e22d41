"""`medseg ablate`: one run for each combination of some settings, and one report that holds them against the first."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from medseg.core.config import load_yaml, override
from medseg.core.errors import ConfigError, MedsegError, OutputError
from medseg.core.files import atomic_path, json_sha256, remove
from medseg.core.progress import say
from medseg.core.record import StageRecord
from medseg.core.wording import one_line
from medseg.evaluation.compare import Comparison, compare_evaluations, holm
from medseg.evaluation.config import EvaluateConfig
from medseg.evaluation.console import interval_text, text_table
from medseg.evaluation.table import Evaluation, load_evaluation, write_table
from medseg.reporting.collect import ModelResults, ReportData, collect_run
from medseg.reporting.config import ReportConfig
from medseg.reporting.html import write_report
from pipelines.config import RunConfig
from pipelines.report import facts_of, files_read
from pipelines.run import run as run_all

LONGEST_NAME = 80
# Sections that the prepared cases do not depend on, or on which `prepare` itself finds out whether they have changed.
NOT_PREPARED = ("seed", "training", "predict", "evaluate", "report", "output")


@dataclass(frozen=True)
class Cell:
    """One combination of settings.

    Args:
        name: of the setting, such as `loss=dice`; also the name of its folder.
        values: key.path -> value.
    """

    name: str
    values: Mapping[str, Any]
    config: RunConfig


def ablate(path: Path, vary: Sequence[str], assignments: Sequence[str] = ()) -> int:
    """Run every combination of the varied settings below `<output>/ablate`, and compare all of them with the first.

    A cell is a whole run; what is done is skipped, and one that fails is named at the end and the others go on.

    Args:
        vary: `key.path=a,b`; the values are read as YAML.
        assignments: `--set` of all cells.
    Returns: 0, or 1 where a cell or some of its cases failed.
    Raises: ConfigError where there is nothing to vary, or two cells would have one name.
    """
    folder = RunConfig.load(path, list(assignments)).folder("ablate")
    cells = make_cells(path, [read_variation(text) for text in vary], list(assignments), folder)
    failed: dict[str, str] = {}
    worst = 0
    for number, cell in enumerate(cells, start=1):
        say(f"== ablate {number}/{len(cells)}: {cell.name} " + "=" * max(0, 60 - len(cell.name)))
        _share_prepared(cell, cells[: number - 1])
        try:
            code = run_all(cell.config)
            if code == 2:
                failed[cell.name] = f"its data or settings are wrong; see {cell.config.folder('check')}/report.csv"
            worst = max(worst, code)
        except OutputError:
            raise  # a full disk would befall the others too
        except MedsegError as error:
            failed[cell.name] = str(error)
        except Exception as error:  # a fault of ours in one cell is no reason to lose the night's others
            say(traceback.format_exc())
            failed[cell.name] = f"unexpected {type(error).__name__}: {one_line(error)}"
        if cell.name in failed:
            say(f"ablate {cell.name}: {failed[cell.name]}")
    done = [cell for cell in cells if cell.name not in failed]
    if done:
        _report(folder, done, failed, cells[0].name)
    for name, reason in failed.items():
        say(f"ablate: {name} failed: {reason}")
    return int(bool(failed) or worst > 0)


def read_variation(text: str) -> tuple[str, list[Any]]:
    """`key.path=a,b` as the key and its values, read as YAML: `loss=dice,ce`, `models.unet.features=[8, 16],[16, 32]`.

    Raises: ConfigError where it is not of this form, or names fewer than two values or one twice.
    """
    key, equals, values = text.partition("=")
    if not equals or not key:
        raise ConfigError(f"--vary {text}: write it as key.path=value,value.")
    try:
        found = yaml.safe_load(f"[{values}]")
    except yaml.YAMLError:
        raise ConfigError(f"--vary {text}: the values are not valid YAML; put them in quotes.") from None
    if len(found) < 2:
        raise ConfigError(f"--vary {text}: {len(found)} value is nothing to compare; give two or more, parted by commas.")
    if len({json.dumps(value, default=str) for value in found}) < len(found):
        raise ConfigError(f"--vary {text}: a value stands twice; remove one.")
    return key, found


def make_cells(path: Path, variations: Sequence[tuple[str, list[Any]]], assignments: list[str], folder: Path) -> list[Cell]:
    """The grid, in the order in which the values are given; the last key varies fastest.

    Raises: ConfigError for no key, a key that stands twice, or two cells of one name.
    """
    keys = [key for key, _ in variations]
    if not keys or len(set(keys)) < len(keys):
        raise ConfigError("give --vary key.path=a,b, each key once.")
    short = short_keys(keys)
    base = override(load_yaml(Path(path)), assignments)
    if "seed" in keys and (base.get("data") or {}).get("split_seed") is None:
        base = override(base, [f"data.split_seed={json.dumps(base.get('seed', 0))}"])  # every seed on the same cases
    cells = []
    for values in itertools.product(*(values for _, values in variations)):
        chosen = dict(zip(keys, values, strict=True))
        name = cell_name({short[key]: value for key, value in chosen.items()})
        changes = [f"{key}={json.dumps(value, default=str)}" for key, value in chosen.items()]
        settings = override(base, [*changes, f"output={json.dumps(str(folder / name))}"])
        cells.append(Cell(name, chosen, RunConfig(Path(path), settings)))
    if len({cell.name.lower() for cell in cells}) < len(cells):
        raise ConfigError(f"--vary: two of {', '.join(c.name for c in cells)} would share a folder; vary fewer values at once.")
    return cells


def short_keys(keys: Sequence[str]) -> dict[str, str]:
    """Each key by its last two parts, without its section (`elastic.probability`, `loss`); whole where two would be alike."""
    short = {key: ".".join((key.split(".")[1:] or [key])[-2:]) for key in keys}
    return short if len(set(short.values())) == len(keys) else {key: key for key in keys}


def cell_name(values: Mapping[str, Any]) -> str:
    """The setting as a name that can be a folder's: `elastic.probability=0.3,loss=dice`."""
    texts = [f"{key}={value if isinstance(value, str) else json.dumps(value, default=str)}" for key, value in values.items()]
    name = ",".join(re.sub(r"[^\w.=+-]+", "_", text).strip("_") for text in texts)
    return name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}-{json_sha256(dict(values))[:8]}"


def _share_prepared(cell: Cell, before: Sequence[Cell]) -> None:
    """Give a cell the prepared cases of an earlier one of the same data and plan; `prepare` then decides what it can use.

    Cases are hard links: what `prepare` writes replaces files and never changes them, so no cell can alter another's. What a
    user may edit is copied. What says that a case or the whole is there comes last, so that a kill in between leaves nothing
    that passes for whole, and the next call goes on.
    """
    own, target = _prepared_from(cell), cell.config.folder("prepare")
    source = next((c.config.folder("prepare") for c in before if _prepared_from(c) == own), None)
    if source is None or (target / "stage.json").is_file() or not (source / "stage.json").is_file():
        return
    for folder in sorted(p for p in (source / "cases").glob("*") if not (target / "cases" / p.name / "case.json").is_file()):
        place = target / "cases" / folder.name
        place.mkdir(parents=True, exist_ok=True)
        try:
            for path in sorted(folder.iterdir(), key=lambda p: (p.name == "case.json", p.name)):
                remove(place / path.name)
                os.link(path, place / path.name)
        except OSError as error:
            say(f"ablate {cell.name}: prepared anew, for this disk makes no hard links ({error.strerror})")
            return
    others = [p for p in source.rglob("*") if p.is_file() and not p.is_relative_to(source / "cases")]
    for path in sorted(others, key=lambda p: (p == source / "stage.json", p)):
        with atomic_path(target / path.relative_to(source)) as temporary:
            shutil.copyfile(path, temporary)


def _prepared_from(cell: Cell) -> dict[str, Any]:
    return {key: value for key, value in cell.config.settings.items() if key not in NOT_PREPARED}


def _report(folder: Path, cells: Sequence[Cell], failed: Mapping[str, str], baseline: str) -> None:
    """Write ablate.csv and report.html over all cells that came through, where anything has changed.

    Args:
        baseline: the cell that the others are held against; there are no differences where it has failed.
    """
    first = cells[0].config
    files = {name: sha256 for cell in cells for name, sha256 in files_read(cell.config.output, folder).items()}
    values = {cell.name: dict(cell.values) for cell in cells}
    record = StageRecord(folder, {"cells": values, "failed": dict(failed), "files": files})
    if record.unchanged() and all((folder / name).is_file() for name in ("ablate.csv", "report.html")):
        say(f"ablate: unchanged, skipped ({folder / 'report.html'})")
        return
    runs = {cell.name: _collect(cell.config) for cell in cells}
    title = _titles(runs)
    found = [(cell, model, title(cell.name, model.name)) for cell in cells for model in runs[cell.name].models]
    models = {name: model for _, model, name in found}
    evaluations = {name: load_evaluation(cell.config.folder("evaluate", model.name)) for cell, model, name in found}
    without = f"No differences are given, for the first setting, {baseline}, failed." if baseline in failed else ""
    if len({frozenset(e.cases["case_id"]) for e in evaluations.values()}) > 1:
        without = without or "No differences are given, for the settings measure different cases."
    baselines = {} if without else {title(baseline, m.name): m.name for m in runs[baseline].models}
    comparison = compare_with_first(evaluations, baselines, models, first.section("evaluate", EvaluateConfig), first.seed)
    table = ablation_table(models, {name: cell.values for cell, _, name in found}, comparison)
    write_table(folder / "ablate.csv", table)
    data = _joined(cells, runs, comparison, tuple(failed), without)
    path = write_report(data, folder, ReportConfig(gallery_cases=0))
    record.write("ablate", first.seed, {"cells": len(cells), "failed": len(failed)})
    say(_shown(table))
    if without:
        say(f"ablate: {without}")
    say(f"ablate: {folder / 'ablate.csv'} and {path}")
    for name in failed:
        say(f"ablate: {name} is not in the report")


def _titles(runs: Mapping[str, ReportData]) -> Callable[[str, str], str]:
    """What a cell's model is called in the report: after the cell, and after the model too where there are several."""
    several = max(len(run.models) for run in runs.values()) > 1
    return lambda cell, model: f"{cell}, {model}" if several else cell


def _joined(
    cells: Sequence[Cell],
    runs: dict[str, ReportData],
    comparison: pd.DataFrame | None,
    failed: tuple[str, ...],
    without: str,
) -> ReportData:
    """The runs of all cells as one report, with what the first says of the data."""
    config, run, title = cells[0].config, runs[cells[0].name], _titles(runs)
    records = {
        (stage, title(cell, model) if model else ""): record
        for cell, of_cell in reversed(runs.items())  # what has no model, such as `prepare`, is the first cell's
        for (stage, model), record in of_cell.records.items()
    }
    return replace(
        run,
        name=f"{config.name}: {len(cells)} settings",
        facts=replace(run.facts, note=f"{run.facts.note} {without}".strip()),
        models=tuple(replace(m, name=title(cell, m.name)) for cell, of_cell in runs.items() for m in of_cell.models),
        comparison_summary=comparison,
        ranking=None,
        absent=failed,
        records=records,
        commands=tuple(f"medseg run {cell.config.folder('config.yaml')}" for cell in cells),
    )


def _collect(config: RunConfig) -> ReportData:
    manifest = config.manifest()
    facts = facts_of(config, manifest)
    return collect_run(config.output, config.name, config.model_names, facts, manifest.cases, manifest.channels, config.labels)


def compare_with_first(
    evaluations: Mapping[str, Evaluation],
    baselines: Mapping[str, str],
    models: Mapping[str, ModelResults],
    settings: EvaluateConfig,
    seed: int,
) -> pd.DataFrame | None:
    """Paired differences of every setting against the first one's evaluation of the same model (setting minus first).

    Args:
        baselines: titles of the first cell's evaluations -> the name of the model in its run.
    Returns: rows as of comparison_summary.csv, with p values corrected for all of them; None where there is nothing to compare.
    """
    found: list[Comparison] = []
    for base, model in baselines.items():
        others = [name for name, results in models.items() if results.name == model and name != base]
        found += [compare_evaluations({name: evaluations[name], base: evaluations[base]}, settings, seed) for name in others]
    if not found:
        return None
    table = pd.concat([comparison.summary for comparison in found], ignore_index=True)
    return table.assign(p_holm=holm(table["p_wilcoxon"].to_numpy(float)))


def ablation_table(
    models: Mapping[str, ModelResults], values: Mapping[str, Mapping[str, Any]], comparison: pd.DataFrame | None
) -> pd.DataFrame:
    """ablate.csv: a row a setting, structure and metric under the convention `worst`, with the difference to the first setting.

    Columns: setting, model, one a varied key, structure, metric, unit, n, n_undefined, mean, ci_low, ci_high, difference,
    difference_ci_low, difference_ci_high, p_holm (empty for the first setting).
    """
    parts = []
    for name, model in models.items():
        rows = model.summary[model.summary["convention"] == "worst"]
        keys = {key: value if isinstance(value, (str, int, float)) else json.dumps(value) for key, value in values[name].items()}
        facts = {"setting": name, "model": model.name, **keys}
        figures = rows[["structure", "metric", "unit", "n", "n_undefined", "mean", "ci_low", "ci_high"]]
        parts.append(pd.DataFrame([facts] * len(rows), index=rows.index).join(figures))
    table = pd.concat(parts, ignore_index=True)
    new = {"mean_difference": "difference", "ci_low": "difference_ci_low", "ci_high": "difference_ci_high"}
    if comparison is None:
        return table.assign(**dict.fromkeys([*new.values(), "p_holm"], float("nan")))
    own = comparison.rename(columns={"model_a": "setting", **new})[["setting", "structure", "metric", *new.values(), "p_holm"]]
    return table.merge(own, "left", ["setting", "structure", "metric"])


def _shown(table: pd.DataFrame) -> str:
    """Dice of every setting and structure, for the person who watches."""
    rows = [
        [
            row["setting"],
            row["structure"],
            interval_text(row["mean"], row["ci_low"], row["ci_high"]),
            f"{row['n']:g}",
            interval_text(row["difference"], row["difference_ci_low"], row["difference_ci_high"], undefined=""),
        ]
        for row in table[table["metric"] == "dice"].to_dict("records")
    ]
    headers = ["setting", "structure", "Dice [interval]", "n", "difference to the first"]
    return text_table("ablation, convention worst", headers, rows)
