"""The answer of `altcore compare` as a document: a row for each contender."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from altcore_reporters.study_pages import method
from altcore_reporters.study_pages.document import (
    Cell,
    Document,
    Intervals,
    Number,
    Section,
    Table,
)
from altcore_reporters.study_pages.rows import (
    UNIT,
    VERDICT,
    bar,
    interval,
    learning_rate,
    of_seeds,
    p_value,
    rate_curves,
)
from altcore_reporters.study_pages.words import number, value

Answer = Mapping[str, Any]


def comparison(answer: Answer) -> Document:
    """Return a comparison as a document."""
    about = answer["about"]
    told = [picture(answer), contenders(answer), *differences(answer), twins(answer)]
    return Document(about["page"], method.note(about), [
        Section("Comparison", told),
        *rate_curves(answer),
        *method.cautions(about),
        Section("How this was found", [how(about) + own_settings(answer)]),
    ])  # fmt: skip


def picture(answer: Answer) -> Intervals:
    """Return every gap and difference on one axis, the smallest first."""
    own = [bar(r["arm"], {**r["gap"], "p_holm": r["p_holm"]}) for r in answer["contenders"]]
    pairs = [
        bar(f"{r['arm']} against {r['against']}", {**r["difference"], "p_holm": r["p_holm"]})
        for r in answer["differences"]
    ]
    nulls = [bar(name, t["null"]) for name, t in answer["twins"].items() if "null" in t]
    stages = (
        ("null arm: chaos alone", nulls),
        ("gap to the float32 twin", own),
        ("difference between arms", pairs),
    )
    groups = [(title, sorted(b, key=lambda b: b.interval.mean)) for title, b in stages if b]
    return Intervals("How far apart", UNIT, groups, answer["about"]["within"])


def contenders(answer: Answer) -> Table:
    """Return a row for each contender, the smallest gap first."""
    rows = [
        [
            r["arm"],
            learning_rate(answer["learning_rates"][r["key"]]),
            interval(r["gap"]),
            p_value(r),
            interval(r["frozen"]),
            of_seeds(r["diverged"], r["gap"]),
            r["verdict"],
            r["reason"],
        ]
        for r in sorted(answer["contenders"], key=lambda r: value(r["gap"]["mean"]))
    ]
    head = ["arm", "× lr", "gap [95 %]", "p (Holm)", "frozen", "diverged"]
    return Table("contenders", "Gaps to the float32 twin", [*head, *VERDICT], rows)


def differences(answer: Answer) -> list[Table]:
    """Return the table of paired differences between arms, if some were asked for."""
    rows = [
        [
            row["arm"],
            row["against"],
            interval(row["difference"]),
            p_value(row),
            interval(row["share_closed"]) if row["share_closed"] else "not available",
            row["verdict"],
        ]
        for row in answer["differences"]
    ]
    closed = "share of the gap closed [95 %]"
    head = ["arm", "against", "difference [95 %]", "p (Holm)", closed, "verdict"]
    return [Table("differences", "Differences between arms", head, rows)] if rows else []


def twins(answer: Answer) -> Table:
    """Return a row for each optimizer's twin."""
    rows = [
        [
            name,
            learning_rate(answer["learning_rates"][t["key"]]),
            interval(t["loss"]),
            of_seeds(t["learned"], t["loss"]),
            *detectable(t),
        ]
        for name, t in answer["twins"].items()
    ]
    head = ("float32 twin", "× lr", "loss [95 %]", "learned", "null arm [95 %]", "detectable gap")
    return Table("twins", "The float32 twins", head, rows)


def detectable(twin: Mapping[str, Any]) -> list[Cell]:
    """Return the gap of a twin's null arm, and the smallest gap that can be detected beside it."""
    if "null" not in twin:
        return ["not available"] * 2
    smallest = value(twin["null"]["detectable"])
    return [interval(twin["null"]), Number(smallest, number(smallest))]


def how(about: Mapping[str, Any]) -> str:
    """Return how the runs were made, and what the verdicts mean."""
    return (
        f"{method.runs(about)} {method.rates(about, 'Every row')}. {method.verdicts(about)} A null "
        "arm is the twin, perturbed by one part in 2^11; a detectable gap is significant with a "
        "probability of 80 %, after the correction."
    )


def own_settings(answer: Answer) -> str:
    """Return the keys that only some arms have."""
    given = [
        f"`{row['arm']}` alone has {', '.join(f'{k}: {json.dumps(v)}' for k, v in own.items())}."
        for row in answer["contenders"]
        if (own := row["settings"])
    ]
    return "".join(f" {text}" for text in given)
