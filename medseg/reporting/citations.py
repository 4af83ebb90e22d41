"""Whom the methods cite: the entries of references.bib, as BibTeX and as lines of a reference list."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

REFERENCES = Path(__file__).parent / "references.bib"
# Marks that no text of a user keeps: `plain` takes control characters out.
_OPEN, _CLOSE = "\x02", "\x03"
_MARKS = re.compile(f"{_OPEN}([^{_CLOSE}]*){_CLOSE}")
_ENTRY = re.compile(r"@(\w+)\{([^,\s]+),\n(.*?)\n\}", re.DOTALL)
_FIELD = re.compile(r"^\s*(\w+) = \{(.*)\},?$", re.MULTILINE)
_MOST_AUTHORS = 6


@dataclass(frozen=True)
class Source:
    """One entry of references.bib.

    Args:
        key: as BibTeX cites it.
        bibtex: the entry as it stands in the file.
        fields: author, title, year, journal or booktitle, and volume, pages, doi, eprint (arXiv), url where known.
    """

    key: str
    bibtex: str
    fields: dict[str, str]

    @property
    def link(self) -> str:
        """Where the work is found."""
        if "doi" in self.fields:
            return f"https://doi.org/{self.fields['doi']}"
        if "eprint" in self.fields:
            return f"https://arxiv.org/abs/{self.fields['eprint']}"
        return self.fields.get("url", "")

    @property
    def text(self) -> str:
        """The entry as a line of a reference list, without the link."""
        f = self.fields
        where = f.get("journal") or f.get("booktitle", "")
        pages = f.get("pages", "").replace("--", "–")
        place = ":".join(part for part in (f.get("volume", ""), pages) if part)
        return f"{_authors(f['author'])}. {f['title']}. {where} {f['year']}{f'; {place}' if place else ''}."


@cache
def sources() -> dict[str, Source]:
    """Every entry of references.bib, by its key."""
    found = _ENTRY.finditer(REFERENCES.read_text(encoding="utf-8"))
    return {m[2]: Source(m[2], m[0], dict(_FIELD.findall(m[3]))) for m in found}


def cite(*keys: str) -> str:
    """A mark that `number` turns into [1], or [1, 2]. Raises: KeyError for a key that references.bib lacks."""
    return " " + _OPEN + ",".join(sources()[key].key for key in keys) + _CLOSE


def number(texts: Sequence[str]) -> tuple[list[str], list[Source]]:
    """The texts with numbers in place of their marks, and the works in the order of their numbers."""
    order: dict[str, int] = {}

    def numbers(mark: re.Match[str]) -> str:
        found = sorted(order.setdefault(key, len(order) + 1) for key in mark[1].split(","))
        return f"[{', '.join(map(str, found))}]"

    return [_MARKS.sub(numbers, text) for text in texts], [sources()[key] for key in order]


def plain(text: object) -> str:
    """A user's text in one line, without control characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())


def bibtex(found: Iterable[Source]) -> str:
    """The text of a .bib file."""
    return "\n\n".join(source.bibtex for source in found) + "\n"


def _authors(field: str) -> str:
    """`Last, First and Last, First` as `Last F, Last F`; of many the first three."""
    names = field.split(" and ")
    short = [_short(name) for name in names if name != "others"]
    if "others" in names or len(short) > _MOST_AUTHORS:
        return f"{', '.join(short[:3])}, et al"
    return ", ".join(short)


def _short(name: str) -> str:
    last, _, first = name.partition(", ")
    first, _, suffix = first.partition(", ")
    initials = "".join(part[0] for part in re.split(r"[\s-]+", first) if part)
    return " ".join(part for part in (last, initials, suffix.rstrip(".")) if part)
