"""The roles of tensors, and the operands that each means."""

import pytest

from altcore import BadInput
from altcore.recipes import (
    OPERANDS,
    ROLES,
    operands_of,
)


def test_a_role_means_all_its_operands():
    """weight, activation and gradient are two operands each, the others themselves."""
    assert operands_of("weight") == ("weight@fwd", "weight@dgrad", "weight@lookup")
    assert operands_of("gradient") == ("gradient@dgrad", "gradient@wgrad")
    assert operands_of("weight_gradient") == ("weight_gradient",)
    assert sorted(o for r in ROLES for o in operands_of(r)) == sorted(OPERANDS)
    with pytest.raises(BadInput, match="did you mean weight@dgrad"):
        operands_of("weight@dgrd")
