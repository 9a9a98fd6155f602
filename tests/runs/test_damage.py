"""Damage to a file of one run hides no other, and is named with the file."""

import os
import random
import re
import shutil
from contextlib import suppress

import pytest
from helpers import Starter, as_killed, text_file
from helpers_cli import call
from structlog.testing import capture_logs

from altcore import BadInput, durable, load
from altcore.log import warn_once
from altcore.runs import altered

FILES = (
    "metrics.jsonl",
    "events.jsonl",
    "timings.jsonl",
    "summary.json",
    "config.yaml",
    "environment.json",
)
DRAW = random.Random(3)
JUNK = {
    "nothing": lambda data: b"",
    "random bytes": lambda data: DRAW.randbytes(300),
    "half": lambda data: data[: len(data) // 2],
    "bytes within": lambda data: data[:90] + DRAW.randbytes(30) + data[90:],
    "brackets": lambda data: b"[" * 100_000,
    "braces": lambda data: b'{"a":' * 5000 + b"1" + b"}" * 5000,
    "a list": lambda data: b"[1]\n",
    "other lines": lambda data: (
        b'{"step": 1e999}\n{"step": 1, "loss": "x"}\nnull\n'
        b'{"step": 1, "event": 3}\n{"step": ' + b"9" * 5000 + b"}\n"
    ),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs, ``harmed`` and ``other``."""
    root = tmp_path_factory.mktemp("damage")
    start = Starter(root / "runs", text_file(root / "words.txt"))
    for name in ("harmed", "other"):
        start(name=name, format="E4M3", max_steps=2)
    return start


@pytest.mark.parametrize("junk", JUNK.values(), ids=JUNK)
@pytest.mark.parametrize("file", FILES)
def test_damage_to_a_file_hides_no_other_run(file, junk, runs, tmp_path, capsys):
    """Lists, summaries and reports of the others are there; of its own, an error names the file."""
    shutil.copytree(runs.runs, tmp_path / "runs")
    path = tmp_path / "runs/harmed" / file
    path.write_bytes(junk(path.read_bytes()))
    where = ("--runs-dir", str(tmp_path / "runs"))
    for arguments in (("runs", "list"), ("runs", "show", "other")):
        found = call(capsys, *arguments, *where)
        assert found.code == 0, found.err
        assert "other" in found.out
    assert call(capsys, "report", "failure-report", "other", *where).code == 0
    for arguments in (("runs", "show", "harmed"), ("report", "failure-report", "harmed")):
        found = call(capsys, *arguments, *where)
        assert found.code in (0, 2), found.err
        assert found.code == 0 or file in found.message


@pytest.mark.parametrize("file", FILES)
def test_damage_to_a_file_stops_no_other_run(file, runs, tmp_path):
    """Another one goes on, in the same folder."""
    shutil.copytree(runs.runs, tmp_path / "runs")
    (tmp_path / "runs/harmed" / file).write_bytes(DRAW.randbytes(300))
    assert Starter(tmp_path / "runs", runs.corpus).resume("other", max_steps=3)


def test_the_summary_of_another_run_is_refused_and_written_again(runs, tmp_path, capsys):
    """By its id, wherever it is read; it is the same for an edited status."""
    shutil.copytree(runs.runs, tmp_path / "runs")
    file = tmp_path / "runs/harmed/summary.json"
    own, where = file.read_text(), ("--runs-dir", str(tmp_path / "runs"))
    foreign = (tmp_path / "runs/other/summary.json").read_text()
    edited = own.replace('"status": "finished"', '"status": "finishd"')
    for text, says in ((foreign, "run_id: it is of run"), (edited, "did you mean finished")):
        file.write_text(text)
        found = call(capsys, "runs", "show", "harmed", *where)
        assert found.code == 2
        assert says in found.message
        assert "--resume harmed writes it again" in found.message
        Starter(tmp_path / "runs", runs.corpus).resume("harmed")
        assert call(capsys, "runs", "show", "harmed", *where).code == 0


@pytest.mark.parametrize("harm", [lambda file: file.unlink(), lambda file: file.write_text("[]")])
def test_a_resume_writes_a_lost_environment_again(runs, tmp_path, capsys, harm):
    """Of a finished run, too, as its checkpoints have it."""
    shutil.copytree(runs.runs, tmp_path / "runs")
    file = tmp_path / "runs/harmed/environment.json"
    before = file.read_text()
    harm(file)
    with capture_logs() as logs:
        Starter(tmp_path / "runs", runs.corpus).resume("harmed")
    assert any("environment.json was missing, damaged or changed" in x["event"] for x in logs)
    assert file.read_text() == before


@pytest.mark.parametrize("harm", [lambda file: file.unlink(), lambda file: file.write_text("[]")])
def test_a_lost_environment_is_named_with_the_remedy(runs, tmp_path, capsys, harm):
    """By whoever shows or compares the run; and the remedy brings it back, and no other file."""
    shutil.copytree(runs.runs, tmp_path / "runs")
    file = tmp_path / "runs/harmed/environment.json"
    before = file.read_text()
    harm(file)
    where = ("--runs-dir", str(tmp_path / "runs"))
    for command in (("runs", "show"), ("runs", "compare", "other"), ("report", "page")):
        warn_once.cache_clear()
        found = call(capsys, *command, "harmed", *where)
        assert f"{file} is" in found.err
        assert "altcore runs restore harmed writes it anew" in found.message
        assert "Traceback" not in found.err
    restored = call(capsys, "runs", "restore", "harmed", *where)
    assert restored.out.splitlines()[1:] == [f"{file} is as step-00000002 has it"]
    assert file.read_text() == before
    assert len(call(capsys, "runs", "restore", "harmed", *where).out.splitlines()) == 1


def test_an_environment_of_another_run_is_named(runs, tmp_path):
    """And not the checkpoints, which all agree; without it the run goes on."""
    shutil.copytree(runs.runs, tmp_path / "runs")
    file = tmp_path / "runs/harmed/environment.json"
    shutil.copy(tmp_path / "runs/other/environment.json", file)
    start = Starter(tmp_path / "runs", runs.corpus)
    with pytest.raises(BadInput, match=r"environment\.json is of run \w+, and all checkpoints"):
        start.resume("harmed", max_steps=3)
    file.unlink()
    assert start.resume("harmed", max_steps=3).summary["steps"] == 3


def test_a_tracker_names_a_lost_environment(runs, tmp_path, capsys):
    """With the remedy, and no traceback."""
    shutil.copytree(runs.runs, tmp_path / "runs")
    (tmp_path / "runs/harmed/environment.json").unlink()
    where = ("--runs-dir", str(tmp_path / "runs"))
    found = call(capsys, "runs", "upload", "harmed", "--to", "csv", *where)
    assert found.code == 2
    assert "environment.json is missing" in found.message


def flip(path, digit=rb"[1-8]\.\d"):
    """Flip a bit in the first digit of a file's last number, so that it is another number."""
    data = bytearray(path.read_bytes())
    data[[*re.finditer(digit, data)][-1].start()] ^= 1
    path.write_bytes(data)


@pytest.fixture
def mine(runs, tmp_path):
    """A copy of both runs: that of ``harmed``, and where they are."""
    shutil.copytree(runs.runs, tmp_path / "runs")
    return tmp_path / "runs/harmed", ("--runs-dir", str(tmp_path / "runs"))


def said_by(capsys, *words):
    """Return what a command says, as one line, and its exit code."""
    warn_once.cache_clear()
    found = call(capsys, *words)
    return " ".join((found.out + found.err).split()), found.code


@pytest.mark.parametrize("file", FILES)
def test_a_flipped_digit_of_a_record_is_named(file, mine, capsys):
    """Once by each command that reads the file, whatever else the file still is."""
    run, where = mine
    assert not altered(run)
    flip(run / file, rb"[1-8](?=\.\d)" if file == "summary.json" else rb"[1-8]")
    (found,) = altered(run).items()
    assert found[0] == file
    assert f"{run / file} was changed" in found[1]
    for words in (("runs", "show"), ("runs", "compare", "other"), ("checkpoints", "verify")):
        said, code = said_by(capsys, *words, "harmed", *where)
        assert said.count(f"{run / file} was changed") == 1, words
        assert code == (1 if words[1] == "verify" else 0)
    warn_once.cache_clear()
    with capture_logs() as logs, suppress(BadInput):  # a path in a configuration may lead nowhere
        load(run)
    assert file == "summary.json" or found[1] in str(logs)


def test_the_list_names_a_file_of_another_size(mine, capsys):
    """Of a run that ended, and of one that was killed; no file is read as a whole for it."""
    run, where = mine
    flip(run / "events.jsonl", rb"[1-8]")
    assert "was changed" not in said_by(capsys, "runs", "list", *where)[0]
    with (run / "timings.jsonl").open("a") as lines:
        lines.write("{}\n")
    said, code = said_by(capsys, "runs", "list", *where)
    assert said.count(f"{run / 'timings.jsonl'} was changed: it has") == 1
    assert code == 0
    (run / "summary.json").unlink()
    os.truncate(run / "timings.jsonl", 0)
    assert "it has 0 bytes" in said_by(capsys, "runs", "list", *where)[0]


def test_a_record_is_compared_with_the_newest_checkpoint_until_the_run_ends(mine):
    """What a run writes after a checkpoint is not in it."""
    run, _ = mine
    as_killed(run)
    with (run / "metrics.jsonl").open("a") as lines:
        lines.write('{"step": 3, "loss": 1.0}\n')
    assert not altered(run)
    flip(run / "events.jsonl", rb"[1-8]")
    assert altered(run)["events.jsonl"].endswith("its digest is not that in step-00000002")


@pytest.mark.parametrize("file", ["config.yaml", "environment.json"])
def test_a_file_of_a_killed_run_is_compared_with_its_newest_checkpoint(file, mine, capsys):
    """Which holds the configuration, but no digest of its file."""
    run, where = mine
    as_killed(run)
    assert not altered(run)
    text = (run / file).read_text()
    harmed = text.replace("learning_rate: 0.01", "learning_rate: 0.11")
    (run / file).write_text(harmed.replace('"threads": ', '"threads": 1'))
    (found,) = altered(run).items()
    assert found[0] == file
    assert f"{run / file} was changed: step-00000002 has it otherwise" in found[1]
    is_told = "otherwise: learning_rate was 0.01 and is 0.11: altcore runs restore" in found[1]
    assert is_told == (file == "config.yaml")
    for words in (("runs", "show"), ("runs", "compare", "other"), ("checkpoints", "verify")):
        said, code = said_by(capsys, *words, "harmed", *where)
        assert said.count(f"{run / file} was changed") == 1, words
        assert code == (1 if words[1] == "verify" else 0)


def test_a_setting_that_was_edited_in_a_killed_run_is_named(mine):
    run, _ = mine
    as_killed(run)
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("size: tiny", "size: small"))
    assert "gpt.size was tiny and is small" in altered(run)["config.yaml"]


def test_a_killed_run_that_went_on_otherwise_is_as_it_left_itself(runs, tmp_path):
    """No checkpoint has what was allowed, until the next one."""
    shutil.copytree(runs.runs, tmp_path / "runs")
    start = type(runs)(tmp_path / "runs", runs.corpus, runs.keys)
    run = tmp_path / "runs/harmed"
    newest = run / "checkpoints/step-00000003"
    start.resume("harmed", max_steps=3)
    for path in (run / "summary.json", newest):
        durable.remove(path)
    lines = (run / "events.jsonl").read_text().splitlines(keepends=True)
    assert '"event": "end"' in lines[-1]
    (run / "events.jsonl").write_text("".join(lines[:-1]))
    assert not altered(run)


def test_a_restored_configuration_is_the_one_that_the_run_left(mine, capsys):
    """The remedy for a changed one, after which nothing is named."""
    run, where = mine
    flip(run / "config.yaml", rb"[1-8]")
    assert call(capsys, "runs", "restore", "harmed", *where).code == 0
    assert not altered(run)
