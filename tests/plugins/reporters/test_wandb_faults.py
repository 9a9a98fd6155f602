"""W&B fails, hangs or lies, or is not there at all: the run is none the worse."""

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import events, metrics_bytes, weights_sha256
from helpers_wandb import ENTITY, WandbServer, client_of, upload_alone

from altcore.plugin import read_run
from altcore_reporters import wandb_tracker
from altcore_reporters.wandb_tracker import WandbTracker

TIMEOUT = 15.0
"""Seconds: long enough that the client gets to ask something on a busy machine."""
SLACK = 60.0
"""Seconds that such a machine has for the rest; a hang has no end."""


@pytest.fixture
def server(tmp_path):
    with WandbServer() as server, client_of(server, tmp_path / "client"):
        yield server


@pytest.fixture
def tracked(start):
    """Return a function that trains with and without the tracker, and compares the two."""

    def both(**keys):
        keys = {"wandb__entity": ENTITY, "wandb__finish_timeout": TIMEOUT, **keys}
        start(name="plain", max_steps=3)
        began = time.monotonic()
        result = start(["wandb"], name="tracked", max_steps=3, **keys)
        assert metrics_bytes(start.runs / "plain") == metrics_bytes(start.runs / "tracked")
        assert weights_sha256(start.runs / "plain") == weights_sha256(start.runs / "tracked")
        assert result.summary["status"] == "finished"
        return result.summary, start.runs / "tracked", time.monotonic() - began

    return both


def clients_of(folder: Path) -> list[str]:
    """Return the commands of processes that keep the client's files in a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if str(folder).encode() in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["refused", "closed", "500", "malformed", "hang"])
def test_a_server_that_is_broken(tracked, server, fault, capsys, monkeypatch, tmp_path):
    """Weights are the same, the end comes in time, one line says so, and no process stays."""
    server.fault = fault
    if fault == "refused":
        monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    summary, run, seconds = tracked()
    assert summary["degraded"] == ["wandb"]
    assert seconds < TIMEOUT + SLACK
    assert server.failed or fault == "refused"
    told = capsys.readouterr()
    lines = [line for line in (told.out + told.err).splitlines() if "wandb" in line]
    assert len(lines) == 1
    assert "altcore runs upload tracked --to wandb" in lines[0]
    assert len(events(run, "degraded")) == 1
    wait_until_gone(tmp_path / "client")


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["closed", "500", "malformed", "hang"])
def test_a_server_that_breaks_while_it_listens(tracked, server, fault, tmp_path):
    """What W&B did not get is sent later, and nothing twice.

    The client takes any answer of a server for success if its status is 200.
    """

    def break_down(operation):
        server.fault = fault if operation == "CreateRunFiles" else server.fault

    server.on_asked_cache = break_down
    summary, run, _ = tracked(wandb__finish_timeout=20.0)
    assert summary["degraded"] == ["wandb"] or fault == "malformed"
    wait_until_gone(tmp_path / "client")
    server.fault, server.on_asked_cache = None, None
    assert upload_alone(run).startswith("tracked: sent ")
    (kept,) = server.runs.values()
    steps = [row["step"] for row in kept.history if "loss" in row]
    assert steps == [1, 2, 3]
    assert kept.summary["final_loss"] == read_run(run).summary["final_loss"]


@pytest.mark.parametrize("problem", [None, "error", "hang"])
def test_an_upload_that_failed_closes_the_client(problem, monkeypatch):
    """Whatever that raises, and however long it takes: its process is ended then."""
    ended, may_end = [], threading.Event()

    class Client:
        def finish(self, exit_code):
            ended.append(exit_code)
            if problem == "error":
                raise ConnectionError("no answer")
            if problem == "hang":
                may_end.wait()

    monkeypatch.setattr(wandb_tracker, "_kill_client", lambda: ended.append("killed"))
    tracker = WandbTracker(finish_timeout=0.1)
    tracker.abandon()  # before there is a client
    tracker._wandb = Client()
    tracker.abandon()
    may_end.set()
    assert ended == ([1, "killed"] if problem == "hang" else [1])


def test_a_killed_client_does_not_end_the_process(monkeypatch):
    """Wandb leaves with its client's exit code, which would take the place of the error."""
    killed = []

    def leave(code):
        raise SystemExit(-9)

    process = SimpleNamespace(kill=lambda: killed.append(True))
    service = SimpleNamespace(_proc=SimpleNamespace(_process=process))
    monkeypatch.setattr("wandb.setup", lambda: SimpleNamespace(ensure_service=lambda: service))
    monkeypatch.setattr("wandb.teardown", leave)
    wandb_tracker._kill_client()
    assert killed


@pytest.mark.slow
@pytest.mark.parametrize("fault", [None, "hang"])
def test_a_process_whose_upload_failed_ends(start, server, fault):
    """In time, also if the server does not answer any more, and with its own error only."""
    run = start(name="r", max_steps=3).run_directory

    def break_down(operation):
        server.fault = fault if operation == "UpsertBucket" and server.runs else server.fault

    server.on_asked_cache = break_down
    code = (
        "import sys; from pathlib import Path; from altcore.plugin import read_run;"
        "from altcore_reporters.wandb_tracker import WandbTracker;"
        "WandbTracker.finish = None;"
        "tracker = WandbTracker(finish_timeout=2.0); tracker.name = 'wandb';"
        "tracker.upload([read_run(Path(sys.argv[1]))])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(run)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "TypeError: 'NoneType' object is not callable"
    assert done.stderr.count("Traceback") == 1


@pytest.mark.slow
def test_without_a_key_everything_is_kept_for_later(tracked, server, monkeypatch, start):
    """One offline run holds all, also after a resume; `wandb sync` sends it."""
    key = server.environment["WANDB_API_KEY"]
    monkeypatch.delenv("WANDB_API_KEY")
    summary, run, _ = tracked(wandb__finish_timeout=60.0)
    assert summary["degraded"] == []
    assert server.asked == []
    start.resume("tracked", max_steps=5)
    (kept,) = (run / "reports/wandb").glob("offline-run-*")
    monkeypatch.setenv("WANDB_API_KEY", key)
    # It logs into the working directory.
    subprocess.run([sys.executable, "-m", "wandb", "sync", str(kept)], check=True, cwd=run)
    (sent,) = server.runs.values()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in sent.history if "reports/curves" not in row]
    assert [row["step"] for row in rows] == [line["step"] for line in lines]
    assert sent.summary["final_loss"] == read_run(run).summary["final_loss"]


def wait_until_gone(folder):
    """Wait for the client's own process, which ends when it finds itself alone."""
    end = time.monotonic() + SLACK
    while found := clients_of(folder):
        assert time.monotonic() < end, found
        time.sleep(0.2)
