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
    VERDICT,
    bar,
    interval,
    learning_rate,
    of_seeds,
    p_value,
    rate_curves,
    unit,
)
from altcore_reporters.study_pages.words import digits, number, value

Answer = Mapping[str, Any]


def comparison(answer: Answer) -> Document:
    """Return a comparison as a document."""
    about = answer["about"]
    told = [picture(answer), contenders(answer), *differences(answer), twins(answer)]
    return Document(about["page"], method.note(about), [
        Section("Comparison", told),
        Section("Losses", [losses(answer), validation(answer)]),
        Section("Rounding and clipping", [*rounding(answer)]),
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
    return Intervals("How far apart", unit(answer["about"]), groups, answer["about"]["within"])


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


def losses(answer: Answer) -> Table:
    """Return the losses of all arms and twins, and the bits a byte where the data have bytes."""
    named = [(r["arm"], r) for r in answer["contenders"]]
    named += [(f"float32 twin, {name}", t) for name, t in answer["twins"].items()]
    columns = {"loss": "training loss", "val_loss": "validation loss", "bits_per_byte": "bits/byte"}
    shown = [key for key in columns if any(row[key] for _, row in named)]
    rows = [[name, *(interval(row[k]) if row[k] else "" for k in shown)] for name, row in named]
    return Table("losses", "Losses", ["arm", *(f"{columns[k]} [95 %]" for k in shown)], rows)


def validation(answer: Answer) -> str:
    """Return how certain a validation loss is by itself."""
    found = answer["validation"]
    error, enough = found["error"], found["enough"]
    told = f"An evaluation is of {found['batches']} batches, {found['items']} items."
    if error is None:
        return f"{told} A single batch does not say how certain it is."
    if error == 0:
        return f"{told} They are the whole validation split."
    within = digits(answer["about"]["within"])
    wanted = f"; {enough} batches are enough for {within}" if enough else ""
    return (
        f"{told} By itself a validation loss is certain to ±{number(1.96 * error)} (95 %){wanted}. "
        "Arms of a seed are evaluated on the same batches, so gaps are more certain. Each seed has "
        "other batches: the intervals above hold this uncertainty, too."
    )


RATES = {
    "overflow_rate": "overflow",
    "gradient_clipped_by_plugins": "gradient clipped by plugins",
    "gradient_clipped": "gradient clipped by grad_clip",
    "flushed_rate": "flushed to 0",
    "stored_stall_rate": "stored updates stalled",
    "view_stall_rate": "quantized updates stalled",
}


def rounding(answer: Answer) -> list[str | Table]:
    """Return the rates of each arm: the mean of all steps, the largest, and when that was."""
    shown = [k for k in RATES if any(r["rates"][k] for r in answer["contenders"])]
    rows = [[r["arm"], *(rate(r["rates"][k]) for k in shown)] for r in answer["contenders"]]
    told = (
        "Means over steps and seeds, with the largest and its step. Overflow is the share of "
        "quantized values beyond the largest of their format, which are clipped to it unless the "
        "recipe says otherwise; 'gradient clipped' the share of the gradient's norm that plugins "
        "took away, and of what these left, grad_clip."
    )
    return [told, Table("rates", "Rates", ["arm", *(RATES[k] for k in shown)], rows)]


def rate(found: Mapping[str, Any] | None) -> Cell:
    """Return a rate's mean, its largest value and when that was.

    >>> str(rate({"mean": 0.01, "largest": 0.25, "step": 3, "seed": 42}))
    '1.00 % (25.00 % at 3)'
    """
    if found is None:
        return "n/a"
    mean, largest = (f"{100 * value(found[key]):.2f} %" for key in ("mean", "largest"))
    return Number(value(found["mean"]), f"{mean} ({largest} at {found['step']})")


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
