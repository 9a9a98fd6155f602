"""The intervention ``partition-clip``: clips what makes a format's range too wide or too small."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import attrs
import torch
from attrs import evolve, field
from attrs.validators import and_, deep_mapping, ge, gt, in_, instance_of, le, lt
from torch import Tensor

from altcore.plugin import COUNTS, BadInput, ChangeRecipe, hookimpl, setting

if TYPE_CHECKING:
    from altcore.plugin import Cast, Casts, Format, Run

E5M2_MAX = 57344.0
"""The largest value of OCP E5M2, at which the original threshold is ``base`` itself."""

MEASURE = "flushed_"

ROLES = ("weight", "activation", "gradient", "weight_gradient", "attention")

Key = tuple[str, str]
"""A layer and an operand."""


@attrs.define(eq=False)
class PartitionClip:
    """Clip if a tensor's range and its format's do not go together, each tensor for itself.

    Mode ``scaled`` (the default) acts if a scale follows the tensor. There nothing overflows;
    what a few outliers do is to stretch the scale, so that everything else is flushed to zero.
    If more than ``flushed_share`` of a tensor's elements are flushed (``shares`` says
    otherwise for a role or an operand), its scale comes from the ``quantile`` of its magnitudes
    instead of the largest one, for the rest of the run: a change of recipe of that layer and
    operand, of the same kind of scaling. The outliers saturate. It knows the shares when they
    have been recorded, so it acts ``interval`` steps after the one that showed them, on one role
    at a time: that with the most layers to change. Left alone are operands with a scaling that
    knows no quantile: ``none``, ``block``, ``rms`` and block formats.

    Measure of mode ``scaled``: ``flushed_OPERAND/layer.name``, in 0..1: the share of the elements
    met in that step, over all micro-batches, that were not zero and became zero. Two operands
    that share one rounding are one, under the name of the first.

    Mode ``original`` is the threshold of the original experiments, ``base × max / 57344`` with
    ``max`` the largest value of the layer's format: elements of the gradient, as the optimizer
    would get it (in units of the loss by those of the weight), are clamped to ± the threshold in
    every step in which more than ``overflow_rate`` of what the layer's quantizers met overflowed.
    Two departures from those experiments: it runs before the optimizer (theirs ran after it, so
    did nothing), and it tests the real overflow of the casts (theirs was always 0). If a scale
    follows the tensor's own largest magnitude nothing can overflow, so nothing is clipped; where
    that is so everywhere, the run is told once. This mode looks at every step, so that each of
    them is recorded.
    """

    mode: str = setting(
        "scaled",
        help="scaled takes outliers out of scales, original clips gradients at base × max / 57344",
        validator=in_(("scaled", "original")),
    )
    flushed_share: float = setting(
        0.1,
        help="share of a tensor flushed to zero, above which its scale comes from a quantile",
        validator=and_(ge(0.0), lt(1.0)),
    )
    shares: dict[str, float] = setting(
        factory=dict,
        help="flushed_share by role or operand, where it is another",
        validator=deep_mapping(instance_of(str), and_(ge(0.0), le(1.0))),
    )
    quantile: float = setting(
        0.9999,
        help="share of a tensor's magnitudes that its scale then holds",
        validator=and_(gt(0.0), lt(1.0)),
    )
    check_interval: int = setting(
        10,
        help="steps between looks at what is flushed to zero, in mode scaled",
        validator=ge(2),
        counts_steps=True,
    )
    base: float = setting(1.0, help="threshold of a format whose max is 57344", validator=gt(0))
    overflow_rate: float = setting(
        0.01,
        help="share of a layer's values that overflow, above which its gradients are clipped",
        validator=and_(ge(0.0), le(1.0)),
    )
    name: str = field(init=False, default="partition-clip")
    interval: int = field(init=False, default=1)
    """Steps between calls: each in mode original."""
    flushed: dict[str, float] = field(init=False, factory=dict)
    """The last recorded shares, by operand/layer."""
    since: int = field(init=False, default=0)
    """The step of the last recipe or rollback: what was flushed before tells nothing now."""

    def __attrs_post_init__(self) -> None:
        for name in self.shares:
            if name.partition("@")[0] not in ROLES:
                raise BadInput(
                    f"{name!r} is not one of the roles {', '.join(ROLES)}",
                    key="partition-clip.shares",
                )
        if self.mode == "scaled":
            self.interval = self.check_interval

    @hookimpl
    def run_start(self, run: Run) -> None:
        """Say so if the recipe leaves this plugin nothing to do."""
        quantizers = run.quantization.quantizers
        if self.mode == "original":
            acts = any(not q.cast.scaling.uses_amax for q in quantizers)
            why = "every scale follows its tensor's largest magnitude, so that nothing can overflow"
        else:
            acts = any(takes_quantile(q.cast) for q in quantizers)
            why = "no scale follows its tensor's largest magnitude"
        if not acts and not self.since:  # another recipe may be this plugin's own doing
            why = why if quantizers else "the recipe quantizes no product and no gradient"
            run.emit("warning", message=f"{self.name} will change nothing: {why}")

    @hookimpl
    def post_backward(self, run: Run) -> dict[str, Tensor] | None:
        """Measure what was flushed to zero, of each tensor whose scale can change."""
        if self.mode == "original":
            return None
        met = dict(zip(COUNTS, run.quantization.counters.counts.unbind(1), strict=True))
        shares = (met["flushed"].double() / met["elements"].clamp(min=1)).unbind()
        return {
            f"{MEASURE}{operand}/{layer}": shares[row]
            for row, (layer, operand) in candidates(run).items()
        }

    @hookimpl
    def on_record(self, metrics: Mapping[str, Any]) -> None:
        """Keep the shares that were recorded."""
        prefix = f"{self.name}/{MEASURE}"
        found = {k.removeprefix(prefix): v for k, v in metrics.items() if k.startswith(prefix)}
        # A line without any is another plugin's step.
        if found and metrics["step"] > self.since:
            self.flushed = found

    @hookimpl
    def on_event(self, event: Mapping[str, Any]) -> None:
        """Forget the shares of another recipe, and of steps that a rollback undid."""
        if event["event"] in ("recipe", "rollback"):
            self.flushed, self.since = {}, event["step"]

    @hookimpl
    @torch.no_grad()
    def pre_step(self, run: Run) -> ChangeRecipe | None:
        """Change scales by what was recorded, or clamp gradients by what overflows now."""
        if self.mode == "original":
            self.clamp(run)
            return None
        return self.change(run)

    def change(self, run: Run) -> ChangeRecipe | None:
        """Propose a quantile for the role that most layers need one for."""
        groups: dict[tuple[tuple[str, ...], Any], list[Key]] = {}
        for layer, operand in candidates(run).values():
            if self.flushed.get(f"{operand}/{layer}", 0.0) > self.threshold(operand):
                roles = rounded_with(run, layer, operand)
                cast = run.quantization.plan[layer][operand]
                assert cast is not None
                groups.setdefault((roles, cast.scaling), []).append((layer, operand))
        shares, self.flushed = self.flushed, {}
        if not groups:
            return None
        (roles, scaling), found = max(groups.items(), key=lambda item: len(item[1]))
        most = max(found, key=lambda key: shares[f"{key[1]}/{key[0]}"])
        return ChangeRecipe(
            layers=tuple(layer for layer, _ in found),
            roles=roles,
            scaling=evolve(scaling, quantile=self.quantile),
            reason=f"{shares[f'{most[1]}/{most[0]}']:.1%} of {most[1]} of {most[0]} was flushed to "
            f"zero (threshold {self.threshold(most[1]):.1%}): the scale of {len(found)} such "
            f"tensor(s) holds {self.quantile:.6g} of the magnitudes from now on",
        )

    def threshold(self, operand: str) -> float:
        """Return the share above which an operand's scale is changed."""
        role = operand.partition("@")[0]
        return self.shares.get(operand, self.shares.get(role, self.flushed_share))

    def clamp(self, run: Run) -> None:
        """Clamp in place; whether a layer overflowed is decided on the device."""
        quantization = run.quantization
        rows: dict[str, list[int]] = {}
        for row, quantizer in enumerate(quantization.quantizers):
            if not quantizer.cast.scaling.uses_amax:
                rows.setdefault(quantizer.site.layer, []).append(row)
        for layer, own in rows.items():
            fmt = format_of(quantization.plan[layer])
            if fmt is None:
                continue
            sums = quantization.counters.counts[own].sum(0)
            met = dict(zip(COUNTS, sums.unbind(), strict=True))
            is_clipped = met["overflow"] > self.overflow_rate * met["elements"]
            threshold = self.base * fmt.max / E5M2_MAX
            for parameter in run.model.get_submodule(layer).parameters(recurse=False):
                gradient = parameter.grad
                if gradient is not None and parameter.dim() >= 2:
                    clamped = gradient.clamp(-threshold, threshold)
                    gradient.copy_(torch.where(is_clipped, clamped, gradient))

    def state_dict(self) -> dict[str, Any]:
        """Return the shares that a proposal would rest on."""
        return {"flushed": dict(self.flushed), "since": self.since}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.flushed, self.since = dict(state["flushed"]), state["since"]


def takes_quantile(cast: Cast) -> bool:
    """Whether a cast's scale follows magnitudes, and all of them."""
    kinds = ("tensor", "channel", "delayed")
    return cast.blocks is None and cast.scaling.kind in kinds and cast.scaling.quantile is None


def candidates(run: Run) -> dict[int, Key]:
    """Return layer and operand of each quantizer that `takes_quantile`, by row of the counts.

    A product's weight is left out if it is stored on the grid: no quantizer meets it.
    """
    found = {}
    for row, quantizer in enumerate(run.quantization.quantizers):
        layer, operand = quantizer.site.layer, quantizer.site.operand
        stored = run.quantization.plan[layer]["stored_weight"]
        is_stored = stored is not None and stored.format == quantizer.cast.format
        if takes_quantile(quantizer.cast) and not (is_stored and operand.startswith("weight@")):
            found[row] = layer, operand
    return found


def rounded_with(run: Run, layer: str, operand: str) -> tuple[str, ...]:
    """Return the operands of the role that one rounding serves: to change one is to part them."""
    casts = run.quantization.plan[layer]
    own = {str(q.site) for q in run.quantization.quantizers}
    role = operand.partition("@")[0]
    others = (o for o in casts if o.partition("@")[0] == role and f"{layer}:{o}" not in own)
    return (operand, *(o for o in others if o != operand and casts[o] == casts[operand]))


def format_of(casts: Casts) -> Format | None:
    """Return the format of a layer's weight, else that of the first operand that has one."""
    weight = casts["weight@fwd"] or casts["stored_weight"]
    first = weight or next((cast for cast in casts.values() if cast is not None), None)
    return first.format if first else None
