"""What all commands share: lists of names, numbers, JSON, and a reader that leaves."""

import json
import math
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import click
import pytest
from helpers_cli import ROOT, TINY, call, environment

from altcore import BadInput
from altcore.cli import leaving_closed_pipe
from altcore.cli.formats import facts
from altcore.cli.options import ListCommand, names, print_json
from altcore.cli.streams import prepare_streams
from altcore.cli.terminal import echo
from altcore.errors import NoSpace
from altcore.formats import get_format


@pytest.mark.parametrize(
    "given",
    [
        "--formats A,B,C",
        "--formats A B C",
        "--formats A@B C",
        "--formats A, B ,C",
        "--formats=A B C",
    ],
)
def test_lists_take_commas_or_spaces(given):
    """An option's list ends where the next option begins."""
    found = {}

    @click.command(cls=ListCommand, lists=("--formats",))
    @click.option("--formats")
    @click.option("--seeds", type=int)
    def command(formats, seeds):
        found.update(formats=names([formats], "--formats"), seeds=seeds)

    arguments = [a.replace("@", " ") for a in given.split()]
    for order in ([*arguments, "--seeds", "3"], ["--seeds", "3", *arguments]):
        command.main(order, standalone_mode=False)
        assert found == {"formats": ["A", "B", "C"], "seeds": 3}


def test_a_files_name_may_have_spaces(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my own.yaml").touch()
    assert names(["my own.yaml, E4M3"], "--formats") == ["my own.yaml", "E4M3"]
    assert names(["A" * 300], "--formats") == ["A" * 300]  # no name of a file
    with pytest.raises(BadInput, match=r"^--formats 'A,,B': names with commas or spaces"):
        names(["A,,B"], "--formats")


@pytest.mark.parametrize("given", [["E4M3,E5M2"], ["E4M3", "E5M2"], ["E4M3 E5M2"]])
def test_arguments_are_lists_too(capsys, given):
    both = call(capsys, "formats", "compare", *given, "--on", "normal uniform", "--json")
    rows = [(r["format"], r["data"]) for r in json.loads(both.out)]
    assert rows == [(f, d) for d in ("normal", "uniform") for f in ("E4M3", "E5M2")]


def test_json_is_strict(capsys):
    """Numbers that JSON does not have are words."""
    print_json({"loss": [math.nan, math.inf, -math.inf, 1.5]})
    out = capsys.readouterr().out
    assert json.loads(out, parse_constant=pytest.fail) == {"loss": ["nan", "inf", "-inf", 1.5]}


@pytest.mark.parametrize("name", ["BF16", "E5M2"])
def test_values_print_with_their_digits(capsys, name):
    """What is printed is the value, not one near it."""
    out = call(capsys, "formats", "show", name).out
    shown = {key: value for key, *_, value in map(str.split, out.splitlines()[:7])}
    for key in ("lowest", "largest", "smallest"):
        assert float(shown[key]) == facts(get_format(name))[key]
    listed = out.partition("values:\n")[2].partition("...")[0]
    values = get_format(name).values
    found = [float(v) for v in listed.split()]
    assert found == list(values[: len(found)])
    assert max(map(len, listed.splitlines())) <= 96


@pytest.mark.parametrize("arguments", ["formats show BF16 --json", "plugins list", "--help"])
def test_a_closed_pipe_is_no_failure(tmp_path, arguments):
    """Whether the output fills the pipe or not; nothing is said of it."""
    done = subprocess.run(
        f"set -o pipefail; {sys.executable} -m altcore {arguments} | true",
        shell=True,
        executable="/bin/bash",
        cwd=tmp_path,
        env=environment([ROOT]),
        capture_output=True,
        check=False,
    )
    assert done.returncode in (0, 141)
    assert done.stderr == b""


def test_a_write_that_meets_a_closed_pipe_leaves_with_141(tmp_path):
    """The code of a program that SIGPIPE ends."""
    code = "import os; r, w = os.pipe(); os.close(r); os.dup2(w, 1); from altcore.cli import main"
    for arguments in (["formats", "show", "BF16", "--json"], ["--help"]):
        done = subprocess.run(
            [sys.executable, "-c", f"{code}; main({arguments})"],
            cwd=tmp_path,
            env=environment([ROOT]),
            capture_output=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize("arguments", [["train"], ["plugins", "list", "--json"], ["--help"]])
def test_a_full_standard_output_is_named(tmp_path, corpus, arguments):
    """With the code of a full disk; a run has come to its end all the same."""
    if arguments == ["train"]:
        arguments = ["train", *TINY, "--data", str(corpus), "--steps", "2"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "altcore", *arguments],
            cwd=tmp_path,
            env=environment([ROOT]),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 3
    said = "altcore: standard output cannot be written: No space left on device"
    assert done.stderr.splitlines()[-1] == said
    for run in tmp_path.glob("runs/*"):
        assert json.loads((run / "summary.json").read_text())["status"] == "finished"
    assert (tmp_path / "runs").exists() == (arguments[0] == "train")


@leaving_closed_pipe()
def print_as_plugins_do():
    """Print, and hold the error if that fails."""
    with suppress(Exception):
        echo("of a plugin")


def test_a_full_standard_output_is_named_even_if_a_plugin_held_the_error(monkeypatch):
    """Or results would be lost without a word. Python's own flush at its end finds nothing."""
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        monkeypatch.setattr(sys, "__stdout__", full)
        prepare_streams()
        with pytest.raises(NoSpace, match="standard output cannot be written"):
            print_as_plugins_do()
        sys.stdout.flush()


def test_a_misspelt_variable_is_named(capsys, monkeypatch):
    """Once, before whatever the command says."""
    monkeypatch.setenv("ALTCORE_KERNEL", "off")
    monkeypatch.setenv("ALTCORE_KERNELS", "of")
    assert sorted(call(capsys, "plugins", "list").err.splitlines()) == [
        "altcore: the environment variable ALTCORE_KERNEL is not known "
        "(did you mean ALTCORE_KERNELS?)",
        "altcore: the environment variable ALTCORE_KERNELS is 'of': one of on, off, 1, 0",
    ]
