"""What an answer holds, as far as reporters read it: one that was damaged or forged is refused."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from altcore.builtin_types import nested_too_deeply
from altcore.errors import BadInput, shown
from altcore.study.measures import BY_PLUGINS, CLIPPED
from altcore.study.measures import RATES as MEASURED
from altcore.study.plain_schema import (
    Each,
    Maybe,
    OneOf,
    any_number,
    anything,
    check,
    flag,
    number,
    text,
)


def page(value: Any) -> str:
    """Return why a value does not name a page: its files would lie elsewhere."""
    is_plain = isinstance(value, str) and re.fullmatch(r"[\w-]{1,100}", value)
    return "" if is_plain else "is not the name of a page"


def study(value: Any) -> str:
    """Return why a value does not name a study, as in labels of LaTeX."""
    is_plain = isinstance(value, str) and re.fullmatch(r"[\w.-]{1,255}", value)
    return "" if is_plain else "is not the name of a study"


def looks(value: Any) -> str:
    """Return why a value does not hold the share of the error of each look, the last one's too."""
    return "" if isinstance(value, Mapping) and value else "is no mapping of looks to shares"


ESTIMATE = {"mean": any_number, "low": any_number, "high": any_number}
COUNTED = {**ESTIMATE, "n": number, "p": any_number}
JUDGED = {"verdict": OneOf(("within", "beyond", "cannot tell")), "reason": text}
ARM = {**COUNTED, "diverged": number, "p_holm": any_number, "guilty": flag}
STALLED = {"stalled": Maybe(number)}
NULL = {**COUNTED, "detectable": any_number}

ABOUT = {
    "command": OneOf(("explain", "compare")),
    "page": page,
    "study": study,
    "shell": text,
    "altcore": text,
    "torch": text,
    "optimizer": text,
    "workload_facts": Each(anything),
    "training": Each(anything),
    "metric?": OneOf(("train", "val")),
    "seeds": [number],
    "looks": looks,
    "within": number,
    "rates": Maybe([number]),
    "recipe_files": Each(text),
    "workload": text,
    "settings": Each(Each(anything)),
    "plugins": [text],
    "steps": number,
    "learning_rate": number,
    "compute": text,
    "cautions": [text],
}
POINT = {"factor": number, "losses": [any_number]}
RATES = Each({"factor": number, "edge": Maybe(OneOf(("lowest", "highest"))), "curve": [POINT]})

CAUSE = {
    "operands": [text],
    "group": Maybe(text),
    "roundings": [text],
    "fixed_point": flag,
    "gap": {**ESTIMATE, **STALLED},
    "counterfactuals": Each({**ESTIMATE, **STALLED, "recovered": any_number}),
    "cause": Maybe(text),
}
CHANGE = {"change": text, "gap": ESTIMATE, "closed": any_number, **JUDGED, **STALLED}
EXPLANATION = {
    "about": {**ABOUT, "format": text, "recipe": text},
    "operands_of": Each([text]),
    "arms": Each(ARM),
    "frozen": {**COUNTED, "diverged": number},
    "null?": NULL,
    "effects": Each(ESTIMATE),
    "shapley": Each(ESTIMATE),
    "full": {**ESTIMATE, **JUDGED, "p_holm": any_number, "diverged": number},
    "onset": Each(Maybe({"step": number, "cosine": any_number, "layer": Maybe(text)})),
    "learning_rates": RATES,
}
FOUND = {
    "factor": OneOf(("F", "B", "U")),
    "factor_distinguishable": flag,
    "learning_rate_factor_inside": number,
    "factor_at_own_rate?": {**COUNTED, "diverged": number},
    **{f"{stage}s?": Each(ARM) for stage in ("operand", "group", "layer")},
    **{f"{stage}?": Maybe(text) for stage in ("operand", "group", "layer")},
    "causes": [CAUSE],
    "candidates": [CHANGE],
    "recommendation": Maybe(text),
}
"""Of an explanation that found a factor."""

ENTRANTS = {
    "formats": [text],
    "recipes": [text],
    "arms": Each(text),
    "ablate": Each(text),
    "against": Maybe(text),
    "metric": OneOf(("train", "val")),
}
RATE = Maybe({"mean": any_number, "largest": any_number, "step": number, "seed": number})
LOSSES = {"loss": COUNTED, "val_loss": ESTIMATE, "bits_per_byte": Maybe(ESTIMATE)}
CONTENDER = {
    "arm": text,
    "key": text,
    "gap": COUNTED,
    "p_holm": any_number,
    "frozen": ESTIMATE,
    "detectable": any_number,
    "diverged": number,
    "learned": number,
    "twin_learned": number,
    "settings": Each(anything),
    **dict.fromkeys(("format", "rounding"), Maybe(text)),
    **dict.fromkeys(("recipe", "optimizer", "plugins"), text),
    "rates": dict.fromkeys((*MEASURED, BY_PLUGINS, CLIPPED), RATE),
    **LOSSES,
    **JUDGED,
}
DIFFERENCE = {
    "arm": text,
    "against": text,
    "difference": COUNTED,
    "p_holm": any_number,
    "share_closed": Maybe(ESTIMATE),
    "verdict": text,
    "reason": text,
}
TWIN = {**LOSSES, "key": text, "learned": number, "null?": NULL}
COMPARISON = {
    "about": {**ABOUT, **ENTRANTS},
    "contenders": [CONTENDER],
    "differences": [DIFFERENCE],
    "twins": Each(TWIN),
    "validation": {
        "batches": number,
        "items": number,
        "error": Maybe(number),
        "enough": Maybe(number),
    },
    "learning_rates": RATES,
}


def check_answer(found: Any) -> None:
    """Raise `BadInput`, with the key, for what is not the answer of a study."""
    if deep := nested_too_deeply(found):
        raise BadInput(f"it {deep}")
    check(found, {"about": ABOUT})
    if found["about"]["command"] == "compare":
        check(found, COMPARISON)
    else:
        check(found, EXPLANATION)
        if "factor" in found:
            check(found, FOUND)
    for key, name, known in _names(found):
        if name not in known:
            raise BadInput(f"{shown(name)} is not there", key=key)


def _names(found: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yield the keys under which things are named elsewhere in an answer, and the names."""
    if found["about"]["command"] == "compare":
        for row in (*found["contenders"], *found["twins"].values()):
            yield "learning_rates", row["key"], found["learning_rates"]
        return
    for arm in (*found["arms"], "frozen", *(["twin"] if "null" in found else ())):
        yield "learning_rates", arm, found["learning_rates"]
    if "factor" in found:
        yield "shapley", found["factor"], found["shapley"]
        for place, cause in enumerate(found["causes"]):
            known = [None, *cause["counterfactuals"]]
            yield f"causes[{place}].counterfactuals", cause["cause"], known
        tried = [None, *(row["change"] for row in found["candidates"])]
        yield "candidates", found["recommendation"], tried
