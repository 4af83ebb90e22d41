"""Rules for the networks: how deep and how wide, so that a step fits the memory and enough steps fit the time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from medseg.models.cost import StepCost, step_cost
from medseg.models.registry import sizes_of
from medseg.planning.machine import FLOAT32_GFLOPS, Granted
from medseg.planning.patch import Patch
from medseg.planning.sides import STATED

Model = dict[str, Any]  # architecture, options

WORTHWHILE_STEPS = 1000  # fewer teach a wide network less than a narrow one learns in many


def hungriest(
    models: Sequence[Model], patch: Patch, batch: int, in_channels: int, n_outputs: int, narrowest: bool = False
) -> float:
    """GB that a step takes, of the model that takes most, each as wide (or as narrow) as it may be planned.

    Raises: ConfigError where a network cannot be built for the patch.
    """
    shapes = {"in_channels": in_channels, "n_outputs": n_outputs, "patch_voxels": patch}
    size = -1 if narrowest else 0
    built = [(m["architecture"], sizes_of(m["architecture"], m["options"], patch)[size][0]) for m in models]
    return max(step_cost(architecture, options, **shapes).memory_gb(batch) for architecture, options in built)  # type: ignore[arg-type]


def plan_network(
    name: str,
    model: Model,
    patch: Patch,
    batch: int,
    in_channels: int,
    n_outputs: int,
    granted: Granted,
    reasons: dict[str, str],
    stated: str = STATED,
) -> Model:
    """The model with every size in its options: the widest that fits, or what the configuration states.

    Args:
        stated: who states the size, where the options hold one.
    Raises: ConfigError where the network cannot be built for the patch.
    """
    architecture = model["architecture"]

    def cost_of(options: dict[str, Any]) -> StepCost:
        return step_cost(architecture, options, in_channels=in_channels, n_outputs=n_outputs, patch_voxels=patch)

    sizes = sizes_of(architecture, model["options"], patch)
    options, words = next((size for size in sizes if _fits(cost_of(size[0]), batch, granted)), sizes[-1])
    cost = cost_of(options)
    if len(sizes) == 1:
        why = stated
    elif _fits(cost, batch, granted):
        why = "the widest" if options == sizes[0][0] else "the widest that fits"
    else:
        why = "the narrowest, although " + (
            "fewer steps fit" if cost.memory_gb(batch) <= granted.memory_gb else "it does not fit"
        )
    reasons[f"models.{name}"] = f"{words}, {why}; {_costs(cost, batch, granted)}"
    return {"architecture": architecture, "options": options}


def _fits(cost: StepCost, batch: int, granted: Granted) -> bool:
    return cost.memory_gb(batch) <= granted.memory_gb and (_steps(cost, batch, granted) or WORTHWHILE_STEPS) >= WORTHWHILE_STEPS


def _steps(cost: StepCost, batch: int, granted: Granted) -> float | None:
    """Steps that the granted time is taken to allow; None where time is no limit."""
    if granted.device == "gpu" or granted.minutes is None:
        return None
    return 60 * granted.minutes * granted.cores * _core_gflops(cost, granted) * 1e9 / cost.operations(batch)


def _core_gflops(cost: StepCost, granted: Granted) -> float:
    """A core's rate; of a network that must train in float32 that rate."""
    return FLOAT32_GFLOPS if cost.overhangs else granted.core_gflops


def _costs(cost: StepCost, batch: int, granted: Granted) -> str:
    memory = (
        f"{cost.parameters / 1e6:.3g} million parameters; a training step takes about {cost.memory_gb(batch):.2g} GB of the "
        f"{granted.memory_gb:g} granted ({granted.reason})"
    )
    steps = _steps(cost, batch, granted)
    if steps is None:
        return memory
    rate = f"{_core_gflops(cost, granted):g} GFLOP/s on each of {granted.cores} cores"
    return (
        f"{memory}, and about {float(f'{steps:.2g}'):g} steps fit into {granted.minutes:g} minutes at {rate} "
        f"({WORTHWHILE_STEPS} are worth while)"
    )
