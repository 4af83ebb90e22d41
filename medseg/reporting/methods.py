"""The methods section of a paper, written from a run's records. What no record holds is left unsaid."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medseg.core.files import write_text
from medseg.metrics.calibration import MARGIN, N_BINS
from medseg.metrics.table import METRICS
from medseg.reporting import recipe
from medseg.reporting.cases import flow_rows
from medseg.reporting.citations import Source, bibtex, cite, number, plain
from medseg.reporting.collect import ReportData
from medseg.reporting.provenance import commit_text, duration, machine_text
from medseg.reporting.recipe import listing
from medseg.reporting.tables import LEAST_UNITS, count_units, units_repeat
from medseg.reporting.words import describe, metric_columns, unit_words

MODALITIES = {
    "ct": "computed tomography",
    "mr": "magnetic resonance imaging",
    "microscopy": "microscopy",
    "rgb": "colour images",
}
# The start of a metric's column -> whom to cite.
PAPERS = {
    "dice": ("dice1945",),
    "hd95": ("huttenlocher1993",),
    "surface_dice": ("nikolov2021",),
    "adapted_rand_error": ("argandacarreras2015",),
    "v_rand": ("argandacarreras2015",),
    "v_info": ("argandacarreras2015",),
    "panoptic_quality": ("kirillov2019",),
    "aji": ("kumar2017",),
    "ece": ("guo2017",),
    "brier": ("brier1950",),
}
PERSONS = ("Dice", "Hausdorff", "Brier", "Betti")  # their names keep the capital within a sentence
SPLITS = {"train": "training", "val": "validation", "test": "test"}
MEASURING = ("numpy", "scipy", "scikit-image", "SimpleITK", "nibabel", "pandas")
NAMES = {"python": "Python", "torch": "PyTorch", "monai": "MONAI", "openvino": "OpenVINO", "numpy": "NumPy", "scipy": "SciPy"}
# A statistic of agreement.csv -> what it stands for, and whom to cite.
SIZES = {
    "limit_lower": ("limits of agreement", ("bland1986",)),
    "icc_2_1": ("intraclass correlation", ("shrout1979",)),
    "passing_bablok_slope": ("Passing-Bablok regression", ("passing1983",)),
    "deming_slope": ("Deming regression", ("linnet1993",)),
}
SOFTWARE_PAPERS = {"torch": "paszke2019", "monai": "cardoso2022"}


@dataclass(frozen=True)
class Part:
    """One paragraph. `key` is what checklists know it by."""

    key: str
    title: str
    text: str


@dataclass(frozen=True)
class Methods:
    """The methods of a run.

    Args:
        parts: paragraphs in their order, with citations as [1]; those that no record speaks of are absent.
        sources: the works cited, in the order of their numbers.
    """

    parts: tuple[Part, ...]
    sources: tuple[Source, ...]

    def get(self, key: str) -> str:
        """The text of a paragraph, or nothing."""
        return next((part.text for part in self.parts if part.key == key), "")

    @property
    def text(self) -> str:
        """All of it as plain text."""
        lines = [f"{part.title}\n{textwrap.fill(part.text, 100, break_long_words=False)}\n" for part in self.parts]
        references = [f"[{i}] {source.text} {source.link}".rstrip() for i, source in enumerate(self.sources, start=1)]
        return "\n".join(["Methods", "", *lines, "References", *references, ""])


def compose_methods(data: ReportData) -> Methods:
    """The methods of what `collect_run` or `collect_folders` found; of masks made by another tool only their evaluation."""
    paragraphs = {
        ("data", "Data"): data_sentences(data),
        ("partitions", "Partitions"): partition_sentences(data),
        ("preprocessing", "Preprocessing"): recipe.preprocessing_sentences(data),
        ("network", "Networks"): recipe.network_sentences(data),
        ("training", "Training"): recipe.training_sentences(data),
        ("finishing", "Postprocessing"): recipe.finishing_sentences(data),
        ("inference", "Inference"): recipe.inference_sentences(data),
        ("evaluation", "Evaluation"): evaluation_sentences(data),
        ("statistics", "Statistics"): statistics_sentences(data),
        ("software", "Software and hardware"): software_sentences(data),
    }
    told = {names: " ".join(sentences) for names, sentences in paragraphs.items() if sentences}
    texts, cited = number(list(told.values()))
    parts = (Part(key, title, text) for (key, title), text in zip(told, texts, strict=True))
    return Methods(tuple(parts), tuple(cited))


def write_methods(methods: Methods, folder: Path) -> None:
    """Write methods.txt and references.bib. Raises: OutputError where the folder cannot be written."""
    write_text(Path(folder) / "methods.txt", methods.text)
    write_text(Path(folder) / "references.bib", bibtex(methods.sources))


def data_sentences(data: ReportData) -> list[str]:
    """What was segmented in what."""
    facts, found = data.facts, []
    if facts.name:
        more = [plain(facts.citation), f"licence {plain(facts.licence)}" if facts.licence else ""]
        told = "; ".join(part for part in more if part)
        found.append(f"The data set was {plain(facts.name)}{f' ({told})' if told else ''}.")
    if words := _modality(data):
        found.append(f"Modality: {words}.")
    if data.plan and len(data.channels) > 1:
        found.append(f"Each case has the channels {listing(map(plain, data.channels))}.")
    if names := [plain(name) for name in data.structures]:
        kind = "regions" if data.labels and data.labels.regions else "structures" if len(names) > 1 else "structure"
        found.append(f"The {kind} of interest: {listing(names)}.")
    if facts.note:
        found.append(f"Of these data it must be said: {plain(facts.note).rstrip('.')}.")
    return found


def _modality(data: ReportData) -> str:
    stated = data.records.get(("prepare", ""), {}).get("inputs", {}).get("data", {}).get("modality")
    stated = stated or data.records.get(("check", ""), {}).get("inputs", {}).get("data", {}).get("modality") or []
    named = [MODALITIES[m] for m in ([stated] if isinstance(stated, str) else stated) if m in MODALITIES]
    return listing(dict.fromkeys(named))


def partition_sentences(data: ReportData) -> list[str]:
    """Which cases served what, and how far they came."""
    found = []
    if data.facts.design:
        found.append(f"Design: {plain(data.facts.design)}.")
    counts = {split: sum(case.split == split for case in data.cases) for split in SPLITS}
    if data.cases and not data.facts.design:
        parts = [f"{n} for {SPLITS[split]}" for split, n in counts.items() if n]
        found.append(f"The manifest holds {len(data.cases)} cases: {listing(parts)}.")
    elif data.cases:
        apart = f", {counts['test']} of them test cases" if counts["test"] else ""
        found.append(f"The manifest holds {len(data.cases)} cases{apart}.")
    patients = {case.patient_id for case in data.cases}
    if patients and "" not in patients and None not in patients:
        found.append(f"They come from {len(patients)} patients.")
    return found + checked_sentences(data) + flow_sentences(data)


def checked_sentences(data: ReportData) -> list[str]:
    """What the check of the files found."""
    checked = data.records.get(("check", ""), {}).get("counts", {})
    if "errors" not in checked:
        return []
    return [f"A check of all files found {checked['errors']} errors and {checked['warnings']} warnings."]


def flow_sentences(data: ReportData) -> list[str]:
    """How far the cases came, alike for all models where they did."""
    told: dict[str, list[str]] = {}
    for row in flow_rows(data):
        if row.model:
            of = f"Of {row.given} {SPLITS.get(row.split, 'evaluated')} cases"
            text = f"{of} {row.readable} were readable, {row.segmented} segmented and {row.evaluated} evaluated"
            told.setdefault(text, []).append(plain(row.model))
    every = len(told) == 1
    return [f"{text}{'' if every else f' ({listing(names)})'}." for text, names in told.items()]


def evaluation_sentences(data: ReportData) -> list[str]:
    """What was measured, and how absent masks count."""
    columns = list(dict.fromkeys(c for model in data.models for c in metric_columns(model.per_case)))
    named = [_metric(column) for column in columns]
    found = [f"Masks were compared with the reference on each scan's own grid by {listing(named)}."] if named else []
    if any("worst" in set(model.summary["convention"]) for model in data.models):
        found.append(
            "A missing prediction or a missed structure counts as the worst value, 0 or the scan's diagonal for distances, and a "
            "structure in neither mask as perfect; means over defined values alone are given beside it."
        )
    found += object_sentences(data)
    if any(column in ("ece", "brier") for column in columns):
        found.append(
            f"Probabilities were compared with the reference, in {N_BINS} bins for the calibration error, in the box around the "
            f"structure in both masks and {MARGIN:g} mm, or pixels, about it."
        )
    if any(_settings(data, model.name).get("resample") == "nearest" for model in data.models):
        found.append("Predictions on other grids than the reference's were laid onto these by nearest neighbour.")
    if any(_settings(data, model.name).get("missing_structures") == "empty" for model in data.models):
        found.append("A structure without a mask of its own in a case was taken as absent there.")
    return found


def object_sentences(data: ReportData) -> list[str]:
    """What counted as one object, where objects were compared one by one; alike for all models where their records say so."""
    told: dict[str, list[str]] = {}
    for model in data.models:
        compared = any(c in METRICS and METRICS[c].group == "instances" for c in metric_columns(model.per_case))
        if compared and ("evaluate", model.name) in data.records:
            told.setdefault(_objects(data, model.name), []).append(plain(model.name))
    return [f"{text}{'' if len(told) == 1 else f' ({listing(names)})'}." for text, names in told.items()]


def _objects(data: ReportData, model: str) -> str:
    numbered = data.records["evaluate", model].get("inputs", {}).get("numbered", [])
    joined = [name for name in data.structures if name not in numbered]
    parts = []
    if numbered:
        parts.append(
            f"objects of {listing(map(plain, numbered))} were those that the reference numbers, compared with those that a "
            "prediction numbers or, where it numbers none, with its connected components"
        )
    if joined:
        parts.append(f"objects of {listing(map(plain, joined))} were the connected components of both masks")
    text = "; ".join(parts)
    return text[:1].upper() + text[1:]


def _metric(column: str) -> str:
    text = describe(column)
    keys = [key for key in PAPERS if column == key or column.startswith(f"{key}_")]
    first = text.name.split()[0]
    name = text.name[:1].lower() + text.name[1:] if first.istitle() and first not in PERSONS else text.name
    return plain(f"{name}{f' ({text.unit})' if text.unit else ''}") + (cite(*PAPERS[max(keys, key=len)]) if keys else "")


def _settings(data: ReportData, model: str) -> dict[str, Any]:
    return dict(data.records.get(("evaluate", model), {}).get("inputs", {}).get("evaluate", {}))


def statistics_sentences(data: ReportData) -> list[str]:
    """Intervals and comparisons."""
    found = []
    settings = next((s for model in data.models if (s := _settings(data, model.name))), {})
    units, words = min(count_units(model.per_case) for model in data.models), unit_words(data)
    given = any(model.summary["ci_low"].notna().any() for model in data.models)
    if "confidence" in settings and given:
        how_many = f"{units} " if len({count_units(model.per_case) for model in data.models}) == 1 else ""
        draws = f" ({settings['bootstrap_resamples']} resamples)" if "bootstrap_resamples" in settings else ""
        found.append(
            f"Means are given with {100 * settings['confidence']:.3g} % bias-corrected and accelerated bootstrap "
            f"intervals{cite('efron1987')} over {how_many}{words}{draws}{_together(data)}."
        )
    elif not given:
        few = f", as there are {units} {words} and fewer than {LEAST_UNITS}" if units < LEAST_UNITS else ""
        found.append(f"No confidence intervals are given{few}.")
    if data.readers is not None:
        n, cases = int(data.readers.table["n_readers"].max()), len(data.readers.cases)
        found.append(f"Agreement between every two of {n} readers was measured in the same way on {cases} cases.")
    return found + _sizes(data) + _comparison(data)


def _together(data: ReportData) -> str:
    """Where it matters, that the cases of a unit are not resampled one by one."""
    return "; all cases of a unit were resampled together, and means are over cases" if units_repeat(data) else ""


def _sizes(data: ReportData) -> list[str]:
    """How predicted and reference sizes were held against each other."""
    known = {s for model in data.models if model.agreement is not None for s in model.agreement["statistic"]}
    parts = [f"{text}{cite(*papers)}" for name, (text, papers) in SIZES.items() if name in known]
    return [f"Predicted and reference sizes were compared by {listing(parts)}."] if parts else []


def _comparison(data: ReportData) -> list[str]:
    table = data.comparison_summary
    if table is None or not len(table):
        return []
    found = ["Models were compared pair by pair on the same cases; what one of them missed counts as its worst."]
    if "p_wilcoxon" in table and table["p_wilcoxon"].notna().any():
        tests = int(table["p_wilcoxon"].notna().sum())
        found.append(
            f"The mean differences of {unit_words(data)} were tested by Wilcoxon's signed rank test{cite('wilcoxon1945')}, "
            f"two-sided, zeros after Pratt, with p values of {tests} tests corrected after Holm{cite('holm1979')}."
        )
    if "rank_biserial" in table:
        found.append("The effect size is the matched-pairs rank-biserial correlation, ties left out.")
    if "margin" in table and table["margin"].notna().any():
        found.append("Verdicts on non-inferiority compare the interval of the difference with the margin that was stated for it.")
    if "mixed_difference" in table and table["mixed_difference"].notna().any():
        found.append(
            "Where patients have several cases, a mixed model with a random intercept for each patient (restricted maximum "
            "likelihood) gives the difference a second time."
        )
    return found


def software_sentences(data: ReportData) -> list[str]:
    """Versions, machine, seed and time, of training where there was one."""
    trained = [r for (stage, _), r in data.records.items() if stage in ("train", "predict")]
    records = trained or [r for (stage, _), r in data.records.items() if stage == "evaluate"]
    if not records:
        return []
    record, found = records[0], []
    commit = f", commit {commit_text(record['commit'])}" if record.get("commit") else ""
    used = record.get("versions", {})
    used = used if trained else {name: v for name, v in used.items() if name == "python" or name in MEASURING}
    listed = [f"{NAMES.get(name, plain(name))} {plain(version)}{_paper(name)}" for name, version in used.items()]
    medseg = f"medseg {plain(record['medseg'])}{commit}" if record.get("medseg") else "medseg"
    what = "The analysis was made with" if trained else "Masks were measured with"
    found.append(f"{what} {medseg}{f', on {listing(listed)}' if listed else ''}.")
    if record.get("machine"):
        found.append(f"Machine: {plain(machine_text(record['machine']))}.")
    seed = next((r["seed"] for r in records if r.get("seed") is not None), None)
    found += [f"The random seed was {seed}."] if seed is not None else []
    times = [
        f"{duration(r.get('training_seconds', r.get('seconds')))} ({plain(model)})"
        for (stage, model), r in data.records.items()
        if stage == "train" and model and "seconds" in r
    ]
    return found + ([f"Training took {listing(times)}."] if times else [])


def _paper(name: str) -> str:
    return cite(SOFTWARE_PAPERS[name]) if name in SOFTWARE_PAPERS else ""
