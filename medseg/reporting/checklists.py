"""Reporting checklists, filled in as far as the records of a run tell, the rest left to the author."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import yaml

from medseg.core.files import write_text
from medseg.core.labels import LabelScheme
from medseg.reporting.cases import failures
from medseg.reporting.citations import Source, plain, sources
from medseg.reporting.collect import ReportData
from medseg.reporting.methods import Methods, checked_sentences, flow_sentences
from medseg.reporting.recipe import chosen_sentences, foreground_sentences, listing, training_record
from medseg.reporting.tables import count_units, summary_row
from medseg.reporting.words import NONE, describe, find_metric, unit_words

CHECKLISTS = Path(__file__).parent / "checklists"
ORDER = ("claim_2024", "tripod_ai", "metrics_reloaded")
MOST_FIGURES = 8
HEADLINE = ("dice", "hd95")
CALIBRATION = {"ece": "the calibration error", "brier": "the Brier score"}
HASH = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{52}\b")
Answer = Callable[[ReportData, Methods], str]


@dataclass(frozen=True)
class Item:
    """One item of a checklist.

    Args:
        number: as published; empty where the checklist's text could not be had.
        applies: D (development), E (evaluation) or both, where the checklist says so.
        topic: in our words, what the item asks for.
        answer: what the records tell; may be empty.
        ask: what only the author knows; may be empty.
        brief: the answer for paper, where paragraphs of the methods are named in place of being told again.
    """

    number: str
    section: str
    applies: str
    topic: str
    answer: str
    ask: str
    brief: str = ""

    @property
    def name(self) -> str:
        """Its number, or where it has none its topic."""
        return self.number or self.topic

    @property
    def state(self) -> Literal["records", "part", "author"]:
        """Who answers it: the records, the records in part, or the author."""
        if not self.answer:
            return "author"
        return "part" if self.ask else "records"


@dataclass(frozen=True)
class Checklist:
    """A checklist with its answers.

    Args:
        source: whom to cite.
        address: where the checklist's own wording stands.
        wording: where numbers and topics were read.
        left_out: what could not be had; empty where all is there.
    """

    name: str
    source: Source
    address: str
    wording: str
    note: str
    left_out: str
    numbered: bool
    items: tuple[Item, ...]

    def count(self, state: str) -> int:
        """How many items are in a state."""
        return len(self.of(state))

    def of(self, *states: str) -> list[Item]:
        """The items in these states."""
        return [item for item in self.items if item.state in states]


def fill_checklists(data: ReportData, methods: Methods) -> list[Checklist]:
    """CLAIM 2024, TRIPOD+AI and Metrics Reloaded with what the records tell."""
    return [_fill(_read(name), data, methods) for name in ORDER]


def write_checklists(filled: list[Checklist], folder: Path) -> None:
    """Write each checklist as CSV. Raises: OutputError where the folder cannot be written."""
    for name, checklist in zip(ORDER, filled, strict=True):
        table = pd.DataFrame([asdict(item) | {"state": item.state} for item in checklist.items]).drop(columns="brief")
        write_text(Path(folder) / f"{name}.csv", table.to_csv(index=False, lineterminator="\n"))


def _read(name: str) -> dict[str, Any]:
    return dict(yaml.safe_load((CHECKLISTS / f"{name}.yaml").read_text(encoding="utf-8")))


def _fill(content: dict[str, Any], data: ReportData, methods: Methods) -> Checklist:
    return Checklist(
        name=content["name"],
        source=sources()[content["citation"]],
        address=content["address"],
        wording=content["source"],
        note=content["note"],
        left_out=content.get("left_out", ""),
        numbered=content["numbered"],
        items=tuple(_item(item, data, methods) for item in content["items"]),
    )


def _item(item: dict[str, Any], data: ReportData, methods: Methods) -> Item:
    key = item.get("answer", "")
    answer = (ANSWERS[key](data, methods) if key in ANSWERS else methods.get(key)) if key else ""
    ask = item.get("ask", "") or ("" if answer else "The records of this report do not tell.")
    texts = (item.get("number", ""), item["section"], item.get("applies", ""), item["topic"], answer, ask)
    return Item(*texts, brief=_brief(answer, methods))


def _brief(answer: str, methods: Methods) -> str:
    answer = HASH.sub(r"\1…", answer)
    named = [part for part in methods.parts if part.text in answer]
    for part in named:
        answer = answer.replace(part.text, "")
    told = f"Methods: {listing(part.title for part in named)}." if named else ""
    return " ".join([*answer.split(), told]).strip()


def _technology(data: ReportData, methods: Methods) -> str:
    named = [f"{plain(m.name)} ({plain(m.settings['architecture'])})" for m in data.models if m.settings.get("architecture")]
    return f"Segmentation by deep learning with convolutional networks: {listing(named)}." if named else ""


def _together(*keys: str) -> Answer:
    return lambda data, methods: " ".join(text for key in keys if (text := methods.get(key)))


def _missing(data: ReportData, methods: Methods) -> str:
    n = len({failure.case_id for failure in failures(data)})
    if not n:
        return "No case failed, so no figure is missing for want of a mask."
    told = "1 case" if n == 1 else f"{n} cases"
    return f"{told} could not be read, segmented or evaluated; each is listed with its reason and counts as the worst value."


def _disjoint(data: ReportData, methods: Methods) -> str:
    checked = data.records.get(("check", ""), {}).get("counts", {})
    if "errors" not in checked:
        return ""
    unit = "patients" if data.cases and all(case.patient_id for case in data.cases) else "cases, as no patients are named"
    found = f"{checked['errors']} errors"
    return f"Partitions are of {unit}. A check, which also looks for one patient or picture in two of them, found {found} in all."


def _sample(data: ReportData, methods: Methods) -> str:
    units = {m.name: (m.per_case["case_id"].nunique(), count_units(m.per_case)) for m in data.models}
    cases, n = next(iter(units.values()))
    return f"{cases} cases were evaluated ({n} {unit_words(data)})." if len(set(units.values())) == 1 else ""


def _start(data: ReportData, methods: Methods) -> str:
    records = [r for model in data.models if (r := training_record(data, model))]
    if not records:
        return ""
    if used := records[0]["inputs"].get("init_from_sha256"):
        return f"From the weights of a model with the SHA-256 {used}."
    if any(record["inputs"].get("model", {}).get("weights_sha256") for record in records):
        return "From published weights of a classifier, where the model takes them; otherwise from random numbers."
    return f"From random numbers with the seed {records[0].get('seed')}."


def _selection(data: ReportData, methods: Methods) -> str:
    return " ".join([*chosen_sentences(data), methods.get("finishing")]).strip()


def _ensemble(data: ReportData, methods: Methods) -> str:
    if data.facts.design:
        return f"{plain(data.facts.design)}."
    used = [r["inputs"]["model"] for (stage, _), r in data.records.items() if stage == "predict" and r["inputs"].get("model")]
    trained = any(len(m.settings.get("schedules", [])) > 1 for m in data.models)
    return (
        "Each mask was made by one model without an ensemble." if used and not trained and all(len(u) == 1 for u in used) else ""
    )


def _performance(data: ReportData, methods: Methods) -> str:
    """The headline means of a small study; of a large one where they stand."""
    parts = []
    for column in filter(None, (find_metric(data, name) for name in HEADLINE)):
        text = describe(column)
        for model in data.models:
            t = model.summary[(model.summary["metric"] == column) & (model.summary["convention"] == "worst")]
            for _, cells in t.iterrows():
                row = summary_row(model.name, text, cells)
                interval = f" [{row.interval}]" if row.interval != NONE else ""
                parts.append(f"{plain(cells['structure'])}, {plain(model.name)}: {text.label} {row.mean}{interval}, n = {row.n}")
    if len(parts) > MOST_FIGURES:
        return "Means with intervals, medians and quartiles stand in the section Results."
    return f"{'; '.join(parts)}." if parts else ""


def _failure(data: ReportData, methods: Methods) -> str:
    words = {
        "prediction_empty": "missed",
        "reference_empty": "found where the reference has none",
        "prediction_missing": "without a mask",
    }
    told = []
    for model in data.models:
        counts = model.per_case["status"].value_counts()
        fates = listing(f"{counts.get(key, 0)} {word}" for key, word in words.items())
        told.append(f"Of {len(model.per_case)} structures in the cases, {plain(model.name)}: {fates}.")
    return f"{' '.join(told)} Each case has a row in the section Every case."


def _hashes(data: ReportData) -> list[str]:
    tables = [(m.name, m.predictions) for m in data.models if m.predictions is not None and "model_sha256" in m.predictions]
    return [f"{plain(name)}, SHA-256 {value}" for name, t in tables for value in dict.fromkeys(t["model_sha256"]) if value]


def _availability(data: ReportData, methods: Methods) -> str:
    models = f"Model files: {'; '.join(found)}." if (found := _hashes(data)) else ""
    return " ".join(part for part in (methods.get("software"), _licence(data, methods), models) if part)


def _licence(data: ReportData, methods: Methods) -> str:
    return f"Licence of the data: {plain(data.facts.licence)}." if data.facts.licence else ""


def _specification(data: ReportData, methods: Methods) -> str:
    models = f"Model files: {'; '.join(found)}." if (found := _hashes(data)) else ""
    return " ".join(part for part in (methods.get("network"), models) if part)


def _structures(data: ReportData, methods: Methods) -> str:
    return f"Reference masks of {listing(map(plain, data.structures))}." if data.structures else ""


def _inputs(data: ReportData, methods: Methods) -> str:
    channels = data.plan.get("channels")
    return f"The intensities of all voxels; channels: {listing(map(plain, channels))}." if channels else ""


def _imbalance(data: ReportData, methods: Methods) -> str:
    record = next((r for model in data.models if (r := training_record(data, model))), None)
    if record is None:
        return ""
    settings = record["inputs"]["training"]
    weights = settings.get("class_weights")
    found = [f"Classes were weighted ({plain(weights)})." if weights else "Classes were not weighted."]
    return " ".join([*found, *foreground_sentences(data, settings)])


def _output(data: ReportData, methods: Methods) -> str:
    labels: LabelScheme | None = data.labels
    if labels is None:
        return ""
    kind = "each region is answered by yes or no, and regions are painted into classes" if labels.regions else "one class a voxel"
    return f"A mask on the scan's own grid; {kind}."


def _category(data: ReportData, methods: Methods) -> str:
    columns = {c for model in data.models for c in model.per_case.columns}
    instances = any(c.startswith(("panoptic_quality", "average_precision", "aji", "lesion_", "adapted_rand")) for c in columns)
    return "Measured as semantic segmentation" + (", and by objects." if instances else ".")


def _sizes(data: ReportData, methods: Methods) -> str:
    """How large the structures are in the reference."""
    column = find_metric(data, "reference_volume") or find_metric(data, "reference_area")
    if column is None:
        return ""
    text, table, found = describe(column), data.models[0].per_case, []
    for structure in data.structures[:MOST_FIGURES]:
        sizes = table.loc[table["structure"] == structure, column].dropna()
        if len(sizes):
            low, high = (text.format(float(v)) for v in (sizes.min(), sizes.max()))
            found.append(f"{plain(structure)} {low} to {high} {text.unit}".rstrip())
    return f"Size in the reference: {'; '.join(found)}." if found else ""


def _dataset(data: ReportData, methods: Methods) -> str:
    counts = data.models[0].per_case["status"].value_counts()
    absent = int(counts.get("both_empty", 0) + counts.get("reference_empty", 0))
    total = len(data.models[0].per_case)
    return f"The reference lacks the structure in {absent} of {total} rows (case and structure). {_class_shares(data)}".strip()


def _class_shares(data: ReportData) -> str:
    voxels = data.plan.get("class_voxels")
    if not voxels:
        return ""
    whole = sum(voxels) or 1
    shares = listing(f"{100 * n / whole:.3g} %" for n in voxels)
    return f"Shares of the classes in the voxels of the training cases, background first: {shares}."


def _calibration(data: ReportData, methods: Methods) -> str:
    options = [r["inputs"].get("options", {}) for (stage, _), r in data.records.items() if stage == "predict"]
    if not any("probabilities" in o for o in options):
        return ""
    if not any(o.get("probabilities") for o in options):
        return "Only masks were written."
    named = [text for name, text in CALIBRATION.items() if find_metric(data, name)]
    measured = f" They were measured by {listing(named)}; reliability diagrams stand in the section Results." if named else ""
    return f"Probabilities were written.{measured}"


def _readers(data: ReportData, methods: Methods) -> str:
    """How far readers agree with one another, where it was measured."""
    if data.readers is None:
        return ""
    table, parts = data.readers.table, []
    for column in filter(None, (find_metric(data, name) for name in HEADLINE)):
        text = describe(column)
        for row in table[(table["metric"] == column) & (table["n"] > 0)].to_dict("records"):
            mean, low, high = (text.format(row[name]) for name in ("mean", "ci_low", "ci_high"))
            interval = f" [{low} to {high}]" if low != NONE else ""
            parts.append(f"{plain(row['structure'])}: {text.label} {mean}{interval}, n = {row['n']:.0f}")
    n, cases = int(table["n_readers"].max()), len(data.readers.cases)
    told = "the figures stand in the section Results" if len(parts) > MOST_FIGURES else "; ".join(parts)
    return f"Mean agreement between every two of {n} readers on {cases} cases{f': {told}' if parts else ' was measured'}."


def _aggregation(data: ReportData, methods: Methods) -> str:
    undefined = sum(int(m.summary.loc[m.summary["convention"] == "defined", "n_undefined"].sum()) for m in data.models)
    return (
        f"Each structure has its own mean over cases, with intervals over {unit_words(data)}. Under “worst” a missing mask or a "
        "missed structure counts as the worst value; under “defined” undefined figures are left out and counted "
        f"({undefined} in all)."
    )


ANSWERS: dict[str, Answer] = {
    "technology": _technology,
    "missing": _missing,
    "disjoint": _disjoint,
    "sample": _sample,
    "start": _start,
    "selection": _selection,
    "ensemble": _ensemble,
    "performance": _performance,
    "failure": _failure,
    "availability": _availability,
    "licence": _licence,
    "specification": _specification,
    "structures": _structures,
    "inputs": _inputs,
    "imbalance": _imbalance,
    "output": _output,
    "category": _category,
    "sizes": _sizes,
    "dataset": _dataset,
    "readers": _readers,
    "calibration": _calibration,
    "aggregation": _aggregation,
    "flow": lambda data, methods: " ".join(flow_sentences(data)),
    "preparation": lambda data, methods: " ".join([methods.get("preprocessing"), *checked_sentences(data)]).strip(),
    "building": _together("network", "training", "finishing"),
    "measures": _together("evaluation", "statistics"),
}
