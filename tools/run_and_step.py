"""Writes docs/run-and-step.md from the docstrings: ``make pages``.

Each class is given with its public attributes; of a class that the engine and plugins share, the
part that plugins may use is listed here.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from pathlib import Path
from typing import NamedTuple

from altcore.engine import Epoch, Run, Step, Workload
from altcore.engine.snapshots import Snapshot
from altcore.hooks import NonFinite
from altcore.quantization import Quantization, WeightGrid
from altcore.quantization.counters import Counters
from altcore.quantization.coverage import Coverage, CoverageRow
from altcore.quantization.quantizer import Quantizer
from altcore.quantization.site import Site
from altcore.quantization.stored import StoredWeight
from altcore.recipes import Cast, Scaling

PAGE = Path(__file__).parents[1] / "docs" / "run-and-step.md"

HEAD = """# Run and step

<!-- Written by tools/run_and_step.py from the docstrings of the classes: change those. -->

These are the attributes that hooks may use. Every other one is private and may change. Tensors are
on the run's device; do not read them on the host in a step (no `.item()`). Change nothing, unless
the table says that you may. The engine checks this of the loss only: a
plugin that sets `run.step` or `run.lr_scale` steers the run.
"""

QUANTIZATION = (
    "plan", "compute", "modules", "quantizers", "counters", "stored", "grid_of", "off", "stats",
    "coverage",
)  # fmt: skip
COUNTERS = ("counts", "errors", "stored_moves", "view_moves", "view_layers")
QUANTIZER = ("site", "cast", "last_scale", "history")
SITE = ("layer", "operand", "parameter")
CAST = (
    "format", "scaling", "rounding", "overflow", "hadamard", "straight_through", "element",
    "blocks", "has_axis", "uses_amax",
)  # fmt: skip
SCALING = ("kind", "power_of_two", "margin", "history", "block", "quantile", "uses_amax")
COVERAGE = (
    "rows", "parameter_share", "flop_share", "flop_share_by_operand", "head", "line", "left_out",
)  # fmt: skip
STORED = ("name", "layer", "cast", "scale", "scale_before", "before", "error")

SECTIONS: tuple[tuple[type, str, tuple[str, ...] | None], ...] = (
    (Run, "Run", None),
    (Step, "Step", None),
    (Workload, "Workload", None),
    (Epoch, "Epoch", None),
    (Quantization, "Quantization", QUANTIZATION),
    (Counters, "Counters", COUNTERS),
    (Quantizer, "Quantizer", QUANTIZER),
    (Site, "Site", SITE),
    (Cast, "Cast", CAST),
    (Scaling, "Scaling", SCALING),
    (StoredWeight, "StoredWeight", STORED),
    (WeightGrid, "WeightGrid", None),
    (Coverage, "Coverage", COVERAGE),
    (CoverageRow, "CoverageRow", None),
    (Snapshot, "Snapshot", ("step",)),
    (NonFinite, "NonFinite", None),
)
"""Class, heading, and the names that plugins may use; None for all public ones."""

INTRODUCTIONS = {
    "Workload": "`run.workload`: the object that the workload's `build` returned.",
    "Epoch": "`run.epoch`: one pass over the training split.",
    "Quantization": "`run.quantization`.",
    "Counters": "`run.quantization.counters`: counts of the last step.",
    "Site": "The `site` of a quantizer.",
    "Quantizer": "An entry of `run.quantization.quantizers`: it rounds one operand of one layer.",
    "StoredWeight": "A value of `run.quantization.stored`: one parameter on its grid.",
    "Cast": "How one operand is rounded; see [recipes.md](recipes.md).",
    "Scaling": "The `scaling` of a cast; see [recipes.md](recipes.md).",
    "Coverage": "The return of `run.quantization.coverage()`; `print` shows it as a table.",
    "CoverageRow": "An entry of `rows` of a coverage: one layer.",
    "Snapshot": "An entry of `run.snapshots`: the state of a run after a step.",
    "WeightGrid": "The return of `run.quantization.grid_of` and of an optimizer's `grid_of`.",
    "NonFinite": "The argument `where` of `on_nan`.",
}


class Member(NamedTuple):
    """A public attribute or method of a class."""

    name: str
    shown: str
    """The attribute's type, or the method's signature."""
    text: str
    since: str
    """From when on it is there; empty for always."""


def members(cls: type, names: tuple[str, ...] | None = None) -> list[Member]:
    """Return what a class has under ``names``, in the order of its source; all public if None."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(tree, ast.ClassDef)
    found = []
    for node, after in zip(tree.body, [*tree.body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            own, shown = node.target.id, ast.unparse(node.annotation)
            doc = _text(after)
        elif isinstance(node, ast.FunctionDef):
            own, doc = node.name, ast.get_docstring(node) or ""
            is_property = any(ast.unparse(d).endswith("property") for d in node.decorator_list)
            returns = ast.unparse(node.returns) if node.returns else ""
            arguments = ast.unparse(node.args).removeprefix("self").removeprefix(", ")
            shown = returns if is_property else f"({arguments}) -> {returns}"
        else:
            continue
        if (names is None and own.startswith("_")) or (names is not None and own not in names):
            continue
        text, _, since = doc.partition("From: ")
        found.append(Member(own, shown, _line(text), _line(since)))
    return found


def _text(node: ast.stmt | None) -> str:
    """Return the docstring of the attribute before, if ``node`` is one."""
    value = node.value if isinstance(node, ast.Expr) else None
    is_text = isinstance(value, ast.Constant) and isinstance(value.value, str)
    return inspect.cleandoc(value.value) if is_text else ""


def _line(text: str) -> str:
    """Return a text as one line of Markdown."""
    return " ".join(text.replace("``", "`").split())


def page() -> str:
    """Return the whole page."""
    parts = [HEAD]
    for cls, heading, names in SECTIONS:
        found = members(cls, names)
        has_since = any(m.since for m in found)
        intro = INTRODUCTIONS.get(heading) or _line(inspect.getdoc(cls) or "").split(". From")[0]
        columns = ["name", "type", "meaning", *(["there from"] if has_since else [])]
        rows = [columns, ["---"] * len(columns)]
        for m in found:
            since = m.since.rstrip(".") if has_since else ""
            cells = [f"`{m.name}`", f"`{m.shown}`", m.text, *([since] if has_since else [])]
            rows.append([cell.replace("|", r"\|") for cell in cells])
        table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
        parts.append(f"## {heading}\n\n{intro}\n\n{table}\n")
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
