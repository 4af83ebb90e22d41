"""Names by which places in the page are linked: safe in an address and an attribute, whatever users named their cases."""

from __future__ import annotations

import hashlib
import re


def row_anchor(model: str, case_id: str, structure: str) -> str:
    """The id of a row of the table of every case."""
    return ".".join(["row", _plain(model), _plain(case_id), _plain(structure)])


def case_anchor(model: str, case_id: str) -> str:
    """The id of a case's picture."""
    return ".".join(["case", _plain(model), _plain(case_id)])


def _plain(name: str) -> str:
    """The name where it is of plain letters, digits, - and _; else those of it with six digits that tell it from its likes."""
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", name)
    return plain if plain == name and name else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"
