"""``--log-json``: what a command tells on standard error, as JSON lines."""

import json
import math
import warnings

import pytest
import structlog
from helpers_cli import TINY, call

from altcore.cli.log import configure_json
from altcore.cli.terminal import say


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    yield
    structlog.reset_defaults()


def lines(err):
    """Return the lines as objects; each has the three keys that every line has."""
    found = [json.loads(line, parse_constant=pytest.fail) for line in err.splitlines()]
    assert all({"event", "level", "timestamp"} <= set(line) for line in found)
    return found


def test_every_line_of_a_training_is_json(tmp_path, corpus, capsys, monkeypatch):
    """Remarks, and the reporter progress with its numbers; standard output stays as it is."""
    monkeypatch.chdir(tmp_path)
    keys = ("--set", "warmup_steps=9", "--set", "learning_rate=1e38", "--set", "nan_patience=9")
    outcome = call(
        *(capsys, "--log-json", "train", "--format", "E4M3", *TINY[:-2], *keys),
        *("--data", corpus, "--steps", "4"),
    )
    assert outcome.code == 0, outcome.err
    found = lines(outcome.err)
    assert "the warm-up of 9 steps is longer" in found[0]["event"]
    assert found[0]["level"] == "warning"
    assert (found[-1]["level"], found[-1]["step"]) == ("info", 4)
    assert isinstance(found[-1]["loss"], float | str)
    assert not any("/" in key for key in found[-1])
    assert outcome.out.startswith("run ")


@pytest.mark.parametrize(
    ("arguments", "says", "code"),
    [
        (["runs", "show", "nope"], "there is no run 'nope' in runs", 2),
        (["runs", "shwo"], "No such command 'shwo' (did you mean show?).", 2),
    ],
)
def test_an_error_is_a_line_with_its_exit_code(arguments, says, code, capsys):
    outcome = call(capsys, *arguments, "--log-json")
    (line,) = lines(outcome.err)
    assert (outcome.code, line["exit_code"], line["level"]) == (code, code, "error")
    assert line["event"] == says


def test_a_traceback_is_within_its_line(capsys):
    (line,) = lines(call(capsys, "runs", "show", "nope", "--log-json", "--debug").err)
    assert line["traceback"].startswith("Traceback")


def test_a_line_never_fails(capsys):
    """Neither numbers that JSON does not have, nor what is not data, nor control characters."""
    configure_json()
    say("a\x1b[2J\u202eb\nc", "info", loss=math.nan, path=math)
    warnings.warn("from a library", stacklevel=1)
    err = capsys.readouterr().err
    assert err.isascii()
    told, warned = lines(err)
    assert told["event"] == "a\x1b[2J\u202eb c"
    assert (told["loss"], warned["event"]) == ("nan", "from a library")
    assert (warned["level"], warned["category"]) == ("warning", "UserWarning")
