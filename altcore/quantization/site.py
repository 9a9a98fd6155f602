"""Where in a model a tensor is quantized."""

from __future__ import annotations

from typing import NamedTuple

from altcore.recipes import LOOKUP


class Site(NamedTuple):
    """One operand of one layer.

    A tuple, since quantizers are looked up by it in every product.

    >>> str(Site("fc", "weight@fwd")), str(Site("moe", "weight@fwd", "experts"))
    ('fc:weight@fwd', 'moe:weight@fwd/experts')
    """

    layer: str
    """The layer's name."""
    operand: str
    """The operand's name, as in a recipe."""
    parameter: str = ""
    """The parameter that is multiplied or looked up; empty for the ``weight`` of a Linear or a
    convolution, and for attention's operands, which no parameter takes part in."""

    @classmethod
    def of(cls, layer: str, kind: str, operand: str, parameter: str) -> Site:
        """Return the site of an operand in the products by a layer's ``parameter``.

        >>> Site.of("fc", "linear", "weight@fwd", "weight")
        Site(layer='fc', operand='weight@fwd', parameter='')
        """
        is_plain = parameter == "weight" and kind in ("linear", "conv") and operand != LOOKUP
        return cls(layer, operand, "" if is_plain else parameter)

    @property
    def is_of_samples(self) -> bool:
        """Whether the operand is made of samples, which each rank has its own of."""
        return self.operand.startswith(("activation@", "gradient@", "attention@"))

    def __str__(self) -> str:
        return f"{self.layer}:{self.operand}" + (f"/{self.parameter}" if self.parameter else "")
