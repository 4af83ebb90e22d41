"""Which cases deserve a second look: what is unusual about a scan or its mask, in plain sentences (`qc.csv`)."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from medseg.core.labels import LabelScheme
from medseg.inference.bundle import Description
from medseg.inference.features import AXES, Observer, describe
from medseg.inference.typical import Limit, Typical, trait_of

__all__ = ["QC_COLUMNS", "Flag", "Observer", "describe", "judge", "qc_csv", "qc_row", "typical_of"]

QC_COLUMNS = ("case_id", "flags", "sentences")  # then a column for each feature
MARGIN = 1.25  # factor by which a spacing may lie outside of the training scans' range, and a size where nothing else is known
TURNED = 0.2  # by which a scan's correlation with the mean must grow where it is turned over; noise fits neither way
WAYS = dict(zip(AXES, (("left", "right"), ("back", "front"), ("bottom", "top")), strict=True))
SIZES = {"volume_ml": " ml", "area_mm2": " mm2", "volume_px": " voxels"}
TRAINING, VALIDATION = "in the training cases", "in the validation cases"
SENTENCES = {
    "spacing_mm": f"the voxels are {{it}} mm long {{way}}; {TRAINING} they were {{was}} mm",
    **{f"extent_{unit}": f"the scan measures {{it}} {unit} {{way}}; {TRAINING} it was {{was}} {unit}" for unit in ("mm", "px")},
    "intensity": "the intensities are spread in another way: {percent} % of the voxels lie below {it} (normalised){channel}; "
    f"{TRAINING} below {{was}}",
    "roughness": "the scan is {rougher} than the training scans{channel}; neighbours differ by {it} of the "
    "spread, there by {was}",
    "resemblance": "the scan does not look like the training scans: its correlation with their mean is {it}; theirs was {was}",
    "upright": "the scan looks more like the training scans when it is turned over {way}",
    **{trait: f"the {{name}} has {{it}}{unit}; {TRAINING} it had {{was}}{unit}" for trait, unit in SIZES.items()},
    "pieces": f"the {{name}} is in {{it}} pieces; {TRAINING} in {{was}}",
    "position": f"the {{name}} lies at {{share}} of the way {{way}}; {TRAINING} at {{shares}}",
    "cut_share": f"the {{name}} is cut by the edge of the scan; {TRAINING} {{cut}}",
    "entropy": f"the network doubts what is {{name}}: mean entropy {{it}}; {VALIDATION} it was {{was}}",
    "doubt": f"the network is in doubt: entropy {{it}} for each voxel of a structure; {VALIDATION} it was {{was}}",
    "mirror_dice": f"answers for the mirrored scan agree by Dice {{it}} only; {VALIDATION} masks and references did by {{was}}",
}


@dataclass(frozen=True)
class Flag:
    """One thing that is unusual about a case.

    Args:
        kind: `spacing`, `extent`, `intensity`, `roughness`, `resemblance`, `upright`, `absent`, `size`, `pieces`, `position`,
            `cut`, `doubt` or `mirroring`.
        sentence: without a full stop.
    """

    kind: str
    sentence: str


def typical_of(about: Description) -> Typical:
    """What a model file knows of ordinary cases: what was learnt at the end of training, and what its fingerprint tells.

    Of a file without the first, only voxel size and field of view can be judged.
    """
    typical = about.typical or Typical()
    return typical.model_copy(update={"limits": _of_fingerprint(about) | typical.limits})


def _of_fingerprint(about: Description) -> dict[str, Limit]:
    """Limits of spacing and extent from the ranges of the training scans, a quarter wider."""
    ranges = about.fingerprint
    if not {"spacing", "shape", "unit"} <= ranges.keys():
        return {}
    limits = {}
    for axis, fine, coarse, few, many in zip(AXES, *ranges["spacing"], *ranges["shape"], strict=True):
        if ranges["unit"] == "mm":
            limits[f"spacing_mm:{axis}"] = _limit(fine, coarse)
        if not about.plan.preprocessing.crop_nonzero:
            limits[f"extent_{ranges['unit']}:{axis}"] = _limit(few * fine, many * coarse)
    return limits


def _limit(least: float, greatest: float) -> Limit:
    return Limit(least=least, greatest=greatest, low=least / MARGIN, high=greatest * MARGIN)


def judge(features: Mapping[str, float | None], typical: Typical, labels: LabelScheme) -> list[Flag]:
    """What is unusual about a case, the scan first; of one thing along several axes or in several numbers, the most unusual.

    Args:
        features: of `describe`; what is not known is NaN, None or not there.
        typical: of the model that made the mask (`typical_of`).
    """
    known = {name: float(value) for name, value in features.items() if value is not None and math.isfinite(value)}
    worst: dict[tuple[str, str], tuple[float, str]] = {}
    for name, value in known.items():
        limit = typical.limits.get(name)
        excess = limit.excess(value) if limit is not None else 0.0
        trait = trait_of(name)
        if excess <= 0 or (trait == "upright" and value > -TURNED):  # turned over it would not fit better
            continue
        if trait in SIZES and value == 0:  # absent, which is another flag, or none where training cases lack it too
            continue
        kind = KINDS[trait]
        thing = (kind, _structure(name, labels))
        if excess > worst.get(thing, (0.0, ""))[0]:
            worst[thing] = (excess, name)
    flags = [Flag(kind, _sentence(name, known[name], typical.limits[name], labels)) for (kind, _), (_, name) in worst.items()]
    absent = [n for n in typical.always if any(known.get(f"{size}:{n}") == 0 for size in SIZES)]
    flags += [Flag("absent", f"no {name} was found; every training case has it") for name in absent]
    return sorted(flags, key=lambda flag: ORDER.index(flag.kind))


KINDS = {
    "spacing_mm": "spacing",
    **dict.fromkeys(("extent_mm", "extent_px"), "extent"),
    **{name: name for name in ("intensity", "roughness", "resemblance", "upright", "pieces", "position")},
    **dict.fromkeys(SIZES, "size"),
    "cut_share": "cut",
    **dict.fromkeys(("entropy", "doubt"), "doubt"),
    "mirror_dice": "mirroring",
}
ORDER = [*dict.fromkeys(KINDS.values()), "absent"]


def _structure(feature: str, labels: LabelScheme) -> str:
    """The structure or region that a feature is of; empty for the scan's own."""
    rest = feature.partition(":")[2]
    if trait_of(feature) == "position":
        rest = rest.rpartition(":")[0]
    return rest if rest in labels.measured else ""


def _sentence(feature: str, value: float, limit: Limit, labels: LabelScheme) -> str:
    """What is unusual, with what was usual."""
    trait, name, ending = trait_of(feature), _structure(feature, labels), feature.rpartition(":")[2]
    start, end = WAYS.get(ending, ("", ""))
    least, greatest = _number(limit.least), _number(limit.greatest)
    return SENTENCES[trait].format(
        name=name,
        it=_number(value),
        was=least if least == greatest else f"{least} to {greatest}",
        way=f"from {start} to {end}",
        percent=feature.partition(":")[0].removeprefix("intensity_p").lstrip("0"),
        channel=f" in channel {ending}" if ending.isdigit() else "",
        rougher="noisier" if value > limit.greatest else "smoother",
        share=f"{100 * value:.0f} %",
        shares=f"{100 * limit.least:.0f} to {100 * limit.greatest:.0f} %",
        cut="it was cut less" if limit.greatest > 0 else "it was not",
    )


def _number(value: float) -> str:
    """Three digits that tell, without an exponent as far as people read them so."""
    return f"{float(f'{value:.3g}'):g}"


def qc_row(case_id: str, features: Mapping[str, float | None], flags: Sequence[Flag] | None) -> dict[str, str]:
    """One row of qc.csv.

    Args:
        flags: None for a case that has no mask; its cells stay empty.
    """
    values = {name: "" if value is None or math.isnan(value) else f"{value:.5g}" for name, value in features.items()}
    count, text = ("", "") if flags is None else (str(len(flags)), "; ".join(flag.sentence for flag in flags))
    return {"case_id": case_id, "flags": count, "sentences": text} | values


def qc_csv(rows: Sequence[Mapping[str, str]]) -> str:
    """qc.csv: the columns `QC_COLUMNS` and then one for each feature that any case has."""
    columns = dict.fromkeys(QC_COLUMNS) | dict.fromkeys(column for row in rows for column in row)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
