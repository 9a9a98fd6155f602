"""Which alerts follow from what happens in a run."""

import pytest

from altcore_reporters.alerts import Alert, Alerts

FLAT = {"original": {"use_fp8": True}, "bit_stall_threshold": 0.5}


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def collapse(cause):
    return {"event": "collapse", "step": 7, "cause": cause, "reason": "why"}


def test_a_collapse_is_an_error():
    alerts = Alerts({})
    assert alerts.of_event(collapse("stalled")) == Alert(
        "ERROR", "Collapse: stalled", "step 7: why"
    )
    assert alerts.of_event(collapse("nan_patience")) == Alert("ERROR", "Not finite", "step 7: why")


def test_overflow_is_a_warning_that_waits(clock):
    alerts = Alerts({}, now=clock)
    event = {"event": "warning", "step": 7, "cause": "overflow", "message": "2% overflow"}
    assert alerts.of_event(event) == Alert("WARN", "Overflow", "step 7: 2% overflow", 300.0)
    clock.now = 299.0
    assert alerts.of_event(event) is None
    assert alerts.of_event(collapse("stalled"))
    clock.now = 300.0
    assert alerts.of_event(event)


@pytest.mark.parametrize(
    "event",
    [
        {"event": "nan", "step": 7, "consecutive": 1},
        {"event": "warning", "step": 7, "message": "the warm-up is longer than the run"},
        {"event": "warning", "step": 7, "cause": "stalled", "message": "most updates..."},
        {"event": "end", "step": 7, "status": "finished"},
    ],
)
def test_nobody_is_alerted_of_anything_else(event):
    assert Alerts(FLAT).of_event(event) is None


def test_a_raw_stall_rate_alerts_in_original_configurations_only():
    """A view's stall is 80 to 95 % in healthy runs."""
    line = {"step": 7, "loss": 1.0, "stored_stall_rate": None, "view_stall_rate": 0.9}
    assert Alerts({"original": {}, "bit_stall_threshold": 0.5}).of_line(line) is None
    assert Alerts(FLAT).of_line({**line, "view_stall_rate": 0.5}) is None
    assert Alerts(FLAT).of_line({**line, "view_stall_rate": None}) is None
    assert Alerts(FLAT).of_line({**line, "stored_stall_rate": 0.1}) is None
    text = "step 7: 90.0% of updates moved nothing (bit_stall_threshold)"
    assert Alerts(FLAT).of_line(line) == Alert("WARN", "Bit stall", text, 300.0)
