from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys

import pandas as pd
import pytest
import typer
from reporting.phantom_run import TEST, write_picture_run

from medseg.core.errors import ConfigError, StageError
from medseg.core.files import file_sha256
from medseg.core.record import read_record
from pipelines import cli
from pipelines.config import RunConfig
from pipelines.report import report_folders, run


@pytest.fixture(scope="module")
def config_path(tmp_path_factory):
    return write_picture_run(tmp_path_factory.mktemp("run"))


@pytest.fixture
def quick(config_path):
    """The run without a gallery, which is most of the work."""
    return lambda *more: RunConfig.load(config_path, ["report.gallery_cases=0", *more])


def test_the_stage_says_where_the_report_is_and_is_skipped_when_nothing_changed(quick, capsys):
    config = quick()
    assert run(config, redo=True) == 0
    path = config.folder("report") / "report.html"
    assert f"report: {path}" in capsys.readouterr().err
    assert read_record(config.folder("report"))["counts"] == {"models": 2, "absent": 0}
    before = path.stat().st_mtime_ns
    assert run(config) == 0
    assert "unchanged, skipped" in capsys.readouterr().err and path.stat().st_mtime_ns == before


def test_a_changed_table_or_setting_makes_it_again(quick):
    run(quick())
    path = quick().folder("report") / "report.html"
    table = quick().folder("evaluate", "unet") / "summary.csv"
    text = table.read_text()
    before = path.stat().st_mtime_ns
    try:
        table.write_text(text + "\n")
        run(quick())
        after_table = path.stat().st_mtime_ns
        run(quick("report.title=Another"))
        assert before < after_table < path.stat().st_mtime_ns
        assert "<h1>Another</h1>" in path.read_text(encoding="utf-8")
    finally:
        table.write_text(text)


def test_a_clean_commit_of_the_training_is_named_and_a_dirty_one_is_not(quick):
    config = quick()
    records = [config.folder("train", model) / "stage.json" for model in config.model_names]
    texts = [path.read_text() for path in records]
    page = config.folder("report") / "report.html"
    run(config)
    assert f"medseg run {config.folder('config.yaml')}" in page.read_text(encoding="utf-8")
    assert "git checkout" not in page.read_text(encoding="utf-8")
    try:
        for path, text in zip(records, texts, strict=True):
            path.write_text(json.dumps(json.loads(text) | {"commit": "abcdef012345"}))
        run(config)  # the records are among what the report reads
        assert "git checkout abcdef012345\n" in page.read_text(encoding="utf-8")
    finally:
        for path, text in zip(records, texts, strict=True):
            path.write_text(text)


def test_test_cases_are_called_unseen_only_where_they_alone_were_predicted(quick):
    sentence, page = "Test cases were read only to predict", quick().folder("report") / "report.html"
    run(quick())
    assert sentence in page.read_text(encoding="utf-8")
    run(quick("predict.split=[val, test]"))
    assert sentence not in page.read_text(encoding="utf-8")


@pytest.fixture
def readers_folder(tmp_path):
    """What `medseg readers` writes of two readers who drew all test cases of the run, and one other."""
    band = {"structure": "nucleus", "metric": "dice", "unit": "", "n_readers": 2, "n_pairs": 1, "n": 9, "n_undefined": 0}
    band |= {"mean": 0.93, "ci_low": 0.91, "ci_high": 0.95, "lowest": 0.93, "highest": 0.93}
    folder = tmp_path / "two readers"
    folder.mkdir()
    pd.DataFrame([band]).to_csv(folder / "readers.csv", index=False)
    pd.DataFrame({"case_id": [*TEST, "other"], "readers": "ann;bob"}).to_csv(folder / "reader_cases.csv", index=False)
    return folder


def test_readers_are_shown_beside_the_models_of_a_run(quick, readers_folder, config_path):
    folder = quick().folder("report")
    run(quick())
    assert not (folder / "tables" / "readers.csv").exists()
    assert "between readers, beside" not in (folder / "report.html").read_text(encoding="utf-8")
    with pytest.raises(typer.Exit):
        cli.report([config_path], readers=readers_folder, assignments=["report.gallery_cases=0"])
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "Agreement between readers, beside the models." in page and "read 8 of the 8 evaluated cases, and 1 other." in page
    assert 'Bands of readers: Dice of nucleus: 2 readers, 9 cases: 0.930 [0.910 to 0.950].">' in re.sub(
        r'" width=[^>]*>', '">', page
    )
    assert list(pd.read_csv(folder / "tables" / "readers.csv")["model"]) == ["unet", "fcn8s"]
    before = (folder / "report.html").stat().st_mtime_ns
    run(quick(f"report.readers={readers_folder}"))
    assert (folder / "report.html").stat().st_mtime_ns == before
    table = readers_folder / "readers.csv"
    table.write_text(table.read_text().replace("0.91", "0.92"))
    run(quick(f"report.readers={readers_folder}"))
    assert (folder / "report.html").stat().st_mtime_ns > before


def test_readers_are_shown_beside_folders_and_stand_in_the_command(quick, readers_folder, tmp_path):
    path = report_folders([quick().folder("evaluate", "unet")], tmp_path / "out", readers_folder)
    page = path.read_text(encoding="utf-8")
    assert "Agreement between readers" in page and "two readers" in page[page.index("To repeat it") :]
    with pytest.raises(StageError, match=r"holds no readers\.csv"):
        report_folders([quick().folder("evaluate", "unet")], tmp_path / "out", tmp_path)


def test_options_that_would_do_nothing_are_refused(config_path, tmp_path):
    with pytest.raises(ConfigError, match="--output"):
        cli.report([config_path], output=tmp_path)
    for options in ({"assignments": ["report.title=x"]}, {"redo": True}):
        with pytest.raises(ConfigError, match="--set and --redo"):
            cli.report([tmp_path], **options)


def test_a_model_without_an_evaluation_is_named(quick):
    config = quick("models=[unet, fcn8s, fcn32s]")
    run(config)
    text = (config.folder("report") / "report.html").read_text(encoding="utf-8")
    assert "Not in this report:" in text and "fcn32s" in text


def test_without_any_evaluation_it_says_what_to_run(quick, tmp_path):
    with pytest.raises(StageError, match="run `medseg evaluate` first"):
        run(quick(f"output={tmp_path}"))
    assert not (tmp_path / "report").exists()


def test_figures_of_one_training_never_stand_beside_another(quick, config_path, tmp_path):
    """After `train --redo` without predict, or predict without evaluate, there is no report."""
    shutil.copytree(quick().output, tmp_path / "run")
    config = quick(f"output={tmp_path / 'run'}")
    model = config.folder("train", "unet", "model.medseg")
    record, table = config.folder("evaluate", "unet", "stage.json"), config.folder("predict", "unet", "predictions.csv")
    trained, measured = model.read_bytes(), json.loads(record.read_text())
    measured["inputs"]["predictions_csv"] = file_sha256(table)
    record.write_text(json.dumps(measured))
    assert run(config, redo=True) == 0
    model.write_bytes(b"another")
    with pytest.raises(StageError, match=r"was made by another model than .*unet holds now; run `medseg predict` first"):
        run(config, redo=True)
    model.unlink()
    with pytest.raises(StageError, match=r"holds no finished training; run `medseg train`, then `medseg predict`"):
        run(config, redo=True)
    (model.parent / "fold_0").mkdir()
    (model.parent / "fold_0" / "model.medseg").write_bytes(trained)
    assert run(config, redo=True) == 0
    table.write_text(table.read_text().replace("1.5", "1.6"))  # predicted again
    with pytest.raises(StageError, match=r"is of other predictions than .*; run `medseg evaluate` first"):
        run(config, redo=True)
    table.unlink()  # a prediction under way
    with pytest.raises(StageError, match=r"is of other predictions than .*; run `medseg predict` first"):
        run(config, redo=True)
    shutil.rmtree(config.folder("train"))
    assert run(config, redo=True) == 0


def test_the_schedules_of_folds_are_summed_up(quick, tmp_path):
    shutil.copytree(quick().output, tmp_path / "run")
    place = tmp_path / "run" / "train" / "unet"
    log, schedule = pd.read_csv(place / "log.csv"), json.loads((place / "schedule.json").read_text())
    for number, steps in enumerate((600, 550)):
        (place / f"fold_{number}").mkdir()
        log[: steps // 10].to_csv(place / f"fold_{number}" / "log.csv", index=False)
        written = schedule | {"steps": steps, "precision": ("bfloat16", "float32")[number]}
        (place / f"fold_{number}" / "schedule.json").write_text(json.dumps(written))
    (place / "schedule.json").unlink()
    config = quick(f"output={tmp_path / 'run'}")

    def row():
        run(config)
        page = config.folder("report", "report.html").read_text(encoding="utf-8")
        return [
            re.sub("<[^>]*>", "", text) for text in re.findall(r"<td.*?</td>", page) if " folds of " in text or "cpu " in text
        ]

    assert row()[:2] == ["2 folds of 550 to 600", "cpu bfloat16, cpu float32"]
    (place / "fold_1" / "schedule.json").write_text(json.dumps(schedule))
    assert row()[:2] == ["2 folds of 600", "cpu bfloat16"]


def test_an_unknown_channel_is_named(quick):
    with pytest.raises(ConfigError, match=r"no channel `t1` \(it has: image\)"):
        run(quick("report.channel=t1"))


def test_folders_must_be_folders(tmp_path):
    with pytest.raises(StageError, match="is no folder"):
        report_folders([tmp_path / "nothing"])


def test_the_report_of_a_run_folder_leaves_the_runs_own_report_alone(quick, config_path):
    folder = quick().output
    path = report_folders([folder])
    assert path == folder / "evaluate" / "report" / "report.html" and path.exists()


def test_a_report_loads_no_torch(config_path):
    code = (
        "import sys; from pathlib import Path; from pipelines.config import RunConfig; from pipelines.report import run; "
        f"run(RunConfig.load(Path({str(config_path)!r}), ['report.gallery_cases=0']), redo=True); "
        "sys.exit(bool({'torch', 'monai'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0
