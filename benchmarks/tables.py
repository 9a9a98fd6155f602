"""What the benchmarks print, and what docs/benchmarks.md and docs/exactness.md have of it."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

MARKERS = ("<!-- tables: begin -->", "<!-- tables: end -->")
"""Between which a page has its tables."""


@dataclass
class Table:
    """Rows under a title; the first cell is what is measured, by a name that stays the same."""

    title: str
    head: tuple[str, ...]
    rows: list[tuple[str, ...]]
    notes: list[str] = field(default_factory=list)

    def text(self) -> str:
        """For a terminal."""
        lines = [self.head, *self.rows]
        # The last column is of words: it is not filled up, and may be long.
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.head) - 1)]
        made = [f"\n{self.title}"]
        for first, *middle, last in lines:
            cells = [f"{c:>{w}}" for c, w in zip(middle, widths[1:], strict=True)]
            made.append("  ".join([f"{first:{widths[0]}}", *cells, last]).rstrip())
        return "\n".join([*made, *self.notes])

    def markdown(self) -> str:
        """For a page in docs/."""
        lines = [self.head, ("---", *["---:"] * (len(self.head) - 2), "---"), *self.rows]
        body = ["| " + " | ".join(cells) + " |" for cells in lines]
        notes = [f"\n{note}" for note in self.notes]
        return "\n".join([f"### {self.title}\n", *body, *notes])


def verdict(ratio: float, target: float | None, *, at_most: bool = False) -> tuple[str, str]:
    """The last two cells of a row: what is wanted, and whether it is so."""
    if target is None:
        return "", ""
    met = ratio <= target if at_most else ratio >= target
    return f"{'at most ' if at_most else ''}{target:g}", "met" if met else "missed"


def fraction(ratio: float) -> str:
    """A ratio for reading: two digits of a small one."""
    return f"{ratio:.3f}" if ratio >= 0.1 else f"{ratio:.2g}"


def options(doc: str, *, runs_on_gpu: bool = False) -> argparse.ArgumentParser:
    """The options that all benchmarks have, and the device's of those that run on a GPU, too."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="little work: shows that it runs")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables there, too")
    if runs_on_gpu:
        parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    return parser


def printed(tables: Iterable[Table]) -> str:
    """Print each table as soon as it is there; what a page has of them all."""
    made = []
    for table in tables:
        print(table.text(), flush=True)
        made.append(table.markdown())
    return "\n\n".join(made) + "\n"


def show(tables: Iterable[Table], given: argparse.Namespace) -> None:
    """Print a benchmark's tables, and write them where they are wanted."""
    made = printed(tables)
    if given.quick:
        # A GPU is given tensors as large as without it, since small ones are no quicker there.
        on_gpu = getattr(given, "device", "cpu") == "cuda"
        means = "fewer rows and repetitions" if on_gpu else "these figures mean nothing"
        print(f"\n--quick: {means}.")
    if given.markdown is not None:
        given.markdown.write_text(made, encoding="utf-8")


def replace(file: Path, tables: str) -> None:
    """Put the tables between the file's markers."""
    begin, end = MARKERS
    before, found, rest = file.read_text(encoding="utf-8").partition(begin)
    _, found_end, after = rest.partition(end)
    if not (found and found_end):
        raise SystemExit(f"{file} has no markers {begin} and {end}")
    text = f"{before}{begin}\n\n{tables}\n{end}{after}"
    file.write_text(text, encoding="utf-8")
