"""The reporter ``failure-report``: what it says of a record, and that it says no more."""

import json
import re
from itertools import dropwhile, takewhile
from types import SimpleNamespace

import pytest

import altcore
from altcore.runs import Summary, read_run, to_json
from altcore_reporters.failure_report import FailureReport, number, rate, text
from altcore_reporters.failure_samples import interpretation

COLLAPSE = {
    "step": 12,
    "event": "collapse",
    "cause": "stalled",
    "reason": "98.0% of stored weight updates stalled",
    "rate": 0.98,
    "layers": [
        {
            "layer": "h.0",
            "operand": "activation@fwd",
            "format": "E3M4",
            "elements": 1000,
            "overflow": None,
            "flushed": 250,
            "nonfinite": 0,
        },
        {
            "layer": "h.0",
            "operand": "stored_weight",
            "format": "E3M4",
            "scale": 0.5,
            "updates": 100,
            "stalled": 90,
            "flips": 10,
            "rescaled": 0,
        },
        {"layer": "h.1", "operand": "weight view", "moved": 40, "stalled": 10},
    ],
    "gradients": {
        "h.0.weight": {"zero_share": 0.125, "norm": 2.5},
        "h.1.weight": {"zero_share": 1.0, "norm": 0.0},
    },
}
VERDICT = {
    "step": 12,
    "event": "verdict",
    "cause": "stalled",
    "chosen": [
        {
            "plugin": "mantissa-shift",
            "action": "ChangeRecipe",
            "reason": "E3M4 is shifted to E5M2",
            "layers": ["*"],
            "roles": [],
            "format": "E5M2",
        }
    ],
    "refused": [
        {
            "plugin": "pauser",
            "action": "SkipStep",
            "reason": "let us wait",
            "why": "ChangeRecipe comes first",
        }
    ],
    "outcome": "ChangeRecipe by mantissa-shift",
}
RECIPE = {
    "step": 12,
    "event": "recipe",
    "plugin": "mantissa-shift",
    "from": ["E3M4"],
    "to": ["E5M2"],
    "reason": "",
    "stored_error": {"h.0.weight": 0.03},
}


def line(step, **more):
    """A line of metrics."""
    rates = dict.fromkeys(("stored_stall_rate", "view_stall_rate", "overflow_rate", "flushed_rate"))
    base = {"step": step, "loss": 5.0 - step / 10, "learning_rate": 1e-3, "grad_norm": 2.0}
    return {**base, **rates, **more}


def record(folder, events, metrics=(), about=None, config=None):
    """Write a run's directory."""
    folder.mkdir(parents=True)
    config = {"format": "E3M4", "recipe": "pure", "max_steps": 40} if config is None else config
    (folder / "config.yaml").write_text(json.dumps(config))
    if about is not None:
        (folder / "environment.json").write_text(json.dumps(about))
    for name, lines in (("events", events), ("metrics", metrics)):
        text = "".join(json.dumps(to_json(x)) + "\n" for x in lines)
        (folder / f"{name}.jsonl").write_text(text)
    return folder


def render(tmp_path, *arguments, **named):
    """Return the report of a run that is recorded so."""
    run = record(tmp_path / "run", *arguments, **named)
    (path,) = FailureReport().render([read_run(run)], tmp_path / "out")
    assert path == tmp_path / "out" / "failure.md"
    return path.read_text()


def section(report, title):
    """Return what stands under a heading."""
    found = re.search(rf"^##+ {re.escape(title)}.*?\n\n(.*?)(?=\n\n##|\Z)", report, re.M | re.S)
    assert found, title
    return found.group(1).strip()


def cells(block):
    """Return the rows of the first table in a block, its head left out."""
    _, *rows = dropwhile(lambda line: not line.startswith("|"), block.splitlines())
    rows = takewhile(lambda line: line.startswith("|"), rows[1:])
    return [[cell.strip() for cell in row[1:-1].split(" | ")] for row in rows]


def test_tells_what_was_recorded(tmp_path):
    """Each number of the record stands where a reader looks for it."""
    about = {
        "altcore": "0.1.0",
        "python": "3.11.7",
        "libraries": {"torch": "2.13.0"},
        "device": "cpu",
        "seed": 42,
        "plugins": {"mantissa-shift": "altcore-interventions 0.1.0"},
        "git": {"commit": "0123456789abcdef", "dirty": True},
        "started": "2025-01-02T03:04:05+0000",
        "parameter_share": 0.75,
        "flop_share": 0.5,
    }
    metrics = [line(s, stored_stall_rate=s / 100, flushed_rate=0.25) for s in range(1, 13)]
    report = render(tmp_path, [COLLAPSE, VERDICT, RECIPE], metrics, about)
    head, summary = report.split("## Summary")
    assert head.startswith("# run: stalled at step 12\n")
    for words in ("E3M4", "pure", "2025-01-02T03:04:05+0000", "not over when this was written"):
        assert words in head
    assert ["formats from step 13", "E5M2 (by mantissa-shift)"] in cells(head)
    rows = dict(cells(summary))
    assert rows["steps (batches drawn)"] == "12 of 40"
    assert rows["parameters quantized"] == "75.00%"
    assert rows["FLOPs quantized"] == "50.00%"

    measured = section(report, "What was measured")
    assert (
        "90.00% of the nonzero updates of stored weights left the weight where it was" in measured
    )
    assert "25.00% of the nonzero updates of float32 master weights" in measured
    assert "1 of 2 gradients are zero everywhere: h.1.weight" in measured
    assert "25.00% of what was quantized was flushed to zero" in measured
    assert "Nothing could overflow" in measured

    assert "not finite first" not in report
    conclusion = section(report, "Conclusion")
    assert report.index("## Conclusion") < report.index("| format |")
    assert "Step 12, most updates of stored weights moved nothing" in report
    assert "- The update is lost: 90.00% of the nonzero updates" in report
    assert conclusion.startswith("**not over when this was written**.")
    assert cells(section(report, "Gradients")) == [
        ["h.1.weight", "100.00%", "0"],
        ["h.0.weight", "12.50%", "2.5"],
    ]
    assert cells(section(report, "Updates that moved nothing")) == [
        ["h.0", "stored", "100", "90.00%"],
        ["h.1", "view", "40", "25.00%"],
    ]
    assert cells(section(report, "Lost in quantization")) == [
        ["h.0", "activation@fwd", "E3M4", "25.00%", "n/a (amax)", "0"]
    ]
    block = section(report, "The last 10 recorded steps")
    head = [cell.strip() for cell in block.splitlines()[0].strip("|").split("|")]
    named = ["gradient norm, raw", "learning rate", "stored stall", "overflow", "flushed"]
    assert head == ["step", "loss", *named]  # no view stall: there is none
    last = cells(block)
    assert [row[0] for row in last] == [str(s) for s in range(3, 13)]
    assert last[-1][1:] == ["3.8", "2", "0.001", "12.00%", "n/a (amax)", "25.00%"]
    assert "norm, after clipping" in section(report, "Gradients")
    done = section(report, "What was proposed")
    assert cells(done) == [
        [
            "mantissa-shift",
            "ChangeRecipe, layers *, format E5M2",
            "E3M4 is shifted to E5M2",
            "chosen",
        ],
        ["pauser", "SkipStep", "let us wait", "refused: ChangeRecipe comes first"],
    ]
    assert "Outcome: ChangeRecipe by mantissa-shift." in done
    assert "E3M4 -> E5M2 by mantissa-shift; largest relative error of re-encoding 0.03" in done
    environment = section(report, "Environment")
    for words in ("torch 2.13.0", "seed 42", "git 0123456789ab (changed)", "mantissa-shift"):
        assert words in environment


def test_what_was_not_measured_is_left_out(tmp_path):
    """From a bare record nothing is made up: no rate is 0, and one line names the plugins."""
    bare = {"step": 3, "event": "collapse", "cause": "diverged", "reason": "the loss went up"}
    report = render(tmp_path, [bare], [], config={})
    for title in (
        "What was measured",
        "Gradients",
        "Updates that moved nothing",
        "Lost in quantization",
        "The last 10 recorded steps",
        "What was proposed",
    ):
        assert title not in report
    rows = dict(cells(section(report, "Summary")))
    assert set(rows) == {"steps (batches drawn)", "discarded steps", "shifted to", "shift step"}
    assert {rows["shifted to"], rows["shift step"]} == {"no shift"}
    assert "%" not in report
    missing = section(report, "Not measured")
    for plugin in ("grad-stiffness", "ulp-stats", "bit-stall", "stiffness", "grid-alignment"):
        assert f"(`{plugin}`)" in missing
    assert "\n" not in missing
    assert "do not single out a cause" in report
    some = [{"step": 2, "loss": 1.0, "ulp-stats/view_mean": 0.5}]
    assert "ulp-stats" not in section(render(tmp_path / "seen", [bare], some), "Not measured")


@pytest.mark.parametrize(
    ("monitor", "label"),
    [("val_loss", "best validation loss"), ("val_a", "validation loss at the best val_a")],
)
def test_the_validation_loss_of_the_best_evaluation_is_called_what_it_is(tmp_path, monitor, label):
    """It is the best loss only if the loss is monitored."""
    run = record(tmp_path / "run", [COLLAPSE])
    own = {"name": "run", "directory": "", "status": "collapsed", "steps": 12}
    (run / "summary.json").write_text(json.dumps({**own, "monitor": monitor, "best_val_loss": 2.5}))
    (path,) = FailureReport().render([read_run(run)], tmp_path / "out")
    assert dict(cells(section(path.read_text(), "Summary")))[label] == "2.5"


def test_rates_of_an_unquantized_run_are_not_available(tmp_path):
    """Overflow is n/a (amax) where quantizers met values, not available where there are none."""
    report = render(tmp_path, [COLLAPSE], [line(11), line(12, flushed_rate=0.0)])
    last = cells(section(report, "The last 10 recorded steps"))
    assert last[0][4:6] == ["not available"] * 2
    assert last[1][4:6] == ["n/a (amax)", "0.00%"]


def test_stochastic_rounding_is_told_apart(tmp_path):
    """What stalls under it is not lost."""
    row = {**COLLAPSE["layers"][0], "operand": "stored_weight", "updates": 10, "stalled": 9}
    rows = [{**row, "layer": "h.1", "rounding": "stochastic"}, {**row, "rounding": "nearest-even"}]
    report = render(tmp_path, [{**COLLAPSE, "layers": rows}])
    said = section(report, "What was measured")
    assert "90.00% of the nonzero updates of stored weights left the weight where it was." in said
    assert "of stored weights rounded stochastically waited for their chance." in said
    kinds = {r[0]: r[1] for r in cells(section(report, "Updates that moved nothing"))}
    assert kinds == {"h.0": "stored", "h.1": "stored, stochastic"}


def test_warnings_are_no_collapse(tmp_path):
    """They are listed, and have no section of their own."""
    warning = {"step": 7, "event": "warning", "cause": "stalled", "message": "views stalled"}
    report = render(tmp_path, [warning, {**warning, "step": 9, "message": "gradients are dead"}])
    assert report.startswith("# run: no collapse was recorded")
    assert cells(section(report, "Warnings")) == [
        ["7", "views stalled"],
        ["9", "gradients are dead"],
    ]
    assert "Warnings" not in render(tmp_path / "none", [])


def test_an_overflow_is_a_cause_above_the_runs_own_threshold(tmp_path):
    """``overflow_threshold`` of the configuration, as the run's warning has it."""
    event = {**COLLAPSE, "layers": [{**COLLAPSE["layers"][0], "overflow": 50, "flushed": 0}]}
    for threshold, is_named in ((0.01, True), (0.2, False)):
        config = {"overflow_threshold": threshold}
        said = interpretation(event, [], config)
        assert any("5.00% of activation@fwd in h.0 overflow" in line for line in said) == is_named


def test_a_measured_overflow_is_shown(tmp_path):
    """Where a cast could overflow its rate is a number, 0 included."""
    row = {**COLLAPSE["layers"][0], "overflow": 10}
    other = {**row, "layer": "h.1", "overflow": 0, "flushed": 0}
    report = render(tmp_path, [{**COLLAPSE, "layers": [other, row]}])
    assert "0.50% of what could overflow did." in section(report, "What was measured")
    shown = [(r[0], r[4]) for r in cells(section(report, "Lost in quantization"))]
    assert shown == [("h.0", "1.00%"), ("h.1", "0.00%")]


def test_says_what_was_not_finite_first(tmp_path):
    """The first of the consecutive steps counts, not an earlier one that training survived."""
    nans = [
        {
            "step": step,
            "event": "nan",
            "what": "gradient",
            "layer": layer,
            "operand": operand,
            "value": float("inf"),
            "consecutive": n,
        }
        for step, layer, operand, n in (
            (2, "early", None, 1),
            (11, "h.0.weight", "gradient@dgrad", 1),
            (12, "h.1.weight", None, 2),
        )
    ]
    collapse = {**COLLAPSE, "cause": "nan_patience"}
    metrics = [line(12, loss=float("nan"), discarded=True)]
    report = render(tmp_path, [*nans, collapse], metrics)
    block = section(report, "What was not finite first")
    assert "Non-finite steps so far: 3; now, the first and the last of 2" in block
    assert cells(block) == [
        ["11", "gradient", "h.0.weight", "gradient@dgrad", "inf"],
        ["12", "gradient", "h.1.weight", "not available", "inf"],
    ]
    last = cells(section(report, "The last 10 recorded steps"))
    assert (last[0][1], last[0][-1]) == ("nan", "discarded")
    named = "At step 11 the gradient of h.0.weight (gradient@dgrad) was not finite first."
    assert named in report.partition("## Summary")[0]


def test_discarded_steps_count_whether_recorded_or_not(tmp_path):
    """Of a run that is not over they are told by what happened; a summary has their number."""
    nans = [{"step": s, "event": "nan", "what": "loss"} for s in (2, 11, 12)]
    skip = {**VERDICT, "step": 5, "cause": None}
    skip["chosen"] = [{"plugin": "skipper", "action": "SkipStep", "reason": "as it likes"}]
    collapse = {**COLLAPSE, "cause": "nan_patience"}
    metrics = [line(10), line(12, discarded=True)]
    report = render(tmp_path, [nans[0], skip, *nans[1:], collapse, VERDICT], metrics)
    assert dict(cells(section(report, "Summary")))["discarded steps"] == "4"
    assert "Steps were discarded from step 11 on" in section(report, "Conclusion")
    summary = {"name": "run", "directory": "", "status": "collapsed", "steps": 12, "discarded": 7}
    (tmp_path / "run" / "summary.json").write_text(json.dumps(Summary(**summary).to_file()))
    (path,) = FailureReport().render([read_run(tmp_path / "run")], tmp_path / "out")
    assert dict(cells(section(path.read_text(), "Summary")))["discarded steps"] == "7"


def test_an_infinite_gradient_is_named(tmp_path):
    """It comes before the zeros, and is named among the readings."""
    gradients = {**COLLAPSE["gradients"], "h.2.weight": {"zero_share": 0.0, "norm": float("inf")}}
    report = render(tmp_path, [{**COLLAPSE, "gradients": gradients}])
    said = section(report, "What was measured")
    assert "1 of 3 gradients are not finite: h.2.weight." in said
    assert cells(section(report, "Gradients"))[0] == ["h.2.weight", "0.00%", "inf"]


def test_one_cause_has_one_section(tmp_path):
    """When it comes again, it is listed there."""
    again = {**COLLAPSE, "step": 20, "reason": "once more"}
    verdict = {**VERDICT, "step": 20, "chosen": [], "refused": [], "outcome": "recorded"}
    report = render(tmp_path, [COLLAPSE, VERDICT, again, verdict])
    assert report.count("## Step ") == 1
    rows = cells(section(report, "The same cause again"))
    assert rows == [["20", "once more", "recorded"]]


def test_every_cause_has_a_section(tmp_path):
    """A run that went on and broke again keeps both, each with its own verdict and steps."""
    later = {**COLLAPSE, "step": 20, "cause": "diverged", "reason": "again"}
    verdict = {**VERDICT, "step": 20, "chosen": [], "refused": [], "outcome": "recorded"}
    events = [COLLAPSE, VERDICT, RECIPE, later, verdict]
    report = render(tmp_path, events, [line(s) for s in range(1, 21)])
    first, second = report.split("## Step ")[1:]
    assert "Outcome: ChangeRecipe by mantissa-shift." in first
    assert "formats E3M4 -> E5M2" in first
    assert "No plugin proposed anything." in second
    assert "formats E3M4" not in second
    assert [row[0] for row in cells(section(second, "The last"))][-1] == "20"
    assert [row[0] for row in cells(section(first, "The last"))][-1] == "12"


def test_a_resumed_run_breaks_once(tmp_path):
    """What a run went through again after a resume is told once."""
    resume = {"step": 10, "event": "resume", "checkpoint": "step-00000010"}
    report = render(tmp_path, [COLLAPSE, VERDICT, resume, COLLAPSE, VERDICT])
    assert report.count("## Step 12") == 1


def test_a_run_without_collapse_says_so(tmp_path):
    """Asked for the report of a run that trained, it says that nothing was recorded."""
    report = render(tmp_path, [], [line(1), line(2)])
    assert report.startswith("# run: no collapse was recorded")
    assert [row[0] for row in cells(section(report, "Last steps"))] == ["1", "2"]


@pytest.mark.parametrize(
    ("recipe", "shown"),
    [
        ("pure", "pure"),
        ({"name": "mine.yaml", "weight": "E4M3"}, "mine.yaml"),
        ({"weight": "E4M3"}, "given in config.yaml"),
    ],
)
def test_a_recipe_is_shown_by_its_name(tmp_path, recipe, shown):
    """One that has none is where the configuration has it."""
    report = render(tmp_path, [], config={"recipe": recipe})
    assert f"| recipe | {shown} |" in report


def test_formats_of_a_recipe_are_shown(start):
    """A recipe that brings its own needs no format of the run's."""
    result = start(recipe={"weight": "E4M3", "gradient": "E5M2"}, max_steps=1)
    (path,) = FailureReport().render(
        [read_run(result.run_directory)], result.run_directory / "again"
    )
    assert "| format | E4M3, E5M2 |" in path.read_text()


def test_runs_of_one_name_do_not_overwrite_each_other(tmp_path):
    """Several runs are rendered into as many files."""
    runs = [read_run(record(tmp_path / part / "same", [COLLAPSE])) for part in ("a", "b")]
    paths = FailureReport().render(runs, tmp_path / "out")
    assert len(set(paths)) == 2
    assert all(path.read_text().startswith("# same: ") for path in paths)


def test_text_stays_text(tmp_path):
    """What plugins and files say can neither break a table nor carry HTML or an image."""
    reason = "a|b\n<script>alert(1)</script> ![x](http://127.0.0.1/x.png)"
    report = render(tmp_path, [{**COLLAPSE, "reason": reason}])
    assert "<script" not in report
    assert "![x](" not in report
    assert r"a\|b &lt;script>" in report


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0, "0.00%"),
        (1e-6, "under 0.01%"),
        (0.5, "50.00%"),
        (0.99999, "over 99.99%"),
        (1, "100.00%"),
        (None, "not available"),
        ("nan", "nan"),
    ],
)
def test_rates_in_words(value, words):
    """Only 0 looks like 0."""
    assert rate(value) == words


def test_numbers_in_words():
    """A number that JSON cannot hold comes back as its word."""
    assert [number(x) for x in (1.5, "nan", None, float("inf"))] == [
        "1.5",
        "nan",
        "not available",
        "inf",
    ]
    assert text(None) == "not available"


def test_a_run_that_fails_on_a_collapse_is_reported(tmp_path):
    """Where no verdict came, because the plugins broke or disagreed, the end writes the report."""
    end = {"step": 12, "event": "end", "status": "failed", "verdict": "failed at step 12"}
    folder = record(tmp_path / "run", [COLLAPSE, end])
    made = Summary(name="run", directory="", status="failed", steps=12, verdict=end["verdict"])
    (folder / "summary.json").write_text(json.dumps(made.to_plain()))
    (folder / "reports").mkdir()
    run = SimpleNamespace(directory=folder, reports_dir=folder / "reports", reports=[])
    plugin = FailureReport()
    for event in (COLLAPSE, end):
        plugin.on_event(run, event)
    report = (folder / "reports" / "failure.md").read_text()
    assert ["status", "failed"] in cells(report)
    assert "What was proposed" not in report
    assert section(report, "Conclusion").startswith("**failed at step 12**.")


TINY = {
    "gpt.size": "tiny",
    "max_steps": 12,
    "learning_rate": 1e30,
    "grad_clip": 0,
    "eval_steps": 1,
    "checkpoint_interval": 0,
    "no_plugins": ["page"],
}


def test_a_run_that_collapses(tmp_path):
    """Weights spoilt in step 1 spend the NaN patience: the report is written, named, and the
    same when it is rendered again from the record alone.
    """
    result = altcore.train(
        {**TINY, "format": "E3M4", "nan_patience": 3, "runs_dir": str(tmp_path), "name": "broken"}
    )
    assert result.status == "collapsed"
    path = tmp_path / "broken" / "reports" / "failure.md"
    assert result.failure_report_path == path
    assert result.summary["reports"] == ["reports/failure.md"]
    events = (tmp_path / "broken" / "events.jsonl").read_text()
    assert events.count('"event": "report"') == 1

    report = path.read_text()
    assert report.startswith("# broken: nan_patience at step 4\n")
    assert ["status", "collapsed"] in cells(report.split("## Summary")[0])
    first = cells(section(report, "What was not finite first"))[0]
    assert first[0] == "2"
    assert first[1:] != ["not available"] * 4
    assert len(cells(section(report, "The last 10"))) == 4
    assert "not finite" in section(report, "What was measured")
    assert "Outcome: the run stops." in section(report, "What was proposed")

    (again,) = FailureReport().render([read_run(tmp_path / "broken")], tmp_path / "out")
    assert again.read_text() == report


def test_a_plugin_stops_a_run_that_is_not_finite(tmp_path):
    """A Stop in a non-finite step comes before any collapse, and is reported like one."""
    result = altcore.train(
        {
            **TINY,
            "format": "E5M2",
            "plugins": ["mantissa-shift"],
            "mantissa-shift.nan_patience": 2,
            "runs_dir": str(tmp_path),
        }
    )
    assert result.status == "stopped"
    report = result.failure_report_path.read_text()
    assert "stopped at step 3\n" in report
    assert "the chain of formats ends at E5M2" in section(report, "What was proposed")
    assert "### Gradients\n" not in report
    assert section(report, "Conclusion").startswith("**did not learn: 2 of 3 steps discarded;")


def test_a_run_that_trains_has_no_report(tmp_path):
    """Nothing is written where nothing broke."""
    result = altcore.train(
        {**TINY, "learning_rate": 1e-3, "max_steps": 2, "format": "none", "runs_dir": str(tmp_path)}
    )
    assert result.status == "finished"
    assert result.failure_report_path is None
    assert list((result.run_directory / "reports").iterdir()) == []


# ------------------------------------------------------------------ what diagnostics measured

SAMPLED = [
    {
        "step": s,
        "loss": 3.0,
        "stored_stall_rate": 0.7,
        "stiffness/stored_mean": 0.01 * s,
        "grid-alignment/stored_ulp_mean": 0.0,
        "ulp-stats/stored_mean": 0.25,
        "ulp-stats/stored_zero_share": 0.9,
        "grad-stiffness/stored_below_share": 0.6,
        "bit-stall/stored_cause_coarse": 0.8,
        "bit-stall/stored_cause_weak_signal": 0.2,
    }
    for s in range(1, 9)
]


def test_samples_come_from_the_diagnostics():
    """The last five of them; sparsity above a half is marked; zero moves go before stall rates."""
    from altcore_reporters.failure_samples import samples, sparsity, unmoved

    shown = samples(SAMPLED, 7)
    assert [line.split(" | ")[0] for line in shown[2:]] == [f"| {s}" for s in range(3, 8)]
    assert "| 7 | stored | 0.07 | 0 | 0.25 | 60.00% |" in shown
    assert "| stored | 8 | 60.00% | **CRITICAL** |" in sparsity(SAMPLED, 8)
    below = [{**x, "grad-stiffness/stored_below_share": 0.4} for x in SAMPLED]
    assert "CRITICAL" not in "".join(sparsity(below, 8))
    assert "at ULP distance 0" in unmoved(SAMPLED, 8)[0]
    core = [{"step": 3, "loss": 1.0, "stored_stall_rate": 0.7}]
    assert "| stored | 3 | 70.00% |" in unmoved(core, 8)
    for empty in (samples, sparsity, unmoved):
        assert empty([{"step": 1, "loss": 1.0}], 8) == []


def test_the_interpretation_rests_on_measurements():
    """A lost update, its cause, and a format that does not reach low enough; no name of one."""
    from altcore_reporters.failure_samples import interpretation

    event = {
        "step": 8,
        "cause": "stalled",
        "layers": [
            {"layer": "a", "operand": "stored_weight", "updates": 100, "stalled": 90},
            {
                "layer": "b",
                "operand": "gradient@dgrad",
                "elements": 50,
                "flushed": 20,
                "overflow": None,
            },
        ],
        "gradients": {"w": {"zero_share": 1, "norm": 0.0}, "v": {"zero_share": 0, "norm": 1.0}},
    }
    said = "\n".join(interpretation(event, SAMPLED, {"format": "E7M0"}))
    assert "90.00% of the nonzero updates" in said
    assert "Most of these (80.00%): the grid is too coarse" in said
    assert "40.00% of gradient@dgrad in b are flushed to zero: it does not reach low enough" in said
    assert "1 of 2 gradients are zero" in said
    assert "E7M0" not in said
    kept = {**event, "layers": [{**event["layers"][0], "rounding": "stochastic"}], "gradients": {}}
    said = "\n".join(interpretation(kept, SAMPLED, {}))
    assert "rounded stochastically keep the mean of their updates" in said
    assert "update is lost" not in said
    quiet = {"step": 8, "cause": "diverged", "layers": [], "gradients": {}}
    assert "do not single out a cause" in interpretation(quiet, [], {})[0]
    taken = {**event, "layers": [{**event["layers"][0], "stalled": 10}], "gradients": {}}
    assert "the update is not the cause" in interpretation(taken, [], {})[0]


def test_it_is_written_again_at_any_time(start, monkeypatch):
    """``altcore report failure-report RUN`` gives the same text as the run left."""
    from click.testing import CliRunner

    from altcore.cli import cli

    result = start(["failure-report"], format="E4M3", max_steps=2)
    arguments = ["report", "failure-report", result.run_directory.name]
    found = CliRunner().invoke(cli, [*arguments, "--runs-dir", str(start.runs)])
    assert found.exit_code == 0
    path = result.run_directory / "reports" / "failure.md"
    assert found.output.strip() == str(path)
    assert "no collapse was recorded" in path.read_text()
