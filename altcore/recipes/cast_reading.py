"""Reading one cast of a recipe: a format's name, ``none``, or a mapping of the cast's parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import evolve, frozen

from altcore.builtin_types import misfit
from altcore.errors import BadInput, Source, nearest, shown
from altcore.formats import (
    ALL_BITS,
    FEW_BITS,
    OVERFLOWS,
    ROUNDINGS,
    AnyFormat,
    BlockFormat,
    Format,
    Stochastic,
    full_rounding,
    get_format,
    is_plain,
)
from altcore.recipes.cast import (
    SCALINGS,
    STRAIGHT_THROUGH,
    Cast,
    Scaling,
    default_scaling,
    has_overflow,
)
from altcore.recipes.named import PLACEHOLDER
from altcore.recipes.operands import STORED
from altcore.yaml_files import is_yaml_file, source_of

CAST_KEYS = ("format", "scaling", "rounding", "overflow", "hadamard", "straight_through")
_SCALING_TYPES: dict[str, Any] = {
    "power_of_two": bool,
    "margin": float,
    "history": int,
    "block": int,
    "quantile": float,
}


@frozen
class Place:
    """The part of a recipe that is being read, for its errors."""

    recipe: str = "given"
    """The recipe's name."""
    path: str = ""
    """The keys that lead to the part."""
    source: Source | None = None
    run_format: AnyFormat | str | None = None
    """What FORMAT stands for; ``none`` if it leaves operands alone, None if it stands for nothing.
    """

    def below(self, container: Any, key: Any, before: str = ".") -> Place:
        """Return the place of one key's value, ``before`` coming between the keys in messages."""
        path = f"{self.path}{before}{key}" if self.path else str(key)
        return evolve(self, path=path, source=source_of(container, key) or self.source)

    def refusal(self, problem: str, *, meant: str = "", hint: str = "") -> BadInput:
        """Return the error of the value at this place."""
        return BadInput(
            problem, key="recipe", part=self.part, meant=meant, hint=hint, source=self.source
        )

    def misfit(self, problem: str, fmt: AnyFormat, given: Any) -> BadInput:
        """Return the error of a format that does not go with the rest of its cast.

        If the recipe says FORMAT (``given``), the run's format is at fault, not the recipe.
        """
        if not _is_placeholder(given):
            return self.refusal(problem)
        return BadInput(f"recipe {self.part}: {problem}", key="format", part=fmt.name)

    @property
    def part(self) -> str:
        """The recipe's name and the keys, as messages have them."""
        return f"{self.recipe}: {self.path}" if self.path else self.recipe


def read_cast(value: Any, place: Place) -> Cast | None:
    """Return the cast that a recipe says for a role, None if it leaves the role's operands alone.

    Args:
        value: a format in any of its forms, ``none``, a mapping of `CAST_KEYS`, or a cast.
        place: the value's place in the recipe.

    Raises:
        BadInput: naming the key, and what would be right.
    """
    if isinstance(value, Cast):
        return value
    if not isinstance(value, Mapping) or _is_format(value):
        value = {"format": value}
        place_of_format = place
    else:
        refuse_unknown(value, CAST_KEYS, place)
        if "format" not in value:
            raise place.refusal("format is missing")
        place_of_format = place.below(value, "format")
    given = value["format"]
    if given in (None, "none") or (_is_placeholder(given) and place.run_format == "none"):
        return None
    fmt = read_format(given, place_of_format)

    def choice(key: str, default: str, known: Sequence[str]) -> str:
        return _choice(value.get(key, default), known, place.below(value, key))

    overflow = choice("overflow", "saturate", OVERFLOWS)
    if not has_overflow(fmt, overflow):
        why = "clips" if isinstance(fmt, BlockFormat) else f"has no {overflow} code"
        problem = f"format {fmt.name} {why}"
        raise place.below(value, "overflow").misfit(problem, fmt, given)
    scaling = default_scaling(fmt)
    if value.get("scaling") is not None:
        scaling = read_scaling(value["scaling"], place.below(value, "scaling"))
    if isinstance(fmt, BlockFormat) and scaling != default_scaling(fmt):
        problem = f"format {fmt.name} brings its own scaling: leave this out"
        raise place.below(value, "scaling").misfit(problem, fmt, given)
    straight_through = choice("straight_through", "identity", STRAIGHT_THROUGH)
    hadamard = _hadamard(value.get("hadamard", 0), place.below(value, "hadamard"))
    if hadamard and straight_through == "clipped":
        raise place.below(value, "straight_through").refusal(
            "after a Hadamard transform no element of the tensor is the one that was clipped"
        )
    rounding, stochastic = read_rounding(
        value.get("rounding", "nearest-even"), place.below(value, "rounding")
    )
    return Cast(fmt, scaling, rounding, overflow, hadamard, straight_through, stochastic)


def read_format(value: Any, place: Place) -> AnyFormat:
    """Return the format that a recipe names or holds; FORMAT is the run's."""
    if _is_placeholder(value):
        if place.run_format is None:
            raise place.refusal("FORMAT stands for the run's format, and none is given")
        return get_format(place.run_format)
    if not isinstance(value, str | Format | BlockFormat | Mapping):
        raise place.refusal(
            f"{shown(value)} is neither a format's name, nor none, nor a mapping of "
            + ", ".join(CAST_KEYS)
        )
    try:
        return get_format(value)
    except BadInput as error:
        if isinstance(value, str) and not is_yaml_file(value):
            error.meant = nearest(value, filter(None, (error.meant, PLACEHOLDER)))
        raise error.inside("recipe", place.part, place.source) from error


def _is_format(value: Mapping[str, Any]) -> bool:
    """Whether a role's mapping is a format in plain form; a cast has ``format`` instead."""
    return "format" not in value and ("name" in value or is_plain(value))


def check_role(role: str, cast: Cast, given: Any, place: Place) -> None:
    """Refuse a cast that a role or operand cannot have, ``given`` as the recipe says it."""
    name = role.partition("@")[0]
    if role in STORED and not cast.scaling.suits_storage:
        problem = (
            "a stored tensor has a single scale; its scaling must be none, tensor, power-of-two or "
            f"rms, without margin or quantile; {cast.format.name} has {cast.scaling.kind} scaling"
        )
        # A scaling that the recipe itself says is wrong with every format.
        said = given.get("scaling") if isinstance(given, Mapping) else None
        fmt = given.get("format") if isinstance(given, Mapping) else given
        raise place.refusal(problem) if said else place.misfit(problem, cast.format, fmt)
    if role == "stored_weight" and cast.overflow != "saturate":
        raise place.below(given, "overflow").refusal(
            "a stored weight saturates, and its scale grows: overflow must be saturate"
        )
    if cast.hadamard and name not in ("weight", "activation", "gradient"):
        raise place.below(given, "hadamard").refusal(
            "only the operands of a layer's products have one"
        )
    if cast.straight_through == "clipped" and name not in ("weight", "activation"):
        raise place.below(given, "straight_through").refusal(
            "only weight and activation pass a gradient"
        )


def refuse_unknown(given: Mapping[Any, Any], known: Sequence[str], place: Place) -> None:
    """Refuse a key that is none of the known ones."""
    for key in given:
        if key not in known:
            raise evolve(place, source=source_of(given, key) or place.source).refusal(
                f"unknown key {shown(key)}",
                meant=nearest(key, known),
                hint=f"one of {', '.join(known)}",
            )


def _is_placeholder(value: Any) -> bool:
    return isinstance(value, str) and value == PLACEHOLDER


def _hadamard(value: Any, place: Place) -> int:
    if type(value) is not int or not 0 <= value < 2**63 or value & (value - 1) or value == 1:
        raise place.refusal(f"{shown(value)} is not 0 or a power of two from 2 up")
    return value


def read_scaling(value: Any, place: Place) -> Scaling:
    """Return the scaling that is given by its kind, as ``power-of-two``, a mapping, or as itself.

    Raises `BadInput` naming the part that is wrong.
    """
    if isinstance(value, Scaling):
        return value
    if isinstance(value, str):
        if value == "power-of-two":
            return Scaling("tensor", power_of_two=True)
        return Scaling(_choice(value, (*SCALINGS, "power-of-two"), place))
    if not isinstance(value, Mapping):
        raise place.refusal(f"{shown(value)} is neither {', '.join(SCALINGS)} nor a mapping")
    refuse_unknown(value, ("kind", *_SCALING_TYPES), place)
    parts: dict[str, Any] = {"kind": _choice(value.get("kind", "tensor"), SCALINGS, place)}
    for key, kind in _SCALING_TYPES.items():
        if key in value and not (key == "quantile" and value[key] is None):
            parts[key] = _number(value[key], kind, place.below(value, key))
    try:
        return Scaling(**parts)
    except ValueError as error:
        # attrs' validators quote the name of the part, and tell it by nothing else.
        named = [place.below(value, key) for key in value if f"'{key}'" in str(error)]
        at = named[0] if named else place
        raise evolve(place, source=at.source).refusal(str(error.args[0])) from error


def read_rounding(value: Any, place: Place) -> tuple[str, Stochastic]:
    """Return a rounding that is given by its name, or as a mapping of stochastic rounding."""
    usual = Stochastic()
    if isinstance(value, Stochastic):
        value = {"kind": "stochastic", **value._asdict()}
    if not isinstance(value, Mapping):
        return _choice(full_rounding(value), ROUNDINGS, place), usual
    refuse_unknown(value, ("kind", *usual._fields), place)
    kind = _choice(value.get("kind", "stochastic"), ("stochastic",), place.below(value, "kind"))
    bits, at = value.get("random_bits", usual.random_bits), place.below(value, "random_bits")
    if not 1 <= _number(bits, int, at) <= ALL_BITS:
        raise at.refusal(f"{bits} is not from 1 to {ALL_BITS}")
    few = _choice(value.get("few_bits", usual.few_bits), FEW_BITS, place.below(value, "few_bits"))
    return kind, Stochastic(bits, few)


def _number(value: Any, kind: Any, place: Place) -> Any:
    """Return a number as one of ``kind``, which may be bool; whole ones are floats, too."""
    if type(value) is not kind and (kind is not float or type(value) is not int):
        raise place.refusal(f"{shown(value)} has the wrong type")
    if why := misfit(value, kind):
        raise place.refusal(f"{shown(value)} {why}")
    return kind(value)


def _choice(value: Any, known: Sequence[str], place: Place) -> str:
    if not isinstance(value, str) or value not in known:
        raise place.refusal(
            f"{shown(value)} is unknown",
            meant=nearest(value, known),
            hint=f"one of {', '.join(known)}",
        )
    return value
