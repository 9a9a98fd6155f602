"""The contract between the engine and its plugins: hooks, actions and settings.

Uses formats and recipes; needs no torch.
"""

from altcore.hooks.actions import (
    KEEP,
    Action,
    ChangeRecipe,
    Proposal,
    Rollback,
    ScaleLearningRate,
    ShiftFormat,
    SkipStep,
    Stop,
    Verdict,
    arbitrate,
    describe_action,
)
from altcore.hooks.nonfinite import NonFinite
from altcore.hooks.settings import (
    build,
    describe_settings,
    format_or_none,
    format_settings,
    formats_within,
    python_fields,
    setting,
    to_plain,
)
from altcore.hooks.specs import ACTING, HOOKS, HOOKSPECS, MEASURING, NEEDS, hookimpl

__all__ = [
    "ACTING",
    "HOOKS",
    "HOOKSPECS",
    "KEEP",
    "MEASURING",
    "NEEDS",
    "Action",
    "ChangeRecipe",
    "NonFinite",
    "Proposal",
    "Rollback",
    "ScaleLearningRate",
    "ShiftFormat",
    "SkipStep",
    "Stop",
    "Verdict",
    "arbitrate",
    "build",
    "describe_action",
    "describe_settings",
    "format_or_none",
    "format_settings",
    "formats_within",
    "hookimpl",
    "python_fields",
    "setting",
    "to_plain",
]
