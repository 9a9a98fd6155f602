"""What the model of a loop of your own was quantized with, and whether it is again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from altcore.errors import BadInput
from altcore.quantization import Quantization
from altcore.recipes import resolved_to_plain


def asked_of(q: Quantization) -> dict[str, Any]:
    """Return what a model was quantized with, whatever it was changed to since."""
    resolved = q.recipe.resolve([*q.found.values()])
    formats = sorted({c.format.name for casts in resolved.values() for c in casts.values() if c})
    return {
        "recipe": f"recipe {q.recipe.name} in {', '.join(formats) or 'no format'}",
        "casts": resolved_to_plain(resolved),
        "options": {"compute": q.asked_compute, "seed": q.seed},
    }


def check_asked(
    was: Mapping[str, Any], now: Mapping[str, Any], key: str, *, is_trained: bool
) -> None:
    """Raise `BadInput` if a model was quantized with something else, by the first difference."""
    hint = "quantize it as it was, or change it later"
    if was["casts"] != now["casts"]:
        told = _first_difference(was["casts"], now["casts"])
        if was["recipe"] != now["recipe"]:
            told = f"the checkpoint is of {was['recipe']}, and the model of {now['recipe']}: {told}"
        raise BadInput(told, key=key, hint=hint)
    for name, value in was["options"].items() if is_trained else ():
        if now["options"][name] != value:
            problem = f"{name} was {value}, and is {now['options'][name]}"
            raise BadInput(problem, key=key, hint=f"quantize_model(..., {name}={value!r})")


def _first_difference(was: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return what is another in the casts of two models, of one layer and operand."""
    for layer in dict.fromkeys([*was, *now]):
        before, after = was.get(layer, {}), now.get(layer, {})
        for operand in dict.fromkeys([*before, *after]):
            a, b = before.get(operand), after.get(operand)
            if a != b:
                one, other = _told_of_cast(a, b), _told_of_cast(b, a)
                return f"{operand} of layer {layer or '(model)'} was {one}, and is {other}"
    return "the layers are others"


def _told_of_cast(cast: Mapping[str, Any] | None, other: Mapping[str, Any] | None) -> str:
    """Return what is another in a cast than in the other one, or its format."""
    if cast is None:
        return "not quantized"
    if other is None or cast["format"] != other["format"]:
        return f"{cast['format']!s:.60}"
    return ", ".join(f"{key} {cast[key]}" for key in cast if cast[key] != other.get(key))
