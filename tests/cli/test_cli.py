"""The command: what it prints, what it imports, and the exit codes."""

import json
import re
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import click
import pytest
from helpers import Starter, forget_installed
from helpers_cli import TINY, call, distribution, environment, imports, run

from altcore.cli import COMMANDS, cli
from altcore.cli.summary import lines
from altcore.errors import EXIT_CODES, BadInput, Interrupted, NoSpace, PluginError
from altcore.registry import HOOK_KINDS, KINDS
from altcore.runs import Summary, read_lines

SUBJECT = "import sys; from altcore.cli import main\ntry: main({!r})\nexcept SystemExit: pass\n"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory, corpus):
    """A folder with three runs: two that finished and one that was stored on its grid."""
    runs = tmp_path_factory.mktemp("recorded")
    start = Starter(runs, corpus)
    for name, keys in {
        "first": {"format": "E3M4"},
        "second": {},
        "third": {"format": "E4M3", "recipe": "pure"},
    }.items():
        start(name=name, **keys)
        time.sleep(0.01)
    return runs


# ------------------------------------------------------------------------- what is imported


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["plugins", "list"],
        ["plugins", "list", "--kind", "format", "--json"],
        ["plugins", "--help"],
        ["plugins", "info", "--help"],
        ["runs", "--help"],
        ["train", "--help"],
    ],
    ids=" ".join,
)
def test_listing_and_help_import_click_only(arguments, tmp_path):
    """No torch, no attrs and no plugin: whoever looks for a name or an option waits for nothing."""
    before = imports("import click", tmp_path)
    after = imports(SUBJECT.format(arguments), tmp_path)
    assert after - before == {"altcore"}


def test_importing_altcore_imports_nothing_else(tmp_path):
    """Public names load on first use, and all of them do."""
    assert imports("import altcore", tmp_path) - imports("", tmp_path) == {"altcore"}
    import altcore

    assert all(getattr(altcore, name) is not None for name in altcore.__all__)
    assert set(altcore.__all__) <= set(dir(altcore))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        altcore.nothing  # noqa: B018 - asking for it is the test


# ---------------------------------------------------------------------------------- plugins


def test_plugins_list_as_json(capsys):
    """Every first-party plugin has its row, with its help and its distribution's summary."""
    outcome = call(capsys, "plugins", "list", "--json")
    rows = {(r["kind"], r["name"]): r for r in json.loads(outcome.out)}
    assert outcome.code == 0
    keys = {"name", "kind", "help", "family", "distribution", "version", "summary", "duplicate"}
    assert all(set(r) == keys for r in rows.values())
    assert {name for (_, name), r in rows.items() if r["family"]} == {
        n for _, n in rows if "*" in n
    }
    for kind, name in {
        "format": "E7M0",
        "intervention": "partition-clip",
        "diagnostic": "ulp-stats",
        "reporter": "failure-report",
        "optimizer": "adamw",
        "workload": "gpt",
    }.items():
        row = rows[kind, name]
        assert row["distribution"] == f"altcore-{kind}s"
        assert row["version"] == version(f"altcore-{kind}s")
        assert row["summary"]
        assert row["duplicate"] is False


def test_plugins_list_is_grouped_by_kind(capsys):
    """The kinds in order, each with how a run names its plugins; below, each distribution."""
    listed = call(capsys, "plugins", "list").out
    heads = re.findall(
        r"^(\w+)s: altcore (?:train|sweep run FILE) --(\w+) NAME", listed, re.MULTILINE
    )
    assert [kind for kind, _ in heads] == list(KINDS)
    assert {flag for kind, flag in heads if kind in HOOK_KINDS} == {"plugin"}
    for kind in KINDS:
        of_kind = f"\n{listed}".partition(f"\n{kind}s: ")[2].partition("\n\n")[0]
        origin = f"altcore-{kind}s {version(f'altcore-{kind}s')}: "
        assert of_kind.splitlines()[1].startswith(origin)


def test_plugins_list_has_a_line_of_help_each(shelf, capsys):
    """From the README in the metadata; a family is marked, and comes after the formats."""
    distribution(shelf.folder, "acme-zed", {"format": {"ZED": "zed:ZED", "A*M": "zed:all"}}, "2.0")
    (metadata,) = shelf.folder.glob("acme_zed*/METADATA")
    metadata.write_text(f"{metadata.read_text()}\n| `ZED` | a [grid](x.md) |\n\n- `A*M`: all\n")
    forget_installed()
    listed = call(capsys, "plugins", "list", "--kind", "format").out
    (own,) = re.findall(r"^acme-zed 2\.0: .*\n((?:  .*\n)+)", listed, re.MULTILINE)
    assert own.splitlines() == ["  ZED  a grid", "  A*M  family: all"]


def test_plugins_list_breaks_help_on_a_terminal_only(shelf, capsys, monkeypatch):
    """Between words, with the names in a column of their own."""
    shelf.install("diagnostic", "mine", object, "acme-mine", "1")
    (metadata,) = shelf.folder.glob("acme_mine*/METADATA")
    metadata.write_text(f"{metadata.read_text()}\n| `mine` | {'measures ' * 20}|\n")
    forget_installed()
    plain = call(capsys, "plugins", "list", "--kind", "diagnostic").out
    assert f"  mine  {' '.join(['measures'] * 20)}\n" in plain
    monkeypatch.setattr("altcore.cli.terminal.columns", lambda: 80)
    wrapped = call(capsys, "plugins", "list", "--kind", "diagnostic").out
    assert max(map(len, wrapped.splitlines())) <= 80
    (own,) = re.findall(r"^  mine  (.*\n(?: {8}.*\n)+)", wrapped, re.MULTILINE)
    assert own.split() == ["measures"] * 20


def test_plugins_info_says_who_watches_the_forward_pass(capsys):
    assert "watch_forward" in call(capsys, "plugins", "info", "shadow").out


def test_plugins_list_of_one_kind(capsys):
    listed = call(capsys, "plugins", "list", "--kind", "workload").out
    assert re.findall(r"^(\w+)s: altcore train", listed, re.MULTILINE) == ["workload"]


def test_plugins_list_where_nothing_is_installed(capsys, monkeypatch):
    """It says what to install."""
    monkeypatch.setattr("altcore.cli.plugins.entries", tuple)
    assert "pip install altcore-formats " in call(capsys, "plugins", "list").out
    kind = call(capsys, "plugins", "list", "--kind", "reporter")
    assert kind.out.strip().endswith("pip install altcore-reporters")


def test_plugins_info_of_a_plugin(capsys):
    """Hooks, needs and every setting with type, default and help; the same with --json."""
    shown = call(capsys, "plugins", "info", "ulp-stats").out
    assert "diagnostic" in shown
    assert "post_step" in shown
    assert "weights_before, weights_proposed" in shown
    assert "interval (int, default 50): steps between measurements" in shown
    about = json.loads(call(capsys, "plugins", "info", "ulp-stats", "--json").out)
    assert about["hooks"] == ["post_step", "findings"]
    assert about["needs"] == ["weights_before", "weights_proposed"]
    assert about["settings"] == [
        {"name": "interval", "type": "int", "default": 50, "help": "steps between measurements"}
    ]


@pytest.mark.parametrize("name", ["gpt", "adamw", "mantissa-shift", "partition-clip", "progress"])
def test_plugins_info_of_every_kind(name, capsys):
    """Every setting of every first-party plugin has a help text."""
    about = json.loads(call(capsys, "plugins", "info", name, "--json").out)
    assert about["description"]
    assert about["settings"]
    assert all(s["help"] for s in about["settings"])


@pytest.mark.parametrize(
    ("name", "bits", "largest"), [("E7M0", 8, 2.0**64), ("BF16", 16, None), ("E2M3", 6, 7.5)]
)
def test_plugins_info_of_a_format(name, bits, largest, capsys):
    """A format shows its figures, one of a family too."""
    about = json.loads(call(capsys, "plugins", "info", name, "--json").out)
    assert about["name"] == name
    assert about["distribution"] == "altcore-formats"
    assert about["format"]["bits"] == bits
    assert largest in (None, about["format"]["largest"])
    assert f"bits          {bits}" in call(capsys, "plugins", "info", name).out


def test_plugins_check(capsys):
    """All that is installed here loads: exit code 0, a line each."""
    outcome = call(capsys, "plugins", "check")
    assert outcome.code == 0
    assert all(line.endswith(": ok") for line in outcome.out.splitlines())
    rows = json.loads(call(capsys, "plugins", "check", "--json").out)
    assert len(rows) == len(outcome.out.splitlines())
    assert {r["error"] for r in rows} == {None}


# ------------------------------------------------------------------------------------- runs


def test_runs_list(recorded, capsys):
    """Oldest first, with status, steps and validation loss; the same with --json."""
    rows = json.loads(call(capsys, "runs", "list", "--runs-dir", recorded, "--json").out)
    assert [r["name"] for r in rows] == ["first", "second", "third"]
    assert {r["status"] for r in rows} == {"finished"}
    assert {r["steps"] for r in rows} == {3}
    table = call(capsys, "runs", "list", "--runs-dir", recorded).out.splitlines()
    assert [line.split()[0] for line in table] == ["name", "first", "second", "third"]
    assert table[1].split()[1:5] == ["finished", *table[1].split()[2:4], "3"]
    assert f"  {rows[0]['best_val_loss']:.4f}  " in table[1]
    assert table[1].endswith(f"  {rows[0]['verdict']}")
    assert rows[0]["verdict"] in ("learned", "did not learn")


def test_runs_list_of_nothing(tmp_path, capsys):
    """A folder without runs, or none at all, is no error."""
    for folder, says in ((tmp_path, "no runs in"), (tmp_path / "no", "there is no folder")):
        outcome = call(capsys, "runs", "list", "--runs-dir", folder)
        assert (outcome.code, outcome.out) == (0, f"{says} {folder}\n")
        assert call(capsys, "runs", "list", "--runs-dir", folder, "--json").out == "[]\n"


def test_runs_show(recorded, capsys):
    """What the training printed at its end, from the record alone."""
    shown = call(capsys, "runs", "show", "third", "--runs-dir", recorded)
    assert shown.code == 0
    assert "E4M3, pure" in shown.out
    data = json.loads(call(capsys, "runs", "show", "third", "--runs-dir", recorded, "--json").out)
    assert data["name"] == "third"
    assert data["steps"] == 3
    written = json.loads((recorded / "third/summary.json").read_text())
    del written["records"], written["digest"]
    assert data == {**written, "directory": f"{recorded}/third"}
    assert data["verdict"] in shown.out


def test_runs_show_a_run_that_has_not_ended(recorded, tmp_path, capsys):
    """A run that is under way, or was killed, is shown as far as it got."""
    run_directory = tmp_path / "torn"
    run_directory.mkdir()
    (run_directory / "config.yaml").write_bytes((recorded / "first/config.yaml").read_bytes())
    metrics = (recorded / "first/metrics.jsonl").read_text().splitlines(keepends=True)
    (run_directory / "metrics.jsonl").write_text(metrics[0] + metrics[1] + metrics[2][:20])
    data = json.loads(call(capsys, "runs", "show", "torn", "--runs-dir", tmp_path, "--json").out)
    assert (data["status"], data["steps"]) == ("unfinished", 2)
    assert call(capsys, "runs", "show", "torn", "--runs-dir", tmp_path).code == 0
    assert "unfinished" in call(capsys, "runs", "list", "--runs-dir", tmp_path).out


# ------------------------------------------------------------------------------ the summary

SUMMARY = {
    "name": "x",
    "directory": "runs/x",
    "format": "E5M2",
    "recipe": "pure",
    "status": "finished",
    "steps": 7,
    "final_loss": 2.5,
    "val_loss": 2.25,
    "val_loss_float32": 2.125,
    "best_val_loss": 2.0,
    "stored_stall_rate": 0.25,
    "view_stall_rate": None,
    "overflow_rate": 0.0625,
    "flushed_rate": 0.125,
    "parameter_share": 0.9,
    "flop_share": 0.75,
    "shifts": [],
    "collapses": [],
    "reports": [],
    "verdict": "learned",
}


def told(**changes):
    """Return the summary's lines by name."""
    return dict(lines(Summary(**{**SUMMARY, **changes}).to_plain()))


def test_the_summary_says_everything():
    """Steps, losses, stall, overflow, flush, the shares quantized, format shifts and reports."""
    text = told()
    assert text["steps"] == "7"
    assert text["verdict"] == "learned"
    assert text["final training loss"] == "2.5000"
    assert "2.2500 (best 2.0000; " in text["validation loss"]
    assert "2.1250" in text["validation loss"]
    assert text["stalled stored weights"] == "25.0 %"
    assert text["stalled views of weights"] == "no view"
    assert text["overflow"] == "6.2 %"
    assert text["flushed to zero"] == "12.5 %"
    assert text["quantized"] == "90.0 % of parameters, 75.0 % of FLOPs"
    assert text["format shifts"] == "none"
    assert text["reports"] == "none; the record is runs/x"


def test_the_summary_never_shows_0_for_what_was_not_measured():
    """Not available, or why it cannot be."""
    text = told(overflow_rate=None, flushed_rate=None, val_loss=None, flop_share=None)
    assert text["overflow"] == "n/a (amax scaling)"
    assert text["flushed to zero"] == "not available"
    assert text["validation loss"].startswith("not available")
    assert "not available of FLOPs" in text["quantized"]


def test_the_summary_of_an_unquantized_run():
    """Stall and overflow do not exist there."""
    text = told(parameter_share=0.0, flop_share=0.0)
    assert not {"overflow", "stalled stored weights", "flushed to zero"} & set(text)
    assert text["quantized"] == "0.0 % of parameters, 0.0 % of FLOPs"


def test_the_summary_of_a_run_that_broke():
    """Collapse, shift, report and disabled plugins are told."""
    shift = {"from": ["E7M0"], "to": ["E5M2"], "step": 4, "reason": "3 non-finite steps"}
    text = told(
        status="collapsed",
        collapses=[{"step": 5, "cause": "nan_patience", "reason": "10 steps were not finite"}],
        shifts=[shift, {**shift, "to": []}],
        reports=["reports/failure.md"],
        degraded=["ulp-stats"],
    )
    assert text["status"] == "collapsed; collapse at step 5: 10 steps were not finite"
    assert text["format shifts"].startswith("E7M0 -> E5M2 at step 4 (3 non-finite steps); ")
    assert "E7M0 -> none" in text["format shifts"]
    assert text["reports"] == "runs/x/reports/failure.md"
    assert "ulp-stats" in text["degraded"]


# ----------------------------------------------------------------------------------- train


def test_training_as_a_process(tmp_path, corpus):
    """The command trains, prints the summary, and leaves a run that `runs` finds."""
    outcome = run(
        *("train", "--format", "E3M4", "--recipe", "pure", "--plugin", "ulp-stats", *TINY),
        *("--set", "ulp-stats.interval=1", "--steps", "3", "--data", corpus, "--name", "mine"),
        cwd=tmp_path,
    )
    assert outcome.code == 0, outcome.err
    assert "Traceback" not in outcome.err
    for name in (
        "steps",
        "final training loss",
        "validation loss",
        "stalled stored weights",
        "overflow",
        "flushed to zero",
        "quantized",
        "format shifts",
        "reports",
    ):
        assert f"\n{name} " in outcome.out
    assert (tmp_path / "runs/mine/config.yaml").is_file()
    assert "ulp-stats/stored_mean" in (tmp_path / "runs/mine/metrics.jsonl").read_text()


def test_names_are_made_of_format_and_recipe(tmp_path, corpus, capsys, monkeypatch):
    """Without --name each run gets a directory of its own."""
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        outcome = call(
            *(capsys, "train", "--format", "E4M3", *TINY, "--data", corpus),
            *("--steps", "1", "--no-plugin", "progress"),
        )
        assert outcome.code == 0, outcome.err
    assert sorted(p.name for p in Path("runs").iterdir()) == ["e4m3-master", "e4m3-master-2"]


def test_resuming(tmp_path, corpus, capsys, monkeypatch):
    """--resume goes on with the run's own configuration to a larger number of steps."""
    monkeypatch.chdir(tmp_path)
    call(capsys, "train", *TINY, "--data", corpus, "--steps", "2", "--name", "mine")
    outcome = call(capsys, "train", "--resume", "mine", "--steps", "4")
    assert outcome.code == 0, outcome.err
    assert "\nsteps                        4\n" in outcome.out
    assert [p.name for p in Path("runs").iterdir()] == ["mine"]


def test_epochs_from_the_command(tmp_path, capsys, monkeypatch):
    """Counted before the run, with validations in them; and resumed to more."""
    monkeypatch.chdir(tmp_path)
    own = {"data": "generated", "image_size": 16, "width_mult": 0.125, "batch_size": 80}
    sets = {"epochs": 0.5, "evals_per_epoch": 4, **{f"resnet18-cifar.{k}": own[k] for k in own}}
    given = [x for key, value in sets.items() for x in ("--set", f"{key}={value}")]
    outcome = call(capsys, "train", "--workload", "resnet18-cifar", *given, "--name", "mine")
    assert outcome.code == 0, outcome.err
    assert "\nsteps                        2 (0.5 epochs)\n" in outcome.out
    assert re.search(r"\nvalidation accuracy +0\.\d{4} \(at the best 0\.\d{4}\)\n", outcome.out)
    outcome = call(capsys, "train", "--resume", "mine", "--set", "epochs=1")
    assert outcome.code == 0, outcome.err
    lines = read_lines(Path("runs/mine/metrics.jsonl"))
    assert [x["epoch"] for x in lines if "val_accuracy" in x] == [0.25, 0.5, 0.75, 1.0]


def test_a_collapse_is_a_result(tmp_path, corpus, capsys, monkeypatch):
    """Exit code 0, the collapse in the summary, and the failure report named there."""
    monkeypatch.chdir(tmp_path)
    outcome = call(
        *(capsys, "train", "--format", "E4M3", *TINY, "--data", corpus, "--steps", "9"),
        *("--set", "learning_rate=1e38", "--set", "nan_patience=2"),
    )
    assert outcome.code == 0, outcome.err
    assert "collapsed; collapse at step" in outcome.out
    assert "nan_patience 2" in outcome.out
    assert "reports/failure.md" in outcome.out
    assert Path("runs/e4m3-master/reports/failure.md").is_file()


def test_an_observer_that_is_not_installed_is_left_out(tmp_path, corpus, capsys, monkeypatch):
    """One line says so, and the run goes on; left out on purpose, nothing is said."""
    from altcore import registry
    from altcore.config import loading

    real = registry.entries()
    kept = tuple(e for e in real if e.name != "failure-report")
    monkeypatch.setattr(loading, "entries", lambda: kept)
    monkeypatch.chdir(tmp_path)
    arguments = ["train", *TINY, "--data", corpus, "--steps", "1", "--no-plugin", "progress"]
    outcome = call(capsys, *arguments)
    assert outcome.code == 0
    assert outcome.err == "altcore: the observer failure-report is not installed and left out\n"
    assert call(capsys, *arguments, "--no-plugin", "failure-report").err == ""


# ------------------------------------------------------------------------------- exit codes


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (BadInput("no"), 2),
        (PluginError("broken"), 1),
        (NoSpace("full"), 3),
        (Interrupted("SIGUSR1: left", signal.SIGUSR1), 138),
        (Interrupted("SIGTERM: left", signal.SIGTERM), 143),
        (KeyboardInterrupt(), 130),
        (ZeroDivisionError("a bug"), 1),
    ],
)
def test_an_error_ends_with_its_exit_code(error, code, capsys, monkeypatch):
    """One line each; every code is in the published table."""

    def fail(*_):
        raise error

    monkeypatch.setattr("altcore.cli.plugins.entries", fail)
    outcome = call(capsys, "plugins", "list")
    assert outcome.code == code
    assert code in EXIT_CODES
    # After ^C click begins a line of its own.
    assert outcome.err.lstrip("\n").count("\n") == 1
    assert outcome.message.startswith("altcore: ")
    assert "Traceback" in call(capsys, "plugins", "list", "--debug").err


def test_a_bug_says_where_its_traceback_is(capsys, monkeypatch):
    """What is not an error that altcore raises on purpose is named, with the way to more."""
    monkeypatch.setattr("altcore.cli.plugins.entries", lambda: 1 / 0)
    outcome = call(capsys, "plugins", "list")
    assert outcome.code == 1
    assert "ZeroDivisionError: division by zero (--debug shows the traceback)" in outcome.err


def test_a_lack_of_memory_anywhere_says_where(capsys, monkeypatch):
    """Python's own error has no text."""

    def exhaust():
        raise MemoryError

    monkeypatch.setattr("altcore.cli.plugins.entries", exhaust)
    outcome = call(capsys, "plugins", "list")
    assert outcome.code == 1
    assert re.search(r"out of memory in .*test_cli.py, line \d+ \(--debug", outcome.err)


def test_an_intervention_that_breaks_ends_with_1(shelf, tmp_path, corpus, capsys, monkeypatch):
    """It can change numbers, so the run stops; named with distribution, version and hook."""
    from attrs import define

    from altcore import hookimpl

    @define(eq=False)
    class Breaks:
        @hookimpl
        def pre_step(self, run, step):
            raise OSError("two\nlines")

    shelf.install("intervention", "breaks", Breaks)
    monkeypatch.chdir(tmp_path)
    outcome = call(
        *(capsys, "train", *TINY, "--data", corpus, "--steps", "2", "--plugin", "breaks"),
        *("--no-plugin", "progress"),
    )
    assert outcome.code == 1
    expected = "intervention breaks (acme-breaks 1.2.3) failed in pre_step: OSError: two lines"
    assert outcome.message == f"altcore: {expected}"


@pytest.mark.parametrize("what", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
@pytest.mark.slow
def test_a_signal_leaves_after_a_checkpoint(what, tmp_path, corpus):
    """The exit code says which signal it was, and the run can be resumed."""
    command = [sys.executable, "-m", "altcore", "train", *TINY, "--data", str(corpus)]
    command += ["--steps", "100000", "--name", "mine"]
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        metrics = tmp_path / "runs/mine/metrics.jsonl"
        deadline = time.monotonic() + 60
        while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(what)
        process.communicate(timeout=60)
    assert process.returncode == 128 + what
    assert process.returncode in EXIT_CODES
    assert list((tmp_path / "runs/mine/checkpoints").glob("step-*"))


# ------------------------------------------------------------------------------------- help


def test_every_command_has_help(capsys):
    """Each command and option says what it is for; -h is --help."""
    assert call(capsys, "-h").out == call(capsys, "--help").out
    assert set(cli.list_commands(None)) == set(COMMANDS)
    for name in COMMANDS:
        command = cli.get_command(None, name)
        for part in (command, *getattr(command, "commands", {}).values()):
            assert part.help, part.name
            options = [o for o in part.params if isinstance(o, click.Option)]
            assert all(o.help for o in options), part.name
        assert COMMANDS[name][1] == command.help.splitlines()[0]


def test_no_arguments_show_the_help(capsys):
    """A command without arguments is not a run of its own."""
    assert "Commands:" in call(capsys).err
    assert call(capsys).code == 2


def test_version(capsys):
    """The version of the distribution."""
    assert version("altcore") in call(capsys, "--version").out


def test_a_reader_that_leaves_is_no_error(tmp_path):
    """`altcore plugins list | head -1` prints no complaint."""
    command = f"{sys.executable} -m altcore plugins list --json | head -c 10"
    done = subprocess.run(
        command, shell=True, cwd=tmp_path, env=environment(), capture_output=True, check=True
    )
    assert done.stderr == b""


def test_a_folder_that_is_gone_is_named(tmp_path, monkeypatch, capsys):
    """Whatever the command: torch's libraries would end the process without a word of it."""
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    done = call(capsys, "plugins", "list")
    assert done.code == 2
    assert "the current folder is gone" in done.err
