"""When and where gradients left their shadow, by the diagnostic of a watched arm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

LOW_COSINE, ONSET_LINES = 0.9, 3
"""The gradient left its shadow: a cosine below this, for so many consecutive recorded steps."""


def onset(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return the step at which gradients left their shadow, and the layer with the largest error.

    This is the first of three consecutive recorded steps whose mean cosine is below 0.9; None if
    there is none, or if the shadow was not measured.
    """
    measured = [x for x in lines if isinstance(x.get("shadow/cosine_mean"), int | float)]
    for i in range(len(measured) - ONSET_LINES + 1):
        window = measured[i : i + ONSET_LINES]
        if all(x["shadow/cosine_mean"] < LOW_COSINE for x in window):
            prefix = "shadow/injected/"
            injected = {
                k.removeprefix(prefix): v
                for k, v in window[0].items()
                if k.startswith(prefix) and isinstance(v, int | float)
            }
            layer = max(injected, key=lambda k: injected[k]) if injected else None
            return {
                "step": window[0]["step"],
                "cosine": window[0]["shadow/cosine_mean"],
                "layer": layer,
                "injected": injected.get(layer) if layer else None,
            }
    return None
