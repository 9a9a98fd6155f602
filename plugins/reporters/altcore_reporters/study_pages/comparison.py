"""The answer of `altcore compare` as a document: a row for each contender."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from altcore_reporters import markdown
from altcore_reporters.study_pages import method, repeat
from altcore_reporters.study_pages.document import (
    NO_NUMBER,
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
from altcore_reporters.study_pages.words import digits, loss_name, number, value

Answer = Mapping[str, Any]


def comparison(answer: Answer) -> Document:
    """Return a comparison as a document."""
    about = answer["about"]
    told = [picture(answer), contenders(answer), differences(answer), twins(answer)]
    return Document(about["page"], repeat.facts(about), method.note(about), [
        Section("Comparison", told),
        Section("Losses", [losses(answer), validation(answer)]),
        Section("Rounding and clipping", [*rounding(answer)]),
        *rate_curves(answer),
        *method.cautions(about),
        Section("How this was found", how(answer)),
        repeat.section(about),
    ], repeat.needed(about))  # fmt: skip


BETWEEN = "difference between arms"
"""Heads the differences in the picture."""


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
        (BETWEEN, pairs),
    )
    groups = [(title, sorted(b, key=lambda b: b.interval.mean)) for title, b in stages if b]
    about = answer["about"]
    return Intervals("How far apart", unit(about), groups, about["within"], {BETWEEN})


def contenders(answer: Answer) -> Table:
    """Return a row for each contender, the smallest gap first."""
    about, rates = answer["about"], answer["learning_rates"]
    found = sorted(answer["contenders"], key=lambda r: value(r["gap"]["mean"]))
    rows: list[list[Cell]] = [
        [
            r["arm"],
            learning_rate(rates[r["key"]]),
            interval(r["gap"]),
            p_value(r),
            of_seeds(r["diverged"], r["gap"]),
            r["verdict"],
            r["reason"],
            interval(r["frozen"]),
            Number(value(r["detectable"]), number(value(r["detectable"]))),
            of_seeds(r["learned"], r["gap"]),
        ]
        for r in found
    ]
    head = ["arm", "× lr", "gap [95 %]", "p (Holm)", "diverged", *VERDICT]
    head += ["frozen [95 %]", "detectable", "learned"]
    more = [
        {
            **known(r["gap"]),
            "twin learned": r["twin_learned"],
            "edge": rates[r["key"]]["edge"],
            **{key: r[key] for key in ("format", "recipe", "rounding", "optimizer", "plugins")},
        }
        for r in found
    ]
    title = "Gaps to the float32 twin"
    note = f"{gaps_note(about, len(rows))} {chosen(about)} {method.verdicts(about)}"
    return Table("contenders", title, head, rows, note=note, more=more)


def gaps_note(about: Mapping[str, Any], rows: int | None = None) -> str:
    """Return what a table of gaps holds."""
    told = f"{method.made(about)} {method.gap(about)} {method.intervals(rows)}{method.stops(about)}"
    return f"{told} {method.FROZEN} {method.OWN_SPREAD}"


def chosen(about: Mapping[str, Any]) -> str:
    """Return how learning rates were chosen, as a sentence."""
    return f"{method.rates(about, 'Every row')}."


def differences(answer: Answer) -> Table:
    """Return the table of paired differences between arms, the smallest first."""
    found = sorted(answer["differences"], key=lambda r: value(r["difference"]["mean"]))
    rows: list[list[Cell]] = [
        [
            row["arm"],
            row["against"],
            interval(row["difference"]),
            p_value(row),
            row["verdict"],
            interval(row["share_closed"]),
            row["reason"],
        ]
        for row in found
    ]
    closed = "share of the gap closed [95 %]"
    head = ["arm", "against", "difference [95 %]", "p (Holm)", "verdict", closed, "reason"]
    note = f"{differences_note(answer)} {method.intervals(len(rows))}"
    more = [known(r["difference"]) for r in found]
    title = "Differences between arms"
    return Table("differences", title, head, rows, note=note, names=2, more=more)


def differences_note(answer: Answer) -> str:
    """Return what a difference between arms is, and what its verdicts mean."""
    about = answer["about"]
    within, metric = digits(about["within"]), loss_name(about)
    ablated = (
        " A recipe is held against itself without an ingredient: below 0, the ingredient helps."
        if about["ablate"] and about["against"] is None
        else ""
    )
    return (
        f"A difference is that of two arms' gaps by the {metric}, seed by seed: below 0, the arm "
        f"is better than the one that it is held against.{ablated} It is 'better' or 'worse' if p "
        f"is below 0.05, 'alike' if the interval lies within ±{within}, and nothing is told if the "
        "twin did not learn. The share of the gap closed is 1 minus the ratio of the two gaps, "
        "with Fieller's interval; it is not available unless the interval of the other's gap lies "
        "above 0."
    )


def twins(answer: Answer) -> Table:
    """Return a row for each optimizer's twin, by the loss that is compared."""
    about, rates = answer["about"], answer["learning_rates"]
    rows: list[list[Cell]] = [
        [
            name,
            learning_rate(rates[t["key"]]),
            interval(t["val_loss" if about["metric"] == "val" else "loss"]),
            of_seeds(t["learned"], t["loss"]),
            interval(t.get("null")),
            detectable(t),
        ]
        for name, t in answer["twins"].items()
    ]
    loss = f"{loss_name(about)} [95 %]"
    head = ("float32 twin", "× lr", loss, "learned", "null arm [95 %]", "detectable gap")
    note = f"{losses_note(about)} {method.gap(about)} {null_arm(answer)}"
    more = [known(t.get("null")) for t in answer["twins"].values()]
    return Table("twins", "The float32 twins", head, rows, note=note, more=more)


def detectable(twin: Mapping[str, Any]) -> Number:
    """Return the smallest gap that can be detected beside a twin, by its null arm."""
    if "null" not in twin:
        return NO_NUMBER
    smallest = value(twin["null"]["detectable"])
    return Number(smallest, number(smallest))


def known(row: Mapping[str, Any] | None) -> dict[str, object]:
    """Return what else is known of an estimate: its seeds, and p before any correction."""
    return {"n": "", "p": ""} if row is None else {"n": row["n"], "p": row["p"]}


def losses(answer: Answer) -> Table:
    """Return the losses of all arms and twins, and the bits a byte where the data have bytes."""
    named = [(r["arm"], r) for r in answer["contenders"]]
    named += [(f"float32 twin, {name}", t) for name, t in answer["twins"].items()]
    columns = {"loss": "training loss", "val_loss": "validation loss", "bits_per_byte": "bits/byte"}
    rows: list[list[Cell]] = [[name, *(interval(row[k]) for k in columns)] for name, row in named]
    head = ["arm", *(f"{name} [95 %]" for name in columns.values())]
    more = [{"n": row["loss"]["n"]} for _, row in named]
    return Table("losses", "Losses", head, rows, note=losses_note(answer["about"]), more=more)


def losses_note(about: Mapping[str, Any]) -> str:
    """Return what losses are of."""
    return (
        f"{method.made(about)} Means over the seeds, with intervals of 95 % by Student's t: the "
        "training loss is that of the last tenth of the steps, the validation loss that at the end."
    )


def validation(answer: Answer) -> str:
    """Return how certain a validation loss is by itself."""
    found = answer["validation"]
    error, enough = found["error"], found["enough"]
    if not found["items"]:
        return "No run that trained to its end was evaluated."
    told = f"An evaluation is of {found['batches']} batches, {found['items']} items."
    if error is None:
        return f"{told} A single batch does not say how certain it is."
    if error == 0:
        return f"{told} They are the whole validation split."
    within = digits(answer["about"]["within"])
    wanted = f"; {enough} batches are enough for {within}" if enough else ""
    return (
        f"{told} By itself a validation loss is certain to ±{number(1.96 * error)} (95 %) in the "
        f"least certain run of an arm or twin{wanted}. Arms of a seed are evaluated on the same "
        "batches, and most of that cancels in gaps. Each seed has other batches: intervals hold "
        "what is left."
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
    found = answer["contenders"]
    rows: list[list[Cell]] = [[r["arm"], *(rate(r["rates"][k]) for k in RATES)] for r in found]
    told = (
        "Means over steps and seeds, with the largest and its step. Overflow is the share of "
        "quantized values beyond the largest of their format, which are clipped to it unless the "
        "recipe says otherwise; 'gradient clipped' the share of the gradient's norm that plugins "
        "took away, and of what these left, grad_clip."
    )
    more = [
        {f"{RATES[k]} {part}": (r["rates"][k] or {}).get(part) for k in RATES for part in PARTS}
        for r in found
    ]
    table = Table("rates", "Rates", ["arm", *RATES.values()], rows, note=told, more=more)
    return [told, table]


PARTS = ("largest", "step", "seed")
"""What is known of a rate besides its mean."""


def rate(found: Mapping[str, Any] | None) -> Cell:
    """Return a rate's mean, its largest value and when that was.

    >>> str(rate({"mean": 0.01, "largest": 0.25, "step": 3, "seed": 42}))
    '1.00 % (25.00 % at 3)'
    >>> str(rate({"mean": 1e-6, "largest": 0.99999, "step": 3, "seed": 42}))
    'under 0.01 % (over 99.99 % at 3)'
    """
    if found is None:
        return Number(math.nan, "n/a")
    shares = (markdown.rate(value(found[key])) for key in ("mean", "largest"))
    mean, largest = (told.replace("%", " %") for told in shares)
    return Number(value(found["mean"]), f"{mean} ({largest} at {found['step']})")


def how(answer: Answer) -> list[str]:
    """Return how the runs were made, and what the tables mean, in the words of their captions."""
    about = answer["about"]
    told = [f"{method.runs(about)}{own_settings(answer)}"]
    told.append(f"{chosen(about)} {method.FROZEN} {method.verdicts(about)} {method.OWN_SPREAD}")
    if answer["differences"]:
        told.append(differences_note(answer))
    return [*told, null_arm(answer)]


def null_arm(answer: Answer) -> str:
    """Return what the null arms of the twins are, or that there are none."""
    return method.null_arm(any("null" in twin for twin in answer["twins"].values()))


def own_settings(answer: Answer) -> str:
    """Return the keys that only some arms have."""
    given = [
        f"`{row['arm']}` alone has {', '.join(f'{k}: {json.dumps(v)}' for k, v in own.items())}."
        for row in answer["contenders"]
        if (own := row["settings"])
    ]
    return "".join(f" {text}" for text in given)
