"""Errors that nobody waits for are lines, and no text of an error commands the terminal."""

import os
import sys
import threading
import traceback
import warnings

import pytest
from helpers import events
from helpers_cli import TINY, call
from helpers_crashes import forked
from helpers_plugins import make

from altcore.cli import main
from altcore.cli.uncaught import refuse_silent_end, tell_uncaught
from altcore.errors import PluginError

HOSTILE = "a\x1b[31mb\x00\r\naltcore: forged\n[error] forged"
SAFE = r"a\x1b[31mb\x00 altcore: forged [error] forged"


@pytest.fixture
def uncaught(monkeypatch):
    """Set what Python calls, for the length of a test."""
    for owner, name in (
        *((threading, "excepthook"), (sys, "unraisablehook")),
        *((warnings, "formatwarning"), (warnings, "showwarning")),
    ):
        monkeypatch.setattr(owner, name, getattr(owner, name))
    return tell_uncaught


def fail():
    raise ValueError(HOSTILE)


class Fails:
    def __del__(self):
        fail()


@pytest.mark.parametrize("debug", [False, True])
def test_a_thread_that_fails_is_a_line(uncaught, capsys, debug):
    """With --debug after its traceback, which is text as well."""
    uncaught(debug=debug)
    thread = threading.Thread(target=fail, name="T\x1bx")
    thread.start()
    thread.join()
    err = capsys.readouterr().err
    assert err.splitlines()[-1] == rf"altcore: thread T\x1bx failed: ValueError: {SAFE}"
    assert ("Traceback" in err) is debug
    assert "\x1b" not in err


def test_a_finalizer_that_fails_is_a_line(uncaught, capsys):
    uncaught(debug=False)
    Fails()
    assert capsys.readouterr().err == f"altcore: Fails.__del__ failed: ValueError: {SAFE}\n"


def test_a_warning_is_text(uncaught):
    uncaught(debug=False)
    told = warnings.formatwarning(UserWarning(HOSTILE), UserWarning, "f.py", 3)
    assert told.startswith(f"f.py:3: UserWarning: {SAFE}\n")


class Broken:
    """A stream that a plugin put in the place of standard error."""

    encoding = "utf-8"

    def write(self, *text):
        raise ValueError("no")

    flush = write

    def isatty(self):
        return False


def test_an_error_keeps_its_exit_code_if_nobody_can_be_told(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Broken())
    with pytest.raises(SystemExit) as left:
        main(["runs", "show", "nope", "--debug"])
    assert left.value.code == 2


def test_an_error_of_a_plugin_is_a_line_of_text(shelf, start, tmp_path, capsys):
    """In the terminal, in the events, and for those who catch it."""
    shelf.install("intervention", "fails", make({"post_step": lambda self: fail()}))
    with pytest.raises(PluginError) as caught:
        start(["fails"], name="r")
    assert str(caught.value).endswith(f"failed in post_step: ValueError: {SAFE}")
    assert events(start.runs / "r", "end")[-1]["error"] == f"PluginError: {caught.value}"
    given = ("--data", start.corpus, "--set", f"runs_dir={start.runs}", "--plugin", "fails")
    found = call(capsys, "train", *TINY, *given, "--steps", "1", "--debug")
    assert found.message == f"altcore: {caught.value}"
    assert "\x1b" not in found.err
    assert "Traceback" in found.err
    assert traceback.format_exception(caught.value)[-1].count("\n") == 1


def test_code_of_others_cannot_end_the_command_as_if_all_were_done(capfd):
    """Not the process itself by os._exit(0), that is; a child that it forks may."""

    def leave(*codes):
        refuse_silent_end()
        for code in codes:
            assert forked(lambda code=code: os._exit(code)) == code
        os._exit(0)

    assert forked(lambda: leave(0, 3)) == 1
    assert "os._exit(0) was called before the command was over" in capfd.readouterr().err
