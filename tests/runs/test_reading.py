"""What a run directory says of its run."""

from helpers import run_directory

from altcore.runs import summary_of


def test_a_run_that_is_not_over_says_so(tmp_path):
    """From its metrics while it runs, from its last end afterwards, and anew once resumed."""
    directory = run_directory(tmp_path, name="r")
    directory.append("events.jsonl", {"step": 0, "event": "start"})
    directory.append("metrics.jsonl", {"step": 1, "loss": 2.0})
    assert summary_of(directory.path) == {"name": "r", "status": "unfinished", "steps": 1}
    directory.append("events.jsonl", {"step": 2, "event": "end", "status": "finished", "steps": 2})
    assert summary_of(directory.path)["status"] == "finished"
    directory.append("events.jsonl", {"step": 2, "event": "resume"})
    assert summary_of(directory.path)["status"] == "unfinished"
