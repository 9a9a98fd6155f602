"""The diagnostic ``flips``: codes that change, and those that only swing to and fro."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import attrs
import torch
from attrs import field
from attrs.validators import ge
from torch import Tensor

from altcore.plugin import (
    MOVES,
    MeasureTable,
    QuantizedWeight,
    follow_flips,
    hookimpl,
    layer_of,
    on_grid,
    quantized_weights,
    setting,
)

if TYPE_CHECKING:
    from altcore.plugin import Run, Step


@attrs.define(eq=False)
class Swing:
    """One weight's past, as far as it tells whether a code comes back; a rollback ends it."""

    what: str
    """Kind and format: another one begins anew."""
    earlier: Tensor
    """The value of each element before its last flip; NaN if it has not flipped."""
    flipped_at: Tensor
    """int32: the step of its last flip."""


@attrs.define(eq=False)
class Flips:
    """Flips of codes, updates, their stall ratio, and the share of flips that go back.

    Measures, for each KIND of ``stored`` (weights that live on the grid) and ``view`` (float32
    masters that a product sees on it), summed over the last ``window`` steps, or over those
    since the last measurement if they are fewer:

    - ``KIND_flips``: codes that changed, on the grid before the step: of a stored weight as the
      core counts them, of a view those of the master before and after the step, rounded to
      nearest even at the scale of the forward pass;
    - ``KIND_updates``: elements with a proposed update other than 0 (``view``: masters that moved);
    - ``KIND_stall_ratio``: 1 - flips / updates;
    - ``KIND_oscillation_share``, in 0..1: among the flips, those that lead back to the code which
      the element had before its last flip, no more than ``window`` steps after that one: of
      A B A the second flip. Weights that swing about a rounding boundary make it large (Nagel et
      al. 2022, arXiv:2203.11086). NaN if nothing flipped;
    - the same for one layer, as ``KIND_flips/layer.name`` and so on.

    Oscillation is judged where a code before and after a step are on one grid: steps in which a
    stored weight's scale changed are left out. A view's codes are compared as they are, though
    its scale drifts.

    It has to see consecutive steps, so it has no ``interval``, but a ``report_interval``, and
    watches the last two windows before each measurement: the first for the past of the flips in
    the second. It measures the first step, too, by itself. A rollback undoes steps: what was seen
    before it is neither counted nor a past. The cost: every step that is watched is recorded (as
    with ``log_interval`` 1) and makes some passes over the weights, and a copy of masters; 8 bytes
    are kept for each element on a grid, in checkpoints too.
    """

    report_interval: int = setting(
        50, help="steps between measurements", validator=ge(1), counts_steps=True
    )
    window: int = setting(
        10,
        help="steps within which a code that comes back is an oscillation",
        validator=ge(1),
        counts_steps=True,
    )
    swings: dict[str, Swing] = field(init=False, factory=dict)
    sums: list[list[Any]] = field(init=False, factory=list)
    """Kind, names of weights, and of these, float64 (weights, 4): flips, updates, flips judged,
    those that go back."""
    reported: int = field(init=False, default=0)
    """The step of the last measurement."""
    before: dict[str, Tensor] = field(init=False, factory=dict)
    """The weights on grids, before the step that is watched."""

    @hookimpl
    def is_due(self, step: Step) -> bool:
        """Whether the step is watched or measured."""
        return self._is_watched(step.index) or self._is_time(step.index)

    def _is_watched(self, step: int) -> bool:
        return step == 1 or self._left(step) < 2 * self.window

    def _left(self, step: int) -> int:
        """Return the number of steps to the next measurement."""
        return -step % self.report_interval

    def _is_time(self, step: int) -> bool:
        """Whether there is a measurement to make: a step that was due may have been discarded."""
        return step // self.report_interval != self.reported // self.report_interval

    @hookimpl
    def pre_backward(self, run: Run, step: Step) -> None:
        """Keep the weights that a watched step begins with: copies only of float32 masters."""
        if step.micro > 0:
            return
        self.before = {}
        if self._is_watched(step.index):
            stored = run.quantization.stored
            for w in quantized_weights(run):
                is_stored = w.grid.is_stored
                self.before[w.name] = (
                    stored[w.name].before if is_stored else w.parameter.detach().clone()
                )

    @hookimpl
    @torch.no_grad()
    def post_step(self, run: Run, step: Step) -> dict[str, Tensor] | None:
        """Take in the update that was just made; measure when it is time, on the device."""
        is_first, is_within = step.index == 1, self._left(step.index) < self.window
        if self._is_watched(step.index):
            is_counting = is_first or is_within
            found: dict[str, dict[str, list[Tensor]]] = {"stored": {}, "view": {}}
            for weight in quantized_weights(run, before_step=True):
                if weight.name in self.before:
                    before = self.before.pop(weight.name)
                    counts = self._swing(run, weight, before, step.index, is_counting)
                    found[weight.kind][weight.name] = counts
            if is_counting:
                self._count(run, found)
        is_time = self._is_time(step.index)
        measures = self._measure() if is_time or is_first else None
        if is_time:
            self.reported = step.index
        if is_time or is_first or not is_within:
            self.sums = []
        return measures

    @hookimpl
    def on_event(self, event: Mapping[str, Any]) -> None:
        """Forget what a rollback undid."""
        if event["event"] == "rollback":
            self.swings, self.sums = {}, []

    def _measure(self) -> dict[str, Tensor]:
        table = MeasureTable(_finish)
        for kind, names, sums in self.sums:
            for name, row in zip(names, sums.unbind(), strict=True):
                table.add(kind, layer_of(name), row)
        return table.measures()

    def _count(self, run: Run, found: dict[str, dict[str, list[Tensor]]]) -> None:
        """Add what `_swing` found in the weights of each kind, and what the core knows."""
        q = run.quantization
        if q.counters.stored_moves is not None:  # of what was proposed
            moves = dict(zip(MOVES, q.counters.stored_moves.unbind(1), strict=True))
            self._add("stored", list(q.stored), moves["flips"], moves["updates"], None, None)
        for kind, weights in found.items():
            if weights:
                each = torch.stack([n for counts in weights.values() for n in counts])
                judged, back, *moved = each.view(len(weights), -1).unbind(1)
                seen = (judged, *moved) if moved else (None, None)
                self._add(kind, list(weights), *seen, judged, back)

    def _add(self, kind: str, names: list[str], *columns: Tensor | None) -> None:
        like = next(c for c in columns if c is not None)
        new = torch.stack([torch.zeros_like(like) if c is None else c for c in columns], 1).double()
        for known in self.sums:
            if known[:2] == [kind, names]:
                known[2] = known[2] + new
                return
        self.sums.append([kind, names, new])

    def _swing(
        self, run: Run, weight: QuantizedWeight, before: Tensor, step: int, is_counting: bool
    ) -> list[Tensor]:
        """Compare a weight's flips with its past, and keep what the next steps need.

        Returns the flips, and those that go back; of a view, where they are counted, the masters
        that moved too.
        """
        grid, now, scales, moved = weight.grid, weight.parameter.detach(), None, None
        if grid.is_stored:  # the values are what stays the same when the scale does not
            scales = grid.scale, run.quantization.grid_of(weight.parameter).scale
        else:
            moved = torch.count_nonzero(now != before) if is_counting else None
            before, now = (on_grid(w, grid.format, grid.scale) for w in (before, now))
        what = f"{weight.kind} {grid.format.name}"
        swing = self.swings.get(weight.name)
        if swing is None or swing.what != what:
            never = torch.full_like(before, torch.nan), torch.zeros_like(before, dtype=torch.int32)
            swing = self.swings[weight.name] = Swing(what, *never)
        past, since = (swing.earlier, swing.flipped_at), step - self.window
        counts = follow_flips(before, now, *past, step, since=since, scales=scales)
        return [*counts.unbind(), *([] if moved is None else [moved])]

    def state_dict(self) -> dict[str, Any]:
        """Return each weight's past and the sums so far."""
        swings = {n: [s.what, s.earlier, s.flipped_at] for n, s in self.swings.items()}
        return {"swings": swings, "sums": [list(s) for s in self.sums], "reported": self.reported}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.swings = {n: Swing(*kept) for n, kept in state["swings"].items()}
        self.sums, self.reported = [list(s) for s in state["sums"]], state["reported"]


def _finish(columns: Tensor) -> Mapping[str, Tensor]:
    flips, updates, judged, back = columns
    return {
        "flips": flips.long(),
        "updates": updates.long(),
        "stall_ratio": 1 - flips / updates,
        "oscillation_share": back / judged,
    }
