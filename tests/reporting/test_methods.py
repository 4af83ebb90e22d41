"""The methods paragraph: what it says stands in a record, and what no record holds it does not say."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pandas as pd
import pytest
from reporting.phantom_run import HOSTILE, MODELS, write_picture_run, write_volume_run

from medseg.reporting.collect import Facts, collect_folders, collect_run
from medseg.reporting.methods import compose_methods, write_methods
from medseg.reporting.recipe import foreground_sentences
from pipelines.report import report_folders

TRAINING = {
    "loss": "dice_focal",
    "optimizer": {"name": "sgd", "learning_rate": 0.013, "momentum": 0.97, "nesterov": True},
    "schedule": "poly",
    "warmup_steps": 17,
    "gradient_clip": 11.0,
    "budget_minutes": 23.0,
    "foreground_fraction": 0.41,
    "postprocessing": True,
    "augmentation": {"elastic": {"probability": 0.35}, "noise": {"probability": 0.0}, "blur": {"probability": 0.22}, "flip": 0.5},
}
FINISH = {"cases": 14, "dice": {"before": 0.81234, "after": 0.82345}, "calibration_error": {"before": 0.01512, "after": 0.0149}}
PLAN = {
    "patch_voxels": [40, 48, 20],
    "batch_size": 3,
    "flips": [0],
    "channels": ["image"],
    "preprocessing": {
        "physical": True,
        "spacing": [1.25, 1.25, 2.75],
        "crop_nonzero": True,
        "order": [3, 3, 1],
        "normalisation": [{"kind": "fixed", "low": -175.5, "high": 312.0, "mean": 81.25, "std": 33.5}],
    },
    "models": {
        "unet": {"architecture": "unet", "options": {"features": [18, 36, 72], "convs_per_stage": 2, "dropout": 0.15}},
        "fcn8s": {"architecture": "fcn8s", "options": {"depth": 16, "width": 0.375}},
    },
    "reasons": {"spacing": "median voxel size of 23 training cases", "batch_size": "stated in the configuration"},
}

RULE = {"keep_largest": True, "smallest_volume": 12.5}
CHOSEN = {
    "unet": {"temperature": 1.037, "postprocessing": {"liver": RULE}},
    "fcn8s": {"temperature": 0.9, "postprocessing": {}},
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A run of phantoms with the records that a whole run leaves."""
    root = tmp_path_factory.mktemp("methods")
    write_volume_run(root)
    _edit(root / "run" / "prepare" / "plan.json", PLAN)
    for model in MODELS:
        _edit(
            root / "run" / "train" / model / "stage.json",
            {
                "inputs": {"training": TRAINING},
                "finish": FINISH,
                "chosen": CHOSEN[model],
                "best": {"dice": 0.8765},
                "training_seconds": 724.0,
            },
        )
        options = {"overlap": 0.55, "mirror_axes": [0], "runtime": "openvino", "precision": "bfloat16", "skip_air": True}
        _edit(root / "run" / "predict" / model / "stage.json", {"inputs": {"options": options}})
        settings = {"confidence": 0.9, "bootstrap_resamples": 7000, "resample": "nearest"}
        _edit(root / "run" / "evaluate" / model / "stage.json", {"inputs": {"sampling_unit": "case", "evaluate": settings}})
    return root


def _edit(path, content):
    path.write_text(json.dumps(json.loads(path.read_text()) | content))


@pytest.fixture(scope="module")
def data(root):
    facts = Facts(name=f"phantoms {HOSTILE}", citation="Phantom A 2024", licence="CC0", note="no generalisation result")
    return collect_run(root / "run", "phantoms", list(MODELS), facts)


@pytest.fixture(scope="module")
def methods(data):
    return compose_methods(data)


def test_each_part_says_what_the_records_say(methods):
    assert "voxels of 1.25 × 1.25 × 2.75 mm (median voxel size of 23 training cases)" in methods.get("preprocessing")
    assert "interpolation that was cubic along X and Y and linear along Z" in methods.get("preprocessing")
    assert "clipped to -175.5 to 312, centred on 81.25 and divided by 33.5" in methods.get("preprocessing")
    assert "3D U-Net [" in methods.get("network") and "3 stages of 18, 36 and 72 features" in methods.get("network")
    assert "FCN-8s [" in methods.get("network") and "at 0.375 of its published width" in methods.get("network")
    assert "soft Dice loss and the focal loss [" in methods.get("training")
    assert "Nesterov momentum of 0.97 from a learning rate of 0.013 that fell as a polynomial" in methods.get("training")
    assert "trained for 600 steps, 10 an epoch, on a CPU in bfloat16" in methods.get("training")
    assert "of each batch 1 was centred on a structure, the others lay anywhere" in methods.get("training")
    assert "a budget of 23 min a model allowed" in methods.get("training")
    assert "were chosen on 14 validation cases. There the mean Dice of unet (temperature 1.04; of " in methods.get("finishing")
    assert "liver only its largest piece and no piece below 12.5 mm³ (or voxels, without a size)) was" in methods.get("finishing")
    assert "and 0.823 after and its calibration error 0.015 before and after; the mean Dice of fcn8s" in methods.get("finishing")
    assert "fcn8s (temperature 0.9; no rule helped) was 0.812 before" in methods.get("finishing")
    assert "overlapped by 55 %" in methods.get("inference") and "mirror images along an axis" in methods.get("inference")
    assert "90 % bias-corrected and accelerated bootstrap intervals" in methods.get("statistics")
    assert "(7000 resamples)" in methods.get("statistics") and "over 8 cases" in methods.get("statistics")
    assert "by nearest neighbour" in methods.get("evaluation")
    assert "seed was 7" in methods.get("software") and "12 min 04 s (unet)" in methods.get("software")


def test_what_was_switched_off_is_not_said(methods):
    assert "Gaussian blur (probability 0.22)" in methods.get("training")
    assert "noise" not in methods.get("training")


def test_every_number_stands_in_a_record(data, methods, root):
    assert _unknown_numbers(methods, root / "run") == []


def _unknown_numbers(methods, run):
    """Numbers of the text that no file of the run holds: whole ones as they are, others as the text rounds them."""
    held = set()
    for path in [*run.rglob("*.json"), run / "config.yaml", *run.rglob("*.csv")]:
        held |= {float(n) for n in re.findall(r"-?\d+(?:\.\d+)?(?:e-?\d+)?", path.read_text())}
    for table in (pd.read_csv(path) for path in run.glob("evaluate/*/per_case.csv")):
        cases = (table["status"] != "prediction_missing").groupby(table["case_id"]).all()
        held |= {float(len(cases)), float(cases.sum())}
    for path in run.rglob("comparison_summary.csv"):
        held.add(float(len(pd.read_csv(path))))
    held |= {float(len(model.get("options", {}).get("features", []))) for model in _plan(run)["models"].values()}
    for path in run.glob("train/*/stage.json"):
        record = json.loads(path.read_text())
        held |= {float(n) for n in divmod(round(record.get("training_seconds", record["seconds"])), 60)}
    held |= {round(100 * h, 6) for h in held if 0 <= h <= 1}
    text = re.sub(r"\[[\d, ]+\]", "", " ".join(part.text for part in methods.parts))
    text = re.sub(r"clipping the brightest and darkest 0\.5 %|value, 0 or the scan|HD95|U-Net|FCN-8s|VGG-16|[23]D ", "", text)
    written = re.findall(r"(?<![\w.])-?\d+(?:\.\d+)?(?![\w.]*[a-z])", text)
    places = {n: len(n.partition(".")[2]) for n in written}
    return [n for n, p in places.items() if not any(float(n) == (round(h, p) if p else h) for h in held)]


def _plan(run):
    return json.loads((run / "prepare" / "plan.json").read_text())


def test_masks_of_another_tool_have_only_their_evaluation(root):
    methods = compose_methods(collect_folders([root / "run" / "evaluate" / "unet"]))
    assert [part.key for part in methods.parts] == ["data", "partitions", "evaluation", "statistics", "software"]
    assert "PyTorch" not in methods.text and "trained" not in methods.text and "U-Net" not in methods.text


def test_without_records_nothing_is_claimed(data):
    bare = replace(data, records={}, plan={}, facts=Facts(), models=tuple(replace(m, settings={}) for m in data.models))
    methods = compose_methods(bare)
    assert [part.key for part in methods.parts] == ["data", "partitions", "evaluation", "statistics"]
    assert "bootstrap" not in methods.text and "seed" not in methods.text and "phantoms" not in methods.text


def test_files_are_written_beside_the_report(methods, tmp_path):
    write_methods(methods, tmp_path)
    text = (tmp_path / "methods.txt").read_text(encoding="utf-8")
    bib = (tmp_path / "references.bib").read_text(encoding="utf-8")
    assert text.startswith("Methods\n") and "References\n[1] " in text
    assert bib.count("\n@") + 1 == len(methods.sources) == len(re.findall(r"^\[\d+\] ", text, re.MULTILINE))
    cited = {int(n) for marks in re.findall(r"\[([\d, ]+)\]", " ".join(p.text for p in methods.parts)) for n in marks.split(",")}
    assert cited == set(range(1, len(methods.sources) + 1))


def test_the_report_carries_it_and_users_words_stay_words(root, tmp_path):
    path = report_folders([root / "run"], tmp_path)
    page = path.read_text(encoding="utf-8")
    assert '<h2 id="methods">' in page and '<h2 id="checklists">' in page
    assert "<script>alert" not in page and "Posterior <b>" not in page and "Posterior &lt;b&gt;" in page
    assert (tmp_path / "methods.txt").is_file() and (tmp_path / "references.bib").is_file()
    assert (tmp_path / "checklists" / "tripod_ai.csv").is_file()


def test_pictures_are_spoken_of_in_pixels(tmp_path):
    write_picture_run(tmp_path)
    plan = {
        "preprocessing": {"physical": False, "spacing": None, "normalisation": [{"kind": "case", "clip": True, "joint": True}]}
    }
    _edit(tmp_path / "run" / "prepare" / "plan.json", plan)
    methods = compose_methods(collect_run(tmp_path / "run", "x", list(MODELS), Facts()))
    assert "patches of 128 × 96 pixels" in methods.get("network") and "2D U-Net" in methods.get("network")
    assert "over all channels together" in methods.get("preprocessing") and "mm" not in methods.get("preprocessing")


def test_folds_are_told_from_the_record_of_the_first(root, tmp_path):
    """A cross-validation keeps a training's settings in the records of its folds."""
    data = collect_run(root / "run", "x", list(MODELS), Facts())
    record = data.records["train", "unet"]
    fold = replace(
        data.models[0],
        settings=data.models[0].settings | {"schedules": [{"steps": 610}, {"steps": 590}], "records": [record, record]},
    )
    records = {("train", "unet"): {"stage": "train", "inputs": {"folds": []}, "best": {"dice": 0.7}}}
    text = compose_methods(replace(data, models=(fold,), records=records)).text
    assert "590 to 610 steps in each of 2 folds" in " ".join(text.split()) and "(first fold; temp" in " ".join(text.split())


@pytest.mark.parametrize("wrong", ["over 7001 draws", "a spacing of 1.24 mm", "and 93 cases"])
def test_a_number_that_no_record_holds_is_noticed(methods, root, wrong):
    """The check of the numbers can fail."""
    forged = replace(methods, parts=(*methods.parts, replace(methods.parts[0], text=wrong)))
    assert len(_unknown_numbers(forged, root / "run")) == 1


@pytest.mark.parametrize(
    ("batch", "share", "text"),
    [
        (2, 0.33, "Of the 2 patches of each batch 1 was centred on a structure, the other lay anywhere."),
        (12, 0.33, "Of the 12 patches of each batch 4 were centred on a structure, the others lay anywhere."),
        (1, 0.33, "Of the 1 patches of each batch 1 was centred on a structure."),
        (None, 0.33, "Of each batch 33 % of the patches were centred on a structure, and at least one."),
        (4, 0, ""),
    ],
)
def test_patches_centred_on_a_structure_are_counted_as_the_training_draws_them(data, batch, share, text):
    found = foreground_sentences(replace(data, plan={"batch_size": batch}), {"foreground_fraction": share})
    assert " ".join(found) == text


def test_how_sizes_and_probabilities_were_measured_is_told_where_they_were(data):
    sizes = pd.DataFrame({"statistic": ["bias", "limit_lower", "deming_slope"]})
    first = data.models[0]
    measured = replace(first, agreement=sizes, per_case=first.per_case.assign(brier=0.1))
    methods = compose_methods(replace(data, models=(measured,)))
    assert re.search(r"compared by limits of agreement \[\d+\] and Deming regression \[\d+\]\.", methods.get("statistics"))
    assert "Brier score [" in methods.get("evaluation") and "Probabilities were compared" in methods.get("evaluation")
    assert "Probabilities" not in compose_methods(data).get("evaluation")
