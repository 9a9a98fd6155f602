"""The diagnostic ``attention-logits``: how large attention's logits are, and how spread it is."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import attrs
import torch
from attrs.validators import ge
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from altcore.plugin import AttentionCall, DeferredErrors, hookimpl, setting
from altcore_diagnostics.shadow_gradients import fresh_batch, keep_batch, quantized

if TYPE_CHECKING:
    from altcore.plugin import Run, Step

ATTENTION = re.compile("attention|attn", re.IGNORECASE)
"""In the name of a class of modules whose calls are taken for attention's."""
SUMS = ("entropy", "rows", "share", "wide_rows")
PART = 1 << 16
"""Logits that a CPU's cache holds, with what is made of them."""
HIDDEN = -1e8
"""No logit of a model that learns is as low."""
SOFTMAX = (torch.softmax, torch.special.softmax, Tensor.softmax, functional.softmax)


@attrs.define(eq=False)
class AttentionLogits:
    """The largest attention logit, and the entropy of attention's probabilities, by layer.

    Of the last micro-batch, in the step's own forward pass; if the model is compiled, in
    another one that is not. A logit is what the softmax gets: query · key, scaled, with a float
    mask added; positions that a mask hides (−inf, the type's lowest value, or −1e8 and below)
    have none.

    - ``max_logit/layer.name``: the largest magnitude of a logit;
    - ``entropy/layer.name``: mean over queries and heads of −Σ p ln p, in nats;
    - ``entropy_share/layer.name``: mean over queries and heads of the entropy over ln n, with n the
      number of positions that the query may see, in 0..1; queries that see one position only are
      left out;
    - ``max_logit``: the largest of a layer; ``entropy_mean`` and ``entropy_share_mean``: means over
      layers; ``entropy_share_min``: the smallest of a layer.

    Logits that grow without bound, and entropy that falls towards 0, come before instability:
    Dehghani et al. (arXiv 2302.05442), Zhai et al. (arXiv 2303.06296).

    Layers are modules with "attention" or "attn" in their class's name and none such inside them.
    What is met in them are calls of ``torch.nn.functional.scaled_dot_product_attention``, and
    softmaxes over the last dimension; not what ``torch.nn.MultiheadAttention`` does by itself.
    Probabilities are those before dropout, in float32, and not rounded by the recipe. A layer in
    which nothing is met has no measure. The matrix of probabilities, which torch's attention need
    not keep, is in memory for one layer at a time. Queries that see nothing are left out, but count
    as uniform if the recipe quantizes attention.
    """

    interval: int = setting(50, help="steps between measurements", validator=ge(1))

    calls: Calls | None = attrs.field(init=False, default=None)
    """The calls seen in the step's own forward pass."""

    @hookimpl
    @contextmanager
    def watch_forward(self, run: Run, step: Step) -> Iterator[None]:
        """Look at attention in the step's own forward pass, if its calls can be seen."""
        keep_batch(step)
        self.calls = None if run.config.compile else Calls()
        with named_calls(attention_layers(run.model), self.calls) if self.calls else nullcontext():
            yield

    @hookimpl
    @torch.no_grad()
    def post_backward(self, run: Run, step: Step) -> dict[str, Tensor] | None:
        """Tell what was seen; in a pass that is made for it, if nothing could be."""
        calls, self.calls = self.calls, None
        layers = attention_layers(run.model)
        if calls is None and layers:
            calls = Calls()
            with quantized(run), named_calls(layers, calls):
                run.loss(fresh_batch(step))
        return None if calls is None else calls.measures()


def attention_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the attention modules, by name: those that contain no other one."""
    found = {}
    for name, module in model.named_modules():
        inner = [m for m in module.modules() if ATTENTION.search(type(m).__name__)]
        if inner == [module]:
            found[name] = module
    return found


@attrs.define(eq=False)
class Seen:
    """The sums over one layer's calls, float64 but for the largest logit; 0-dim."""

    largest: Tensor
    entropy: Tensor
    rows: Tensor
    share: Tensor
    wide_rows: Tensor
    """Those that may see more than one position."""


class Calls(TorchFunctionMode):
    """Within it, attention is measured for the last layer in ``stack``, and goes on as it was."""

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[str] = []
        """The names of the attention modules that run."""
        self.seen: dict[str, list[Seen]] = {}
        self.deferred = DeferredErrors()
        self.meets: dict[Any, Callable[..., Tensor | None]] = dict.fromkeys(SOFTMAX, softmax_logits)
        self.meets[functional.scaled_dot_product_attention] = product_logits

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in self.meets:
            self.deferred.guard(self.look)(self.meets[func], args, kwargs)
        return func(*args, **kwargs)

    @torch.no_grad()
    def look(self, logits_of: Callable[..., Tensor | None], args: Any, kwargs: Any) -> None:
        """Measure a call of attention."""
        logits = logits_of(*args, **kwargs)
        if logits is not None:
            self.seen.setdefault(self.stack[-1], []).append(statistics(logits))

    def measures(self) -> dict[str, Tensor] | None:
        """Return what was seen; None if nothing was."""
        if not self.seen:
            return None
        names, rows = list(self.seen), [_measures(calls) for calls in self.seen.values()]
        columns = {key: torch.stack([row[key] for row in rows]) for key in rows[0]}
        made = {
            "max_logit": columns["max_logit"].max(),
            "entropy_mean": columns["entropy"].mean(),
            "entropy_share_mean": columns["entropy_share"].mean(),
            "entropy_share_min": columns["entropy_share"].min(),
        }
        for key, column in columns.items():
            made |= {f"{key}/{n}": v for n, v in zip(names, column, strict=True)}
        return made


def _measures(calls: list[Seen]) -> dict[str, Tensor]:
    """Put the calls of one layer together."""
    total = joined(calls)
    return {
        "max_logit": total.largest,
        "entropy": total.entropy / total.rows,
        "entropy_share": total.share / total.wide_rows,
    }


def product_logits(*args: Any, **kwargs: Any) -> Tensor:
    """Return the logits of a call of torch's attention, hidden positions at −inf."""
    call = AttentionCall(*args, **kwargs)
    logits = (call.query @ call.for_each_query(call.key).mT).float().mul_(call.factor)
    mask = call.mask
    if mask is None:
        return logits
    if mask.dtype == torch.bool:
        return logits.masked_fill_(~mask, -math.inf)
    return logits + _hidden_at_infinity(mask)


def softmax_logits(
    input: Tensor, dim: int | None = None, *_: Any, dtype: torch.dtype | None = None, **__: Any
) -> Tensor | None:
    """Return the logits of a softmax, hidden positions at −inf; None if it is not attention's."""
    if dim is None or input.dim() < 2 or dim % input.dim() != input.dim() - 1:
        return None
    return _hidden_at_infinity(input)


def _hidden_at_infinity(x: Tensor) -> Tensor:
    """Models hide positions by adding the lowest value of a type, or −1e9, too."""
    return x.float().masked_fill(x <= max(torch.finfo(x.dtype).min / 2, HIDDEN), -math.inf)


def statistics(logits: Tensor) -> Seen:
    """Sum up one call: (..., queries, positions), −inf where a position is hidden."""
    rows = logits.flatten(0, -2)
    number = PART // rows.shape[1] if rows.device.type == "cpu" else len(rows)
    found = [_statistics(part) for part in rows.split(max(1, number))]
    return joined(found)


def joined(calls: list[Seen]) -> Seen:
    """Put several calls together."""
    columns = {key: torch.stack([getattr(s, key) for s in calls]) for key in SUMS}
    largest = torch.stack([s.largest for s in calls]).max()
    return Seen(largest, **{key: column.sum() for key, column in columns.items()})


def _statistics(logits: Tensor) -> Seen:
    is_seen = logits != -math.inf
    count = is_seen.sum(-1)
    probability = logits.softmax(-1)  # NaN for a query that sees nothing, which is left out
    # As torch.special.entr, whose logarithm takes elements one by one.
    log = probability.clamp(min=torch.finfo(logits.dtype).tiny).log_()
    entropy = -log.mul_(probability).sum(-1).double()
    is_wide = count > 1
    share = entropy / torch.where(is_wide, count, 2).double().log()
    return Seen(
        largest=torch.where(is_seen, logits.abs(), 0.0).max(),
        entropy=torch.where(count > 0, entropy, 0.0).sum(),
        rows=(count > 0).sum(),
        share=torch.where(is_wide, share, 0.0).sum(),
        wide_rows=is_wide.sum(),
    )


@contextmanager
def named_calls(layers: dict[str, nn.Module], calls: Calls) -> Iterator[None]:
    """Within, ``calls`` sees what attention modules do, and knows which one runs."""

    def enter(name: str) -> Any:
        def begin(*_: Any) -> None:
            calls.stack.append(name)
            if len(calls.stack) == 1:
                calls.__enter__()

        return begin

    def leave(*_: Any) -> None:
        calls.stack.pop()
        if not calls.stack:
            calls.__exit__(None, None, None)

    with calls.deferred, ExitStack() as handles:
        for name, module in layers.items():
            handles.callback(module.register_forward_pre_hook(enter(name)).remove)
            handles.callback(module.register_forward_hook(leave, always_call=True).remove)
        yield
