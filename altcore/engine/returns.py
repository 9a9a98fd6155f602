"""Checks of what a plugin hands to the engine: the returns of its hooks, and its state."""

from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import Container, Mapping, Sequence
from contextlib import AbstractContextManager
from types import NoneType
from typing import Any

import torch
from torch import Tensor, nn

from altcore.builtin_types import nested_too_deeply
from altcore.engine.plugins import Plugin
from altcore.errors import PluginError, shown
from altcore.hooks import ACTING, MEASURING, WATCHING, Action
from altcore.signals import is_from_signal

LONGEST_MEASURE = 256
"""Elements of a measure that is a 1-D tensor."""
MOST_FINDINGS = 16
"""Lines and rows that a plugin may add to the summary, and columns of a row."""
LONGEST_LINE = 300
"""Letters of a line or a cell of findings, and of a measure's name."""
PLAIN = (str, int, float, bool, NoneType)
"""Types that a checkpoint gives back for certain."""
TORCHS = (Tensor, nn.Parameter, torch.Size, torch.dtype, torch.device)
"""Types that it gives back, unless a tensor has attributes of its own that it does not."""


def check_return(plugin: Plugin, hook: str, result: Any) -> None:
    """Raise `PluginError` for a return that the hook does not allow."""
    returned = f"it returned {type(result).__name__}"
    if hook == "is_due":
        if not isinstance(result, bool):
            raise PluginError(f"{returned}, not True or False")
    elif result is None:
        return
    elif hook in ACTING:
        wrong = [i for i, x in enumerate(as_actions(result)) if not isinstance(x, Action)]
        if wrong and isinstance(result, list | tuple):
            item = f"item {wrong[0]} of the list that it returned is {shown(result[wrong[0]])}"
            raise PluginError(f"{item}, not an Action")
        if wrong:
            raise PluginError(f"{returned}, not an Action or None, or a list of Actions")
        if not plugin.acts:
            raise PluginError(
                f"{returned}: a {plugin.kind} looks, only an intervention may ask for an action"
            )
    elif hook in MEASURING:
        _check_measures(result)
    elif hook == "findings":
        _check_findings(result)
    elif hook in WATCHING:
        if not isinstance(result, AbstractContextManager):
            raise PluginError(f"{returned}, not a context manager or None")
    else:
        raise PluginError(f"{returned}: {hook} returns nothing")


def as_actions(result: Any) -> Sequence[Any]:
    """Return the actions that an acting hook returned: one, or several in a list or tuple."""
    return result if isinstance(result, list | tuple) else (result,)


def check_state(value: Any, where: str = "state") -> Any:
    """Return a plugin's state if a checkpoint gives it back without running code.

    Raises:
        PluginError: otherwise. It would be written, and the checkpoint could not be read.
    """
    if problem := nested_too_deeply(value):
        raise PluginError(f"{where} {problem}")
    _check_state(value, where)
    return value


def _check_state(value: Any, where: str) -> None:
    if type(value) in (dict, OrderedDict):
        for key, part in value.items():
            _check_state(key, f"a key of {where}")
            _check_state(part, f"{where}[{key!r}]")
    elif type(value) in (list, tuple):
        for i, part in enumerate(value):
            _check_state(part, f"{where}[{i}]")
    # A subclass of a tensor may come back here, and not where its module was not imported.
    elif type(value) not in PLAIN and not (type(value) in TORCHS and _comes_back(value)):
        raise PluginError(
            f"{where} is {type(value).__name__}: it may be tensors, numbers, text, lists and dicts"
        )


def _comes_back(value: Any) -> bool:
    """Whether a checkpoint gives a value back without running code."""
    if isinstance(value, Tensor) and value.layout == torch.strided and not vars(value):
        return True
    buffer = io.BytesIO()
    try:
        torch.save(value, buffer)
        torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)
    # Pickling somebody else's object may raise anything.
    except BaseException as error:
        if is_from_signal(error):
            raise
        return False
    return True


def measured(result: Any, before: Container[str]) -> Any:
    """Return a plugin's measures without those that are None.

    Raises:
        PluginError: for one that the plugin made ``before`` in the same step.
    """
    if not isinstance(result, Mapping):
        return result
    made = {key: value for key, value in result.items() if value is not None}
    twice = next((key for key in made if key in before), None)
    if twice is not None:
        raise PluginError(f"measure {twice} was returned by another hook in this step")
    return made


def _check_measures(result: Any) -> None:
    if not isinstance(result, Mapping):
        raise PluginError(f"it returned {type(result).__name__}, not measures or None")
    for key, value in result.items():
        if not _is_line(key) or key != key.strip():
            raise PluginError(f"the measure's name {key!r} is not text that can be printed")
        if key == "step":
            raise PluginError("a measure cannot be called step: findings have the step under it")
        if isinstance(value, Tensor):
            if value.layout != torch.strided or value.is_meta or value.is_quantized:
                raise PluginError(f"measure {key} is a tensor without plain numbers: {value!r:.80}")
            if value.dim() > 1 or value.numel() > LONGEST_MEASURE or value.is_complex():
                raise PluginError(
                    f"measure {key} has shape {tuple(value.shape)}: a scalar or at most "
                    f"{LONGEST_MEASURE} numbers are possible"
                )
        elif not isinstance(value, int | float):
            raise PluginError(f"measure {key} is {type(value).__name__}, not a number or tensor")


def _check_findings(result: Any) -> None:
    if not isinstance(result, list | tuple) or len(result) > MOST_FINDINGS:
        raise PluginError(f"it returned no list of at most {MOST_FINDINGS} lines and rows")
    for finding in result:
        if isinstance(finding, str):
            is_fit = _is_line(finding)
        else:
            is_fit = isinstance(finding, Mapping) and 0 < len(finding) <= MOST_FINDINGS
            is_fit = is_fit and all(_is_line(k) and _is_cell(v) for k, v in finding.items())
        if not is_fit:
            raise PluginError(
                f"the finding {shown(finding)} is neither a line of text nor a row of text and "
                f"numbers, with at most {LONGEST_LINE} letters in a text"
            )


def _is_line(value: object) -> bool:
    """Whether a value is text that fits on a line."""
    return isinstance(value, str) and 0 < len(value) <= LONGEST_LINE and value.isprintable()


def _is_cell(value: object) -> bool:
    return _is_line(value) or value == "" or type(value) in (bool, int, float, NoneType)
