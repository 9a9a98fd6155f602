"""Explanations: what an arm quantizes, how outcomes are compared, and planted faults by name."""

import json
import math

import pytest
from click.testing import CliRunner

from altcore import BadInput
from altcore.cli import cli
from altcore.recipe import OPERANDS, Layer
from altcore.recipes import parse
from altcore.study.arms import FACTORS, Arm, factorial, frozen_control, layer_groups, merged, select
from altcore.study.commands import Options, explain, optimizer_keys
from altcore.study.explain import onset
from altcore.study.runner import Outcome, Runner, gap, tail_length

LAYERS = [
    Layer("wte", "embedding"),
    Layer("h.0.qkv", "linear"),
    Layer("h.1.qkv", "linear"),
    Layer("h.1.proj", "linear"),
    Layer("head", "linear", is_head=True),
]


def plan_of(recipe):
    """A recipe's casts for the layers above."""
    return parse(recipe, "test").resolve(LAYERS)


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
            for n, x in parse(arm.recipe(), "x").resolve(LAYERS).items()
        } == {n: dict(arm.casts.get(n, {})) for n in plan}
    assert len(factorial(plan_of({"weight": "E4M3"}))) == 4
    assert set(frozen_control(plan).freeze) == {"wte", "h.0.qkv", "h.1.qkv", "h.1.proj"}


def test_parts_of_a_plan():
    """Operands and layers are chosen, changed and put in the place of others."""
    plan = plan_of(EVERYTHING)
    one = select(plan, ["weight@fwd"], ["h.0.qkv"])
    assert {n: list(c) for n, c in one.items() if c} == {"h.0.qkv": ["weight@fwd"]}
    groups = layer_groups(plan, ["weight@fwd"])
    assert groups == {"h.0": ["h.0.qkv"], "h.1": ["h.1.qkv", "h.1.proj"]}
    assert "wte" in layer_groups(plan, ["stored_weight"])
    assert "wte" not in layer_groups(plan, ["stored_weight"], tied=["wte"])
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


@pytest.fixture
def options(start, tmp_path):
    """Return a function that makes the options of a tiny study."""

    def made(recipe, steps=6, seeds=2, **more):
        tiny = {
            "gpt.size": "tiny",
            "gpt.n_layer": 1,
            "gpt.block_size": 16,
            "gpt.batch_size": 4,
            "gpt.data": str(start.corpus),
            "max_steps": steps,
            "device": "cpu",
            "recipe": recipe,
        }
        overrides = [(k, v, "") for k, v in tiny.items()]
        told = []
        keys = {"budget": None, "name": None, "folder": tmp_path / "studies", **more}
        return Options(None, overrides, seeds, 0.02, tell=told.append, **keys), told

    return made


def test_a_study_goes_on_where_it_was(options):
    """What is finished is read, what was cut short is done again, and the answer is the same."""
    asked, told = options({"weight": "E2M1"})
    first, folder = explain(asked)
    assert "at most" in told[0]
    assert "a step" in told[0]
    ran = [line for line in told if line.startswith(("F-", "twin-", "frozen-"))]
    assert len(ran) > 10
    torn = next(p for p in (folder / "runs").iterdir() if p.name.startswith("F-"))
    events = (torn / "events.jsonl").read_text().splitlines()
    (torn / "events.jsonl").write_text("\n".join(events[:-1]) + "\n")
    told.clear()
    again, _ = explain(asked)
    assert [x for x in told if not x.startswith("at most")] == [
        x for x in told if x.startswith(torn.name)
    ]
    assert again["arms"] == first["arms"]
    assert json.loads((folder / "explain.json").read_text())["about"]["steps"] == 6
    assert (folder / "explain.md").read_text().startswith("# Where E2M1 (given) breaks")
    other, _ = options({"weight": "E3M4"}, name=folder.name)
    with pytest.raises(BadInput, match="holds a study with other settings"):
        explain(other)


def test_rates_are_chosen_on_their_own_seed(options, tmp_path):
    """The run that chose is none of those that count."""
    asked, _ = options({"weight": "E2M1"})
    _, folder = explain(asked)
    tried = {p.name for p in (folder / "runs").iterdir() if "-s1042-" in p.name}
    assert len(tried) == 5 * 3  # twin, F, B, FB and frozen at three rates
    assert {n.rpartition("lr")[2] for n in tried} == {"0_333", "1", "3"}


def test_nothing_to_explain_is_said(options):
    """A recipe that quantizes nothing, a budget for too few steps, too few seeds."""
    with pytest.raises(BadInput, match="quantizes nothing"):
        explain(options({})[0])
    with pytest.raises(BadInput, match=r"--budget 0\.001: .* give at least \d+ minutes"):
        explain(options({"weight": "E4M3"}, budget=0.001)[0])
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


GOOD = {"weight": "FP16", "activation": "FP16", "gradient": "FP16"}
FAULTS = {
    # the head's input, clipped at 1
    "above": ("activation@fwd", "lm_head", {"format": "E0M7", "scaling": "none"}, "F"),
    # the gradient that the head hands down, lost below the smallest value
    "below": ("gradient@dgrad", "lm_head", {"format": "E3M2", "scaling": "none"}, "B"),
    # one matrix seen with two bits
    "finer": ("activation@fwd", "lm_head", "INT2", "F"),
}


@pytest.mark.slow
@pytest.mark.parametrize("cause", FAULTS)
def test_planted_faults_are_named(options, cause):
    """Broken in one operand of one layer, by range or by coarseness: all of that is said."""
    operand, layer, cast, factor = FAULTS[cause]
    recipe = {"layers": {"<linear>": GOOD, layer: {operand: cast}}}
    asked, _ = options(recipe, steps=120, seeds=3)
    found, _ = explain(asked)
    named = {k: found[k] for k in ("factor", "operand", "layer", "cause")}
    assert named == {"factor": factor, "operand": operand, "layer": layer, "cause": cause}
    assert found["recommendation"].startswith(f"{operand} of {layer}")


def test_an_arm_runs_once(start, tmp_path):
    """A second call reads the first one's record."""
    runner = Runner(tmp_path / "study", start.config(max_steps=2), lambda _: None)
    first = runner.run(Arm("twin", {}), seed=1)
    assert runner.done == 1
    assert runner.run(Arm("twin", {}), seed=1) == first
    assert runner.done == 1


def test_optimizers_are_compared_with_their_settings(start):
    """NAME:KEY=VALUE; another optimizer's settings are left out, and typos are found at once."""
    config = start.config()
    keys = optimizer_keys("manifold-adamw:mode=update:max_stiffness=10", config)
    assert keys["optimizer"] == "manifold-adamw"
    assert keys["settings"]["manifold-adamw"] == {"mode": "update", "max_stiffness": 10}
    for text, words in (("admaw", "did you mean adamw"), ("adamw:beta1", "is not KEY=VALUE")):
        with pytest.raises(BadInput, match=words):
            optimizer_keys(text, config)
