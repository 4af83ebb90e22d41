"""The plan of each shipped data set with its reasons, as the page docs/plans.md.

    python benchmarks/plans.py --root hippocampus=data/hippocampus --root brats=data/brats > docs/plans.md

Derived with nothing stated of patch, batch or widths, for two kinds of machine. Data sets without `--root` are taken from where
`medseg fetch` puts them; those that are not there are left out, and standard error says so.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from medseg.core.manifest import Case
from medseg.models.registry import parse_models
from medseg.planning.cases import MeasureCase, together
from medseg.planning.config import PlanConfig
from medseg.planning.edited import values_of
from medseg.planning.fingerprint import Fingerprint
from medseg.planning.machine import FLOAT32_GFLOPS, Granted
from medseg.planning.plan import Plan, make_plan
from pipelines.config import RunConfig

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
DATA_SETS = ("hippocampus", "brats", "isbi2012", "nuclei", "quickstart")
MACHINES = {
    "two CPU cores": Granted(cores=2, core_gflops=FLOAT32_GFLOPS, minutes=10, memory_gb=10),
    "a GPU": Granted(device="gpu", memory_gb=10),
}
MODELS = parse_models({"unet": {}, "fcn8s": {}}, "models")
NAMES = "XYZ"
HEAD = """# The plan of each shipped data set

Written by `benchmarks/plans.py`: what the rules of [self-configuration](self_configuration.md) derive where nothing is stated
(`plan: {}`, `models: {unet: {}, fcn8s: {}}`), on two CPU cores in float32 with 10 minutes a model, and on a GPU; 10 GB on both.
The shipped configurations state what a run was tuned by hand for, so theirs differ."""


def fingerprint_of(config: RunConfig, cases: list[Case]) -> Fingerprint:
    with tempfile.TemporaryDirectory() as folder:
        measure = MeasureCase(Path(folder), config.labels, config.data.spacing_mm, {case.case_id: [] for case in cases})
        return together([measure(case) for case in cases])


def plan_of(config: RunConfig, fingerprint: Fingerprint, granted: Granted) -> Plan:
    models = {n: {"architecture": m.architecture, "options": m.options.model_dump(mode="json")} for n, m in MODELS.items()}
    channels, modality = config.manifest().channels, config.data.modality
    return make_plan(fingerprint, PlanConfig(), config.labels, channels, modality, models, granted)  # type: ignore[arg-type]


def row(name: str, machine: str, plan: Plan) -> list[str]:
    spacing = plan.preprocessing.spacing
    return [
        name,
        machine,
        "own pixels" if spacing is None else " x ".join(f"{size:g}" for size in spacing) + " mm",
        " x ".join(map(str, plan.patch_voxels)),
        str(plan.batch_size),
        ", ".join(NAMES[axis] for axis in plan.flips) or "none",
        ", ".join(map(str, plan.models["unet"]["options"]["features"])),
        f"{plan.models['fcn8s']['options']['width']:g}",
    ]


def table(heads: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [heads, ["---"] * len(heads), *rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", action="append", default=[], metavar="NAME=DIR", help="where a data set lies; may be repeated")
    roots = dict(text.split("=", 1) for text in parser.parse_args().root)
    rows, sections = [], []
    for name in DATA_SETS:
        config = RunConfig.load(CONFIGS / f"{name}.yaml", [f"data.root={roots[name]}"] if name in roots else [])
        cases = config.manifest().of("train")
        if not all(path.is_file() for case in cases for path in case.images):
            print(f"{name}: not at {config.data.root}; left out", file=sys.stderr)
            continue
        fingerprint = fingerprint_of(config, cases)
        for machine, granted in MACHINES.items():
            plan = plan_of(config, fingerprint, granted)
            rows.append(row(name, machine, plan))
            reasons = [[f"`{key}`", plan.reasons[key]] for key in values_of(plan) if key in plan.reasons]
            sections.append(f"## {name}, on {machine}\n\n{table(['value', 'reason'], reasons)}")
    heads = ["data set", "on", "voxels", "patch", "batch", "mirrored along", "U-Net features", "FCN width"]
    print("\n\n".join([HEAD, table(heads, rows), *sections]))


if __name__ == "__main__":
    main()
