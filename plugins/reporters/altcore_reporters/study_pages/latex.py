"""A document's tables as LaTeX, to be taken into a paper."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from textwrap import wrap

from attrs import evolve

from altcore.plugin import printable
from altcore_reporters.study_pages.document import Cell, Document, Interval, Table

SPECIAL = {
    "\\": r"\textbackslash{}",
    **{mark: f"\\{mark}" for mark in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "×": r"$\times$",
    "√": r"$\surd$",
    "\u00a0": "~",
    "–": "--",
    "−": "$-$",
    "±": r"$\pm$",
}
HEAD = (
    r"% All: \input. One: \usepackage{catchfilebetweentags}, \ExecuteMetaData[FILE]{LABEL}.",
    "% To repeat it:",
)
WIDTH = 80
"""Characters of \\footnotesize in a line of the class article, whose text is narrow."""
WRAPPED = 16
"""Longer text is wrapped."""
MOST_ROWS = 30
"""Of a table on one page, where a row may take two lines; a longer one goes on over pages."""
APART = 2
"""Characters between two columns."""
BREAK = r"\\"
INFINITE = {"inf": r"$\infty$", "-inf": r"$-\infty$"}
NUMBER = re.compile(r"-?\d+(\.\d+)?(e[+-]?\d+)?")


def as_latex(document: Document) -> str:
    """Return the tables, each in an environment of its own, with a caption and a label.

    A table that is wider than a page of one column has several, with the same names of rows; one
    that is longer than a page goes on over pages, with its head.
    """
    repeat = [f"%   {name}: {fact}" for name, fact in document.repeat]
    shown = [t.shown for t in document.parts if isinstance(t, Table) and t.rows]
    needed = ["booktabs", "tabularx", *["xltabular"] * any(map(_is_long, shown))]
    preamble = rf"\usepackage{{{','.join(needed)}}}"
    tables = [
        f"%<*{label}>\n{_environment(document, part, label)}\n%</{label}>"
        for table in shown
        for part, label in _parts(table)
    ]
    told = f"% Tables of an altcore study; the preamble needs {preamble}."
    return "\n".join([told, *HEAD, *repeat, "", "\n\n".join(tables), ""])


def _is_long(table: Table) -> bool:
    return len(table.rows) > MOST_ROWS


def _parts(table: Table) -> Iterator[tuple[Table, str]]:
    """Yield a table as pieces that a page is wide enough for, each with the end of its label."""
    widths = [max(map(_width, column)) for column in zip(*table.rows, strict=True)]
    names = list(range(table.names))
    pieces: list[list[int]] = [[]]
    room = WIDTH - sum(min(widths[i], WRAPPED) + APART for i in names)
    left = room
    for i in range(table.names, len(table.head)):
        left -= widths[i] + APART
        if left < 0 and pieces[-1]:
            pieces.append([])
            left = room - widths[i] - APART
        pieces[-1].append(i)
    for number, columns in enumerate(pieces, 1):
        kept = [*names, *columns]
        rows = [[row[i] for i in kept] for row in table.rows]
        piece = evolve(table, head=[table.head[i] for i in kept], rows=rows)
        yield piece, table.key if number == 1 else f"{table.key}-{number}"


def _width(cell: Cell) -> int:
    """Return how many characters wide a cell is; longer text is wrapped."""
    return min(len(cell), WRAPPED) if isinstance(cell, str) else len(str(cell))


def _environment(document: Document, table: Table, label: str) -> str:
    columns = list(zip(*table.rows, strict=True))
    kinds = [_kind(column, i < table.names) for i, column in enumerate(columns)]
    prefix = f"tab:{document.facts['study']}-{document.name}"
    caption = text(f"{table.caption}. {_note(document, table)}".rstrip())
    if label != table.key:
        caption = rf"{text(table.caption)}: more of Table~\ref{{{prefix}-{table.key}}}."
    told = [rf"\caption{{{caption}}}", rf"\label{{{prefix}-{label}}}"]
    head = [
        r"    \toprule",
        _row(_head(word, column) for word, column in zip(table.head, columns, strict=True)),
        r"    \midrule",
    ]
    rows = [_row(map(cell_text, row, map(_spans, columns))) for row in table.rows]
    shape = rf"{{\linewidth}}{{@{{}}{''.join(kinds)}@{{}}}}"
    if _is_long(table):
        again = rf"\caption[]{{{text(table.caption)} (continued)}}"
        lines = _long(shape, told, again, head, rows, sum(map(_spans, columns)))
    else:
        lines = _short(shape, told, head, rows)
    return "\n".join(lines)


def _short(shape: str, told: list[str], head: list[str], rows: list[str]) -> list[str]:
    """Return the lines of a table on one page, below its caption and label."""
    return [
        r"\begin{table}",
        r"  \centering\footnotesize\setlength{\tabcolsep}{4pt}",
        *(f"  {line}" for line in told),
        rf"  \begin{{tabularx}}{shape}",
        *head,
        *rows,
        r"    \bottomrule",
        r"  \end{tabularx}",
        r"\end{table}",
    ]


def _long(
    shape: str, told: list[str], again: str, head: list[str], rows: list[str], columns: int
) -> list[str]:
    """Return the lines of a table over pages; from the second on its caption is ``again``."""
    return [
        r"{\footnotesize\setlength{\tabcolsep}{4pt}\setlength{\LTcapwidth}{\linewidth}",
        rf"  \begin{{xltabular}}{shape}",
        f"    {''.join(told)}{BREAK}",
        *head,
        r"    \endfirsthead",
        f"    {again}{BREAK}",
        *head,
        r"    \endhead",
        r"    \midrule",
        rf"    \multicolumn{{{columns}}}{{r@{{}}}}{{continued on the next page}} {BREAK}",
        r"    \endfoot",
        r"    \bottomrule",
        r"    \endlastfoot",
        *rows,
        r"  \end{xltabular}}",
    ]


def _note(document: Document, table: Table) -> str:
    has_intervals = any(isinstance(cell, Interval) for row in table.rows for cell in row)
    return table.note or (document.note if has_intervals else "")


def _kind(column: Sequence[Cell], is_name: bool) -> str:
    """Return the kind of a column: an interval has two, for its mean and its ends."""
    if _spans(column) == 2:
        return r"r@{\ }r"
    if is_name or any(len(cell) > WRAPPED for cell in column if isinstance(cell, str)):
        return r">{\raggedright\arraybackslash}X"
    return "l" if any(isinstance(cell, str) for cell in column) else "r"


def _head(word: str, column: Sequence[Cell]) -> str:
    """Return the head of a column, in lines that are no longer than what is below."""
    width = max(8, *map(_width, column))
    lines = [
        text(line) for line in wrap(word.removesuffix(" [95 %]"), width, break_long_words=False)
    ]
    told = lines[0] if len(lines) == 1 else rf"\shortstack{{{BREAK.join(lines)}}}"
    return rf"\multicolumn{{2}}{{c}}{{{told}}}" if _spans(column) == 2 else told


def _spans(column: Sequence[Cell]) -> int:
    """Return how many columns of LaTeX a column has."""
    return 2 if any(isinstance(cell, Interval) for cell in column) else 1


def _row(cells: Iterable[str]) -> str:
    return f"    {' & '.join(cells)} {BREAK}"


def cell_text(cell: Cell, spans: int = 1) -> str:
    r"""Return a cell of so many columns as LaTeX; names break between their parts.

    >>> cell_text(Interval(-0.25, -0.5, 0.0), 2), cell_text("E4M3/weight=up")
    ('$-0.2500$ & [$-0.5000$, $0.0000$]', 'E4M3/\\allowbreak weight=\\allowbreak up')
    """
    if isinstance(cell, Interval) and not math.isnan(cell.mean):
        mean, low, high = (INFINITE.get(word) or text(word) for word in cell.texts)
        return f"{mean} & [{low}, {high}]"
    told = re.sub(r"(/|=|\\_)(?=\w)", r"\1\\allowbreak ", text(str(cell)))
    return rf"\multicolumn{{2}}{{r}}{{{told}}}" if spans == 2 else told


def text(given: str) -> str:
    r"""Return a text as LaTeX, with its marks.

    >>> text("`a_b` of **all**: 5 %"), text("-1.2e-05")
    ('\\texttt{a\\_b} of \\textbf{all}: 5 \\%', '$-1.2\\times10^{-5}$')
    """
    if NUMBER.fullmatch(given):
        mantissa, _, exponent = given.partition("e")
        return f"${mantissa}\\times10^{{{int(exponent)}}}$" if exponent else f"${given}$"
    plain = printable(" ".join(given.splitlines()))
    escaped = "".join(SPECIAL.get(c, c) for c in plain)
    escaped = re.sub(r"`([^`]+)`", r"\\texttt{\1}", escaped)
    return re.sub(r"\*\*(.+?)\*\*", r"\\textbf{\1}", escaped)
