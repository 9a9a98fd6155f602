"""What a plugin may not change, put back if it does: the loss, the step, and torch's modes.

The checks surround every call of every plugin, so each costs well under a microsecond: they compare
identities, versions and numbers. `altcore.engine.trespass` compares everything else, when asked.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from altcore.engine.flag_watch import FlagWatch, tell_changed
from altcore.engine.plugins import Plugin
from altcore.engine.state import Run, Step
from altcore.errors import PluginError, shown, with_article
from altcore.signals import handlers, put_back_handlers


class Kept:
    """What `put_back` compares with and restores; made once for all plugins that a hook calls."""

    __slots__ = (
        "flags",
        "handlers",
        "lr_scale",
        "modes",
        "reports",
        "rounding",
        "scale",
        "step",
        "times_set",
    )

    def __init__(self, run: Run, step: Step | None) -> None:
        self.step, self.lr_scale = run.step, run.lr_scale
        self.reports = tuple(run.reports)
        self.modes, self.rounding, self.flags = _modes(), _rounding(), FlagWatch()
        self.handlers = handlers()
        if step is not None:
            self._keep_scale(step)

    def put_back(
        self,
        plugin: Plugin,
        hook: str,
        run: Run,
        step: Step | None,
        undo: Callable[[], None] | None,
    ) -> str:
        """Undo what may not be changed; returns what that was, "" if nothing.

        Changed modes are put back after ``undo``.
        """
        found = [_put_back_modes(self.modes, undo), self._put_back_numbers(run)]
        if _rounding() != self.rounding:
            found.append("it may not change the processor's rounding mode")
            _round_to_nearest()
        found.append(self._look_at_flags(plugin, hook))
        if names := put_back_handlers(self.handlers):
            found.append(f"it may not change the handler of {', '.join(names)}")
        if tuple(run.reports) != self.reports:
            found.append(self._drop_reports(run))
        if step is not None:
            if may_change_loss(plugin, hook):
                found.append(_wrong_loss(step))
                if step.loss_scale is not self.scale:
                    step._scaled_by.append(str(plugin))
                self._keep_scale(step)
            elif self._put_back_loss(step):
                found.append(
                    f"{hook} of {with_article(plugin.kind)} may not change the loss: only "
                    "pre_backward of an intervention may"
                )
        return "; ".join(filter(None, found))

    def _look_at_flags(self, plugin: Plugin, hook: str) -> str:
        """Put them back, unless an intervention set them: it may change numbers, and is named."""
        if plugin.acts:
            tell_changed(plugin, hook, self.flags.changed())
            return ""
        changed = self.flags.put_back(is_reporter=plugin.kind == "reporter")
        return f"it may not change {', '.join(changed)}" if changed else ""

    def _keep_scale(self, step: Step) -> None:
        self.scale, self.times_set = step.loss_scale, step._times_set

    def _put_back_loss(self, step: Step) -> bool:
        loss, version, copy = step._kept_loss
        is_written = loss is not None and loss._version != version
        is_kept = step.loss is loss and step.loss_scale is self.scale and not is_written
        if not is_kept:
            step.loss, step.loss_scale = copy if is_written else loss, self.scale
            step._times_set = self.times_set
        if is_written and loss is not None and copy is not None:
            # What the engine recorded of it shares its memory.
            loss.detach().copy_(copy.detach())
        return not is_kept

    def _put_back_numbers(self, run: Run) -> str:
        if run.step is self.step and run.lr_scale is self.lr_scale:
            return ""
        changed = []
        for name in ("step", "lr_scale"):
            before, now = getattr(self, name), getattr(run, name)
            if now is not before and not (type(now) is type(before) and now == before):
                setattr(run, name, before)
                changed.append(f"run.{name}")
        return f"it may not change {' and '.join(changed)}" if changed else ""

    def _drop_reports(self, run: Run) -> str:
        count = len(self.reports)
        is_longer = tuple(run.reports[:count]) == self.reports
        wrong = [path for path in run.reports[count:] if not _is_report(path, run)]
        if is_longer and not wrong:
            self.reports = tuple(run.reports)
            return ""
        run.reports[:] = self.reports
        if not is_longer:
            return "it may only append to run.reports"
        return f"run.reports: {shown(wrong[0], 80)} is no path of a file in run.directory"


def may_change_loss(plugin: Plugin, hook: str) -> bool:
    """Whether a plugin may replace the loss and set its scale in this hook."""
    return plugin.acts and hook == "pre_backward"


def _wrong_loss(step: Step) -> str:
    loss, scale = step.loss, step.loss_scale
    if not (isinstance(loss, Tensor) and loss.dim() == 0):
        return f"it set step.loss to {type(loss).__name__}, not a tensor of 0 dimensions"
    if not loss.is_floating_point():
        return f"it set step.loss to a tensor of {loss.dtype}, not of a real type"
    if not loss.requires_grad:
        return "it set step.loss to a tensor without a gradient, such as detach() returns"
    if isinstance(scale, Tensor):
        is_scale = scale.dim() == 0
    else:
        is_scale = isinstance(scale, int | float) and 0 < scale < math.inf
    return "" if is_scale else f"it set step.loss_scale to {shown(scale)}, not a positive number"


def check_loss_scale(step: Step, scale: float) -> None:
    """Raise `PluginError` for a loss scale, now on the host, that cannot be taken out again."""
    if not 0 < scale < math.inf:
        text = f"set step.loss_scale to {scale}, not a positive number"
        raise PluginError(f"{' and '.join(dict.fromkeys(step._scaled_by))} {text}")


def _is_report(path: object, run: Run) -> bool:
    return (
        isinstance(path, str)
        and not Path(path).is_absolute()
        and ".." not in Path(path).parts
        and (run.directory / path).is_file()
    )


_ONE, _BELOW_HALF_ULP = 1.0, 2.0**-55


def _rounding() -> tuple[float, float]:
    """Return sums that differ if Python, and all C code, does not round to nearest."""
    return _ONE + _BELOW_HALF_ULP, _ONE - _BELOW_HALF_ULP


def _round_to_nearest() -> None:
    with suppress(OSError, AttributeError):  # where C has no such function
        ctypes.CDLL(None).fesetround(0)  # FE_TONEAREST


MODES = ("grad mode", "inference mode", "autocast", "autocast", "the default dtype")


def _modes() -> tuple[Any, ...]:
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.is_autocast_enabled("cuda"),
        torch.get_default_dtype(),
    )


def _put_back_modes(before: tuple[Any, ...], undo: Callable[[], None] | None) -> str:
    now = _modes()
    if now == before:
        return ""
    if undo is not None:
        undo()
    torch.set_grad_enabled(before[0])
    torch.set_autocast_enabled("cpu", before[2])
    torch.set_autocast_enabled("cuda", before[3])
    torch.set_default_dtype(before[4])
    changed = dict.fromkeys(n for n, b, a in zip(MODES, before, now, strict=True) if a != b)
    return f"it may not change {' and '.join(changed)} of torch"
