"""Histograms of tensors over the values of their format.

Weights, activations and gradients come from the diagnostic ``value-histogram``, if it was in the
run. Without it the weights are those of the newest checkpoint; of activations and gradients there
is then nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from attrs import frozen

from altcore.plugin import BadInput, get_format

if TYPE_CHECKING:
    from altcore.plugin import RunRecord

Saved = str | Mapping[str, Any]
"""A format as records hold it: its name, or the whole in plain form."""
MEASURED = re.compile(
    r"value-histogram/(?P<operand>(stored_weight|weight_gradient|weight|activation|gradient)(@\w+?)?)"
    r"_(?P<format>.+)_histogram"
)
ORDER = ("stored_weight", "weight", "activation", "gradient", "weight_gradient")
"""Roles of tensors."""
MOST_BYTES = 64 << 20
"""The largest file of weights that is read for a picture."""


@frozen
class ValueHistogram:
    """Where the magnitudes of tensors lie, in the units of their format's values."""

    operand: str
    """``stored_weight``, ``activation@fwd`` and so on."""
    format: str
    step: int
    source: str
    """``measured``, or ``checkpoint``."""
    edges: Sequence[float]
    """Of the bins, as logarithms to base 2; one more than bins."""
    shares: Sequence[float]
    """Of all elements, in each bin."""
    zeros: float
    """The share that is 0."""
    below: float
    """The share below the first bin."""
    above: float
    """The share above the last one."""
    values: Sequence[float]
    """The format's positive values, ascending; empty if it is not installed here."""
    flushed: float | None = None
    """Up to where values round to zero, as a logarithm; None if none does."""


def value_histograms(record: RunRecord) -> list[ValueHistogram]:
    """Return the last histogram of each operand and format, in the order of `ORDER`."""
    found = {}
    for line in record.metrics:
        for key, value in line.items():
            match = key.startswith("value-histogram/") and MEASURED.fullmatch(key)
            if match and isinstance(value, list) and len(value) > 3:
                low = line.get(f"{key.removesuffix('histogram')}low")
                if isinstance(low, int) and abs(low) < 1100:  # exponents of float64
                    found[match["operand"], match["format"]] = (line["step"], low, value)
    given = record.config.get("format")  # it may be there whole
    known = {given["name"]: given} if isinstance(given, Mapping) and "name" in given else {}
    measured = [
        _of_shares(operand, known.get(fmt, fmt), step, "measured", low, shares)
        for (operand, fmt), (step, low, shares) in found.items()
    ]
    pictures = measured or list(_of_checkpoint(record))
    return sorted(pictures, key=lambda picture: ORDER.index(picture.operand.partition("@")[0]))


def bin_edges(low: int, bins: int) -> list[float]:
    """Return edges as logarithms: two bins for each power of two, the first one from 2^low.

    >>> [round(2**edge, 3) for edge in bin_edges(0, 3)]
    [1.0, 1.5, 2.0, 3.0]
    """
    half = math.log2(1.5)
    return [low + i // 2 + half * (i % 2) for i in range(bins + 1)]


def _of_shares(
    operand: str, fmt: Saved, step: int, source: str, low: int, shares: Sequence[float]
) -> ValueHistogram:
    name = fmt if isinstance(fmt, str) else str(fmt.get("name"))
    zeros, below, *inner, above = shares
    edges, values, flushed = bin_edges(low, len(inner)), _positive(fmt), _flushed(fmt)
    return ValueHistogram(
        operand, name, step, source, edges, inner, zeros, below, above, values, flushed
    )


def _of_checkpoint(record: RunRecord) -> Iterator[ValueHistogram]:
    """Yield the histograms of weights whose scale the newest checkpoint tells."""
    from altcore.plugin import count_magnitudes

    held = record.read_weights(MOST_BYTES)
    if held is None:
        return
    counts: dict[tuple[str, str], Any] = {}
    formats: dict[str, Saved] = {}
    for operand, fmt, weight, factor in _weights(held):
        own = count_magnitudes(weight if factor is None else weight * factor)
        name = fmt if isinstance(fmt, str) else str(fmt.get("name"))
        key, formats[name] = (operand, name), fmt
        counts[key] = counts[key] + own if key in counts else own
    for (operand, name), found in counts.items():
        numbers = found.tolist()[:-2]
        met = [i for i, n in enumerate(numbers) if n and i > 1]
        total = sum(numbers)
        if not total:
            continue
        first, last = (min(met) & ~1, max(met) + 1) if met else (254, 256)
        shares = [n / total for n in (*numbers[:1], sum(numbers[1:first]), *numbers[first:last], 0)]
        low = first // 2 - 127
        yield _of_shares(operand, formats[name], held["step"], "checkpoint", low, shares)


def _weights(held: Mapping[str, Any]) -> Iterator[tuple[str, Saved, Any, Any]]:
    """Yield operand, format, weight, and the factor that brings it to the format's values."""
    plan, stored = held["quantization"]["plan"], held["quantization"]["stored"]
    for name, weight in held["model"].items():
        layer, _, own = name.rpartition(".")
        casts = plan.get(layer) or {}
        if name in stored and "stored_weight" in casts:
            scale = stored[name].get("scale")
            if scale is None or scale.ndim == 0:
                factor = None if scale is None else 1 / scale
                yield "stored_weight", casts["stored_weight"]["format"], weight, factor
        elif own == "weight" and "weight@fwd" in casts:
            factor = _factor(casts["weight@fwd"], weight)
            if factor is not None:
                yield "weight@fwd", casts["weight@fwd"]["format"], weight, factor


def _factor(cast: Mapping[str, Any], weight: Any) -> Any:
    """Return the factor of a view whose scale is made of the weight alone; None if it is not."""
    scaling = cast["scaling"]
    if cast["hadamard"]:
        return None
    if scaling["kind"] == "none":
        return 1.0
    is_exact = scaling["kind"] == "tensor" and scaling["quantile"] in (None, 1)
    values, largest = _positive(cast["format"]), weight.abs().max()
    if not is_exact or scaling["power_of_two"] or not values or not largest > 0:
        return None
    return values[-1] / (largest * scaling["margin"])


def _positive(saved: Saved) -> list[float]:
    return [v for v in _values(saved) if v > 0]


def _values(saved: Saved) -> Sequence[float]:
    try:
        return getattr(get_format(saved), "values", ())  # a block format has none of its own
    except BadInput:
        return ()


def _flushed(saved: Saved) -> float | None:
    """Return the logarithm of the point between 0 and the least positive value, if any has it."""
    values = _values(saved)
    if 0.0 not in values[:-1]:
        return None
    # A posit has the two, and no value but 0 is rounded to 0.
    point = get_format(saved).boundaries[values.index(0.0)]
    return math.log2(point) if point else None
