"""Runs in W&B, read by its real client from a server on loopback."""

import math
import re

import pytest
import wandb
from helpers_cli import call
from helpers_records import put
from helpers_wandb import WandbServer, client_of

from altcore import BadInput
from altcore_reporters.wandb_runs import STATUSES, read_runs

OWN = {"recipe": "pure", "workload": "gpt", "optimizer": "adamw", "format": "E5M2", "seed": 3}
ROWS = [
    {"step": 0, "val_loss": 5.5},
    {"step": 1, "loss": 5, "grad_norm": "Infinity", "step_time_ms": 2.5},
    {"step": 2, "loss": "NaN", "m/h.0": {"_type": "histogram", "values": [1, 2], "bins": [0, 1]}},
    {"step": 2, "format_shift": True, "new_format": "E5M2"},
    {"step": 2, "val_loss": 4.5},
]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """One for all tests: what they put there has names of its own."""
    with WandbServer() as server, client_of(server, tmp_path_factory.mktemp("client")):
        yield server


def test_a_run_of_altcores(server):
    """Its parts are as in its directory."""
    summary = {
        "status": "collapsed",
        "format": "E5M2",
        "steps": 2,
        "final_loss": 5,
        "val_loss": 4.5,
        "collapses": [{"step": 2, "cause": "nan_patience", "reason": "three in a row"}],
        "shifts": [{"step": 1, "plugin": "p", "from": ["E3M4"], "to": ["E5M2"], "reason": ""}],
        # Metrics, and W&B's own.
        "loss": math.nan,
        "_step": 4,
        "_runtime": 3.5,
        "error": None,
    }
    config = {**OWN, "settings": {"gpt": {"n_layer": 1}}, "environment": {"run_id": "0f"}}
    config["manifold_aware"] = False
    files = {
        "events.jsonl": '{"step": 2, "event": "collapse", "loss": "nan", "reason": "nan"}\n',
        "reports/b.md": "# b",
        "reports/a.md": "# a",
        "reports/a.html": "a",
        "media/reports/x.md": "",
    }
    put(server, "own", config=config, summary=summary, rows=ROWS, files=files)
    (record,) = read_runs("somebody/altgrad", ["own"])
    assert (record.name, record.source) == ("own", "wandb:somebody/altgrad/id-own")
    assert record.directory is None
    assert record.url == f"{server.url}/somebody/altgrad/runs/id-own"
    assert record.config == {**OWN, "settings": {"gpt": {"n_layer": 1}}}
    assert record.environment == {"run_id": "0f"}
    assert record.summary["final_loss"] == 5
    assert (record.summary["name"], record.summary["status"]) == ("own", "collapsed")
    assert (record.summary["findings"], record.summary["degraded"]) == ({}, [])
    assert "loss" not in record.summary
    assert (record.summary["val_loss_float32"], record.summary["flushed_rate"]) == (None, None)
    assert [(line["step"], line["loss"]) for line in record.steps][:1] == [(1, 5)]
    assert math.isnan(record.steps[1]["loss"])
    assert record.steps[0]["grad_norm"] == math.inf
    assert record.steps[1]["m/h.0"] == [1, 2]
    assert record.evaluations == [{"step": 0, "val_loss": 5.5}, {"step": 2, "val_loss": 4.5}]
    assert record.timings == [{"step": 1, "step_time_ms": 2.5}]
    assert "step_time_ms" not in record.steps[0]
    (collapse,) = record.events
    assert math.isnan(collapse["loss"])
    assert (collapse["step"], collapse["reason"]) == (2, "nan")
    assert list(record.reports.items()) == [("reports/a.md", "# a"), ("reports/b.md", "# b")]


def test_what_was_logged_again_counts_once(server):
    """After a resume: the last of a step's lines is its line."""
    rows = [{"step": 1, "loss": 5.0}, {"step": 2, "loss": 4.0}, {"step": 2, "loss": 3.0}]
    put(server, "again", config=OWN, rows=rows)
    (record,) = read_runs("altgrad", ["again"])
    assert [(line["step"], line["loss"]) for line in record.steps] == [(1, 5.0), (2, 3.0)]


def test_what_a_resume_cut_off_is_left_out(server):
    """W&B keeps it, and the run ended at an earlier step; a new evaluation is at its step."""
    rows = [{"step": step, "loss": 5.0, "step_time_ms": 1.0} for step in (1, 2, 3, 4)]
    rows += [{"step": 4, "val_loss": 6.0}, {"step": 1, "val_loss": 5.5}]
    ended = {"status": "interrupted", "steps": 3}
    put(server, "cut", config=OWN, summary=ended, rows=rows)
    put(server, "cut-going", config=OWN, summary=ended, rows=rows, state="running")
    found = {record.name: record for record in read_runs("altgrad", ["cut", "cut-going"])}
    record = found["cut"]
    assert [line["step"] for line in record.metrics] == [1, 1, 2, 3]
    assert [line["step"] for line in record.timings] == [1, 2, 3]
    assert record.evaluations == [{"step": 1, "val_loss": 5.5}]
    assert found["cut-going"].summary["steps"] == 4


def test_a_run_that_goes_on(server):
    """W&B's summary holds the last metrics and an earlier end then: none is taken for its own."""
    summary = {"loss": 4.0, "val_loss": 4.5, "step_time_ms": 3.0, "status": "interrupted"}
    environment = {"run_id": "0f", "first_formats": ["E5M2"]}
    config = {**OWN, "environment": environment, "learning_rate": 1}
    put(server, "going", config=config, summary=summary, rows=ROWS, state="running")
    (record,) = read_runs("altgrad", ["going"])
    found = {k: v for k, v in record.summary.items() if v}
    about = {"format": "E5M2", "recipe": "pure", "workload": "gpt", "optimizer": "adamw"}
    facts = {**about, "seed": 3, "first_formats": ["E5M2"], "run_id": "0f"}
    assert found == {**facts, "name": "going", "status": "unfinished", "steps": 2}
    assert (record.events, record.reports) == ([], {})


def test_a_killed_run_is_not_collapsed(server):
    """W&B calls it crashed, for it went away without a word."""
    put(server, "killed", config={**OWN, "format": "none"}, rows=ROWS, state="failed")
    (record,) = read_runs("altgrad", ["killed"])
    assert record.summary["status"] == "unfinished"
    assert record.summary["format"] is None


def test_a_run_of_the_original_experiments(server):
    """Its own names are kept, and altcore's are beside them."""
    config = {"fp8_format": "E3M4", "use_fp8": True, "use_manifold_aware": True, "seed": 7}
    rates = {"quantization/bit_stall_rate": 0.75, "quantization/overflow_rate": 0.125}
    rows = [{"loss": 5.0}, {"loss": 3.0, **rates}, {"train/loss": 4.0}, {"lr": 1.0}]
    put(server, "old", config=config, summary={"loss": 4.0, "_step": 2, **rates}, rows=rows)
    (record,) = read_runs("altgrad", ["old"])
    known = {k: v for k, v in record.summary.items() if v not in (None, [], {})}
    assert known == {
        "name": "old",
        "directory": "",
        "verdict": "",
        "status": "finished",
        "format": "E3M4",
        "optimizer": "manifold-adamw",
        "seed": 7,
        "steps": 2,
        "final_loss": 4.0,
        "best_loss": 3.0,
        "bit_stall_of": "view",
        "bit_stall_final": 0.75,
        "overflow_final": 0.125,
    }
    assert record.environment == {"run_id": "id-old"}
    assert record.config == config
    assert [line["loss"] for line in record.steps] == [5.0, 3.0, 4.0]
    assert [line["step"] for line in record.steps] == [0, 1, 2]
    assert record.steps[1] == {
        "step": 1,
        "loss": 3.0,
        "view_stall_rate": 0.75,
        "overflow_rate": 0.125,
        **rates,
    }


def test_what_an_original_run_does_not_tell_is_not_known(server):
    """A run without quantization has no format; nan is no loss; and nothing is 0."""
    config = {"fp8_format": "E5M2", "use_fp8": False}
    put(server, "bare", config=config, summary={"loss": "NaN"}, state="failed")
    (record,) = read_runs("altgrad", ["bare"])
    keys = ("format", "optimizer", "final_loss", "best_loss", "bit_stall_final", "seed")
    assert [record.summary[k] for k in keys] == [None] * 6
    assert record.summary["status"] == "failed"
    assert record.metrics == []


def test_the_states_of_an_original_run():
    """What W&B calls crashed is what the original experiments called a collapse."""
    assert (STATUSES["crashed"], STATUSES["killed"]) == ("collapsed", "interrupted")


def test_all_runs_of_a_project(server):
    """In W&B's order, by pages; a name or an id chooses some."""
    for i in range(60):
        put(server, f"r{i}", project="many", config=OWN)
    assert [r.name for r in read_runs("somebody/many")] == [f"r{i}" for i in range(60)]
    assert [r.name for r in read_runs("many", ["r7", "id-r5"])] == ["r5", "r7"]


@pytest.mark.parametrize(
    ("address", "names", "says"),
    [
        ("many", ["r-7"], r"there is no run 'r-7' in W&B's many \(did you mean r7\?\)"),
        ("nobodys/nothing", [], "nobodys/nothing cannot be read from W&B: .*nothing"),
        ("", [], "'' is not PROJECT or ENTITY/PROJECT"),
        ("a/b/c", [], "'a/b/c' is not PROJECT or ENTITY/PROJECT"),
        ("/b", [], "'/b' is not PROJECT or ENTITY/PROJECT"),
    ],
)
def test_what_is_not_there_is_said(server, address, names, says):
    """With the nearest name."""
    put(server, "r7", project="many", config=OWN)
    with pytest.raises(BadInput, match=says):
        read_runs(address, names)


@pytest.mark.parametrize("fault", ["500", "malformed", "hang"])
def test_a_server_that_is_broken(server, fault, monkeypatch):
    """The error is the user's, in one line, and names what was read, and a server that is silent.

    The client asks again until its patience ends.
    """
    put(server, "r7", project="many", config=OWN)
    (record,) = read_runs("many", ["r7"])
    monkeypatch.setattr(server, "fault", fault)
    monkeypatch.setattr(wandb.Api, "_HTTP_TIMEOUT", 0.2)
    monkeypatch.setattr(record.there._service_api, "_timeout", 0.2)
    says = "" if fault == "malformed" else f"{server.url} did not answer in time"
    with pytest.raises(BadInput, match=f"many cannot be read from W&B: {says}") as told:
        read_runs("many")
    assert "\n" not in str(told.value)
    about = f"wandb:somebody/many/id-r7 cannot be read from W&B: {says}"
    for part in ("metrics", "events"):
        with pytest.raises(BadInput, match=about):
            getattr(record, part)


def test_no_key_is_said(monkeypatch):
    """In W&B's own words."""

    def refuse():
        raise wandb.errors.UsageError("No API key configured.\nUse `wandb login`.")

    monkeypatch.setattr(wandb, "Api", refuse)
    says = "altgrad cannot be read from W&B: No API key configured. Use `wandb login`."
    with pytest.raises(BadInput, match=f"^{re.escape(says)}$"):
        read_runs("altgrad")


def test_the_command_reports_on_runs_in_wandb(server, capsys, tmp_path):
    """Through the reporter that the address begins with."""
    put(server, "far", project="command", config=OWN, summary={"status": "finished"}, rows=ROWS)
    where = ("--from", "wandb:somebody/command", "--out", tmp_path / "out")
    found = call(capsys, "report", "failure-report", *where)
    assert (found.code, found.out) == (0, f"{tmp_path / 'out' / 'failure.md'}\n"), found.err
    assert (tmp_path / "out" / "failure.md").read_text().startswith("# far: no collapse")
    found = call(capsys, "report", "failure-report", "fra", *where)
    assert (found.code, found.message) == (
        2,
        "altcore: there is no run 'fra' in W&B's somebody/command (did you mean far?)",
    )


def test_the_page_of_runs_in_wandb(server, capsys, tmp_path):
    """W&B keeps no order of keys: layers are by number, columns in altcore's order."""
    layers = (10, 2, 1)
    stall = {f"bit-stall/stored_stall_share/h.{i}": i / 10 for i in layers}
    key = "value-histogram/activation@fwd_E4M3"
    counts = {"_type": "histogram", "values": [0.1, 0, *[0.01] * 90, 0], "bins": list(range(94))}
    rows = [*ROWS, {"step": 3, "loss": 4, **stall, f"{key}_histogram": counts, f"{key}_low": -40}]
    found = [
        {"there": 1, "ULPs": name, "worst layer": "h.1", "steps": "1-3", "late": 1, "early": 2}
        for name in ("stored", "view")
    ]
    said = {"status": "finished", "verdict": "did not learn", "format": "E5M2", "recipe": "pure"}
    summary = {**said, "findings": {"ulp-stats": found}}
    put(server, "paged", project="page", config=OWN, summary=summary, rows=rows)
    where = ("--from", "wandb:somebody/page", "--out", tmp_path)
    assert call(capsys, "report", "page", "paged", *where).code == 0
    text = (tmp_path / "page.html").read_text()
    for words in ("E5M2 (pure) did not learn", "Activations", "E4M3, at step 3"):
        assert words in text, words
    (names,) = re.findall(r'class="layers".*?</div>', text)
    assert re.findall(r"<span>(.*?)</span>", names) == ["1", "2", "10"]
    (head,) = re.findall(r"<tr>(<th scope=\"col\">ULPs</th>.*?)</tr>", text)
    columns = ["ULPs", "steps", "early", "late", "worst layer", "there"]
    assert re.findall(r">([^<]+)<", head) == columns
