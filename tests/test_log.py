"""altcore's log: a line that cannot be printed costs nothing but itself."""

import sys
import warnings

import pytest
import structlog
from helpers_streams import FAILURES, Broken

from altcore.errors import described
from altcore.log import Log, warn


@pytest.mark.parametrize("why", FAILURES)
def test_a_line_that_cannot_be_printed_is_left_out_and_that_is_said_once(why, monkeypatch, capsys):
    """On standard error: structlog prints to standard output if nobody configured it."""
    monkeypatch.setattr(sys, "stdout", Broken(why))
    log = Log()
    log.warning("weights\x1b are lost", step=3)
    log.info("and more")
    said = f"the log cannot be printed ({described(FAILURES[why])}); this is said once"
    assert capsys.readouterr().err == f"altcore: {said}: weights\\x1b are lost\n"


@pytest.mark.parametrize("stderr", [Broken("full"), None])
def test_nor_does_it_fail_where_nothing_can_be_said(stderr, monkeypatch):
    monkeypatch.setattr(sys, "stdout", Broken("full"))
    monkeypatch.setattr(sys, "stderr", stderr)
    Log().warning("lost")


def raising(error):
    """Return a processor of structlog that fails."""

    def fail(*_):
        raise error

    return fail


def test_a_processor_that_fails_costs_nothing(capsys):
    structlog.configure(processors=[raising(KeyError("a"))])
    Log().info("lost")
    assert "(KeyError: 'a'); this is said once: lost" in capsys.readouterr().err


def test_a_full_stack_is_told_by_whoever_filled_it():
    structlog.configure(processors=[raising(RecursionError)])
    with pytest.raises(RecursionError):
        Log().info("lost")


def test_a_warning_that_cannot_be_printed_costs_nothing(monkeypatch):
    """Python raises what its stream does, if that is closed."""
    closed = Broken("closed")
    monkeypatch.setattr(warnings, "showwarning", lambda *told, **_: closed.write(told))
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warn("rounding is slow")


def test_a_warning_is_that_of_the_caller():
    """Python tells each place once, and its filters make errors of warnings."""
    with pytest.warns(RuntimeWarning, match=r"^a\\x1b$") as caught:
        warn("a\x1b")
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeWarning):
            warn("a")
