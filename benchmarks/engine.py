"""The engine against a bare hand-written loop of the same model, interleaved in one process.

    python benchmarks/engine.py [--quick] [--steps 60]

No plugin is active and nothing is quantized, so the difference is the engine: its one host read,
its record, its events. The claim is at most 1.02 times the bare loop's step.
"""

from __future__ import annotations

import statistics
import tempfile
import time

import torch
from tables import Table, options, show, verdict
from torch import nn

from altcore.config import defaults, load_config
from altcore.engine import Engine, Step, prepare
from altcore.engine.schedule import learning_rate

TARGET = 1.02
WARM_UP = 5


def make_engine(folder: str, steps: int) -> Engine:
    """Return an engine whose run is in ``folder``, without observers."""
    config = load_config(
        overrides=[
            ("runs_dir", folder, None),
            ("device", "cpu", None),
            ("max_steps", 100 * steps, None),
            ("eval_interval", 0, None),
            ("checkpoint_interval", 0, None),
        ],
        without=defaults()["observers"],
    )
    return prepare(config)


class BareLoop:
    """What one would write by hand: model, fused AdamW, clipping, a schedule, the loss read."""

    def __init__(self, engine: Engine) -> None:
        from altcore_optimizers.adamw import AdamW
        from altcore_workloads.gpt import Gpt

        self.config = engine.run.config
        self.workload = Gpt().build(self.config.seed, torch.device("cpu"))
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


def measure(steps: int) -> dict[str, float]:
    """Return median seconds of both, their ratio, and an idle hook's share of a step."""
    with tempfile.TemporaryDirectory() as folder:
        engine = make_engine(folder, steps)
        bare = BareLoop(engine)
        times: dict[str, list[float]] = {"bare": [], "engine": []}
        for index in range(1, steps + 1):
            # The order alternates, so that neither always finds the caches warm.
            for who in ("bare", "engine") if index % 2 else ("engine", "bare"):
                start = time.perf_counter()
                if who == "bare":
                    bare.step(index)
                else:
                    engine.train_step(Step(index))
                times[who].append(time.perf_counter() - start)
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


def table(found: dict[str, float]) -> Table:
    """Both times, their ratio, and what hooks cost where nobody listens."""
    ms = {who: f"{found[f'{who}_seconds'] * 1e3:.1f}" for who in ("bare", "engine")}
    ratio, minima, idle = found["ratio"], found["ratio_of_minima"], found["idle_hook_share"]
    rows = [
        ("bare loop", ms["bare"], "", "", ""),
        ("engine, no plugin", ms["engine"], "", "", ""),
        ("ratio, median of pairs", "", f"{ratio:.3f}", *verdict(ratio, TARGET, at_most=True)),
        ("ratio of the minima", "", f"{minima:.3f}", "", ""),
        ("an idle hook, of a step", "", f"{idle:.1e}", "", ""),
    ]
    return Table("A step of gpt small", ("", "ms", "ratio", "target", ""), rows)


def main() -> None:
    """Print the ratio."""
    parser = options(__doc__)
    parser.add_argument("--steps", type=int, default=60)
    given = parser.parse_args()
    show([table(measure(steps=8 if given.quick else given.steps))], given)


if __name__ == "__main__":
    main()
