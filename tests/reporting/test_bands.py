"""Readers beside the models: the bands of the figure, the table, and what is said of them."""

from __future__ import annotations

import json
import math

import pandas as pd
import pytest
from reporting.test_report_tables import model, report, rows, summary

from medseg.core.errors import StageError
from medseg.reporting.bands import reader_spans, reader_table, spans_text
from medseg.reporting.checklists import fill_checklists
from medseg.reporting.collect import Facts, with_readers
from medseg.reporting.methods import compose_methods, statistics_sentences

BAND = {"structure": "a", "metric": "dice", "unit": "", "n_readers": 3, "n_pairs": 3, "n": 9, "n_undefined": 0}
BAND |= {"mean": 0.85, "ci_low": 0.8, "ci_high": 0.88, "lowest": 0.8, "highest": 0.9}


def readers_folder(folder, *bands, cases=("c0", "c1", "x0"), unit="case", confidence=0.95):
    folder.mkdir(exist_ok=True)
    pd.DataFrame(bands).to_csv(folder / "readers.csv", index=False)
    pd.DataFrame({"case_id": cases, "readers": "ann;bob;cy"}).to_csv(folder / "reader_cases.csv", index=False)
    (folder / "stage.json").write_text(json.dumps({"inputs": {"sampling_unit": unit, "evaluate": {"confidence": confidence}}}))
    return folder


@pytest.fixture
def shown(tmp_path):
    """A report beside readers; by default of the band above."""
    return lambda *bands, data=None, **more: with_readers(
        data or report(), readers_folder(tmp_path / "r", *(bands or [BAND]), **more)
    )


def test_bands_have_mean_interval_and_numbers_and_only_where_readers_were_measured(shown):
    spans = reader_spans(shown(), ["dice", "hd95_mm"])
    dice, hd95 = spans["a"]
    assert (dice.mean, dice.low, dice.high) == (0.85, 0.8, 0.88) and hd95 is None
    assert dice.label == "3 readers, 9 cases: 0.850 [0.800 to 0.880]"
    assert spans_text(spans, ["dice", "hd95_mm"]) == f" Bands of readers: Dice of a: {dice.label}."
    assert reader_spans(report(), ["dice"]) == {} and spans_text({}, ["dice"]) == ""


@pytest.mark.parametrize(("mean", "place"), [(0.95, "better than the band"), (0.85, "in the band"), (0.7, "worse than the band")])
def test_the_table_has_both_means_and_where_the_models_lies(shown, mean, place):
    found = reader_table(shown(data=report(model(summary=summary(mean=mean)))))
    ours = f"{mean:.3f} [0.850 to 0.950]"
    assert [[cell.replace("\u00a0", " ") for cell in row] for row in found.rows] == [
        ["a", "Dice", "0.850 [0.800 to 0.880]", "0.800 to 0.900", "9", "unet", ours, "8", place]
    ]
    assert len(found.headers) == len(found.numeric) == 9
    assert found.frame.loc[0, ["mean_model", "n_model"]].tolist() == [mean, 8]


def test_two_readers_are_one_pair_and_few_cases_have_no_band(shown):
    few = BAND | {"n_readers": 2, "n_pairs": 1, "n": 3, "ci_low": math.nan, "ci_high": math.nan}
    data = shown(few)
    table = reader_table(data)
    assert table.rows == [["a", "Dice", "0.850", "3", "unet", "0.900 [0.850 to 0.950]", "8"]]
    assert (
        "Pairs of readers" not in table.headers
        and "a line and no band" in table.caption
        and "A model at the line agrees" in table.caption
    )
    assert reader_spans(data, ["dice"])["a"][0].label == "2 readers, 3 cases: 0.850"


def test_every_structure_and_metric_of_both_is_in_the_table_in_the_order_of_the_report(shown):
    names = ("liver", "spleen")
    per_case = [row for s in names for row in rows("ok", structure=s)]
    sums = pd.concat([summary(structure=s, metric=m) for s in names for m in ("dice", "iou", "hd95_mm")])
    data = report(model(per_case=per_case, summary=sums))
    bands = [BAND | {"structure": s, "metric": m} for s in ("spleen", "liver", "heart") for m in ("iou", "dice", "precision")]
    assert [row[:2] for row in reader_table(shown(*bands, data=data)).rows] == [
        ["liver", "IoU"], ["liver", "Dice"], ["spleen", "IoU"], ["spleen", "Dice"]
    ]  # fmt: skip
    only = reader_table(shown(bands[0], data=data)).caption
    assert only.endswith("The readers have no figures of liver.")


@pytest.mark.parametrize(
    ("cases", "said"),
    [
        (("c0", "c1", "x0"), "The readers have read 2 of the 8 evaluated cases, and 1 other."),
        ([f"c{i}" for i in range(8)], "The readers have read 8 of the 8 evaluated cases."),
        (("x0", "x1"), "The readers have read none of the 8 evaluated cases: the band is of 2 others."),
    ],
)
def test_the_caption_says_how_many_cases_are_common(shown, cases, said):
    assert said in reader_table(shown(cases=cases)).caption


def test_the_caption_says_what_intervals_are_over_and_what_the_band_does_not_mean(shown):
    caption = reader_table(shown(data=report(facts=Facts(sampling_unit="case")))).caption
    assert "convention “worst”, with 95 % intervals over cases." in caption
    assert "not shown to be as good as they are" in caption
    caption = reader_table(shown(confidence=0.9)).caption
    assert "with 90 % intervals over cases of the readers and 95 % intervals over patients of the models." in caption


def test_the_methods_paragraph_says_how_readers_were_measured(shown):
    assert "Agreement between every two of 3 readers was measured in the same way on 3 cases." in statistics_sentences(shown())
    assert not any("readers" in sentence for sentence in statistics_sentences(report()))


def test_readers_with_nothing_to_show_are_one_sentence(shown, tmp_path):
    with pytest.raises(StageError, match=r"nowhere holds no readers\.csv; give a folder that `medseg readers` has written"):
        with_readers(report(), tmp_path / "nowhere")
    with pytest.raises(StageError, match=r"no structure in common .*\(readers: label_1; evaluations: a\); measure them with"):
        shown(BAND | {"structure": "label_1"})
    with pytest.raises(StageError, match=r"no metric in common .*\(readers: hd95_px; evaluations: dice\); evaluate with"):
        shown(BAND | {"metric": "hd95_px"})


def test_the_checklist_tells_how_far_readers_agree(shown):
    def item(data):
        return {found.number: found for found in fill_checklists(data, compose_methods(data))[0].items}["18"]

    assert item(report()).state == "author"
    assert item(shown()).answer == (
        "Mean agreement between every two of 3 readers on 3 cases: a: Dice 0.850 [0.800 to 0.880], n = 9."
    )
