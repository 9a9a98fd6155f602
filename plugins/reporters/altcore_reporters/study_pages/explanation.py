"""The answer of `altcore explain` as a document: what breaks where, why, and what helps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from altcore_reporters.study_pages import method, repeat
from altcore_reporters.study_pages.causes import causes, changes, counterfactuals, recommendation
from altcore_reporters.study_pages.document import (
    Bullets,
    Document,
    Intervals,
    Part,
    Section,
    Table,
)
from altcore_reporters.study_pages.rows import (
    JUDGED,
    bar,
    interval,
    judged,
    learning_rate,
    of_seeds,
    p_value,
    rate_curves,
    unit,
)
from altcore_reporters.study_pages.words import FACTORS, NOT_TOLD, digits, number, value
from altcore_reporters.study_pages.words import factor as times

Answer = Mapping[str, Any]
STAGES = (
    ("operands", "One operand at a time"),
    ("groups", "One group of layers at a time"),
    ("layers", "One layer at a time"),
)

FIRST = (
    "The arm with all factors is asked about first, and its p is not corrected; of the other sets "
    "of factors nothing is told unless it is told to be worse than the twin."
)


def explanation(answer: Answer) -> Document:
    """Return an explanation as a document."""
    about = answer["about"]
    title = f"Where {about['format']} breaks"
    told = [conclusion(answer), Bullets(list(findings(answer))), picture(answer)]
    return Document(about["page"], repeat.facts(about), method.note(about), [
        Section(title, told),
        *method.cautions(about),
        Section("How this was found", [how(answer)]),
        Section("Factors", list(factors(answer))),
        *stages(answer),
        *counterfactuals(answer),
        *changes(answer),
        *rate_curves(answer),
        repeat.section(about),
    ], repeat.needed(about))  # fmt: skip


# The answer in sentences -----------------------------------------------------------------------


def conclusion(answer: Answer) -> str:
    """Return the verdict on the whole recipe, in a sentence, and the gap."""
    within, full = digits(answer["about"]["within"]), answer["full"]
    said = {
        "within": f"**It trains**, within {within} of the float32 twin",
        "beyond": f"**It does not train as the float32 twin does**, beyond {within} of it",
        "cannot tell": f"**It cannot be told whether it trains** within {within} of the twin",
    }[full["verdict"]]
    null = method.detectable(answer["null"]) if "null" in answer else ""
    return (
        f"{said}: {full['reason']}. Gap {interval(full)}, p {p_value(full)}, "
        f"{full['diverged']} diverged.{null}"
    )


def findings(answer: Answer) -> Iterator[str]:
    """Yield what was found at each stage, the recommendation last."""
    if "factor" not in answer:
        yield f"**Factor**: {NOT_TOLD}. Nothing was looked for inside the factors"
        return
    factor = answer["factor"]
    told = "" if answer["factor_distinguishable"] else f" ({NOT_TOLD} from 0)"
    yield f"**Factor**: {factor}, {FACTORS[factor]}: {interval(answer['shapley'][factor])}{told}"
    yield from forced_rate(answer)
    for key in ("operand", "group", "layer"):
        yield f"**{key.capitalize()}**: {answer.get(key) or NOT_TOLD}"
    yield from causes(answer)
    yield f"**Onset**: {onset(answer)}"
    yield f"**Recommendation**: {recommendation(answer)}"


def forced_rate(answer: Answer) -> Iterator[str]:
    """Yield a sentence if what a factor does is to force another learning rate."""
    chosen, inside = answer["learning_rates"], answer["learning_rate_factor_inside"]
    own, twins = (chosen[key]["factor"] for key in (answer["factor"], "twin"))
    if inside == twins != own:
        row = answer.get("factor_at_own_rate")  # answers of before have none
        gap = f" (gap {interval(row)}, p {number(value(row['p']))})" if row else ""
        yield (
            f"**Learning rate**: {answer['factor']} does best at {times(own)} times the given "
            f"rate, where it is {NOT_TOLD} from float32 at that same rate{gap}. So its harm is "
            f"that it forces another rate. What follows ran at the twin's best, {times(twins)} "
            "times"
        )


def onset(answer: Answer) -> str:
    """Return when gradients left their shadow, and where the largest error was."""
    onsets = [o for o in answer["onset"].values() if o]
    if not onsets:
        return "gradients did not leave their shadow, or it was not measured"
    first = min(onsets, key=lambda o: o["step"])
    layer, cosine = first["layer"], number(value(first["cosine"]), 2)
    where = f", largest injected error in {layer}" if layer else ""
    return (
        f"step {first['step']} (gradient cosine to the shadow {cosine}{where}), "
        f"in {len(onsets)} of {len(answer['onset'])} seeds"
    )


def how(answer: Answer) -> str:
    """Return how the runs were made."""
    about, inside = answer["about"], answer.get("learning_rate_factor_inside")
    later = (
        ""
        if inside is None
        else f"; the runs inside the factor, and their twin, used {inside:.3g} times that rate"
    )
    chosen = method.rates(about, "The twin, the arm with all factors, the control and each change")
    inner = "" if about["rates"] else "; the other arms of the first table at the best between them"
    return (
        f"{method.runs(about)} {FIRST} A diverged run counts with the unigram entropy of the "
        "data, or with the first loss of the twin if there is none or the twin is not below it. "
        f"{chosen}{inner}{later}. {method.FROZEN} {method.verdicts(about)} "
        f"{method.null_arm('null' in answer)}"
    )


# Its picture and its tables -------------------------------------------------------------------


def picture(answer: Answer) -> Intervals:
    """Return what each factor, operand, group and layer costs, on one axis."""
    stages: list[tuple[str, Mapping[str, Any]]] = [
        ("chaos alone", {"null arm": answer["null"]} if "null" in answer else {}),
        ("sets of factors", answer["arms"]),
        ("share of each factor", answer["shapley"]),
        *((title.lower(), answer.get(stage, {})) for stage, title in STAGES),
        ("changes", {c["change"]: c["gap"] for c in answer.get("candidates", ())}),
    ]
    groups = [(title, [bar(k, row) for k, row in rows.items()]) for title, rows in stages if rows]
    return Intervals(
        "What costs how much", unit(answer["about"]), groups, answer["about"]["within"]
    )


def factors(answer: Answer) -> Iterator[Part]:
    """Yield the factorial: what the factors are, every arm, shares and effects."""
    operands = answer["operands_of"]
    yield Bullets([f"{f}, {FACTORS[f]}: {', '.join(own)}" for f, own in operands.items()])
    rates = answer["learning_rates"]
    arms = [[key, learning_rate(rates[key]), *judged(row)] for key, row in answer["arms"].items()]
    frozen, rate = answer["frozen"], learning_rate(rates["frozen"])
    arms.append(["frozen", rate, interval(frozen), "", of_seeds(frozen["diverged"], frozen), ""])
    if "null" in answer:
        arms.append(["null", learning_rate(rates["twin"]), interval(answer["null"]), "", "", ""])
    note = f"{method.note(answer['about'])} {FIRST}"
    yield Table("arms", "Every set of factors", ("arm", "× lr", *JUDGED), arms, note=note)
    yield "Shapley shares of the gap, and what no smaller set of factors explains:"
    shares = [[key, interval(row)] for key, row in answer["shapley"].items()]
    yield Table("shares", "Shapley shares of the gap", ("factor", "share [95 %]"), shares)
    effects = [[key, interval(row)] for key, row in answer["effects"].items()]
    caption = "What no smaller set of factors explains"
    yield Table("effects", caption, ("effect", "size [95 %]"), effects)


def stages(answer: Answer) -> Iterator[Section]:
    """Yield a section for each stage inside the factor."""
    for stage, title in STAGES:
        if stage in answer:
            rows = [[f"`{key}`", *judged(row)] for key, row in answer[stage].items()]
            yield Section(title, [Table(stage, title, (stage[:-1], *JUDGED), rows)])
