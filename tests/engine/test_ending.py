"""How a run ends: summary.json after every end, with the verdict of a reader of the loss curve."""

import json
import math
import os
import signal
from statistics import fmean, stdev

import pytest
from attrs import define, fields
from helpers import events, metrics_bytes, weights_sha256
from helpers_cli import call

from altcore import ScaleLearningRate, Stop, hookimpl
from altcore.engine.summarizing import is_improving, rates
from altcore.errors import BadInput, Interrupted, PluginError
from altcore.recipes import NAMED
from altcore.registry import entries
from altcore.runs import Summary, read_lines, summary_of


def acting(shelf, kind="intervention", name="acting", **methods):
    """Install a plugin with these hooks."""
    cls = type("Acting", (), {hook: hookimpl(method) for hook, method in methods.items()})
    return shelf.install(kind, name, define(eq=False)(cls))


def check_summary(run_directory, **expected):
    """Read the summary that a run left, and compare; it fits the schema, and holds no NaN."""
    plain = json.loads((run_directory / "summary.json").read_text(), parse_constant=pytest.fail)
    assert (next(iter(plain)), [*plain][-1]) == ("name", "digest")
    del plain["digest"], plain["records"]
    assert list(plain) == [a.name for a in fields(Summary)]
    assert summary_of(run_directory) == plain
    assert {key: plain[key] for key in expected} == expected
    (end,) = events(run_directory, "end")[-1:]
    assert (end["status"], end["verdict"]) == (plain["status"], plain["verdict"])
    return plain


def test_a_run_that_learned(start):
    """Every number stands where it belongs."""
    run = start(name="r", max_steps=120, eval_interval=40, warmup_steps=5)
    plain = check_summary(run.run_directory, name="r", status="finished", learned=True, steps=120)
    assert run.summary == plain
    assert plain["verdict"].startswith("learned")
    assert run.verdict == plain["verdict"]
    losses = [x["loss"] for x in run.metrics_history]
    assert (plain["final_loss"], plain["final_loss_step"]) == (losses[-1], 120)
    assert plain["best_loss"] == min(losses)
    assert losses[plain["best_loss_step"] - 1] == min(losses)
    assert plain["evaluation"]["step"] == 120
    assert plain["evaluation"]["val_loss"] == plain["val_loss"]
    assert plain["best_evaluation"]["step"] == plain["best_step"]
    assert plain["best_val_loss"] <= plain["val_loss"]
    assert plain["workload"] == "gpt"
    assert plain["workload_facts"]["unigram_entropy"] * 0.95 >= plain["val_loss"]
    assert (plain["optimizer"], plain["seed"], plain["max_steps"]) == ("adamw", 42, 120)
    assert plain["item"] == "tokens"
    assert plain["seconds"] > 120 * plain["step_time_ms"] / 1000 > 0
    assert plain["items_per_second"] > 0
    unquantized = ("stored_stall_rate", "view_stall_rate", "bit_stall_final", "bit_stall_of")
    assert {plain[k] for k in (*unquantized, "overflow_rate", "flushed_rate")} == {None}
    assert plain["failure_step"] is plain["failure_reason"] is plain["stopped_by"] is None


@define(eq=False)
class ChangesFacts:
    """Gives the data another entropy, after the hook was looked at once."""

    @hookimpl
    def post_step(self, run, step):
        if step.index == 2:
            run.workload.facts["unigram_entropy"] = 99.0


def test_a_run_is_judged_by_the_facts_that_it_recorded(start, shelf):
    """Whoever changes them later, by the record it did not learn."""
    shelf.install("diagnostic", "changes-facts", ChangesFacts)
    run = start(["changes-facts"], name="r", max_steps=4, learning_rate=1e-9)
    plain = check_summary(run.run_directory, learned=False, verdict="did not learn")
    assert plain["workload_facts"]["unigram_entropy"] < 99


def test_a_run_that_did_not_learn(start):
    """It finished, and its loss is where it was."""
    run = start(name="r", max_steps=4, format="E7M0", recipe="pure", learning_rate=1e-9)
    check_summary(run.run_directory, learned=False, verdict="did not learn", status="finished")


def test_a_run_that_a_plugin_stops(shelf, start):
    """Step and reason are its own, and the final loss is the last finite one."""

    def pre_backward(self, run, step):
        step.loss = step.loss * (math.nan if step.index == 3 else 1)

    def on_nan(self, run, step, where):
        return Stop(reason="enough")

    acting(shelf, pre_backward=pre_backward, on_nan=on_nan)
    run = start(["acting"], name="r", max_steps=9)
    plain = check_summary(
        run.run_directory,
        status="stopped",
        failure_step=3,
        failure_reason="enough",
        stopped_by="acting",
        stop_reason="enough",
        final_loss=run.metrics_history[1]["loss"],
        final_loss_step=2,
        discarded=1,
    )
    assert plain["verdict"].endswith("; stopped by acting at step 3")
    # Going on, it is stopped no more.
    shelf.monkeypatch.setattr("altcore.engine.loop.Engine.on_nan", lambda *_: [])
    again = start.resume("r", max_steps=12)
    check_summary(again.run_directory, status="finished", stopped_by=None, failure_step=None)


def test_a_run_that_collapses(shelf, start):
    """Spent NaN patience ends it."""

    def pre_backward(self, run, step):
        step.loss = step.loss * (math.nan if step.index > 2 else 1)

    acting(shelf, pre_backward=pre_backward)
    run = start(["acting"], name="r", max_steps=9, nan_patience=2)
    plain = check_summary(run.run_directory, status="collapsed", failure_step=4, steps=4)
    assert plain["verdict"] == "did not learn; collapsed at step 4"
    assert "2 consecutive steps were not finite" in plain["failure_reason"]
    run = start(["acting"], name="s", max_steps=9, nan_patience=9)
    assert run.verdict == "did not learn: 7 of 9 steps discarded"


def test_a_run_that_diverges_and_goes_on(start):
    """The verdict is what the loss curve shows: when it left its start behind, and how it ended."""
    run = start(name="r", learning_rate=3.0, max_steps=40)
    losses = [x["loss"] for x in run.metrics_history]
    averages = {n: fmean(losses[n - 20 : n]) for n in range(26, 41)}
    first = next(n for n, average in averages.items() if average > 1.2 * losses[0])
    plain = check_summary(run.run_directory, status="finished", steps=40, learned=False)
    (collapse,) = plain["collapses"]
    assert (collapse["step"], collapse["cause"]) == (first, "diverged")
    assert fmean(losses[20:30]) > fmean(losses[30:]) > 2 * losses[0]
    says = f"did not learn, still improving at the end; collapsed at step {first}, went on"
    assert plain["verdict"] == says
    assert (plain["failure_step"], plain["failure_reason"]) == (first, collapse["reason"])


def test_a_run_that_stalls_and_goes_on(start):
    """Weights that no update moves: the curve is flat from its first step to its last."""
    stored = {"stored_weight": {"format": "E7M0", "rounding": "nearest-even"}}
    keys = {"learning_rate": 1e-6, "schedule": "constant", "warmup_steps": 0, "stall_window": 20}
    run = start(name="r", recipe=stored, max_steps=40, **keys)
    losses = [x["loss"] for x in run.metrics_history]
    plain = check_summary(run.run_directory, status="finished", steps=40, learned=False)
    assert plain["stored_stall_rate"] > 0.99
    assert abs(fmean(losses[:20]) - fmean(losses[20:])) < stdev(losses)
    first = plain["collapses"][0]["step"]
    assert {c["cause"] for c in plain["collapses"]} == {"stalled"}
    assert first >= 20, "a whole window was judged"
    assert plain["verdict"] == f"did not learn; collapsed at step {first}, went on"


def test_a_run_that_learned_and_then_diverges(shelf, start):
    """The last evaluation decides what it came to, and the step says when."""

    def pre_step(self, run, step):
        return ScaleLearningRate(factor=300.0, reason="too much") if step.index == 100 else None

    acting(shelf, pre_step=pre_step)
    run = start(["acting"], name="r", max_steps=130, schedule="constant", eval_interval=99)
    losses = [x["loss"] for x in run.metrics_history]
    assert fmean(losses[90:99]) < 0.6 * losses[0] < losses[0] < fmean(losses[110:])
    plain = check_summary(run.run_directory, status="finished", learned=False, best_step=99)
    (collapse,) = plain["collapses"]
    assert 100 < collapse["step"] <= 120
    assert plain["verdict"].startswith("did not learn")
    assert plain["verdict"].endswith(f"; collapsed at step {collapse['step']}, went on")


def test_a_run_that_fails(shelf, start):
    """The error, and the step at which it came."""

    def pre_step(self, run, step):
        if step.index == 2:
            raise RuntimeError("planted")

    acting(shelf, pre_step=pre_step)
    with pytest.raises(PluginError, match="planted"):
        start(["acting"], name="r")
    plain = check_summary(start.runs / "r", status="failed", failure_step=2)
    assert plain["verdict"] == "failed at step 2"
    assert "planted" in plain["error"]
    assert plain["failure_reason"] == plain["error"]


def test_a_run_that_fails_at_its_very_end(shelf, start):
    """Also an intervention's run_end, and under --strict anybody's, counts."""

    def run_end(self, run, summary):
        raise RuntimeError("too late")

    acting(shelf, run_end=run_end)
    with pytest.raises(PluginError, match="too late"):
        start(["acting"], name="r")
    assert json.loads((start.runs / "r/summary.json").read_text())["status"] == "failed"


def test_a_run_that_is_interrupted_and_resumed(shelf, start):
    """A stale summary never speaks for a run that goes on."""

    def post_backward(self, run, step):
        if step.index == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    seen = []

    def run_start(self, run):
        seen.append((run.directory / "summary.json").exists())

    acting(shelf, "diagnostic", post_backward=post_backward, run_start=run_start)
    with pytest.raises(Interrupted):
        start(["acting"], name="r", max_steps=5)
    plain = check_summary(start.runs / "r", status="interrupted", steps=2, failure_step=None)
    assert plain["verdict"] == "interrupted at step 2"
    assert "SIGTERM" in plain["error"]
    run = start.resume("r")
    assert seen == [False, False]
    again = check_summary(run.run_directory, status="finished", steps=5, error=None)
    assert again["seconds"] > plain["seconds"] > 0


def test_a_report_of_run_end_is_in_the_summary(shelf, start):
    """The summary is written again when all have been told."""

    def run_end(self, run, summary):
        assert summary_of(run.directory) == summary
        (run.reports_dir / "late.md").write_text("late")
        run.reports.append("reports/late.md")

    acting(shelf, "reporter", run_end=run_end)
    run = start(["acting"], name="r")
    check_summary(run.run_directory, reports=["reports/late.md"], degraded=[])
    assert run.files["reports/late.md"].read_text() == "late"
    assert run.files["checkpoints/step-00000003"].is_dir()
    assert {"summary.json", "metrics.jsonl", "config.yaml"} <= set(run.files)


@pytest.mark.parametrize("recipe", [r for r in NAMED if r != "none"])
def test_every_recipe_gives_a_summary(recipe, start):
    """Stall is that of stored weights where there are any, else of views."""
    from altcore.recipes import takes_format

    own = {"format": "E4M3"} if takes_format(recipe) else {}
    run = start(recipe=recipe, max_steps=2, **own)
    plain = check_summary(run.run_directory, recipe=recipe)
    which = "stored" if plain["stored_stall_rate"] is not None else "view"
    assert plain["bit_stall_of"] in (which, None)
    if plain["bit_stall_of"]:
        assert plain["bit_stall_final"] == plain[f"{which}_stall_final"]
    assert plain["first_formats"] == plain["last_formats"] != []


OTHER_WORKLOADS = {
    "resnet18-cifar": {
        "resnet18-cifar.data": "generated",
        "resnet18-cifar.image_size": 16,
        "resnet18-cifar.width_mult": 0.125,
        "resnet18-cifar.batch_size": 32,
    }
}
"""Settings with which they are small; `start` has those of gpt."""


@pytest.mark.parametrize("workload", [e.name for e in entries() if e.kind == "workload"])
@pytest.mark.parametrize("learns", [True, False])
def test_every_workload_gives_a_summary(workload, learns, start):
    """With its measures, and a verdict that its losses give."""
    steps = (120 if workload == "gpt" else 20) if learns else 4
    rate = 1e-2 if learns else 1e-9
    keys = {"workload": workload, "max_steps": steps, "learning_rate": rate, "eval_interval": 3}
    run = start(name="r", format="E4M3", **keys, **OTHER_WORKLOADS.get(workload, {}))
    plain = check_summary(run.run_directory, workload=workload, status="finished", steps=steps)
    first, *_, last = (
        x for x in read_lines(run.run_directory / "metrics.jsonl") if "val_loss" in x
    )
    assert (plain["val_loss"], plain["evaluation"]) == (last["val_loss"], last)
    assert (last["val_loss"] < 0.9 * first["val_loss"]) == learns
    assert plain["learned"] is learns
    assert plain["verdict"].startswith("learned" if learns else "did not learn")
    assert ("val_accuracy" in plain["evaluation"]) == (workload == "resnet18-cifar")


def test_rates_are_of_the_run_and_of_its_last_tenth():
    """Underflow is what a diagnostic measured, when it did."""
    lines = [{"step": s, "stored_stall_rate": s / 20, "view_stall_rate": None} for s in range(20)]
    lines[4]["seen/underflow_share"] = 0.5
    lines[4]["seen/underflow_share/h.0"] = 0.9
    found = rates(lines)
    assert found["stored_stall_rate"] == pytest.approx(9.5 / 20)
    assert found["stored_stall_final"] == found["bit_stall_final"] == pytest.approx(18.5 / 20)
    assert found["bit_stall_of"] == "stored"
    assert found["underflow_rate"] == found["underflow_final"] == 0.5
    assert found["view_stall_rate"] is found["overflow_rate"] is None


def test_still_improving_is_judged_over_the_end():
    """Over the last tenth, or 20 steps if that is more; discarded steps do not count."""

    def falls(loss, count=300, *, is_update=True):
        steps = [(s, loss(s) + s % 2 / 100, is_update) for s in range(1, count + 1)]
        return is_improving(steps, count * is_update)

    assert falls(lambda s: 5 - s / 100)
    assert not falls(lambda s: max(1, 5 - s / 50))
    assert not falls(lambda s: 5 + s / 100)
    assert not falls(lambda s: 5 - s / 100, count=19)
    assert not falls(lambda s: 5 - s / 100, is_update=False)


# ------------------------------------------------------------------------------- findings


def measuring(shelf, findings, kind="diagnostic"):
    def post_backward(self, run, step):
        return {"twice": 2 * step.index, "twice/h.0": step.index} if step.index > 1 else None

    acting(shelf, kind, "seen", post_backward=post_backward, findings=findings)


def test_a_diagnostic_says_what_it_found(shelf, start):
    """It gets its own measures, of the whole run, after a resume too."""
    measuring(shelf, lambda self, history: ["counted", *history])
    rows = [{"step": s, "twice": 2 * s, "twice/h.0": s} for s in (2, 3)]
    run = start(["seen"], name="r")
    assert run.summary["findings"] == {"seen": ["counted", *rows]}
    again = start.resume("r", max_steps=4)
    said = again.summary["findings"]["seen"]
    assert said == ["counted", *rows, {"step": 4, "twice": 8, "twice/h.0": 4}]


def test_a_plugin_without_measures_is_not_asked_cache(shelf, start):
    """There is nothing to find."""
    acting(shelf, "diagnostic", "seen", findings=lambda self, history: 1 / 0)
    run = start(["seen"])
    assert (run.summary["findings"], run.summary["degraded"]) == ({}, [])


@pytest.mark.parametrize(
    ("keys", "said"),
    [({}, "recorded no measure: nothing is quantized"), ({"format": "E4M3"}, None)],
)
def test_a_diagnostic_that_recorded_nothing_is_named(keys, said, start):
    """Whoever asked for it is told why."""
    run = start(["stiffness", "grad-stats"], **keys)
    assert run.summary["findings"].get("stiffness", [None])[0] == said
    assert said not in run.summary["findings"].get("grad-stats", [])


@pytest.mark.parametrize(
    "said", ["text", [1], [{"x": [1]}], [{"x": object()}], ["x"] * 17, {"a": 1}]
)
def test_findings_of_the_wrong_type_degrade_the_run(said, shelf, start):
    """The summary is written all the same."""
    measuring(shelf, lambda self, history: said)
    run = start(["seen"])
    assert (run.summary["findings"], run.summary["degraded"]) == ({}, ["seen"])
    check_summary(run.run_directory, degraded=["seen"])


def test_interventions_have_no_findings(shelf, start):
    """What they did is in the events."""
    measuring(shelf, lambda self, history: [], kind="intervention")
    with pytest.raises(BadInput, match="findings is a hook of diagnostics and reporters"):
        start(["seen"])


def test_the_headline_command_ends_with_the_movement_of_the_weights(start):
    """In ULPs, early and late."""
    run = start(["ulp-stats"], format="E7M0", max_steps=4, **{"ulp-stats.interval": 2})
    means, unmoved = run.summary["findings"]["ulp-stats"]
    assert means["movement of the weights"] == "view, ULPs"
    line = run.diagnostics_history[-1]
    assert means["late"] == line["ulp-stats/view_mean"]
    assert means["early"] == run.diagnostics_history[0]["ulp-stats/view_mean"]
    assert unmoved["late"] == line["ulp-stats/view_zero_share"]
    assert unmoved["there"] == line[f"ulp-stats/view_zero_share/{unmoved['worst layer']}"]


# -------------------------------------------------------------------------------- timings


def test_timings_reach_those_who_look(shelf, start):
    """Of the step that the metrics are of; no file that must repeat holds any."""
    seen = []

    def on_record(self, metrics, timings):
        seen.append((metrics["step"], timings["step_time_ms"], timings["items_per_second"]))

    acting(shelf, "diagnostic", on_record=on_record)
    run = start(["acting"], eval_interval=2, max_steps=5)
    assert [step for step, *_ in seen] == [1, 2, 3, 4, 5]
    assert all(time > 0 for _, time, _ in seen)
    for _, time, speed in seen:
        assert time * speed / 1000 == pytest.approx(4 * 16)  # items of a step
    text = metrics_bytes(run.run_directory).decode()
    assert "time" not in text
    assert "second" not in text


def test_interventions_get_no_timings(shelf, start):
    """What they do must not depend on the clock."""

    def on_record(self, timings):
        pass

    acting(shelf, on_record=on_record)
    with pytest.raises(BadInput, match="on_record may not take 'timings'"):
        start(["acting"])


@pytest.mark.parametrize("left", [None, "", "{", "[]", '{"steps": "x"}'])
@pytest.mark.parametrize("status", ["finished", "stopped"])
def test_a_lost_summary_of_a_run_that_is_over_is_written_again(status, left, start, shelf, capsys):
    """Only its end is done again: status, numbers and weights stay as they were."""
    acting(shelf, pre_step=lambda self, step: Stop(reason="enough") if step.index == 3 else None)
    run = start(["acting"] * (status == "stopped"), name="r", max_steps=3).run_directory
    file = run / "summary.json"
    before = check_summary(run, status=status)
    record = (metrics_bytes(run), weights_sha256(run))
    if left is None:
        file.unlink()
    else:
        file.write_text(left)
        said = call(capsys, "runs", "show", "r", "--runs-dir", start.runs)
        assert said.code == 2
        assert "summary.json" in said.message
        assert "altcore train --resume r writes it again" in said.message
    start.resume("r")
    assert check_summary(run) == before
    assert (metrics_bytes(run), weights_sha256(run)) == record
    with pytest.raises(BadInput, match="is finished"):
        start.resume("r")
