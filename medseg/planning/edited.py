"""A plan.json that somebody edited: what changed, and whether it can stand."""

from __future__ import annotations

from typing import Any

from medseg.core.errors import ConfigError
from medseg.models.cost import step_cost
from medseg.planning.plan import Plan

BY_HAND = "edited by hand"
FIXED = ("channels", "n_channels", "class_voxels")  # facts of the data, not choices


def values_of(plan: Plan) -> dict[str, Any]:
    """Every value of the plan by the key that its reason has, and the `reasons`."""
    values = plan.model_dump(mode="json")
    models = values.pop("models")
    return {**values.pop("preprocessing"), **values, **{f"models.{name}": model for name, model in models.items()}}


def edited_plan(plan: Plan, before: dict[str, Any], n_outputs: int, where: str) -> tuple[Plan, list[str]]:
    """The plan with the reasons of its edited values, and the keys of these.

    Args:
        before: `values_of` the plan as it was derived.
    Raises: ConfigError where an edited plan cannot be trained with.
    """
    now = values_of(plan)
    changed = [key for key in {**before, **now} if key != "reasons" and before.get(key) != now.get(key)]
    for key in changed:
        if key in (*FIXED, "physical") or key not in now or key not in before:
            raise ConfigError(
                f"{where}: `{key}` follows from the data and the configuration; restore it, or run with `--redo prepare`."
            )
    _require_sound(plan, changed, n_outputs, where)
    return plan.model_copy(update={"reasons": before.get("reasons", plan.reasons) | dict.fromkeys(changed, BY_HAND)}), changed


def _require_sound(plan: Plan, changed: list[str], n_outputs: int, where: str) -> None:
    if len(plan.preprocessing.normalisation) != plan.n_channels:
        raise ConfigError(
            f"{where}: `normalisation` has {len(plan.preprocessing.normalisation)} rules for {plan.n_channels} channels; "
            "give one for each."
        )
    if "spacing" in changed and not plan.preprocessing.physical and plan.preprocessing.spacing is not None:
        raise ConfigError(f"{where}: `spacing` is stated and the files have no physical size; make it null.")
    if plan.preprocessing.physical and plan.preprocessing.spacing is None:
        raise ConfigError(f"{where}: `spacing` is null and the files have a physical size; give the voxel size in mm.")
    if thin := [axis for axis in plan.flips if plan.patch_voxels[axis] == 1]:
        raise ConfigError(f"{where}: `flips` names axis {thin[0]}, along which the patch is one voxel thick; take it out.")
    classes = len(plan.class_voxels)
    if odd := [pair for pair in plan.swaps if max(pair) >= classes or pair[0] == pair[1]]:
        raise ConfigError(f"{where}: `swaps` holds {list(odd[0])}, which are not two of the classes 1 to {classes - 1}.")
    for name, model in plan.models.items():
        if not isinstance(model, dict) or not isinstance(model.get("options"), dict) or "architecture" not in model:
            raise ConfigError(f"{where}: `models.{name}` needs `architecture` and `options`; restore them.")
        try:
            step_cost(
                model["architecture"],
                model["options"],
                in_channels=plan.n_channels,
                n_outputs=n_outputs,
                patch_voxels=plan.patch_voxels,
            )
        except ConfigError as error:
            raise ConfigError(f"{where}: models.{name}: {error}") from None
