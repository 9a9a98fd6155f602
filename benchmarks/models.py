"""``make models``: what models lose to an empty quantization, what recipes reach, what stays out.

    python benchmarks/models.py [--quick] [--markdown docs/models.md]

With ``--markdown`` the tables replace what that file has between its two markers. ``--quick`` takes
a few of the models. The exit status is 1 if a model under no rounding is not what it was.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from tables import Table, options, printed, replace

sys.path.append(str(Path(__file__).parents[1] / "tests"))  # which has the models

from model_checks import (
    FORWARD_BOUND,
    GRADIENT_BOUND,
    RECIPES,
    Covered,
    built,
    covered,
    shares,
    transparency,
)
from model_zoo import MODELS, missing

NONE = "–"
QUICK = ("gpt2", "mixtral", "bit", "lstm", "lora")
WIDEST = "master and attention"
"""The recipe of the third table."""


def transparent(names: Sequence[str], changed: list[str]) -> Table:
    """The first table; puts the models that change into ``changed``."""
    rows = []
    for name in names:
        case = MODELS[name]
        if missing(case):
            rows.append((name, *[NONE] * 5, case.what))
            continue
        found = [transparency(case, training=training) for training in (True, False)]
        if any(d.forward >= FORWARD_BOUND or d.gradient >= GRADIENT_BOUND for d in found):
            changed.append(name)
        size = sum(p.numel() for p in built(case).parameters())
        far = [f"{x:.0e}" for d in found for x in (d.forward, d.gradient)]
        rows.append((name, f"{size:,}", *far, case.what))
    measured = [f"{what}, {mode}" for mode in ("train", "eval") for what in ("output", "gradient")]
    note = f"Bounds: {FORWARD_BOUND:g} for the output, {GRADIENT_BOUND:g} for the worst gradient."
    head = ("model", "parameters", *measured, "class")
    return Table("Nothing changes without rounding", head, rows, [note])


def reached(names: Sequence[str]) -> Iterator[Table]:
    """The second and the third table."""
    found = {
        name: {recipe: covered(MODELS[name], recipe) for recipe in RECIPES}
        for name in names
        if not missing(MODELS[name])
    }
    rows = [(name, *(_cell(found, name, recipe) for recipe in RECIPES)) for name in names]
    note = (
        "Percent of parameters / percent of a training step's FLOPs with both operands on a grid."
    )
    yield Table("Shares on a grid", ("model", *RECIPES), rows, [note])
    yield left_out({name: of[WIDEST] for name, of in found.items()})


def _cell(found: dict[str, dict[str, Covered]], name: str, recipe: str) -> str:
    return " / ".join(map(str, shares(found[name][recipe]))) if name in found else NONE


def left_out(found: dict[str, Covered]) -> Table:
    """What is on no grid, by reason: in how many models, and the share of their parameters."""
    by_reason: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    for name, of in found.items():
        total = sum(p.numel() for p in built(MODELS[name]).parameters())
        for row in of.coverage.rows:
            # What computes a weight is reached where that weight is.
            computes = row.module == "ParametrizationList"
            if not row.operands and row.parameters and not computes:
                shares_of = by_reason[row.why_not, row.module]
                shares_of[name] = shares_of.get(name, 0.0) + row.parameters / total
    rows = [
        (why, str(len(of)), f"{min(of.values()):.1%}", f"{max(of.values()):.1%}", module)
        for (why, module), of in sorted(by_reason.items())
    ]
    head = ("why", "models", "least share of parameters", "largest", "class")
    note = (
        f"Under the recipe {WIDEST}. Besides, parameters of one dimension (biases, norms) are in "
        "no product."
    )
    return Table("What stays out", head, rows, [note])


def main() -> None:
    """Print the tables; exit with 1 if a model changes."""
    given = options(__doc__).parse_args()
    names = QUICK if given.quick else tuple(MODELS)
    changed: list[str] = []

    def tables() -> Iterator[Table]:
        yield transparent(names, changed)
        yield from reached(names)

    made = printed(tables())
    if given.markdown is not None:
        replace(given.markdown, made)
    sys.exit(f"changed: {', '.join(changed)}" if changed else 0)


if __name__ == "__main__":
    main()
