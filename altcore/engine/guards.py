"""What a plugin may not change, put back if it does: the loss, and torch's modes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from altcore.engine.plugins import Plugin
from altcore.engine.state import Run, Step
from altcore.errors import PluginError


@contextmanager
def loss_kept(plugin: Plugin, hook: str, step: Step | None) -> Iterator[None]:
    """Check what a plugin makes of the loss and its scale, in a hook that is given a step.

    ``pre_backward`` of an intervention may change them; elsewhere they are put back.

    Raises:
        PluginError: if they were changed and may not be, or cannot be used.
    """
    if step is None:
        yield
    elif plugin.acts and hook == "pre_backward":
        before = step.loss
        yield
        _check(step, before)
    else:
        loss, scale, times_set = step.loss, step.loss_scale, step._times_set
        # It may be changed in place, too: ``step.loss *= 2``.
        version, copy = _version(loss), None if loss is None else loss.clone()
        try:
            yield
        finally:
            is_written = _version(loss) != version
            is_kept = step.loss is loss and step.loss_scale is scale and not is_written
            if not is_kept:
                step.loss, step.loss_scale = copy if is_written else loss, scale
                step._times_set = times_set
            if loss is not None and copy is not None and is_written:
                # What the engine recorded of it shares its memory.
                loss.detach().copy_(copy.detach())
        if not is_kept:
            raise PluginError(
                f"{hook} of a {plugin.kind} may not change the loss: only pre_backward of an "
                "intervention may"
            )


def _version(loss: Tensor | None) -> int:
    return -1 if loss is None else loss._version


def _check(step: Step, before: Tensor | None) -> None:
    loss, scale = step.loss, step.loss_scale
    if loss is not before and not (isinstance(loss, Tensor) and loss.dim() == 0):
        raise PluginError(
            f"it set step.loss to {type(loss).__name__}, not a tensor of 0 dimensions"
        )
    if isinstance(scale, Tensor):
        is_scale = scale.dim() == 0
    else:
        is_scale = isinstance(scale, int | float) and scale > 0
    if not is_scale:
        raise PluginError(f"it set step.loss_scale to {scale!r:.60}, not a positive number")


@contextmanager
def reports_checked(run: Run) -> Iterator[None]:
    """Take back the reports that a plugin adds to ``run.reports`` and did not write.

    Raises:
        PluginError: that names the first.
    """
    known = getattr(run, "reports", [])  # not of everybody who dispatches
    before = len(known)
    try:
        yield
    finally:
        wrong = [path for path in known[before:] if not _is_report(path, run)]
        if wrong:
            del known[before:]
    if wrong:
        raise PluginError(f"run.reports: {wrong[0]!r:.80} is no path of a file in run.directory")


def _is_report(path: object, run: Run) -> bool:
    return (
        isinstance(path, str)
        and not Path(path).is_absolute()
        and ".." not in Path(path).parts
        and (run.directory / path).is_file()
    )


@contextmanager
def modes_kept(undo: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Put back the modes of torch in which the model runs, after ``undo``, if they were changed.

    Raises:
        PluginError: that says which.
    """
    before = _modes()
    try:
        yield
    finally:
        changed = [name for name, value in _modes().items() if value != before[name]]
        if changed:
            undo()
            torch.set_grad_enabled(before["grad mode"])
            torch.set_default_dtype(before["the default dtype"])
            for device, is_on in before["autocast"].items():
                torch.set_autocast_enabled(device, is_on)
    if changed:
        raise PluginError(f"it may not change {' and '.join(changed)} of torch")


def _modes() -> dict[str, Any]:
    return {
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "autocast": {device: torch.is_autocast_enabled(device) for device in ("cpu", "cuda")},
        "the default dtype": torch.get_default_dtype(),
    }
