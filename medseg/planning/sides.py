"""Left and right: along which axes pictures may be mirrored, and which structures then change their names."""

from __future__ import annotations

import re

from medseg.core.errors import ConfigError
from medseg.core.labels import LabelScheme
from medseg.planning.config import PlanConfig

AXIS_WORDS = {
    0: {"left", "right", "l", "r", "lt", "rt", "lh", "rh"},
    1: {"anterior", "posterior"},
    2: {"superior", "inferior", "upper", "lower"},
}
NO_SIDES = {"cleft", "bright", "upright"}  # words that end like one
AXIS_NAMES = ("left-right", "posterior-anterior", "inferior-superior")
STATED = "stated in the configuration"


def swapped_classes(scheme: LabelScheme) -> list[tuple[int, int]]:
    """Class indices of the structures that are paired with each other, each pair once.

    Raises: ConfigError where a pair is declared on one side only, differently on the two, or of a structure with itself.
    """
    partner = {s.name: s.paired_with for s in scheme.structures}
    index = {name: k for k, name in enumerate(partner, start=1)}
    for name, other in partner.items():
        if other == name:
            raise ConfigError(f"structures: `{name}` is paired_with itself; name the structure on the other side, or none.")
        if other and partner[other] != name:
            raise ConfigError(
                f"structures: `{name}` is paired_with `{other}`, and `{other}` with `{partner[other] or 'nothing'}`; "
                "pair them with each other."
            )
    return sorted((index[name], index[other]) for name, other in partner.items() if other and index[name] < index[other])


def mirrored_axes(
    patch: tuple[int, int, int], scheme: LabelScheme, physical: bool, config: PlanConfig, reasons: dict[str, str]
) -> list[int]:
    """The axes along which a mirror image is a plausible picture with right labels."""
    axes = [axis for axis in range(3) if patch[axis] > 1]
    pairs = swapped_classes(scheme)
    reasons["swaps"] = (
        "; ".join(f"{scheme.names[a - 1]} and {scheme.names[b - 1]}" for a, b in pairs) + " are declared as pairs"
        if pairs
        else "no structure is paired with another"
    )
    if config.flips is not None:
        reasons["flips"] = STATED
        return [axis for axis in config.flips if axis in axes]
    forbidden = _forbidden(scheme, bool(pairs))
    if not physical:
        sided = bool(forbidden or pairs)
        reasons["flips"] = (
            "the structures' names or pairs tell sides apart and the files state no axes, so nothing is mirrored"
            if sided
            else "pictures without anatomical axes may be mirrored along all"
        )
        return [] if sided else axes
    texts = [f"none along {AXIS_NAMES[axis]}: {why}" for axis, why in forbidden.items() if axis in axes]
    if pairs and 0 not in forbidden:
        texts.append("left-right with the paired structures changing places")
    reasons["flips"] = "; ".join(texts) or "no structure's name tells the ends of an axis apart"
    return [axis for axis in axes if axis not in forbidden]


def _forbidden(scheme: LabelScheme, paired: bool) -> dict[int, str]:
    """The axes that must not be mirrored where axes are anatomical, and why."""
    result = {}
    for axis, ends in AXIS_WORDS.items():
        names = [s.name for s in scheme.structures if _tells(s.name, ends) and not (axis == 0 and s.paired_with is not None)]
        names += [region.name for region in scheme.regions if _tells(region.name, ends)]
        if names:
            result[axis] = f"the name of {names[0]} tells its ends apart" + (
                " and no pair is declared for it" if axis == 0 else ""
            )
    if paired and scheme.regions:
        result[0] = "structures are paired, and regions may hold one side of a pair"
    return result


def _tells(name: str, ends: set[str]) -> bool:
    """Whether a name (left kidney, kidney_L, LeftKidney, kidneyleft, lh_amygdala) says one of the words; the L of L3 is none.

    Where in doubt it does: a mirror image that is left out costs little, one with wrong names spoils the training.
    """
    words = [word.lower() for word in re.findall(r"(?![A-Za-z]\d)(?:[A-Z]+(?![a-z])|[A-Z]?[a-z]+)", name)]
    long = tuple(end for end in ends if len(end) > 2)
    return any(word in ends or word.startswith(long) or (word.endswith(long) and word not in NO_SIDES) for word in words)
