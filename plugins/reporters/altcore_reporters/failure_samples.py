"""What diagnostics measured before a run broke, and what follows from it.

Measures are read from the record by their names; a diagnostic that was not active leaves its part
out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from altcore_reporters.markdown import number, rate, table, text

Line = Mapping[str, Any]

KINDS = ("stored", "view")
CRITICAL = 0.5
"""Share of gradients below the stiffness from which on the report says so."""
STOCHASTIC = "stochastic"
"""The rounding under which a stalled update is not lost."""
SAMPLES = 5
COLUMNS = {
    "stiffness, mean": "stiffness/{}_mean",
    "grid error, ULP": "grid-alignment/{}_ulp_mean",
    "movement, ULP": "ulp-stats/{}_mean",
    "gradients below stiffness": "grad-stiffness/{}_below_share",
}
"""A sample's columns, and the measures that they show."""
DIAGNOSTICS = {
    "grad-stiffness": "gradients below the stiffness",
    "ulp-stats": "movement of the weights in ULPs",
    "bit-stall": "why updates stalled",
    "stiffness": "the grid's interval at the weights",
    "grid-alignment": "distance to the grid",
}
"""The plugins whose measures a report shows, and what they are."""


def sparsity(lines: Sequence[Line], step: float) -> list[str]:
    """Say how many gradients are smaller than the grid's interval at their weight."""
    found = last(lines, step, "grad-stiffness/{}_below_share")
    if not found:
        return []
    rows = [
        (kind, str(at), rate(share), "**CRITICAL**" if share > CRITICAL else "")
        for kind, at, share in found
    ]
    return table(("weights", "step", "gradients below stiffness", ""), rows)


def unmoved(lines: Sequence[Line], step: float) -> list[str]:
    """Say which share of the weights an update did not move on its grid."""
    for name, pattern in (
        ("at ULP distance 0", "ulp-stats/{}_zero_share"),
        ("nonzero updates that stalled", "bit-stall/{}_stall_share"),
    ):
        if found := last(lines, step, pattern):
            rows = [(kind, str(at), rate(share)) for kind, at, share in found]
            return table(("weights", "step", name), rows)
    core = [x for x in lines if x["step"] <= step]
    rows = [
        (kind, str(x["step"]), rate(x[key]))
        for kind, key in (("stored", "stored_stall_rate"), ("view", "view_stall_rate"))
        for x in [next((x for x in reversed(core) if is_number(x.get(key))), None)]
        if x is not None
    ]
    if not rows:
        return []
    return table(("weights", "step", "nonzero updates that stalled"), rows)


def samples(lines: Sequence[Line], step: float) -> list[str]:
    """Return the last five steps on which a diagnostic of the columns measured."""
    rows = []
    for line in reversed([x for x in lines if x["step"] <= step]):
        for kind in KINDS:
            values = [line.get(pattern.format(kind)) for pattern in COLUMNS.values()]
            if any(v is not None for v in values):
                shown = [
                    rate(v) if "share" in p else number(v)
                    for v, p in zip(values, COLUMNS.values(), strict=True)
                ]
                rows.append((str(line["step"]), kind, *shown))
    if not rows:
        return []
    steps = list(dict.fromkeys(r[0] for r in rows))[:SAMPLES]
    kept = [r for r in reversed(rows) if r[0] in steps]
    return table(("step", "weights", *COLUMNS), kept)


def not_measured(lines: Sequence[Line]) -> str:
    """Return which plugins would have measured what the report leaves out, in one line."""
    known = {key.partition("/")[0] for line in lines for key in line if "/" in key}
    missing = [f"{what} (`{name}`)" for name, what in DIAGNOSTICS.items() if name not in known]
    if not missing:
        return ""
    return f"{'; '.join(missing)}. Add a plugin with `--plugin NAME`."


def last(lines: Sequence[Line], step: float, pattern: str) -> list[tuple[str, int, float]]:
    """Return (kind, step, value) of the last measurement of each kind up to ``step``."""
    found = []
    for kind in KINDS:
        key = pattern.format(kind)
        line = next(
            (x for x in reversed(lines) if x["step"] <= step and is_number(x.get(key))), None
        )
        if line is not None:
            found.append((kind, line["step"], line[key]))
    return found


def is_number(value: Any) -> bool:
    """Whether a value of the record is a number."""
    return isinstance(value, int | float)


# What follows ---------------------------------------------------------------------------------


def interpretation(
    event: Line, lines: Sequence[Line], config: Line, since: int | None = None
) -> list[str]:
    """Say what the measurements mean, in sentences that name the measurement they rest on.

    ``since`` is the first of the steps up to the event that were not finite one after another.
    """
    rows, step = event.get("layers") or [], event["step"]
    found = [
        *_about_updates(rows, lines, step),
        *_about_range(rows, config.get("overflow_threshold", 0.01)),
        *_about_gradients(event, lines, step),
        *_about_stop(event, since),
    ]
    if not found:
        return ["The measurements that were made do not single out a cause."]
    return [f"- {text(sentence)}" for sentence in found]


def _about_updates(rows: Sequence[Line], lines: Sequence[Line], step: float) -> Iterable[str]:
    if any(r.get("rounding") == STOCHASTIC for r in rows):
        yield "Stored weights that are rounded stochastically keep the mean of their updates."
    stored = [r for r in rows if r.get("updates") and r.get("rounding") != STOCHASTIC]
    total = sum(r["updates"] for r in stored)
    if not total:
        return
    share = sum(r["stalled"] for r in stored) / total
    if share < CRITICAL:
        taken = rate(1 - share)
        yield f"Stored weights take {taken} of their updates: the update is not the cause."
        return
    yield (
        f"The update is lost: {rate(share)} of the nonzero updates of stored weights are smaller "
        "than half of the grid's interval there, and nearest rounding puts the weight back."
    )
    causes = {
        cause: next((v for _, _, v in last(lines, step, f"bit-stall/{{}}_cause_{cause}")), None)
        for cause in ("no_signal", "cancelled", "schedule", "coarse", "weak_signal")
    }
    known = {k: v for k, v in causes.items() if v is not None}
    if known:
        worst = max(known, key=lambda k: known[k])
        words = {
            "no_signal": "the optimizer asked for nothing",
            "cancelled": "decay took the move back",
            "schedule": "the learning rate is too far below its peak",
            "coarse": "the grid is too coarse for even a full step at the peak learning rate",
            "weak_signal": "the optimizer asks for less than a full step",
        }
        yield f"Most of these ({rate(known[worst])}): {words[worst]}."


def _about_range(rows: Sequence[Line], threshold: float) -> Iterable[str]:
    met = [r for r in rows if r.get("elements")]
    for word, key in (("overflow", "overflow"), ("are flushed to zero", "flushed")):
        able = [r for r in met if r.get(key) is not None]
        if not able:
            continue
        worst = max(able, key=lambda r: r[key] / r["elements"])
        share = worst[key] / worst["elements"]
        if share > threshold:
            cause = (
                "the format does not reach high enough at its scale"
                if key == "overflow"
                else "it does not reach low enough at its scale"
            )
            yield f"{rate(share)} of {worst['operand']} in {worst['layer']} {word}: {cause}."


def _about_gradients(event: Line, lines: Sequence[Line], step: float) -> Iterable[str]:
    gradients = event.get("gradients") or {}
    zero = [n for n, g in gradients.items() if g["zero_share"] == 1]
    if zero:
        yield f"{len(zero)} of {len(gradients)} gradients are zero: nothing is learned there."
    for kind, at, share in last(lines, step, "grad-stiffness/{}_below_share"):
        if kind == "stored" and share > CRITICAL:
            yield (
                f"At step {at}, {rate(share)} of the gradients are smaller than the interval of "
                "their stored weight."
            )


def _about_stop(event: Line, since: int | None) -> Iterable[str]:
    if event["cause"] in ("nan_patience", "stopped") and since is not None:
        yield f"Steps were discarded from step {since} on: weights are of the step before."
