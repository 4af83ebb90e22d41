"""How the models of a run were made, in sentences: preprocessing, network, training, inference. Only what records state."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from medseg.reporting.citations import cite, plain
from medseg.reporting.collect import ModelResults, ReportData

STATED = ("stated in the configuration", "edited by hand")
PLANNED = {
    "spacing": "voxel size",
    "normalisation": "normalisation",
    "order": "interpolation",
    "patch_voxels": "patch size",
    "batch_size": "batch size",
}
LOSSES = {
    "ce": ("cross-entropy", ()),
    "dice": ("the soft Dice loss", ("milletari2016",)),
    "dice_ce": ("the sum of the soft Dice loss and cross-entropy", ("milletari2016", "isensee2021")),
    "dice_focal": ("the sum of the soft Dice loss and the focal loss", ("milletari2016", "lin2017")),
    "tversky": ("the Tversky loss", ("salehi2017",)),
    "boundary_ce": ("cross-entropy weighted towards boundaries", ("ronneberger2015",)),
    "dice_boundary_ce": (
        "the sum of the soft Dice loss and cross-entropy weighted towards boundaries",
        ("milletari2016", "ronneberger2015"),
    ),
}
SCHEDULES = {"cosine": "that fell as half a cosine", "poly": "that fell as a polynomial of the remaining steps"}
CHANGES = {
    "elastic": "elastic deformation",
    "low_resolution": "simulated low resolution",
    "inverted_gamma": "gamma of the inverted image",
    "noise": "Gaussian noise",
    "blur": "Gaussian blur",
}
RUNTIMES = {"openvino": "OpenVINO", "torch": "PyTorch"}


def listing(words: Iterable[str]) -> str:
    """`a, b and c`."""
    found = list(words)
    return f"{', '.join(found[:-1])} and {found[-1]}" if len(found) > 1 else "".join(found)


def figure(value: Any) -> str:
    """A number as records hold it, with six significant digits at most."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def size(numbers: Sequence[Any]) -> str:
    """`64 × 64`; an axis of one voxel is left out."""
    return " × ".join(figure(n) for n in numbers if n != 1 or len(numbers) < 3) or "1"


def preprocessing_sentences(data: ReportData) -> list[str]:
    """What was done to scans before a network saw them."""
    rules = data.plan.get("preprocessing", {})
    reasons = data.plan.get("reasons", {})
    found = []
    if rules.get("crop_nonzero"):
        found.append("Scans were cut to the box of their non-zero voxels.")
    if rules.get("spacing"):
        reason = f" ({plain(reasons['spacing'])})" if "spacing" in reasons else ""
        spacing = " × ".join(figure(s) for s in rules["spacing"])
        found.append(f"Scans were resampled to voxels of {spacing} mm{reason}{_interpolation(rules.get('order'))}.")
    elif rules.get("physical") is False:
        found.append("Images kept their own pixels, as their files state no physical size.")
    found += [f"{_normalised(rule, name)}." for rule, name in _rules(data, rules.get("normalisation", []))]
    return found + _derived(reasons, rules.get("spacing") is not None)


def _interpolation(order: Any) -> str:
    kinds = {0: "nearest-neighbour", 1: "linear", 3: "cubic"}
    orders = order if isinstance(order, list) else [order]
    if any(o not in kinds for o in orders):
        return ""
    if len(set(orders)) == 1:
        return f", with {kinds[orders[0]]} interpolation"
    along = {kinds[o]: [axis for axis, other in zip("XYZ", orders, strict=True) if other == o] for o in orders}
    return f", with interpolation that was {listing(f'{kind} along {listing(axes)}' for kind, axes in along.items())}"


def _rules(data: ReportData, rules: list[dict[str, Any]]) -> list[tuple[dict[str, Any], str]]:
    """Each rule of normalisation once, with the channels that it is for where there are different ones."""
    distinct = [rule for i, rule in enumerate(rules) if rule not in rules[:i]]
    names = list(data.plan.get("channels", data.channels))
    if len(distinct) < 2 or len(names) != len(rules):
        return [(rule, "") for rule in distinct]
    return [(rule, listing(plain(n) for n, r in zip(names, rules, strict=True) if r == rule)) for rule in distinct]


def _normalised(rule: dict[str, Any], channels: str) -> str:
    what = f"Intensities of {channels}" if channels else "Intensities"
    if rule["kind"] == "fixed":
        clipped = f"were clipped to {figure(rule['low'])} to {figure(rule['high'])}"
        return f"{what} {clipped}, centred on {figure(rule['mean'])} and divided by {figure(rule['std'])}, alike in all scans"
    over = "non-zero voxels" if rule.get("nonzero") else "voxels"
    whose = f"the case's own {over}" + (", over all channels together" if rule.get("joint") else "")
    clip = " after clipping the brightest and darkest 0.5 %" if rule.get("clip") else ""
    return f"{what} were centred and scaled by the mean and standard deviation of {whose}{clip}"


def _derived(reasons: Mapping[str, str], physical: bool) -> list[str]:
    """Which values rules chose, and which a person did."""
    reasons = {key: reason for key, reason in reasons.items() if physical or key not in ("spacing", "order")}
    stated = [word for key, word in PLANNED.items() if reasons.get(key) in STATED]
    derived = [word for key, word in PLANNED.items() if key in reasons and reasons[key] not in STATED]
    found = []
    if derived:
        rules = f"Rules after nnU-Net{cite('isensee2021')}"
        found.append(f"{rules} derived these values from the training cases: {listing(derived)}.")
    if stated:
        found.append(f"Stated by hand: {listing(stated)}.")
    return found


def network_sentences(data: ReportData) -> list[str]:
    """What each network is."""
    found = [_network(data, model) for model in data.models if model.settings.get("architecture")]
    if found and data.plan.get("patch_voxels"):
        batch = f", in batches of {data.plan['batch_size']}" if "batch_size" in data.plan else ""
        found.append(f"Networks saw patches of {_patch(data.plan)}{batch}.")
    return found


def patch_text(plan: Mapping[str, Any]) -> str:
    """A patch's size, and of what voxels: `64 × 64 × 32 voxels of 1 × 1 × 2.5 mm`; empty where no plan says it."""
    if not plan.get("patch_voxels"):
        return ""
    spacing = plan.get("preprocessing", {}).get("spacing")
    return _patch(plan) + (f" of {' × '.join(f'{s:.3g}' for s in spacing)} mm" if spacing else "")


def _patch(plan: Mapping[str, Any]) -> str:
    unit = "pixels" if plan.get("preprocessing", {}).get("physical") is False else "voxels"
    return f"{size(plan['patch_voxels'])} {unit}"


def _network(data: ReportData, model: ModelResults) -> str:
    architecture, options = str(model.settings["architecture"]), model.settings.get("options", {})
    patch = data.plan.get("patch_voxels", [])
    dimensions = ("2D " if 1 in patch else "3D ") if patch else ""
    name = plain(model.name)
    parameters = re.search(r"([\d.]+) million parameters", str(data.plan.get("reasons", {}).get(f"models.{model.name}", "")))
    counted = f" ({parameters[1]} million parameters)" if parameters else ""
    if architecture == "unet":
        papers = ("ronneberger2015",) if dimensions == "2D " else ("ronneberger2015", "cicek2016")
        return f"The model {name} is a {dimensions}U-Net{cite(*papers)}{_unet(options)}{counted}."
    if match := re.fullmatch(r"fcn(\d+)s", architecture):
        return f"The model {name} is a {dimensions}FCN-{match[1]}s{cite('long2015')}{_fcn(options)}{counted}."
    return f"The model {name} is a {dimensions}network of the architecture {plain(architecture)}{counted}."


def _unet(options: dict[str, Any]) -> str:
    parts = []
    if widths := options.get("features"):
        parts.append(f"{len(widths)} stages of {listing(map(str, widths))} features")
    if "convs_per_stage" in options:
        parts.append(f"{options['convs_per_stage']} convolutions a stage")
    parts += ["deep supervision"] if options.get("deep_supervision") else []
    parts += [f"dropout of {figure(options['dropout'])}"] if options.get("dropout") else []
    return f" with {listing(parts)}" if parts else ""


def _fcn(options: dict[str, Any]) -> str:
    if "depth" not in options:
        return ""
    width = f" at {figure(options['width'])} of its published width" if options.get("width") not in (None, 1) else ""
    started = ", started from weights of a trained VGG" if options.get("weights") else ""
    return f" on VGG-{options['depth']}{cite('simonyan2015')}{width}{started}"


def training_sentences(data: ReportData) -> list[str]:
    """How the networks were trained, from the record of each training."""
    trained = [(model, record) for model in data.models if (record := training_record(data, model))]
    if not trained:
        return _lengths(data)
    inputs = trained[0][1]["inputs"]
    settings = inputs["training"]
    found = [_optimisation(settings)]
    if inputs.get("init_from_sha256"):
        found.append(f"Training started from the weights of a model with the SHA-256 {inputs['init_from_sha256']}.")
    found += foreground_sentences(data, settings)
    found += _lengths(data)
    if settings.get("budget_minutes"):
        of = " a fold" if data.facts.design else " a model" if len(data.models) > 1 else ""
        budget = f"{figure(settings['budget_minutes'])} min{of}"
        found.append(f"The number of steps was what a budget of {budget} allowed at the speed measured at the start.")
    found += _augmentation(data, settings.get("augmentation", {}))
    return found + chosen_sentences(data)


def foreground_sentences(data: ReportData, settings: Mapping[str, Any]) -> list[str]:
    """How many patches of a batch were centred on a structure, of the settings of a training."""
    share, batch = settings.get("foreground_fraction"), data.plan.get("batch_size")
    if not share:
        return []
    if not batch:
        return [f"Of each batch {100 * share:.3g} % of the patches were centred on a structure, and at least one."]
    centred = max(1, round(batch * share))  # as training/dataset.py has it
    were = "was" if centred == 1 else "were"
    others = "the others lay anywhere" if batch > centred + 1 else "the other lay anywhere"
    rest = f", {others}" if batch > centred else ""
    return [f"Of the {batch} patches of each batch {centred} {were} centred on a structure{rest}."]


def training_record(data: ReportData, model: ModelResults) -> dict[str, Any] | None:
    """The record that holds a training's settings: the model's own, or that of its first fold."""
    records = [data.records.get(("train", model.name)), *model.settings.get("records", [])]
    return next((r for r in records if r and "training" in r.get("inputs", {})), None)


def _optimisation(settings: dict[str, Any]) -> str:
    loss, papers = LOSSES.get(settings.get("loss", ""), (plain(settings.get("loss", "the loss")), ()))
    optimizer = settings.get("optimizer", {})
    how = f"AdamW{cite('loshchilov2019')}"
    if optimizer.get("name") == "sgd":
        nesterov = "Nesterov momentum" if optimizer.get("nesterov") else "momentum"
        how = f"stochastic gradient descent with {nesterov} of {figure(optimizer.get('momentum'))}"
    rate = optimizer.get("learning_rate")
    fall = SCHEDULES.get(settings.get("schedule", ""), "")
    if rate:
        how += f" from a learning rate of {figure(rate)}" + (f" {fall}" if fall else "")
    elif fall:
        how += f" with a learning rate {fall}"
    warm = f", after a warm-up of {settings['warmup_steps']} steps" if settings.get("warmup_steps") else ""
    clip = f"; gradients were clipped to a norm of {figure(settings['gradient_clip'])}" if "gradient_clip" in settings else ""
    return f"The networks learnt to minimise {loss}{cite(*papers) if papers else ''} by {how}{warm}{clip}."


def _lengths(data: ReportData) -> list[str]:
    """How long each model was trained, those that were trained alike in one sentence."""
    told: dict[str, list[str]] = {}
    for model in data.models:
        if text := _length(model):
            told.setdefault(text, []).append(plain(model.name))
    return [
        f"The model{'s' if len(names) > 1 else ''} {listing(names)} {'were each' if len(names) > 1 else 'was'} {text}."
        for text, names in told.items()
    ]


def _length(model: ModelResults) -> str:
    schedules = [s for s in model.settings.get("schedules", []) if s.get("steps")]
    if not schedules:
        return ""
    steps = sorted(s["steps"] for s in schedules)
    told = str(steps[0]) if steps[0] == steps[-1] else f"{steps[0]} to {steps[-1]}"
    folds = f" in each of {len(schedules)} folds" if len(schedules) > 1 else ""
    epoch = f", {schedules[0]['steps_per_epoch']} an epoch" if "steps_per_epoch" in schedules[0] else ""
    return f"trained for {told} steps{folds}{epoch}{_computed(schedules[0])}"


def _computed(schedule: dict[str, Any]) -> str:
    device = str(schedule.get("device", ""))
    place = {"cpu": "on a CPU", "cuda": "on a GPU"}.get(device, f"on {plain(device)}" if device else "")
    precision = f"in {schedule['precision']}" if schedule.get("precision") else ""
    how = " ".join(part for part in (place, precision) if part)
    return f", {how}" if how else ""


def _augmentation(data: ReportData, augmentation: dict[str, Any]) -> list[str]:
    used = []
    for key, rule in augmentation.items():
        if isinstance(rule, dict) and rule.get("probability"):
            paper = cite("simard2003") if key == "elastic" else ""
            word = CHANGES.get(key, plain(key.replace("_", " ")))
            used.append(f"{word}{paper} (probability {figure(rule['probability'])})")
    if augmentation.get("flip") and data.plan.get("flips"):
        used.append(f"mirroring (probability {figure(augmentation['flip'])} along each allowed axis)")
    return [f"Patches were changed at random by {listing(used)}."] if used else []


def chosen_sentences(data: ReportData) -> list[str]:
    """Which weights were kept."""
    records = [(model, data.records.get(("train", model.name), {}).get("best") or {}) for model in data.models]
    best = [f"{plain(model.name)}, {record['dice']:.3f}" for model, record in records if record.get("dice") is not None]
    if not best:
        return []
    mean = " (mean over the folds)" if any(len(m.settings.get("schedules", [])) > 1 for m in data.models) else ""
    return [f"The weights with the highest mean Dice on validation cases were kept{mean}: {'; '.join(best)}."]


def finishing_sentences(data: ReportData) -> list[str]:
    """What was chosen on validation cases after the last step, and what it changed there; alike for all models where it was."""
    told: dict[str, list[str]] = {}
    for model in data.models:
        record = training_record(data, model)
        if record and (figures := record.get("finish")):
            told.setdefault(_chosen_after(record, figures), []).append(_changed(model, record, figures))
    return [f"{text}. There {'; '.join(changes)}." for text, changes in told.items()]


def _chosen_after(record: Mapping[str, Any], figures: Mapping[str, Any]) -> str:
    logits, cases = f"temperature for the logits{cite('guo2017')}", f"{figures['cases']} validation cases"
    if not record["inputs"]["training"].get("postprocessing"):
        return f"After training, a {logits} was chosen on {cases}"
    return f"After training, rules for removing small pieces and a {logits} were chosen on {cases}"


def _changed(model: ModelResults, record: Mapping[str, Any], figures: Mapping[str, Any]) -> str:
    fold = "first fold; " if len(model.settings.get("schedules", [])) > 1 else ""
    how = f" ({fold}{_choices(record['chosen'])})" if "chosen" in record else f" ({fold[:-2]})" if fold else ""
    parts = [f"the mean Dice of {plain(model.name)}{how} was {_before_after(figures['dice'])}"]
    if "calibration_error" in figures:
        parts.append(f"its calibration error {_before_after(figures['calibration_error'])}")
    return listing(parts)


def _choices(chosen: Mapping[str, Any]) -> str:
    """The temperature, and what of each structure is removed."""
    told = [f"temperature {chosen['temperature']:.3g}"]
    for structure, rule in chosen["postprocessing"].items():
        kept = ["only its largest piece"] if rule["keep_largest"] else []
        if rule["smallest_volume"]:
            kept.append(f"no piece below {rule['smallest_volume']:.3g} mm³ (or voxels, without a size)")
        told.append(f"of {plain(structure)} {listing(kept)}")
    return "; ".join(told if chosen["postprocessing"] else [*told, "no rule helped"])


def _before_after(values: Mapping[str, float]) -> str:
    before, after = (f"{values[when]:.3f}" for when in ("before", "after"))
    return f"{before} before and after" if before == after else f"{before} before and {after} after"


def inference_sentences(data: ReportData) -> list[str]:
    """How masks were made, from the records of the predictions; alike for all models where these say so."""
    told: dict[str, list[str]] = {}
    for model in data.models:
        options = data.records.get(("predict", model.name), {}).get("inputs", {}).get("options")
        if options:
            told.setdefault(_inference(options), []).append(plain(model.name))
    if len(told) == 1:
        return [f"{text}." for text in told]
    return [f"For {listing(names)}: {text[0].lower()}{text[1:]}." for text, names in told.items()]


def _inference(options: dict[str, Any]) -> str:
    parts = []
    if "overlap" in options:
        parts.append(f"overlapped by {100 * options['overlap']:.3g} % and were blended by Gaussian weights")
    if "mirror_axes" in options:
        axes = len(options["mirror_axes"])
        along = f"{axes} axes" if axes > 1 else "an axis"
        parts.append(f"were averaged over mirror images along {along}" if axes else "were not mirrored")
    precision = str(options.get("precision") or options.get("dtype", "")).removeprefix("torch.")
    runtime = RUNTIMES.get(options.get("runtime", ""), "")
    if runtime or precision:
        parts.append(f"were computed{' by ' + runtime if runtime else ''}{' in ' + precision if precision else ''}")
    air = "; windows with nothing but air were left out" if options.get("skip_air") else ""
    return f"Scans were segmented window by window; windows {listing(parts)}{air}" if parts else "Scans were segmented whole"
