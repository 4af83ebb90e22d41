"""The report of a finished run, as a file and in a browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pandas as pd
import pytest
from reporting.phantom_run import FAILED, HOSTILE, MISSED, MODELS, write_picture_run, write_volume_run

from medseg.core.config import parse
from medseg.core.errors import ConfigError
from medseg.reporting import html
from medseg.reporting.collect import collect_folders
from medseg.reporting.config import ReportConfig
from medseg.reporting.html import FIRST_ROWS, write_report
from pipelines.config import RunConfig
from pipelines.report import report_folders, run

VOID = {"meta", "br", "img", "input", "link", "hr"}


class Page(HTMLParser):
    """A page taken apart: its elements with their attributes, its text, and whether its tags close."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.faults: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.faults.append(f"</{tag}> at {self.getpos()}")

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def volume_report(tmp_path_factory):
    root = tmp_path_factory.mktemp("volumes")
    assert run(RunConfig.load(write_volume_run(root), [])) == 0
    return root / "run" / "report" / "report.html"


@pytest.fixture(scope="module")
def page(volume_report):
    return Page(volume_report.read_text(encoding="utf-8"))


def test_every_tag_closes(page):
    assert not page.faults and not page.open


def test_the_page_needs_nothing_from_elsewhere(page):
    for tag, attributes in page.elements:
        for name in ("src", "href", "xlink:href", "data", "srcset", "action"):
            address = attributes.get(name)
            assert address is None or address.startswith(("#", "data:image/")), (tag, name, address)
    assert not page.all("link") and not page.all("iframe")
    policy = next(m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy


def test_what_users_named_is_escaped(page, volume_report):
    text = volume_report.read_text(encoding="utf-8")
    assert "<script>alert" not in text and "Posterior <b>" not in text
    assert len(page.all("script")) == 1
    assert HOSTILE in page.text  # shown as it was written
    assert "Posterior <b>" in page.text


def test_the_page_says_what_it_must(page):
    for words in (
        "Phantom structures in noise",
        "For research use only",
        "eight phantoms: no generalisation result",
        "Ellipsoids in noise. J Phantoms",
        "CC0",
        "90 % bootstrap confidence intervals over cases (8 cases",
        "Convention “worst”",
        "Convention “defined”",
        "Paired comparison",
        "Training curves",
        "c0ffeec0ffee",
        "0123456789ab (with uncommitted changes)",
        "12 min 04 s",
        "medseg run",
        "Phantom CPU",
    ):
        assert words in page.text, words
    assert page.text.index("Convention “worst”") < page.text.index("Convention “defined”")


def test_no_number_is_a_nan(page):
    assert not re.search(r"\b(nan|None|inf)\b", page.text.replace("NaN", "nan"))


def test_tables_have_headers_with_scope_and_names(page):
    assert all(th.get("scope") in ("col", "row", "colgroup", "rowgroup") for th in page.all("th"))
    ids = {a["id"] for _, a in page.elements if a.get("id")}
    named = [t for t in page.all("table") if "aria-labelledby" in t]
    assert len(named) >= 7 and all(t["aria-labelledby"] in ids for t in named)
    assert len([a for _, a in page.elements if a.get("id")]) == len(ids)  # no id twice


def test_figures_have_texts_in_their_place(page):
    images = page.all("img")
    planes = [i for i in images if i.get("class") == "planes"]
    assert len(planes) >= 6 and all(i["alt"] for i in planes)  # worst, median and best of two models
    assert all(i["src"].startswith("data:image/webp;base64,") for i in images)
    frames = [a for _, a in page.elements if a.get("class") == "frame"]
    assert len(frames) == len(planes) and all(a["role"] == "img" and a["aria-label"] for a in frames)
    plots = page.all("svg")
    assert len(plots) == 3 and all(p["aria-label"] and p["role"] == "img" for p in plots)


def test_failed_and_missed_cases_are_shown(page):
    assert any(i["alt"].startswith(f"Case {FAILED} of unet (worst of ") for i in page.all("img"))
    assert "the file is truncated after 12 kB" in page.text
    assert re.search(rf"Missed structures: .* {MISSED} fcn8s Posterior", page.text)


def test_tables_and_figures_stand_beside_the_page(volume_report):
    folder = volume_report.parent
    per_case = pd.read_csv(folder / "tables" / "per_case.csv")
    assert len(per_case) == 8 * 2 * 2 and per_case.columns[0] == "model"
    flow = pd.read_csv(folder / "tables" / "cases_flow.csv", keep_default_na=False)
    assert flow.loc[flow["model"] == "unet", ["given", "readable", "segmented", "evaluated"]].astype(int).values.tolist() == [
        [8, 7, 7, 7]
    ]
    names = {p.name for p in (folder / "figures").iterdir()}
    assert {"cases.png", "training.png", f"{MODELS[0]}_worst_0.png", f"{MODELS[1]}_worst_0.svg"} <= names
    assert [p.name for p in folder.rglob(".*")] == [".lock"]  # nothing half-written


def test_pictures_in_colour_and_pixels(tmp_path):
    assert run(RunConfig.load(write_picture_run(tmp_path), [])) == 0
    text = (tmp_path / "run" / "report" / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert "over tiles" in page.text and "HD95 (px)" in page.text and "(mm)" not in page.text
    assert "radiologists" not in page.text
    assert len(page.all("img")) >= 6


def test_regions_are_named_with_their_structures(tmp_path):
    parts = "[Anterior, Posterior <b>]"
    regions = f"regions=[{{name: Whole, structures: {parts}, written_as: Anterior}}, {{name: Anterior, structures: [Anterior]}}]"
    assert run(RunConfig.load(write_volume_run(tmp_path), [regions])) == 0
    page = Page((tmp_path / "run" / "report" / "report.html").read_text(encoding="utf-8"))
    assert "Regions Whole (Anterior, Posterior <b>); Anterior (Anterior)" in page.text


def test_masks_of_another_tool_have_a_report_without_curves_and_pictures(tmp_path, volume_report):
    evaluated = volume_report.parent.parent / "evaluate"
    path = report_folders([evaluated / m for m in MODELS], tmp_path / "out")
    assert path == tmp_path / "out" / "report.html"
    page = Page(path.read_text(encoding="utf-8"))
    assert not page.faults and not page.all("img") and len(page.all("svg")) == 2
    assert "Models side by side" in page.text and "Training curves" not in page.text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"gallery": 3}, "unknown key `gallery`"),
        ({"planes": ["axial", "axial"]}, "one plane twice"),
        ({"planes": ["oblique"]}, "planes"),
        ({"window_percentiles": [99, 1]}, "the smaller first"),
        ({"gallery_cases": -1}, "gallery_cases"),
    ],
)
def test_bad_settings_are_named(content, words):
    with pytest.raises(ConfigError, match=words):
        parse(ReportConfig, content, "run.yaml: report")


PROBE = """<script>
document.getElementById("per-case").tHead.rows[0].cells[3].querySelector("button").click();
const box = document.getElementById("filter");
const rows = () => [...document.querySelectorAll("#per-case tbody tr")].filter(r => !r.hidden);
const order = () => rows().map(r => r.cells[3].textContent).join(" ");
document.body.dataset.ascending = order();
document.getElementById("per-case").tHead.rows[0].cells[3].querySelector("button").click();
document.body.dataset.descending = order();
box.value = "P03 fcn8s missed"; box.dispatchEvent(new Event("input"));
document.body.dataset.filtered = order() + " | " + document.getElementById("count").textContent;
document.querySelectorAll("details").forEach((d) => { d.open = true; });
document.body.dataset.wide = document.documentElement.scrollWidth > window.innerWidth;
document.body.dataset.clipped = [...document.querySelectorAll(".scroll")]
  .filter((p) => p.scrollWidth > p.clientWidth + 1).map((p) => p.querySelector("table")?.id).join(" ");
</script></body>"""


@pytest.fixture(scope="module")
def browser():
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("needs chromium (or google-chrome) to open the report in a browser")
    return found


def open_in(browser, path, folder, width):
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    flags += f" --disable-component-update --disable-sync --user-data-dir={folder} --window-size={width},900 --dump-dom"
    done = subprocess.run([browser, *flags.split(), path.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    return done.stdout


@pytest.mark.parametrize("width", [1200, 520])
def test_the_case_table_sorts_and_filters_in_a_browser(browser, volume_report, tmp_path, width):
    probed = tmp_path / "report.html"
    text = volume_report.read_text(encoding="utf-8")
    probed.write_text(text.replace("</body>", PROBE), encoding="utf-8")
    dom = open_in(browser, probed, tmp_path / "profile", width)
    body = re.search(r"<body[^>]*>", dom)[0]
    found = dict(re.findall(r'data-(\w+)="([^"]*)"', body))
    assert found, "the script of the page did not run to its end"

    ascending, descending = found["ascending"].split(), found["descending"].split()
    known = [float(v) for v in ascending if v != "–"]
    assert len(ascending) == 32 and known == sorted(known) and ascending[-4:] == ["–"] * 4
    assert [float(v) for v in descending if v != "–"] == sorted(known, reverse=True) and descending[-4:] == ["–"] * 4
    assert found["filtered"] == "0.000 | 1 of 32 rows, by Dice from high to low"
    assert found["wide"] == "false"  # wide tables scroll by themselves; the page does not, with all of it unfolded
    assert width < 1000 or found["clipped"] in ("", "per-case")  # on a desk only the table of every case may be too wide


@pytest.fixture(scope="module")
def long_report(tmp_path_factory, volume_report):
    """Masks of another tool for 300 cases and two structures, some with hostile names."""
    folder = tmp_path_factory.mktemp("long") / "tool"
    folder.mkdir()
    names = [f"case {i:03d}" for i in range(299)] + ["</script><script>alert(1)</script>"]
    rows = [
        {"case_id": name, "patient_id": f"Anna {i}", "structure": s, "dice": i / 300 + (s == "b") / 600, "status": "ok"}
        for i, name in enumerate(names)
        for s in "ab"
    ]
    pd.DataFrame(rows).to_csv(folder / "per_case.csv", index=False)
    summary = pd.read_csv(volume_report.parents[1] / "evaluate" / MODELS[0] / "summary.csv")
    summary[summary["metric"] == "dice"].replace({"Anterior": "a", "Posterior <b>": "b"}).to_csv(
        folder / "summary.csv", index=False
    )
    return write_report(collect_folders([folder]), folder / "report", ReportConfig(pdf=False))


def test_a_long_table_is_data_and_its_first_rows_with_a_word_where_the_rest_is(long_report):
    text = long_report.read_text(encoding="utf-8")
    page = Page(text)
    assert not page.faults and len(page.all("script")) == 2
    assert text.count('<th scope="row">case ') == FIRST_ROWS
    assert f"the first {FIRST_ROWS} of 600 rows; all of them stand in tables/per_case.csv" in page.text
    data = json.loads(re.search(r'<script type="application/json"[^>]*>(.*?)</script>', text, re.DOTALL)[1])
    assert len(data["rows"]) == len(data["anchors"]) == 600
    assert data["rows"][-1][0] == "</script><script>alert(1)</script>" and data["rows"][1][3] == ["0.002", 0.001666667]


def test_patients_do_not_appear_unless_asked_for(long_report):
    everywhere = long_report.read_text(encoding="utf-8") + (long_report.parent / "tables" / "per_case.csv").read_text()
    assert "Anna" not in everywhere and "patient_id" not in everywhere
    folder = long_report.parent.parent
    asked = write_report(collect_folders([folder]), folder / "named", ReportConfig(pdf=False, patient_ids=True))
    assert "Anna 7" in asked.read_text(encoding="utf-8") and "Anna 7" in (asked.parent / "tables" / "per_case.csv").read_text()


LONG_PROBE = """<script>
const rows = () => [...document.querySelectorAll("#per-case tbody tr[id]")];
const box = document.getElementById("filter");
document.body.dataset.rows = rows().length;
document.querySelectorAll("#per-case thead button")[3].click(); document.querySelectorAll("#per-case thead button")[3].click();
document.body.dataset.first = rows()[0].cells[3].textContent;
box.value = "alert"; box.dispatchEvent(new Event("input"));
document.body.dataset.filtered = rows().length + " " + document.getElementById("count").textContent;
const places = rows().map((row) => row.getAttribute("aria-rowindex")).join(" ");
document.body.dataset.places = document.getElementById("per-case").getAttribute("aria-rowcount") + " " + places;
location.hash = "#" + JSON.parse(document.getElementById("per-case-rows").textContent).anchors.at(100)[0];
window.dispatchEvent(new Event("hashchange"));
document.body.dataset.found = document.querySelector("tr.found").textContent;
</script></body>"""


def test_a_long_table_shows_the_rows_in_sight_and_finds_any(browser, long_report, tmp_path):
    probed = tmp_path / "report.html"
    probed.write_text(long_report.read_text(encoding="utf-8").replace("</body>", LONG_PROBE), encoding="utf-8")
    body = re.search(r"<body[^>]*>", open_in(browser, probed, tmp_path / "profile", 1200))[0]
    found = dict(re.findall(r'data-(\w+)="([^"]*)"', body))
    assert 20 <= int(found["rows"]) < 200 and found["first"] == "0.998"
    assert found["filtered"] == "2 2 of 600 rows, by Dice from high to low"
    assert found["places"] == "3 2 3"
    assert found["found"].startswith("case 050tool")


def test_the_statistics_of_an_evaluation_are_shown_where_it_has_them(long_report):
    folder = long_report.parent.parent
    line = {"structure": "a", "unit": "ml", "ci_low": -1.0, "ci_high": 3.0, "n": 300, "n_undefined": 0}
    statistics = [line | {"statistic": s, "value": 1.25} for s in ("bias", "limit_lower", "limit_upper", "icc_2_1")]
    pd.DataFrame(statistics).to_csv(folder / "agreement.csv", index=False)
    groups = pd.read_csv(folder / "summary.csv").assign(covariate="site", group="<b>north</b>", n_cases=150)
    groups.to_csv(folder / "subgroups.csv", index=False)
    written = write_report(collect_folders([folder]), folder / "more", ReportConfig(pdf=False))
    page = Page(written.read_text(encoding="utf-8"))
    assert not page.faults and "Agreement of predicted and reference sizes" in page.text and "1.25 [−1.00 to 3.00]" in page.text
    assert "Groups are described, not tested" in page.text and "<b>north</b>" in page.text
    assert {"agreement.csv", "agreement.tex", "subgroups.csv", "subgroups.tex", "tables.xlsx"} <= {
        p.name for p in (written.parent / "tables").iterdir()
    }


def test_paper_shows_as_many_metrics_as_fit_and_nothing_that_only_a_screen_can(tmp_path):
    write_volume_run(tmp_path)
    folder = tmp_path / "run" / "evaluate" / MODELS[0]
    table = pd.read_csv(folder / "per_case.csv", keep_default_na=False)
    table.assign(**{f"more_{i:02d}": 0.25 for i in range(html.PRINTED_METRICS)}).to_csv(folder / "per_case.csv", index=False)
    written = write_report(collect_folders([folder]), tmp_path / "report", ReportConfig(pdf=False))
    page = written.read_text(encoding="utf-8")
    heads = re.findall(r'<th scope="col"( class="[^"]*")?>more (\d\d)</th>', page)
    assert len(heads) == html.PRINTED_METRICS and "beyond" in heads[-1][0] and "beyond" not in heads[0][0]
    assert f"On paper stand the first {html.PRINTED_METRICS} of " in page
    paper = html._for_paper(page)
    assert "<script" not in paper and 'class="screen"' not in paper and 'class="sheet' not in paper
    assert "<script" in page and '<details class="screen">' in page
