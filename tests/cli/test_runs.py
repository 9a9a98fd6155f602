"""``altcore runs``: what a person wants first, of runs that were recorded."""

import json
import math
import os
import re
import time
from itertools import pairwise

import pytest
from helpers import run_directory
from helpers_cli import call, imports

from altcore.cli.run_comparison import _exact
from altcore.cli.sparkline import sparkline
from altcore.config import TrainConfig
from altcore.runs import Summary, sample_losses, write_configuration

ENVIRONMENT = {
    "code": {"optimizer adamw": {"from": "altcore-optimizers 0.1.0", "sha256": "0a" * 32}}
}


@pytest.fixture
def record(tmp_path):
    """Return a function that writes the record of a run, as if it had been trained."""

    def write(name, losses, written=None, ended=True, environment=None, facts=None, **keys):
        directory = run_directory(tmp_path, name=name, **keys)
        for step, loss in enumerate(losses, 1):
            at = step * keys.get("log_interval", 1)
            directory.append("metrics.jsonl", {"step": at, "loss": loss})
        directory.append("metrics.jsonl", {"step": len(losses), "val_loss": 1.5})
        write_configuration(directory, TrainConfig(name=name, **keys))
        if ended:
            known = {"verdict": "learned", "final_loss": losses[-1], "best_val_loss": 1.25}
            known |= {"workload_facts": facts or {}, "changes": keys.get("changes", ())}
            summary = Summary(
                name=name, directory="", status="finished", steps=len(losses), **known
            )
            directory.write_json("summary.json", summary.to_plain())
        directory.write_json("environment.json", environment or {})
        directory.close()
        for file in directory.path.iterdir():
            then = time.time() - (written or 0)
            os.utime(file, (then, then))
        return directory.path

    write.folder = str(tmp_path / "runs")
    return write


def listed(capsys, record):
    """Return the rows of the list by name, each cell by its heading's place."""
    head, *rows = call(capsys, "runs", "list", "--runs-dir", record.folder).out.splitlines()
    places = [head.index(word) for word in head.split()]
    ends = [*places[1:], None]
    cells = [[row[a:b].strip() for a, b in zip(places, ends, strict=True)] for row in rows]
    return {row[0]: dict(zip(head.split(), row, strict=True)) for row in cells}


def test_the_list_shows_what_a_person_wants_first(record, capsys):
    """Status, age, the loss as a curve, the best validation loss and the verdict."""
    record("done", [4.0, 3.0, 2.0, 1.0], written=7200)
    record("going", [2.0, math.nan], written=30, ended=False)
    rows = listed(capsys, record)
    assert rows["done"] == {
        "name": "done",
        "status": "finished",
        "ago": "2.0 h",
        "steps": "4",
        "loss": "█▆▃▁",
        "best": "1.2500",
        "verdict": "learned",
    }
    going = rows["going"]
    assert (going["status"], going["steps"], going["loss"]) == ("unfinished", "2", "▁x")
    assert going["best"] == "1.5000"  # of the evaluations so far
    assert 30 <= int(going["ago"].removesuffix(" s")) < 60


def test_on_a_terminal_a_run_is_one_line(record, capsys, monkeypatch):
    """The verdict, which is last, is cut; `runs show` has all of it."""
    path = record("long", [2.0, 1.0])
    summary = json.loads((path / "summary.json").read_text())
    (path / "summary.json").write_text(json.dumps({**summary, "verdict": "learned " * 20}))
    monkeypatch.setattr("altcore.cli.terminal.columns", lambda: 80)
    lines = call(capsys, "runs", "list", "--runs-dir", record.folder).out.splitlines()
    assert len(lines) == 2
    assert len(lines[1]) == 80
    assert lines[1].endswith("…")
    shown = call(capsys, "runs", "show", "long", "--runs-dir", record.folder).out
    assert shown.split().count("learned") == 20


def test_show_has_the_curve_and_how_long_ago(record, capsys, monkeypatch):
    """On a terminal a long text is broken between words, below where it begins."""
    record("mine", [4.0, 3.0, 2.0, 1.0], written=600)
    shown = call(capsys, "runs", "show", "mine", "--runs-dir", record.folder).out
    rows = dict(line.split("  ", 1) for line in shown.splitlines())
    assert rows["last written"].strip() == "10 min ago"
    assert rows["training loss by step"].strip() == "█▆▃▁  4.0000 to 1.0000"
    monkeypatch.setattr("altcore.cli.terminal.columns", lambda: 80)
    monkeypatch.chdir(f"{record.folder}/..")
    broken = call(capsys, "runs", "show", "mine").out
    assert max(map(len, broken.splitlines())) <= 80
    assert re.search(r"^validation loss  .*\n {23}\S", broken, re.MULTILINE)


def test_a_clock_that_was_set_back_is_told(record, capsys):
    """A run that was written in three hours is not one of just now."""
    record("mine", [1.0], written=-10800)
    assert listed(capsys, record)["mine"]["ago"] == "-3.0 h"
    shown = call(capsys, "runs", "show", "mine", "--runs-dir", record.folder).out
    assert re.search(r"^last written +3\.0 h ahead of this clock$", shown, re.MULTILINE)


def test_show_of_a_run_by_a_clock_that_stood_still(record, capsys):
    """It has no throughput."""
    path = record("mine", [1.0])
    summary = json.loads((path / "summary.json").read_text())
    still = {"seconds": 0.0, "step_time_ms": 0.0, "items_per_second": None}
    (path / "summary.json").write_text(json.dumps({**summary, **still}))
    shown = call(capsys, "runs", "show", "mine", "--runs-dir", record.folder)
    rows = dict(line.split("  ", 1) for line in shown.out.splitlines())
    assert (shown.code, rows["time"].strip()) == (0, "0.0 s, 0 ms a step")


def test_listing_runs_imports_no_torch(record, tmp_path):
    """Whoever looks at runs does not wait for it, nor for anything else that computes."""
    record("mine", [1.0])
    calls = [["list"], ["show", "mine"], ["compare", "mine", "mine"]]
    code = "from altcore.cli import main\n" + "".join(
        f"try: main(['runs', *{words}, '--runs-dir', {record.folder!r}])\nexcept SystemExit: pass\n"
        for words in calls
    )
    loaded = imports(code, tmp_path)
    assert not loaded & {"torch", "numpy", "pandas", "altcore_reporters"}


# ----------------------------------------------------------------------------------- compare


def compared(capsys, record, *names):
    found = call(capsys, "runs", "compare", *names, "--runs-dir", record.folder, "--json")
    return json.loads(found.out)


def test_what_differs_is_told_and_nothing_else(record, capsys):
    """Keys of the configuration and the environment, settings as a command line names them."""
    record("a", [3.0, 2.0, 1.0], settings={"gpt": {"size": "tiny"}}, environment={"device": "cpu"})
    record("b", [3.0, 2.0, 0.5], learning_rate=0.5, environment={"device": "H100"})
    found = compared(capsys, record, "a", "b")
    assert found["runs"] == ["a", "b"]
    assert found["configuration"] == {
        "gpt.size": ["tiny", "small"],
        "learning_rate": [0.001, 0.5],
    }
    assert found["environment"] == {"device": ["cpu", "H100"]}
    assert found["outcome"]["final_loss"] == [1.0, 0.5]
    assert found["same_losses_up_to"] == [3, 2]
    text = call(capsys, "runs", "compare", "a,b", "--runs-dir", record.folder).out
    rows = {line.split("  ")[0]: line.split()[1:] for line in text.splitlines() if line}
    assert rows["learning_rate"] == ["0.001", "0.5"]
    assert rows["gpt.size"] == ["tiny", "small"]
    assert rows["training loss"][-2:] == ["█▅▁", "█▅▁"]
    assert rows["same losses up to"][-2:] == ["step", "2"]


def test_losses_are_compared_in_the_steps_that_both_recorded(record, capsys):
    """Runs of another log_interval may be the same; without such a step nobody knows."""
    record("a", [4.0, 3.0, 2.0, 1.0])
    for name, losses, interval in (("b", [3.0, 1.0], 2), ("c", [3.0, 1.5], 2), ("d", [0.5], 5)):
        record(name, losses, log_interval=interval)
    assert compared(capsys, record, *"abcd")["same_losses_up_to"] == [4, 4, 2, None]
    text = call(capsys, "runs", "compare", "a,b,d", "--runs-dir", record.folder).out
    (row,) = (line for line in text.splitlines() if line.startswith("same losses up to"))
    assert row.split()[4:] == ["-", "step", "4", "-"]


def test_the_data_are_told(record, capsys):
    """By their digest, since runs on other data do not compare; what was given has only a name."""
    for name, facts in (("a", {"sha256": "0a" * 32}), ("b", {"data": "given"}), ("c", None)):
        record(name, [1.0], facts=facts)
    assert compared(capsys, record, "a", "b", "c")["data"] == ["0a" * 6, "given", None]
    text = call(capsys, "runs", "compare", "a,b,c", "--runs-dir", record.folder).out
    (row,) = (line.split() for line in text.splitlines() if line.startswith("data "))
    assert row == ["data", "0a" * 6, "given", "-"]


@pytest.mark.parametrize("ended", [True, False])
def test_what_was_changed_half_way_is_shown(ended, record, capsys):
    """Also of a run that goes on."""
    change = {
        "step": 2,
        "kind": "configuration",
        "what": "learning_rate",
        "before": 0.1,
        "now": 0.2,
    }
    record("a", [2.0, 1.0], ended=ended, changes=[change])
    shown = call(capsys, "runs", "show", "a", "--runs-dir", record.folder).out
    assert "  learning_rate was 0.1 and is 0.2 after step 2\n" in shown


def test_runs_that_are_the_same_are_told_to_be(record, capsys):
    """Up to which step their losses are: NaN is the same as NaN, and 0 steps are none."""
    record("a", [2.0, math.nan], environment=ENVIRONMENT)
    record("b", [2.0, math.nan], environment=ENVIRONMENT)
    record("c", [1.0], ended=False)
    found = compared(capsys, record, "a", "b", "c")
    assert found["same_losses_up_to"] == [2, 2, 0]
    assert found["outcome"]["status"] == ["finished", "finished", "unfinished"]
    text = call(capsys, "runs", "compare", "a", "b", "--runs-dir", record.folder).out
    assert text.endswith("\nconfiguration, code and environment do not differ\n")
    record("d", [1.0], environment=ENVIRONMENT, learning_rate=0.5)
    text = call(capsys, "runs", "compare", "a", "d", "--runs-dir", record.folder).out
    assert text.endswith("\ncode and environment do not differ\n")


def test_other_code_is_told(record, capsys):
    """Of formats and plugins that runs have by one name; a run without a record of it is named."""
    for name, plugin, fmt in (("a", "third 1.0", "format E4M3"), ("b", "third 2.0", "format E5M2")):
        code = {"shrink": {"from": plugin}, fmt: {"from": "altcore-formats 1"}}
        record(name, [2.0], environment={"code": code})
    assert compared(capsys, record, "a", "b")["code"] == {"shrink": ["third 1.0", "third 2.0"]}
    text = call(capsys, "runs", "compare", "a", "b", "--runs-dir", record.folder).out
    assert "\n\ncode\nshrink " in text
    assert text.endswith("\nconfiguration and environment do not differ\n")
    record("old", [2.0])
    assert compared(capsys, record, "a", "old")["code"] == {"recorded": [True, False]}


def test_a_comparison_holds_on_a_terminal(record, capsys, monkeypatch):
    """Of 80 columns: cells are broken between words."""
    plugins = ("ulp-stats", "bit-stall", "overflow", "progress", "failure-report")
    for name, kept in (("a", plugins), ("b", plugins[:3]), ("c", plugins[1:])):
        record(name, [1.0], plugins=kept)
    monkeypatch.setattr("altcore.cli.terminal.columns", lambda: 80)
    text = call(capsys, "runs", "compare", "a", "b", "c", "--runs-dir", record.folder).out
    assert max(map(len, text.splitlines())) <= 80
    assert all(f" {name}" in text for name in ("ulp-stats,", "bit-stall,", "failure-report"))


@pytest.mark.parametrize("names", [[], ["a"]])
def test_one_run_compares_with_nothing(names, record, capsys):
    record("a", [1.0])
    outcome = call(capsys, "runs", "compare", *names, "--runs-dir", record.folder)
    assert outcome.code == 2
    assert "needs two runs or more" in outcome.message


def test_settings_are_compared_as_a_user_writes_them():
    """Neither thirty digits nor a 0 with decimals; two that differ are never shown as one."""
    values = [1e30, 0.0, 1e-5, 0.100000000001]
    assert [*map(_exact, values)] == ["1e+30", "0", "1e-05", "0.100000000001"]


# --------------------------------------------------------------------------------- the curve


@pytest.mark.parametrize(
    ("values", "width", "curve"),
    [
        ([], 5, ""),
        ([2.0, 2.0], 5, "▁▁"),
        ([math.nan, math.inf], 5, "xx"),
        ([1e308, -1e308], 5, "█▁"),
        (list(range(100)), 4, "▁▃▆█"),
        ([1.0, math.nan, 1.0, 9.0], 2, "▁▁"),
    ],
)
def test_a_curve_is_never_wider_than_asked_for(values, width, curve):
    assert sparkline(values, width) == curve


def test_a_curve_without_blocks(monkeypatch):
    """Where standard output cannot take them."""

    class Narrow:
        encoding = "ascii"

    monkeypatch.setattr("sys.stdout", Narrow())
    assert sparkline([3.0, 2.0, 1.0], 3) == "#=_"


def test_losses_are_sampled_evenly(tmp_path):
    """All of a short record; of a long one no more than asked for, from its first line to its end.

    Lines of evaluations are passed over, a torn last one, too.
    """
    path = tmp_path / "metrics.jsonl"
    assert sample_losses(tmp_path, 5) == []
    path.write_text("")
    assert sample_losses(tmp_path, 5) == []
    lines = []
    for step in range(1, 1001):
        lines.append(json.dumps({"step": step, "loss": step, "more": "x" * 50}))
        lines.append(json.dumps({"step": step, "val_loss": 0.0}))
    path.write_text("\n".join(lines[:8]) + '\n{"step": 5, "lo')
    assert sample_losses(tmp_path, 40) == [1, 2, 3, 4]
    path.write_text("\n".join(lines) + "\n")
    found = sample_losses(tmp_path, 40)
    assert len(found) == 40
    assert found[0] == 1
    assert found == sorted(found)
    gaps = [b - a for a, b in pairwise(found)]
    assert 22 <= min(gaps) <= max(gaps) <= 28
