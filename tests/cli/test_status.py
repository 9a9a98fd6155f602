"""What a command that lasts is doing: a line on a terminal, a line now and then elsewhere."""

import io
from contextlib import suppress
from types import SimpleNamespace

import pytest
from helpers_cli import call

from altcore.cli import status
from altcore.cli.status import Status, followed


class Terminal(io.StringIO):
    """Standard error as a terminal; `shown` is what its line holds at last."""

    def isatty(self):
        return True

    @property
    def shown(self):
        return self.getvalue().rpartition("\x1b[K")[0].rpartition("\r")[2]


@pytest.fixture
def clock(monkeypatch):
    """Return a list whose only item is the time, in seconds."""
    time = [100.0]
    monkeypatch.setattr(status, "monotonic", lambda: time[0])
    return time


@pytest.fixture
def terminal(monkeypatch):
    found = Terminal()
    # pytest puts a standard error of its own in its place before each test.
    monkeypatch.setattr(status, "sys", SimpleNamespace(stderr=found))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    return found


def test_on_a_terminal_one_line_says_what_is_done_and_how_long_is_left(terminal, clock):
    """It is redrawn for each item, and gone in the end."""
    seen = []
    for item in followed(["a", "b", "c"], "reading", str.upper):
        seen.append((item, terminal.shown))
        clock[0] += 60
    assert seen == [
        ("a", "reading A: 1 of 3"),
        ("b", "reading B: 2 of 3, about 2 min left"),
        ("c", "reading C: 3 of 3, about 60 s left"),
    ]
    assert terminal.shown == ""
    assert "\n" not in terminal.getvalue()


def test_the_line_never_breaks(terminal, clock):
    """Names of any length, and with control characters."""
    Status().now("x\x1b[2J" * 50)
    assert len(terminal.shown) == 79
    assert "\x1b" not in terminal.shown


def test_what_stays_takes_the_place_of_the_line(terminal, clock, capsys):
    line = Status()
    line.now("for now")
    line.tell("for good")
    assert terminal.shown == ""
    assert capsys.readouterr().err == "for good\n"


def test_elsewhere_a_line_is_told_now_and_then(capsys, clock):
    """Whoever is quick tells nothing."""
    for _ in followed(range(4), "reading"):
        clock[0] += 4
    assert capsys.readouterr().err == "reading 3: 4 of 4, about 4 s left\n"
    assert [*followed([1, 2], "reading")] == [1, 2]
    assert capsys.readouterr().err == ""


def test_an_error_takes_the_line_away(terminal, clock):
    with suppress(ZeroDivisionError), Status() as line:
        line.now("dividing")
        _ = 1 / 0
    assert terminal.shown == ""


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["plugins", "check"], "checking ulp-stats: "),
        (
            ["formats", "compare", "E4M3", "E5M2", "--on", "normal"],
            "measuring E5M2: 2 of 2, about ",
        ),
    ],
)
def test_commands_that_last_say_so(arguments, says, terminal, capsys):
    """Beside their output, which is the same."""
    outcome = call(capsys, *arguments)
    assert outcome.code == 0
    assert says in terminal.getvalue()
    assert terminal.shown == ""
    assert "\r" not in outcome.out
