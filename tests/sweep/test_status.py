"""How a sweep stands is read from its ledger: counts, time left, ranges, alerts."""

import math
import shutil
import time

import pytest
from attrs import evolve
from helpers_cli import call
from helpers_sweeps import complete, fail, ledger_of, record

from altcore.errors import BadInput
from altcore.sweep import (
    Ledger,
    State,
    SweepFile,
    TimeLeft,
    Watch,
    estimate_of,
    open_sweep,
    status_of,
    survey,
)
from altcore.sweep.attempt import lease
from altcore.sweep.exits import Exit


@pytest.fixture
def ledger(tmp_path):
    """A sweep of six jobs in every state; the fifth one is held by this process."""
    ledger = ledger_of(tmp_path, checks={"val_loss": [0, 10]}, seeds=6)
    first, second, third, fourth, fifth, _ = ledger.jobs()
    complete(ledger, first, seconds=10.0, val_loss=3.5)
    complete(ledger, second, status="collapsed", seconds=30.0, val_loss=12.5)
    fail(ledger, third, "out of memory: 3 bytes")
    complete(ledger, third, changed={"gpt.batch_size": 16}, seconds=20.0, val_loss=3)
    fail(ledger, fourth, "ValueError: no")
    lease(ledger.folder / "jobs" / fifth.name, 1, {})
    return ledger


def status(ledger, now=0.0):
    return status_of(open_sweep(ledger.folder.name, str(ledger.folder.parent))[0], ledger, now)


def test_jobs_are_counted_by_state(ledger):
    """A collapse is a result and counted apart, and so is a run with a changed setting."""
    found = status(ledger)
    assert found.counts == {"waiting": 1, "running": 1, "completed": 3, "failed": 1, "damaged": 0}
    assert (found.collapsed, found.changed, found.lost, found.slots) == (1, 1, 0, 1)
    assert [row.name for row in found.failed] == ["base-seed45"]
    assert found.failure_rate == 1 / 4
    assert found.used["seconds"] == 10 + 30 + 1 + 20 + 1
    assert found.used["peak_memory_bytes"] == 4e8


def test_the_time_that_is_left(ledger):
    """The mean time of a run, times those that are left, over those that go on."""
    found = status(ledger)
    assert found.mean_seconds == 20
    assert found.seconds_left == 20 * 2 / 1
    ended = ledger.standing("base-seed46").last
    ended.end(Exit(status="lost"))
    assert status(ledger).seconds_left is None
    for name in ("base-seed46", "base-seed47"):
        complete(ledger, ledger.job(name))
    assert status(ledger).seconds_left == 0


def test_a_run_takes_what_its_attempts_took(tmp_path, monkeypatch):
    """All that led to the result, for status, plan and a worker alike; none with other settings.

    A lost attempt took as long as its heart beat: at once, and then each sixth of `lost_after`.
    """
    ledger = ledger_of(tmp_path)
    (job,) = ledger.jobs()
    small = {"gpt.batch_size": 16}
    fail(ledger, job, "out of memory")
    lease(ledger.folder / "jobs" / job.name, 2, small).attempt.end(
        Exit(status="interrupted", seconds=40.0)
    )
    lost = lease(ledger.folder / "jobs" / job.name, 3, small).attempt
    (lost.folder / "heartbeat").write_text("4")
    with monkeypatch.context() as patch:
        patch.setattr("altcore.processes._began", lambda pid: "another")
        ledger.take(job, Watch(60)).attempt.end(Exit(status="interrupted"))
    complete(ledger, job, changed=small, seconds=5.0)
    assert status(ledger).mean_seconds == 40 + 30 + 5
    for seconds in (70, 80):
        left = TimeLeft(ledger, time.time() + seconds, 1000)
        assert left.is_enough(job) is (seconds > 75)
    more = evolve(job, name="more")
    ledger.add([more])
    assert estimate_of(ledger, [job, more]).seconds == 75


def test_a_worker_that_is_gone_is_no_slot(ledger, monkeypatch):
    """Its job counts as running until somebody takes it over."""
    monkeypatch.setattr("altcore.processes._began", lambda pid: "another")
    found = status(ledger)
    assert (found.counts["running"], found.lost, found.slots) == (1, 1, 0)


def test_no_file_of_a_job_or_a_run_is_read_twice(ledger, monkeypatch):
    """Ten thousand of them would take longer than a status may, by any process."""
    first = survey(ledger)
    monkeypatch.setattr(Ledger, "job", None)
    monkeypatch.setattr("altcore.sweep.ledger.check_end", None)
    monkeypatch.setattr("altcore.sweep.rows.check_end", None)
    assert survey(Ledger(ledger.folder)) == first
    (ledger.folder / "jobs" / "base-seed45" / "job.json").write_text("{}")
    with pytest.raises(TypeError):
        survey(Ledger(ledger.folder))


def test_a_run_whose_worker_was_killed_before_it_wrote_its_end(tmp_path):
    """The run says the same."""
    ledger = ledger_of(tmp_path)
    (job,) = ledger.jobs()
    complete(ledger, job, status="collapsed", verdict="NaN loss")
    (ledger.standing(job.name).last.folder / "exit.json").unlink()
    (row,) = survey(ledger)
    assert (row.state, row.exit.status, row.exit.verdict) == (
        State.COMPLETED,
        "collapsed",
        "NaN loss",
    )


def test_who_came_too_late_tells_nothing_of_the_result(tmp_path):
    """A refused attempt after the accepted one."""
    ledger = ledger_of(tmp_path)
    (job,) = ledger.jobs()
    complete(ledger, job)
    lease(ledger.folder / "jobs" / job.name, 2, {"x": 1}).attempt.end(Exit(status="refused"))
    (row,) = survey(ledger)
    assert (row.exit.status, row.changed, row.attempts) == ("finished", {}, 2)


def test_values_outside_their_range_are_named(tmp_path):
    """Of the summary, or each recorded one; NaN and no value at all are outside."""
    nan = float("nan")
    checks = {"val_loss": [0, 10], "loss": [None, 5], "x/y": [1, None]}
    ledger = ledger_of(tmp_path, checks=checks, seeds=5)
    lines = [
        [{"step": 1, "loss": 4.5, "x/y": 1}, {"step": 2, "loss": 1}],
        [{"step": 1, "loss": 5.5, "x/y": 0.5}],
        [{"step": 1, "loss": 3.0, "x/y": 2}, {"step": 2, "loss": nan, "x/y": 2}],
        [{"step": 1, "loss": 3.0}],
        [{"step": 1, "loss": 3.0, "x/y": [1, 2]}],
    ]
    for job, own in zip(ledger.jobs(), lines, strict=True):
        complete(ledger, job, lines=own, val_loss=2.5)
    assert list(status(ledger).outside.values()) == [
        {"loss": "5.5", "x/y": "0.5"},
        {"loss": "nan"},
        {"x/y": "no value"},
        {"x/y": "[1, 2] is no number"},
    ]


def test_what_was_read_is_kept_and_may_be_thrown_away(ledger):
    """A run is read once, unless other checks are asked for, or its end is another."""
    first = status(ledger).to_plain()
    assert first["outside"] == {"base-seed43": {"val_loss": "12.5"}}
    (ledger.standing("base-seed43").last.folder / "exit.json").unlink()
    assert status(ledger).to_plain() == first
    (ledger.folder / "cache" / "rows.json").write_text('{"asked": "1", "runs": [3]}')
    (ledger.folder / "cache" / "checks.json").write_text("")
    record(ledger.run_of("base-seed43"), val_loss=5.0, status="finished")
    second = status(ledger)
    assert (second.outside, second.collapsed) == ({}, 0)
    record(ledger.run_of("base-seed43"), val_loss=12.5, status="finished")
    ledger.run_of("base-seed43").rename(ledger.folder / "moved")
    assert status(ledger).counts["completed"] == 2
    shutil.copytree(ledger.folder / "moved", ledger.run_of("base-seed43"))
    assert status(ledger).outside == first["outside"]
    asked = SweepFile(checks={"val_loss": [0, 3]})
    assert set(status_of(asked, ledger, 0.0).outside) == {"base-seed42", "base-seed43"}


def test_a_sweep_that_one_may_only_read(ledger, monkeypatch):
    """Is shown all the same."""

    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr("altcore.sweep.kept.durable.replace_text", refuse)
    assert status(ledger).counts["completed"] == 3


def test_an_end_that_is_not_written_yet_is_not_kept(tmp_path):
    """The record of the exit says more than the run."""
    ledger = ledger_of(tmp_path)
    (job,) = ledger.jobs()
    complete(ledger, job, seconds=5.0)
    file = ledger.standing(job.name).last.folder / "exit.json"
    file.rename(tmp_path / "kept")
    assert survey(ledger)[0].exit.seconds is None
    (tmp_path / "kept").rename(file)
    assert survey(ledger)[0].exit.seconds == 5.0


@pytest.mark.parametrize(
    ("alerts", "told"),
    [
        ({}, "1 of 4 ended jobs failed: 25.0 % (limit 10 %)"),
        (
            {"failed": None, "collapsed": 0.3},
            "1 of 3 completed runs collapsed: 33.3 % (limit 30 %)",
        ),
        ({"failed": 0.25, "minutes": 0.4}, "base-seed43 took 30 s (limit 24 s)"),
    ],
)
def test_alerts(ledger, alerts, told):
    """The first line of those that limits give; a limit that is reached is not passed."""
    asked = SweepFile(alerts=alerts)
    assert status_of(asked, ledger, 0.0).alerts[0] == told


def test_a_collapse_that_was_accepted_stays_a_result(ledger):
    """Though the sweep file says by now that a collapse is a failure."""
    told = "base-seed43 collapsed and was accepted, before collapse_is was failure: it stays"
    found = [status_of(SweepFile(collapse_is=what), ledger, 0.0) for what in ("result", "failure")]
    assert [any(told in line for line in each.alerts) for each in found] == [False, True]


def test_a_job_that_goes_on_for_long(ledger):
    """By now, and its other attempts count as well."""
    began = ledger.standing("base-seed46").last.lease.began
    assert not any("seed46" in line for line in status(ledger, began + 3599).alerts)
    assert "base-seed46 took 60 min so far (limit 60 min)" in status(ledger, began + 3601).alerts


@pytest.mark.parametrize(
    ("epoch", "told"),
    [(4.75, ["base-seed46 took 2.0 h so far (limit 60 min), and is at epoch 4.75"]), (5, [])],
)
def test_a_job_that_is_slow_for_its_epochs(ledger, epoch, told):
    lines = [{"step": 1, "epoch": 0.5}, {"step": 2, "epoch": epoch}, {"step": 3}]
    last = ledger.standing("base-seed46").last
    record(last.work / "base-seed46", lines=lines)
    asked = SweepFile(alerts={"epochs": 5})
    found = status_of(asked, ledger, last.lease.began + 7200).alerts
    assert [line for line in found if "seed46" in line] == told


def test_damaged_lines_are_told(tmp_path):
    ledger = ledger_of(tmp_path)
    (job,) = ledger.jobs()
    complete(ledger, job, lines=[{"step": n, "loss": 1.0} for n in range(1, 4)])
    path = ledger.run_of(job.name) / "metrics.jsonl"
    asked = SweepFile(checks={"loss": [0, 10]})
    assert status_of(asked, ledger, 0.0).outside == {}  # what it keeps is of the file as it was
    path.write_text(path.read_text().replace('"step": 2', '"stop": 2'))
    assert status_of(asked, ledger, 0.0).outside == {
        job.name: {"metrics.jsonl": "damaged in line 2"}
    }


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"checks": {"loss": 3}}, r"checks\.loss: \[LOWEST, HIGHEST\] is needed, not 3"),
        ({"checks": {"loss": [1, "a"]}}, r"checks\.loss: a limit is a number or null, not 'a'"),
        ({"checks": {"loss": [1, 0.5]}}, r"checks\.loss: 1 is above 0\.5"),
        ({"alerts": {"fail": 1}}, r"alerts\.fail: .*did you mean failed"),
        ({"alerts": {"minutes": 0}}, r"alerts\.minutes"),
        (
            {"checks": {"loss": [math.nan, None]}},
            r"checks\.loss: a finite number is needed, not nan",
        ),
        ({"checks": {"loss": [0, math.inf]}}, r"checks\.loss: a finite number is needed, not inf"),
        ({"alerts": {"minutes": math.inf}}, r"alerts\.minutes: a finite number"),
        ({"resources": {"memory_gb": {"base": math.nan}}}, r"resources\.memory_gb\.base: a finite"),
        (
            {"retry": {"gradient": {"halve": {"x": math.inf}}}},
            r"retry\.gradient\.halve\.x: a finite",
        ),
        ({"timeout_minutes": math.inf}, r"timeout_minutes: must be <= "),
        ({"timeout_minutes": math.nan}, r"timeout_minutes: must be > 0"),
        ({"lost_after": 1e30}, r"lost_after: must be <= "),
        ({"alerts": {"failed": 10}}, r"alerts\.failed: must be <= 1"),
        ({"alerts": {"collapsed": -0.1}}, r"alerts\.collapsed: must be >= 0"),
    ],
)
def test_bad_limits_are_refused(keys, told):
    """With their key."""
    with pytest.raises(BadInput, match=told):
        SweepFile(**keys)


def test_the_command_status(ledger, capsys):
    """Says it in a few lines, and exits with 1 since a job failed."""
    where = ("--sweeps-dir", ledger.folder.parent)
    done = call(capsys, "sweep", "status", "toy", *where)
    assert done.code == 1
    assert done.out.splitlines()[:6] == [
        "toy: 6 jobs",
        "  waiting        1",
        "  running        1",
        "  completed      3, of them 1 collapsed, 1 with a setting that a retry changed",
        "  failed         1",
        "a run takes 20 s on average; about 40 s left with 1 slot",
    ]
    assert "outside its range: base-seed43: val_loss 12.5" in done.out
    assert "ValueError" not in done.out
    done = call(capsys, "sweep", "status", "toy", "--show-failed", *where)
    assert "failed: base-seed45: ValueError: no (unknown: no attempt is made" in done.out


def test_a_sweep_at_which_nobody_works(tmp_path, capsys):
    """Says so, and how it goes on, whether a run was completed or not; a damaged job is listed."""
    ledger = ledger_of(tmp_path)
    where = ("--sweeps-dir", tmp_path)
    done = call(capsys, "sweep", "status", "toy", *where)
    assert done.out.splitlines()[0] == "toy: 1 job"
    assert done.out.splitlines()[-1] == "nothing runs at this moment: altcore sweep run toy goes on"
    held = lease(ledger.folder / "jobs" / "base-seed42", 1, {})
    assert (
        "nothing runs" not in call(capsys, "sweep", "status", "toy", "--sweeps-dir", tmp_path).out
    )
    (held.attempt.folder / "lease.json").write_text("{")
    done = call(capsys, "sweep", "list", "toy", "--status", "damaged", *where)
    assert "base-seed42" in done.out
    done = call(capsys, "sweep", "list", "--help")
    assert "waiting, running, completed, failed, damaged, collapsed" in " ".join(done.out.split())


def test_status_as_json(ledger, capsys):
    """Everything that the text says."""
    from json import loads

    where = ("--sweeps-dir", ledger.folder.parent)
    found = loads(call(capsys, "sweep", "status", "toy", "--json", *where).out)
    assert found["counts"] == {
        "waiting": 1,
        "running": 1,
        "completed": 3,
        "failed": 1,
        "damaged": 0,
    }
    assert found["failed"]["base-seed45"]["error"] == "ValueError: no"
    assert found["outside"] == {"base-seed43": {"val_loss": "12.5"}}
    assert found["seconds_left"] == 40
    assert loads(call(capsys, "sweep", "list", "toy", "--json", *where).out)[2]["changed"] == {
        "gpt.batch_size": 16
    }


def test_status_is_shown_again_until_all_is_done(ledger, capsys, monkeypatch):
    """Only when it changed; then the command is over."""

    def later(seconds):
        if len(looks) == 1:
            for name in ("base-seed46", "base-seed47"):
                complete(ledger, ledger.job(name))
        looks.append(seconds)

    looks = []
    lease_of = ledger.standing("base-seed46").last
    lease_of.end(Exit(status="lost"))
    monkeypatch.setattr(time, "sleep", later)
    done = call(capsys, "sweep", "status", "toy", "--watch", "--sweeps-dir", ledger.folder.parent)
    assert (len(looks), done.out.count("toy: 6 jobs")) == (2, 2)
    assert done.code == 1


def test_the_command_list(ledger, capsys):
    """All jobs, or those in one state; a collapse is a state to ask for, too."""
    where = ("--sweeps-dir", ledger.folder.parent)
    lines = call(capsys, "sweep", "list", "toy", *where).out.splitlines()
    assert len(lines) == 7
    assert lines[3].split() == [
        *("base-seed44", "completed", "2", "21", "s", "learned;", "with", "gpt.batch_size", "16")
    ]
    for state, name in (("failed", "seed45"), ("running", "seed46"), ("collapsed", "seed43")):
        (line,) = call(capsys, "sweep", "list", "toy", "--status", state, *where).out.splitlines()[
            1:
        ]
        assert line.startswith(f"base-{name}")
    fail(ledger, ledger.job("base-seed47"), "its process is gone")
    held = lease(ledger.folder / "jobs" / "base-seed47", 2, {"gpt.batch_size": 8})
    assert held is not None
    (line,) = (
        line
        for line in call(capsys, "sweep", "list", "toy", *where).out.splitlines()
        if line.startswith("base-seed47")
    )
    assert line.split()[1] == "running"
    assert line.endswith("  with gpt.batch_size 8")  # and not what ended the attempt before
    done = call(capsys, "sweep", "list", "toy", "--status", "done", *where)
    assert done.code == 2
    assert "--status: 'done' is none of waiting, running, completed, failed" in done.err
