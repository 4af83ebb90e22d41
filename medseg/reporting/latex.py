r"""Tables as LaTeX that fit a portrait page of a plain article: `\input` and done.

What is too wide is narrowed step by step: headers over several lines, columns that say one thing into the caption, texts over
several lines, smaller type, and at last the columns in parts below one another, each with the names of its rows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from medseg.reporting.letters import escape, needed, width_of

if TYPE_CHECKING:
    from medseg.reporting.exports import Table

LONG_ROWS = 40  # a table of more lines breaks over pages
LINE = 343.0  # points; a line of \documentclass{article} has 345 on A4 and on letter
# Type size -> points an em, as wide as Computer Modern has it, and points between columns.
SIZES = (("small", 9.3, 10.0), ("footnotesize", 8.55, 6.0), ("footnotesize", 8.55, 4.0))
BOLD = 1.16  # how much wider a heading is
MOST_KEYS = 3  # columns that name a row, which every part of a table repeats
LEAST_TEXT = 48.0  # points of a column whose texts are broken over lines
LONG_WORD, PIECE = 14, 6  # letters from which a word may be broken, and how many then stand together


@dataclass(frozen=True)
class Column:
    """A column that is to be set.

    Args:
        cells, words: its texts and the words of its heading, yet to be escaped.
        longest, least: em of its longest cell, and of the longest piece of a cell that stays on one line.
        lines: of its heading.
        width: points that it takes.
        wrapped: whether its texts are broken to that width.
    """

    cells: tuple[str, ...]
    words: tuple[str, ...]
    number: bool
    longest: float
    least: float
    lines: tuple[str, ...] = ()
    width: float = 0.0
    wrapped: bool = False


@dataclass(frozen=True)
class Setting:
    """Columns in a type size that lets them fit the line."""

    size: str
    space: float
    columns: tuple[Column, ...]


def latex(table: Table) -> str:
    r"""The table as LaTeX that fits 12 cm: booktabs, `\caption`, `\label`; above 40 lines a longtable, which breaks over pages.

    Needs the packages booktabs and array, and longtable where one is used, as the file's first line says.
    """
    parts, said = _fitted(table)
    caption = table.caption + (f" In every row: {said}." if said else "")
    label = rf"\label{{tab:{re.sub(r'[^A-Za-z0-9-]+', '-', table.name)}}}"
    long = sum(map(_lines, parts)) > LONG_ROWS
    packages = ", ".join(rf"\usepackage{{{name}}}" for name in ("booktabs", "array", *["longtable"] * long))
    other = needed("".join([caption, *table.headers, *(str(cell) for row in table.rows for cell in row)]))
    about = f"% Needs {packages}{'; ' + other if other else ''}.\n"
    if not long:
        body = "\n\\par\\medskip\n".join(map(_tabular, parts))
        head = f"\\begin{{table}}[htbp]\n\\centering\n\\caption{{{escape(caption)}}}\n{label}\n\\smallskip\n"
        return f"{about}{head}{body}\n\\end{{table}}\n"
    titles = [escape(caption) + (f" Part 1 of {len(parts)}." if len(parts) > 1 else "")]
    titles += [f"{escape(table.caption)} Part {number} of {len(parts)}." for number in range(2, len(parts) + 1)]
    return about + "\n".join(_longtable(p, t, label * (t is titles[0])) for p, t in zip(parts, titles, strict=True))


def _fitted(table: Table) -> tuple[list[Setting], str]:
    """The table's parts, by default one, and what stood in columns that say one thing in every row."""
    columns = _columns(table, range(len(table.headers)))
    if whole := _fit(columns, wrap=False):
        return [whole], ""
    kept, said = _told_apart(table)
    columns = _columns(table, kept)
    if whole := _fit(columns, wrap=False, sizes=SIZES[:1]) or _fit(columns, wrap=True):
        return [whole], said
    keys = next((i for i, c in enumerate(columns[:MOST_KEYS]) if c.number), min(MOST_KEYS, len(columns) - 1))
    return _parts(columns[: max(1, keys)], columns[max(1, keys) :]), said


def _columns(table: Table, kept: Iterable[int]) -> list[Column]:
    return [_column(str(table.headers[i]), tuple(str(row[i]) for row in table.rows), bool(table.numeric[i])) for i in kept]


def _column(header: str, cells: tuple[str, ...], number: bool) -> Column:
    different = set(cells)
    pieces = {piece for cell in different for word in _words(cell, number) for piece in _pieces(word)}
    longest, least = (max((width_of(text, 1.0) for text in texts), default=0.0) for texts in (different, pieces))
    return Column(cells, tuple(header.split()), number, longest, least)


def _told_apart(table: Table) -> tuple[list[int], str]:
    """The columns that differ between rows, and the others in words; the first one always stays."""
    several = len(table.rows) > 1
    same = [i for i, header in enumerate(table.headers) if several and i and header and len({row[i] for row in table.rows}) == 1]
    kept = [i for i in range(len(table.headers)) if i not in same]
    if len(kept) == 1:
        return list(range(len(table.headers))), ""
    return kept, "; ".join(f"{table.headers[i]}: {table.rows[0][i] or '–'}" for i in same)


def _parts(keys: list[Column], others: list[Column]) -> list[Setting]:
    """As many columns beside those that name the row as fit, part after part."""
    counts = _counts(keys, others)
    even = -(-len(others) // len(counts))  # rather two parts of five columns than one of nine and one of one
    starts = range(0, len(others), even)
    if all(_fit([*keys, *others[start : start + even]], wrap=True) for start in starts):
        counts = [len(others[start : start + even]) for start in starts]
    parts, start = [], 0
    for count in counts:
        columns = [*keys, *others[start : start + count]]
        parts.append(_fit(columns, wrap=True) or _forced(columns))
        start += count
    return parts


def _counts(keys: list[Column], others: list[Column]) -> list[int]:
    """How many columns of each part, where each takes as many as fit."""
    counts, start = [], 0
    while start < len(others):
        left = range(len(others) - start, 1, -1)
        counts.append(next((n for n in left if _fit([*keys, *others[start : start + n]], wrap=True)), 1))
        start += counts[-1]
    return counts


def _fit(columns: Sequence[Column], wrap: bool, sizes: Sequence[tuple[str, float, float]] = SIZES) -> Setting | None:
    """The columns in the largest type in which they fit the line, or None."""
    for size, em, space in sizes:
        room = LINE - space * (len(columns) - 1)
        set_ = [_natural(column, em) for column in columns]
        if sum(c.width for c in set_) <= room:
            return Setting(size, space, tuple(set_))
        if wrap and (found := _wrapped(set_, em, room)):
            return Setting(size, space, tuple(found))
    return None


def _forced(columns: Sequence[Column]) -> Setting:
    """Columns that are too wide whatever is done, as narrow as they can be."""
    size, em, space = SIZES[-1]
    set_ = [_natural(column, em) for column in columns]
    return Setting(size, space, tuple(_narrowed(set_, [_least(column, em) for column in set_], em, 0.0)))


def _natural(column: Column, em: float) -> Column:
    """A column as wide as its longest cell or its heading's longest word, its heading in as few lines as that allows."""
    width = max([em * column.longest, *(BOLD * width_of(word, em) for word in column.words)])
    return replace(column, lines=_heading(column, width, em), width=width)


def _heading(column: Column, width: float, em: float) -> tuple[str, ...]:
    lines: list[str] = []
    for word in column.words:
        if lines and BOLD * width_of(f"{lines[-1]} {word}", em) <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return tuple(lines)


def _wrapped(columns: list[Column], em: float, room: float) -> list[Column] | None:
    """Columns with the widest ones broken over lines so that all fit, or None where their words are too long for that."""
    least = [_least(column, em) for column in columns]
    return _narrowed(columns, least, em, room) if sum(least) <= room else None


def _narrowed(columns: list[Column], least: list[float], em: float, room: float) -> list[Column]:
    """The widest columns at one width that lets all of them fit, none below its least."""
    low, high = 0.0, max(column.width for column in columns)
    for _ in range(40):
        middle = (low + high) / 2
        total = sum(max(at_least, min(column.width, middle)) for column, at_least in zip(columns, least, strict=True))
        low, high = (middle, high) if total <= room else (low, middle)
    widths = [max(at_least, min(column.width, low)) for column, at_least in zip(columns, least, strict=True)]
    return [
        replace(column, width=width, wrapped=True, lines=_heading(column, width, em)) if width < column.width - 0.1 else column
        for column, width in zip(columns, widths, strict=True)
    ]


def _least(column: Column, em: float) -> float:
    """Points below which a column cannot be: its longest word, or piece of a word, and its heading's."""
    heading = max((BOLD * width_of(word, em) for word in column.words), default=0.0)
    return min(column.width, max(em * column.least, heading, 0.0 if column.number else LEAST_TEXT))


def _words(cell: str, number: bool) -> list[str]:
    """What stays on one line: words, and of figures all up to their interval."""
    return re.split(r" (?=[\[(])", cell) if number else cell.split()


def _pieces(word: str) -> list[str]:
    """The parts of a long name or hash between which it may be broken: behind its punctuation, else after a few letters."""
    if len(word) <= LONG_WORD or " " in word:
        return [word]
    return [part for piece in re.findall(r"[^_./\\-]*[_./\\-]+|[^_./\\-]+", word) for part in _chunks(piece)]


def _chunks(piece: str) -> list[str]:
    return [piece] if len(piece) <= LONG_WORD else [piece[i : i + PIECE] for i in range(0, len(piece), PIECE)]


def _lines(part: Setting) -> int:
    """How many lines of the page a part takes, about."""
    em = next(em for size, em, _ in SIZES if size == part.size)
    rows = len(part.columns[0].cells)
    wrapped = [c for c in part.columns if c.wrapped]
    return 4 + sum(max([1, *(int(width_of(c.cells[i], em) / (0.8 * c.width)) + 1 for c in wrapped)]) for i in range(rows))


def _tabular(part: Setting) -> str:
    return (
        f"{{\\{part.size}\\setlength{{\\tabcolsep}}{{{part.space / 2:g}pt}}%\n\\begin{{tabular}}{{{_spec(part)}}}\n\\toprule\n"
        f"{_head(part)}\n\\midrule\n{_body(part)}\n\\bottomrule\n\\end{{tabular}}\\par}}"
    )


def _longtable(part: Setting, title: str, label: str) -> str:
    head = f"\\toprule\n{_head(part)}\n\\midrule\n"
    return (
        f"{{\\{part.size}\\setlength{{\\tabcolsep}}{{{part.space / 2:g}pt}}\\setlength{{\\LTcapwidth}}{{\\linewidth}}%\n"
        f"\\begin{{longtable}}{{{_spec(part)}}}\n\\caption{{{title}}}{label}\\\\\n{head}\\endfirsthead\n{head}\\endhead\n"
        f"\\bottomrule\n\\endlastfoot\n{_body(part)}\n\\end{{longtable}}}}\n"
    )


def _spec(part: Setting) -> str:
    """Columns by their kind, without the space at both ends of the line."""

    def kind(column: Column) -> str:
        if not column.wrapped:
            return "r" if column.number else "l"
        return rf">{{\ragged{'left' if column.number else 'right'}\arraybackslash}}p{{{column.width:.1f}pt}}"

    return "@{}" + "".join(map(kind, part.columns)) + "@{}"


def _head(part: Setting) -> str:
    """The headings, their last lines side by side."""
    tall = max([1, *(len(c.lines) for c in part.columns)])
    lines = [["", *[""] * tall][: tall - len(c.lines)] + list(c.lines) for c in part.columns]
    return "\n".join(_row(rf"\textbf{{{escape(text)}}}" if text else "" for text in row) for row in zip(*lines, strict=True))


def _body(part: Setting) -> str:
    if not part.columns[0].cells:
        return rf"\multicolumn{{{len(part.columns)}}}{{@{{}}l@{{}}}}{{None.}} \\"
    columns = [[_cell(c, cell) for cell in c.cells] for c in part.columns]
    return "\n".join(map(_row, zip(*columns, strict=True)))


def _cell(column: Column, text: str) -> str:
    if not column.wrapped:
        return escape(text)
    kept: Callable[[str], str] = (lambda word: escape(word).replace(" ", "~")) if column.number else escape
    return " ".join(r"\allowbreak{}".join(map(kept, _pieces(word))) for word in _words(text, column.number))


def _row(cells: Iterable[str]) -> str:
    return " & ".join(cells) + r" \\"
