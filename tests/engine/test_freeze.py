"""The key ``freeze``: layers that keep their first weights, as a control."""

import pytest
import torch
from helpers import state

from altcore import BadInput


@pytest.mark.parametrize("recipe", ["master", "pure"])
def test_frozen_layers_keep_their_weights(start, recipe):
    """Those that a pattern means and no others; stored ones as they were first encoded."""
    keys = {"format": "E4M3", "recipe": recipe, "seed": 3}
    first = start(max_steps=1, learning_rate=1e-30, name="first", **keys)
    last = start(max_steps=4, freeze=["transformer.h.*"], name="last", **keys)
    before, after = (state(r.run_directory)["model"] for r in (first, last))
    for name in after:
        frozen = after[name].dim() == 2 and ".h." in name
        assert torch.equal(before[name], after[name]) == frozen, name


def test_a_pattern_that_matches_nothing_is_refused(start):
    """It is a typo."""
    with pytest.raises(BadInput, match=r"freeze: 'nothing' matches no layer"):
        start(freeze=["nothing"])
