"""A record that other code harms while the run writes it."""

import os
import shutil
from pathlib import Path

import pytest
from attrs import define
from helpers import events, metrics_bytes, weights_sha256
from helpers_plugins import acting

from altcore import hookimpl
from altcore.errors import AltcoreError
from altcore.runs import altered, read_lines, summary_of


def close(path):
    """Close the descriptor of a file of this process."""
    for entry in Path("/proc/self/fd").iterdir():
        if entry.exists() and entry.readlink() == path:
            os.close(int(entry.name))


def redirect(path):
    """Let it lead to another file."""
    other = os.open(path.with_name("victim.txt"), os.O_WRONLY | os.O_CREAT)
    for entry in Path("/proc/self/fd").iterdir():
        if entry.exists() and entry.readlink() == path:
            os.dup2(other, int(entry.name))
    os.close(other)


def cut(path):
    """Cut a file."""
    os.truncate(path, 10)


def swap(path):
    """Replace a file by a copy."""
    shutil.copy(path, path.with_name("copy"))
    path.with_name("copy").replace(path)


@pytest.mark.parametrize("log", ["metrics.jsonl", "events.jsonl"])
@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (cut, r"has \d+ bytes, not the "),
        (close, "was closed by other code"),
        (redirect, "was closed by other code"),
    ],
)
def test_a_record_that_is_harmed_is_an_error_that_loses_no_state(shelf, start, log, harm, told):
    """It names the file; the end is in the events; the run goes on from there."""
    left = [harm]
    acting(shelf, lambda path: left and left.pop()(path / log))
    with pytest.raises(AltcoreError, match=rf"record is damaged: .*/{log} {told}"):
        start(["acts"], name="r", max_steps=6, checkpoint_interval=2)
    run = start.runs / "r"
    assert not (run / "victim.txt").exists() or (run / "victim.txt").read_bytes() == b""
    assert events(run, "end")[0]["status"] == "failed"
    start.resume("r")
    plain = start(name="plain", max_steps=6)
    assert weights_sha256(run) == weights_sha256(plain.run_directory)
    if harm == cut:  # the lines of a file that was closed are all there
        assert f"{log} changed after step" in summary_of(run)["verdict"]
        told = [e["message"] for e in events(run, "warning")]
        assert any(x.startswith(f"{log}: lines were changed or lost") for x in told)


def swap_torn(path):
    """Replace a file by another one, as an editor that read half of it."""
    path.with_name("copy").write_text("{}\nha")
    path.with_name("copy").replace(path)


def pipe(path):
    """Replace a file by a pipe, for which a writer would wait."""
    path.unlink()
    os.mkfifo(path)


def folder(path):
    """Replace a file by a folder."""
    path.unlink()
    path.mkdir()


HARMS = {
    "removed": Path.unlink,
    "replaced by a copy": swap,
    "replaced by a part": swap_torn,
    "replaced by a pipe": pipe,
    "replaced by a folder": folder,
}


@pytest.mark.parametrize("log", ["metrics.jsonl", "timings.jsonl", "events.jsonl"])
@pytest.mark.parametrize("harm", HARMS)
def test_a_record_that_is_removed_or_replaced_is_put_back(shelf, start, log, harm):
    """The open file has all its lines still: none is lost, and the run goes on."""
    acting(shelf, lambda path: HARMS[harm](path / log))
    run = start(["acts"], name="r", max_steps=6, checkpoint_interval=2).run_directory
    plain = start(name="plain", max_steps=6, checkpoint_interval=2).run_directory
    mine, its = (read_lines(path / "metrics.jsonl") for path in (run, plain))
    assert [(x["step"], x.get("loss")) for x in mine] == [(x["step"], x.get("loss")) for x in its]
    assert len(read_lines(run / "timings.jsonl")) == 6
    assert [e["step"] for e in events(run, "start")] == [0]
    (told,) = (e for e in events(run, "warning") if "while the run wrote" in e["message"])
    assert told["step"] == 4
    assert told["message"].startswith(f"{run / log} was {harm.split()[0]} while the run wrote")
    assert (run / f"{log}.damaged").exists() == (harm != "removed")
    assert altered(run) == {}


@pytest.mark.parametrize("log", ["metrics.jsonl", "events.jsonl"])
def test_a_run_that_fails_puts_its_record_back(start, log):
    """It comes to no checkpoint any more, at which it would look."""
    engine = start.engine(name="r", max_steps=6, checkpoint_interval=100)
    run = start.runs / "r"

    def forward(*_):
        if engine.run.step == 2:
            (run / log).unlink()
        if engine.run.step == 3:
            raise ValueError("broken")

    engine.run.model.register_forward_hook(forward)
    with pytest.raises(AltcoreError, match="broken"):
        engine.train()
    assert [line["step"] for line in read_lines(run / "metrics.jsonl")] == [1, 2]
    assert any("is written again" in e["message"] for e in events(run, "warning"))
    assert [e["step"] for e in (*events(run, "start"), *events(run, "end"))] == [0, 3]
    assert altered(run) == {}


@pytest.mark.parametrize("log", ["metrics.jsonl", "timings.jsonl", "events.jsonl"])
@pytest.mark.parametrize("hook", ["post_step", "on_event"])
def test_a_record_that_is_closed_costs_no_step(shelf, start, log, hook):
    """Whenever that is: the run ends with an error after its next checkpoint, however late."""
    left = [log]

    def act(run, called):
        if called == hook and run.step == 2 and left:
            close(run.directory / left.pop())

    @define(eq=False)
    class Bad:
        @hookimpl
        def post_step(self, run, step):
            act(run, "post_step")
            if step.index == 2 and hook == "on_event":
                run.emit("woken")

        @hookimpl
        def on_event(self, run):
            act(run, "on_event")

    shelf.install("diagnostic", "bad", Bad)
    told = rf"/{log} was closed by other code in this process, in {hook} of diagnostic bad"
    keys = {"max_steps": 5, "checkpoint_interval": 100, "eval_interval": 0}
    with pytest.raises(AltcoreError, match=rf"{told}.*; the state after step 5 is saved"):
        start(["bad"], name="r", **keys)
    run, plain = start.runs / "r", start(name="plain", **keys).run_directory
    assert events(run, "end")[-1]["status"] == "failed"
    assert len(read_lines(run / "metrics.jsonl")) == 5
    assert weights_sha256(run) == weights_sha256(plain)
    assert start.resume("r").summary["status"] == "finished"
    assert metrics_bytes(run) == metrics_bytes(plain)


def append(path):
    """Append a line, as somebody who takes the file for their own."""
    with path.open("a") as file:
        file.write('{"step": 1, "mine": 0}\n')


@pytest.mark.parametrize("harm", [append, cut])
@pytest.mark.parametrize("is_plugin", [True, False])
def test_who_writes_into_the_record_is_named_if_it_is_a_plugin(shelf, start, harm, is_plugin):
    """Not the next plugin that is called after somebody else did."""
    run, left = start.runs / "r", [harm]

    def act(path):
        if is_plugin:
            left and left.pop()(path / "metrics.jsonl")

    acting(shelf, act)

    @define(eq=False)
    class Watching:
        @hookimpl
        def post_step(self, run, step):
            pass

    shelf.install("diagnostic", "watching", Watching)
    engine = start.engine(["acts", "watching"], name="r", max_steps=6, checkpoint_interval=2)

    def forward(*_):
        if not is_plugin and engine.run.step == 1 and left:
            left.pop()(run / "metrics.jsonl")

    engine.run.model.register_forward_hook(forward)
    told = r"metrics\.jsonl has \d+ bytes, not the \d+ written"
    by = r", in pre_step of intervention acts \(.*\)" if is_plugin else ""
    with pytest.raises(AltcoreError, match=rf"{told}{by}(;|$)"):
        engine.train()


def test_a_file_that_is_only_touched_or_copied_back_is_left_alone(shelf, start):
    """What it holds counts."""
    acting(shelf, lambda path: (path / "config.yaml").touch() or swap(path / "environment.json"))
    run = start(["acts"], name="r", max_steps=4, checkpoint_interval=2).run_directory
    assert not [e for e in events(run, "warning") if "was changed" in e["message"]]
    assert not [*run.glob("*.damaged")]
