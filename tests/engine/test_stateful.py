"""States of what a loop keeps besides come back as they were, to their types."""

from pathlib import Path

import numpy
import pytest
import torch

from altcore import CheckpointManager

VALUES = [
    numpy.float32(0.1),
    numpy.float16(0.1),
    numpy.float64(0.1),
    numpy.int8(-3),
    numpy.uint64(2**63),
    numpy.bool_(True),
    numpy.complex64(1 + 2j),
    numpy.longdouble(1) / 3,
    numpy.datetime64("2026-01-02"),
    Path("data"),
    0.1,
    True,
    None,
    "text",
]


class Keeps:
    def __init__(self, value):
        self.value = value

    def state_dict(self):
        return {"one": self.value, "many": [self.value, (self.value, {"in": self.value})]}

    def load_state_dict(self, state):
        self.value = state["one"]
        assert state == self.state_dict()


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_a_value_comes_back_with_its_type(tmp_path, value):
    """A loop that computes with a float of Python's in the place of a float32 is another one."""
    model, kept = torch.nn.Linear(2, 2), Keeps(value)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    manager = CheckpointManager(tmp_path, model, optimizer, also={"kept": kept})
    manager.save(1)
    kept.value = None
    assert manager.restore() == 1
    assert type(kept.value) is type(value)
    assert kept.value == value
    if isinstance(value, numpy.generic):
        assert kept.value.dtype == value.dtype
