"""`ReportGenerator`: three reports that say what the numbers say, and no more."""

import math
import re
from pathlib import Path

import pandas as pd
import pytest
from helpers_streams import Broken

from altcore.errors import BadInput
from altcore_reporters import FailureAnalyzer, FormatComparator, ReportGenerator, markdown

NAN = math.nan


def runs(losses, **columns):
    """A frame as the original experiments' loader returns it: a row a format and seed."""
    rows = [
        {
            "format": fmt,
            "run_id": f"{fmt}-{seed}",
            "run_url": f"https://wandb.ai/me/altgrad/runs/{fmt}-{seed}",
            "state": "crashed" if loss != loss else "finished",
            "steps": 300,
            "final_loss": loss,
            "best_loss": loss - 0.5,
            "bit_stall_final": 0.9,
            "overflow_final": 0.0,
            "seed": seed,
        }
        for fmt, own in losses.items()
        for seed, loss in enumerate(own)
    ]
    return pd.DataFrame(rows).assign(**columns)


CLEAR = runs({"E3M4": (2.0, 2.5, 2.2), "E5M2": (2.1, 2.61, 2.3), "E7M0": (4.0, NAN, NAN)})


@pytest.fixture
def write(tmp_path, capsys):
    """Return a function that writes a report and returns its text."""

    def call(method, *given, **named):
        generator = ReportGenerator(tmp_path / "new" / "reports")
        path = getattr(generator, f"generate_{method}")(*given, **named)
        assert Path(path).is_absolute()
        assert capsys.readouterr().out == f"{path}\n"
        return Path(path).read_text()

    return call


def test_a_report_is_written_even_if_its_path_cannot_be_printed(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stdout", Broken("full"))
    assert Path(ReportGenerator(tmp_path).generate_format_comparison(CLEAR, "E3M4")).is_file()


def section(text, heading):
    """Return the text under a heading of the second level."""
    return text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def rows_of(text):
    """Return the rows of the tables in a text, without their heads."""
    lines = [x for x in text.splitlines() if x.startswith("|")]
    return [[c.strip() for c in x.strip("|").split("|")] for x in lines if not x.startswith("|:")]


def test_every_report_has_its_file_and_its_time(tmp_path, write):
    """Under the names of the original experiments."""
    failures = FailureAnalyzer().extract_failures(CLEAR)
    assert write("format_comparison", CLEAR, "E3M4").startswith("# FP8 Format Comparison Report\n")
    assert write("failure_modes", failures).startswith("# FP8 Failure Mode Documentation\n")
    text = write("manifold_comparison", CLEAR.assign(optimizer="adamw", manifold_aware=False))
    assert text.startswith("# Manifold-Aware vs Standard Optimizer Comparison\n")
    assert re.search(
        r"^Generated 20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00 from 9 runs\.$", text, re.M
    )
    names = ("failure_modes.md", "format_comparison.md", "manifold_comparison.md")
    assert sorted(p.name for p in (tmp_path / "new" / "reports").iterdir()) == list(names)


def test_a_name_is_a_name_and_no_path(write, tmp_path):
    """A report stays in its folder."""
    assert write("format_comparison", CLEAR, "E3M4", output_name="mine.md")
    (tmp_path / "new" / "reports" / "folder").mkdir()
    for name in ("../mine.md", "", ".", "..", "folder", None):
        with pytest.raises(BadInput, match="not the name of a file"):
            write("format_comparison", CLEAR, "E3M4", output_name=name)
    with pytest.raises(BadInput, match="cannot be made a folder"):
        ReportGenerator(tmp_path / "new" / "reports" / "mine.md")


@pytest.mark.parametrize("method", ["format_comparison", "failure_modes", "manifold_comparison"])
def test_no_data_is_a_report_that_says_so(write, method):
    """Of a frame with columns, and of one without."""
    given = [None] if method == "format_comparison" else []
    for empty in (CLEAR[:0], pd.DataFrame()):
        assert "No data" in write(method, empty, *given)


# ----------------------------------------------------------------------------------- formats


def test_a_sweet_spot_is_named_where_the_numbers_allow_it(write):
    """E5M2 is above by 0.1, 0.11 and 0.1 in the same seeds; E7M0 has one finished run."""
    two = CLEAR[CLEAR["format"] != "E7M0"]
    text = write("format_comparison", two, FormatComparator(two).identify_sweet_spot())
    assert "**Sweet spot: E3M4**, by final loss.\n" in section(text, "Summary")
    said = "E3M4 has the lowest mean final loss, 2.2333. It is distinguishable from E5M2."
    assert f"- {said}" in section(text, "Summary")
    assert f"- {said}" in section(text, "Conclusions")
    first, second = rows_of(section(text, "Rankings").partition("### By bit stall")[0])[1:]
    assert first[:3] == ["1", "E3M4", "3"]
    # By hand: mean 0.31 / 3, standard deviation 0.01 / sqrt(3), its error 0.01 / 3, t 4.302653.
    assert second[4:] == ["0.1033 [0.0890, 0.1177]", "paired", "0.0010", "yes"]


def test_no_sweet_spot_is_named_where_one_cannot_be_told(write):
    """One run of a rival is enough to leave it open."""
    text = write("format_comparison", CLEAR, "E3M4")
    summary = section(text, "Summary")
    assert "**The numbers name no sweet spot.** E3M4 has the lowest mean final loss" in summary
    assert "Of E7M0 there is one seed, which allows no conclusion." in summary


def test_overlapping_seeds_name_no_winner(write):
    """Whatever the caller says."""
    df = runs({"E3M4": (2.0, 2.5), "E5M2": (2.4, 2.2)})
    text = write("format_comparison", df, "E3M4")
    assert "**The numbers name no sweet spot.**" in text
    assert "It is not distinguishable from E5M2." in section(text, "Conclusions")


def test_one_seed_allows_no_conclusion(write):
    """The original experiments had one."""
    text = write("format_comparison", runs({"E3M4": (2.0,), "E5M2": (3.0,)}), "E3M4")
    assert "with one seed of a format the numbers allow no conclusion" in section(
        text, "Conclusions"
    )
    assert "**The numbers name no sweet spot.**" in text
    alone = write("format_comparison", runs({"E3M4": (2.0, 3.0)}), "E3M4")
    assert "only E3M4 has finished runs" in section(alone, "Conclusions")


def test_the_validation_loss_decides_where_all_have_one(write):
    """It is of many batches; the last batch alone says otherwise here."""
    df = runs({"E3M4": (2.0, 2.5), "E5M2": (2.4, 2.2)}, val_loss=[3.0, 3.2, 1.0, 1.2001])
    summary = section(write("format_comparison", df, "E3M4"), "Summary")
    assert "**Sweet spot: E5M2**, by validation loss. E3M4 has the lowest mean final" in summary
    partial = df.assign(val_loss=[3.0, 3.2, 1.0, NAN])
    assert "validation" not in section(write("format_comparison", partial, "E3M4"), "Summary")


def test_a_validation_loss_that_is_not_finite_is_a_failure(write):
    """It was evaluated, and a summary holds null: the other seeds do not make it the sweet spot."""
    losses = {"E3M4": (2.0, 2.01, 2.02), "E5M2": (2.4, 2.42, 2.45)}
    evaluated = runs(losses, val_loss=[2.0, 2.01, NAN, 2.4, 2.41, 2.42], learned=False)
    summary = section(write("format_comparison", evaluated, None), "Summary")
    assert "**The numbers name no sweet spot.**" in summary
    said = "E3M4 has the lowest mean validation loss, 2.0050 (it failed in 1 seed"
    assert said in summary
    never = evaluated.assign(learned=[False, False, None, False, False, False])
    summary = section(write("format_comparison", never, None), "Summary")
    assert "**Sweet spot: E3M4**, by final loss." in summary
    both = optimizers((2.0, 2.1, 2.2), (1.9, 2.00002, 2.1))
    both = both.assign(val_loss=[2.0, 2.1, 2.2, 1.9, 2.00002, NAN], learned=True)
    text = write("manifold_comparison", both)
    assert "in E5M2: no conclusion. Validation loss -0.1000" in section(text, "Conclusions")


def test_small_losses_keep_their_digits(write):
    """Those of a regression may be of 1e-5."""
    df = runs({"E3M4": (1.2e-5, 1.3e-5), "E5M2": (3.1e-5, 3.2e-5)})
    text = write("format_comparison", df, None)
    assert "the lowest mean final loss, 1.25e-05." in text
    assert rows_of(section(text, "Rankings"))[1][3].startswith("1.25e-05 [6.147e-06, ")
    assert rows_of(section(text, "Results"))[1][4] == "1.2e-05"


def test_a_format_that_is_worse_in_the_common_seeds_is_no_sweet_spot(write):
    """E5M2 has an easy seed more; in the others it is above by 0.1."""
    df = runs({"E5M2": (2.6, 2.601, 2.602, 1.2), "E3M4": (2.5, 2.5, 2.503)})
    text = write("format_comparison", df, "E5M2")
    assert "**Sweet spot: E3M4**, by final loss. E5M2 was given as the sweet spot, but" in text
    assert "The seeds differ: the means are over those that all have (0, 1, 2)." in text
    df = pd.concat([df, runs({"E7M0": (9.0,)})])
    text = write("format_comparison", df, None)
    assert "**The numbers name no sweet spot.**" in text
    said = section(text, "Conclusions")
    assert "fewer than two are common to all: each mean is over its own." in said
    assert "In the seeds that both have, it is above E3M4." in said
    row = next(r for r in rows_of(section(text, "Rankings")) if "E3M4" in r)
    assert row[-1] == "yes, but it is lower"
    swapped = df.assign(format="E5M2", condition=df["format"])
    table = section(
        write("format_comparison", swapped, None), "The same format under several conditions"
    )
    assert rows_of(table)[1][2] == "E3M4"
    assert rows_of(table)[1][-1] == "yes, but it is lower"


def test_where_a_format_failed_is_said_beside_its_mean(write):
    """Two of its three seeds are the lowest, and one crashed; under another condition, too."""
    df = runs({"E5M2": (1.0, 1.01, NAN), "E3M4": (2.0, 2.01, 2.02)})
    text = write("format_comparison", df, "E5M2")
    said = "1.0050 (it failed in 1 seed in which another finished). "
    assert said in section(text, "Conclusions")
    assert "**The numbers name no sweet spot.**" in text
    assert "lowest mean final loss of all (it failed in 1 seed" in section(text, "Summary")
    swapped = df.assign(format="E5M2", condition=df["format"])
    table = section(
        write("format_comparison", swapped, None), "The same format under several conditions"
    )
    assert rows_of(table)[1][1] == "E5M2 (it failed in 1 seed in which another finished)"


def test_a_sweet_spot_that_is_no_format_of_the_runs_is_refused(write):
    with pytest.raises(BadInput, match=r"no run of 'E3M5' \(did you mean E3M4"):
        write("format_comparison", CLEAR, "E3M5")


def test_copies_of_runs_conclude_nothing(write):
    """A directory that was copied has the run's id."""
    one = runs({"E3M4": (2.0,), "E5M2": (3.0,)})
    one["name"] = one["run_id"]
    df = pd.concat([one, one.assign(name=one["name"] + "-again")], ignore_index=True)
    text = write("format_comparison", df, "E3M4")
    assert "which count once: E3M4-0-again and E5M2-0-again." in text
    assert "**The numbers name no sweet spot.**" in text
    assert "with one seed of a format the numbers allow no conclusion" in text
    assert "Copies" not in write("format_comparison", one, "E3M4")
    both = optimizers((2.0,), (1.0,)).assign(run_id=["a", "b"])
    text = write("manifold_comparison", pd.concat([both, both], ignore_index=True))
    assert "which count once: a and b." in text
    assert rows_of(section(text, "Difference"))[1][-1] == "no conclusion"


def test_copies_of_runs_fail_once(write):
    """And a seed that was run again is one seed."""
    bad = runs({"E7M0": (4.0, 4.1)}, learned=False, state="crashed", name=["a", "b"])
    df = pd.concat([bad, bad.assign(name=["c", "d"])], ignore_index=True)
    failures = FailureAnalyzer().extract_failures(df)
    text = write("format_comparison", df, None)
    assert "- E7M0 failed in 2 of 2 runs." in section(text, "Conclusions")
    assert len(rows_of(section(text, "Failures"))) == 3
    for given in ({}, {"runs": df}):
        text = write("failure_modes", failures, **given)
        assert "which count once: c and d." in text
        assert "from 2 failures" in text
        assert len(rows_of(section(text, "Summary"))) == 3
    assert "Failed in 2 of 2 runs:" in text
    again = df.assign(run_id=list("abcd"))
    failures = FailureAnalyzer().extract_failures(again)
    assert "Failed in 4 of 4 runs of 2 seeds:" in write("failure_modes", failures, runs=again)
    assert "failed in 4 of 4 runs of 2 seeds." in write("format_comparison", again, None)


def test_formats_that_are_equal_are_said_to_be(write):
    """E0M7 and E1M6 are the same grid."""
    df = runs({"E0M7": (2.0, 2.5), "E1M6": (2.0, 2.5)})
    text = write("format_comparison", df, "E0M7")
    assert "It equals E1M6 in every seed." in text
    assert "no sweet spot" in text


def test_results_have_the_columns_of_the_original(write):
    """Missing metrics are n/a; failures are listed, with the mode and where it is from."""
    text = write("format_comparison", CLEAR.drop(columns="seed"), "E3M4")
    head, *rest = rows_of(section(text, "Results"))
    assert head == ["format", "state", "steps", "final_loss", "best_loss", "bit_stall_final"]
    assert rest[0] == ["E3M4", "finished", "300", "2.0000", "1.5000", "90.00%"]
    assert rest[-1] == ["E7M0", "crashed", "300", "n/a", "n/a", "90.00%"]
    assert "- E7M0 failed in 2 of 3 runs." in section(text, "Conclusions")
    assert [r[0] for r in rows_of(section(text, "Failures"))] == ["format", "E7M0", "E7M0"]
    assert "- [E3M4-0](https://wandb.ai/me/altgrad/runs/E3M4-0)" in section(text, "Runs")
    assert "No run failed." in section(write("format_comparison", CLEAR[:6], "E3M4"), "Failures")


def test_formats_are_compared_within_a_condition_and_conditions_within_a_format(write):
    """The best of all is worse than nothing of its own condition."""
    slow = runs({"A": (3.0, 3.501), "B": (3.2, 3.7011)}, condition="slow")
    fast = runs({"A": (2.0, 2.5), "B": (2.4, 2.2)}, condition="fast")
    text = write("format_comparison", pd.concat([slow, fast]), "A")
    assert "**Sweet spot: A (slow)**" in text
    assert "- slow: A has the lowest mean final loss, 3.2505. It is distinguishable" in text
    assert "- fast: A has the lowest mean final loss, 2.2500. It is not distinguishable" in text
    rows = rows_of(section(text, "The same format under several conditions"))[1:]
    assert [r[:3] for r in rows] == [["A", "fast", "slow"], ["B", "fast", "slow"]]
    assert [r[-1] for r in rows] == ["yes", "no"]


def test_losses_on_other_data_are_not_compared(write):
    """Neither in a format under several conditions, nor as the lowest of all."""
    df = runs({"A": (1.0, 2.0), "B": (3.0, 4.5)})
    both = pd.concat([df.assign(condition=f"data {d}", data=d) for d in ("0a", "0b")])
    text = write("format_comparison", both, "A")
    assert "- data 0b: A has the lowest mean final loss, 1.5000." in text
    assert "under several conditions" not in text
    assert "of all" not in text
    same = write("format_comparison", both.assign(data="0a"), "A")
    assert "under several conditions" in same
    assert "A has the lowest mean final loss of all" in same


def test_missing_values_of_every_kind_are_not_available(write):
    """Neither a number nor an error: None, NaN and NA."""
    df = runs({"A": (1.0, 2.0), "B": (3.0, 4.0)}).astype({"seed": "Int64", "final_loss": "Float64"})
    df.loc[1:, "seed"] = pd.NA
    df.loc[2:, ["final_loss", "best_loss"]] = pd.NA
    text = write("format_comparison", df.assign(learned=pd.array([True, None, None, False])), "A")
    assert rows_of(section(text, "Results"))[-1][1:6] == ["n/a", "finished", "False", "300", "n/a"]
    ranked = rows_of(section(text, "Rankings").partition("### By bit stall")[0])[1:]
    assert ranked[1][:4] == ["n/a", "B", "0", "n/a"]


def test_a_frame_without_conditions_is_said_to_be_one(write):
    """The loader's frames do not say what else differs."""
    df = CLEAR.assign(optimizer="adamw", manifold_aware=[True, False, False] * 3)
    said = "It is not known what else differs between the runs"
    for method, given in (("format_comparison", ["E3M4"]), ("manifold_comparison", [])):
        assert said in write(method, df, *given)
        assert said not in write(method, df.assign(condition=""), *given)


def test_layers_are_shown_by_type(write):
    """A table a measure, with a column a format."""
    layers = pd.DataFrame({"format": ["A", "B"], "layer": ["lm_head", "wte"], "m/x": [0.5, 0.25]})
    df = runs({"A": (1.0,), "B": (2.0,)})
    found = section(write("format_comparison", df, "A", layer_metrics=layers), "By layer type")
    assert "### m/x" in found
    assert rows_of(found) == [
        ["layer_type", "A", "B"],
        ["classifier", "0.5", "n/a"],
        ["embedding", "n/a", "0.25"],
    ]


def test_names_stay_in_their_cells(write):
    """Formats, reasons and names are written by people."""
    df = runs({"<script>|E": (1.0, 2.0), "1E5": (3.0, 4.0)}, run_url="javascript:alert(1)")
    text = write("format_comparison", df, "1E5")
    assert "<script>" not in text
    assert "javascript:" not in text
    assert rows_of(section(text, "Results"))[-1][0] == "1E5"


# ---------------------------------------------------------------------------------- failures


def test_failures_are_documented_by_format_and_mode(write):
    """The summary of the original, evidence, classification and prevention."""
    failures = FailureAnalyzer().merge_failure_data(
        FailureAnalyzer().extract_failures(CLEAR),
        [{"format": "E1M6", "name": "e1m6", "reason": "NaN/Inf loss", "collapse_step": 7.0}],
    )
    measured = {"failure_mode": "stall", "mode_from": "measurements", "evidence": "99% were lost."}
    failures.loc[0, list(measured)] = list(measured.values())
    text = write("failure_modes", failures, runs=CLEAR)
    head, *rest = rows_of(section(text, "Summary"))
    assert head == ["format", "collapse_step", "reason", "last_good_loss"]
    assert rest[-1] == ["E1M6", "7", "NaN/Inf loss", "n/a"]
    assert "No run of E3M4 and E5M2 failed." in text
    assert "e1m6: **overflow**, from the reason alone at step 7. NaN/Inf loss." in section(
        text, "E1M6"
    )
    assert (
        "E7M0-1](https://wandb.ai/me/altgrad/runs/E7M0-1): **stall** at step 300. 99% were" in text
    )
    rows = {r[0]: r[2:] for r in rows_of(section(text, "Classification"))[1:]}
    assert rows["overflow"] == ["1", "0", "1", "E1M6"]
    assert rows["stall"] == ["1", "1", "0", "E7M0"]
    assert rows["unknown"] == ["1", "0", "1", "E7M0"]
    prevention = section(text, "Prevention")
    assert [x.split("**")[1] for x in prevention.strip().splitlines()] == list(rows)


def test_a_format_that_is_missing_is_not_available(write):
    """In a frame of failures; one of runs needs the column."""
    df = pd.DataFrame({"format": ["A", None, NAN], "reason": "NaN"})
    text = write("failure_modes", df)
    assert rows_of(section(text, "Classification"))[1][-1] == "A, n/a"
    assert "nan" not in text
    with pytest.raises(BadInput, match="no column 'format'"):
        write("failure_modes", df, runs=pd.DataFrame({"state": ["finished"]}))


def test_a_frame_of_other_failures_is_completed(write):
    """The four columns of the summary are enough."""
    row = {"format": "E7M0", "collapse_step": 3, "reason": "loss is NaN", "last_good_loss": 2.0}
    text = write("failure_modes", pd.DataFrame([row]))
    assert rows_of(section(text, "Summary"))[1] == ["E7M0", "3", "loss is NaN", "2.0000"]
    assert "- n/a: **overflow**, from the reason alone at step 3. loss is NaN." in text


def test_what_prevented_a_failure_is_said_where_it_was_seen(write):
    """The same format under another condition."""
    bad = runs({"E7M0": (4.0, 4.1)}, condition="nearest", learned=False)
    good = runs({"E7M0": (2.0, 2.1)}, condition="stochastic", learned=True)
    df = pd.concat([bad, good], ignore_index=True)
    text = write("failure_modes", FailureAnalyzer().extract_failures(df), runs=df)
    own = section(text, "E7M0: powers of two only")
    assert "Failed in 2 of 2 runs under nearest:" in own
    assert "Did not fail under stochastic (2 runs)." in own
    assert "In these runs, E7M0 did not fail under stochastic (2 runs)." in section(
        text, "Prevention"
    )


def test_powers_of_two_have_a_section_whenever_they_were_run(write):
    """By the values of the format: from 1 to 2 at 1.5, from 1 to 0.5 at 0.75."""
    good = runs({"E7M0": (2.0,), "E5M2": (2.0,)})
    text = write("failure_modes", FailureAnalyzer().extract_failures(good), runs=good)
    own = section(text, "E7M0: powers of two only")
    assert "differ by a factor of 2" in own
    assert "makes it larger by 50% or smaller by 25%" in own
    assert "No run of it failed." in own
    assert "No run failed." in section(text, "Summary")
    other = good[good["format"] != "E7M0"]
    assert "E7M0" not in write(
        "failure_modes", FailureAnalyzer().extract_failures(other), runs=other
    )


# -------------------------------------------------------------------------------- optimizers


def optimizers(standard, aware):
    """Runs of the two optimizers, as the original experiments' loader returns them."""
    rows = [("adamw", False, s, x) for s, x in enumerate(standard)]
    rows += [("manifold-adamw", True, s, x) for s, x in enumerate(aware)]
    df = pd.DataFrame(rows, columns=["optimizer", "manifold_aware", "seed", "final_loss"])
    return df.assign(run_id="r", best_loss=df["final_loss"], bit_stall_final=0.9)


def test_a_better_optimizer_is_said_to_help(write):
    """By hand: differences -0.1, -0.09 and -0.1, of a mean of 2.1."""
    text = write("manifold_comparison", optimizers((2.0, 2.1, 2.2), (1.9, 2.01, 2.1)))
    head, *rest = rows_of(section(text, "Results"))
    assert {"optimizer", "final_loss", "best_loss", "bit_stall_final"} <= set(head)
    assert len(rest) == 6
    row = rows_of(section(text, "Difference"))[1]
    assert row[4:] == [
        "-0.0967 [-0.1110, -0.0823]",
        "4.60 [3.92, 5.29]",
        "paired",
        "3",
        "0.0012",
        "better",
    ]
    said = "manifold-adamw against adamw in E5M2: better. Final loss -0.0967 [-0.1110, -0.0823]"
    assert said in section(text, "When the manifold-aware optimizer helps")
    assert said in section(text, "Conclusions")
    assert "Nowhere in these runs." in section(text, "When it does not")
    assert section(text, "Hypothesis").strip()


@pytest.mark.parametrize(
    ("standard", "aware", "verdict"),
    [
        ((2.0, 2.1, 2.2), (2.1, 2.19, 2.3), "worse"),
        ((2.0, 2.1, 2.2), (1.9, 2.2, 2.1), "not distinguishable"),
    ],
)
def test_what_does_not_help_is_said_too(write, standard, aware, verdict):
    """And nothing is claimed of it."""
    text = write("manifold_comparison", optimizers(standard, aware))
    assert f"in E5M2: {verdict}. Final loss" in section(text, "When it does not")
    assert "Nowhere" in section(text, "When the manifold-aware optimizer helps")


def test_one_seed_or_one_optimizer_allows_no_conclusion(write):
    """However far apart the two are."""
    text = write("manifold_comparison", optimizers((2.0,), (1.0,)))
    assert "the numbers allow no conclusion. Final loss -1.0000 (one seed)" in section(
        text, "Conclusions"
    )
    for heading in ("When the manifold-aware optimizer helps", "When it does not"):
        assert section(text, heading).strip().endswith("The numbers allow no conclusion.")
    for standard, aware, missing in (
        ((2.0, 3.0), (), "manifold-aware"),
        ((), (2.0, 3.0), "standard"),
    ):
        text = write("manifold_comparison", optimizers(standard, aware))
        assert f"There is no run of a {missing} optimizer" in section(text, "Conclusions")


def test_an_improvement_is_in_percent_of_the_seeds_that_were_compared(write):
    """By hand: 0.1 and 0.1002 of 1.0. The standard optimizer's third seed has no partner."""
    text = write("manifold_comparison", optimizers((1.0, 1.0, 10.0), (0.9, 0.8998)))
    assert rows_of(section(text, "Difference"))[1][5].startswith("10.01 [")


def test_an_optimizer_that_failed_where_the_other_finished_is_not_better(write):
    """Whichever of the two it is; failures of the one that is worse anyway change nothing."""
    df = optimizers((2.0, 2.1, 2.2), (1.9, 2.00002, NAN))
    df = df.assign(state=["crashed" if x != x else "finished" for x in df["final_loss"]])
    text = write("manifold_comparison", df)
    said = "in E5M2: no conclusion. Final loss -0.1000"
    assert said in section(text, "Conclusions")
    assert "manifold-adamw failed in 1 seed that the other finished." in text
    df["manifold_aware"] ^= True
    assert said.replace("-0.1000", "0.1000") in write("manifold_comparison", df)
    df["final_loss"] *= -1
    assert "in E5M2: better. Final loss -0.1000" in write("manifold_comparison", df)


def test_optimizers_are_compared_within_format_and_condition(write):
    """The standard optimizer of one is no baseline of another."""
    df = optimizers((2.0, 2.1), (1.9, 2.0))
    df["condition"] = ["a", "a", "b", "b"]
    text = write("manifold_comparison", df)
    assert "No finished run of a manifold-aware optimizer has a standard one" in text


RUN = {"format": "E5M2", "state": "finished", "optimizer": "adamw", "manifold_aware": False}


@pytest.mark.parametrize(
    ("report", "column"),
    [
        ("generate_format_comparison", "format"),
        ("generate_format_comparison", "state"),
        ("generate_manifold_comparison", "optimizer"),
        ("generate_manifold_comparison", "manifold_aware"),
    ],
)
def test_a_column_that_a_report_needs_is_named(report, column, tmp_path):
    df = pd.DataFrame([RUN]).drop(columns=column)
    more = (None,) if "format" in report else ()
    with pytest.raises(BadInput, match=f"the frame has no column '{column}'"):
        getattr(ReportGenerator(tmp_path), report)(df, *more)


@pytest.mark.parametrize("value", ["False", math.nan, None])
def test_an_optimizer_of_which_nothing_is_known_is_taken_for_neither(value, tmp_path):
    df = pd.DataFrame([RUN, {**RUN, "manifold_aware": value}])
    with pytest.raises(BadInput, match=r"and not True or False of 1 runs"):
        ReportGenerator(tmp_path).generate_manifold_comparison(df)


def test_text_that_turns_around_is_shown_by_number():
    """In a table of Markdown as on the page."""
    assert markdown.text("a\u202egnp|<b>") == "a\\u202egnp\\|&lt;b>"
