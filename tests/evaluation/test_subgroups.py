"""Groups of cases: who is in which, and that each is summed up as the whole would be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from medseg.core.errors import ConfigError
from medseg.core.manifest import Case
from medseg.evaluation.config import EvaluateConfig
from medseg.evaluation.subgroups import SUBGROUP_COLUMNS, covariates_of, group_cases, summarise_subgroups
from medseg.evaluation.summary import summarise
from medseg.evaluation.table import Evaluation
from medseg.metrics.measures import measures_for
from medseg.metrics.pair import Frame

NAN = float("nan")
SETTINGS = EvaluateConfig(bootstrap_resamples=500)
MEASURES = tuple(measures_for(["dice", "hd95"], Frame(True, False), {"liver": 2.0}))
IDS = [f"c{i:02d}" for i in range(14)]
DICE = np.linspace(0.3, 0.95, 14)
SITES = ["north"] * 8 + ["south"] * 6


def _evaluation(ids=IDS, dice=DICE, statuses=None, patients=None):
    statuses, patients = statuses or ["ok"] * len(ids), patients or [""] * len(ids)
    columns = {"case_id": ids, "patient_id": patients, "structure": "liver", "dice": dice, "hd95_mm": 2.0, "status": statuses}
    cases = pd.DataFrame({"case_id": ids, "patient_id": patients, "status": statuses, "reason": "", "diagonal": 50.0})
    return Evaluation(pd.DataFrame(columns), cases, MEASURES, "mm")


def _covariates(**columns):
    return pd.DataFrame(columns, index=pd.Index(IDS, name="case_id"))


def _row(table, group, metric="dice", convention="worst"):
    chosen = table[(table["group"] == group) & (table["metric"] == metric) & (table["convention"] == convention)]
    (row,) = chosen.to_dict("records")
    return row


def test_a_group_is_summed_up_as_if_it_were_alone():
    statuses = ["ok"] * 12 + ["prediction_missing", "both_empty"]
    dice = np.where(np.arange(14) < 12, DICE, NAN)
    found = summarise_subgroups(_evaluation(dice=dice, statuses=statuses), _covariates(site=SITES), SETTINGS, seed=3)
    assert list(found.table.columns) == SUBGROUP_COLUMNS and not found.left_out
    assert found.table["group"].unique().tolist() == ["north", "south"]
    alone = summarise(_evaluation(IDS[8:], dice[8:], statuses[8:]), SETTINGS, seed=3)
    shared = [c for c in alone.columns if c in found.table]
    part = found.table[found.table["group"] == "south"][shared].reset_index(drop=True)
    pd.testing.assert_frame_equal(part, alone[shared])
    row = _row(found.table, "south")
    assert (row["n_cases"], row["n"], row["n_units"], row["n_missed"], row["n_true_negative"]) == (6, 6, 6, 1, 1)
    assert row["mean"] == pytest.approx((dice[8:12].sum() + 0 + 1) / 6)


def test_below_six_patients_a_group_has_no_interval():
    sites = ["north"] * 9 + ["south"] * 5
    table = summarise_subgroups(_evaluation(), _covariates(site=sites), SETTINGS, seed=0).table
    assert np.isfinite(_row(table, "north")["ci_low"]) and np.isnan(_row(table, "south")["ci_low"])
    patients = [f"p{i // 2}" for i in range(14)]
    table = summarise_subgroups(_evaluation(patients=patients), _covariates(site=SITES), SETTINGS, seed=0).table
    assert (_row(table, "north")["n"], _row(table, "north")["n_units"]) == (8, 4) and np.isnan(_row(table, "north")["ci_low"])


def test_numbers_are_cut_in_thirds_of_the_cases():
    ages = list(range(20, 34))
    table = summarise_subgroups(_evaluation(), _covariates(age=ages), SETTINGS, seed=0).table
    assert table["group"].unique().tolist() == ["< 25", "25 to < 29", ">= 29"]
    assert [_row(table, g)["n_cases"] for g in table["group"].unique()] == [5, 4, 5]
    assert _row(table, "< 25")["mean"] == pytest.approx(DICE[:5].mean())


def test_declared_bands_and_what_lies_on_an_edge():
    ages = ["49", "50", "64.9", "65", "", "80"]
    groups = group_cases(pd.Series(ages, name="age"), [50, 65])
    assert groups.tolist() == ["< 50", "50 to < 65", "50 to < 65", ">= 65", "unknown", ">= 65"]
    table = summarise_subgroups(_evaluation(), _covariates(age=range(20, 34)), SETTINGS, 0, {"age": [30]}).table
    assert [(g, _row(table, g)["n_cases"]) for g in table["group"].unique()] == [("< 30", 10), (">= 30", 4)]


def test_long_numbers_are_named_in_full():
    dates = [20210100 + day for day in range(1, 15)]
    table = summarise_subgroups(_evaluation(), _covariates(date=dates), SETTINGS, seed=0).table
    assert table["group"].unique().tolist() == ["< 20210106", "20210106 to < 20210110", ">= 20210110"]
    close = group_cases(pd.Series(dates, name="date"), [20210102, 20210103, 20210104])
    assert close.value_counts().to_dict() == {
        "< 20210102": 1,
        "20210102 to < 20210103": 1,
        "20210103 to < 20210104": 1,
        ">= 20210104": 11,
        "unknown": 0,
    }


def test_numbers_of_which_most_are_the_least_are_cut_above_it():
    packs = pd.Series([0] * 20 + [1, 2, 3, 4, 5, 6], name="pack_years")
    assert group_cases(packs).value_counts().to_dict() == {"< 1": 20, ">= 1": 6, "unknown": 0}
    third = group_cases(pd.Series([0, 0, 0, 0, 1, 2, 3, 4, 5, 6], name="pack_years"))
    assert third[third != "unknown"].value_counts().to_dict() == {"< 3": 6, ">= 3": 4, "unknown": 0}


@pytest.mark.parametrize("absent", ["NA", "n/a", "nan", "None", "unknown"])
def test_one_age_that_is_not_known_leaves_the_others_numbers(absent):
    ages = pd.Series(["12", absent, "33", "44", "55", "66", "70"], name="age")
    assert group_cases(ages, [40]).tolist() == ["< 40", "unknown", "< 40", ">= 40", ">= 40", ">= 40", ">= 40"]
    assert group_cases(ages)[1] == "unknown" and group_cases(ages)[0].startswith("<")
    assert group_cases(pd.Series(["1", absent, "2"], name="code")).tolist() == ["1", "unknown", "2"]
    assert group_cases(pd.Series(["NA", "EU"], name="region")).tolist() == ["NA", "EU"]


def test_a_patient_may_be_in_two_groups():
    patients, ages = [f"p{i % 7}" for i in range(14)], [40] * 7 + [60] * 7  # each patient scanned twice
    table = summarise_subgroups(_evaluation(patients=patients), _covariates(age=ages), SETTINGS, seed=0).table
    assert [_row(table, g)["n_units"] for g in ("40", "60")] == [7, 7] and np.isfinite(_row(table, "40")["ci_low"])


def test_what_is_not_known_is_a_group_that_stands_last():
    sites = pd.DataFrame({"site": ["z", "a"] * 5 + ["", "z"]}, index=IDS[:12])  # two cases have no row
    table = summarise_subgroups(_evaluation(), sites, SETTINGS, seed=0).table
    assert table["group"].unique().tolist() == ["a", "z", "unknown"]
    assert [_row(table, g)["n_cases"] for g in ("a", "z", "unknown")] == [5, 6, 3]


def test_codes_stay_groups_in_the_order_of_numbers():
    table = summarise_subgroups(_evaluation(), _covariates(scanner=["10", "9"] * 7), SETTINGS, seed=0).table
    assert table["group"].unique().tolist() == ["9", "10"]


def test_columns_that_part_nothing_are_named():
    covariates = _covariates(note=[f"text {i}" for i in range(14)], same=["x"] * 14, empty=[""] * 14, site=SITES)
    wide = pd.concat([covariates, covariates.set_axis([f"d{i}" for i in range(14)])])
    found = summarise_subgroups(_evaluation(), wide, SETTINGS, seed=0)
    assert found.table["covariate"].unique().tolist() == ["note", "site"]  # 14 groups are few enough
    assert found.left_out == ["same: 1 value, no groups to sum up", "empty: no values, no groups to sum up"]
    ids = [f"e{i}" for i in range(21)]
    many = pd.DataFrame({"name": ids}, index=ids)
    found = summarise_subgroups(_evaluation(ids, np.full(21, 0.5)), many, SETTINGS, seed=0)
    assert found.table.empty and list(found.table.columns) == SUBGROUP_COLUMNS
    assert found.left_out == ["name: 21 values, no groups to sum up"]


def test_bands_that_do_not_fit_are_refused():
    for bands, named in (({"age": [1]}, "`age`, which is no column"), ({"site": [1]}, "give it numbers")):
        with pytest.raises(ConfigError, match=named):
            summarise_subgroups(_evaluation(), _covariates(site=SITES), SETTINGS, 0, bands)
    for edges in ([2, 1], [NAN], [1, float("inf")]):
        with pytest.raises(ConfigError, match="ascending"):
            group_cases(pd.Series(["1", "2"], name="age"), edges)


def test_the_manifest_gives_the_covariates():
    cases = [Case("a", (Path("a.nii"),), covariates={"site": "n"}), Case("b", (Path("b.nii"),))]
    table = covariates_of(cases)
    assert table.loc["a", "site"] == "n" and table.loc["b", "site"] == ""
    assert covariates_of(cases[1:]).shape == (1, 0)
