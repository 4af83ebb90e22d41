"""`medseg ablate`: a grid of real tiny runs, and the report over them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from phantoms import write_config, write_volume_set
from typer.testing import CliRunner

from medseg.core.errors import ConfigError, StageError
from medseg.core.files import write_text
from medseg.training import loop
from pipelines import ablate as module
from pipelines import prepare, report
from pipelines.ablate import ablate, cell_name, make_cells, read_variation, short_keys
from pipelines.cli import app

SETTINGS = {
    "structures": [{"name": "large", "id": 1}, {"name": "small", "id": 2}],
    "plan": {"patch_voxels": [16, 16, 8], "batch_size": 2, "workers": 1},
    "models": {"unet": {"features": [4, 8]}, "wide": {"architecture": "unet", "features": [6, 8]}},
    "training": {"epochs": 1, "steps_per_epoch": 3, "device": "cpu", "workers": 0},
    "evaluate": {"bootstrap_resamples": 100, "metrics": ["dice"]},
    "report": {"gallery_cases": 0, "pdf": False},
}
VARY = ["training.loss=dice_ce,dice", "training.augmentation.elastic.probability=0,0.3"]
NAMES = [f"loss={loss},elastic.probability={p}" for loss in ("dice_ce", "dice") for p in ("0", "0.3")]


@pytest.fixture(scope="module", autouse=True)
def _no_drawing():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "draw_training_curves", lambda log, path: path)
        patch.setattr(prepare, "draw_preview", lambda path, *_: path)
        patch.setattr(
            report, "write_report", lambda data, folder, config: _page(folder)
        )  # of the cells; theirs is tested elsewhere
        yield


def _page(folder: Path) -> Path:
    write_text(folder / "report.html", "a cell's report")
    return folder / "report.html"


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    """A finished grid of two losses with and without elastic deformation, on six test cases."""
    folder = tmp_path_factory.mktemp("ablate")
    path = write_config(folder, write_volume_set(folder, {"train": 3, "val": 1, "test": 6}), **SETTINGS)
    assert ablate(path, VARY) == 0
    return path


def test_every_cell_is_a_whole_run(study: Path) -> None:
    folder = study.parent / "run/ablate"
    for name in NAMES:
        assert (folder / name / "report/report.html").is_file() and (folder / name / "train/unet/model.medseg").is_file()
        assert f"loss: {name.split(',')[0].split('=')[1]}\n" in (folder / name / "config.yaml").read_text()


def test_the_table_holds_every_setting_against_the_first(study: Path) -> None:
    table = pd.read_csv(study.parent / "run/ablate/ablate.csv")
    assert table.setting.unique().tolist() == [f"{name}, {model}" for name in NAMES for model in ("unet", "wide")]
    assert len(table) == 4 * 2 * 2 and set(table.n) == {6} and set(table.metric) == {"dice"}
    assert table["training.augmentation.elastic.probability"].tolist() == ([0] * 4 + [0.3] * 4) * 2
    for model, rows in table.groupby("model"):
        of_setting = {name: rows[rows.setting == f"{name}, {model}"].set_index("structure") for name in NAMES}
        for name, ours in of_setting.items():
            measured = pd.read_csv(study.parent / "run/ablate" / name / "evaluate" / str(model) / "summary.csv")
            worst = measured[(measured.convention == "worst") & (measured.metric == "dice")].set_index("structure")
            assert (ours["mean"] == worst["mean"]).all() and (ours.ci_low == worst.ci_low).all()
        first = of_setting.pop(NAMES[0])  # against the same model of the first setting
        assert first.difference.isna().all()
        for ours in of_setting.values():
            assert (ours.difference - (ours["mean"] - first["mean"])).abs().max() < 1e-6
            assert (ours.difference_ci_low <= ours.difference).all() and (ours.difference <= ours.difference_ci_high).all()


def test_the_report_shows_all_of_them(study: Path) -> None:
    page = (study.parent / "run/ablate/report.html").read_text()
    for name in NAMES:
        assert name in page
    assert "Paired comparison" in page and "Training curves" in page


def test_cases_are_prepared_once(study: Path) -> None:
    arrays = {name: sorted((study.parent / "run/ablate" / name / "prepare/cases").rglob("*.npy")) for name in NAMES}
    assert arrays[NAMES[0]]
    for name in NAMES[1:]:
        assert [p.stat().st_ino for p in arrays[name]] == [p.stat().st_ino for p in arrays[NAMES[0]]]
        plan = study.parent / "run/ablate" / name / "prepare/plan.json"
        assert plan.stat().st_nlink == 1  # it may be edited


def test_a_second_time_nothing_is_trained(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = study.parent / "run/ablate"
    before = {p: p.stat().st_mtime_ns for p in folder.glob("*/train/**/*") if p.is_file()}
    assert ablate(study, VARY) == 0
    assert before == {p: p.stat().st_mtime_ns for p in folder.glob("*/train/**/*") if p.is_file()}
    heard = capsys.readouterr().err
    assert heard.count("train unet: unchanged, skipped") == 4 and "ablate: unchanged, skipped" in heard


def test_a_failing_cell_stops_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_config(tmp_path, write_volume_set(tmp_path, {"train": 2, "val": 1, "test": 1}), **SETTINGS)
    changes = ["training.steps_per_epoch=1", "models={unet: {features: [4, 8]}}"]
    assert ablate(path, ["training.loss=no_such_loss,dice,ce"], changes) == 1
    table = pd.read_csv(tmp_path / "run/ablate/ablate.csv")
    assert table.setting.unique().tolist() == ["loss=dice", "loss=ce"]
    assert table.difference.isna().all()  # the first setting is the baseline, and no other in its place
    heard = capsys.readouterr().err
    assert "ablate: loss=no_such_loss failed" in heard
    sentence = "No differences are given, for the first setting, loss=no_such_loss, failed."
    assert f"ablate: {sentence}" in heard and sentence in (tmp_path / "run/ablate/report.html").read_text()


def test_sharing_prepared_cases_survives_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that a kill left passes for whole, and the next call goes on."""
    path = write_config(tmp_path, write_volume_set(tmp_path, {"train": 2, "val": 1}), **SETTINGS)
    first, second = make_cells(path, [("training.loss", ["dice", "ce"])], [], tmp_path / "ablate")
    prepare.run(first.config)
    source, target = (cell.config.folder("prepare") for cell in (first, second))
    link = os.link
    for most in (2, 3, 5):
        left = iter(range(most))

        def killed(path: Path, place: Path, left: Iterator[int] = left) -> None:
            if next(left, None) is None:
                raise KeyboardInterrupt
            link(path, place)

        monkeypatch.setattr(os, "link", killed)
        with pytest.raises(KeyboardInterrupt):
            module._share_prepared(second, [first])
        assert all(len(list(marker.parent.iterdir())) == 4 for marker in target.glob("cases/*/case.json"))
        assert not (target / "stage.json").exists()
    monkeypatch.setattr(os, "link", link)
    module._share_prepared(second, [first])
    files = {p.relative_to(source): p.read_bytes() for p in source.rglob("*") if p.is_file()}
    assert {p.relative_to(target): p.read_bytes() for p in target.rglob("*") if p.is_file()} == files


def test_seeds_are_compared_on_the_same_cases(tmp_path: Path) -> None:
    """Also where the splits are drawn: of the manifest without them."""
    manifest = write_volume_set(tmp_path, {"": 12})
    path = write_config(tmp_path, manifest, **SETTINGS)
    cells = make_cells(path, [("seed", [0, 1])], [], tmp_path / "ablate")
    splits = [[case.split for case in cell.config.manifest().cases] for cell in cells]
    assert splits[0] == splits[1] and set(splits[0]) == {"train", "val", "test"}
    assert [cell.config.seed for cell in cells] == [0, 1]


def test_settings_that_measure_other_cases_are_not_held_against_each_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_config(tmp_path, write_volume_set(tmp_path, {"": 8}), **SETTINGS)
    changes = ["training.steps_per_epoch=1", "models={unet: {features: [4, 8]}}"]
    assert ablate(path, ["data.split_seed=0,1"], changes) == 0
    assert pd.read_csv(tmp_path / "run/ablate/ablate.csv").difference.isna().all()
    assert "No differences are given, for the settings measure different cases." in capsys.readouterr().err


def test_a_fault_in_one_cell_is_named(study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run = module.run_all

    def breaks(config: object) -> int:
        if "elastic.probability=0.3" in str(config.output):  # type: ignore[attr-defined]
            raise ZeroDivisionError("a fault") if "dice_ce" in str(config.output) else StageError("not today.")  # type: ignore[attr-defined]
        return run(config)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "run_all", breaks)
    assert ablate(study, VARY) == 1
    heard = capsys.readouterr().err
    assert "unexpected ZeroDivisionError: a fault" in heard and "failed: not today." in heard


@pytest.mark.parametrize(
    ("text", "key", "values"),
    [
        ("training.loss=dice,ce", "training.loss", ["dice", "ce"]),
        ("a.b=0,0.3,1e-3", "a.b", [0, 0.3, "1e-3"]),
        ("models.unet.features=[8, 16],[16, 32]", "models.unet.features", [[8, 16], [16, 32]]),
        ("folds=null,5", "folds", [None, 5]),
        ("x='a,b',true", "x", ["a,b", True]),
    ],
)
def test_values_are_read_as_yaml(text: str, key: str, values: list[object]) -> None:
    assert read_variation(text) == (key, values)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("loss", "write it as"),
        ("=a,b", "write it as"),
        ("a=1", "nothing to compare"),
        ("a=1,1", "stands twice"),
        ("a=[1,2", "YAML"),
    ],
)
def test_what_cannot_be_varied(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read_variation(text)


def test_names_are_short_and_can_be_folders(tmp_path: Path) -> None:
    keys = ["training.augmentation.elastic.probability", "training.loss", "seed"]
    assert list(short_keys(keys).values()) == ["elastic.probability", "loss", "seed"]
    keys = ["plan.workers", "training.workers"]
    assert short_keys(keys) == {key: key for key in keys}
    assert cell_name({"unet.features": [8, 16], "a.b": "x/../y"}) == "unet.features=_8_16,a.b=x_.._y"
    long = [cell_name({"k": "x" * 200 + end}) for end in "ab"]
    assert long[0] != long[1] and max(map(len, long)) < 100
    (tmp_path / "c.yaml").write_text("name: c\n")
    with pytest.raises(ConfigError, match="would share a folder"):
        make_cells(tmp_path / "c.yaml", [("name", ["a/b", "a:b"])], [], tmp_path)
    with pytest.raises(ConfigError, match="each key once"):
        make_cells(tmp_path / "c.yaml", [("name", ["a", "b"]), ("name", ["c", "d"])], [], tmp_path)
    with pytest.raises(ConfigError, match="unknown key `trainin`"):
        make_cells(tmp_path / "c.yaml", [("trainin.loss", ["a", "b"])], [], tmp_path)


def test_the_command_line(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["ablate", "--help"], env={"COLUMNS": "160", "TERM": "dumb"})
    assert result.exit_code == 0 and "--vary" in result.output
    with pytest.raises(ConfigError, match="nothing to compare"):
        (tmp_path / "c.yaml").write_text("name: c\n")
        CliRunner().invoke(app, ["ablate", str(tmp_path / "c.yaml"), "--vary", "seed=1"], catch_exceptions=False)
