"""`medseg run`: every stage in its order, skipping what is done."""

from __future__ import annotations

import importlib
import time

from medseg.core.progress import say
from pipelines.config import RunConfig
from pipelines.fetch import bring_if_missing

STAGES = ("check", "prepare", "train", "predict", "evaluate", "report")


def run(config: RunConfig, redo: tuple[str, ...] = ()) -> int:
    """Run all stages; a stage that could not use some cases is reported at the end and the others go on.

    Args:
        redo: stages to do again although nothing changed.
    Returns: 0 where all cases came through, 1 where some failed, 2 where a stage could not run.
    """
    start = time.monotonic()
    worst = 0
    bring_if_missing(config)
    for number, stage in enumerate(STAGES, start=1):
        say(f"── {number}/{len(STAGES)} {stage} " + "─" * (60 - len(stage)))
        code = importlib.import_module(f"pipelines.{stage}").run(config, redo=stage in redo)
        if code == 2:
            return 2
        worst = max(worst, code)
        if stage == "train":
            config.save()  # now that no training was refused: the folder's results and its configuration belong together
    minutes, seconds = divmod(round(time.monotonic() - start), 60)
    say(f"── done in {minutes} min {seconds:02d} s " + "─" * 45)
    say(f"report: {config.folder('report') / 'report.html'}")
    for model in config.model_names:
        say(f"tables: {config.folder('evaluate', model)}/per_case.csv, summary.csv")
    if len(config.model_names) > 1:
        say(f"models side by side: {config.folder('evaluate')}/comparison.csv, comparison_summary.csv")
    return worst
