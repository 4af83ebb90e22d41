"""The command line. Stages are imported when they run, so that help and errors answer at once."""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

import medseg
from medseg.core.errors import MedsegError

app = typer.Typer(
    name="medseg",
    help="Medical and biomedical image segmentation, from scans to a report. For research use.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

Config = Annotated[Path, typer.Argument(help="A configuration file, such as configs/quickstart.yaml.", show_default=False)]
Set = Annotated[
    list[str] | None, typer.Option("--set", help="Override a setting: key.path=value. May be repeated.", metavar="KEY=VALUE")
]
Margin = Annotated[
    list[str] | None,
    typer.Option("--margin", help="How much worse is still not inferior. May be repeated.", metavar="METRIC=VALUE"),
]
Redo = Annotated[bool, typer.Option("--redo", help="Do it again although nothing changed.")]
Output = Annotated[Path | None, typer.Option("--output", help="Folder to write to.", show_default=False)]


def _stage(name: str, config: Path, assignments: list[str] | None, redo: bool) -> None:
    from pipelines.config import RunConfig

    loaded = RunConfig.load(config, assignments)
    code = importlib.import_module(f"pipelines.{name}").run(loaded, redo=redo)
    if name in ("prepare", "train") and os.environ.get("RANK", "0") == "0":  # torchrun starts several of us; one writes
        loaded.save()  # after the stage has accepted it: the folder's results and its configuration belong together
    raise typer.Exit(code)


def _call(module: str, function: str, *arguments: Any, **options: Any) -> Any:
    return getattr(importlib.import_module(f"pipelines.{module}"), function)(*arguments, **options)


@app.command()
def run(
    config: Config,
    assignments: Set = None,
    redo: Annotated[list[str] | None, typer.Option("--redo", help="A stage to do again, such as train.", metavar="STAGE")] = None,
) -> None:
    """All stages: check, prepare, train, predict, evaluate, report; what is done is skipped."""
    from medseg.core.errors import ConfigError
    from pipelines.config import RunConfig
    from pipelines.run import STAGES
    from pipelines.run import run as run_all

    if unknown := [stage for stage in redo or [] if stage not in STAGES]:
        raise ConfigError(f"--redo {unknown[0]}: no such stage (known: {', '.join(STAGES)}).")
    raise typer.Exit(run_all(RunConfig.load(config, assignments), tuple(redo or ())))


@app.command()
def check(config: Config, assignments: Set = None, redo: Redo = False) -> None:
    """Find everything that is wrong with a configuration and its data, in one pass."""
    raise typer.Exit(_call("check", "check", config, assignments, redo))


@app.command()
def prepare(config: Config, assignments: Set = None, redo: Redo = False) -> None:
    """Measure the training cases, plan, and store them as the network will see them."""
    _stage("prepare", config, assignments, redo)


@app.command()
def train(config: Config, assignments: Set = None, redo: Redo = False) -> None:
    """Train each model of the configuration; an interrupted training goes on where it stopped."""
    _stage("train", config, assignments, redo)


@app.command()
def predict(config: Config, assignments: Set = None, redo: Redo = False) -> None:
    """Segment the test cases with each model."""
    _stage("predict", config, assignments, redo)


@app.command()
def evaluate(
    config: Annotated[
        Path | None, typer.Argument(help="A configuration file; or none, with the two folders.", show_default=False)
    ] = None,
    predictions: Annotated[Path | None, typer.Option(help="Folder of masks made by any tool.", show_default=False)] = None,
    references: Annotated[Path | None, typer.Option(help="Folder of reference masks.", show_default=False)] = None,
    output: Output = None,
    labels: Annotated[
        Path | None, typer.Option(help="What the masks' values mean: labels.yaml, or nnU-Net's dataset.json.", show_default=False)
    ] = None,
    cases: Annotated[
        Path | None, typer.Option(help="Table of the cases: case_id, patient_id, other columns.", show_default=False)
    ] = None,
    resample: Annotated[
        str | None, typer.Option(help="nearest: masks on other voxels than the reference's are resampled.", show_default=False)
    ] = None,
    assignments: Set = None,
    redo: Redo = False,
) -> None:
    """Measure predictions against references: of a run, or of two folders of masks made by any tool."""
    from medseg.core.errors import ConfigError

    folders = (predictions, references, output)
    stated = [*(assignments or []), *([f"evaluate.resample={resample}"] if resample else [])]
    if config is not None:
        if any((*folders, labels, cases)):
            raise ConfigError("give a configuration or the folders --predictions, --references and --output, not both.")
        _stage("evaluate", config, stated, redo)
    if not all(folders):
        raise ConfigError("give a configuration, or all of --predictions, --references and --output.")
    raise typer.Exit(_call("evaluate_folders", "evaluate_folders", *folders, labels, cases, stated, redo=redo))


@app.command()
def report(
    paths: Annotated[
        list[Path], typer.Argument(help="A configuration file, or folders of finished evaluations.", show_default=False)
    ],
    output: Output = None,
    readers: Annotated[
        Path | None,
        typer.Option(help="A folder of `medseg readers`: their agreement is shown beside the models.", show_default=False),
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder of the images, for pictures of evaluated folders.", show_default=False)
    ] = None,
    margin: Margin = None,
    assignments: Set = None,
    redo: Redo = False,
) -> None:
    """Write the HTML report of a run, or of finished evaluations."""
    from medseg.core.errors import ConfigError
    from pipelines.compare import parse_margins

    if len(paths) == 1 and paths[0].suffix in (".yaml", ".yml"):
        if output:
            raise ConfigError("--output is for folders of evaluations; the report of a configuration stands in its run folder.")
        if images:
            raise ConfigError("--images is for folders of evaluations; the manifest of a configuration names its images.")
        if margin:
            raise ConfigError("--margin is for folders of evaluations; say `evaluate.non_inferiority_margin` in a configuration.")
        stated = [f"report.readers={json.dumps(str(readers))}"] if readers else []
        _stage("report", paths[0], [*(assignments or []), *stated], redo)
    if assignments or redo:
        raise ConfigError("--set and --redo are for a configuration; a report over folders is always made anew.")
    _call("report", "report_folders", paths, output, readers, images, parse_margins(margin or []))


@app.command()
def segment(
    models: Annotated[
        list[Path],
        typer.Argument(help="A model file, or several files or folders of folds that answer together.", show_default=False),
    ],
    input: Annotated[Path, typer.Argument(help="A scan, or a folder of scans (DICOM too).", show_default=False)],
    output: Annotated[Path, typer.Argument(help="Folder for masks, predictions.csv, volumes.csv, qc.csv.", show_default=False)],
    output_format: Annotated[str, typer.Option(help="same (the scan's own; for DICOM NIfTI), dicom-seg or rtstruct.")] = "same",
    probabilities: Annotated[bool, typer.Option("--probabilities", help="Write the structures' probabilities too.")] = False,
    keep_identifiers: Annotated[
        bool, typer.Option("--keep-identifiers", help="Name DICOM cases after patients, not by pseudonyms.")
    ] = False,
    linkage: Annotated[Path | None, typer.Option(help="Write here which pseudonym is which patient.", show_default=False)] = None,
    overlap: Annotated[float, typer.Option(help="How much neighbouring windows overlap, 0 to below 1.")] = 0.5,
    mirror: Annotated[
        bool, typer.Option("--mirror", "--tta", help="Average over mirrored views: slower, a little better.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    runtime: Annotated[str, typer.Option(help="auto, torch or openvino.")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = "auto",
    batch: Annotated[int | None, typer.Option(help="Windows at once.", show_default=False)] = None,
    workers: Annotated[int, typer.Option(help="Scans at once, each in a process of its own.")] = 1,
    all_windows: Annotated[bool, typer.Option("--all-windows", help="Look at windows too that hold nothing but air.")] = False,
    spacing_mm: Annotated[
        tuple[float, float, float] | None,
        typer.Option(help="Voxel size X Y Z of files that state none.", show_default=False),
    ] = None,
    redo: Redo = False,
) -> None:
    """Segment every scan in a folder; a scan that cannot be segmented is a row that says why."""
    options: dict[str, Any] = {"output_format": output_format, "probabilities": probabilities, "skip_air": not all_windows}
    options |= {"overlap": overlap, "mirror": mirror, "device": device, "runtime": runtime, "precision": precision}
    options |= {"batch": batch, "workers": workers, "spacing_mm": spacing_mm, "redo": redo}
    options |= {"keep_identifiers": keep_identifiers, "linkage": linkage}
    raise typer.Exit(_call("segment", "segment", models, input, output, **options))


@app.command()
def export(
    model: Annotated[
        Path, typer.Argument(help="A model file, or the training folder of a cross-validation.", show_default=False)
    ],
    format: Annotated[str, typer.Option(help="onnx.")] = "onnx",
    output: Annotated[
        Path | None, typer.Option(help="The file to write; by default beside the model.", show_default=False)
    ] = None,
) -> None:
    """Write a model's networks for other programs, as ONNX files that onnxruntime runs."""
    raise typer.Exit(_call("export", "export", model, format, output))


@app.command()
def ablate(
    config: Config,
    vary: Annotated[
        list[str],
        typer.Option("--vary", help="Values of a setting: key.path=a,b, read as YAML. May be repeated.", metavar="KEY=A,B"),
    ],
    assignments: Set = None,
) -> None:
    """Run every combination of some settings, and compare them with the first in one report."""
    raise typer.Exit(_call("ablate", "ablate", config, vary, assignments or []))


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, or folders holding per_case.csv.", show_default=False)],
    margin: Margin = None,
    output: Output = None,
) -> None:
    """Compare models on the same cases, case by case; three and more are ranked."""
    from pipelines.compare import parse_margins

    raise typer.Exit(_call("compare", "compare", runs, output, parse_margins(margin or [])))


@app.command()
def readers(
    folders: Annotated[list[str], typer.Argument(help="Each reader's masks, NAME=DIR.", metavar="NAME=DIR...")],
    output: Annotated[Path, typer.Option("--output", help="Folder for readers.csv and the consensus.")] = Path("readers"),
    labels: Annotated[Path | None, typer.Option(help="What the masks' values mean (labels.yaml).", show_default=False)] = None,
    consensus: Annotated[
        str | None, typer.Option(help="Also make one reference of all: majority or staple.", show_default=False)
    ] = None,
    cases: Annotated[Path | None, typer.Option(help="Table of the cases: case_id, patient_id.", show_default=False)] = None,
) -> None:
    """How far several readers agree, and one reference made of all of them."""
    from pipelines.readers import parse_readers

    raise typer.Exit(_call("readers", "readers", parse_readers(folders), output, labels, consensus, cases=cases))


@app.command("cases-needed")
def cases_needed(
    evaluation: Annotated[Path | None, typer.Argument(help="A pilot: a folder with per_case.csv.", show_default=False)] = None,
    width: Annotated[float, typer.Option(help="Of the whole interval, in the metric's unit.")] = 0.1,
    sd: Annotated[
        float | None, typer.Option(help="Standard deviation between patients, in place of a pilot.", show_default=False)
    ] = None,
    metric: Annotated[str, typer.Option(help="A metric or a column of per_case.csv.")] = "dice",
    confidence: Annotated[float, typer.Option(help="Of the interval.")] = 0.95,
    output: Annotated[Path | None, typer.Option(help="CSV to write the table to.", show_default=False)] = None,
) -> None:
    """How many patients give a mean an interval of a wished width."""
    raise typer.Exit(
        _call(
            "cases_needed",
            "cases_needed",
            evaluation,
            width=width,
            sd=sd,
            metric=metric,
            confidence=confidence,
            output=output,
        )
    )


@app.command()
def manifest(
    images: Annotated[Path, typer.Argument(help="Folder of scans.")],
    labels: Annotated[Path, typer.Argument(help="Folder of reference masks.")],
    output: Annotated[Path, typer.Option("--output", help="The CSV to write.")] = Path("manifest.csv"),
) -> None:
    """Write a manifest CSV from a folder of scans and a folder of labels."""
    raise typer.Exit(_call("manifest", "manifest", images, labels, output))


@app.command()
def fetch(
    name: Annotated[str, typer.Argument(help="nuclei-sample or hippocampus.")],
    archive: Annotated[Path | None, typer.Option(help="A copy of the archive on disk.", show_default=False)] = None,
    output: Output = None,
) -> None:
    """Bring a public data set."""
    _call("fetch", "fetch", name, archive=archive, output=output)


@app.command()
def doctor() -> None:
    """Say what this machine has, what would be slow, and what is missing."""
    _call("doctor", "doctor")


def _version(value: bool) -> None:
    if value:
        print(f"medseg {medseg.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")] = False,
) -> None:
    pass


def main() -> None:
    """Entry point: a user's mistake is one sentence and exit code 2; Ctrl-C is 130."""
    # How long threads that wait for each other spin before they sleep. With libgomp's own 300,000 turns a training step became
    # up to 13 times slower where another process wanted a core; with 10,000 it stays under 3, and loses little where it is alone.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    try:
        app()
    except MedsegError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on.", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
