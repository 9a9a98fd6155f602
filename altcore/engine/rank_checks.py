"""What ranks must have to make a run: one configuration, model and code, and shared batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from altcore.config import TrainConfig
from altcore.engine.function_code import code_digest
from altcore.engine.given_parts import names_given
from altcore.engine.plugins import Plugin
from altcore.engine.ranks import Ranks
from altcore.engine.sending import check_sent
from altcore.engine.shares import Drawn, check_drawn
from altcore.errors import BadInput, shown
from altcore.recipes import some
from altcore.runs import compare

UNSET = object()
ONE_CODE = "processes of one run have one model, loss and code, and the same data"


def check_alike(
    config: TrainConfig,
    ranks: Ranks,
    given: Mapping[str, Any],
    model: nn.Module | None = None,
    loss: Any = None,
) -> None:
    """Raise `BadInput` unless all ranks have the same configuration, and were given the same.

    Args:
        config: of this rank.
        ranks: all of them.
        given: what the caller gave this rank, as `identity_given` tells it.
        model: which was given, if one was; the code of its modules is compared.
        loss: likewise, with its own code.
    """
    own, codes = config.to_plain(), dict(_codes(model, loss))
    for rank, (keys, parts, others) in enumerate(ranks.gather((own, given, codes))):
        for key, mine, its in _differences(own, keys):
            told = f"{mine} on rank {ranks.rank}, {its} on rank {rank}"
            raise BadInput(told, key=key, hint="processes of one run have one configuration")
        _check_parts({"plugin": given}, {"plugin": parts}, ranks.rank, rank)
        for name, code in codes.items():
            if others.get(name) != code:
                problem = f"its code is not the same on rank {ranks.rank} and rank {rank}"
                raise BadInput(problem, key=name, hint=ONE_CODE)


def _differences(one: Any, two: Any, key: str = "") -> Iterator[tuple[str, str, str]]:
    """Yield where nested settings differ, as ``flips.report_interval``, and both values there."""
    if isinstance(one, Mapping) and isinstance(two, Mapping):
        for name in {**one, **two}:
            inner = str(name) if key in ("", "settings") else f"{key}.{name}"
            yield from _differences(one.get(name, UNSET), two.get(name, UNSET), inner)
    elif isinstance(one, list) and isinstance(two, list) and len(one) == len(two):
        for number, (mine, its) in enumerate(zip(one, two, strict=True)):
            yield from _differences(mine, its, f"{key}[{number}]")
    elif one != two and not (one != one and two != two):  # NaN is the same as NaN
        yield key, _told(one), _told(two)


def _told(value: Any) -> str:
    return "not given" if value is UNSET else shown(value)


def _codes(model: nn.Module | None, loss: Any) -> Iterator[tuple[str, str | None]]:
    """Yield what computes, and the digest of its code."""
    for key, part in (("model", model), ("loss", loss)):
        if isinstance(part, nn.Module):
            for module in part.modules():
                yield f"{key}, forward of {type(module).__name__}", code_digest(module.forward)
        else:
            yield key, code_digest(part)


def check_model(model: nn.Module, ranks: Ranks) -> None:
    """Raise `BadInput` unless all ranks have the same parameters and buffers, in one order.

    Their numbers may differ: those of rank 0 are sent to all, or refused if they cannot be.
    """
    named = [*model.named_parameters(), *model.named_buffers()]
    own = [*map(_described, named)]
    for rank, others in enumerate(ranks.gather(own)):
        for one, two in zip_longest(own, others, fillvalue="no more tensors"):
            if one != two:
                told = f"{one} on rank {ranks.rank}, {two} on rank {rank}"
                raise BadInput(told, key="model", hint=ONE_CODE)
    for name, x in named if ranks.world_size > 1 else ():
        check_sent(name, x)


def _described(named: tuple[str, Tensor]) -> str:
    name, x = named
    shape = "without a shape yet" if is_lazy(x) else f"{[*x.shape]}"
    kind = "trained" if x.requires_grad else "frozen"
    kind = kind if isinstance(x, nn.Parameter) else "buffer"
    return f"{name} ({str(x.dtype).removeprefix('torch.')} {shape}, {kind})"


def agreed_identity(
    identity: Mapping[str, Any], ranks: Ranks, *, strict: bool = False
) -> dict[str, Any]:
    """Return the identity of the run, which is that of rank 0, whose manifests have it.

    What else may make the bits of a rank others than rank 0's is from then on ``ranks.unlike``.
    Raises `BadInput` if another rank has other data, or the code of altcore or a plugin is another;
    if ``strict`` also for what else makes its bits others.
    """
    first, *others = ranks.gather(dict(identity))
    for rank, other in enumerate(others, 1):
        _check_parts(first, other, 0, rank)
    ranks.unlike = "; ".join(_unlike(first, others))
    if strict and ranks.unlike:
        hint = "without it they train all the same, and their weights may come to differ"
        raise BadInput(f"the ranks are not alike: {ranks.unlike}", key="--strict", hint=hint)
    return first


def _unlike(first: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield each part of the platform of which ranks have another value than rank 0, and both."""
    ranks: dict[tuple[str, str], list[str]] = {}
    for rank, other in enumerate(others, 1):
        for change in (c for c in compare(first, other) if c.kind == "platform"):
            told = f"{change.what}: {change.text_before} on rank 0", change.text_now
            ranks.setdefault(told, []).append(str(rank))
    for (one, two), own in ranks.items():
        yield f"{one}, {two} on rank {some(own)}"


def about_unlike(ranks: Ranks) -> list[str]:
    """Return the line that tells that the replicas may come to differ, if they may."""
    unlike = f"the ranks are not alike, and their weights may come to differ: {ranks.unlike}"
    return [unlike] if ranks.unlike else []


def _check_parts(one: Mapping[str, Any], two: Mapping[str, Any], *ranks: int) -> None:
    """Raise `BadInput` if parts of the identities of two ranks differ by what decides numbers.

    First batches are left out: `check_shares` compares them, unless each rank draws its share only.
    """
    of_batch = one.get("data", {}).get("of") != "workload"
    one, two = ({**x, "plugin": names_given(x.get("plugin") or {})} for x in (one, two))
    for change in compare(one, two):
        is_batch = of_batch and (change.kind, change.what) == ("data", "data")
        if (change.is_decisive and not is_batch) or change.what == "altcore":
            told = f"{change.text_before} on rank {ranks[0]}, {change.text_now} on rank {ranks[1]}"
            raise BadInput(told, key=change.what, hint=ONE_CODE)


def check_shares(workload: Any, ranks: Ranks) -> None:
    """Raise `BadInput` unless ranks can share micro-batches: the first, and an epoch's last.

    Raises `AltcoreError` if they drew different ones, or another first batch of an evaluation.
    """
    if ranks.world_size > 1:
        for index in {1, getattr(workload, "steps_per_epoch", None) or 1}:
            ranks.share(workload, workload.batch("train", index, 0))
        ranks.check_batches()
        # They take turns at an evaluation's batches, of which each has to mean the same to all.
        check_drawn(ranks.gather([str(Drawn.of(workload.batch("val", 0, 0)))]))


def of_rank(plugins: Sequence[Plugin], ranks: Ranks) -> list[Plugin]:
    """Return the plugins that run on this rank: rank 0 alone has reporters."""
    return [p for p in plugins if p.kind != "reporter" or ranks.rank == 0]
