"""Records are strict JSON, and no line but a torn one is lost."""

import errno
import json
import math
import os

import pytest
import structlog
from helpers import run_directory

from altcore.errors import AltcoreError, BadInput
from altcore.runs import read_lines


def test_numbers_that_are_not_finite_round_trip(tmp_path):
    """They are written as words, so that any JSON reader can read the file, and read as numbers."""
    directory = run_directory(tmp_path, name="r")
    line = {
        "step": 3, "loss": math.nan, "grad_norm": math.inf, "low": -math.inf, "none": None,
        "histogram": [1.5, math.nan, math.inf], "nested": {"deep": {"x": -math.inf}},
    }  # fmt: skip
    directory.append("metrics.jsonl", line)
    text = (directory.path / "metrics.jsonl").read_text()

    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    assert json.loads(text, parse_constant=refuse)["loss"] == "nan"
    (back,) = read_lines(directory.path / "metrics.jsonl")
    assert repr(back) == repr(line)


def test_words_of_events_stay_words(tmp_path):
    """An event called nan is a word, and so is a reason."""
    directory = run_directory(tmp_path, name="r")
    line = {"step": 1, "event": "nan", "reason": "inf", "value": math.nan}
    directory.append("events.jsonl", line)
    (back,) = read_lines(directory.path / "events.jsonl")
    assert repr(back) == repr(line)


def test_floats_keep_every_bit(tmp_path):
    """What is read back is what was written, to the last bit."""
    directory = run_directory(tmp_path, name="r")
    values = [0.1, 1 / 3, 5e-324, 1.7976931348623157e308, 2**60 + 1, -0.0]
    directory.append("metrics.jsonl", {"step": 1, "values": values})
    (back,) = read_lines(directory.path / "metrics.jsonl")
    assert [repr(v) for v in back["values"]] == [repr(v) for v in values]


def test_a_torn_last_line_is_left_out(tmp_path):
    """At whatever byte it was torn, the lines before it are read."""
    path = tmp_path / "m.jsonl"
    whole = '{"step": 1, "loss": 2.5}\n{"step": 2, "loss": "nan"}\n'
    for length in range(len(whole)):
        path.write_text(whole[:length])
        lines = read_lines(path)
        expected = whole[:length].count("}")
        assert [x["step"] for x in lines] == [1, 2][:expected], length


BROKEN = [b'{"step": 2, "lo', b"\xff\xfe", b"[1]", b'{"step": ' + b"1" * 5000 + b"}", b"[" * 9000]


UNFIT = [b'{"stfp": 2}', b'{"step": "x"}', b'{"step": 2, "loss": "x"}', b'{"step": 2, "loss": []}']


@pytest.mark.parametrize("line", UNFIT)
def test_a_line_that_no_run_writes_is_named_and_left_out(line, tmp_path):
    """Readers rely on a step that is a number, and on losses that are."""
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 3, "loss": "nan"}\n')
    with structlog.testing.capture_logs() as logs:
        assert [x["step"] for x in read_lines(path)] == [1, 3]
    assert logs[0]["lines"] == [2]


@pytest.mark.parametrize("line", BROKEN, ids=["torn", "bytes", "list", "digits", "deep"])
def test_a_broken_line_in_the_middle_is_named(line, tmp_path):
    """Once, by its file and number; the lines around it are read."""
    path = tmp_path / "m.jsonl"
    path.write_bytes(b'{"step": 1}\n' + line + b'\n\n{"step": 3}\n')
    with structlog.testing.capture_logs() as logs:
        assert [x["step"] for x in read_lines(path)] == [1, 3]
        read_lines(path)
    (warning,) = logs
    assert (warning["log_level"], warning["file"], warning["lines"]) == ("warning", str(path), [2])


def test_too_many_open_files_are_not_the_files_fault(tmp_path, monkeypatch):
    """So that the command does not call its input bad."""

    def no_descriptor(*_):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "open", no_descriptor)
    with pytest.raises(AltcoreError, match=r"too many open files to read .*m\.jsonl") as e:
        list(read_lines(tmp_path / "m.jsonl"))
    assert not isinstance(e.value, BadInput)
