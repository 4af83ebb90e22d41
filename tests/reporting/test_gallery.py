"""The gallery: which cases it shows, how it shows them, and its slices in a browser."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from reporting.phantom_run import FAILED, HOSTILE, MISSED, MODELS, write_picture_run, write_volume_run

from medseg.core.grid import Grid
from medseg.core.labels import LabelScheme
from medseg.core.volume import Volume
from medseg.drawing.scene import set_scene
from medseg.drawing.windows import BONE, LUNG, SOFT_TISSUE
from medseg.reporting import gallery
from medseg.reporting.anchors import case_anchor, row_anchor
from medseg.reporting.cards import MOST_PLANES_BYTES, stands_for
from medseg.reporting.collect import Facts, ModelResults, ReportData
from medseg.reporting.config import ReportConfig
from medseg.reporting.gallery import ct_limits, focus_classes
from medseg.reporting.picks import Pick, case_scores, choose_cases, lacking_cases, pick_cases
from pipelines.config import RunConfig
from pipelines.report import run


def rows(*statuses, structure="a", dice=0.9, volumes=None):
    """One row a case: c0, c1, ...; `volumes` of the reference and of the prediction alike."""
    return [
        {"case_id": f"c{i}", "patient_id": "", "structure": structure, "dice": dice if s == "ok" else math.nan, "status": s}
        | ({} if volumes is None else {"reference_volume_ml": volumes[i], "predicted_volume_ml": volumes[i]})
        for i, s in enumerate(statuses)
    ]


def model(per_case, **more):
    return ModelResults("unet", pd.DataFrame(per_case), pd.DataFrame(), **more)


def report(results):
    return ReportData("run", Facts(), (results,))


def test_missed_and_failed_cases_are_bad_cases():
    per_case = rows("ok", "prediction_missing", "both_empty", "ok", "ok") + rows(
        "prediction_empty", "prediction_missing", "ok", "ok", "ok", structure="b"
    )
    assert case_scores(model(per_case)).round(3).to_dict() == {"c0": 0.45, "c1": 0.0, "c2": 0.95, "c3": 0.9, "c4": 0.9}


def test_a_structure_in_neither_mask_is_no_case_of_that_structure():
    scores = case_scores(model(rows("ok", "both_empty", "prediction_missing", "reference_empty")), "a")
    assert scores.to_dict() == {"c2": 0.0, "c3": 0.0, "c0": 0.9}


def test_of_cases_that_are_as_bad_the_one_with_most_to_find_is_the_worst():
    per_case = rows("prediction_empty", "prediction_empty", "ok", volumes=[1, 30, 5])
    assert list(case_scores(model(per_case), "a").index) == ["c1", "c0", "c2"]


def test_a_case_without_a_readable_reference_is_not_the_worst_case():
    measured = pd.DataFrame({"case_id": ["c0", "c1"], "diagonal_mm": [9.0, math.nan]})
    assert list(case_scores(model(rows("ok", "unreadable"), cases=measured)).index) == ["c0"]


def test_worst_median_and_best_are_different_cases():
    scores = pd.Series({f"c{i}": i / 10 for i in range(9)})
    assert [(p.kind, p.case_id) for p in choose_cases(scores, 1)] == [("worst", "c0"), ("median", "c4"), ("best", "c8")]
    assert [p.case_id for p in choose_cases(scores, 2)] == ["c0", "c1", "c3", "c4", "c8", "c7"]


@pytest.mark.parametrize(("n", "kinds"), [(0, []), (1, ["worst"]), (2, ["worst", "best"]), (3, ["worst", "median", "best"])])
def test_few_cases_are_shown_once_and_the_worst_first_of_all(n, kinds):
    scores = pd.Series({f"c{i}": i / 10 for i in range(n)}, dtype=float)
    picks = choose_cases(scores, 1)
    assert [p.kind for p in picks] == kinds and len({p.case_id for p in picks}) == n


def test_the_largest_missed_and_false_structures_are_shown():
    statuses = ("prediction_empty", "prediction_empty", "reference_empty", "reference_empty", "ok", "prediction_missing")
    results = model(rows(*statuses, volumes=[2, 9, 4, 1, 50, math.nan]))
    assert [(p.kind, p.case_id) for p in lacking_cases(results, "a", 1)] == [("missed", "c1"), ("false positive", "c2")]
    assert len(lacking_cases(results, "a", 5)) == 4


def test_a_case_is_drawn_once_with_all_that_it_stands_for():
    per_case = rows("prediction_missing", "ok", "ok") + rows("prediction_missing", "ok", "reference_empty", structure="b")
    choice = pick_cases(report(model(per_case)), model(per_case), 1, 10)
    assert not choice.left_out and list(choice.cases) == ["c0", "c2", "c1"]
    assert [(p.kind, p.structure) for p in choice.cases["c0"]] == [("worst", ""), ("worst", "a"), ("worst", "b")]
    assert ("false positive", "b") in [(p.kind, p.structure) for p in choice.cases["c2"]]
    assert stands_for(choice.cases["c0"], True) == [("worst", "the mean over structures, a, b")]
    assert stands_for(choice.cases["c0"], False) == [("worst", "")]


def test_a_thousand_cases_of_twenty_structures_are_as_many_pictures_as_allowed():
    rng = np.random.default_rng(0)
    per_case = pd.DataFrame(
        {
            "case_id": np.repeat([f"c{i}" for i in range(1000)], 20),
            "structure": [f"s{i}" for i in range(20)] * 1000,
            "dice": rng.uniform(0, 1, 20_000),
            "status": "ok",
        }
    )
    per_case.loc[rng.choice(20_000, 2000, replace=False), ["status", "dice"]] = ["prediction_empty", math.nan]
    choice = pick_cases(report(model(per_case)), model(per_case), 2, 24)
    assert len(choice.cases) == 24 and choice.left_out > 24
    least = min(len(picks) for picks in choice.cases.values())
    assert least >= 1 and max(len(picks) for picks in choice.cases.values()) > 1


def test_anchors_are_plain_and_tell_cases_apart():
    for name in (HOSTILE, "p 07", "p.07", "", "Ä", "../x", '"'):
        assert re.fullmatch(r"case\.unet\.[A-Za-z0-9_-]+", case_anchor("unet", name))
    names = ["a b", "a-b", "a.b", "a/b", "ä b", ""]
    assert len({row_anchor("m", name, "s") for name in names}) == len(names)
    assert row_anchor("a", "b", "c.d") != row_anchor("a", "b.c", "d")
    assert row_anchor("unet", "p_07", "liver") == "row.unet.p_07.liver"


LABELS = LabelScheme.model_validate(
    {
        "structures": [{"name": n, "id": i} for i, n in enumerate(("core", "rim"), 1)],
        "regions": [
            {"name": "whole", "structures": ["core", "rim"], "written_as": "rim"},
            {"name": "core", "structures": ["core"]},
        ],
    }
)


@pytest.mark.parametrize(
    ("picks", "classes"),
    [
        ([("worst", "core")], [1]),
        ([("worst", "whole"), ("best", "core")], [1, 2]),
        ([("worst", "whole"), ("missed", "core")], [1]),  # what was missed is what one wants to see
        ([("worst", "")], []),
        ([("worst", "of another tool")], []),
    ],
)
def test_the_planes_go_through_what_the_case_stands_for(picks, classes):
    assert focus_classes([Pick(kind, "c", 0.0, structure) for kind, structure in picks], LABELS) == classes


FIXED = {"kind": "fixed", "low": -17.0, "high": 201.0}


@pytest.mark.parametrize(
    ("rule", "air", "inside", "limits"),
    [
        (FIXED, -1000, 90, SOFT_TISSUE),
        (FIXED, -1000, 600, BONE),
        (FIXED, -1000, -780, LUNG),
        (FIXED, 0, 90, (-17.0, 201.0)),  # nothing lies in air or fat: a fixed scale of something else
        ({"kind": "case"}, -1000, 90, None),
        ({}, -1000, 90, None),
        ({}, -1000, 600, BONE),  # no plan is known, but only a CT holds air and bone
    ],
)
def test_only_a_ct_has_a_window_of_tissue(rule, air, inside, limits):
    array, classes = np.full((1, 9, 9, 9), air, np.float32), np.zeros((9, 9, 9), np.uint8)
    classes[3:6, 3:6, 3:6] = 1
    array[0][classes == 1] = inside
    assert ct_limits(set_scene(Volume(array, Grid((9, 9, 9), np.eye(4))), classes, None), [1], rule) == limits


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The report of a run of two models, with patients' identifiers in its tables and how often each scan was read."""
    root = tmp_path_factory.mktemp("gallery")
    config = write_volume_run(root)
    for name in MODELS:
        path = root / "run" / "evaluate" / name / "per_case.csv"
        table = pd.read_csv(path)
        path.write_text(table.assign(patient_id="PATIENT_" + table["case_id"]).to_csv(index=False), encoding="utf-8")
    reads: list[str] = []
    true_read = gallery.read_channels
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gallery, "read_channels", lambda paths, **more: reads.append(str(paths[0])) or true_read(paths, **more))
        assert run(RunConfig.load(config, ["report.pdf=false"]), redo=True) == 0
    folder = root / "run" / "report"
    return SimpleNamespace(text=(folder / "report.html").read_text(encoding="utf-8"), folder=folder, reads=reads)


def figures_of(text):
    return re.findall(r'<figure class="case[^"]*" id="([^"]+)">(.*?)</figure>', text, flags=re.DOTALL)


def test_each_scan_is_read_once_for_both_models(written):
    found = [name for name, _ in figures_of(written.text)]
    assert len(set(written.reads)) == len(written.reads) < len(found)


def test_every_kind_is_named_and_the_missed_structure_has_its_picture(written):
    found = dict(figures_of(written.text))
    missed = found[case_anchor("fcn8s", MISSED)]
    assert "<b>missed</b> Posterior &lt;b&gt;" in missed
    assert any("<b>worst</b>" in f for f in found.values()) and any("<b>best</b>" in f for f in found.values())
    failed = found[case_anchor("unet", FAILED)]
    assert "the mean over structures, Anterior, Posterior" in failed and "the file is truncated" in failed


def test_pictures_and_rows_are_linked_both_ways(written):
    ids = re.findall(r'\bid="([^"]+)"', written.text)
    links = set(re.findall(r'href="#(row\.[^"]+)"', written.text))
    assert links and links <= set(ids) and len(ids) == len(set(ids))
    cards = {name for name, _ in figures_of(written.text)}
    assert cards <= set(re.findall(r'data-picture="([^"]+)"', written.text))


def test_patients_are_not_named(written):
    assert not any("PATIENT_" in body for _, body in figures_of(written.text))


def test_pictures_are_small_and_stand_as_files_too(written):
    for _, body in figures_of(written.text):
        planes = re.search(r'<img class="planes" src="data:image/webp;base64,([^"]+)"', body)[1]
        assert len(planes) <= MOST_PLANES_BYTES * 4 / 3 + 4
    files = sorted((written.folder / "figures").glob("unet_worst_0.*"))
    assert [f.suffix for f in files] == [".png", ".svg"]
    with Image.open(files[0]) as drawn:
        assert drawn.info["dpi"] == pytest.approx((300, 300), abs=0.1) and drawn.width > 1500


def test_slices_have_words_for_every_frame(written):
    for _, body in figures_of(written.text):
        labels = json.loads(re.search(r"data-labels='([^']+)'", body)[1])
        n, start = map(int, re.search(r"--n: (\d+); --i: (\d+)", body).groups())
        assert len(labels) == n == 20 and labels[start] in body and labels[0] == "Axial slice 2 of 22 from below"


def test_a_limit_of_pictures_is_kept_and_said(tmp_path):
    assert (
        run(
            RunConfig.load(
                write_picture_run(tmp_path), ["report.pdf=false", "report.gallery_cases=4", "report.gallery_pictures=2"]
            )
        )
        == 0
    )
    text = (tmp_path / "run" / "report" / "report.html").read_text(encoding="utf-8")
    assert len(figures_of(text)) == 2 * gallery.LEAST_PICTURES and "5 more cases stand for something" in text
    assert 'class="slices"' not in text  # pictures have no slices


def test_no_gallery_where_none_is_wanted():
    results = model(rows("ok"))
    assert gallery.galleries(ReportData("run", Facts(), (results,)), ReportConfig(gallery_cases=0)) == []


PROBE = """<script>
const stack = document.querySelector(".slices");
const slider = stack.querySelector("input[type=range]");
const sheet = stack.querySelector(".sheet");
const frame = stack.querySelector(".frame");
const note = (name) => {
  const text = stack.querySelector(".position").textContent;
  const texts = [text, slider.getAttribute("aria-valuetext"), frame.getAttribute("aria-label")];
  document.body.dataset[name] = [slider.value, sheet.offsetTop / -frame.clientHeight, ...texts].join("|");
};
const wheel = (y) => frame.dispatchEvent(new WheelEvent("wheel", { deltaY: y, cancelable: true, bubbles: true }));
note("first");
document.body.dataset.passed = wheel(120);
note("unfocused");
frame.click();
document.body.dataset.taken = !wheel(120);
note("turned");
slider.value = slider.max; slider.dispatchEvent(new Event("input"));
note("last");
document.body.dataset.beyond = wheel(120);
const box = stack.querySelector("input[type=checkbox]");
box.click();
document.body.dataset.contours = getComputedStyle(stack.querySelector(".contours")).visibility;
document.body.dataset.controls = getComputedStyle(stack.querySelector(".controls")).display;
</script></body>"""

# One stack alone in the window, at a slice, so that what is seen of it can be compared.
ALONE = """<script>
const stack = document.querySelector(".slices");
const slider = stack.querySelector("input[type=range]");
slider.value = Number(slider.value) + {steps}; slider.dispatchEvent(new Event("input"));
document.body.replaceChildren(stack);
</script></body>"""


@pytest.fixture(scope="module")
def chromium():
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("needs chromium (or google-chrome) to open the report in a browser")
    return found


def browse(chromium, text, folder, *flags):
    folder.mkdir()
    page = folder / "report.html"
    page.write_text(text, encoding="utf-8")
    common = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    common += (
        f" --disable-component-update --disable-sync --hide-scrollbars --user-data-dir={folder / 'profile'} --window-size=600,700"
    )
    command = [chromium, *common.split(), *flags, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def test_slices_scroll_by_slider_and_wheel_in_a_browser(chromium, written, tmp_path):
    dom = browse(chromium, written.text.replace("</body>", PROBE), tmp_path / "probe", "--dump-dom")
    found = dict(re.findall(r'data-([\w-]+)="([^"]*)"', re.search(r"<body[^>]*>", dom)[0]))
    first, turned, last = (found[name].split("|") for name in ("first", "turned", "last"))
    assert (
        found["unfocused"] == found["first"] and found["passed"] == "true"
    )  # the wheel turns the page until the picture is chosen
    assert int(turned[0]) == int(first[0]) + 3 and found["taken"] == "true"
    assert last[0] == "19" and last[2] == last[3] == "Axial slice 21 of 22 from below" and last[4].startswith(last[2] + " of ")
    assert found["beyond"] == "true"  # and again past the last slice
    for value, place, *_ in (first, turned, last):
        assert float(place) == pytest.approx(int(value), abs=0.05)
    assert found["contours"] == "hidden" and found["controls"] == "flex"


def test_the_slice_that_is_seen_changes_in_a_browser(chromium, written, tmp_path):
    def seen(steps):
        shot = tmp_path / f"{steps}.png"
        text = written.text.replace("</body>", ALONE.replace("{steps}", str(steps)))
        browse(chromium, text, tmp_path / f"at_{steps}", f"--screenshot={shot}")
        return np.asarray(Image.open(shot).convert("L")).astype(int)[:280, :250]

    here, there = seen(0), seen(5)
    assert here.std() > 20  # a picture is there, not its black sheet alone
    assert (np.abs(here - there) > 10).mean() > 0.1


def test_without_scripts_the_first_slice_is_seen(chromium, written, tmp_path):
    body = dict(figures_of(written.text))[case_anchor("unet", FAILED)]
    head = written.text[: written.text.index("<body>")]
    shot = tmp_path / "shot.png"
    browse(
        chromium, f"{head}<body><figure class='case'>{body}</figure></body></html>", tmp_path / "plain", f"--screenshot={shot}"
    )
    stack = re.search(r'<div class="slices".*', body, flags=re.DOTALL)[0]
    assert '<div class="controls" hidden>' in stack
    assert np.asarray(Image.open(shot).convert("L")).std() > 20
