"""The diagnostic ``grad-stats``: how large gradients are, how noisy, and how many are dead."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import attrs
import torch
from attrs import field
from attrs.validators import ge
from torch import Tensor

from altcore.plugin import (
    amax,
    hookimpl,
    join_moments,
    mean_and_std,
    moments,
    norms_of,
    setting,
)
from altcore_diagnostics.parameter_table import ParameterTable

if TYPE_CHECKING:
    from altcore.plugin import Run, Step


@attrs.define(eq=False)
class GradStats:
    """Norms, signal-to-noise ratios and dead shares of the gradients, by layer.

    Measures of a layer, over the elements of all its trained parameters, biases included:

    - ``l2/layer.name`` and ``linf/layer.name``: the root of the sum of squares, and the largest
      magnitude, of the raw gradient: unscaled, of all micro-batches, before any clipping;
    - ``snr/layer.name``: |mean| / standard deviation of its elements (of the population). It
      compares elements of one step, not steps: a mean near 0 is not a sign of noise. NaN if the
      deviation is 0;
    - ``adam_snr/layer.name``: the mean over elements of |m| / √v with Adam's moments after the
      step, both bias-corrected: 1 if a gradient keeps its sign and size, near 0 if noise
      cancels it. Elements with v = 0 are left out; measured only if the optimizer has
      ``exp_avg`` and ``exp_avg_sq``, and not in a discarded step (Kingma and Ba, arXiv:1412.6980,
      section 2.1, call this ratio a signal-to-noise ratio);
    - ``dead_share/layer.name``, in 0..1: elements with |g| < ``dead_threshold`` in this step. All
      elements of a parameter without a gradient are dead;
    - ``dead_window_share/layer.name``: elements that were dead in every measured step of the last
      ``dead_window`` steps, this one included. Steps between the measured ones are not seen: with
      an ``interval`` of 50 and a window of 100 these are two. Left out until a whole window has
      passed since the run began or went on without this plugin.

    Of the whole model there are also ``grad_norm_periodic``, another name of its ``l2``, and
    ``weight_norm_periodic``, the l2 norm of all trained parameters before the step.

    As a whole ``l2``, ``linf``, ``snr``, ``adam_snr`` and the dead shares are of all elements, and
    ``l2_mean``, ``l2_min`` and so on the mean and the smallest over the layers; layers whose snr
    is NaN are left out of its two. With ``per_parameter``, ``l2/layer.name.weight`` and so on are
    those of one parameter. Keeps 4 bytes for each element, in checkpoints too.
    """

    needs: ClassVar[tuple[str, ...]] = ()
    interval: int = setting(50, help="steps between measurements", validator=ge(1))
    dead_threshold: float = setting(
        1e-8, help="magnitude below which an element of a gradient is dead", validator=ge(0)
    )
    dead_window: int = setting(
        100,
        help="steps over which an element has to be dead",
        validator=ge(1),
        counts_steps=True,
    )
    per_parameter: bool = setting(False, help="also measure each parameter of a layer by itself")
    began: int = field(init=False, default=-1)
    """The step before the first one that could be measured."""
    alive_at: dict[str, Tensor] = field(init=False, factory=dict)
    """By parameter, int32: the last measured step in which each element was not dead."""

    @hookimpl
    def run_start(self, run: Run) -> None:
        """Keep where the run begins, unless a checkpoint said it."""
        self.began = run.step if self.began < 0 else self.began

    @hookimpl
    @torch.no_grad()
    def post_backward(self, run: Run, step: Step) -> dict[str, Tensor]:
        """Measure the raw gradients, on the device."""
        began = max(self.began, 0)
        oldest = step.index - self.dead_window
        norms, dead, long_dead = (
            ParameterTable(*how, per_parameter=self.per_parameter)
            for how in ((_finish, _join), (_share("dead_share"),), (_share("dead_window_share"),))
        )
        for name, parameter in run.model.named_parameters():
            if not parameter.requires_grad:
                continue
            if parameter.grad is not None:
                norms.add("", name, moments(parameter.grad), amax(parameter.grad))
            alive_at = self._alive_at(name, parameter, began, step.index)
            for table, since in ((dead, step.index - 1), (long_dead, oldest)):
                if since >= began:
                    number = (alive_at <= since).sum()
                    table.add("", name, number, torch.full_like(number, alive_at.numel()))
        found = _all(norms, dead, long_dead)
        if "l2" in found:
            weights = [p for p in run.model.parameters() if p.requires_grad]
            found["grad_norm_periodic"] = found["l2"]
            found["weight_norm_periodic"] = norms_of(weights).double().norm()
        return found

    def _alive_at(self, name: str, parameter: Tensor, began: int, step: int) -> Tensor:
        """Return when each element was last alive, this step included."""
        known = self.alive_at.get(name)
        if known is None:
            known = torch.full_like(parameter, began, dtype=torch.int32)
        if parameter.grad is not None:
            is_alive = (parameter.grad.abs() < self.dead_threshold).logical_not_()
            # Steps grow; a product with flags is faster than a choice that nobody can predict.
            known = torch.maximum(known, is_alive.to(torch.int32).mul_(step))
        self.alive_at[name] = known
        return known

    @hookimpl
    @torch.no_grad()
    def post_step(self, run: Run) -> dict[str, Tensor]:
        """Measure Adam's moments, on the device."""
        table = ParameterTable(_share("adam_snr"), per_parameter=self.per_parameter)
        betas = {
            id(p): group["betas"]
            for group in run.optimizer.param_groups
            if "betas" in group
            for p in group["params"]
        }
        for name, parameter in run.model.named_parameters():
            state = run.optimizer.state.get(parameter, {})
            if id(parameter) in betas and {"exp_avg", "exp_avg_sq", "step"} <= set(state):
                table.add("", name, *adam_ratio(state, betas[id(parameter)]))
        return _all(table)

    def state_dict(self) -> dict[str, Any]:
        """Return since when elements are dead."""
        return {"began": self.began, "alive_at": self.alive_at}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.began, self.alive_at = state["began"], dict(state["alive_at"])


def adam_ratio(state: Mapping[str, Any], betas: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """Return the sum of |m| / √v, bias-corrected, where v > 0, and the number of such elements."""
    least = torch.promote_types(state["exp_avg_sq"].dtype, torch.float32)
    m, v = state["exp_avg"].to(least), state["exp_avg_sq"].to(least)
    step = torch.as_tensor(state["step"]).to(m.device).double()
    first, second = (1 - beta**step for beta in betas)
    is_known = v > 0
    ratio = torch.where(is_known, m.abs().div_(v.sqrt()), 0.0).sum(dtype=torch.float64)
    return ratio * (second.sqrt() / first), torch.count_nonzero(is_known)


def with_layers(measures: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add mean and smallest over the layers of each measure."""
    found = dict(measures)
    for key in [k for k in measures if "/" not in k]:
        layers = [v for k, v in measures.items() if k.startswith(f"{key}/")]
        values = torch.stack(layers)
        ignored = torch.isnan(values) if key.endswith("snr") else torch.zeros_like(values).bool()
        number = (~ignored).sum()
        found[f"{key}_mean"] = torch.where(ignored, 0.0, values).sum() / number
        least = torch.where(ignored, torch.inf, values).amin()
        found[f"{key}_min"] = torch.where(number > 0, least, torch.nan)
    return found


def _all(*tables: ParameterTable) -> dict[str, Tensor]:
    return {k: v for t in tables for k, v in (with_layers(t.by_layer()) | t.by_parameter()).items()}


def _share(measure: str) -> Callable[[Tensor], dict[str, Tensor]]:
    return lambda columns: {measure: columns[0] / columns[1]}


def _join(rows: Tensor) -> Tensor:
    return torch.cat([join_moments(rows[:, :3]), rows[:, 3:].amax(0)])


def _finish(columns: Tensor) -> Mapping[str, Tensor]:
    number, _, squares, linf = columns
    mean, std = mean_and_std(*columns[:3])
    l2 = (squares + number * mean.square()).sqrt()
    snr = torch.where(std > 0, mean.abs() / std, torch.nan)
    return {"l2": l2, "linf": linf, "snr": snr}
