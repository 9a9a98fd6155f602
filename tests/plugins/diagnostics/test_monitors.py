"""The monitors of a loss's slope, all in one run: names, frequencies, what they cost."""

import resource
import time
from importlib import import_module

import pytest
import torch
from attrs import define, field
from helpers_cli import ROOT
from torch import nn
from torch.nn import functional

from altcore.runs import read_lines

MONITORS = ["grad-stats", "noise", "curvature", "loss-slope"]


@define(eq=False)
class Clusters:
    """Three clusters to tell apart: eight batches an epoch, and a finite validation split."""

    def build(self, seed, device):
        return BuiltClusters(seed)


@define(eq=False)
class BuiltClusters:
    seed: int
    items_per_batch: int = 16
    item: str = "points"
    steps_per_epoch: int = 8
    validation_batches: int = 1
    facts: dict = field(factory=dict)
    model: nn.Module = field(init=False)

    def __attrs_post_init__(self):
        torch.manual_seed(self.seed)
        self.model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))

    def batch(self, split, step, micro):
        g = torch.Generator().manual_seed(step if split == "train" else 10_000 + step)
        y = torch.randint(0, 3, (16,), generator=g)
        return torch.eye(3)[y] + torch.randn(16, 3, generator=g) / 2, y

    def loss(self, model, batch):
        logits = model(batch[0])
        correct = (logits.detach().argmax(1) == batch[1]).float().mean()
        return functional.cross_entropy(logits, batch[1]), {"accuracy": correct}


def print_costs(engine, seconds, capsys, title):
    """Print what each monitor took of the steps' time, and the peak of the process's memory."""
    spent = {str(who): taken for who, taken in engine.dispatch.clock.seconds.items()}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    with capsys.disabled():
        print(f"\n{title}: {seconds:.2f} s, peak memory of the process {peak:.0f} MiB")
        for who, taken in spent.items():
            print(f"  {who}: {taken:.3f} s, {taken / seconds:.1%}")


def test_all_together(start, shelf, capsys):
    """Each at its own frequency, no two measures of one name, nobody disabled."""
    shelf.install("workload", "clusters", Clusters)
    keys = {"workload": "clusters", "compute": "float32", "strict": True, "epochs": 8}
    keys |= {"max_steps": None, "warmup_steps": 0, "learning_rate": 1e-2}
    keys |= {"grad-stats__interval": "0.25 epoch", "evals_per_epoch": 4, "eval_interval": None}
    given = {"curvature__interval": 30, "curvature__samples": 2}
    engine = start.engine(MONITORS, **keys, **given)
    before = time.perf_counter()
    summary = engine.train()
    seconds = time.perf_counter() - before
    assert summary["degraded"] == []
    lines = read_lines(engine.directory.path / "metrics.jsonl")
    at = {name: [line["step"] for line in lines if name in line] for line in lines for name in line}
    ends, steps = range(8, 65, 8), list(range(1, 65))
    for name in ("loss", "accuracy", "learning_rate", "loss-slope/weight_decay"):
        assert at[name] == steps, name
    quarters = list(range(2, 65, 2))
    assert at["val_loss"] == at["val_accuracy"] == at["loss-slope/point_loss"] == quarters
    for name in ("grad_norm_periodic", "weight_norm_periodic"):
        assert at[f"grad-stats/{name}"] == [1, *quarters]
    for name in ("lambda_max", "hutchinson_trace", "hutchinson_trace_error"):
        assert at[f"curvature/{name}"] == [1, 30, 60]
    for name in ("psd_tail", "total_power", "residual_power"):
        assert at[f"noise/{name}"] == list(range(16, 65, 16))
    assert at["noise/gradient_variance"] == [1, *range(16, 65, 16)]
    assert at["loss-slope/epoch_loss"] == list(ends)
    assert at["loss-slope/alpha_5_15"] == list(ends)[5:]
    knee = summary["findings"]["loss-slope"][0]["knee_epoch"]
    assert at["loss-slope/alpha_full"] == [end for end in ends if end > 8 * knee]
    laws = [end for end in ends if end % 16 == 0 and end > 8 * knee]
    assert at["loss-slope/power_law_slope"] == at["loss-slope/r_squared"] == laws != []
    bare = [name.split("/")[1] for name in at if name.count("/") == 1]
    assert len(bare) == len(set(bare))
    print_costs(engine, seconds, capsys, "64 steps of a toy")


@pytest.mark.slow
def test_what_they_cost(monkeypatch):
    """At most 15 % of 1,000 steps of ResNet-18 of width 0.25 with 128 images in a batch."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monitors = import_module("monitors")
    assert tuple(MONITORS) == monitors.MONITORS
    cost = monitors.costs(steps=6)
    assert cost[monitors.ALL] <= 0.15, cost
    assert all(cost[name] < 0.15 for name in MONITORS), cost
