"""A document's tables as LaTeX, to be taken into a paper."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from altcore_reporters.study_pages.document import Cell, Document, Interval, Number, Table
from altcore_reporters.study_pages.words import number

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
}
NUMBER = re.compile(r"-?\d+(\.\d+)?(e[+-]?\d+)?")


def as_latex(document: Document) -> str:
    """Return the tables, each in an environment of its own, with a caption and a label."""
    head = "% Tables of an altcore study; the preamble needs \\usepackage{booktabs}."
    tables = [_table(document, part) for part in document.parts if isinstance(part, Table)]
    return "\n\n".join([head, *tables]) + "\n"


def _table(document: Document, table: Table) -> str:
    columns = zip(*table.rows, strict=True) if table.rows else ()
    kinds = "".join("r" if all(isinstance(c, Number) for c in own) else "l" for own in columns)
    has_intervals = any(isinstance(cell, Interval) for row in table.rows for cell in row)
    note = f" {text(document.note)}" if has_intervals else ""
    lines = [
        r"\begin{table}",
        r"  \centering",
        rf"  \caption{{{text(table.caption)}.{note}}}",
        rf"  \label{{tab:{document.name}-{table.key}}}",
        rf"  \begin{{tabular}}{{{kinds or 'l' * len(table.head)}}}",
        r"    \toprule",
        _row(table.head),
        r"    \midrule",
        *map(_row, table.rows),
        r"    \bottomrule",
        r"  \end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines)


def _row(cells: Sequence[Cell]) -> str:
    return f"    {' & '.join(map(cell_text, cells))} \\\\"


def cell_text(cell: Cell) -> str:
    r"""Return a cell as LaTeX.

    >>> cell_text(Interval(-0.25, -0.5, 0.0))
    '$-0.2500$ [$-0.5000$, $0.0000$]'
    """
    if isinstance(cell, Interval):
        mean, low, high = (
            r"$\infty$" if x == math.inf else r"$-\infty$" if x == -math.inf else text(number(x))
            for x in (cell.mean, cell.low, cell.high)
        )
        return f"{mean} [{low}, {high}]"
    return text(str(cell))


def text(given: str) -> str:
    r"""Return a text as LaTeX, with its marks.

    >>> text("`a_b` of **all**: 5 %"), text("-1.2e-05")
    ('\\texttt{a\\_b} of \\textbf{all}: 5 \\%', '$-1.2\\times10^{-5}$')
    """
    if NUMBER.fullmatch(given):
        mantissa, _, exponent = given.partition("e")
        return f"${mantissa}\\times10^{{{int(exponent)}}}$" if exponent else f"${given}$"
    escaped = "".join(SPECIAL.get(c, c) for c in given)
    escaped = re.sub(r"`([^`]+)`", r"\\texttt{\1}", escaped)
    return re.sub(r"\*\*(.+?)\*\*", r"\\textbf{\1}", escaped)
