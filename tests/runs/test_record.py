"""The record of a run: what is there is read, and what is not is empty."""

import json

import pytest
from structlog.testing import capture_logs

from altcore.errors import BadInput
from altcore.runs import RunRecord, full_summary, read_run, read_runs
from altcore.runs.summary import KEYS


def test_a_record_of_nothing_has_every_part():
    """A reader overrides what it knows; whoever reports may ask for the rest."""
    record = RunRecord("r", "far:away")
    assert (record.name, record.source, record.directory, record.url) == (
        *("r", "far:away"),
        *(None, None),
    )
    assert tuple(record.summary) == KEYS
    assert (record.summary["name"], record.summary["status"]) == ("r", "unfinished")
    assert not {k: v for k, v in record.summary.items() if v and k not in ("name", "status")}
    empty = (record.config, record.environment, record.metrics, record.timings, record.events)
    assert [list(part) for part in (*empty, record.reports)] == [[]] * 6


def test_a_directory_has_them_all(start):
    """As the run left them, and each is read once."""
    result = start(name="r", max_steps=2, eval_interval=1)
    record = read_run(result.run_directory)
    assert (record.name, record.directory) == ("r", result.run_directory)
    assert record.config["max_steps"] == 2
    assert record.environment["seed"] == record.config["seed"]
    assert record.summary == result.summary
    assert [line["step"] for line in record.steps] == [1, 2]
    assert [line["step"] for line in record.evaluations] == [1, 2]
    assert [line["step"] for line in record.timings] == [1, 2]
    assert [e["event"] for e in record.events][0 :: len(record.events) - 1] == ["start", "end"]
    assert record.metrics is record.metrics


def test_a_directory_may_be_named_by_a_text(start):
    run = start(name="r").run_directory
    assert read_run(str(run)).steps == read_run(run).steps
    with pytest.raises(BadInput, match="nowhere is not a run's directory"):
        read_run("nowhere")


def test_a_torn_record_is_read(tmp_path):
    """Of a run that was killed: the last line that is whole is the last one."""
    folder = tmp_path / "r"
    (folder / "reports").mkdir(parents=True)
    (folder / "reports" / "failure.md").write_text("# r")
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": "nan"}\n{"step": 2, "lo')
    record = read_run(folder)
    assert [line["step"] for line in record.steps] == [1]
    assert record.steps[0]["loss"] != record.steps[0]["loss"]
    assert (record.config, record.summary["steps"]) == ({}, 1)
    assert record.reports == {"reports/failure.md": "# r"}


def test_a_summary_keeps_what_is_known():
    """And has the other keys."""
    assert full_summary({"final_loss": 2.0})["final_loss"] == 2.0
    json.dumps(full_summary({}), allow_nan=False)


def test_the_weights_are_those_of_the_newest_checkpoint_that_is_whole(start):
    """One that was altered is left out; so is a file that is too large, and nothing is guessed."""
    record = read_run(start(name="r", max_steps=4, checkpoint_interval=2).run_directory)
    held = record.read_weights(1 << 20)
    parts = ["buffer_forms", "buffers", "model", "quantization", "shared", "step"]
    assert (held["step"], sorted(held)) == (4, parts)
    assert record.read_weights(10) is None
    file = record.directory / "checkpoints" / "step-00000004" / "weights.pt"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    assert record.read_weights(1 << 20)["step"] == 2
    assert RunRecord("r", "far:away").read_weights(1 << 20) is None


@pytest.mark.parametrize("file", ["environment.json", "config.yaml"])
def test_a_run_with_a_damaged_part_is_left_out_of_all_runs(start, file):
    """A report on the others is made; one that is named is refused when the part is asked for."""
    for name in ("a", "b"):
        path = start(name=name, max_steps=1).run_directory
    (path / file).write_text("" if file.endswith("json") else "[")
    with capture_logs() as logs:
        assert [r.name for r in read_runs(str(path.parent))] == ["a"]
    (warning,) = [entry["event"] for entry in logs if "left out" in entry["event"]]
    assert warning.startswith("b cannot be read, and is left out: ")
    assert file in warning
    assert read_runs(str(path.parent)).left_out == [warning]
