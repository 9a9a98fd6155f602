"""What every tracker is made of: it sees the whole record, once, and never touches the run."""

import json
import shutil
import time
from pathlib import Path

import attrs
import pytest
from helpers import events, metrics_bytes, weights_sha256
from helpers_trackers import FileTracker, ImportingTracker
from structlog.testing import capture_logs

from altcore.hooks import build, make_plugin
from altcore.plugin import BadInput, read_lines, read_run
from altcore_reporters import tracker_process
from altcore_reporters.following import Follower, Ledger
from altcore_reporters.tracker_process import TrackerError, TrackerProcess

SOON = 60.0
"""Seconds: on a busy machine a process starts slowly."""
SLACK = 15.0
"""Seconds in which a busy machine does what takes milliseconds."""


@pytest.fixture(scope="module")
def recorded(tmp_path_factory, corpus):
    """The directory of a run of four steps that nobody tracked, with a change of format."""
    from helpers import Starter

    start = Starter(tmp_path_factory.mktemp("recorded"), corpus)
    start(name="a", max_steps=4, eval_interval=2)
    run = start.runs / "a"
    shift = {"plugin": "p", "from": ["E4M3"], "to": ["E5M2"], "reason": "overflow"}
    with (run / "events.jsonl").open("a") as file:
        file.write(json_line({"step": 3, "event": "recipe", **shift}))
    return run


@pytest.fixture
def run(recorded, tmp_path):
    """A copy of it."""
    return shutil.copytree(recorded, tmp_path / "runs" / "a")


@pytest.fixture
def tracker(tmp_path):
    """Return a function that makes a tracker; all of them write to one file."""

    def made(cls=FileTracker, name="tried", **settings):
        file = str(tmp_path / "told.jsonl")
        return make_plugin(cls, {"file": file, "finish_timeout": SOON, **settings}, name)

    return made


def json_line(line):
    return json.dumps(line) + "\n"


def follow(tracker, run):
    """Follow a run that is over in a process, to its end."""
    return TrackerProcess.start(tracker, run).end(tracker.finish_timeout)


def send(tracker, run):
    """Do in this process what a session's process does."""
    with Ledger.opened(tracker.folder(read_run(run))) as ledger:
        Follower.start(tracker, read_run(run), ledger).send_new()


def rows(tracker):
    """What was logged: the step and the values of each row, in the order of the steps."""
    logged = [told["log"] for told in tracker.told("log")]
    return sorted(((row["step"], row["values"]) for row in logged), key=lambda row: row[0])


def recorded_rows(run):
    """What has to be logged of a run."""
    times = {line["step"]: line["step_time_ms"] for line in read_lines(run / "timings.jsonl")}
    found = []
    for line in read_lines(run / "metrics.jsonl"):
        values = {k: v for k, v in line.items() if k != "step" and v is not None}
        if "loss" in line:
            values["step_time_ms"] = times[line["step"]]
        found.append((line["step"], values))
    return found


SHIFT = (3, {"format_shift": 1, "new_format": "E5M2", "shift_reason": "overflow"})

# The whole record, once ----------------------------------------------------------------------


def test_a_tracker_gets_the_whole_record(tracker, run):
    """Every line under its names, with the step's time; shifts; the summary as it is at the end."""
    mine = tracker()
    assert follow(mine, run) == f"file:{mine.file}"
    assert sorted(map(str, rows(mine))) == sorted(map(str, [*recorded_rows(run), SHIFT]))
    (begun,), (ended,) = mine.told("start"), mine.told("finish")
    record = read_run(run)
    assert begun["start"] == {"name": "a", "config": dict(record.config)}
    assert ended["finish"]["summary"] == dict(record.summary)
    happened = sorted(events(run), key=lambda event: event["step"])
    assert [t["event"]["event"] for t in mine.told("event")] == [e["event"] for e in happened]
    logged = [told["log"] for told in mine.told("log")]
    assert [row["step"] for row in logged] == [1, 2, 2, 3, 3, 4, 4]
    times = [row["when"] for row in logged]
    assert times == sorted(times)
    assert abs(times[0] - time.time()) < 3600


def test_it_is_followed_while_it_goes_on(tracker, run):
    """A line is sent soon after it was written, and one that is torn when it is whole."""
    lines = (run / "metrics.jsonl").read_bytes()
    (run / "metrics.jsonl").write_bytes(lines[:-20])
    mine = tracker()
    process = TrackerProcess.start(mine, run)
    before = len(recorded_rows(run)) + 1
    wait_for(lambda: len(rows(mine)) == before)
    (run / "metrics.jsonl").write_bytes(lines)
    wait_for(lambda: len(rows(mine)) == before + 1)
    process.end(SOON)


def test_a_resumed_run_is_sent_where_it_was_left(tracker, run):
    """Lines that come again are known; one that came out differently is sent."""
    mine = tracker()
    send(mine, run)
    sent = rows(mine)
    send(mine, run)
    assert rows(mine) == sent
    lines = (run / "metrics.jsonl").read_text().replace('"val_loss_error": null', '"other": 1')
    (run / "metrics.jsonl").write_text(lines)
    send(mine, run)
    assert len(rows(mine)) == len(sent) + 2
    assert all(row in rows(mine) for row in recorded_rows(run))


def test_rows_that_the_tracker_lost_are_sent_again(tracker, run):
    """A kill or a broken network takes the last rows of a session."""
    mine = tracker()
    send(mine, run)
    everything = rows(mine)
    lost = mine.told()[:4]
    Path(mine.file).write_text("".join(map(json_line, lost)))
    send(mine, run)
    assert sorted(map(str, rows(mine))) == sorted(map(str, everything))


def test_rows_that_nobody_can_account_for_are_not_doubled(tracker, run):
    send(tracker(), run)
    shutil.rmtree(run / "reports" / "tried")
    with pytest.raises(BadInput, match="tells of 0: nothing is sent"):
        send(tracker(), run)


def test_a_run_is_uploaded_exactly_once(tracker, run):
    mine = tracker()
    (line,) = mine.upload([read_run(run)])
    assert line == f"a: sent 7 rows to file:{mine.file}"
    sent = mine.told()
    assert mine.upload([read_run(run)]) == ["a: everything is there already"]
    assert mine.told() == sent
    assert not mine.told("alert")
    assert sorted(map(str, rows(mine))) == sorted(map(str, [*recorded_rows(run), SHIFT]))


def test_what_was_tracked_live_is_not_uploaded_again(tracker, run):
    follow(tracker(), run)
    assert tracker().upload([read_run(run)]) == ["a: everything is there already"]


def test_an_upload_goes_where_the_runs_own_settings_say(tracker, run, tmp_path):
    """Unless the command says otherwise."""
    own, other = str(tmp_path / "own.jsonl"), str(tmp_path / "other.jsonl")
    config = run / "config.yaml"
    settings = f"settings:\n  tried: {{file: {own}}}"
    config.write_text(config.read_text().replace("settings:", settings))
    default = make_plugin(FileTracker, {}, "tried")
    assert default.upload([read_run(run)]) == [f"a: sent 7 rows to file:{own}"]
    told = make_plugin(FileTracker, {"file": other}, "tried")
    assert told.upload([read_run(run)]) == [f"a: sent 7 rows to file:{other}"]


def test_a_run_that_is_being_tracked_is_not_uploaded(tracker, run):
    process = TrackerProcess.start(tracker(), run)
    wait_for(lambda: rows(tracker()))
    with pytest.raises(BadInput, match="is being written by another process"):
        tracker().upload([read_run(run)])
    process.end(SOON)


# A tracker never touches the run -------------------------------------------------------------

FAULTS = {
    "log:raise": "OSError: [Errno 28] No space left on device, in RUN/reports/tried",
    "log:full": "OSError: [Errno 28] No space left on device, in RUN/reports/tried",
    "finish:raise": "OSError: [Errno 28] No space left on device, in RUN/reports/tried",
    "log:exit": "its process ended by itself (exit code 3)",
    "finish:kill": "its process ended by itself (exit code -9)",
    "start:hang": "not everything was sent within 0.5 s",
    "finish:hang": "not everything was sent within 0.5 s",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_goes_wrong_is_said_and_takes_no_longer_than_told(tracker, run, fault):
    timeout = 0.5 if fault.endswith("hang") else SOON
    process = TrackerProcess.start(tracker(fault=fault, finish_timeout=timeout), run)
    with pytest.raises(TrackerError) as raised:
        process.end(timeout)
    # One that hangs does so for a minute.
    assert time.monotonic() - max(process.over_at, process.ready_at) < timeout + SLACK
    hint = "the record has everything, send the rest by: altcore runs upload a --to tried"
    assert str(raised.value) == f"{FAULTS[fault].replace('RUN', str(run))}; {hint}"
    assert process.popen.poll() is not None
    if fault == "log:raise":
        assert "Traceback" in (run / "reports/tried/log.txt").read_text()


def test_the_start_of_a_process_is_not_counted(tracker, run):
    """On a busy machine it takes seconds, and nothing is wrong."""
    process = TrackerProcess.start(tracker(fault="start:hang"), run)
    with pytest.raises(TrackerError, match=r"not everything was sent within 0\.001 s"):
        process.end(0.001)
    assert process.ready_at > process.over_at


def test_a_process_that_does_not_start_is_not_waited_for_forever(tracker, run, monkeypatch):
    monkeypatch.setattr(tracker_process, "STARTING", 0.01)
    process = TrackerProcess.start(tracker(), run)
    with pytest.raises(TrackerError, match=r"its process did not start within 0\.01 s"):
        process.end(SOON)


def test_what_a_tracker_needs_is_imported_first(tracker, run):
    process = TrackerProcess.start(tracker(ImportingTracker), run)
    with pytest.raises(TrackerError, match="No module named 'nobodys'"):
        process.end(SOON)
    assert process.ready_at is None


def test_trackers_are_waited_for_together(tracker, run):
    """The second that hangs has had its time while the first had it."""
    hanging = [tracker(name=name, fault="start:hang") for name in ("one", "two")]
    first, second = (TrackerProcess.start(hangs, run) for hangs in hanging)
    for process in (first, second):
        wait_for(lambda process=process: process.hear() or process.ready_at)
    with pytest.raises(TrackerError, match="within 1 s"):
        first.end(1.0)
    began = time.monotonic()
    with pytest.raises(TrackerError, match="within 1 s"):
        second.end(1.0)
    assert time.monotonic() - began < 1.0


def test_broken_trackers_change_no_weight_and_one_line_each_says_so(shelf, start, tmp_path, capsys):
    """They are disabled like any reporter that breaks, and the run is degraded."""
    broken = {"full": "log:raise", "unfinished": "finish:raise", "dead": "log:kill"}
    broken["silent"] = "start:hang"
    says = {"dead": "exit code -9", "silent": "not everything was sent within 1 s"}
    keys = {}
    for name, fault in broken.items():
        shelf.install("reporter", name, FileTracker)
        timeout = 1.0 if fault.endswith("hang") else SOON
        keys |= {f"{name}__fault": fault, f"{name}__finish_timeout": timeout}
        keys[f"{name}__file"] = str(tmp_path / f"{name}.jsonl")
    start(name="plain", max_steps=3)
    capsys.readouterr()
    result = start(list(broken), name="tracked", max_steps=3, check_observers=True, **keys)
    runs = start.runs
    assert weights_sha256(runs / "plain") == weights_sha256(runs / "tracked")
    assert metrics_bytes(runs / "plain") == metrics_bytes(runs / "tracked")
    assert sorted(result.summary["degraded"]) == sorted(broken)
    assert result.summary["status"] == "finished"
    told = capsys.readouterr()
    lines = (told.out + told.err).splitlines()
    messages = [event["message"] for event in events(runs / "tracked", "degraded")]
    for name in broken:
        (line,) = [line for line in lines if f"--to {name}" in line]
        assert says.get(name, "No space left on device") in line
        assert len([m for m in messages if f"altcore runs upload tracked --to {name}" in m]) == 1


def test_a_tracker_ends_after_the_other_reports_are_there(shelf, start, tmp_path):
    """Though the default observers stand behind it; so nothing is left to upload."""
    shelf.install("reporter", "tried", FileTracker)
    file, keys = str(tmp_path / "told.jsonl"), {"tried__finish_timeout": SOON}
    start(["tried", "page"], name="a", tried__file=file, **keys)
    record = read_run(start.runs / "a")
    (ended,) = FileTracker(file=file).told("finish")
    assert ended["finish"]["reports"] == ["page.html"]
    assert record.summary["reports"] == ["reports/page.html"]
    again = make_plugin(FileTracker, {}, "tried")
    assert again.upload([record]) == ["a: everything is there already"]


def test_a_run_that_is_killed_leaves_no_process(tracker, run):
    """The tracker sends what there is, and ends by itself."""
    mine = tracker()
    process = TrackerProcess.start(mine, run)
    process.popen.stdin.close()
    process.popen.wait(SOON)
    assert mine.told("finish")


def test_a_run_that_is_killed_leaves_no_process_that_hangs(tracker, run):
    """It ends by itself, and a run that waited for another tracker meanwhile hears why."""
    process = TrackerProcess.start(tracker(fault="start:hang", finish_timeout=0.1), run)
    process.popen.stdin.close()
    assert process.popen.wait(SOON) == -9
    with pytest.raises(TrackerError, match=r"not everything was sent within 0\.1 s"):
        process.hear()


def test_a_failure_is_said_while_the_run_goes_on(tracker, run):
    process = TrackerProcess.start(tracker(fault="log:raise"), run)
    with pytest.raises(TrackerError, match="No space left"):
        wait_for(lambda: process.hear() == "never")


def test_a_step_hears_of_the_tracker_in_no_time(tracker, run):
    """Less than 1 % of a step of 20 ms, and nothing else happens in a step."""
    hooked = tracker()
    hooked._process = TrackerProcess.start(hooked, run)
    taken = []
    for _ in range(200):
        began = time.perf_counter()
        hooked.on_record()
        taken.append(time.perf_counter() - began)
    hooked._process.end(SOON)
    assert sorted(taken)[20] < 0.2e-3  # the fastest, which no other process interrupted


@pytest.mark.slow
def test_a_tracker_costs_less_than_a_hundredth_of_a_step(shelf, start, tmp_path):
    """Of gpt small, which has the shortest steps of a model that is worth tracking."""
    shelf.install("reporter", "tried", FileTracker)
    small = {"gpt__size": "small", "gpt__n_layer": None, "gpt__block_size": None}
    keys = {"tried__file": str(tmp_path / "told.jsonl"), "tried__finish_timeout": SOON, **small}
    engine = start.engine(["tried"], max_steps=20, gpt__batch_size=None, **keys)
    summary = engine.train()
    (spent,) = engine.dispatch.boundary.clock.seconds.values()
    assert spent < 0.01 * 20 * summary["step_time_ms"] / 1e3


# Alerts --------------------------------------------------------------------------------------


def test_people_are_alerted_of_what_happens_from_now_on(tracker, run):
    """Not of what an earlier session met, and of each title not too often."""
    collapse = {"step": 4, "event": "collapse", "cause": "diverged", "reason": "the loss is up"}
    overflow = {"step": 4, "event": "warning", "cause": "overflow", "message": "2.00% overflow"}
    with (run / "events.jsonl").open("a") as file:
        file.write(json_line({**collapse, "step": 2}))
    mine = tracker()
    process = TrackerProcess.start(mine, run)
    with (run / "events.jsonl").open("a") as file:
        file.writelines(map(json_line, (collapse, overflow, overflow)))
    process.end(SOON)
    assert [told["alert"] for told in mine.told("alert")] == [
        {
            "level": "ERROR",
            "title": "Collapse: diverged",
            "text": "step 4: the loss is up",
            "wait": 0.0,
        },
        {"level": "WARN", "title": "Overflow", "text": "step 4: 2.00% overflow", "wait": 300.0},
    ]


def test_a_run_that_goes_on_is_not_told_as_damaged(start):
    """The tracker reads the record when a resume has removed the summary and written its keys."""
    start(["csv"], name="r", max_steps=2, csv__finish_timeout=SOON)
    with capture_logs() as logs:
        start.resume("r", max_steps=4)
    assert not [x["event"] for x in logs if "missing" in x["event"] or "changed" in x["event"]]


def test_settings_are_checked():
    with pytest.raises(BadInput, match="finish_timeout"):
        build(FileTracker, {"finish_timeout": 0.0}, "tried")
    assert "name" not in {a.name for a in attrs.fields(FileTracker) if a.init}


def wait_for(is_so):
    """Wait for what another process does."""
    end = time.monotonic() + SOON
    while not is_so():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.02)
