"""What a plugin may hand to the engine."""

from collections import OrderedDict, defaultdict

import numpy as np
import pytest
import torch
from attrs import frozen

from altcore.engine.returns import check_state
from altcore.errors import PluginError


@frozen
class Custom:
    """Not plain data."""

    x: int = 1


GOOD = [
    {},
    {"a": torch.ones(2), "b": [1, 2.5, "x", None, True], "c": {"d": (1, 2)}, 3: OrderedDict(e=1)},
    torch.nn.Parameter(torch.ones(2)),
    [],
]
BAD = [
    ({"a": {1, 2}}, r"state\['a'\] is set"),
    ({"a": [np.float64(1.0)]}, r"state\['a'\]\[0\] is float64"),
    ({"a": Custom()}, r"state\['a'\] is Custom"),
    ({"a": defaultdict(int)}, r"state\['a'\] is defaultdict"),
    ({(1, Custom()): 1}, r"a key of state\[1\] is Custom"),
    (np.zeros(2), "state is ndarray"),
]


@pytest.mark.parametrize("value", GOOD)
def test_plain_state_survives_a_safe_load(value, tmp_path):
    """What is allowed comes back from a load that runs no code."""
    torch.save(check_state(value), tmp_path / "x.pt")
    assert str(torch.load(tmp_path / "x.pt", weights_only=True)) == str(value)


@pytest.mark.parametrize(("value", "says"), BAD)
def test_state_that_could_not_be_loaded_is_refused_when_saved(value, says):
    """Else every checkpoint would be written and none could be read."""
    with pytest.raises(PluginError, match=says):
        check_state(value)
