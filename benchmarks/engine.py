"""The engine against a bare hand-written loop of the same model, interleaved in one process.

    python benchmarks/engine.py [--quick] [--steps 60] [--size small] [--device cuda]

No plugin is active and nothing is quantized, so the difference is the engine: its one host read,
its record, its events. The claim is at most 1.02 times the bare loop's step, on a CPU. On a
GPU there are two models, as the smaller one keeps Python busy and not the GPU.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from functools import partial

import torch
from clock import Clock
from tables import Table, options, show, verdict
from torch import nn

from altcore.config import defaults, load_config
from altcore.engine import Engine, Step, prepare
from altcore.engine.schedule import learning_rate

TARGET = 1.02
WARM_UP = 5


def make_engine(folder: str, steps: int, size: str, clock: Clock) -> Engine:
    """Return an engine whose run is in ``folder``, without observers."""
    config = load_config(
        overrides=[
            ("runs_dir", folder, None),
            ("device", clock.device.type, None),
            ("gpt.size", size, None),
            ("max_steps", 100 * steps, None),
            ("eval_interval", 0, None),
            ("checkpoint_interval", 0, None),
        ],
        without=defaults()["observers"],
    )
    return prepare(config)


class BareLoop:
    """What one would write by hand: model, fused AdamW, clipping, a schedule, the loss read."""

    def __init__(self, engine: Engine, size: str) -> None:
        from altcore_optimizers.adamw import AdamW
        from altcore_workloads.gpt import Gpt

        self.config = engine.run.config
        self.workload = Gpt(size=size).build(self.config.seed, engine.run.device)
        self.model = self.workload.model
        named = self.model.named_parameters()
        self.optimizer = AdamW().build(named, lambda parameter: None)

    def step(self, index: int) -> float:
        """Take one step; returns the loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, index)
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.workload.loss(self.model, self.workload.batch("train", index, 0))
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.config.grad_clip)
        self.optimizer.step()
        return loss.item()


def idle_hook(engine: Engine) -> float:
    """Return the seconds that a hook without implementation costs."""
    count, step = 20_000, Step(1)
    start = time.perf_counter()
    for _ in range(count):
        engine.dispatch.call("pre_step", run=engine.run, step=step)
    return (time.perf_counter() - start) / count


def measure(steps: int, size: str, clock: Clock) -> dict[str, float]:
    """Return median seconds of both, their ratio, and an idle hook's share of a step."""
    with tempfile.TemporaryDirectory() as folder:
        engine = make_engine(folder, steps, size, clock)
        bare = BareLoop(engine, size)
        times: dict[str, list[float]] = {"bare": [], "engine": []}
        for index in range(1, steps + 1):
            # The order alternates, so that neither always finds the caches warm.
            for who in ("bare", "engine") if index % 2 else ("engine", "bare"):
                ours = partial(engine.train_step, Step(index))
                step = partial(bare.step, index) if who == "bare" else ours
                times[who].append(clock.seconds(step))
        idle = idle_hook(engine)
        engine.directory.close()
    warm = {who: t[WARM_UP:] for who, t in times.items()}
    ratios = [e / b for e, b in zip(warm["engine"], warm["bare"], strict=True)]
    return {
        "bare_seconds": statistics.median(warm["bare"]),
        "engine_seconds": statistics.median(warm["engine"]),
        "ratio": statistics.median(ratios),
        "ratio_of_minima": min(warm["engine"]) / min(warm["bare"]),
        "idle_hook_share": idle / statistics.median(warm["engine"]),
    }


def table(found: dict[str, float], size: str, clock: Clock) -> Table:
    """Both times, their ratio, and what hooks cost where nobody listens."""
    ms = {who: f"{found[f'{who}_seconds'] * 1e3:.1f}" for who in ("bare", "engine")}
    target = None if clock.is_gpu else TARGET
    ratio, minima, idle = found["ratio"], found["ratio_of_minima"], found["idle_hook_share"]
    rows = [
        ("bare loop", ms["bare"], "", "", ""),
        ("engine, no plugin", ms["engine"], "", "", ""),
        ("ratio, median of pairs", "", f"{ratio:.3f}", *verdict(ratio, target, at_most=True)),
        ("ratio of the minima", "", f"{minima:.3f}", "", ""),
        ("an idle hook, of a step", "", f"{idle:.1e}", "", ""),
    ]
    title = clock.titled(f"A step of gpt {size}")
    return Table(title, ("", "ms", "ratio", "target", ""), rows)


def tables(given: argparse.Namespace) -> Iterator[Table]:
    """A table for each size of the model."""
    clock = Clock(torch.device(given.device))
    few, usual = (60, 300) if clock.is_gpu else (8, 60)
    steps = few if given.quick else given.steps or usual
    for size in given.size or (("small", "seed") if clock.is_gpu else ("small",)):
        yield table(measure(steps, size, clock), size, clock)


def main() -> None:
    """Print the ratio."""
    parser = options(__doc__, runs_on_gpu=True)
    parser.add_argument("--steps", type=int, help="60; 300 on a GPU")
    parser.add_argument("--size", nargs="+", help="of the workload gpt: small; seed too on a GPU")
    given = parser.parse_args()
    show(tables(given), given)


if __name__ == "__main__":
    main()
