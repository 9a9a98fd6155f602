"""What a run directory says of its run."""

import json
import math

import pytest
from helpers import as_killed, run_directory

from altcore import BadInput
from altcore.runs import Summary, altered, find_run, run_id_of, summary_of


def test_a_run_that_is_not_over_says_so(tmp_path):
    """From its metrics while it runs, from its last end afterwards, and anew once resumed."""
    directory = run_directory(tmp_path, name="r")
    directory.append("events.jsonl", {"step": 0, "event": "start", "format": "E4M3"})
    directory.append("metrics.jsonl", {"step": 1, "loss": 2.0})
    where = {"name": "r", "directory": str(directory.path)}
    so_far = {"final_loss": 2.0, "final_loss_step": 1, "best_loss": 2.0, "best_loss_step": 1}
    going = Summary(**where, status="unfinished", steps=1, format="E4M3", **so_far).to_plain()
    assert summary_of(directory.path) == going
    ended = Summary(**where, status="finished", steps=2, verdict="learned").to_plain()
    directory.write_json("summary.json", ended)
    assert summary_of(directory.path) == ended
    directory.remove("summary.json")
    assert summary_of(directory.path) == going


def test_a_summary_is_where_its_run_is(tmp_path):
    """A run that was moved or copied has the name and the directory of its new place."""
    directory = run_directory(tmp_path, name="r")
    old = Summary(name="old", directory="elsewhere/old", status="finished", steps=2)
    directory.write_json("summary.json", old.to_plain())
    found = summary_of(directory.path)
    assert (found["name"], found["directory"]) == ("r", str(directory.path))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "Expecting"),
        ("[]", "not a mapping"),
        ('{"status": "finished"}', "steps: a value is required"),
        ('{"status": "finished", "steps": "2"}', "steps"),
        ('{"status": "finished", "steps": 2, "grade": 1}', "grade: there is no such setting"),
    ],
)
def test_a_summary_that_fits_no_schema_is_refused(text, says, tmp_path):
    """Named by its file, and what is wrong with it."""
    directory = run_directory(tmp_path, name="r")
    directory.write("summary.json", text)
    with pytest.raises(BadInput, match=r"r/summary\.json is not a summary of a run: ") as caught:
        summary_of(directory.path)
    assert says in str(caught.value)


def test_a_run_whose_events_fit_no_schema_is_refused(tmp_path):
    """While it has no summary; named by the file that is read instead."""
    directory = run_directory(tmp_path, name="r")
    directory.append("events.jsonl", {"step": 0, "event": "start", "max_steps": 10**30})
    with pytest.raises(
        BadInput, match=r"r/events\.jsonl is not .* of a run: max_steps: .* 64 bits"
    ):
        summary_of(directory.path)


def test_numbers_that_are_not_finite_are_null(tmp_path):
    """At any depth: a summary is JSON that everything can read."""
    directory = run_directory(tmp_path, name="r")
    made = Summary(
        name="r",
        directory="r",
        status="failed",
        steps=1,
        val_loss=math.nan,
        evaluation={"step": 1, "val_loss": math.inf},
        collapses=[{"step": 1, "cause": "diverged", "reason": "nan", "loss": -math.inf}],
    )
    directory.write_json("summary.json", made.to_plain())
    plain = json.loads((directory.path / "summary.json").read_text())
    assert plain["val_loss"] is None
    assert plain["evaluation"] == {"step": 1, "val_loss": None}
    assert plain["collapses"][0]["loss"] is None
    assert plain["collapses"][0]["reason"] == "nan"


def test_a_folder_whose_name_no_run_may_have_is_to_be_renamed(tmp_path):
    """As a file manager's copy; the rule is told, too."""
    runs = run_directory(tmp_path, name="base").path.parent
    (runs / "base").rename(runs / "base (1)")
    with pytest.raises(BadInput, match=r"is not a name: letters, .*; rename .*base \(1\)$"):
        find_run("base (1)", str(runs))


@pytest.mark.parametrize("given", ["runs/base", "base/", "./base"])
def test_a_path_in_the_place_of_a_name_is_told_the_name(tmp_path, given):
    """As a shell completes it."""
    run_directory(tmp_path, name="base")
    with pytest.raises(BadInput, match=r"is not a name.*: base names the run in .*runs"):
        find_run(given, str(tmp_path / "runs"))


def test_an_environment_of_another_run_is_told_by_readers(start):
    """With both ids: two killed runs whose files were exchanged have each the other's keys."""
    runs = [start(name=name, seed=seed).run_directory for name, seed in (("a", 1), ("b", 2))]
    ids = [run_id_of(run) for run in runs]
    for run in runs:
        as_killed(run)
    for file in ("environment.json", "config.yaml"):
        texts = [(run / file).read_text() for run in runs]
        for run, text in zip(runs, reversed(texts), strict=True):
            (run / file).write_text(text)
    told = altered(runs[0])["environment.json"]
    assert f"environment.json is of run {ids[1]}, and all checkpoints are of run {ids[0]}" in told


def test_a_killed_run_has_both_losses_of_its_last_evaluation(start):
    """As its summary had them."""
    run = start(name="r", max_steps=2, format="E4M3").run_directory
    ended = summary_of(run)
    as_killed(run)
    for key in ("val_loss", "val_loss_float32", "final_loss"):
        assert summary_of(run)[key] == ended[key] is not None
