"""Explanations and comparisons in words, tables and JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from altcore.builtin_types import digits, rounded
from altcore.study.arms import FACTOR_NAMES
from altcore.study.identity import plain
from altcore.study.statistics import LEVEL
from altcore.study.variants import CAUSES

NOT_TOLD = "not distinguishable"


def number(value: float | None, places: int = 4) -> str:
    """Return a number for a table.

    >>> number(0.12345), number(None), number(float("inf"))
    ('0.1235', 'not available', 'inf')
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "not available"
    return rounded(value, places)


def interval(row: Mapping[str, Any], places: int = 4) -> str:
    """Return an estimate's mean and interval."""
    mean, low, high = (number(row[key], places) for key in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a markdown table's lines."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return [*lines, *("| " + " | ".join(row) + " |" for row in rows), ""]


def factor(choice: Mapping[str, Any]) -> str:
    """Return the factor of a learning rate, marked if the best one was at the edge.

    >>> factor({"factor": 9.0, "edge": "highest"})
    '9 (highest tried)'
    """
    edge = f" ({choice['edge']} tried)" if choice["edge"] else ""
    return f"{choice['factor']:.3g}{edge}"


def rates_tried(about: Mapping[str, Any]) -> str:
    """Return at which learning rate each arm ran."""
    rate, factors = digits(about["learning_rate"]), about["rates"]
    if factors is None:
        return (
            f"its best learning rate, searched for from {rate} (the others from the twin's) by "
            "factors of 3 and then once by a factor of √3, on two seeds that are in no table"
        )
    if len(factors) == 1:
        return f"{digits(factors[0])} times the learning rate {rate}"
    return (
        f"the best of {', '.join(map(digits, factors))} times the learning rate {rate}, chosen on "
        "two seeds that are in no table"
    )


def curves(found: Mapping[str, Any]) -> list[str]:
    """Return each arm's loss over its learning rate, a column for each rate."""
    choices = found["learning_rates"]
    rates = sorted({point["factor"] for c in choices.values() for point in c["curve"]})
    if len(rates) < 2:
        return []
    rows = []
    for arm, choice in choices.items():
        losses = {point["factor"]: point["losses"] for point in choice["curve"]}
        cells = [", ".join(number(x) for x in losses.get(rate, ())) for rate in rates]
        rows.append([arm, *cells, factor(choice)])
    head = ["arm", *(f"{rate:.3g}" for rate in rates), "best"]
    return [
        "## Loss over learning rate",
        "",
        "By factor of the learning rate; the losses are those of the selection seeds.",
        "",
        *table(head, rows),
    ]


def judged(row: Mapping[str, Any], seeds: int) -> list[str]:
    """Return the columns that every arm has: gap, corrected p, diverged, and a verdict."""
    words = "worse than the twin" if row["guilty"] else NOT_TOLD
    if row["high"] < 0 and row["p_holm"] < LEVEL:
        words = "better than the twin"
    return [interval(row), number(row["p_holm"]), f"{row['diverged']} of {seeds}", words]


def explanation(about: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """Return an explanation as markdown."""
    seeds = len(about["seeds"])
    lines = [f"# Where {about['format']} breaks", ""]
    lines += [*_conclusion(about, found), "", *_cautions(about)]
    lines += ["## How this was found", "", _method(about, found), "", "## Factors", ""]
    for key, operands in found["operands_of"].items():
        lines.append(f"- {key}, {FACTOR_NAMES[key]}: {', '.join(operands)}")
    rates = found["learning_rates"]
    arms = [[key, factor(rates[key]), *judged(row, seeds)] for key, row in found["arms"].items()]
    frozen = found["frozen"]
    arms.append(
        [
            "frozen",
            factor(rates["frozen"]),
            interval(frozen),
            "",
            f"{frozen['diverged']} of {seeds}",
            "",
        ]
    )
    head = ["arm", "× lr", "gap [95 %]", "p (Holm)", "diverged", ""]
    lines += ["", *table(head, arms)]
    lines += ["Shapley shares of the gap, and what no smaller set of factors explains:", ""]
    lines += table(
        ["factor", "share [95 %]"], [[k, interval(r)] for k, r in found["shapley"].items()]
    )
    lines += table(
        ["effect", "size [95 %]"], [[k, interval(r)] for k, r in found["effects"].items()]
    )
    for stage, title in (
        ("operands", "One operand at a time"),
        ("groups", "One group of layers at a time"),
        ("layers", "One layer at a time"),
    ):
        if stage in found:
            rows = [[f"`{k}`", *judged(r, seeds)] for k, r in found[stage].items()]
            lines += [f"## {title}", ""]
            lines += table(["", "gap [95 %]", "p (Holm)", "diverged", ""], rows)
    if "counterfactuals" in found:
        lines += ["## Formats that it could have been", ""]
        rows = [
            [CAUSES[k].partition(":")[0], interval(r), f"{100 * r['recovered']:.0f} %"]
            for k, r in found["counterfactuals"].items()
        ]
        lines += table(["if it was", "gap taken away [95 %]", "of the gap"], rows)
        if found["fixed_point"]:
            lines += [
                "In fixed point, to be finer is to reach lower: the two are one question.",
                "",
            ]
    if "candidates" in found:
        lines += ["## Changes tried on fresh seeds", ""]
        rows = [
            [c["change"], interval(c["gap"]), "yes" if c["trains"] else "no"]
            for c in found["candidates"]
        ]
        lines += table(["change", "gap [95 %]", "trains"], rows)
    lines += curves(found)
    return "\n".join(lines)


def _cautions(about: Mapping[str, Any]) -> list[str]:
    """Return what limits the answer, beside it."""
    found = [f"- {caution[0].upper()}{caution[1:]}." for caution in about["cautions"]]
    return ["## Cautions", "", *found, ""] if found else []


def _method(about: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    inside = found.get("learning_rate_factor_inside")
    later = (
        ""
        if inside is None
        else f"; the runs inside the factor, and their twin, used {inside:.3g} times that rate"
    )
    return (
        f"{_runs(about)} A diverged run counts with the unigram entropy of the data. Each arm of "
        f"the first table and each change ran at {rates_tried(about)}{later}."
    )


def _runs(about: Mapping[str, Any]) -> str:
    seeds = ", ".join(map(str, about["seeds"]))
    kept = "".join(f" {name} is {copy}." for name, copy in about["recipe_files"].items())
    return (
        f"{about['steps']} steps of {about['workload']} in each run, seeds {seeds}, products in "
        f"{about['compute']}. A gap is the mean difference of the training loss to the float32 "
        "twin over the last tenth of the steps, on the same batches, paired by seed; intervals "
        "are 95 % by Student's t, p is corrected by Holm over the rows of a table."
        f"{plugins_and_settings(about)}{kept}"
    )


def plugins_and_settings(about: Mapping[str, Any]) -> str:
    """Return the plugins of every run, and the settings that were given.

    >>> plugins_and_settings({"plugins": ["agc"], "settings": {"agc": {"limit": 0.1}}})
    ' Plugins: agc. Settings: agc.limit: 0.1.'
    """
    named = f" Plugins: {', '.join(about['plugins'])}." if about["plugins"] else ""
    given = [
        f"{owner}.{key}: {json.dumps(plain(value))}"
        for owner, settings in about["settings"].items()
        for key, value in settings.items()
    ]
    return f"{named} Settings: {', '.join(given)}." if given else named


def comparison(about: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """Return a comparison as markdown."""
    seeds = len(about["seeds"])
    rows = [
        [
            r["arm"],
            factor(found["learning_rates"][r["key"]]),
            interval(r["gap"]),
            number(r["p_holm"]),
            interval(r["frozen"]),
            f"{r['diverged']} of {seeds}",
            r["verdict"],
        ]
        for r in sorted(found["contenders"], key=lambda r: r["gap"]["mean"])
    ]
    head = ["arm", "× lr", "gap [95 %]", "p (Holm)", "frozen", "diverged"]
    lines = ["# Comparison", "", *table([*head, ""], rows)]
    lines += _differences(found["differences"])
    twins = [
        [
            name,
            factor(found["learning_rates"][t["key"]]),
            interval(t["loss"]),
            f"{t['learned']} of {seeds}",
        ]
        for name, t in found["twins"].items()
    ]
    lines += table(["float32 twin", "× lr", "loss [95 %]", "learned"], twins)
    lines += [*curves(found), *_cautions(about)]
    lines += [
        f"{_runs(about)} Every row ran at {rates_tried(about)}. 'Learned' is the "
        "verdict of a run's summary, on its validation loss; nothing is said to train or to learn "
        "unless it and its twin learned with every seed. 'Trains' means ahead "
        f"of the frozen control (whose quantized layers keep their first weights) and within "
        f"{digits(about['within'])} of the twin.",
    ]
    return "\n".join(lines)


def _differences(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the table of differences between arms."""
    if not rows:
        return []
    cells = [
        [
            row["arm"],
            row["against"],
            interval(row["difference"]),
            number(row["p_holm"]),
            interval(row["share_closed"], 2) if row["share_closed"] else "not available",
            row["verdict"],
        ]
        for row in rows
    ]
    head = ["arm", "against", "difference [95 %]", "p (Holm)", "share of the gap closed [95 %]", ""]
    return table(head, cells)


def _conclusion(about: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    full = found["full"]
    distance = f"within {digits(about['within'])} of the float32 twin"
    seeds = len(about["seeds"])
    if full["twin_learned"] < seeds:
        missing = f"{seeds - full['twin_learned']} of {seeds} seeds"
        first = (
            f"**It cannot be told whether it trains**: the float32 twin did not learn in {missing}"
        )
    elif full["trains"]:
        first = f"**It trains**: it beats the frozen control and is {distance}"
    elif not full["distinguishable"]:
        first = "**It cannot be told from the float32 twin** at this size"
    elif full["learned"] < seeds:
        first = f"**It did not learn** in {seeds - full['learned']} of {seeds} seeds"
    elif full["beats_frozen"]:
        first = f"**It learns, but is not {distance}**"
    else:
        first = "**It does not train**: it does not beat the frozen control"
    lines = [f"{first}. Gap {interval(full)}, {full['diverged']} diverged.", ""]
    if found["frozen"]["low"] <= 0:
        lines += ["The twin is not ahead of the frozen control: there was nothing to lose.", ""]
    if "factor" not in found:
        return [*lines, f"Factors: {NOT_TOLD}. Nothing was looked for inside them."]
    factor = found["factor"]
    share = found["shapley"][factor]
    told = "" if found["factor_distinguishable"] else f" ({NOT_TOLD} from 0)"
    lines.append(f"- **Factor**: {factor}, {FACTOR_NAMES[factor]}: {interval(share)}{told}")
    for key in ("operand", "group", "layer"):
        lines.append(f"- **{key.capitalize()}**: {found.get(key) or NOT_TOLD}")
    cause = found.get("cause")
    words = CAUSES[cause] if cause else NOT_TOLD
    if cause == "finer" and found["fixed_point"]:
        words = "too coarse, or too small: in fixed point these are one"
    lines.append(f"- **Cause**: {words}")
    onsets = [o for o in found["onset"].values() if o]
    if onsets:
        first_onset = min(onsets, key=lambda o: o["step"])
        layer, cosine = first_onset["layer"], number(first_onset["cosine"], 2)
        where = f", largest injected error in {layer}" if layer else ""
        lines.append(
            f"- **Onset**: step {first_onset['step']} (gradient cosine to the shadow {cosine}"
            f"{where}), in {len(onsets)} of {len(found['onset'])} seeds"
        )
    else:
        lines.append("- **Onset**: gradients did not leave their shadow, or it was not measured")
    recommended = found.get("recommendation")
    lines.append(f"- **Recommendation**: {recommended or 'none of the changes tried trains'}")
    return lines
