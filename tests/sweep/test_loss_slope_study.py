"""The files of the loss-slope study: its grid, settings, measures, columns and limits."""

import csv
import re
from collections import Counter
from pathlib import Path

import pytest
import yaml
from helpers_cli import call
from helpers_sweeps import complete

from altcore.engine.plugins import load_plugins
from altcore.sweep import begin_sweep, export, jobs_of, read_sweep
from altcore.sweep.retry import DEFAULT_RULES

ROOT = Path(__file__).parents[2]
STUDY = ROOT / "experiments" / "loss-slope" / "study.yaml"
TOY = ROOT / "examples" / "loss-slope-toy.yaml"
FORMATS = ROOT / "experiments" / "loss-slope" / "formats.yaml"


@pytest.fixture(scope="module")
def study():
    return read_sweep(STUDY)


@pytest.fixture(scope="module")
def jobs(study):
    return jobs_of(study)


def test_the_grid(jobs):
    """54 runs of each variant; no value of the grid has a default elsewhere."""
    assert Counter(job.variant for job in jobs) == dict.fromkeys(
        ("base", "bn_off", "narrow", "adamw"), 54
    )
    values = {key: sorted({job.factors[key] for job in jobs}) for key in jobs[0].factors}
    assert values == {
        "learning_rate": [0.05, 0.1, 0.2],
        "weight_decay": [1e-4, 1e-3, 1e-2],
        "seed": [0, 1, 2, 3, 4, 5],
    }


def test_the_settings(jobs):
    by_variant = {job.variant: job.train_config("runs", {}) for job in jobs}
    base, adamw = by_variant["base"], by_variant["adamw"]
    common = ("workload", "epochs", "warmup_epochs", "schedule", "min_lr_ratio", "keep_best")
    for config in by_variant.values():
        told = tuple(getattr(config, key) for key in common)
        assert told == ("resnet18-cifar", 50, 5, "cosine-full", 0, 3)
        assert config.evals_per_epoch == 4
        assert config.settings["resnet18-cifar"]["batch_size"] == 128
        assert config.plugins[:4] == ("grad-stats", "noise", "curvature", "loss-slope")
        assert config.settings["grad-stats"]["interval"] == "0.25 epoch"
        assert config.settings[config.optimizer]["decay_1d"]  # decay on all parameters
        assert config.settings[config.optimizer]["weight_decay"] == 0.01
    assert base.settings["sgd"]["momentum"] == 0.9
    assert (adamw.settings["adamw"]["beta1"], adamw.settings["adamw"]["beta2"]) == (0.9, 0.999)
    assert {name: config.grad_clip for name, config in by_variant.items()} == {
        "base": 0, "bn_off": 1.0, "narrow": 0, "adamw": 0
    }  # fmt: skip
    assert by_variant["bn_off"].settings["resnet18-cifar"]["norm_type"] == "none"
    assert by_variant["narrow"].settings["resnet18-cifar"]["width_mult"] == 0.5


def test_each_variant_states_only_its_difference(study):
    """And what the grid varies has no default."""
    assert {name: {**own} for name, own in study.variants.items()} == {
        "base": {},
        "bn_off": {"resnet18-cifar.norm_type": "none", "grad_clip": 1.0},
        "narrow": {"resnet18-cifar.width_mult": 0.5},
        "adamw": {"optimizer": "adamw"},
    }
    given = {key.rpartition(".")[2] for key in study.base}
    assert given.isdisjoint({"learning_rate", "weight_decay", "seed"})


def test_the_monitors(jobs):
    """As the study's jobs build them: windows, frequencies and samples."""
    for job in (jobs[0], jobs[-1]):
        made = {p.name: p.instance for p in load_plugins(job.train_config("runs", {}))}
        slope, noise, curvature = (made[n] for n in ("loss-slope", "noise", "curvature"))
        assert (slope.points_per_epoch, slope.fit_epochs, slope.knee_loss) == (4, 2, 1.0)
        assert (slope.early_start, slope.early_end, slope.early) == (5, 15, "alpha_5_15")
        assert (curvature.interval, curvature.samples) == (500, 50)
        # None is two epochs, as the tests of the monitor show.
        assert (noise.report_interval, noise.alpha) == (None, 0.1)
        assert (noise.low_band, noise.high_band) == ((0.1, 0.3), (0.3, 0.5))


def test_the_measures_and_their_frequencies(study):
    every = {measure.name: measure.every for measure in study.measures}
    steps = ("loss_bits", "accuracy", "learning_rate", "loss-slope/weight_decay")
    quarters = ("loss-slope/point_loss", "val_loss", "val_accuracy")
    norms = ("grad-stats/grad_norm_periodic", "grad-stats/weight_norm_periodic")
    curvature = ("curvature/lambda_max", "curvature/hutchinson_trace")
    noise = ("psd_tail", "total_power", "gradient_variance", "residual_power")
    assert every == {
        **dict.fromkeys(steps, 1),
        **dict.fromkeys((*quarters, *norms), "0.25 epoch"),
        **dict.fromkeys(curvature, 500),
        **{f"noise/{name}": "2 epochs" for name in noise},
    }


def test_the_resources(study):
    declared = study.declared
    assert declared.memory_gb == {"base": 4, "bn_off": 5, "narrow": 2, "adamw": 6}
    assert (declared.gpu_gb, declared.workers_per_gpu) == (48, 2)
    assert (declared.utilization, declared.minutes) == (0.8, 30)


def test_the_limits(study):
    assert study.ranges == {
        "loss": (0, 10),
        "accuracy": (0, 1),
        "val_accuracy": (0, 1),
        "learning_rate": (1e-12, None),
        "loss-slope/knee_epoch": (1, 20),
    }
    limits = study.limits
    assert (limits.failed, limits.minutes, limits.epochs) == (0.1, 60, 5)
    told = {cause: rule.limit for cause, rule in study.rules.items()}
    assert [told[c] for c in ("out_of_memory", "gradient", "timeout", "unknown")] == [3, 2, 1, 0]
    assert DEFAULT_RULES["out_of_memory"].halve["batch_size"] == 16


def record(step, **more):
    """A line of metrics as the monitors write it."""
    slopes = {"r_squared": 0.99, "knee_epoch": 3, "burn_in_loss": 0.9, "alpha_5_15": -0.05}
    slopes["weight_decay"] = 0.0001
    line = {f"loss-slope/{key}": value for key, value in slopes.items()}
    line |= {"loss-slope/alpha_full": None, "loss-slope/point_loss": 1.5, "val_loss": 1.25}
    line |= {"curvature/lambda_max": 20.0, "curvature/hutchinson_trace": 1e-5}
    return {"step": step, "epoch": step / 4, **line, **more}


def test_the_table_and_the_series(study, jobs, tmp_path):
    ledger, _ = begin_sweep(study, jobs, str(tmp_path))
    job = jobs[0]
    best = {"epoch": 2.25, "val_loss": 1.25}
    complete(ledger, job, lines=[record(4), record(8)], best_val_loss=1.25, best_evaluation=best)
    export(study, ledger, tmp_path / "out")
    (row,) = csv.DictReader((tmp_path / "out" / "results.csv").open())
    assert row == {
        "run_id": job.name,
        "variant": job.variant,
        "seed": "0",
        "lr": f"{job.factors['learning_rate']:.6f}",
        "weight_decay": f"{job.factors['weight_decay']:.6f}",
        "r_squared": "0.990000",
        "knee_epoch": "3",
        "burn_in_loss": "0.900000",
        "alpha_early": "-0.050000",
        "alpha_full": "",
        "best_val_ce": "1.250000",
        "best_val_epoch": "2.250000",
    }
    lines = (tmp_path / "out" / "series" / f"{job.name}.csv").read_text().splitlines()
    assert lines == [
        "step,epoch,loss_trajectory,val_trajectory,lambda_max_trajectory,hutch_trace_trajectory",
        "4,1.000000,1.500000,1.250000,20.000000,0.000010",
        "8,2.000000,1.500000,1.250000,20.000000,0.000010",
    ]
    assert (tmp_path / "out" / "results_metadata.json").is_file()


def test_the_table_has_settings_that_are_in_no_grid(tmp_path):
    """Not the learning rate of the last step, to which the schedule has lowered the peak."""
    path = tmp_path / "own.yaml"
    path.write_text(
        "preset: altcore_diagnostics:loss-slope.yaml\nname: own\nrequires: []\n"
        "base: {workload: resnet18-cifar, resnet18-cifar.data: digits, epochs: 4}\n"
        "variants: {slow: {learning_rate: 0.1}, fast: {learning_rate: 0.2}}\n"
    )
    own = read_sweep(str(path))
    ledger, _ = begin_sweep(own, jobs_of(own), str(tmp_path))
    for job in ledger.jobs():
        complete(ledger, job, lines=[record(4, learning_rate=1e-7)])
    export(own, ledger, tmp_path / "out")
    rows = {row["variant"]: row for row in csv.DictReader((tmp_path / "out/results.csv").open())}
    assert [rows[v]["lr"] for v in ("slow", "fast")] == ["0.100000", "0.200000"]
    assert rows["slow"]["weight_decay"] == "0.000100"


def test_the_toy_study_is_the_same_grid(jobs):
    toy = jobs_of(read_sweep(TOY))
    assert [(job.variant, job.factors) for job in toy] == [(j.variant, j.factors) for j in jobs]
    assert read_sweep(TOY).columns["alpha_early"] == "loss-slope/alpha_2_6"


def test_every_variant_meets_every_format():
    """At the same points and seeds; E3M4 is stored, and rounded stochastically."""
    found = jobs_of(read_sweep(FORMATS))
    counts = Counter(job.variant for job in found)
    variants = ("base", "bn_off", "narrow", "adamw")
    formats = ("", "-E4M3", "-E5M2", "-MXFP8", "-E3M4")
    assert counts == {f"{v}{f}": 6 for v in variants for f in formats}
    stochastic = yaml.safe_load((ROOT / "experiments/results/pure-stochastic.yaml").read_text())
    for job in {job.variant: job for job in found}.values():
        config = job.train_config("runs", {})
        variant, _, fmt = job.variant.partition("-")
        twin = next(j for j in found if (j.variant, j.factors) == (variant, job.factors))
        plain = twin.train_config("runs", {})
        recipe = {"E3M4": stochastic, "MXFP8": "mxfp8"}.get(fmt, plain.recipe)
        asked = plain.evolve(format=None if fmt in ("", "MXFP8") else fmt, recipe=recipe)
        assert config == asked.evolve(name=config.name, label=config.label), job.variant


@pytest.mark.slow
def test_from_the_plan_to_the_verdict(tmp_path, capsys):
    """Two runs of the toy study, as a newcomer would run them."""
    path = tmp_path / "two.yaml"
    path.write_text(
        f"preset: {TOY}\nname: two\nbase: {{epochs: 6}}\nseeds: 2\n"
        "grid: {learning_rate: [0.1], weight_decay: [0.0001]}\n"
    )
    where = ("--sweeps-dir", tmp_path)
    assert call(capsys, "sweep", "run", path, *where).code == 0
    assert call(capsys, "sweep", "verify", "two", *where).out.startswith("8/8 runs completed")
    assert call(capsys, "sweep", "export", "two", *where).err == ""
    runs, out = tmp_path / "two" / "runs", tmp_path / "out"
    assert call(capsys, "report", "loss-slope-study", "--from", runs, "--out", out).code == 0
    told = (out / "loss_slope_study.md").read_text()
    assert "GO: the data" in told
    assert "was never recorded" not in told
    assert not re.search("has no value|is not finite|has no run here", told)
