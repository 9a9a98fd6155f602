"""What would stop a sweep is found before it, variant by variant, with what mends it."""

import json
import re

import pytest
from attrs import evolve
from helpers_cli import call
from helpers_sweeps import complete, ledger_of, record

from altcore.config import TrainConfig
from altcore.sweep import (
    Limits,
    Measure,
    Preflight,
    SweepFile,
    estimate_of,
    jobs_of,
    read_sweep,
)
from altcore.sweep import preflight as module
from altcore.sweep.attempt import lease
from altcore.sweep.declared import Declared
from altcore.sweep.preflight import FEWEST
from altcore.sweep.resources import _findings, _jobs
from altcore.sweep.values import Values

SMALL = "gpt.size: tiny, gpt.n_layer: 1, gpt.block_size: 8, eval_steps: 1, max_steps: 20"


@pytest.fixture
def file(tmp_path, corpus):
    """A sweep of four variants, three of which cannot run."""
    path = tmp_path / "study.yaml"
    path.write_text(
        f"base: {{{SMALL}, data: {corpus}}}\n"
        "variants:\n"
        "  base: {}\n"
        "  wrong: {learning_rat: 3}\n"
        "  bare: {data: /no/such/file}\n"
        "  broken: {gpt.n_head: 2, optimizer: adamw, adamw.betas: [2, 3]}\n"
        "requires: [val_loss, {name: loss, every: 3}]\n"
    )
    return path


def found(sweep, **keys):
    """Return what is found, by what it is about, and the flight."""
    flight = Preflight(sweep, "study.yaml", **keys)
    return {finding.what: finding for finding in flight.findings()}, flight


def test_the_command(file, tmp_path, capsys):
    """A line each, and below a FAIL what mends it; what was measured is kept for the plan."""
    done = call(capsys, "sweep", "check", file, "--sweeps-dir", tmp_path / "sweeps")
    lines = done.out.splitlines()
    assert done.code == 1
    assert lines[0].startswith("PASS  dependencies: torch ")
    assert lines[1:3] == ["PASS  base: configuration: 1 job", "PASS  base: data: gpt"]
    assert lines[3].startswith("PASS  base: training: 6 steps, ")
    assert re.match(r"PASS  base: memory: \d+\.\d+ of \d", lines[4])
    assert lines[5:7] == ["PASS  base: val_loss: recorded", "PASS  base: loss: every 3 steps"]
    assert lines[7].startswith("FAIL  wrong: configuration: ")
    assert "unknown key 'learning_rat' (did you mean learning_rate?)" in lines[7]
    assert lines[8] == f"      ${{EDITOR:-vi}} +4 {file}"
    assert "FAIL  bare: data: " in done.out
    assert f"      altcore sweep check {file} --set gpt.data=PATH" in lines
    assert "FAIL  broken: " in done.out
    assert lines[-1] == "3/4 variants failed"
    assert not list((tmp_path / "sweeps" / "study").glob("runs"))
    ledger = ledger_of(tmp_path / "sweeps")
    kept = estimate_of(evolve(ledger, folder=tmp_path / "sweeps" / "study"), ledger.jobs())
    assert kept.seconds > 0
    assert kept.memory["peak_memory_bytes"] > 1e6


def test_the_first_job_of_a_variant_tells_the_time_of_longer_ones(corpus):
    base = {"gpt.size": "tiny", "gpt.n_layer": 1, "gpt.block_size": 8, "gpt.data": str(corpus)}
    sweep = SweepFile(name="study", base={**base, "eval_steps": 1}, grid={"max_steps": [20, 400]})
    known = found(sweep, steps=2)[1].measured["base"]
    assert known["length"] == 20
    assert known["length_seconds"] == pytest.approx(known["step_seconds"])


def test_measures_that_are_not_there(tmp_path, corpus):
    """Or not as often as they must be; the line says what would record them."""
    path = tmp_path / "study.yaml"
    path.write_text(
        f"base: {{{SMALL}, data: {corpus}, log_interval: 5}}\n"
        "requires: [{name: loss, every: 2}, {name: ulp-stats/x, every: 4}]\n"
    )
    findings, flight = found(read_sweep(path))
    assert flight.failed == {"base"}
    assert findings["base: training"].told.startswith("8 steps")
    loss, ulps = findings["base: loss"], findings["base: ulp-stats/x"]
    assert loss.remedy == "altcore sweep check study.yaml --set log_interval=2"
    assert "no value in steps" in loss.told
    assert ulps.told == "no value"
    assert ulps.remedy == "altcore sweep check study.yaml --set 'plugins=[ulp-stats]'"


def test_a_measure_that_a_plugin_does_not_have(tmp_path):
    """Another name is meant, or its plugin measures too rarely for so short a training."""
    record(tmp_path / "run", [{"step": 1, "x/mean": 1}, {"step": 5, "x/mean": 1}], steps=6)
    config = TrainConfig(plugins=("x",))

    def measured(name, every=None):
        values = Values(tmp_path / "run")
        return Preflight(SweepFile(), "s.yaml")._measure(
            "w", config, values, Measure(name=name, every=every)
        )

    finding = measured("x/men")
    assert finding.told == "no value (did you mean x/mean?)"
    assert finding.remedy == "altcore plugins info x"
    finding = measured("x/mean", 2)
    assert finding.told == "no value in steps 2 to 4"
    assert finding.remedy == "altcore sweep check s.yaml --set x.interval=2"


def test_plugins_that_are_not_installed():
    """The list of those that are says what to name instead, or what to install."""
    sweep = SweepFile(name="study", variants={"a": {"workload": "gtp"}, "b": {"optimizer": "sdg"}})
    findings, flight = found(sweep)
    assert flight.failed == {"a", "b"}
    assert findings["a: dependencies"].told.startswith("unknown workload 'gtp' (did you mean gpt?)")
    assert findings["a: dependencies"].remedy == "altcore plugins list --kind workload"
    assert findings["b: dependencies"].remedy == "altcore plugins list --kind optimizer"
    assert "a: data" not in findings


def test_a_training_that_fails_and_one_without_enough_memory(tmp_path, corpus, monkeypatch):
    """The error is told; where memory is the cause, a smaller batch mends it."""
    sweep = SweepFile(base={"gpt.size": "tiny", "data": str(corpus)}, name="study")
    flight = Preflight(sweep, "study.yaml", steps=1)
    config = jobs_of(sweep)[0].train_config("", {})

    def no_memory(config):
        raise MemoryError("out of memory")

    monkeypatch.setattr("altcore.api.train", no_memory)
    (finding,) = flight._trained("base", config)
    assert finding.told == "MemoryError: out of memory"
    assert finding.remedy == "altcore sweep check study.yaml --set gpt.batch_size=N"
    monkeypatch.setattr(module, "machine_memory", lambda: 10**9)
    assert flight._memory("m", TrainConfig(), {"peak_memory_bytes": 1e9}).passed
    finding = flight._memory("m", config, {"peak_memory_bytes": 2e9})
    assert (finding.passed, finding.told) == (False, "2.00 of 1.0 GB")


def test_workers_side_by_side(tmp_path, corpus, capsys):
    """Are placed by the executor; what they make goes away."""
    path = tmp_path / "study.yaml"
    path.write_text(f"base: {{{SMALL}, data: {corpus}}}\n")
    sweeps = tmp_path / "sweeps"
    given = (path, "--resources", "--executor", "local", "--slowdown", "1e9")
    done = call(capsys, "sweep", "check", *given, "--sweeps-dir", sweeps)
    assert done.code == 0
    lines = done.out.splitlines()
    assert lines[-3].startswith("PASS  side by side: memory: 1 workers take ")
    assert lines[-2].startswith("PASS  side by side: time: a step takes ")
    assert lines[-1] == "0/1 variants failed"
    assert [p.name for p in sweeps.iterdir()] == ["study"]


def test_jobs_side_by_side_are_short_where_a_variant_counts_in_epochs():
    base = {
        "workload": "resnet18-cifar",
        "resnet18-cifar": {"data": "generated", "image_size": 9, "width_mult": 0.0625},
        "epochs": 2,
        "warmup_epochs": 1,
    }
    one, other = _jobs(SweepFile(name="s", base=base, variants={"a": {}}), "a", 2)
    assert one.name != other.name
    config = one.train_config("", {})
    assert (config.epochs, config.warmup_epochs, config.max_steps) == (None, None, FEWEST)


def test_the_limits_of_workers_side_by_side(tmp_path, monkeypatch):
    """The memory of all of them is added up, and a step compared with that of one alone."""
    ledger = ledger_of(tmp_path, seeds=3)
    told = iter((11, 12))
    monkeypatch.setattr("altcore.processes.os.getpid", lambda: next(told, 13))
    one, other, third = ledger.jobs()
    for job, step_time in ((one, 20.0), (other, 40.0)):
        complete(ledger, job)
        # The first step warms up, and one of the others is that of a measurement.
        times = [900.0, step_time, step_time, 800.0]
        lines = [json.dumps({"step": i, "step_time_ms": t}) for i, t in enumerate(times, 1)]
        (ledger.run_of(job.name) / "timings.jsonl").write_text("\n".join(lines) + "\n")
    lease(ledger.folder / "jobs" / third.name, 1, {})
    alone = {"base": {"step_seconds": 0.01}}
    failed, memory, time = _findings(ledger, "s.yaml", alone, Limits(memory_gb=0.7), Declared())
    assert failed.told == f"{third.name}: it was not run"
    assert memory.told == "2 workers take 0.80 GB (limit 0.7 GB)"
    assert memory.remedy == "altcore sweep check s.yaml --resources --executor local:1"
    assert time.told == "a step takes 3.00 times as long (limit 2)"
    assert time.remedy == memory.remedy
    _, memory, time = _findings(
        ledger, "s.yaml", alone, Limits(memory_gb=0.9, slowdown=3.1), Declared()
    )
    assert memory.passed
    assert time.passed


def test_settings_of_another_variants_optimizer_are_no_fault(tmp_path):
    """They stand in the base, for the variant that uses it."""
    path = tmp_path / "study.yaml"
    path.write_text(
        "base: {gpt.size: tiny, optimizer: sgd, sgd: {momentum: 0.5}, adamw: {beta2: 0.9}}\n"
        "variants: {plain: {}, adam: {optimizer: adamw}}\n"
    )
    found = Preflight(read_sweep(path), told="study.yaml", steps=1).findings()
    told = [finding for finding in found if "configuration" in finding.what]
    assert [finding.passed for finding in told] == [True, True]
