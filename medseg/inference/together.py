"""Several models used as one: the folds of a cross-validation, or model files of one plan."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median_low
from typing import Any

from medseg.core.errors import ModelFileError
from medseg.core.progress import say
from medseg.inference.bundle import Bundle, read_bundle
from medseg.inference.postprocess import Postprocessing, Rule
from medseg.inference.typical import join_typical
from medseg.planning.plan import Plan

FILE_NAME = "model.medseg"
FOLD = re.compile(r"fold_([0-9]+)")
ONLY_SHARED: dict[str, Any] = {"fingerprint": {}, "started_from": None}  # true of several only where it is of each; else this
SHORT = 40  # characters of a value that an error quotes


def read_models(places: Sequence[Path], quiet: bool = False) -> Bundle:
    """The models of one or several places as one whose probabilities are averaged, each network's with the same weight.

    One file alone is what `read_bundle` gives. The order of the places changes nothing.

    Args:
        places: model files, or training folders: the `model.medseg` in it, else those of its folds, joined as `train` joins them.
        quiet: say nothing of what was left out or put together.
    Returns: a bundle whose `sha256` is, of several files, the hash of theirs.
    Raises: ModelFileError where one cannot be read, a fold is missing, a network is named twice, or two were made for
        different scans.
    """
    if not places:
        raise ModelFileError("no model is named; give the path of a model.medseg file.")
    found = [(Path(place), _read(Path(place), quiet)) for place in places]
    if len(found) == 1:
        return found[0][1]
    _refuse_doubles(found)
    _refuse_different(found)
    bundles = sorted((bundle for _, bundle in found), key=lambda bundle: bundle.sha256)
    joined = join(" + ".join(sorted({bundle.description.model for bundle in bundles})), bundles)
    rules = [bundle.description.postprocessing for bundle in bundles]
    agreed = all(rule == rules[0] for rule in rules)
    if not agreed and not quiet:
        say(f"{' and '.join(str(path) for path, _ in found)} have different postprocessing, so together they have none")
    about = joined.description.model_copy(update={"postprocessing": rules[0] if agreed else None})
    return replace(joined, description=about, sha256=_sha256("", bundles))


def join_folds(name: str, bundles: Sequence[Bundle]) -> Bundle:
    """One model of several with the same plan, network and labels: the mean of their probabilities, each at its own temperature.

    Args:
        name: of the whole.
    Returns: a bundle with the weights of all, and what most of them chose as postprocessing.
    """
    joined = join(name, bundles)
    rules = join_postprocessing([bundle.description.postprocessing for bundle in bundles])
    return replace(joined, description=joined.description.model_copy(update={"postprocessing": rules}))


def join(name: str, bundles: Sequence[Bundle]) -> Bundle:
    """One model of several for the same scans and structures, without postprocessing, their cards below each other.

    What else is described is the first's; where a model starts from and what it was trained on is left out unless all agree.
    """
    first = bundles[0].description
    unknown = {k: v for k, v in ONLY_SHARED.items() if any(getattr(b.description, k) != getattr(first, k) for b in bundles)}
    hashes = [digest for bundle in bundles for digest in _weight_hashes(bundle)]
    about = {
        "model": name,
        "postprocessing": None,
        "temperature": [temperature for bundle in bundles for temperature in bundle.temperatures],
        "finish": {},
        "typical": join_typical([bundle.description.typical for bundle in bundles]),
        "precision_figures": _join_figures([bundle.description.precision_figures for bundle in bundles]),
        "sha256": {f"weights_{index}.safetensors": digest for index, digest in enumerate(hashes)},
    }
    kinds = tuple(kind for bundle in bundles for kind in bundle.kinds)
    return Bundle(
        first.model_copy(update=about | unknown),
        tuple(weights for bundle in bundles for weights in bundle.weights),
        card="\n".join(dict.fromkeys(bundle.card for bundle in bundles)),
        mixed=kinds if any(kind != kinds[0] for kind in kinds) else (),
    )


def _join_figures(figures: Sequence[dict[str, Any] | None]) -> dict[str, Any] | None:
    """Whether bfloat16 is allowed by all models, each measured by itself; None where one was not measured."""
    known = [of_one["bfloat16"] for of_one in figures if of_one is not None]
    if len(known) < len(figures):
        return None
    runtimes = {of_one["runtime"] for of_one in known}
    runtime = runtimes.pop() if len(runtimes) == 1 else "several runtimes"
    return {"bfloat16": {"allowed": all(of_one["allowed"] for of_one in known), "runtime": runtime, "models": known}}


def join_postprocessing(chosen: Sequence[Postprocessing | None]) -> Postprocessing | None:
    """What most folds chose: only the largest piece where more than half did, and the (lower) median of the smallest volumes.

    A fold that chose nothing for a structure counts as volume 0, so a limit needs more than half of the folds as well.
    """
    rules = {}
    for name in dict.fromkeys(name for fold in chosen if fold for name in fold.rules):
        of_folds = [fold.rules.get(name, Rule()) if fold else Rule() for fold in chosen]
        rule = Rule(
            keep_largest=2 * sum(r.keep_largest for r in of_folds) > len(of_folds),
            smallest_volume=median_low([r.smallest_volume for r in of_folds]),
        )
        if rule != Rule():
            rules[name] = rule
    return Postprocessing(rules=rules) if rules else None


def _read(place: Path, quiet: bool) -> Bundle:
    """The model of one place. Raises: ModelFileError."""
    if not place.is_dir():
        return read_bundle(place)
    if (place / FILE_NAME).exists():
        return read_bundle(place / FILE_NAME)
    numbers = sorted(int(match[1]) for path in place.glob("fold_*") if (match := FOLD.fullmatch(path.name)))
    if not numbers:
        raise ModelFileError(
            f"{place} holds neither a {FILE_NAME} nor folds; give a model file or the folder of a finished training."
        )
    found = []
    for number in range(numbers[-1] + 1):
        path = place / f"fold_{number}" / FILE_NAME
        if not path.is_file():
            raise ModelFileError(f"{path} does not exist; finish the training, or name the files of the other folds.")
        found.append((path, read_bundle(path)))
    if not quiet:
        say(f"{place} holds no {FILE_NAME}, so its {len(found)} folds are joined")
    _refuse_different(found)
    bundles = [bundle for _, bundle in found]
    # Another hash than these files have where they are named one by one, since their postprocessing may then be another.
    return replace(join_folds(bundles[0].description.model, bundles), sha256=_sha256("folds\n", bundles))


def _refuse_doubles(found: Sequence[tuple[Path, Bundle]]) -> None:
    """Raises: ModelFileError where a network would count twice."""
    seen: dict[str, Path] = {}
    for path, bundle in found:
        if twice := [seen[digest] for digest in _weight_hashes(bundle) if digest in seen]:
            raise ModelFileError(f"{path} and {twice[0]} hold the same network, which would count twice; name one of them.")
        seen |= dict.fromkeys(_weight_hashes(bundle), path)


def _weight_hashes(bundle: Bundle) -> list[str]:
    """The hash of each of the weights of a bundle that was read."""
    hashes = bundle.description.sha256
    return [hashes[name] for index in range(len(bundle.weights)) if (name := f"weights_{index}.safetensors") in hashes]


def _refuse_different(found: Sequence[tuple[Path, Bundle]]) -> None:
    """Raises: ModelFileError where models were not made for the same scans and structures, naming the files and what differs."""
    (first, reference), *others = found
    problems = []
    for path, bundle in others:
        pairs = {what: (value(reference), value(bundle)) for what, value in MUST_AGREE.items()}
        if differing := [_difference(what, *pair) for what, pair in pairs.items() if pair[0] != pair[1]]:
            problems.append(f"{path} differs from {first} in {' and '.join(differing)}")
    if problems:
        raise ModelFileError(f"{', and '.join(problems)}; models work together only where one run, or the same plan, made them.")


def _difference(what: str, mine: str, theirs: str) -> str:
    return what + (f" ({theirs} and {mine})" if max(len(mine), len(theirs)) <= SHORT else "")


def _of_plan(text: Callable[[Plan], object]) -> Callable[[Bundle], str]:
    return lambda bundle: str(text(bundle.plan))


def _sizes(sizes: Iterable[float] | None) -> str:
    return "each scan's own" if sizes is None else " x ".join(f"{size:.6g}" for size in sizes)


# What two models must have in common, by its name; the values as text.
MUST_AGREE: dict[str, Callable[[Bundle], str]] = {
    "physical size": _of_plan(lambda plan: "mm" if plan.preprocessing.physical else "pixels"),
    "voxel size": _of_plan(lambda plan: _sizes(plan.preprocessing.spacing)),
    "cropping": _of_plan(lambda plan: "to non-zero voxels" if plan.preprocessing.crop_nonzero else "none"),
    "normalisation": _of_plan(lambda plan: [rule.model_dump() for rule in plan.preprocessing.normalisation]),
    "interpolation order": _of_plan(lambda plan: plan.preprocessing.order),
    "channels": _of_plan(lambda plan: f"{', '.join(plan.channels)}: {plan.n_channels}"),
    "patch": _of_plan(lambda plan: _sizes(plan.patch_voxels)),
    "structures": lambda bundle: ", ".join(f"{s.name} {s.id}" for s in bundle.labels.structures),
    "regions": lambda bundle: str([region.model_dump() for region in bundle.labels.regions]),
    "mirroring": _of_plan(lambda plan: sorted(plan.flips)),
    "paired structures": _of_plan(lambda plan: sorted(plan.swaps)),
}


def _sha256(kind: str, bundles: Sequence[Bundle]) -> str:
    return hashlib.sha256((kind + "\n".join(sorted(bundle.sha256 for bundle in bundles))).encode()).hexdigest()
