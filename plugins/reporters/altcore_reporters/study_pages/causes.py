"""Of an explanation: why it breaks, and what helps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from altcore_reporters.study_pages.document import Cell, Number, Part, Section, Table
from altcore_reporters.study_pages.rows import VERDICT, interval
from altcore_reporters.study_pages.words import CAUSES, NOT_TOLD, value

Answer = Mapping[str, Any]


def causes(answer: Answer) -> Iterator[str]:
    """Yield the cause for each guilty operand, the worst first."""
    for number, suspect in enumerate(answer["causes"]):
        yield f"**Cause{f' of {name(suspect)}' if number else ''}**: {cause(suspect)}"


def cause(suspect: Mapping[str, Any]) -> str:
    """Return what is wrong with an operand, how much of its gap that is, and how much stalls."""
    found = suspect["cause"]
    if found is None:
        return f"{NOT_TOLD}{_stalls(suspect['gap'])}"
    row = suspect["counterfactuals"][found]
    words = CAUSES[found]
    if found == "finer" and suspect["fixed_point"]:
        words = "too coarse, or too small: in fixed point these are one"
    if found == "stochastic" and suspect["roundings"] == ["nearest-even"]:
        words = f"nearest {words}"
    return (
        f"{words}. This accounts for {interval(row)} of the gap of {name(suspect)} "
        f"({share(row['recovered'])}){_stalls(suspect['gap'], row)}"
    )


def _stalls(row: Mapping[str, Any], without: Mapping[str, Any] | None = None) -> str:
    """Return how many updates of stored weights stall, and how many without the cause."""
    if row["stalled"] is None:
        return ""
    after = "" if without is None else f", and {stalled(without)} once repaired"
    return f". {stalled(row)} of the updates of stored weights move nothing{after}"


def recommendation(answer: Answer) -> str:
    """Return the change that helps, with its gap and what is not known of it."""
    recommended = answer["recommendation"]
    if recommended is None:
        return "none of the changes tried helps enough"
    [row] = (c for c in answer["candidates"] if c["change"] == recommended)
    last = answer["candidates"][-1]
    told = f"{recommended}. It closes {share(row['closed'])} of the gap on fresh seeds"
    told += f", {interval(row['gap'])} is left"
    if row["verdict"] == "cannot tell":
        told += f"; it cannot be told whether that trains: {row['reason']}"
    if row["verdict"] == "beyond":
        also = f"; what trains is {last['change']}" if last["verdict"] == "within" else ""
        told += f", which is too much{also}"
    return told


def counterfactuals(answer: Answer) -> Iterator[Section]:
    """Yield how much of an operand's gap each other cast takes away."""
    rows: list[list[Cell]] = []
    for suspect in answer.get("causes", ()):
        gap, own = interval(suspect["gap"]), f"`{name(suspect)}`"
        rows.append([own, f"nothing: its gap is {gap}", "", "", stalled(suspect["gap"])])
        rows += [
            [
                own,
                CAUSES[key].partition(":")[0],
                interval(row),
                share(row["recovered"]),
                stalled(row),
            ]
            for key, row in suspect["counterfactuals"].items()
        ]
    if not rows:
        return
    title = "What takes the gap away"
    head = ("operand", "if what is wrong was", "gap taken away [95 %]", "of it", "updates stalled")
    parts: list[Part] = [Table("counterfactuals", title, head, rows, names=2)]
    if any(suspect["fixed_point"] for suspect in answer["causes"]):
        parts.append("In fixed point, to be finer is to reach lower: the two are one question.")
    yield Section(title, parts)


def changes(answer: Answer) -> Iterator[Section]:
    """Yield the changes that were tried."""
    if "candidates" not in answer:
        return
    rows: list[list[Cell]] = [
        [c["change"], interval(c["gap"]), c["verdict"], c["reason"], stalled(c)]
        for c in answer["candidates"]
    ]
    title = "Changes tried on fresh seeds, the cheapest first"
    head = ("change", "gap [95 %]", *VERDICT, "updates stalled")
    yield Section(title, [Table("changes", title, head, rows)])


def name(suspect: Mapping[str, Any]) -> str:
    """Return what an operand is called: by itself, and its group of layers."""
    operands = ", ".join(suspect["operands"])
    return f"{operands} in {suspect['group']}" if suspect["group"] else operands


def share(given: Any) -> Number:
    """Return a share in percent."""
    return Number(value(given), f"{100 * value(given):.0f} %")


def stalled(row: Mapping[str, Any]) -> Cell:
    """Return the share of updates that moved nothing; empty if no weights are stored."""
    if row["stalled"] is None:
        return ""
    return Number(value(row["stalled"]), f"{100 * value(row['stalled']):.1f} %")
