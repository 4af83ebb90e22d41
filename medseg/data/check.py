"""Everything that can be wrong with the cases of a data set, found in one pass."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt

from medseg.core.cases import Outcome
from medseg.core.errors import CaseError
from medseg.core.grid import Grid
from medseg.core.labels import IGNORE, LabelScheme
from medseg.core.manifest import Case
from medseg.core.volume import LabelMap, Volume
from medseg.data.leakage import Array, content_hash, near_pairs, thumbnail
from medseg.io.formats import geometry_warnings, read_labels, read_volume

Severity = Literal["error", "warning"]
Spacing = tuple[float, float, float] | None
Picture = TypeVar("Picture", Volume, LabelMap)

MOST_NEAR_SHOWN = 20  # pairs of nearly equal pictures that are named one by one


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: with what, how badly, what it is, and what mends it.

    Args:
        case_id, file: empty where it is not one case's or one file's.
    """

    severity: Severity
    problem: str
    cure: str
    case_id: str = ""
    file: str = ""

    @property
    def sentence(self) -> str:
        return (f"case {self.case_id}: " if self.case_id else "") + f"{self.problem}; {self.cure}."


@dataclass(frozen=True)
class CaseFindings:
    """What one case is like, for the comparison with the others; None where it could not be found out.

    Args:
        channels: image channels of all its files.
        structures: names of those that its label holds.
        content: a hash of its image voxels. thumbnail: a small picture of it.
        sides_mm: by pair of structures (`left x`, `right x`), how far the first lies to the right of the second.
    """

    case: Case
    problems: list[Problem] = field(default_factory=list)
    channels: int | None = None
    physical: bool | None = None
    planar: bool | None = None
    structures: frozenset[str] = frozenset()
    content: str | None = None
    thumbnail: Array | None = field(default=None, compare=False, repr=False)
    sides_mm: dict[tuple[str, str], float] = field(default_factory=dict)


def problem_of(error: Exception, case_id: str = "", file: Path | str = "") -> Problem:
    """The problem in an error message of ours, whose cure stands after its last semicolon."""
    problem, _, cure = str(error).rstrip(".").rpartition("; ")
    return Problem("error", problem or cure, cure if problem else "correct it", case_id, str(file))


def check_case(case: Case, scheme: LabelScheme | None, spacing_mm: Spacing) -> CaseFindings:
    """Read all files of a case and find everything that is wrong with them.

    Args:
        scheme: what its label values mean; None where that is not known, and values are not checked.
        spacing_mm: the voxel size of files that state none.
    """
    problems: list[Problem] = []
    volumes = [_read(case, path, lambda p: read_volume(p, spacing_mm), problems) for path in case.images]
    label = _read(case, case.label, lambda p: read_labels(p, spacing_mm), problems) if case.label else None
    read = [(path, volume) for path, volume in zip(case.images, volumes, strict=True) if volume is not None]
    for path, volume in read:
        others = [constant for p, v in read if p != path for constant in _constant(v)]
        problems += _intensities(case, path, volume, alone=len(case.images) == 1, nothing_else=all(others))
    problems += _grids(case, [(path, volume.grid) for path, volume in read], label.grid if label else None)
    for path in [*(path for path, _ in read), *([case.label] if case.label and label else [])]:
        problems += _geometry(case, path)
    classes = _classes(case, label, scheme, problems)
    if len(read) < len(volumes) or not read:
        return CaseFindings(case, problems)
    arrays, grid = [volume.array for _, volume in read], read[0][1].grid
    return CaseFindings(
        case=case,
        problems=problems,
        channels=sum(len(array) for array in arrays),
        physical=grid.physical,
        planar=grid.planar,
        structures=frozenset(scheme.names[c - 1] for c in np.unique(classes) if 0 < c < IGNORE)
        if scheme and classes is not None
        else frozenset(),
        content=content_hash(arrays),
        thumbnail=thumbnail(arrays) if len({array.shape[1:] for array in arrays}) == 1 else None,
        sides_mm=_sides(classes, label.grid, scheme) if scheme and label and classes is not None else {},
    )


def check_together(
    findings: Sequence[CaseFindings], scheme: LabelScheme | None, fold_of: Mapping[str, int] | None = None
) -> list[Problem]:
    """What is wrong between cases: channels, physical sizes, pictures that stand twice or nearly, sides, structures nobody has.

    Args:
        fold_of: of a cross-validation, the fold that holds each case out.
    """
    places = {f.case.case_id: _place(f.case, fold_of or {}) for f in findings}
    return [
        *_minority(
            findings,
            lambda f: f.channels,
            "error",
            "has {} image channels where most cases have {}",
            "give every case the same channels, or remove it",
        ),
        *_minority(
            findings,
            lambda f: None if f.physical is None else "a physical size" if f.physical else "no physical size",
            "error",
            "has {} where most cases have {}",
            "state `data.spacing_mm`, or separate the two kinds",
        ),
        *_minority(
            findings,
            lambda f: None if f.planar is None else "one slice" if f.planar else "a volume",
            "warning",
            "is {} where most cases are {}",
            "make sure that it belongs here",
        ),
        *_twice(findings, places),
        *_nearly_twice(findings, places),
        *_sides_swapped(findings),
        *_never_seen(findings, scheme),
    ]


def problem_of_outcome(outcome: Outcome[Case, CaseFindings]) -> Problem:
    """The problem where checking itself failed on a case, such as for want of memory."""
    cure = "report it with the file if you can" if outcome.trace else "run `medseg check` again"
    return Problem("error", f"could not be checked ({outcome.reason})", cure, outcome.item.case_id)


def _geometry(case: Case, path: Path) -> Iterator[Problem]:
    for text in geometry_warnings(path):
        problem = text.rstrip(".").replace("; ", ", ")
        yield Problem("warning", problem, "mend the file's header if this is wrong", case.case_id, str(path))


def _read(case: Case, path: Path, read: Callable[[Path], Picture], problems: list[Problem]) -> Picture | None:
    if not path.is_file():
        problems.append(
            Problem(
                "error",
                f"{path} does not exist",
                "correct the manifest or `data.root`, or remove the row",
                case.case_id,
                str(path),
            )
        )
        return None
    try:
        return read(path)
    except CaseError as error:
        problems.append(problem_of(error, case.case_id, path))
        return None


def _constant(volume: Volume) -> list[bool]:
    """Of each channel, whether every voxel holds the same value."""
    return [bool(channel.min() == channel.max()) for channel in volume.array]


def _intensities(case: Case, path: Path, volume: Volume, alone: bool, nothing_else: bool) -> Iterator[Problem]:
    """Args: alone: it is the case's only file. nothing_else: in no other file of the case is anything to be seen."""
    where = (case.case_id, str(path))
    finite = np.isfinite(volume.array)
    if n_bad := finite.size - int(np.count_nonzero(finite)):
        yield Problem(
            "error", f"{path} holds {n_bad} NaN or infinite voxels", "replace them with numbers, or remove the case", *where
        )
        return
    constant = _constant(volume)
    if all(constant):  # one of several files may be an empty dye, as one channel of several may
        severity: Severity = "error" if nothing_else else "warning"
        text = f"{path} is constant, every voxel holds the same value"
        yield Problem(severity, text, "check the file or remove the case", *where)
    elif any(constant):
        which = ", ".join(str(number) for number, same in enumerate(constant, start=1) if same)
        yield Problem(
            "warning", f"{path} is constant in channel {which}", "leave the channel out, or state `data.modality: rgb`", *where
        )
    if not alone and len(constant) > 1:
        yield Problem(
            "error", f"{path} holds {len(constant)} channels and is one of several image files", "give one channel a file", *where
        )


def _grids(case: Case, images: list[tuple[Path, Grid]], label: Grid | None) -> Iterator[Problem]:
    for path, grid in images[1:]:
        if difference := images[0][1].difference(grid):
            text = f"{path} does not lie on the voxels of {images[0][0]}: {difference}"
            yield Problem("error", text, "resample one of them, or remove the case", case.case_id, str(path))
    if images and label and (difference := images[0][1].difference(label)):
        text = f"the label's grid differs from the image's (image against label): {difference}"
        yield Problem("error", text, "resample the label onto the image, or remove the case", case.case_id, str(case.label))


def _classes(
    case: Case, label: LabelMap | None, scheme: LabelScheme | None, problems: list[Problem]
) -> npt.NDArray[np.uint8] | None:
    where = (case.case_id, str(case.label or ""))
    if case.label is None:
        use = "evaluated" if case.split == "test" else "used for training"
        severity: Severity = "warning" if case.split == "test" else "error"
        problems.append(Problem(severity, f"has no label and cannot be {use}", "name its label, or remove the row", *where))
    if label is None or scheme is None:
        return None
    try:
        classes = scheme.encode(label.array, str(case.label))
    except CaseError as error:
        problems.append(problem_of(error, case.case_id, case.label or ""))
        return None
    if not ((classes > 0) & (classes != IGNORE)).any():
        problems.append(
            Problem("warning", f"{case.label} is empty, it holds no structure", "make sure that this is meant", *where)
        )
    return classes


def _sides(classes: npt.NDArray[np.uint8], grid: Grid, scheme: LabelScheme) -> dict[tuple[str, str], float]:
    if not grid.physical:
        return {}

    def right_mm(name: str) -> float:
        voxels = np.argwhere(classes == scheme.names.index(name) + 1)
        return float(grid.affine[0, :3] @ voxels.mean(0) + grid.affine[0, 3]) if len(voxels) else np.nan

    pairs = {tuple(sorted((s.name, s.paired_with))) for s in scheme.structures if s.paired_with}
    distances = {(a, b): right_mm(a) - right_mm(b) for a, b in sorted(pairs)}
    return {pair: distance for pair, distance in distances.items() if np.isfinite(distance)}


def _minority(
    findings: Sequence[CaseFindings], value: Callable[[CaseFindings], Hashable], severity: Severity, text: str, cure: str
) -> Iterator[Problem]:
    """A problem for each case whose value is not the most frequent one."""
    counts = Counter(value(f) for f in findings if value(f) is not None)
    if len(counts) < 2:
        return
    usual = counts.most_common(1)[0][0]
    for f in findings:
        if (own := value(f)) is not None and own != usual:
            yield Problem(severity, text.format(own, usual), cure, f.case.case_id, str(f.case.images[0]))


def _place(case: Case, fold_of: Mapping[str, int]) -> str:
    """What must share no picture with another place: the fold, or the split."""
    return f"fold {fold_of[case.case_id]}" if case.case_id in fold_of else case.split


def _twice(findings: Sequence[CaseFindings], places: Mapping[str, str]) -> Iterator[Problem]:
    known = sorted((f for f in findings if f.content), key=lambda f: str(f.content))
    for _, group in groupby(known, key=lambda f: f.content):
        first, *others = group
        for f in (f for f in others if f.case.case_id != first.case.case_id):  # a row that stands twice is said elsewhere
            here, there = places[f.case.case_id], places[first.case.case_id]
            leak = here != there and bool(here and there)
            text = f"has the same image voxels as case {first.case.case_id}"
            text += f", and they are in different {_kind(here, there)} ({here}, {there})" if leak else ""
            cure = _leak_cure(here, there) if leak else "remove one of them"
            yield Problem("error" if leak else "warning", text, cure, f.case.case_id, str(f.case.images[0]))


def _nearly_twice(findings: Sequence[CaseFindings], places: Mapping[str, str]) -> Iterator[Problem]:
    """Pictures that are nearly those of another split or fold: each with the one that it is most like."""
    known = [f for f in findings if f.thumbnail is not None and places[f.case.case_id]]
    told: set[str] = set()
    found = []
    for shape in sorted({f.thumbnail.shape for f in known if f.thumbnail is not None}):  # slices among slices
        alike = [f for f in known if f.thumbnail is not None and f.thumbnail.shape == shape]
        thumbnails = [f.thumbnail for f in alike if f.thumbnail is not None]
        pairs = near_pairs(thumbnails, [places[f.case.case_id] for f in alike])
        found += [(pair, alike[pair.second], alike[pair.first]) for pair in pairs]
    for pair, f, other in sorted(found, key=lambda pair: -pair[0].correlation):
        if f.content == other.content or f.case.case_id in told:
            continue
        told.add(f.case.case_id)
        if len(told) <= MOST_NEAR_SHOWN:
            here, there = places[f.case.case_id], places[other.case.case_id]
            text = f"looks nearly the same as case {other.case.case_id}" + (" mirrored" if pair.flipped else "")
            text += f" (correlation {pair.correlation:.4f}), and they are in different {_kind(here, there)} ({here}, {there})"
            yield Problem("warning", text, f"look at both, and {_leak_cure(here, there)}", f.case.case_id, str(f.case.images[0]))
    if (more := len(told) - MOST_NEAR_SHOWN) > 0:
        text = f"{more} more cases look nearly the same as one of another split or fold"
        yield Problem("warning", text, "look at those named first: they are the most alike")


def _kind(here: str, there: str) -> str:
    return "folds" if here.startswith("fold ") and there.startswith("fold ") else "splits"


def _leak_cure(here: str, there: str) -> str:
    if _kind(here, there) == "folds":
        return "remove one of them, or give both one patient_id if they are one patient's"
    return "remove one of them, or put both into one split"


def _sides_swapped(findings: Sequence[CaseFindings]) -> Iterator[Problem]:
    """Cases in which a left structure lies to the right of its partner; where names do not say, unlike in most cases."""
    for pair in sorted({pair for f in findings for pair in f.sides_mm}):
        having = [f for f in findings if pair in f.sides_mm]
        signs = [np.sign(f.sides_mm[pair]) for f in having]
        words = [set(re.split(r"[^a-z]+", name.lower())) for name in pair]
        if "left" in words[0] and "right" in words[1]:
            expected = -1.0
        elif "right" in words[0] and "left" in words[1]:
            expected = 1.0
        else:
            expected = float(np.sign(np.median(signs)))
        for f, sign in zip(having, signs, strict=True):
            if sign * expected < 0:
                side = "right" if sign > 0 else "left"
                text = f"`{pair[0]}` lies to the {side} of `{pair[1]}` in the patient, which is the wrong way round"
                yield Problem("warning", text, "make sure that the scan is not mirrored", f.case.case_id, str(f.case.label))


def _never_seen(findings: Sequence[CaseFindings], scheme: LabelScheme | None) -> Iterator[Problem]:
    training = [f for f in findings if f.case.split == "train"]
    seen = frozenset[str]().union(*(f.structures for f in training))
    # Labels that could not be read might hold it.
    if scheme and training and not any(p.severity == "error" for f in training for p in f.problems):
        for name in scheme.names:
            if name not in seen:
                yield Problem("warning", f"no training case holds `{name}`", "correct its `values`, or remove the structure")
