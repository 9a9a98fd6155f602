"""The contract between the engine and its plugins: hooks, actions and settings.

Uses formats, recipes and the registry; needs no torch.
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
from altcore.hooks.placing import Executor, Lasting, Placing, Scripted
from altcore.hooks.plugin_class import check_class, circle_of, hooks_of, make_plugin
from altcore.hooks.settings import (
    build,
    builtin_fields,
    describe_settings,
    format_settings,
    formats_within,
    setting,
    step_settings,
    to_plain,
    values_of,
)
from altcore.hooks.specs import (
    ACTING,
    BEFORE_OPTIMIZER,
    DECISIONS,
    HOOKS,
    HOOKSPECS,
    MEASURING,
    NEEDS,
    ON_DUE_STEPS,
    WATCHING,
    hookimpl,
)
from altcore.hooks.structuring import format_or_none

__all__ = [
    "ACTING",
    "BEFORE_OPTIMIZER",
    "DECISIONS",
    "HOOKS",
    "HOOKSPECS",
    "KEEP",
    "MEASURING",
    "NEEDS",
    "ON_DUE_STEPS",
    "WATCHING",
    "Action",
    "ChangeRecipe",
    "Executor",
    "Lasting",
    "NonFinite",
    "Placing",
    "Proposal",
    "Rollback",
    "ScaleLearningRate",
    "Scripted",
    "ShiftFormat",
    "SkipStep",
    "Stop",
    "Verdict",
    "arbitrate",
    "build",
    "builtin_fields",
    "check_class",
    "circle_of",
    "describe_action",
    "describe_settings",
    "format_or_none",
    "format_settings",
    "formats_within",
    "hookimpl",
    "hooks_of",
    "make_plugin",
    "setting",
    "step_settings",
    "to_plain",
    "values_of",
]
