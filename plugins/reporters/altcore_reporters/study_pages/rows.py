"""Cells and columns that the tables of both studies share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from altcore_reporters.study_pages.document import (
    NO_INTERVAL,
    Bar,
    Cell,
    Curve,
    Curves,
    Interval,
    Number,
    Section,
    Table,
)
from altcore_reporters.study_pages.words import LEVEL, NOT_TOLD, factor, loss_name, number, value

Row = Mapping[str, Any]
"""An estimate in an answer: its mean, its interval, and what else is known of it."""


def interval(row: Row | None) -> Interval:
    """Return an estimate's mean and interval; None is one that there is not."""
    if row is None:
        return NO_INTERVAL
    return Interval(*(value(row[key]) for key in ("mean", "low", "high")))


def p_value(row: Row) -> Number:
    """Return the corrected p of a row."""
    p = value(row["p_holm"])
    return Number(p, number(p))


def learning_rate(choice: Row) -> Number:
    """Return the factor of a learning rate that was chosen, marked if it is at the edge.

    >>> str(learning_rate({"factor": 9.0, "edge": "highest"}))
    '9 (highest tried)'
    """
    edge = f" ({choice['edge']} tried)" if choice["edge"] else ""
    return Number(choice["factor"], f"{factor(choice['factor'])}{edge}")


def rate_curves(answer: Row) -> list[Section]:
    """Return each arm's loss over its learning rate, a column for each rate."""
    choices = answer["learning_rates"]
    tried = sorted({point["factor"] for c in choices.values() for point in c["curve"]})
    if len(tried) < 2:
        return []
    rows: list[list[Cell]] = []
    for arm, choice in choices.items():
        losses = {point["factor"]: map(value, point["losses"]) for point in choice["curve"]}
        cells = [", ".join(number(x) for x in losses.get(rate, ())) for rate in tried]
        rows.append([arm, *cells, learning_rate(choice)])
    head = ["arm", *map(factor, tried), "best"]
    name = loss_name(answer["about"])
    told = f"By factor of the learning rate: the {name} of the selection seeds."
    title = "Loss over learning rate"
    table = Table("learning-rates", title, head, rows, is_data=False, note=told)
    picture = Curves(table.key, list(map(curve, choices.items())))
    return [Section(table.caption, [told, picture, table])]


def curve(choice: tuple[str, Row]) -> Curve:
    """Return the losses of an arm over its learning rates, for a picture."""
    arm, chosen = choice
    points = [(p["factor"], list(map(value, p["losses"]))) for p in chosen["curve"]]
    return Curve(arm, points, learning_rate(chosen))


def unit(about: Mapping[str, Any]) -> str:
    """Return the unit of the pictures of intervals."""
    return f"difference of the {loss_name(about)}, 95\u00a0% intervals"


def bar(label: str, row: Row) -> Bar:
    """Return an estimate for a picture; by its corrected p, if it has one, it is told from 0."""
    own = interval(row)
    is_significant = value(row.get("p_holm", 0.0)) < LEVEL
    is_told = is_significant and (own.low > 0 or own.high < 0)
    return Bar(label, own, is_told or row.get("guilty", False))


def of_seeds(count: int, row: Row) -> Number:
    """Return in how many of the seeds of an estimate something happened."""
    return Number(count, f"{count} of {row['n']}")


VERDICT = ("verdict", "reason")
"""The heads of the columns of a verdict."""
JUDGED = ("gap [95 %]", "p (Holm)", "diverged", "finding")
"""The heads of the columns that `judged` returns."""


def judged(row: Row) -> list[Cell]:
    """Return the columns that every arm has: gap, corrected p, diverged, and a verdict."""
    words = "worse than the twin" if row["guilty"] else NOT_TOLD
    if value(row["high"]) < 0 and value(row["p_holm"]) < LEVEL:
        words = "better than the twin"
    return [interval(row), p_value(row), of_seeds(row["diverged"], row), words]
