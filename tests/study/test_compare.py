"""Comparisons: identical batches, a twin for each optimizer, shared controls, verdicts."""

import json

import pytest
from attrs import evolve

from altcore import BadInput
from altcore.config import TrainConfig
from altcore.errors import Source
from altcore.study import Entrants, Options, commands, run_compare
from altcore.study.arm_recipes import contender_config
from altcore.study.record import Question, claim

OPTIMIZERS = ["adamw", "sgd:momentum=0.5"]


@pytest.fixture
def options(start, tmp_path):
    """The options of a tiny study, at one learning rate."""
    tiny = {
        "gpt.size": "tiny",
        "gpt.n_layer": 1,
        "gpt.block_size": 16,
        "gpt.batch_size": 4,
        "gpt.data": str(start.corpus),
        "max_steps": 5,
        "eval_steps": 2,
        "device": "cpu",
    }
    overrides = [(k, v, "") for k, v in tiny.items()]
    folder = tmp_path / "studies"
    told = []
    return Options(None, overrides, 2, 0.05, None, None, told.append, folder, rates=(1.0,)), told


def test_a_comparison_runs_and_is_written(options):
    """A row for each contender, one control for those that freeze the same layers."""
    asked, told = options
    entrants = Entrants(["E2M1"], ["master", "pure"], optimizers=OPTIMIZERS)
    entrants = evolve(entrants, against="adamw", metric="val")
    found, folder = run_compare(asked, entrants)
    rows = found["contenders"]
    pairs = [(recipe, optimizer) for recipe in ("master", "pure") for optimizer in OPTIMIZERS]
    assert [r["arm"] for r in rows] == ["/".join(("E2M1", *pair)) for pair in pairs]
    assert [(r["recipe"], r["optimizer"]) for r in rows] == pairs
    # Each optimizer is held against the other under the same recipe.
    assert [(d["arm"], d["against"]) for d in found["differences"]] == [
        (f"E2M1/{r}/{OPTIMIZERS[1]}", f"E2M1/{r}/adamw") for r in ("master", "pure")
    ]
    gaps = {r["arm"]: r["gap"]["mean"] for r in rows}
    for d in found["differences"]:
        assert d["difference"]["mean"] == pytest.approx(gaps[d["arm"]] - gaps[d["against"]])
    runs = {p.name for p in (folder / "runs").iterdir()}
    controls = {n.partition("-s4")[0] for n in runs if n.startswith("frozen")}
    controls = {n.partition("-s1")[0] for n in controls}
    assert controls == {
        f"frozen-{r}-{o}" for r in ("master", "pure") for o in ("adamw", "sgd_momentum_0_5")
    }
    assert set(found["twins"]) == set(OPTIMIZERS)
    # Each optimizer's null arm differs from its twin by next to nothing.
    nulls = [twin["null"] for twin in found["twins"].values()]
    assert all(abs(n["mean"]) < 0.01 and n["detectable"] > 0 and n["rows"] == 4 for n in nulls)
    assert all(r["gap"]["n"] == 2 for r in rows)
    assert json.loads((folder / "compare.json").read_text())["about"]["seeds"] == [42, 43]
    # How often runs save a checkpoint follows from what a step costs; no digest is of it.
    jobs = [json.loads(path.read_text()) for path in folder.glob("jobs/*/job.json")]
    assert all(job["config"]["checkpoint_interval"] > 0 for job in jobs)
    assert not any("checkpoint_interval" in job["identity"]["config"] for job in jobs)
    page = (folder / "compare.md").read_text()
    # A row of gaps, of differences, of losses and of rates.
    assert page.count("| E2M1/pure/adamw |") == 4
    # All of them by the loss of validation.
    losses = {r["arm"]: r["val_loss"]["mean"] for r in rows}
    twin = found["twins"]["adamw"]["val_loss"]["mean"]
    assert gaps["E2M1/pure/adamw"] == pytest.approx(losses["E2M1/pure/adamw"] - twin)
    assert "difference of the validation loss at the end" in page
    assert found["validation"]["batches"] == 2
    assert rows[0]["rates"]["flushed_rate"]["largest"] > 0
    assert " Settings: gpt." in page
    told.clear()
    again, _ = run_compare(asked, entrants)
    assert [t for t in told if not t.startswith(("at most", "caution"))] == []
    assert told[0].endswith(f"runs of 5 steps, less those that are finished; into {folder}")
    assert again["contenders"] == rows


def test_a_recipe_may_be_a_file(tmp_path, monkeypatch):
    """One that says FORMAT, for the format of each contender."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("weight: FORMAT\n")
    (tmp_path / "own.yaml").write_text("weight: E4M3\n")
    made = recipe_of("E3M4", "mine.yaml")
    assert made.name == "mine.yaml"
    assert made.rules[0].casts["weight@fwd"].format.name == "E3M4"
    with pytest.raises(BadInput, match=r"^format E3M4: only .* \(given by --formats\)"):
        recipe_of("E3M4", "own.yaml")
    with pytest.raises(BadInput, match=r"^recipe none\.yaml: cannot .*by --recipes"):
        recipe_of("E3M4", "none.yaml")


def recipe_of(fmt, recipe):
    flags = Source(flag="--formats"), Source(flag="--recipes")
    return contender_config(TrainConfig(), fmt, recipe, *flags).make_recipe()


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    """Where a file has the name of the study."""
    (tmp_path / "taken").touch()
    question = Question(command="compare", asked={}, arms={}, seeds=[1], within=0.1, steps=5)
    with pytest.raises(BadInput, match=r"taken cannot be written"):
        claim(tmp_path / "taken", [], question, [])


def test_validation_looks_at_more_batches_where_it_decides(options, monkeypatch):
    """Unless the number is given."""
    monkeypatch.setattr(commands, "_compare", lambda options, config, entrants: config.eval_steps)
    asked, _ = options
    arms = Entrants(["E4M3"], metric="val")
    assert run_compare(asked, arms) == 2
    without = evolve(asked, overrides=[o for o in asked.overrides if o[0] != "eval_steps"])
    assert run_compare(without, arms) == 64
    assert run_compare(without, evolve(arms, metric="train")) == TrainConfig().eval_steps
    with pytest.raises(BadInput, match="--metric: 'test' is not train or val"):
        evolve(arms, metric="test")
