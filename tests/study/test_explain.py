"""Explanations: what an arm quantizes, how outcomes are compared, and planted faults by name."""

import json
import math
import re

import pytest
from click.testing import CliRunner

from altcore import BadInput
from altcore.cli import cli
from altcore.formats import float_format, table_format
from altcore.recipes import OPERANDS, Layer, read_recipe
from altcore.recipes.cast_reading import Place, read_cast
from altcore.study import Options, load_answer, run_explain
from altcore.study.arms import (
    FACTORS,
    Arm,
    factorial,
    frozen_control,
    layer_groups,
    merged,
    select,
    with_partners,
)
from altcore.study.culprit import runs_inside
from altcore.study.measures import val_gap
from altcore.study.onset import onset
from altcore.study.outcome import Outcome, gap, tail_length
from altcore.study.own_keys import optimizer_keys
from altcore.study.paired import PairedRuns
from altcore.study.runner import Runner, Trial
from altcore.study.variants import CAUSE_CHANGE, RESCALED
from altcore_reporters.study_pages.words import CAUSES

LAYERS = [
    Layer("wte", "embedding"),
    Layer("h.0.qkv", "linear"),
    Layer("h.1.qkv", "linear"),
    Layer("h.1.proj", "linear"),
    Layer("head", "linear", is_head=True),
]


def plan_of(recipe):
    """A recipe's casts for the layers above."""
    return read_recipe(recipe).resolve(LAYERS)


EVERYTHING = {
    "weight": "E4M3",
    "activation": "E4M3",
    "gradient": "E5M2",
    "stored_weight": "E3M4",
    "optimizer_state": "E3M4",
    "skip": ["head"],
}


def test_the_arms_split_the_recipe():
    """Eight of them; each has its factors' operands and no others, and all have the recipe."""
    plan = plan_of(EVERYTHING)
    arms = factorial(plan)
    assert len(arms) == 8
    for factors, arm in arms.items():
        wanted = {o for f in factors for o in FACTORS[f]}
        for layer, casts in arm.casts.items():
            assert set(casts) == {o for o in wanted if plan[layer][o]}
        assert {
            n: {o: c for o, c in x.items() if c}
            for n, x in read_recipe(arm.recipe()).resolve(LAYERS).items()
        } == {n: dict(arm.casts.get(n, {})) for n in plan}
    assert len(factorial(plan_of({"weight": "E4M3"}))) == 4
    assert set(frozen_control(plan).freeze) == {"wte", "h.0.qkv", "h.1.qkv", "h.1.proj"}


def test_every_operand_is_in_a_factor():
    """A recipe's weight gradients and attention are asked about like the rest of it."""
    assert sorted(o for factor in FACTORS.values() for o in factor) == sorted(OPERANDS)


@pytest.mark.parametrize("operand", ["gradient@wgrad", "activation@wgrad"])
def test_an_operand_with_a_hadamard_transform_runs_alone(start, operand):
    """Its partner is transformed too, and rounded too finely to matter."""
    layer = "transformer.h.0.mlp.c_fc"
    cast = read_cast({"format": "NVFP4", "hadamard": 16}, Place())
    run = start(recipe=Arm("alone", {layer: {operand: cast}}).recipe(), freeze=["<embedding>"])
    assert run.steps_completed == 3
    [partner] = {"gradient@wgrad", "activation@wgrad"} - {operand}
    both = with_partners({operand: cast})
    assert both[operand] == cast
    assert both[partner].hadamard == 16
    assert both[partner].element.precision == 11
    pair = {operand: cast, partner: cast}
    assert with_partners(pair) == pair


def test_parts_of_a_plan():
    """Operands and layers are chosen, changed and put in the place of others."""
    plan = plan_of(EVERYTHING)
    one = select(plan, ["weight@fwd"], ["h.0.qkv"])
    assert {n: list(c) for n, c in one.items() if c} == {"h.0.qkv": ["weight@fwd"]}
    groups = layer_groups(plan, ["weight@fwd"])
    assert groups == {"h.0": ["h.0.qkv"], "h.1": ["h.1.qkv", "h.1.proj"]}
    assert "wte" in layer_groups(plan, ["stored_weight"])
    ties = [["wte", "head"]]
    assert "head" in layer_groups(plan_of({"stored_weight": "E4M3"}), ["stored_weight"])
    assert "head" not in layer_groups(plan_of({"stored_weight": "E4M3"}), ["stored_weight"], ties)
    alone = plan_of({"layers": {"<head>": {"stored_weight": "E4M3"}}})
    assert layer_groups(alone, ["stored_weight"], ties) == {"head": ["head"]}
    other = select(plan_of({"weight": "E2M1"}), ["weight@fwd"], ["h.0.qkv"])
    both = merged(select(plan, OPERANDS), other)
    assert both["h.0.qkv"]["weight@fwd"].format.name == "E2M1"
    assert both["h.0.qkv"]["weight@dgrad"].format.name == "E4M3"


def outcome_of(losses, diverged=False, entropy=3.0):
    """An outcome with these losses."""
    return Outcome(tuple(losses), diverged, entropy, ())


def test_gaps_are_paired_over_the_last_tenth():
    """Differences batch by batch; a diverged run counts with the unigram entropy."""
    twin = outcome_of([5.0, *[2.0 + 0.1 * i for i in range(29)]])
    other = outcome_of([5.0, *[2.0 + 0.1 * i + (0.3 if i >= 26 else 9) for i in range(29)]])
    assert tail_length(30) == 3
    assert gap(other, twin, 30) == pytest.approx(0.3)
    lost = outcome_of([5.0, math.nan], diverged=True)
    low = outcome_of([5.0] + [1.0] * 29)
    assert gap(lost, low, 30) == pytest.approx(3.0 - 1.0)
    high = outcome_of([5.0] + [4.0] * 29)
    assert gap(lost, high, 30) == pytest.approx(5.0 - 4.0)  # the twin is above the entropy
    assert lost.tail(30) == math.inf


@pytest.mark.parametrize("losses", [[1.0] * 29, [1.0] * 2, [1.0] * 29 + [math.nan]])
def test_no_gap_is_known_to_a_twin_that_ended_early(losses):
    """Its last losses are of other steps, or are none."""
    twin = outcome_of(losses, diverged=True)
    assert math.isnan(gap(outcome_of([1.0] * 30), twin, 30))
    assert math.isnan(gap(outcome_of([], diverged=True), twin, 30))
    assert math.isnan(val_gap(outcome_of([1.0] * 30), twin))


def test_onset_needs_three_lines_running():
    """A single low cosine is none; the layer is the one with the largest injected error then."""

    def line(step, cosine, **injected):
        errors = {f"shadow/injected/{k}": v for k, v in injected.items()}
        return {"step": step, "loss": 1.0, "shadow/cosine_mean": cosine, **errors}

    low = [line(s, 0.5, a=0.1 * s, b=0.25) for s in (2, 3, 4)]
    assert onset([line(1, 0.95), *low]) == {
        "step": 2,
        "cosine": 0.5,
        "layer": "b",
        "injected": 0.25,
    }
    assert onset([line(1, 0.5), line(2, 0.95), *low[:2]]) is None
    assert onset([{"step": 1, "loss": 1.0}]) is None


@pytest.mark.parametrize(
    ("own", "arm", "told"),
    [
        (3.0, 3.0, ("twin", 3.0)),  # the twin's own rate: the runs are there
        (1.0, 2.9, ("twin-inside", 1.0)),  # worse than the twin at that rate
        (1.0, 2.5, ("twin", 3.0)),  # as good: what it harms is the rate that can be had
    ],
)
def test_a_factor_is_compared_at_its_own_rate(own, arm, told):
    """What another learning rate costs is not put down to every operand in turn."""
    losses = {("twin-inside", 1.0): 2.5, ("twin", 3.0): 2.0, ("B", own): arm}

    class Stub:
        def outcomes(self, trials):
            noises = [t.seed * len(t.arm.key) / 1e4 for t in trials]  # another for each arm
            means = [losses[t.arm.key, t.rate] for t in trials]
            return [outcome_of([m + n] * 10) for m, n in zip(means, noises, strict=True)]

    Stub.base = type("Base", (), {"max_steps": 10})
    runs = PairedRuns(Stub(), [1, 2, 3], 0.05, rates={"twin": 3.0, "B": own})
    runs.run([Arm("twin", {}), Arm("B", {})])
    inside, row = runs_inside(runs, Arm("B", {}))
    assert (inside.reference.key, inside.rate) == told
    assert (row is None) == (own == 3.0)
    if row is not None:
        assert row["mean"] == pytest.approx(arm - 2.5, abs=0.01)
    assert (runs.reference.key, runs.rate) == ("twin", None)


@pytest.fixture
def options(start, tmp_path):
    """Return a function that makes the options of a tiny study."""

    def made(recipe, steps=6, seeds=2, within=0.02, keys=(), **more):
        tiny = {
            "gpt.size": "tiny",
            "gpt.n_layer": 1,
            "gpt.block_size": 16,
            "gpt.batch_size": 4,
            "gpt.data": str(start.corpus),
            "max_steps": steps,
            "device": "cpu",
            "recipe": recipe,
            **dict(keys),
        }
        overrides = [(k, v, "") for k, v in tiny.items()]
        told = []
        more = {"rates": 1, "null": False, "folder": tmp_path / "studies", **more}
        return Options(None, overrides, seeds, within, tell=told.append, **more), told

    return made


def test_a_study_goes_on_where_it_was(options):
    """What is finished is read, what was cut short is done again, and the answer is the same."""
    asked, told = options({"weight": "E2M1"})
    first, folder = run_explain(asked)
    assert load_answer(folder / "explain.json") == first
    assert "at most" in told[0]
    assert "a step" in told[0]
    ran = [line for line in told if line.startswith(("F-", "twin-", "frozen-"))]
    assert len(ran) == 6
    torn = next(p for p in (folder / "runs").iterdir() if p.name.startswith("F-"))
    events = (torn / "events.jsonl").read_text().splitlines()
    (torn / "events.jsonl").write_text("\n".join(events[:-1]) + "\n")
    told.clear()
    again, _ = run_explain(asked)
    assert [x for x in told if not x.startswith(("at most", "caution"))] == [
        x for x in told if x.startswith(torn.name)
    ]
    assert again["arms"] == first["arms"]
    assert json.loads((folder / "explain.json").read_text())["about"]["steps"] == 6
    assert (folder / "explain.md").read_text().startswith("# Where E2M1 (given) breaks")
    page = (folder / "explain.md").read_text()
    other, told = options({"weight": "E3M4"}, name=folder.name)
    found, again = run_explain(other)
    assert again == folder
    assert (folder / "explain.md").read_text() == page
    beside = (folder / f"{found['about']['page']}.md").read_text()
    assert beside.startswith("# Where E3M4 (given) breaks")
    # What both ask about is there: the twin, and the control, whose layers are the same.
    assert not [line for line in told if line.startswith(("twin", "frozen"))]


def test_nothing_to_explain_is_said(options):
    """A recipe that quantizes nothing, a budget for too few steps, too few seeds."""
    with pytest.raises(BadInput, match="quantizes nothing"):
        run_explain(options({})[0])
    with pytest.raises(BadInput, match=r"--budget 0\.001: .* give at least \d+ minutes"):
        run_explain(options({"weight": "E4M3"}, budget=0.001)[0])
    with pytest.raises(BadInput, match="--seeds 1"):
        options({"weight": "E4M3"}, seeds=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["explain"], "explain needs --format"),
        (["explain", "--format", "E9X"], "E9X"),
        (["compare"], "compare needs --formats"),
        (["compare", "--formats", "E4M3,E4M3"], "E4M3 is given twice"),
    ],
)
def test_bad_input(arguments, message):
    """One clear line."""
    found = CliRunner().invoke(cli, arguments)
    assert message in (found.output + str(found.exception))
    assert isinstance(found.exception, BadInput)


# Planted faults --------------------------------------------------------------------------------

GOOD = float_format("GOOD", 5, 6)
ROLES = {"weight": GOOD, "activation": GOOD, "gradient": GOOD}
STORED = {"stored_weight": GOOD, "optimizer_state": float_format("WIDE", 8, 6)}


def ends_at(power):
    """GOOD, unscaled, without its values from 2**power on."""
    fmt = float_format(f"END{power}", 5, 6, bias=32 - power)
    return {"format": fmt, "scaling": "none"}


def begins_at(power):
    """GOOD, unscaled, with no value between 0 and 2**power."""
    fmt = float_format(f"BEGIN{power}", 5, 6, bias=-5 - power)
    return {"format": fmt, "scaling": "none"}


def misscaled(factor):
    """GOOD, by a quantizer that takes tensors to be so many times as large as they are."""
    return {"format": GOOD, "scaling": {"kind": "tensor", "margin": factor}}


def coarse(fmt):
    """A scaled format, rounded stochastically: what is lost is lost by its width alone."""
    return {"format": fmt, "rounding": "stochastic"}


def biased(fmt):
    """A scaled format, rounded to 0: what is lost has a sign."""
    return {"format": fmt, "rounding": "to-zero"}


FEW = table_format("FEW", [-1.0, -(2.0**-8), 0.0, 2.0**-8, 1.0])


SETTLED = {"gpt.batch_size": 16, "gpt.vocab_size": 128, "learning_rate": 3e-3}
"""With these a twin is near the entropy of the words after 150 steps, from every seed."""
ATTENTION = "transformer.h.0.attn"
QKV = "transformer.h.0.attn.c_attn"
HEAD = "lm_head"
FAULTS = [
    ("F", "activation@fwd", QKV, "above", ends_at(-5)),
    ("F", "activation@fwd", QKV, "below", begins_at(3)),
    ("F", "activation@fwd", HEAD, "finer", coarse(FEW)),
    ("F", "weight@fwd", HEAD, "above", misscaled(2.0**-6)),
    ("F", "weight@fwd", HEAD, "finer", coarse(FEW)),
    ("F", "attention@value", ATTENTION, "below", begins_at(3)),
    ("B", "gradient@dgrad", HEAD, "above", ends_at(-21)),
    ("B", "gradient@dgrad", HEAD, "below", misscaled(2.0**40)),
    ("B", "gradient@dgrad", HEAD, "stochastic", biased(FEW)),
    ("B", "weight@dgrad", HEAD, "above", ends_at(-14)),
    ("B", "gradient@wgrad", QKV, "below", begins_at(-4)),
    ("B", "activation@wgrad", QKV, "above", ends_at(-29)),
    ("B", "weight_gradient", HEAD, "below", begins_at(3)),
    ("U", "stored_weight", QKV, "above", ends_at(-6)),
    ("U", "stored_weight", QKV, "below", begins_at(0)),
    ("U", "stored_weight", HEAD, "finer", coarse("E0M2")),
    ("U", "stored_weight", HEAD, "stochastic", "E3M1"),
    ("U", "stored_weight", HEAD, "stochastic", "E7M0"),
    ("U", "stored_weight", HEAD, "stochastic", biased("E5M2")),
    ("U", "optimizer_state", HEAD, "below", begins_at(-6)),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("factor", "operand", "layer", "cause", "cast"),
    [pytest.param(*f, id=f"{f[1]} of {f[2].rpartition('.')[2]}: {f[3]}") for f in FAULTS],
)
def test_planted_faults_are_named(options, factor, operand, layer, cause, cast):
    """One operand of one layer is misrounded, too coarse, or reaches not far: all is said.

    The other operands and layers are quantized too, in a format that does no harm.
    """
    roles = {**ROLES, **(STORED if factor == "U" else {})}
    recipe = {"layers": {"<linear>": roles, layer: {operand: cast}}}
    asked, _ = options(recipe, steps=150, seeds=5, within=0.3, keys=SETTLED, rates=3)
    found, folder = run_explain(asked)
    assert load_answer(folder / "explain.json") == found
    named = {k: found[k] for k in ("factor", "operand", "layer", "cause")}
    assert named == {"factor": factor, "operand": operand, "layer": layer, "cause": cause}
    rounded = f"{operand}: {CAUSE_CHANGE['stochastic']}"
    assert (
        found["recommendation"]
        in {
            "stochastic": [rounded],
            "above": [f"{operand}: {RESCALED}"],
            # Rounding is tried first, and carries some of what lies below the range.
            "below": [rounded, f"{operand}: {RESCALED}"],
            "finer": [f"{operand} of {found['group']}: {CAUSE_CHANGE[cause]}"],
        }[cause]
    )
    page = (folder / "explain.md").read_text()
    for line in (f"Operand**: {operand}", f"Layer**: {layer}"):
        assert f"- **{line}\n" in page
    assert re.search(rf"- \*\*Cause\*\*: (nearest )?{CAUSES[cause].partition(':')[0]}", page)


def test_an_arm_runs_once(start, tmp_path):
    """A second call reads the first one's record."""
    runner = Runner(tmp_path / "study", start.config(max_steps=2), lambda _: None)
    first = runner.outcomes([Trial(Arm("twin", {}), seed=1)])
    assert runner.done == 1
    assert runner.outcomes([Trial(Arm("twin", {}), seed=1)]) == first
    assert runner.done == 1


def test_each_run_is_told_with_the_time_left(start, tmp_path):
    """As it begins, for as long as it lasts; and at its end, for good. The first run knows none."""
    told, doing = [], []
    config = start.config(max_steps=2)
    runner = Runner(tmp_path / "study", config, told.append, planned=2, doing=doing.append)
    for seed in (1, 2):
        runner.outcomes([Trial(Arm("twin", {}), seed)])
    # On a busy machine each is told more than once.
    assert list(dict.fromkeys(line.partition("-")[0] for line in doing)) == [
        "run 1 of at most 2: twin",
        "run 2 of at most 2: twin",
    ]
    assert "left" not in doing[0]
    assert re.search(r"; at most \d+ s left$", doing[-1])
    assert all(re.fullmatch(r"twin-\S+: \d+ s; at most \d+ s left", line) for line in told)


def test_optimizers_are_compared_with_their_settings(start):
    """NAME:KEY=VALUE; another optimizer's settings are left out, and typos are found at once."""
    config = start.config()
    keys = optimizer_keys("manifold-adamw:mode=update:max_stiffness=10", config)
    assert keys["optimizer"] == "manifold-adamw"
    assert keys["settings"]["manifold-adamw"] == {"mode": "update", "max_stiffness": 10}
    for text, words in (("admaw", "did you mean adamw"), ("adamw:beta1", "is not KEY=VALUE")):
        with pytest.raises(BadInput, match=words):
            optimizer_keys(text, config)
