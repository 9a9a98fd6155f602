"""The FLOPs of products that have operands on a grid."""

from __future__ import annotations

from collections import Counter

from attrs import define, field

from altcore.recipes import PRODUCTS

OPERANDS_OF = {
    "fwd": PRODUCTS[0],
    "dgrad": PRODUCTS[1],
    "wgrad": PRODUCTS[2],
    "scores": ("attention@query", "attention@key"),
    "mix": ("attention@probability", "attention@value"),
}
"""The two operands of each product, of a layer and of attention."""


@define
class FlopCount:
    """Floating-point operations of products with operands on a grid."""

    made: int = 0
    """Of all products that quantized layers made, without what a Hadamard transform pads."""
    both: int = 0
    """Of products with both operands on one."""
    by_operand: Counter[str] = field(factory=Counter)

    def add(self, product: str, first: bool, second: bool, flops: int) -> None:
        """Count a product of which the ``first`` and the ``second`` operand are on a grid."""
        self.both += flops if first and second else 0
        for operand, is_on_grid in zip(OPERANDS_OF[product], (first, second), strict=True):
            self.by_operand[operand] += flops if is_on_grid else 0
