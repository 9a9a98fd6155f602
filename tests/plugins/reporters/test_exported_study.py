"""An exported loss-slope study: its frames, and the same verdicts as in the report."""

import shutil
from pathlib import Path

import pandas as pd
import pytest
from helpers_sweeps import complete, fail

from altcore.plugin import BadInput, read_runs
from altcore.sweep import begin_sweep, export, jobs_of, read_sweep
from altcore_reporters import ExportedStudy
from altcore_reporters.slope_study.reporter import MEASURES, LossSlopeStudy, result_of, verdicts

STUDY = Path(__file__).parents[3] / "experiments" / "loss-slope" / "study.yaml"
EPOCHS, EACH = 6, 4
UNFITTED = 3
"""The number of the run whose knee epoch never came."""


def lines_of(number, fit):
    """Return the record of a run: each measure in each quarter epoch, and the fit at the end."""
    made = [
        {
            "step": step,
            "epoch": step / EACH,
            **dict.fromkeys(MEASURES, 1.0 + number / step),
            **dict.fromkeys(("accuracy", "val_accuracy"), 0.5),
        }
        for step in range(1, EPOCHS * EACH + 1)
    ]
    made[-1] |= {f"loss-slope/{key}": value for key, value in fit.items()}
    return made


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """A sweep of the study's preset, of two variants with five seeds each, with its export.

    Of a third variant one run was retried, and one failed.
    """
    folder = tmp_path_factory.mktemp("sweeps")
    (folder / "small.yaml").write_text(
        f"preset: {STUDY}\nname: small\nseeds: 5\n"
        "grid: {learning_rate: [0.1], weight_decay: [0.001]}\n"
    )
    asked = read_sweep(folder / "small.yaml")
    jobs = [j for j in jobs_of(asked) if j.variant in ("base", "adamw")]
    retried, failed = [j for j in jobs_of(asked) if j.variant == "narrow"][:2]
    ledger, _ = begin_sweep(asked, [*jobs, retried, failed], str(folder))
    for number, job in enumerate(jobs):
        fit = {"alpha_5_15": -0.125 * number, "alpha_full": -0.125}
        if number != UNFITTED:
            fit |= {"r_squared": 0.859375 + number / 64, "knee_epoch": 2}
        complete(
            ledger,
            job,
            lines=lines_of(number, fit),
            steps=EPOCHS * EACH,
            epochs=float(EPOCHS),
            findings={"loss-slope": [{"r_squared": None, **fit}]},
            best_val_loss=2 - 0.25 * number + 0.5 * (number % 2),
        )
    fail(ledger, retried, "CUDA out of memory")
    complete(ledger, retried, changed={"tags": ["retry"]})
    fail(ledger, failed, "out of luck")
    export(asked, ledger, ledger.folder / "export")
    return ledger.folder


@pytest.fixture
def study(sweep):
    return ExportedStudy(sweep / "export")


def test_the_table_and_the_courses(study):
    """What a run lacks is NaN, and each row of a course says whose it is."""
    assert study.metadata["total_runs"] == len(study.results) == 10
    assert list(study.results.columns[:2]) == ["run_id", "variant"]
    assert study.results["r_squared"].isna().sum() == 1
    assert len(study.series) == 10 * EPOCHS * EACH
    sixth = study.series[study.series["run_id"] == study.results["run_id"][1]]
    assert set(sixth["variant"]) == {"adamw"}
    assert list(sixth["loss_trajectory"].iloc[:3]) == [7.0, 4.0, 3.0]


def test_the_verdicts_are_the_reports(study, sweep):
    """Word for word; both frames have the numbers of its tables."""
    records = read_runs(str(sweep / "runs"), list(study.results["run_id"]))
    results = [result_of(record) for record in records]
    reporter = LossSlopeStudy()
    told = study.verdicts()
    (retried,) = (sweep / "runs").glob("narrow-*")
    left_out = [retried.name]
    # A record has the variant in the label of its configuration.
    assert {r.variant for r in results} == {"base", "adamw"}
    assert told == verdicts(
        results, reporter.limits, reporter.trust(records, results, left_out), left_out
    )
    assert f"1 were left out, since a retry changed them: {retried.name}." in told
    assert told.count("it is a job of the sweep, and has no run here") == 1  # that which failed
    assert "the median R² is 0.9375, and more than 0.95 is needed" in told
    first, second = study.first_hypothesis(), study.second_hypothesis()
    for v in first.to_dict("records"):
        interval = f"{v['low']:.1%} to {v['high']:.1%}"
        cells = (v["runs of"], f"{v['share']:.1%}", interval, v["runs"], v["not fitted"], v["H1"])
        assert f"| {' | '.join(map(str, cells))} |" in told
    for v in second.to_dict("records"):
        pearson = f"{v['Pearson']:.3f} | {v['low']:.3f} to {v['high']:.3f}"
        spearman = f"{v['Spearman']:.3f} | {v['Spearman low']:.3f} to {v['Spearman high']:.3f}"
        cells = (v["runs of"], pearson, spearman, v["pairs"], v["left out"], v["H2"])
        assert f"| {' | '.join(map(str, cells))} |" in told
    assert list(first["runs of"]) == list(second["runs of"]) == ["all", "adamw", "base"]
    assert list(first["share"]) == [0.2, 0.4, 0.0]
    assert list(first["not fitted"]) == [1, 0, 1]


def test_limits_of_your_own(sweep):
    easy = LossSlopeStudy(r_squared=0.5, share=0.5, correlation=0, sample_r_squared=0.9)
    study = ExportedStudy(sweep / "export", settings=easy)
    assert "cannot be trusted.** H1 holds; H2 holds" in study.verdicts()
    told = [line for line in study.verdicts().splitlines() if line.startswith("- ")]
    assert [line.rpartition(": ")[2] for line in told] == [
        "it is a job of the sweep, and has no run here", "no power law was fitted"
    ]  # fmt: skip
    assert study.first_hypothesis()["share"][0] == 0.9


def changed(sweep, folder, change):
    """Return an export whose table was changed."""
    table = pd.read_csv(sweep / "export" / "results.csv", dtype=str)
    change(table).to_csv(folder / "results.csv", index=False)
    return ExportedStudy(folder, runs_dir=sweep / "runs")


def test_variants_that_look_like_something_else(sweep, tmp_path):
    """They stay the text that they are."""
    names = ["007"] * 5 + ["None"] * 5
    study = changed(sweep, tmp_path, lambda table: table.assign(variant=names))
    assert list(study.first_hypothesis()["runs of"]) == ["all", "007", "None"]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda t: t.drop(columns="alpha_early"), "results.csv has no column alpha_early"),
        (lambda t: t.assign(r_squared="good"), "could not convert string to float: 'good'"),
        (lambda t: t[:1].assign(run_id="other"), "there is no run 'other'"),
        (lambda t: pd.concat([t, t[:1]]), "results.csv: run .* has more than one row"),
        (lambda t: t.assign(r_squared="1.7"), "results.csv: r_squared of .* is 1.7, and no R² is"),
        (lambda t: t[:0], "results.csv has no run"),
    ],
)
def test_a_table_that_cannot_be_judged(sweep, tmp_path, change, problem):
    with pytest.raises(BadInput, match=problem):
        changed(sweep, tmp_path, change).verdicts()


def test_a_folder_without_an_export(tmp_path):
    with pytest.raises(BadInput, match=r"there is no .*results\.csv: altcore sweep export"):
        _ = ExportedStudy(tmp_path).results


def test_a_table_that_is_not_that_of_its_runs(sweep, tmp_path):
    """Such as one whose column has another name than the measure of the runs."""
    told = changed(sweep, tmp_path, lambda t: t.assign(alpha_early="")).verdicts()
    assert "alpha_early is empty in results.csv, and -0.125 in the run" in told


def test_files_that_are_not_as_the_run_left_them(sweep, tmp_path):
    copy = shutil.copytree(sweep, tmp_path / "copy")
    metrics = min((copy / "runs").glob("base-*")) / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace("0.5", "0.6", 1))
    told = ExportedStudy(copy / "export").verdicts()
    assert f"- {metrics.parent.name}: metrics.jsonl is not as the run left it" in told
