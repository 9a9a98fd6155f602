"""The contract: hooks as pluggy specifications."""

import pluggy

from altcore.hooks import HOOKS
from altcore.hooks.specs import hookspec


def test_every_hook_is_specified_and_documented():
    """HOOKS is what pluggy knows, in the order of the step, each with its text."""
    from altcore.hooks import specs as hookspecs

    manager = pluggy.PluginManager("altcore")
    manager.add_hookspecs(hookspecs)
    assert set(vars(manager.hook)) - {"_dict"} >= set(HOOKS)
    assert [n for n, f in vars(hookspecs).items() if getattr(f, "altcore_spec", None)] == list(
        HOOKS
    )
    assert all(getattr(hookspecs, h).__doc__ for h in HOOKS)
    assert hookspec.project_name == "altcore"
