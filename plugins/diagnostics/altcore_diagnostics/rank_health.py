"""The diagnostic ``rank-health``: how many directions a weight uses, and whether it loses any."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs
import torch
from attrs.validators import and_, ge, gt, lt
from torch import Tensor, nn

from altcore.plugin import hookimpl, is_meant, output_head, setting

if TYPE_CHECKING:
    from altcore.plugin import Run, Step

ROWS = 512
"""Rows of a weight that are brought to float64 at a time."""


@attrs.define(eq=False)
class RankHealth:
    """Stable and effective rank of each weight after the step, and a warning when one declines.

    With σ the singular values of a layer's weight W, as a matrix (further dimensions, a
    convolution's, are put into its columns):

    - ``stable_rank/layer.name``: ‖W‖_F² / ‖W‖_2² = Σσ² / max σ²;
    - ``effective_rank/layer.name``: exp(−Σ p ln p) with p = σ / Σσ (Roy & Vetterli, "The effective
      rank", EUSIPCO 2007);
    - ``stable_rank_min`` and ``effective_rank_min``: the smallest of a layer.

    Both are between 1 and min(m, n), and 0 for a zero matrix; NaN if a weight is not finite.
    The σ² are the eigenvalues of the smaller Gram matrix, in float64: a σ below √(n·2^-52) times
    the largest (2e-7 for n = 128) cannot be told from 0 and counts as 0, which changes an effective
    rank by less than 1e-4. Weights are those of all layers, quantized or not, as they are after
    the step: on their grid if they are stored, else the float32 masters. A tied one counts in
    the first layer that owns it.

    From the ``window``-th measurement on, counted anew after a rollback:

    - ``warning/layer.name``: 1 if one of the layer's two ranks declines, else 0: the
      least-squares line through the last ``window`` measurements falls, from its value at the first
      of them to that at the last, by more than the share ``drop``; for output-critical layers by
      more than ``critical_drop``. These are the output head, and the output projections
      (``output_projections``) of the last block: the last entry of the model's largest
      ``ModuleList``;
    - ``warning``: 1 if any layer has one, else 0; ``warnings``: how many layers have one.

    On CUDA torch's eigenvalue solver waits for the device: once for each size of matrix.
    """

    interval: int = setting(50, help="steps between measurements", validator=ge(1))
    window: int = setting(5, help="measurements that a trend is taken from", validator=ge(2))
    drop: float = setting(
        0.1,
        help="share of a rank that its trend may lose over the window without a warning",
        validator=and_(gt(0.0), lt(1.0)),
    )
    critical_drop: float = setting(
        0.05, help="the same for output-critical layers", validator=and_(gt(0.0), lt(1.0))
    )
    output_projections: tuple[str, ...] = setting(
        ("*c_proj", "*o_proj", "*out_proj", "*down_proj", "*fc2", "*wo", "*w2"),
        help="layers, by pattern, that are output-critical in the last block",
    )
    layers: list[str] = attrs.field(init=False, factory=list)
    history: Tensor | None = attrs.field(init=False, default=None)
    """(measurements, 2, layers), at most ``window``, the newest last: stable, then effective."""

    @hookimpl
    @torch.no_grad()
    def post_step(self, run: Run, step: Step) -> dict[str, Tensor] | None:
        """Measure the weights as the step left them."""
        weights = matrices(run.model)
        if not weights:
            return None
        found = ranks(list(weights.values()))
        self._remember(list(weights), found)
        measures = {}
        for kind, values in zip(("stable_rank", "effective_rank"), found, strict=True):
            measures[f"{kind}_min"] = values.min()
            measures |= {f"{kind}/{n}": v for n, v in zip(weights, values, strict=True)}
        if self.history is not None and len(self.history) == self.window:
            critical = critical_layers(run.model, self.output_projections)
            drops = [self.critical_drop if n in critical else self.drop for n in weights]
            limits = torch.tensor(drops, dtype=torch.float64, device=found.device)
            declines = (fall(self.history) > limits).any(0).double()
            measures |= {"warning": declines.max(), "warnings": declines.sum()}
            measures |= {f"warning/{n}": w for n, w in zip(weights, declines, strict=True)}
        return measures

    def _remember(self, layers: list[str], found: Tensor) -> None:
        if self.history is None or self.layers != layers:
            self.layers, self.history = layers, found[None]
        else:
            self.history = torch.cat([self.history, found[None]])[-self.window :]

    @hookimpl
    def on_event(self, event: Mapping[str, Any]) -> None:
        """Forget what a rollback undid."""
        if event["event"] == "rollback":
            self.history = None

    def state_dict(self) -> dict[str, Any]:
        """Return the measurements that a trend needs."""
        return {"layers": list(self.layers), "history": self.history}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.layers, self.history = state["layers"], state["history"]


def matrices(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters of two or more dimensions, by layer.

    A parameter that is not called ``weight`` goes by its own name.
    """
    named = {n: p.detach() for n, p in model.named_parameters() if p.dim() >= 2}
    return {n.removesuffix(".weight"): p for n, p in named.items()}


def ranks(weights: Sequence[Tensor]) -> Tensor:
    """Return stable and effective ranks, float64 (2, len(weights))."""
    grams = [gram(w) for w in weights]
    by_size: dict[int, list[int]] = {}
    for i, g in enumerate(grams):
        by_size.setdefault(len(g), []).append(i)
    found: dict[int, Tensor] = {}
    for members in by_size.values():
        own = ranks_of_grams(torch.stack([grams[i] for i in members]))
        found |= dict(zip(members, own.unbind(1), strict=True))
    return torch.stack([found[i] for i in range(len(grams))], 1)


def gram(weight: Tensor) -> Tensor:
    """Return the smaller Gram matrix of a weight, float64; its eigenvalues are the σ²."""
    tall = weight.flatten(1)
    if tall.shape[0] < tall.shape[1]:
        tall = tall.t()
    parts = (part.double() for part in tall.split(ROWS))
    total = torch.zeros(tall.shape[1], tall.shape[1], dtype=torch.float64, device=tall.device)
    for part in parts:
        total.addmm_(part.t(), part)
    return total


def ranks_of_grams(grams: Tensor) -> Tensor:
    """Return stable and effective ranks of Gram matrices of one size: (2, len(grams))."""
    size = grams.shape[-1]
    is_finite = torch.isfinite(grams.diagonal(dim1=-2, dim2=-1)).all(-1)  # sums of squares
    # The solver refuses what is not finite.
    safe = torch.where(is_finite[:, None, None], grams, torch.eye(size, device=grams.device))
    squares = torch.linalg.eigvalsh(safe)
    largest = squares[:, -1:]
    noise = largest * size * torch.finfo(torch.float64).eps
    squares = torch.where(squares > noise, squares, 0.0)
    sigma = squares.sqrt()
    p = sigma / sigma.sum(1, keepdim=True)
    both = torch.stack([squares.sum(1) / largest[:, 0], torch.special.entr(p).sum(1).exp()])
    both = torch.where(largest[:, 0] > 0, both, 0.0)
    return torch.where(is_finite, both, torch.nan)


def fall(values: Tensor) -> Tensor:
    """Return the share that the line through ``values``, along the first axis, loses."""
    count = len(values)
    at = torch.arange(count, dtype=values.dtype, device=values.device) - (count - 1) / 2
    slope = torch.tensordot(at, values, 1) / at.square().sum()
    first = values.mean(0) - slope * (count - 1) / 2
    # A rise from 0 may have a line that begins below 0, of which there is no share.
    return torch.where(first > 0, -slope * (count - 1) / first, 0.0)


def critical_layers(model: nn.Module, projections: Sequence[str]) -> set[str]:
    """Return the output-critical layers, by the names that `matrices` has for them."""
    names = {id(p): n.removesuffix(".weight") for n, p in model.named_parameters()}
    chosen = [] if (head := output_head(model)) is None else [head]
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m)]
    blocks = max(lists, key=lambda m: sum(p.numel() for p in m.parameters()), default=None)
    if blocks is not None:
        named = blocks[-1].named_modules()
        chosen += [m for n, m in named if is_meant(n, projections)]
    return {names[id(p)] for m in chosen for p in m.parameters() if p.dim() >= 2}
