"""A report in the place of an older one: nothing of the old one is left, nothing of the user's is gone, also after a kill."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from reporting.phantom_run import write_picture_run

from medseg.core.errors import StageError
from medseg.core.files import held_alone
from medseg.reporting.written import LIST, replaced
from pipelines.config import RunConfig
from pipelines.report import run

KILLED = """
import os, sys
from pathlib import Path
from medseg.reporting import written
moves, move, last = [], written._move, int(sys.argv[2])
def dying(source, target):
    if len(moves) == last:
        os._exit(9)
    moves.append(target)
    move(source, target)
written._move = dying
with written.replaced(Path(sys.argv[1])) as place:
    for name in ("a.txt", "figures/b.txt", "tables/c.txt", "report.html"):
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_text("of the killed one")
"""


def write(folder, **files):
    with replaced(folder) as place:
        for name, text in files.items():
            path = place / name.replace("__", "/").replace("_", ".")
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)


def present(folder):
    found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    return found - {LIST, ".lock"}


def test_what_is_no_longer_said_goes_and_what_others_put_there_stays(tmp_path):
    write(tmp_path, report_html="1", figures__a_png="1", figures__b_png="1", tables__t_csv="1")
    (tmp_path / "figures" / "mine.png").write_text("mine")
    (tmp_path / "notes.txt").write_text("mine")
    write(tmp_path, report_html="2", figures__b_png="2")
    assert present(tmp_path) == {"report.html", "figures/b.png", "figures/mine.png", "notes.txt"}
    assert (tmp_path / "figures" / "b.png").read_text() == "2" and not (tmp_path / "tables").exists()


def test_a_file_that_was_changed_since_is_the_users_and_stays(tmp_path):
    write(tmp_path, tables__a_tex="ours", tables__b_tex="ours")
    (tmp_path / "tables" / "a.tex").write_text("edited for the paper")
    write(tmp_path, report_html="2")
    assert present(tmp_path) == {"report.html", "tables/a.tex"}


def test_a_list_that_names_files_elsewhere_removes_none(tmp_path):
    folder = tmp_path / "report"
    write(folder, a_txt="")
    (tmp_path / "precious.txt").write_text("")
    listed = json.loads((folder / LIST).read_text())
    listed["files"] |= dict.fromkeys(("../precious.txt", str(tmp_path / "precious.txt")), listed["files"]["a.txt"])
    (folder / LIST).write_text(json.dumps(listed))
    write(folder, b_txt="")
    assert present(tmp_path) == {"precious.txt", "report/b.txt", f"report/{LIST}", "report/.lock"}


def test_where_a_report_fails_the_older_one_stands(tmp_path):
    write(tmp_path, report_html="1")
    with pytest.raises(ZeroDivisionError), replaced(tmp_path) as place:
        (place / "report.html").write_text("2")
        raise ZeroDivisionError
    assert present(tmp_path) == {"report.html"} and (tmp_path / "report.html").read_text() == "1"


def test_the_pdf_of_a_version_without_a_list_goes(tmp_path):
    (tmp_path / "report.pdf").write_text("of other figures")
    write(tmp_path, report_html="1")
    assert present(tmp_path) == {"report.html"}


def test_two_reports_do_not_write_into_one_folder_at_once(tmp_path):
    with held_alone(tmp_path, "a report"), pytest.raises(StageError, match="another process is at a report"):
        write(tmp_path, a_txt="")


@pytest.mark.parametrize("moves", [0, 1, 2, 3])
def test_after_a_kill_the_next_report_knows_what_it_may_remove(tmp_path, moves):
    write(tmp_path, old_txt="1", report_html="1", figures__b_txt="1")
    (tmp_path / "mine.txt").write_text("mine")
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), str(moves)], capture_output=True, text=True, check=False)
    assert done.returncode == 9, done.stderr
    assert (tmp_path / "report.html").read_text() == "1"  # the page comes last
    write(tmp_path, report_html="3", new_txt="3")
    assert present(tmp_path) == {"report.html", "new.txt", "mine.txt"} and not (tmp_path / ".new").exists()


def test_a_report_with_fewer_models_and_pictures_holds_only_what_it_says(tmp_path):
    path = write_picture_run(tmp_path)
    folder = tmp_path / "run" / "report"
    assert run(RunConfig.load(path, ["report.pdf=false"])) == 0
    before = present(folder)
    (folder / "figures" / "mine.svg").write_text("mine")
    assert run(RunConfig.load(path, ["report.pdf=false", "models=[unet]", "report.gallery_cases=0"])) == 0
    after = present(folder)
    assert {"figures/mine.svg", "report.html", "stage.json"} <= after < before | {"figures/mine.svg"}
    assert any("fcn8s" in name for name in before) and not any("fcn8s" in name or "_worst_" in name for name in after)
    assert set(json.loads((folder / LIST).read_text())["files"]) == after - {"figures/mine.svg", "stage.json"}
