"""Lines of metrics are complete one step later, in one transfer."""

import math

import pytest
import torch

from altcore.engine.metric_lines import MetricLines, to_host


def test_to_host_keeps_kinds_and_shapes():
    """Scalars become numbers, vectors lists, integers stay integers, other values as they are."""
    host = to_host(
        {
            "a": torch.tensor(1.5),
            "b": torch.tensor([1, 2]),
            "c": torch.tensor(True),
            "d": None,
            "e": 7,
            "f": torch.tensor([math.nan]),
            "g": torch.zeros(0),
            "h": torch.tensor(2**52 + 1),
        }
    )
    assert repr(host) == repr(
        {"a": 1.5, "b": [1, 2], "c": 1, "d": None, "e": 7, "f": [math.nan], "g": [], "h": 2**52 + 1}
    )
    assert to_host({}) == {}


@pytest.mark.parametrize(
    ("dtype", "number"),
    [
        (torch.int64, 2**60 + 1),
        (torch.int64, -(2**63) + 1),
        (torch.uint64, 2**64 - 1),
        (torch.uint8, 200),
        (torch.float64, 0.1),
    ],
)
def test_numbers_of_64_bits_are_exact(dtype, number):
    """float64 holds no odd whole number above 2^53."""
    scalar = torch.tensor(number, dtype=dtype)
    assert to_host({"a": torch.tensor(0.5), "b": scalar, "c": scalar[None]}) == {
        "a": 0.5,
        "b": number,
        "c": [number],
    }


def test_lines_are_complete_one_step_later():
    """What is measured after the optimizer comes with the next read; order and values are kept."""
    told = []
    lines = MetricLines(lambda line: told.append(line.values))
    for step in (1, 2, 3):
        lines.read({"loss": torch.tensor(step / 2)})
        lines.begin({"step": step})
        lines.add({"late": torch.tensor(step * 10)})
        lines.end_step()
        assert [x["step"] for x in told] == list(range(1, step))
    lines.flush()
    assert told == [{"step": s, "late": s * 10} for s in (1, 2, 3)]
    lines.flush()
    assert len(told) == 3


def test_steps_that_are_not_recorded_have_no_line():
    """Their measures go nowhere, and the line before them is told all the same."""
    told = []
    lines = MetricLines(lambda line: told.append(line.values))
    for step in (1, 2, 3, 4):
        lines.read({})
        if step % 2 == 0:
            lines.begin({"step": step})
        lines.add({"late": torch.tensor(step)})
        lines.end_step()
    lines.flush()
    assert told == [{"step": 2, "late": 2}, {"step": 4, "late": 4}]
