"""The roles that a tensor has in training, and the operands of products that each role means."""

from __future__ import annotations

from altcore.errors import BadInput, nearest, shown

ROLES = (
    "weight",
    "activation",
    "gradient",
    "weight_gradient",
    "stored_weight",
    "optimizer_state",
    "attention",
)
OPERANDS = (
    "weight@fwd",
    "activation@fwd",
    "gradient@dgrad",
    "weight@dgrad",
    "gradient@wgrad",
    "activation@wgrad",
    "weight_gradient",
    "stored_weight",
    "optimizer_state",
    "attention@query",
    "attention@key",
    "attention@probability",
    "attention@value",
    "weight@lookup",
)
PRODUCT_OPERANDS = OPERANDS[:6]
PRODUCTS = (
    ("activation@fwd", "weight@fwd"),
    ("gradient@dgrad", "weight@dgrad"),
    ("gradient@wgrad", "activation@wgrad"),
)
"""The two operands of each of a layer's products."""
ATTENTION_OPERANDS = OPERANDS[9:13]
"""Those of attention's two products: query by key, and probability by value."""
LOOKUP = "weight@lookup"
"""A weight used outside a product: looked up in an embedding, or added as a position table."""
STORED = ("stored_weight", "optimizer_state")
OF_PARAMETERS = ("weight_gradient", *STORED)
"""The roles of a parameter itself, cast once for it however many layers share it."""


def operands_of(role: str) -> tuple[str, ...]:
    """Return the operands that a role's or operand's name means.

    Raises:
        BadInput: if there is no such role.

    >>> operands_of("weight")
    ('weight@fwd', 'weight@dgrad', 'weight@lookup')
    """
    found = tuple(o for o in OPERANDS if role in (o, o.partition("@")[0]))
    if not found:
        known = (*ROLES, *PRODUCT_OPERANDS)
        raise BadInput(
            f"unknown role {shown(role)}",
            meant=nearest(role, known),
            hint=f"one of {', '.join(known)}",
        )
    return found
