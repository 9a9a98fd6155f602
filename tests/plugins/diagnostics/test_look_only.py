"""Every diagnostic that is installed only looks: without it the run is the same, bit for bit."""

import pytest
import torch
from attrs import define, fields
from helpers import events, sha256, state, weights_sha256
from torch.utils._pytree import tree_map

from altcore import hookimpl
from altcore.registry import entries

DIAGNOSTICS = [e for e in entries() if e.kind == "diagnostic"]
RECIPES = {
    "pure": {"format": "E3M4", "recipe": "pure"},
    "master": {"format": "E4M3", "recipe": "master", "gpt__dropout": 0.1},
    "original": {"format": "E5M2", "recipe": "original", "gradient_accumulation_steps": 2},
    "stochastic": {
        "recipe": {
            "stored_weight": {"format": "E3M4", "rounding": "stochastic"},
            "gradient": "MXFP4",
        }
    },
}
WATCHED = {"max_steps": 3, "eval_interval": 2}
PLAIN = {}
"""The runs without diagnostics, which all share."""


def without_measures(lines):
    """The engine's own part of the record."""
    return [{k: v for k, v in line.items() if "/" not in k} for line in lines]


def everything(result):
    """What must not depend on who looks: weights, optimizer, random states, metrics, events."""
    run = result.run_directory
    last = state(run)
    moments = {
        f"{i}.{key}": value
        for i, kept in last["optimizer"]["state"].items()
        for key, value in kept.items()
    }
    told = [e for e in events(run) if e["event"] not in ("start", "end", "checkpoint")]
    random = last["ranks"][0]["random"]
    return {
        "weights": weights_sha256(run),
        "optimizer": sha256(moments),
        "random": tree_map(lambda v: v.tolist() if isinstance(v, torch.Tensor) else v, random),
        "metrics": without_measures(result.metrics_history),
        "losses": (result.final_loss, result.summary["val_loss"]),
        "events": told,
    }


def plain(start, recipe):
    """What the run without diagnostics leaves."""
    if recipe not in PLAIN:
        PLAIN[recipe] = everything(start(name="plain", **RECIPES[recipe], **WATCHED))
    return PLAIN[recipe]


def every_step(entry):
    """Settings with which a diagnostic measures in each step, of few samples."""
    names = [field.name for field in fields(entry.load()) if field.init]
    given = {f"{entry.name}__{n}": 1 for n in names if n.split("_")[-1] == "interval"}
    return given | {f"{entry.name}__{n}": 2 for n in names if n == "samples"}


def pairs():
    """Each diagnostic with one recipe; the rest is for `make test-exhaustive`."""
    for i, entry in enumerate(DIAGNOSTICS):
        for k, recipe in enumerate(RECIPES):
            marks = [] if (i + k) % len(RECIPES) == 0 else [pytest.mark.exhaustive]
            yield pytest.param(entry, recipe, marks=marks, id=f"{entry.name}-{recipe}")


@pytest.mark.parametrize(("entry", "recipe"), pairs())
def test_a_diagnostic_changes_no_number(start, entry, recipe):
    """Measuring every step, evaluating on the way: all that a run leaves is the same."""
    settings = {**RECIPES[recipe], **WATCHED, **every_step(entry)}
    measured = start([entry.name], name="measured", strict=True, **settings)
    assert measured.summary["degraded"] == []
    assert everything(measured) == plain(start, recipe)


@pytest.mark.parametrize("recipe", RECIPES)
def test_all_of_them_together(start, recipe):
    """In the record of one run they do not get in each other's way."""
    names = [e.name for e in DIAGNOSTICS]
    settings = {k: v for e in DIAGNOSTICS for k, v in every_step(e).items()}
    settings |= {**RECIPES[recipe], **WATCHED}
    measured = start(names, name="measured", strict=True, **settings)
    assert everything(measured) == plain(start, recipe)
    seen = {key.partition("/")[0] for line in measured.diagnostics_history for key in line}
    assert {"stability", "grad-stats"} <= seen


def test_the_comparison_would_notice(start, shelf):
    """A diagnostic that moves one weight by a hundredth, in one step, is found out.

    By so much that whatever else rounds it cannot make the difference vanish again.
    """

    @define(eq=False)
    class Meddler:
        @hookimpl
        def post_step(self, run, step):
            if step.index == 2:
                next(run.model.parameters()).data[0, 0] *= 1.01

    shelf.install("diagnostic", "meddler", Meddler)
    plain, meddled = everything(start()), everything(start(["meddler"]))
    assert plain["weights"] != meddled["weights"]
    assert plain["optimizer"] != meddled["optimizer"]
