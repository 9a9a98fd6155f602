"""The diagnostic ``flips``: codes that change, and those that only swing to and fro."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import attrs
import torch
from attrs import field
from attrs.validators import ge
from torch import Tensor

from altcore import hookimpl, setting
from altcore_diagnostics.measuring import Table, Weight, on_grid, weights_on_grids

if TYPE_CHECKING:
    from altcore.state import Run, Step


@attrs.define(eq=False)
class Swing:
    """What has to be known of one weight's past to tell that a code comes back."""

    what: str
    """Kind and format: another one begins anew."""
    earlier: Tensor
    """What each element was before its last flip; NaN if it has not flipped."""
    flipped_at: Tensor
    """int32: the step of its last flip."""


@attrs.define(eq=False)
class Flips:
    """Flips of codes, updates, their stall ratio, and the share of flips that go back.

    Measures, for each KIND of ``stored`` (weights that live on the grid) and ``view`` (float32
    masters that a product sees on it), summed over the last ``window`` steps:

    - ``KIND_flips``: codes that changed, on the grid before the step: of a stored weight as the
      core counts them, of a view those of the master before and after the step, rounded to
      nearest even at the scale of the forward pass;
    - ``KIND_updates``: elements with a proposed update other than 0 (``view``: masters that moved);
    - ``KIND_stall_ratio``: 1 - flips / updates;
    - ``KIND_oscillation_share``, in 0..1: among the flips, those that lead back to the code which
      the element had before its last flip, no more than ``window`` steps after that one: of
      A B A the second flip. Weights that swing about a rounding boundary make it large (Nagel et
      al. 2022, arXiv:2203.11086). NaN where nothing flipped;
    - the same for one layer, as ``KIND_flips/layer.name`` and so on.

    Oscillation is judged where a code before and after a step are on one grid: steps in which a
    stored weight's scale changed are left out. A view's codes are compared as they are, though
    its scale drifts.

    It has to see consecutive steps, so it has no ``interval``, but a ``report_interval``, and
    watches the last two windows before each measurement: the first for the past of the flips in
    the second. The cost: every step is recorded (as with ``log_interval`` 1) and copies the
    weights; 8 bytes are kept for each element on a grid, in checkpoints too; and each step that is
    watched makes some ten passes over them.
    """

    needs: ClassVar[tuple[str, ...]] = ("weights_before",)
    report_interval: int = setting(50, help="steps between measurements", validator=ge(1))
    window: int = setting(
        10, help="steps within which a code that comes back is an oscillation", validator=ge(1)
    )
    swings: dict[str, Swing] = field(init=False, factory=dict)
    sums: dict[str, dict[str, Tensor]] = field(init=False, factory=dict)
    """By kind and layer, float64 (4,): flips, updates, flips judged, those that go back."""
    is_counting: bool = field(init=False, default=False)
    """Whether the step is one of the last window, whose flips are measured."""
    reported: int = field(init=False, default=0)
    """The step of the last measurement."""

    @hookimpl
    @torch.no_grad()
    def post_step(self, run: Run, step: Step) -> dict[str, Tensor] | None:
        """Take in the update that was just made; measure when it is time, on the device."""
        left = -step.index % self.report_interval
        if left >= 2 * self.window:
            return self._measure(step)
        self.is_counting = left < self.window
        self._count(run)
        for weight in weights_on_grids(run, before_step=True):
            before = (step.weights_before or {}).get(weight.name)
            if before is not None:
                self._swing(run, weight, before, step.index)
        return self._measure(step)

    def _measure(self, step: Step) -> dict[str, Tensor] | None:
        # A step that was due may have been discarded.
        if step.index // self.report_interval == self.reported // self.report_interval:
            return None
        table = Table(_finish)
        for kind, layers in self.sums.items():
            for layer, sums in layers.items():
                table.add(kind, layer, sums)
        self.sums, self.reported = {}, step.index
        return table.measures()

    def _count(self, run: Run) -> None:
        """Add the core's counts of stored weights: it knows what was proposed."""
        q = run.quantization
        if q.stored_moves is not None:
            weights = zip(q.stored.values(), q.stored_moves.unbind(), strict=True)
            for weight, (updates, _, flips, _) in weights:
                self._add("stored", weight.layer, flips, updates, 0, 0)

    def _swing(self, run: Run, weight: Weight, before: Tensor, step: int) -> None:
        """Compare a weight's flips with its past, and keep what the next steps need."""
        grid, now = weight.grid, weight.parameter.detach()
        if grid.is_stored:  # the values are what stays the same when the scale does not
            after = run.quantization.grid_of(weight.parameter)
            flipped = (now != before).logical_and_(after.scale == grid.scale)
        else:
            moved = torch.count_nonzero(now != before)
            before, now = (on_grid(w, grid.format, grid.scale) for w in (before, now))
            flipped = now != before
        what = f"{weight.kind} {grid.format.name}"
        swing = self.swings.get(weight.name)
        if swing is None or swing.what != what:
            never = torch.full_like(before, torch.nan), torch.zeros_like(before, dtype=torch.int32)
            swing = self.swings[weight.name] = Swing(what, *never)
        # A checkpoint's tensors come back on the CPU.
        swing.earlier, swing.flipped_at = (
            kept.to(now.device) for kept in (swing.earlier, swing.flipped_at)
        )
        back = (now == swing.earlier).logical_and_(flipped)
        back.logical_and_(swing.flipped_at >= step - self.window)
        torch.where(flipped, before, swing.earlier, out=swing.earlier)
        swing.flipped_at.masked_fill_(flipped, step)
        judged, returned = (torch.count_nonzero(x) for x in (flipped, back))
        counted = (0, 0) if grid.is_stored else (judged, moved)  # see _count
        self._add(weight.kind, weight.layer, *counted, judged, returned)

    def _add(self, kind: str, layer: str, *numbers: Tensor | int) -> None:
        if not self.is_counting:
            return
        like = next(n for n in numbers if isinstance(n, Tensor))
        new = torch.stack([torch.zeros_like(like) + n for n in numbers]).double()
        sums = self.sums.setdefault(kind, {})
        sums[layer] = sums[layer].to(new.device) + new if layer in sums else new

    def state_dict(self) -> dict[str, Any]:
        """Return each weight's past and the sums so far."""
        swings = {n: [s.what, s.earlier, s.flipped_at] for n, s in self.swings.items()}
        return {"swings": swings, "sums": self.sums, "reported": self.reported}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.swings = {n: Swing(*kept) for n, kept in state["swings"].items()}
        self.sums, self.reported = dict(state["sums"]), state["reported"]


def _finish(columns: Tensor) -> Mapping[str, Tensor]:
    flips, updates, judged, back = columns
    return {
        "flips": flips.long(),
        "updates": updates.long(),
        "stall_ratio": 1 - flips / updates,
        "oscillation_share": back / judged,
    }
