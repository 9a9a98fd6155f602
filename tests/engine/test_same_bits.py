"""What only looks, writes or interrupts changes no bit of a run, whatever its recipe."""

from contextlib import suppress

import pytest
from attrs import define
from helpers import Starter, events, text_file, weights_sha256
from helpers_faults import numbered

from altcore import hookimpl
from altcore.errors import PluginError
from altcore.runs import read_lines

STOCHASTIC = {"format": "E3M4", "rounding": "stochastic"}
ROLES = ("weight", "activation", "gradient", "weight_gradient", "stored_weight", "optimizer_state")
RECIPES = (
    {"format": "E4M3", "recipe": "pure"},
    {"recipe": dict.fromkeys(ROLES, STOCHASTIC)},
    {"recipe": "mxfp8"},
    {"format": "E7M0", "recipe": "original"},
    {"format": "E5M2", "recipe": "full"},
    {"recipe": "nvfp4"},
    {"format": "E3M4", "recipe": "master"},
)
DIAGNOSTICS = (
    *("amax", "attention-logits", "bit-stall", "flips", "grad-stats", "grad-stiffness"),
    *("grid-alignment", "noise-floor", "overflow", "rank-health", "shadow", "stability"),
    *("stiffness", "ulp-stats"),
)
INTERVALS = (
    {"log_interval": 4},
    {"eval_interval": 1},
    {"eval_interval": 3, "eval_steps": 3},
    {"checkpoint_interval": 1},
    {"checkpoint_interval": 1, "max_checkpoints": 2, "keep_best": 3},
    {"check_observers": True, "plugins": ["ulp-stats"]},
)
VARIANTS = (
    "kernels off",
    *DIAGNOSTICS,
    *INTERVALS,
    "reporters",
    *(f"resumed after {step}" for step in range(6)),
)
CASES = [((v + turn) % len(RECIPES), v) for turn in range(7) for v in range(len(VARIANTS))]
"""Recipes and variants: each variant with one recipe, then with the next one, and so on."""
STEPS = 6


def test_there_are_7_recipes_and_28_variants():
    assert (len(RECIPES), len(VARIANTS)) == (7, 28)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A starter of runs with dropout."""
    folder = tmp_path_factory.mktemp("bits")
    keys = {"gpt__dropout": 0.1, "max_steps": STEPS}
    return Starter(folder / "runs", text_file(folder / "words.txt"), keys)


@pytest.fixture(scope="module")
def plain(start):
    """A function that returns the run of a recipe that nothing looks at."""
    made = {}

    def run(recipe):
        if recipe not in made:
            made[recipe] = start(name=f"plain-{recipe}", **RECIPES[recipe]).run_directory
        return made[recipe]

    return run


def losses(run):
    """The losses of a run's recorded steps."""
    lines = read_lines(run / "metrics.jsonl")
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


@define(eq=False)
class Breaks:
    """Ends the run, once."""

    after: int = 0

    @hookimpl
    def pre_backward(self, step):
        if step.index == self.after + 1 and not BROKEN:
            BROKEN.append(step.index)
            raise RuntimeError


BROKEN = []


def varied(start, shelf, name, recipe, variant, monkeypatch):
    """Train a variant of a recipe's run."""
    if isinstance(variant, dict):
        return start(name=name, **{**recipe, **variant})
    if variant == "kernels off":
        monkeypatch.setenv("ALTCORE_KERNELS", "off")
        return start(name=name, **recipe)
    if variant == "reporters":
        return start(["progress", "failure-report", "page"], name=name, **recipe)
    if variant in DIAGNOSTICS:
        return start([variant], name=name, **recipe)
    BROKEN.clear()
    after = int(variant.rpartition(" ")[2])
    shelf.install("intervention", "breaks", Breaks)
    with suppress(PluginError):
        start(["breaks"], name=name, breaks__after=after, checkpoint_interval=1, **recipe)
    assert BROKEN
    return start.resume(name)


@pytest.mark.parametrize("case", numbered(28, len(CASES)))
def test_a_variant_has_the_same_bits(start, plain, shelf, case, monkeypatch):
    """Weights and losses."""
    which, variant = CASES[case][0], VARIANTS[CASES[case][1]]
    run = varied(start, shelf, f"variant-{case}", RECIPES[which], variant, monkeypatch)
    assert run.status == "finished"
    assert not events(run.run_directory, "degraded")
    assert weights_sha256(run.run_directory) == weights_sha256(plain(which))
    found, expected = losses(run.run_directory), losses(plain(which))
    assert found == {step: expected[step] for step in found}
    assert len(found) > 1


@pytest.mark.parametrize("optimizer", ["grid", "manifold-adamw"])
@pytest.mark.parametrize("recipe", ["mxfp8", "nvfp4"])
def test_optimizers_that_go_by_grids_of_blocks_have_the_same_bits(
    start, shelf, optimizer, recipe, monkeypatch
):
    """A grid is that of the last forward pass, whether anybody looks at it or not."""
    keys = {"recipe": recipe, "optimizer": optimizer, "learning_rate": 0.01}
    hashes = set()
    for number, variant in enumerate(({}, {"log_interval": 1}, "ulp-stats", "resumed after 3")):
        name = f"{optimizer}-{recipe}-{number}"
        run = varied(start, shelf, name, {**keys, "log_interval": 4}, variant, monkeypatch)
        hashes.add(weights_sha256(run.run_directory))
    assert len(hashes) == 1
