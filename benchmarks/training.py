"""A training step with quantized products, against plain ones of the same model.

    python benchmarks/training.py [--quick] [--steps N] [--size NAME] [--device cuda]

The GPT of the workload ``gpt``, of size ``seed``: E4M3 weights and activations, E5M2 gradients,
each scaled by its tensor's amax, in every linear layer, with counters. Contenders take the same
step in turn, in one process; their fastest steps are compared. What is not quantized (attention,
norms, GELU, the loss) is float32 beside plain float32, and under autocast beside autocast.
QPyTorch's quantizers stand where its own examples put them, without scales, which it does not
have.

On a GPU the model is of the size of GPT-2's smallest, as a smaller one keeps Python busy and not
the GPU; altcore has its recipes instead, and median steps are compared.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import torch
from clock import Clock
from machine import cores
from peers import load_qtorch, reason
from tables import Table, options, show, verdict
from torch import Tensor, nn
from torch.nn import functional

from altcore import quantize_model
from altcore.quantization import Quantization, linear, quantizer
from altcore.quantization.compute import has_fast_bfloat16
from altcore.recipes import RecipeLike

RECIPE = {"weight": "E4M3", "activation": "E4M3", "gradient": "E5M2"}
OURS, PLAIN, AUTOCAST = "altcore", "float32", "bfloat16 autocast"
OURS_IN_AUTOCAST = "altcore, the rest under autocast"
CLAIMS = ((OURS_IN_AUTOCAST, AUTOCAST, 1.1), (OURS, PLAIN, 0.7))
SLOW = 5
CPU = torch.device("cpu")
RECIPES = (
    ("master", "E4M3"),
    ("pure", "E4M3"),
    ("master", "E7M0"),
    ("pure", "E7M0"),
    ("mxfp8", None),
)
"""On a GPU: recipes and their formats."""
ON_GPU = {"n_layer": 12, "n_head": 12, "n_embd": 768, "block_size": 1024, "batch_size": 8}
"""The model there."""
WARM_UP = 3


@dataclass
class Contender:
    """A model, its optimizer, and what is around its forward pass and before its step."""

    model: nn.Module
    around: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext
    before: Callable[[int], None] = lambda index: None
    optimizer: torch.optim.Optimizer = field(init=False)

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.AdamW(self.model.parameters(), 1e-4, fused=True)

    def step(self, workload: object, index: int) -> float:
        """Take one step; returns its loss."""
        self.before(index)
        self.optimizer.zero_grad(set_to_none=True)
        with self.around():
            loss = workload.loss(self.model, workload.batch("train", index, 0))
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return loss.item()


def autocast(device: str = "cpu") -> contextlib.AbstractContextManager[object]:
    """Torch's own mixed precision."""
    return torch.autocast(device, dtype=torch.bfloat16)


def quantized(
    model: nn.Module,
    recipe: RecipeLike = RECIPE,
    fmt: str | None = None,
    *,
    errors: bool = False,
    compute: str = "auto",
    device: str = "cpu",
) -> tuple[Contender, Quantization]:
    """altcore's; ``errors``: with the sums of squared errors, too."""
    made = quantize_model(model, recipe, format=fmt, compute=compute)
    around = partial(autocast, device) if compute == "bfloat16" else contextlib.nullcontext
    found = Contender(model, around, partial(made.begin_step, errors=errors))
    made.follow(found.optimizer)  # which puts stored weights back on their grids
    return found, made


def wrapped(model: nn.Module) -> Contender:
    """QPyTorch's: quantizers at every linear layer's input, weight and output."""
    make = load_qtorch().quantizer
    from qtorch import FloatingPoint

    forward = make(forward_number=FloatingPoint(4, 3), forward_rounding="nearest")
    backward = make(backward_number=FloatingPoint(5, 2), backward_rounding="nearest")

    def linear(layer: nn.Linear) -> Callable[[Tensor], Tensor]:
        return lambda x: backward(functional.linear(forward(x), forward(layer.weight), layer.bias))

    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            layer.forward = linear(layer)
    return Contender(model)


def contenders(model: nn.Module) -> tuple[dict[str, Contender], Quantization, str]:
    """All of them, altcore's quantization, and why QPyTorch is missing, if it is."""
    ours, made = quantized(copy.deepcopy(model))
    found = {
        PLAIN: Contender(copy.deepcopy(model)),
        AUTOCAST: Contender(copy.deepcopy(model), autocast),
        OURS: ours,
        OURS_IN_AUTOCAST: quantized(copy.deepcopy(model), compute="bfloat16")[0],
        f"{OURS}, squared errors too": quantized(copy.deepcopy(model), errors=True)[0],
    }
    try:
        found["qtorch"] = wrapped(copy.deepcopy(model))
    except Exception as error:  # whatever somebody's import or compiler may raise
        return found, made, f"qtorch: {reason(error)}."
    return found, made, ""


def contenders_on_gpu(model: nn.Module, *, in_autocast: bool) -> tuple[dict[str, Contender], str]:
    """Those on a GPU, and in which type altcore's products run."""
    found = {
        PLAIN: Contender(copy.deepcopy(model)),
        AUTOCAST: Contender(copy.deepcopy(model), partial(autocast, "cuda")),
    }
    computes = []
    for recipe, fmt in RECIPES:
        what = f"{recipe} in {fmt}" if fmt else recipe
        name = f"{OURS}, {what}"
        found[name], made = quantized(copy.deepcopy(model), recipe, fmt)
        computes.append(f"{made.compute} for {what}")
        if in_autocast:
            given = {"compute": "bfloat16", "device": "cuda"}
            rest = quantized(copy.deepcopy(model), recipe, fmt, **given)[0]
            found[f"{name}, the rest under autocast"] = rest
    return found, f"Products: auto came to {', '.join(computes)}."


def warm_up(each: dict[str, Contender], workload: object) -> list[str]:
    """Take the first steps, in which torch.compile compiles; drops and tells what fails."""
    told = []
    for name, contender in list(each.items()):
        try:
            for index in range(WARM_UP):
                contender.step(workload, index)
        except Exception as error:
            told.append(f"{name}: {reason(error, 'fails here')}.")
            del each[name]
    return told


def measure(
    each: dict[str, Contender], workload: object, steps: int, clock: Clock
) -> dict[str, float]:
    """The typical step of each, in seconds, in a new order each time.

    A contender that is far slower than float32 takes two steps: autocast, where it is emulated.
    """
    order, shuffle = list(each), random.Random(0).shuffle
    times: dict[str, list[float]] = {name: [] for name in each}
    for index in range(steps):
        shuffle(order)
        for name in order:
            if index >= 2 and min(times[name]) > SLOW * min(times[PLAIN]):
                continue
            times[name].append(clock.seconds(partial(each[name].step, workload, index)))
    return {name: clock.typical(taken) for name, taken in times.items()}


PARTS = {
    "products of quantized layers": (linear, ("product",)),
    "amax, scales and rounding, with counters": (quantizer, ("round_scaled", "round_to_grid")),
}
"""What altcore's step is made of: a module, and functions that it calls by their names in it."""


class Stopwatch:
    """Seconds spent in each of `PARTS`."""

    def __init__(self) -> None:
        self.spent = dict.fromkeys(PARTS, 0.0)

    def _timed(self, part: str, function: Callable[..., object]) -> Callable[..., object]:
        def run(*args: object, **kwargs: object) -> object:
            start = time.perf_counter()
            result = function(*args, **kwargs)
            self.spent[part] += time.perf_counter() - start
            return result

        return run

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Inside, the functions are timed."""
        places = [(part, m, n) for part, (m, names) in PARTS.items() for n in names]
        before = [getattr(module, name) for _, module, name in places]
        for (part, module, name), function in zip(places, before, strict=True):
            setattr(module, name, self._timed(part, function))
        try:
            yield
        finally:
            for (_, module, name), function in zip(places, before, strict=True):
                setattr(module, name, function)


def breakdown(ours: Contender, workload: object, steps: int) -> Table:
    """Where the time of altcore's fastest step goes."""
    found = []
    for index in range(steps):
        watch = Stopwatch()
        start = time.perf_counter()
        with watch.running():
            ours.step(workload, index)
        found.append((time.perf_counter() - start, watch.spent))
    whole, spent = min(found, key=lambda pair: pair[0])
    rest = whole - sum(spent.values())
    parts = {**spent, "the rest: attention, norms, head, optimizer": rest, "the step": whole}
    rows = [(n, f"{t * 1e3:.1f}", f"{t / whole:.3f}", "") for n, t in parts.items()]
    return Table("Where altcore's step goes", ("", "ms", "share", ""), rows)


def products(compute: str) -> str:
    """In which type altcore's products ran, and what that makes of the claims."""
    if has_fast_bfloat16(CPU):
        return f"Products: auto came to {compute}, as this CPU has bfloat16 units."
    return (
        f"Products: auto came to {compute}, as this CPU has no bfloat16 units. Without them there "
        "is nothing to gain on float32, and autocast is emulated: neither claim is tested here."
    )


def results(best: dict[str, float], notes: list[str], clock: Clock) -> Table:
    """Times, ratios, and the claims."""
    rows = []
    for name, seconds in best.items():
        ratios = [f"{seconds / best[base]:.2f}" for base in (PLAIN, AUTOCAST)]
        ms = f"{seconds * 1e3:.{1 if clock.is_gpu else 0}f}"
        rows.append((name, ms, *ratios, "", ""))
    for name, base, target in () if clock.is_gpu else CLAIMS:
        ratio = best[name] / best[base]
        place = [f"{ratio:.2f}" if base == b else "" for b in (PLAIN, AUTOCAST)]
        claim = verdict(ratio, target, at_most=True)
        rows.append((f"{name}: times {base}", "", *place, *claim))
    head = ("", "ms a step", "times float32", "times autocast", "target", "")
    return Table(clock.titled("A training step"), head, rows, [n for n in notes if n])


def about(workload: object, name: str) -> str:
    """The model and its batch."""
    shape = workload.shape
    tokens = f"{shape.batch_size} x {shape.block_size} tokens"
    return f"gpt {name}: {workload.facts['parameters']:,} parameters, {tokens}"


def tables_on_gpu(given: argparse.Namespace, clock: Clock) -> Iterator[Table]:
    """One table, of the same model for ``--quick``; a breakdown would have to wait for the GPU."""
    from altcore_workloads.gpt import Gpt

    made = Gpt(size=given.size) if given.size else Gpt(**ON_GPU)
    workload = made.build(0, clock.device)
    each, products = contenders_on_gpu(workload.model, in_autocast=not given.quick)
    failed = warm_up(each, workload)
    best = measure(each, workload, given.steps, clock)
    precision = f"float32 products by torch's precision {torch.get_float32_matmul_precision()!r}."
    notes = [f"{about(workload, given.size or 'as GPT-2')}.", precision, products, *failed]
    yield results(best, notes, clock)


def tables(size: str, steps: int) -> Iterator[Table]:
    """Measure; the breakdown comes second, as it times what it breaks down."""
    from altcore_workloads.gpt import Gpt

    threads = min(cores(), 2)
    torch.set_num_threads(threads)
    workload = Gpt(size=size).build(0, CPU)
    each, made, note = contenders(workload.model)
    clock = Clock(CPU)
    best = measure(each, workload, steps, clock)
    model = f"{about(workload, size)}, {threads} threads."
    yield results(best, [model, products(made.compute), note], clock)
    yield breakdown(each[OURS], workload, steps)


def main() -> None:
    """Print the tables."""
    parser = options(__doc__, runs_on_gpu=True)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--size", help="of the workload gpt: seed; as large as GPT-2 on a GPU")
    given = parser.parse_args()
    clock = Clock(torch.device(given.device))
    size, steps = ("tiny", 1) if given.quick else (given.size or "seed", given.steps)
    show(tables_on_gpu(given, clock) if clock.is_gpu else tables(size, steps), given)


if __name__ == "__main__":
    main()
